"""Large images in tiles: where they lie, and how their maps become one.

Tiles are squares of the image's own pixels that overlap by a quarter or more and together cover the image. Each is
judged as an image of its own. Their maps are joined with weights that fall linearly to the tile's edge inside the
image, so that no seam shows; the image score is the largest of the tiles' scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cdo_ad.types import Float32Array

__all__ = ["OVERLAP", "Box", "cut", "join", "tile_boxes", "tile_for"]

OVERLAP = 0.25
"""Of a tile's side, the least that two neighbours share."""
CELL = 8
"""Pixels of the networks' input that the smallest defect should span: a cell of the finer level that is judged."""


class Box(NamedTuple):
    """A tile in pixels of the image."""

    top: int
    left: int
    height: int
    width: int


def tile_boxes(size: tuple[int, int], tile: int) -> list[Box]:
    """The tiles of an image of (H, W), row by row; where a side is shorter than `tile`, tiles are cut to it.

    Args:
        size: (H, W).
        tile: side of a tile in pixels; 0 for the whole image.
    """
    if tile == 0:
        return [Box(0, 0, *size)]
    rows, columns = (_starts(side, min(tile, side)) for side in size)
    return [Box(y, x, min(tile, size[0]), min(tile, size[1])) for y in rows for x in columns]


def tile_for(smallest_defect: float, input_side: int, image_size: tuple[int, int]) -> int:
    """The side of a tile such that a defect of `smallest_defect` pixels spans a cell; 0 where whole images do that.

    Args:
        smallest_defect: in pixels of the image.
        input_side: of the networks' input.
        image_size: (H, W) of the images.
    """
    tile = max(input_side // 2, int(input_side * smallest_defect / CELL))
    return 0 if tile >= max(image_size) else tile


def cut(image: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    """A tile of an (H, W, 3) image, as a view."""
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def join(maps: Iterable[Float32Array], boxes: Sequence[Box], size: tuple[int, int]) -> Float32Array:
    """One map of tiles' maps.

    Args:
        maps: (h, w) each, all of one size; they are asked for one after another, and none is kept.
        boxes: of the same tiles, in an image of `size`.
        size: (H, W) of the image.

    Returns:
        The map at the scale of the tiles' maps, but never finer than the image itself.
    """
    maps = iter(maps)
    first = next(maps)
    height, width = first.shape
    scale = [min(1.0, side / of) for side, of in zip((height, width), boxes[0][2:], strict=True)]
    shape = tuple(max(1, round(side * factor)) for side, factor in zip(size, scale, strict=True))
    total, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for values, box in zip(chain([first], maps), boxes, strict=True):
        top, left = round(box.top * scale[0]), round(box.left * scale[1])
        bottom, right = round((box.top + box.height) * scale[0]), round((box.left + box.width) * scale[1])
        rows = _ramp(bottom - top, box.top > 0, box.top + box.height < size[0])
        columns = _ramp(right - left, box.left > 0, box.left + box.width < size[1])
        share = rows[:, None] * columns
        total[top:bottom, left:right] += share * _nearest(values, (bottom - top, right - left))
        weight[top:bottom, left:right] += share
    total /= weight
    return total


def _starts(side: int, tile: int) -> list[int]:
    count = 1 if side == tile else math.ceil((side - tile) / (tile * (1 - OVERLAP))) + 1
    return [round(k * (side - tile) / max(1, count - 1)) for k in range(count)]


def _ramp(length: int, before: bool, behind: bool) -> Float32Array:
    """(length,) weights: rising over the overlap where another tile lies before, falling where one lies behind."""
    edge = max(1.0, OVERLAP * length)
    at = np.arange(length, dtype=np.float32) + 0.5
    rising = np.minimum(1, at / edge) if before else np.ones(length, np.float32)
    falling = np.minimum(1, (length - at) / edge) if behind else np.ones(length, np.float32)
    ramp: Float32Array = np.minimum(rising, falling).astype(np.float32)
    return ramp


def _nearest(values: Float32Array, shape: tuple[int, int]) -> Float32Array:
    """Rounding makes a tile one row more or less than its map: take the nearest ones."""
    if values.shape == shape:
        return values
    rows, columns = (
        np.minimum((np.arange(new) * old) // max(1, new), old - 1) for new, old in zip(shape, values.shape, strict=True)
    )
    return values[np.ix_(rows, columns)]
