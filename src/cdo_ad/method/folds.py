"""Folds of whole units, for scores by a detector that has not seen an image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["fold_count", "make_folds"]

IntArray = npt.NDArray[np.int64]
MOST, FEWEST, WORK = 100, 10, 40_000


def fold_count(images: int) -> int:
    """Folds of the calibration of so many images: as many as `WORK` images in all of them allow.

    The more, the nearer a left-out score is to what the final detector gives a new image; with ten folds it is too
    large, and fewer defects are found.
    """
    return max(FEWEST, min(MOST, WORK // images))


def make_folds(units: IntArray, count: int, seed: int) -> IntArray:
    """(N,) the fold of each image: whole units, in folds of nearly equal size.

    Args:
        units: (N,) what counts once, numbered from 0.
        count: folds wanted; there are no more than units.
        seed: of the draw (raw PCG64 numbers, whose stream numpy guarantees).
    """
    sizes = np.bincount(units)
    draw = np.random.PCG64(seed).random_raw(len(sizes))
    fold_of = np.zeros(len(sizes), dtype=np.int64)
    filled = np.zeros(min(count, len(sizes)), dtype=np.int64)
    for unit in np.lexsort((draw, -sizes)):  # the largest first, so that small ones even out
        fold_of[unit] = np.argmin(filled)
        filled[fold_of[unit]] += sizes[unit]
    return fold_of[units]
