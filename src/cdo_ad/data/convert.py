"""Arrays and Pillow images to RGB: one checked entry, by the rules of the decoder.

- An image is (H, W, 3) uint8 RGB in [0, 255], upright.
- 16 bit becomes 8 bit as `cdo_ad.data.depth` says.
- Alpha is blended over black, `round(colour * alpha / 255)`: what is transparent shows nothing, and whatever colour
  lies hidden under it does not leak into the model. An image that is transparent everywhere is refused.
- Samples of floating point, of signed or of more than 16 bits have no stated range, and are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from cdo_ad.data.depth import MOST_BITS, Bits, check_bits, to_8_bits
from cdo_ad.data.files import DAMAGED, reason
from cdo_ad.errors import ImageError

__all__ = [
    "AnyArray", "UInt8Array", "as_rgb", "gray16", "is_wide", "known_orientation", "loaded", "orientation",
    "pillow_to_rgb", "turned",
]  # fmt: skip

STRIP = 1024  # rows of an image that are copied at once
UPRIGHT = 1  # the EXIF orientation of an image that needs no turn

UInt8Array = npt.NDArray[np.uint8]
AnyArray = npt.NDArray[Any]

_WIDE_GRAY = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes of gray with more than 8 bits


def as_rgb(image: npt.ArrayLike | Image.Image, name: str = "the array", *, bits: Bits = "auto") -> UInt8Array:
    """Turn what a user hands in into an image.

    Args:
        image: (H, W), (H, W, 1) gray, (H, W, 2) gray and alpha, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 or
            bool (False 0, True 255). Or a Pillow image of any mode but floating point, which is turned upright.
        name: what error messages call the image.
        bits: significant bits of 16-bit samples; of an alpha channel that uses more, all 16 count.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous; shares memory with `image` where that is such an array already.

    Raises:
        ConfigError: if `bits` is neither `auto` nor 8..16.
        ImageError: if the shape or the type is none of these, a value exceeds `bits`, or alpha is 0 everywhere.
    """
    wanted = check_bits(bits)
    if isinstance(image, Image.Image):
        rgb = pillow_to_rgb(loaded(image, name), name, wanted)
        return np.ascontiguousarray(turned(rgb, orientation(image)))
    try:
        array = np.asarray(image)
    except Exception as error:  # whatever a foreign type raises, such as a tensor that lies on a GPU
        raise ImageError(f"{name}: no array ({reason(error)}): hand in a NumPy array or a Pillow image") from error
    return _array_to_rgb(array, name, wanted)


def loaded(image: Image.Image, name: str) -> Image.Image:
    """The image itself, all its pixels decoded.

    Raises:
        ImageError: if the data are truncated or damaged, or do not fit into memory.
    """
    try:
        image.load()
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit into memory: cut it into smaller images") from error
    except Exception as error:  # Pillow's plugins raise many kinds on broken files
        raise ImageError(f"{name}: the image is truncated or damaged ({reason(error)}): {DAMAGED}") from error
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1..8; broken EXIF counts as upright."""
    try:
        return known_orientation(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # the pixels are whole: damaged notes about the image must not lose it
        return UPRIGHT


def known_orientation(value: object) -> int:
    """The orientation itself where it is one of EXIF's, else that of an upright image."""
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def turned(array: AnyArray, orientation: int) -> AnyArray:
    """Make an image upright.

    `PIL.ImageOps.exif_transpose` also writes the EXIF block anew, which fails where that is damaged, and it knows no
    arrays of several 16-bit channels.

    Args:
        array: (H, W) or (H, W, C).
        orientation: of EXIF, 1..8.

    Returns:
        A view.
    """
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array


def pillow_to_rgb(image: Image.Image, name: str, bits: int = MOST_BITS) -> UInt8Array:
    """(H, W, 3) uint8 RGB of a Pillow image that is loaded, not yet upright.

    Raises:
        ImageError: if its mode has no stated range or cannot be converted, or alpha is 0 everywhere.
    """
    try:
        if is_wide(image):
            return _array_to_rgb(gray16(image, name), name, bits)
        if image.mode == "F":
            raise ImageError(f"{name}: floating-point samples have no stated range: save it as 8 or 16 bit")
        if image.mode in ("L", "RGB") and "transparency" not in image.info:
            return _array_to_rgb(_samples(image), name, bits)
        if image.has_transparency_data:
            return _array_to_rgb(np.asarray(_rgba(image)), name, bits)
        return _samples(image.convert("RGB"))
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit into memory: cut it into smaller images") from error
    # a colour space that Pillow cannot convert, wrong transparency; colours by number without a table of colours
    except (ValueError, TypeError, OSError, AssertionError) as error:
        raise ImageError(
            f"{name}: an image of Pillow's mode {image.mode} that cannot be converted to RGB ({reason(error)}): "
            "save it as RGB or gray"
        ) from error


def _samples(image: Image.Image) -> UInt8Array:
    """(H, W) or (H, W, 3) of a gray or colour image; in strips, as Pillow's own way holds all bytes twice more."""
    width, height = image.size
    found = np.empty((height, width) if image.mode == "L" else (height, width, 3), np.uint8)
    for top in range(0, height, STRIP):
        bottom = min(top + STRIP, height)
        found[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return found


def is_wide(image: Image.Image) -> bool:
    """Tell whether a Pillow image is gray of more than 8 bits."""
    return image.mode in _WIDE_GRAY


def gray16(image: Image.Image, name: str) -> npt.NDArray[np.uint16]:
    """The samples of a gray image of 9 to 16 bits; (H, W), or (H, W, 2) where one value is named as transparent.

    Raises:
        ImageError: if a sample is negative or above 65535, or nothing is visible.
    """
    values = np.asarray(image)
    if image.mode == "I" and (image.format == "TIFF" or values.min() < 0 or values.max() > 65535):
        raise ImageError(f"{name}: signed or 32-bit samples have no stated range: save it as 8 or 16 bit")
    values = values.astype(np.uint16)
    clear = image.info.get("transparency")
    return (
        np.dstack([values, np.where(values == clear, 0, 65535).astype(np.uint16)]) if isinstance(clear, int) else values
    )


def _array_to_rgb(array: AnyArray, name: str, bits: int) -> UInt8Array:
    if not (array.ndim == 2 or (array.ndim == 3 and 1 <= array.shape[2] <= 4)) or array.size == 0:
        hint = "hand in one image of such a shape"
        if array.ndim == 4:
            hint = "hand in the images of a batch one by one"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "move the channels to the end, numpy.moveaxis(array, 0, 2)"
        raise ImageError(
            f"{name}: an image must be (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) with H, W >= 1, "
            f"channels last, got {array.shape}: {hint}"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    colours = array.shape[2] - (array.shape[2] in (2, 4))
    colour, alpha = array[:, :, :colours], array[:, :, colours:]
    if array.dtype == np.bool_:
        colour, alpha = colour.astype(np.uint8) * np.uint8(255), alpha.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # either byte order
        alpha_bits = bits if alpha.size and int(alpha.max()) < 2**bits else MOST_BITS
        colour, alpha = to_8_bits(colour, bits, name), to_8_bits(alpha, alpha_bits, name)
    elif array.dtype != np.uint8:
        raise ImageError(
            f"{name}: an image must be uint8 (0..255), uint16 (0..65535) or bool, got {array.dtype}, whose range is "
            "not known: scale it to 0..255 and convert with astype(numpy.uint8)"
        )
    if alpha.size:
        colour = _over_black(colour, alpha, name)
    return np.ascontiguousarray(np.repeat(colour, 3, axis=2) if colours == 1 else colour)


def _rgba(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _over_black(colour: AnyArray, alpha: AnyArray, name: str) -> UInt8Array:
    """round(colour * alpha / 255), uint8; colour (H, W, C), alpha (H, W, 1)."""
    if not alpha.any():
        raise ImageError(f"{name}: its alpha is 0 everywhere, so nothing of it is visible: remove the alpha channel")
    if alpha.min() == 255:
        return colour
    product = colour.astype(np.uint16) * alpha
    return ((product + 127) // 255).astype(np.uint8)
