"""From the bytes of an upload to pixels: its header is looked at first, the name that a client gives is text only."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.data.decode import decode_image
from cdo_ad.data.kinds import kind_of
from cdo_ad.data.reading import require_size
from cdo_ad.errors import ImageError

__all__ = ["clean_name", "decode", "pixels_of", "png_bytes"]

LONGEST_NAME = 200


def pixels_of(data: bytes, name: str, most: int) -> int:
    """The number of pixels that an image's header states; nothing is decoded.

    Raises:
        ImageError: no image by its content, or one of more than `most` pixels.
    """
    if not data:
        raise ImageError(f"{name}: the upload is empty: send the bytes of an image file")
    kind = kind_of(data, name)
    count = kind.width * kind.height
    if count > most:
        raise ImageError(f"{name}: {kind.width} x {kind.height} pixels are more than the {most:,} that are taken here")
    return count


def decode(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, upright; raises ImageError."""
    return require_size(decode_image(data, name), name)


def png_bytes(image: npt.NDArray[np.uint8]) -> bytes:
    """An image as a PNG, compressed quickly rather than well."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def clean_name(name: str | None) -> str:
    """A client's file name as text for people: its last part, printable, of bounded length."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:LONGEST_NAME] or "image"
