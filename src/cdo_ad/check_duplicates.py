"""Pictures that show the same thing: equal pixels, and perceptual hashes that are unusually near each other."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST_DISTANCE", "equal_groups", "near_limit", "near_pairs"]

LARGEST_DISTANCE = 76
"""Bits of 256: never call pictures near beyond this, 0.6 of the 128 in which unrelated pictures differ on average."""
DEVIATIONS = 4.0
NORMAL_DECILE = 1.2816  # standard deviations from the median to the decile of a normal distribution
BLOCK = 1024
SAMPLE = 1000

BoolArray = npt.NDArray[np.bool_]


def equal_groups(digests: Sequence[Hashable]) -> list[list[int]]:
    """Indices of equal digests, a list for each that occurs more than once, in order of the first."""
    groups: dict[Hashable, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_limit(hashes: BoolArray) -> int:
    """The Hamming distance up to which two pictures of this data set count as near duplicates.

    Four standard deviations below the median distance between its pictures, at most `LARGEST_DISTANCE`; the standard
    deviation is taken from the lower decile. Pictures of parts that lie in the same place are all alike, so what is
    unusually near depends on the data set. Negative where pictures are so alike that nothing can be told.

    Args:
        hashes: (N, 256) bool; at most 1000 of them, evenly spread, are compared.
    """
    some = hashes[:: max(1, len(hashes) // SAMPLE)]
    if len(some) < 2:
        return 0
    distances = _distances(some, some)[np.triu_indices(len(some), 1)]
    decile, median = np.quantile(distances, (0.1, 0.5))
    return min(LARGEST_DISTANCE, math.floor(float(median - DEVIATIONS * (median - decile) / NORMAL_DECILE)))


def near_pairs(hashes: BoolArray, limit: int) -> list[tuple[int, int, int]]:
    """All pairs (i, j, distance) with i < j whose hashes differ in at most `limit` bits, nearest first.

    Exact, block by block as a matrix product of signs: 10,000 pictures take seconds and 8 MB a block.

    Args:
        hashes: (N, B) bool.
        limit: bits.
    """
    found: list[tuple[int, int, int]] = []
    for start in range(0, len(hashes), BLOCK):
        for other in range(start, len(hashes), BLOCK):
            near = _distances(hashes[start : start + BLOCK], hashes[other : other + BLOCK])
            rows, columns = np.nonzero(near <= limit)
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
                if start + i < other + j:
                    found.append((start + i, other + j, int(near[i, j])))
    return sorted(found, key=lambda pair: (pair[2], pair[0], pair[1]))


def _distances(a: BoolArray, b: BoolArray) -> npt.NDArray[np.int64]:
    """(N, M) Hamming distances of (N, B) and (M, B) bits: (B - <signs, signs>) / 2, exact in float32."""
    signs_a = np.where(a, np.float32(1), np.float32(-1))
    signs_b = np.where(b, np.float32(1), np.float32(-1))
    distances: npt.NDArray[np.int64] = np.rint((a.shape[1] - signs_a @ signs_b.T) / 2).astype(np.int64)
    return distances
