"""Small images inside the page, as data URIs of bounded size."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.types import MaskArray

__all__ = ["thumbnails"]

LARGEST_SIDE, SMALLEST_SIDE = 512, 96
QUALITY = 80


def thumbnails(
    image: npt.NDArray[np.uint8], drawn: npt.NDArray[np.uint8], mask: MaskArray | None, budget: int
) -> dict[str, str]:
    """Data URIs of an image, its overlay and, where known, its true mask, as large as a budget allows.

    Args:
        image: (H, W, 3) uint8.
        drawn: (H, W, 3) uint8, the overlay.
        mask: (H, W) bool or None.
        budget: bytes for all of them, as written into the page; the longer side is never below 96 pixels.

    Returns:
        `image`, `heat` and, where there is a mask, `mask`.
    """
    side = min(LARGEST_SIDE, max(image.shape[:2]))
    while True:
        uris = {"image": _jpeg(image, side), "heat": _jpeg(drawn, side)}
        if mask is not None:
            uris["mask"] = _png(mask, side)
        if sum(map(len, uris.values())) <= budget or side <= SMALLEST_SIDE:
            return uris
        side = max(SMALLEST_SIDE, int(side * 0.8))


def _jpeg(image: npt.NDArray[np.uint8], side: int) -> str:
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _png(mask: MaskArray, side: int) -> str:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    image.thumbnail((side, side), Image.Resampling.BOX)
    image = image.point(lambda value: 255 if value else 0).convert("1")  # what is partly defect stays visible
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
