"""Arrays as PNG files in memory, marked like all images that this package writes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cdo_ad.data.marks import KEY, VALUE
from cdo_ad.inference.overlay import heat, map16, overlay
from cdo_ad.server.serving.inspector import Inspected

__all__ = ["heat_png", "map_png", "overlay_png", "thumbnail"]


def overlay_png(inspected: Inspected) -> bytes:
    """The heat map over the image, regions outlined."""
    return _png(overlay(inspected.image, inspected.prediction, inspected.pixel_threshold))


def heat_png(inspected: Inspected) -> bytes:
    """The heat map alone, transparent where there is little: for a page that lays it over the image."""
    colour, opacity = heat(inspected.prediction.anomaly_map, inspected.pixel_threshold)
    return _png(np.concatenate([colour, opacity * 255], axis=2).round().astype(np.uint8))


def map_png(inspected: Inspected) -> bytes:
    """The anomaly map as 16-bit gray: 32768 is the pixel threshold."""
    return _png(map16(inspected.prediction.anomaly_map, inspected.pixel_threshold))


def thumbnail(image: npt.NDArray[np.uint8], side: int = 240) -> bytes:
    """A small JPEG."""
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return out.getvalue()


def _png(array: npt.NDArray[Any]) -> bytes:
    mark = PngInfo()
    mark.add_text(KEY, VALUE)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(out, "PNG", pnginfo=mark, compress_level=1)
    return out.getvalue()
