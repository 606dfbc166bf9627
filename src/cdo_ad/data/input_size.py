"""The input size that fits the part: from the resolution and shape of the good images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdo_ad.data.decode import image_size

__all__ = ["choose_input_size"]

SIDES = (256, 320, 384, 448, 512)
"""Of a square input; others have as many pixels."""
MULTIPLE = 32
"""Sides are multiples of this: twice the stride of the last level."""
SHRINK = 2.0
"""A larger input is taken where images are at least this many times larger than it: then it shows detail that a
smaller one loses. Images of a few hundred pixels gained nothing (LOG.md)."""
SQUARE = 1.15
"""Ratios of sides up to this count as square."""
ALIKE = 0.05
"""Images have one shape when nine in ten are within this of the middle ratio."""
LOOKED = 200


def choose_input_size(paths: Sequence[Path], budget: float = 2.25) -> tuple[tuple[int, int], str]:
    """Choose the networks' input size for good images.

    Args:
        paths: the images; only headers are read, of at most 200. Without any, the smallest square is chosen.
        budget: the largest cost allowed, as a multiple of that at 256 x 256.

    Returns:
        (height, width) in pixels, and one line that says why.

    Raises:
        ImageError: an image that cannot be read.
    """
    if not paths:
        return (SIDES[0], SIDES[0]), f"input {SIDES[0]} x {SIDES[0]}: there are no images to choose by"
    some = paths[:: max(1, len(paths) // LOOKED)]
    sizes = np.array([image_size(path) for path in some], dtype=np.float64)
    resolution = float(np.median(np.sqrt(sizes.prod(axis=1))))
    allowed = [side for side in SIDES if (side / SIDES[0]) ** 2 <= budget + 1e-9 and side * SHRINK <= resolution]
    side = max(allowed, default=SIDES[0])
    ratios = np.log(sizes[:, 1] / sizes[:, 0])
    middle = float(np.median(ratios))
    one_shape = float(np.quantile(np.abs(ratios - middle), 0.9)) <= ALIKE
    ratio = math.exp(middle) if one_shape and abs(middle) > math.log(SQUARE) else 1.0
    height = max(MULTIPLE, round(side / math.sqrt(ratio) / MULTIPLE) * MULTIPLE)
    width = max(MULTIPLE, round(side * math.sqrt(ratio) / MULTIPLE) * MULTIPLE)
    shape = "their own shape" if ratio != 1 else "square" if one_shape else "square, as their shapes differ"
    return (height, width), f"input {height} x {width}: images of about {resolution:.0f} pixels a side, {shape}"
