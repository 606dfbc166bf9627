"""Pixel masks: which pixels of an image show the defect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.data.convert import AnyArray, UInt8Array, as_rgb, pillow_to_rgb, turned
from cdo_ad.data.decode import Pixels, load_pixels
from cdo_ad.data.files import read_bytes
from cdo_ad.errors import ImageError

__all__ = ["read_mask"]

SOFT_MASK_LEVEL = 128
LABEL_ID_MAX = 64


def read_mask(path: Path | str, shape: tuple[int, int] | None = None) -> npt.NDArray[np.bool_]:
    """Read a pixel mask: True where the defect is.

    A mask whose maximum is at most 64 holds label ids: everything above 0 is defect (so 0/1 masks work). Any other is
    a soft mask: defect where the value is at least 128 of 255. All zero is all False. 16-bit masks are read by the
    same two rules, as 8-bit values if none exceeds 255, else by their upper byte. Of a palette of grays the gray
    counts, of any other palette the index; of colours the largest channel; alpha is blended over black.

    Args:
        path: the mask's file, any format that `cdo_ad.data.read_image` takes.
        shape: (H, W) of the image it belongs to; checked if given.

    Returns:
        (H, W) bool, upright.

    Raises:
        ImageError: as `read_image`, or if the mask's size is not `shape`.
    """
    name = str(path)
    pixels = load_pixels(read_bytes(path), name)
    values = turned(_values(pixels, name), pixels.orientation)
    if shape is not None and values.shape != tuple(shape):
        raise ImageError(
            f"{name}: the mask is {values.shape[1]}x{values.shape[0]} pixels but its image is {shape[1]}x{shape[0]}: "
            "export the mask at the image's own size"
        )
    if values.dtype == np.uint16:
        values = values if values.max() <= 255 else values >> 8
    mask: npt.NDArray[np.bool_] = values > 0 if values.max() <= LABEL_ID_MAX else values >= SOFT_MASK_LEVEL
    return np.ascontiguousarray(mask)


def _values(pixels: Pixels, name: str) -> AnyArray:
    """(H, W) uint8 or uint16, not yet upright: the numbers that `read_mask` judges."""
    image = pixels.samples
    if not isinstance(image, Image.Image):
        wide = image.ndim == 2 and image.dtype.kind == "u" and image.dtype.itemsize == 2
        return image.astype(np.uint16) if wide else as_rgb(image, name).max(axis=2)
    if image.mode == "P" and "transparency" not in image.info:
        index = np.asarray(image)
        colours = np.asarray(image.convert("RGB"))
        all_gray = bool((colours == colours[:, :, :1]).all())
        return colours[:, :, 0] if all_gray else index
    largest: UInt8Array = pillow_to_rgb(image, name).max(axis=2)
    return largest
