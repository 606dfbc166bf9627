"""The images that this package writes: a text chunk in the PNG marks them, so that they are never judged or learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cdo_ad.data.files import read_start, reason
from cdo_ad.errors import ImageError

__all__ = ["is_own_output", "write_png"]

KEY, VALUE = "Software", "cdo-ad overlay"
_MARK = f"{KEY}\0{VALUE}".encode("latin-1")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = 512  # bytes in which the mark stands: Pillow writes text before the pixels


def write_png(path: Path | str, array: npt.NDArray[Any]) -> None:
    """Write an overlay or a map as a PNG that `is_own_output` recognises; whole, or not at all.

    Args:
        path: the file to write; an existing one is replaced.
        array: (H, W, 3) uint8 RGB, or (H, W) uint8 or uint16 gray.

    Raises:
        ImageError: if the array is none of these, or the file cannot be written.
    """
    path = Path(path)
    colour = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    gray = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not (colour or gray) or array.size == 0:
        raise ImageError(
            f"{path}: what is written must be (H, W, 3) uint8 or (H, W) uint8 or uint16, "
            f"got {array.shape} {array.dtype}"
        )
    mark = PngInfo()
    mark.add_text(KEY, VALUE)
    part = path.with_name(f".{path.name}.part")  # hidden: no listing takes it for an image
    try:
        Image.fromarray(np.ascontiguousarray(array)).save(part, format="PNG", pnginfo=mark)
        part.replace(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({reason(error)}): check the folder and its rights") from error
    finally:
        part.unlink(missing_ok=True)


def is_own_output(path: Path) -> bool:
    """Tell, by the content, whether this package wrote the file; False where it cannot be read.

    Only files that end in `.png` are opened, and only their beginning is read.
    """
    if path.suffix.lower() != ".png":
        return False
    try:
        start = read_start(path, _START)
    except ImageError:
        return False
    return start.startswith(_SIGNATURE) and _MARK in start
