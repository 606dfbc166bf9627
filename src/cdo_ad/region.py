"""The region of interest: the part of the image that is inspected, as a short text that a run and its exports carry."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from cdo_ad.types import MaskArray

__all__ = ["MOST_TEXT", "pack_region", "resize_region", "unpack_region"]

MOST_TEXT = 1 << 20
"""Characters of a packed region that are accepted."""
MOST_SIDE = 8192


def pack_region(region: MaskArray) -> str:
    """A (H, W) bool mask, True where images are inspected, as base64 of a PNG with one bit for each pixel."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(region)).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def unpack_region(text: str) -> MaskArray:
    """What `pack_region` packed; raises ValueError for any other text."""
    if len(text) > MOST_TEXT:
        raise ValueError("the region is too large")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            if image.mode != "1" or max(image.size) > MOST_SIDE:
                raise ValueError("the region is not an image of one bit")
            found: MaskArray = np.array(image, dtype=np.bool_)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the region is damaged: {error}") from error
    return found


def resize_region(region: MaskArray, size: tuple[int, int]) -> MaskArray:
    """Bring a region to (H, W): a pixel is inspected where half of it or more was."""
    if region.shape == size:
        return region
    small = Image.fromarray(region.astype(np.uint8) * 255).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(small) >= 128
