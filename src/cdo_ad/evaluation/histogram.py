"""How many good and how many anomalous pixels have each score: counted exactly, in bounded memory.

- A float32 has 2**32 values, and the maps of one detector use a few octaves of them (2**23 values each). So scores
  are *counted per value*, and a thousand million pixels need no more room than the values they take.
- Few pixels are kept as they are; more are counted in pages of 2**16 neighbouring values, made when first touched.
- If the pages would outgrow the budget, neighbouring values are counted together: one low bit of the key is dropped,
  as often as needed. What is dropped depends on the set of scores only, never on the order of the updates.
- Every metric is a sum over *steps*: the distinct scores that at least one anomalous pixel has. Scores of good
  pixels only move the curves sideways, which the next step knows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ScoreHistogram", "Steps", "sort_keys"]

IntArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint32]
Float64Array = npt.NDArray[np.float64]
Pages = dict[int, npt.NDArray[Any]]

PAGE_BITS = 16
PAGE = 1 << PAGE_BITS
BUFFER_PIXELS = 1 << 24


@dataclass(frozen=True, slots=True)
class Steps:
    """Counts just before (0) and just after (1) the threshold passes each score, from the largest score downwards."""

    fp0: IntArray
    """Good pixels above the score."""
    fp1: IntArray
    """Good pixels at or above it."""
    joined: IntArray
    """Where the last good pixels before came from: `fp0` less the good pixels that share the next larger score that
    any good pixel has; 0 where there is none."""
    tp0: IntArray
    """Anomalous pixels above the score."""
    tp1: IntArray
    """Anomalous pixels at or above it; always larger than `tp0`."""
    overlap0: Float64Array
    """The share of its region above the score, summed over regions."""
    overlap1: Float64Array
    """The share of its region at or above it, summed over regions."""

    @classmethod
    def after(
        cls,
        fp0: IntArray,
        fp1: IntArray,
        joined: IntArray,
        anomalous: IntArray,
        weight: Float64Array,
        tp: int = 0,
        overlap: float = 0.0,
    ) -> Steps:
        """Make the steps that follow `tp` anomalous pixels of summed weight `overlap`, given what each step adds."""
        tp1 = tp + np.cumsum(anomalous)
        overlap1 = np.cumsum(np.concatenate(([overlap], weight)))
        return cls(fp0, fp1, joined, tp1 - anomalous, tp1, overlap1[:-1], overlap1[1:])


def sort_keys(scores: npt.NDArray[np.float32]) -> KeyArray:
    """Finite float32 scores as unsigned integers in the same order (IEEE 754); -0 and +0 are equal."""
    bits = (scores + np.float32(0.0)).view(np.int32)
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def _run_starts(ordered: npt.NDArray[Any]) -> IntArray:
    """(K,) where each run of equal values begins in a non-empty sorted array."""
    return np.concatenate((np.zeros(1, np.int64), np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))


class ScoreHistogram:
    """Counts of good and anomalous pixels per score, the latter also weighted by 1 / area of their region."""

    def __init__(self, memory: int) -> None:
        """Use at most `memory` bytes for pages (at least 2 MiB), besides a buffer of at most 2**24 pixels."""
        self.memory = memory
        self.shift = 0
        """Low bits dropped from every key; 0: all results are exact."""
        self.good = 0
        self.anomalous = 0
        self._capacity = min(BUFFER_PIXELS, memory // 64)
        self._good_buffer: list[KeyArray] = []
        self._bad_buffer: list[npt.NDArray[np.uint64]] = []  # key << 32 | area of the pixel's region
        self._good_pages: Pages = {}
        self._bad_pages: Pages = {}
        self._weight_pages: Pages = {}  # float64, the same page numbers as _bad_pages
        self._paged = False

    # ---- filling

    def add(self, good: KeyArray, anomalous: KeyArray, areas: npt.NDArray[np.uint64]) -> None:
        """Count pixels: keys of the good ones; keys of the anomalous ones with the area of each one's region."""
        self._good_buffer.append(good)
        self._bad_buffer.append(anomalous.astype(np.uint64) << np.uint64(32) | areas)
        self.good += good.size
        self.anomalous += anomalous.size
        if sum(a.size for a in self._good_buffer) + sum(a.size for a in self._bad_buffer) > self._capacity:
            self._flush()

    def merge(self, other: ScoreHistogram) -> None:
        """Count also all that `other` has counted; `other` stays as it is."""
        other = copy.deepcopy(self) if other is self else other
        self.good += other.good  # first: the totals decide how wide the counts are
        self.anomalous += other.anomalous
        while self.shift < other.shift:
            self._coarsen()
        for number, page in other._good_pages.items():
            keys, index = other._keys(number, page)
            self._count(keys, page[index], keys[:0], page[:0], np.zeros(0))
        for number, page in other._bad_pages.items():
            keys, index = other._keys(number, page)
            self._count(keys[:0], page[:0], keys, page[index], other._weight_pages[number][index])
        empty = np.zeros(0, np.uint32)
        self._good_buffer += other._good_buffer
        self._bad_buffer += other._bad_buffer
        self._paged |= other._paged
        self.add(empty, empty, empty.astype(np.uint64))  # flushes where the buffers together are too long

    def _keys(self, number: int, page: npt.NDArray[Any]) -> tuple[KeyArray, IntArray]:
        """Full keys of a page's occupied places (the smallest of each bin), and the places."""
        index = np.flatnonzero(page)
        return ((index + (number << PAGE_BITS)) << self.shift).astype(np.uint32), index

    def _sorted_buffers(self) -> tuple[KeyArray, KeyArray, IntArray, Float64Array]:
        """Sorted good keys, distinct anomalous keys, their counts and their weights. The buffers stay, sorted."""
        good = np.concatenate([*self._good_buffer, np.zeros(0, np.uint32)])
        bad = np.concatenate([*self._bad_buffer, np.zeros(0, np.uint64)])
        good.sort()
        bad.sort()
        self._good_buffer, self._bad_buffer = [good], [bad]
        if not bad.size:
            return good, np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0)
        keys = (bad >> np.uint64(32)).astype(np.uint32)
        starts = _run_starts(keys)
        weights = np.add.reduceat(1.0 / (bad & np.uint64(0xFFFFFFFF)), starts)
        return good, keys[starts], np.diff(starts, append=bad.size), weights

    def _flush(self) -> None:
        """Move the buffers into pages."""
        good, bad, bad_counts, weights = self._sorted_buffers()
        self._good_buffer, self._bad_buffer = [], []
        self._paged = True
        starts = _run_starts(good) if good.size else np.zeros(0, np.int64)
        self._count(good[starts], np.diff(starts, append=good.size), bad, bad_counts, weights)

    def _count(
        self, good: KeyArray, good_counts: IntArray, bad: KeyArray, bad_counts: IntArray, weights: Float64Array
    ) -> None:
        """Add counts to pages; keys are sorted, at full resolution."""
        self._make_room(good, bad)
        for pages, keys, values in (
            (self._good_pages, good, good_counts),
            (self._bad_pages, bad, bad_counts),
            (self._weight_pages, bad, weights),
        ):
            if not keys.size:
                continue
            bins = keys >> np.uint32(self.shift)
            starts = _run_starts(bins)
            bins, sums = bins[starts], np.add.reduceat(values, starts)
            edges = _run_starts(bins >> np.uint32(PAGE_BITS))
            dtype = np.float64 if pages is self._weight_pages else self._count_type
            for a, b in zip(edges.tolist(), [*edges[1:].tolist(), bins.size], strict=True):
                number = int(bins[a]) >> PAGE_BITS
                if number not in pages:
                    pages[number] = np.zeros(PAGE, dtype)
                pages[number][bins[a:b] & np.uint32(PAGE - 1)] += sums[a:b].astype(dtype)

    @property
    def _count_type(self) -> type[np.uint32] | type[np.uint64]:
        """An integer that can hold the count of all pixels."""
        return np.uint32 if max(self.good, self.anomalous) < 2**32 else np.uint64

    def _make_room(self, good: KeyArray, bad: KeyArray) -> None:
        """Widen the counts if they could overflow; drop low bits of the keys until the pages to come fit."""
        for pages in (self._good_pages, self._bad_pages):
            for number, page in pages.items():
                if page.dtype != self._count_type:
                    pages[number] = page.astype(self._count_type)
        width = np.dtype(self._count_type).itemsize
        while self.shift < 32 - PAGE_BITS:
            drop = np.uint32(self.shift + PAGE_BITS)
            n_good = len(self._good_pages.keys() | set(np.unique(good >> drop).tolist()))
            n_bad = len(self._bad_pages.keys() | set(np.unique(bad >> drop).tolist()))
            if PAGE * (n_good * width + n_bad * (width + 8)) <= self.memory:
                break
            self._coarsen()

    def _coarsen(self) -> None:
        """Drop one more low bit: add up neighbouring places, two pages become one."""
        self.shift += 1
        for pages in (self._good_pages, self._bad_pages, self._weight_pages):
            for number in sorted(pages):
                page = pages.pop(number)
                half = page.reshape(-1, 2).sum(axis=1, dtype=page.dtype)
                if number >> 1 not in pages:  # numbers rise, so number >> 1 was folded already or is new
                    pages[number >> 1] = np.zeros(PAGE, page.dtype)
                start = (number & 1) * (PAGE // 2)
                pages[number >> 1][start : start + PAGE // 2] = half

    # ---- reading

    def steps(self) -> Iterator[Steps]:
        """All steps, in blocks, from the largest score downwards."""
        if not self._paged:
            yield self._buffered_steps()
            return
        if self._good_buffer or self._bad_buffer:
            self._flush()
        fp, joined, tp, overlap = 0, 0, 0, 0.0
        for number in sorted(self._good_pages.keys() | self._bad_pages.keys(), reverse=True):
            good = self._good_pages.get(number)
            at = np.zeros(PAGE, np.int64) if good is None else good[::-1].astype(np.int64)
            fp1 = fp + np.cumsum(at)
            # for each key, where the last good pixels at or above it came from
            came = np.maximum.accumulate(np.where(at > 0, fp1 - at, joined))
            if number in self._bad_pages:
                bad = self._bad_pages[number][::-1].astype(np.int64)
                here = np.flatnonzero(bad)
                before = np.concatenate(([joined], came[:-1]))[here]
                weight = self._weight_pages[number][::-1][here]
                block = Steps.after(fp1[here] - at[here], fp1[here], before, bad[here], weight, tp, overlap)
                tp, overlap = int(block.tp1[-1]), float(block.overlap1[-1])
                yield block
            fp, joined = int(fp1[-1]), int(came[-1])

    def _buffered_steps(self) -> Steps:
        good, bad, counts, weights = self._sorted_buffers()
        fp0 = good.size - np.searchsorted(good, bad[::-1], "right")
        fp1 = good.size - np.searchsorted(good, bad[::-1], "left")
        next_larger = good[np.minimum(good.size - fp0, good.size - 1)] if good.size else good
        came = good.size - np.searchsorted(good, next_larger, "right")
        joined = np.where(fp0 > 0, came, 0) if good.size else np.zeros_like(fp0)
        return Steps.after(fp0, fp1, joined, counts[::-1], weights[::-1])
