"""Anomaly maps at an image's own size."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from cdo_ad.types import Float32Array

__all__ = ["resize_map"]

STRIP = 1024
"""Rows of a large map that are resized at once."""
LARGE = 2**24
"""Pixels of a large map."""


def resize_map(anomaly_map: Float32Array, size: tuple[int, int]) -> Float32Array:
    """Bring a map to an image's size: bilinear, half-pixel centres (antialiased where it shrinks).

    Args:
        anomaly_map: (h, w) float32.
        size: (H, W).
    """
    if anomaly_map.shape == size:
        return anomaly_map
    image, (height, width) = Image.fromarray(anomaly_map), size
    if height * width <= LARGE:
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    # a large map in strips, as Pillow holds it three times over; each with the rows beside it that bear on it
    found, step = np.empty(size, np.float32), image.height / height
    beside = math.ceil(2 * max(1.0, step) / step)
    for top in range(0, height, STRIP):
        bottom = min(top + STRIP, height)
        first, last = max(0, top - beside), min(height, bottom + beside)
        box = (0, first * step, image.width, last * step)
        part = np.asarray(image.resize((width, last - first), Image.Resampling.BILINEAR, box=box))
        found[top:bottom] = part[top - first : bottom - first]
    return found
