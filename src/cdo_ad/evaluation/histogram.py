"""How many good and how many anomalous pixels have each score: one histogram, exact or coarse, in bounded memory.

- A float32 score is read as an unsigned integer in the same order (`sort_keys`). `shift` low bits of it are dropped:
  with 0 every distinct score is counted by itself, with 15 scores that differ by less than 0.4 % share a bin.
- Pixels wait in a buffer, which is sorted into bins, and bins are merged. Only scores that occur take room.
- Where the bins outgrow their memory, one more low bit is dropped, as often as needed. What is dropped depends on
  the set of scores only, never on the order of the updates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt

from cdo_ad.evaluation.curves import Bins
from cdo_ad.types import Float32Array, MaskArray

__all__ = ["COARSE", "Counted", "ScoreHistogram", "sort_keys"]

COARSE = 15
"""Bits to drop for counts of single images, which are kept on disk."""
BUFFER_PIXELS = 1 << 24
WIDEST = 16
"""Bits that are dropped at most."""
MOST = 2**32 - 1

IntArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint32]
Float64Array = npt.NDArray[np.float64]
PackedArray = npt.NDArray[np.uint64]


class Counted(NamedTuple):
    """Pixels at K scores, ascending."""

    keys: KeyArray
    """(K,) `sort_keys` of the scores without their low bits."""
    good: IntArray
    anomalous: IntArray
    weight: Float64Array
    """(K,) anomalous pixels, each divided by the area of its region (8-connected)."""


def sort_keys(scores: npt.NDArray[np.float32]) -> KeyArray:
    """Finite float32 scores as unsigned integers in the same order (IEEE 754); -0 and +0 are equal."""
    bits = (scores + np.float32(0.0)).view(np.int32)
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


class ScoreHistogram:
    """Counts of good and anomalous pixels by score, the latter also weighted by 1 / area of their region."""

    def __init__(self, memory: int = 2 << 30, shift: int = 0) -> None:
        """Start empty.

        Args:
            memory: bytes for everything, while pixels are added too.
            shift: low bits of each score to drop from the start.
        """
        self.memory = memory
        self.shift = shift
        """Low bits dropped from every score; 0: all results are exact."""
        self.good = 0
        """Number of good pixels."""
        self.anomalous = 0
        """Number of anomalous pixels."""
        self._good: PackedArray = np.zeros(0, np.uint64)
        self._bad: tuple[Any, ...] = (np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0))
        self._waiting: list[tuple[KeyArray, KeyArray, Float64Array]] = []
        self._waiting_pixels = 0

    def add(self, scores: Float32Array, mask: MaskArray | None = None, inside: MaskArray | None = None) -> None:
        """Count the pixels of one image.

        Args:
            scores: (H, W) finite float32.
            mask: (H, W) bool, True on the defect; None for a good image.
            inside: (H, W) bool, the region of interest: other pixels do not count; None for all.
        """
        keys = sort_keys(np.ascontiguousarray(scores, dtype=np.float32))
        if inside is not None:
            mask = None if mask is None else mask & inside
        if mask is None or not mask.any():
            good, bad, weight = keys.ravel() if inside is None else keys[inside], np.zeros(0, np.uint32), np.zeros(0)
        else:
            regions = cc3d.connected_components(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)[mask]
            normal = ~mask if inside is None else inside & ~mask
            good, bad, weight = keys[normal], keys[mask], 1.0 / np.bincount(regions)[regions]
        self.good += good.size
        self.anomalous += bad.size
        self._waiting.append((good, bad, weight))
        self._waiting_pixels += keys.size
        if self._waiting_pixels > min(BUFFER_PIXELS, self.memory // 64):
            self._settle()

    def merge(self, other: ScoreHistogram) -> None:
        """Count also all that `other` has counted; `other` stays as it is, but for its buffer."""
        self._settle()
        other._settle()
        if self.shift < other.shift:
            self._coarsen(other.shift - self.shift)
        drop = np.uint32(self.shift - other.shift)
        keys, counts = _unpacked(other._good)
        self._include(_packed(*_summed(keys >> drop, counts)), _summed(other._bad[0] >> drop, *other._bad[1:]))
        self.good += other.good
        self.anomalous += other.anomalous

    @property
    def nbytes(self) -> int:
        """Bytes that the bins take."""
        return sum(column.nbytes for column in (self._good, *self._bad))

    def counted(self) -> Counted:
        """All counts by score."""
        self._settle()
        keys, counts = _unpacked(self._good)
        bad_keys, bad, weight = self._bad
        none, nothing = np.zeros(keys.size, np.int64), np.zeros(bad_keys.size, np.int64)
        both = (
            np.concatenate((keys, bad_keys)),
            np.append(counts, nothing),
            np.append(none, bad),
            np.append(none, weight),
        )
        return Counted(*_grouped(*both))

    def bins(self) -> Bins:
        """Counts that give the same curves as all counts: three bins for each score that an anomalous pixel has.

        Where a curve does not rise, it is level however many scores the good pixels have there. So the good pixels
        between two anomalous scores are added up, but for those of the last such score: a segment of the PRO curve
        may begin there.
        """
        self._settle()
        bad_keys, bad, weight = self._bad
        below = self._good.searchsorted(_places(bad_keys))
        up_to = self._good.searchsorted(_places(bad_keys.astype(np.uint64) + np.uint64(1)))
        next_below = np.append(below[1:], self._good.size)
        passed = self._good & np.uint64(MOST)
        np.cumsum(passed, out=passed)

        def before(places: IntArray) -> IntArray:
            """Good pixels in the first so many places."""
            some = places > 0
            found = np.zeros(places.size, np.int64)
            found[some] = passed[places[some] - 1]
            return found

        last = np.zeros(bad.size, np.int64)
        between = up_to < next_below[: bad.size]
        last[between] = self._good[up_to[between]] & np.uint64(MOST)
        level, tied = before(next_below)[: bad.size] - before(up_to) - last, before(up_to) - before(below)
        lowest = before(np.append(below, self._good.size)[:1])
        good = np.append(np.stack([level, last, tied])[:, ::-1].T.ravel(), lowest)
        bad, weight = (np.append(_third(column), 0) for column in (bad, weight))
        occupied = (good > 0) | (bad > 0)
        return Bins(good[occupied], bad[occupied], weight[occupied])

    def _settle(self) -> None:
        """Move the buffer into the bins."""
        if not self._waiting:
            return
        good, bad, weight = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        self._waiting, self._waiting_pixels = [], 0
        good >>= np.uint32(self.shift)
        good.sort()
        starts = _starts(good)
        self._include(_packed(good[starts], np.diff(starts, append=good.size)),
                      _grouped(bad >> np.uint32(self.shift), np.ones(bad.size, np.int64), weight))  # fmt: skip

    def _include(self, good: PackedArray, bad: tuple[Any, ...]) -> None:
        self._good = _merged(self._good, good)
        self._bad = _grouped(*(np.concatenate(both) for both in zip(self._bad, bad, strict=True)))
        while self.nbytes > self.memory // 4 and self.shift < WIDEST:  # merging takes as much again, and more
            self._coarsen()

    def _coarsen(self, bits: int = 1) -> None:
        """Drop more low bits and add up the bins that become one."""
        self.shift += bits
        keys, counts = _unpacked(self._good)
        self._good = _packed(*_summed(keys >> np.uint32(bits), counts))
        self._bad = _summed(self._bad[0] >> np.uint32(bits), *self._bad[1:])


def _places(keys: npt.NDArray[Any]) -> PackedArray:
    """The smallest packed value of each key."""
    places: PackedArray = keys.astype(np.uint64) << np.uint64(32)
    return places


def _packed(keys: KeyArray, counts: IntArray) -> PackedArray:
    """(K,) key << 32 | count: one array that sorts by key. A count of more than 32 bits takes several places."""
    packed = _places(keys)
    largest = int(counts.max(initial=0))
    if largest > MOST:
        times = -(-counts // MOST)
        packed, part = np.repeat(packed, times), np.repeat(counts // times, times)
        part[np.cumsum(times) - 1] += counts - counts // times * times
        counts = part
    packed |= counts.astype(np.uint64)
    return packed


def _unpacked(packed: PackedArray) -> tuple[KeyArray, IntArray]:
    return (packed >> np.uint64(32)).astype(np.uint32), (packed & np.uint64(MOST)).astype(np.int64)


def _merged(one: PackedArray, other: PackedArray) -> PackedArray:
    """Both together, ascending; the counts of a key that both have are added up where the sum has 32 bits."""
    if not one.size or not other.size:
        return one if one.size else other
    both = np.concatenate((one, other))
    both.sort(kind="stable")  # two sorted runs: one pass
    twice = np.flatnonzero((both[1:] ^ both[:-1]) <= np.uint64(MOST))
    sums = (both[twice] & np.uint64(MOST)) + (both[twice + 1] & np.uint64(MOST))
    twice = twice[sums <= MOST]
    both[twice + 1] += both[twice] & np.uint64(MOST)
    keep = np.ones(both.size, np.bool_)
    keep[twice] = False
    return both[keep]


def _starts(keys: KeyArray) -> IntArray:
    """Where each run of equal keys begins in a sorted array."""
    if not keys.size:
        return np.zeros(0, np.int64)
    first = np.ones(keys.size, np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return np.flatnonzero(first)


def _summed(keys: KeyArray, *columns: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Distinct keys of (N,) sorted ones, and the sums of the columns at each."""
    starts = _starts(keys)
    return (keys[starts], *(np.add.reduceat(c, starts) if starts.size else c for c in columns))


def _grouped(keys: KeyArray, *columns: npt.NDArray[Any]) -> tuple[Any, ...]:
    """As `_summed`, for keys in any order."""
    order = np.argsort(keys, kind="stable")
    return _summed(keys[order], *(column[order] for column in columns))


def _third(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(K,) -> (3 K,), the largest key first, in every third place."""
    spread = np.zeros((column.size, 3), column.dtype)
    spread[:, 2] = column[::-1]
    return spread.ravel()
