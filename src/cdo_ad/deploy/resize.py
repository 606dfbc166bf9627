"""The resize of `cdo_ad.method.preprocess` as nodes of an OpenVINO graph, for images of any size.

OpenVINO's own operator with the same weights (`Interpolate` in mode BILINEAR_PILLOW) takes longer than both networks.
Here each axis is a product with a matrix. A row of it is zero but for the few pixels under its triangle, so rows are
taken in blocks: a block needs a window of the image only, and all blocks are one batched product.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cdo_ad.inference.engines.openvino import import_openvino

__all__ = ["resized"]

BLOCK = 16
"""Rows of the result a window; fewer where the size is no multiple of it."""


def resized(images: Any, size: tuple[int, int]) -> Any:
    """Convert and resize: bilinear, antialiased, half-pixel centres, as `cdo_ad.method.preprocess.resize`.

    Args:
        images: node of (B, h, w, 3) uint8, all but the 3 dynamic.
        size: (H, W) of the result.

    Returns:
        Node of (B, 3, H, W) float32.
    """
    op = _ops()
    height, width = size
    shape = op.shape_of(images, "i64")
    batch, lines = (op.gather(shape, _ints(axis), _int(0)) for axis in (0, 1))

    # the batch by name and not as -1: for one image the size of all that follows is then known when it is compiled
    def shaped(x: Any, *sides: Any) -> Any:
        return op.reshape(x, op.concat([batch, *sides], 0), False)

    rows = _shrink(shaped(images, lines, _ints(-1)), lines, height)  # (B, H, w * 3)
    pixels = op.gather(shape, _ints(2), _int(0))
    turned = shaped(op.transpose(rows, _ints(0, 2, 1)), pixels, _ints(-1))  # (B, w, 3 * H)
    columns = op.transpose(_shrink(turned, pixels, width), _ints(0, 2, 1))  # (B, 3 * H, W)
    return shaped(columns, _ints(3), _ints(height), _ints(width))


def _shrink(x: Any, length: Any, target: int) -> Any:
    """(B, `length`, m) of any type to (B, `target`, m) float32."""
    op = _ops()
    indices, weights = _windows(length, target, math.gcd(target, BLOCK))
    windows = op.convert(op.gather(x, indices, _int(1)), "f32")  # (B, blocks, window, m)
    product = op.matmul(weights, windows, False, False)  # (B, blocks, block, m)
    return op.reshape(
        product, op.concat([op.gather(op.shape_of(x, "i64"), _ints(0), _int(0)), _ints(target, -1)], 0), False
    )


def _windows(length: Any, target: int, block: int) -> tuple[Any, Any]:
    """The pixels that each block needs, and the weights of each of its rows.

    Args:
        length: node of (1,) int64, the axis' pixels.
        target: pixels of the result.
        block: rows a window, divides `target`.

    Returns:
        (blocks, window) int32 indices and (1, blocks, block, window) float32 weights, whose rows sum to 1.
    """
    op = _ops()
    pixels = op.convert(length, "f32")
    scale = op.divide(pixels, _float(target))
    support = op.maximum(scale, _float(1))  # half of the triangle's foot
    places = np.arange(target, dtype=np.float32).reshape(-1, block, 1) + np.float32(0.5)
    centres = op.multiply(op.constant(places), scale)  # (blocks, block, 1), in pixels
    first = op.floor(op.subtract(op.multiply(op.constant(places[:, 0]), scale), support))  # (blocks, 1)
    window = op.add(
        op.ceiling(op.add(op.multiply(_float(block - 1), scale), op.multiply(support, _float(2)))), _float(1)
    )
    steps = op.range(_float(0), op.squeeze(window, _int(0)), _float(1), "f32")
    positions = op.add(first, steps)  # (blocks, window)
    inside = op.logical_and(op.greater_equal(positions, _float(0)), op.less(positions, pixels))
    middles = op.unsqueeze(op.add(positions, _float(0.5)), _int(1))  # (blocks, 1, window)
    distances = op.divide(op.absolute(op.subtract(middles, centres)), support)
    triangles = op.relu(op.subtract(_float(1), distances))
    triangles = op.multiply(triangles, op.unsqueeze(op.convert(inside, "f32"), _int(1)))
    weights = op.divide(triangles, op.reduce_sum(triangles, _ints(2), True))
    last = op.subtract(pixels, _float(1))
    indices = op.convert(op.minimum(op.maximum(positions, _float(0)), last), "i32")
    return indices, op.unsqueeze(weights, _int(0))


def _ops() -> Any:
    return import_openvino("exporting to OpenVINO").opset13


def _float(value: float) -> Any:
    return _ops().constant(np.array(value, np.float32))


def _int(value: int) -> Any:
    return _ops().constant(np.array(value, np.int64))


def _ints(*values: int) -> Any:
    return _ops().constant(np.array(values, np.int64))
