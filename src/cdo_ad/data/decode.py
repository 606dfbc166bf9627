"""The only decoder: every image of this package comes in through this module.

- An image is (H, W, 3) uint8 RGB in [0, 255], upright (its EXIF orientation is applied); colours, alpha and depth are
  converted as `cdo_ad.data.convert` and `cdo_ad.data.depth` say. Colour profiles are ignored.
- The content decides how a file is read, never its name. Pillow decodes, tifffile what Pillow cannot, and
  pillow-heif, where it is installed, HEIC.
- A file with several pages or frames is refused, since nobody can tell which of them is to be judged. Only of a JPEG
  that carries further images (MPO: previews, gain maps) the first is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PpmImagePlugin import PpmImageFile

from cdo_ad.data import headers, tiff
from cdo_ad.data.convert import (
    AnyArray,
    UInt8Array,
    as_rgb,
    gray16,
    is_wide,
    loaded,
    orientation,
    pillow_to_rgb,
    turned,
)
from cdo_ad.data.depth import MOST_BITS, Bits, check_bits, colour16
from cdo_ad.data.files import DAMAGED, read_bytes, reason
from cdo_ad.data.headers import open_by_pillow, open_image, stated_bits
from cdo_ad.errors import ImageError

__all__ = [
    "Pixels",
    "UInt8Array",
    "decode_image",
    "decode_reduced",
    "image_size",
    "load_pixels",
    "read_bytes",
    "read_image",
]


@dataclass(frozen=True, slots=True)
class Pixels:
    """All pixels of a file, before 16 bits become 8; not yet upright."""

    samples: Image.Image | AnyArray
    """A Pillow image of 8 bits or less; (H, W) or (H, W, C) uint8 or uint16 where a sample has more."""
    bits: int
    """Bits of a sample, as the file states them."""
    orientation: int
    """Of EXIF, 1..8, still to be applied."""


def read_image(path: Path | str, *, bits: Bits = "auto") -> UInt8Array:
    """Decode an image file.

    Args:
        path: JPEG, PNG, TIFF, BMP, WebP, PBM, PGM, PPM, AVIF, JPEG 2000, GIF or (with the extra `heic`) HEIC; gray,
            colour, palette, 1-bit, CMYK, with or without alpha; up to 16 bit.
        bits: significant bits of 16-bit files, see `cdo_ad.data.depth.Bits`.

    Returns:
        (H, W, 3) uint8 RGB, upright, C-contiguous, writable.

    Raises:
        ConfigError: if `bits` is neither `auto` nor 8..16.
        ImageError: if the file is missing, empty, truncated, not one plain image, above `headers.MAX_PIXELS`, or
            holds a value that exceeds `bits`.
    """
    return decode_image(read_bytes(path), str(path), bits=bits)


def decode_image(data: bytes, name: str = "<bytes>", *, bits: Bits = "auto") -> UInt8Array:
    """Decode the bytes of an image file, exactly as `read_image` does.

    Args:
        data: the whole file.
        name: what error messages call the image.
        bits: as in `read_image`.

    Returns:
        (H, W, 3) uint8 RGB, upright, C-contiguous, writable.

    Raises:
        ConfigError, ImageError: as `read_image`.
    """
    wanted = check_bits(bits)
    pixels = load_pixels(data, name, all_bits=wanted < MOST_BITS)
    return _to_rgb(pixels, name, wanted)


def decode_reduced(data: bytes, name: str, least: int, *, bits: Bits = "auto") -> tuple[UInt8Array, tuple[int, int]]:
    """Decode an image for a quick look: a JPEG at a half, a quarter or an eighth of its size, others in full.

    A reduced JPEG costs a third of a whole one. The whole file is read, so a truncated one is found all the same; its
    pixels are means over blocks (libjpeg's scaled inverse transform).

    Args:
        data: the whole file.
        name: what error messages call the image.
        least: pixels; a JPEG is not reduced so far that a side falls below this.
        bits: as in `read_image`.

    Returns:
        (h, w, 3) uint8 RGB, upright, and (H, W) of the image itself.

    Raises:
        ConfigError, ImageError: as `read_image`.
    """
    image = None if tiff.is_tiff(data) else open_image(data, name)
    if image is None or image.format != "JPEG":
        rgb = decode_image(data, name, bits=bits)
        return rgb, (rgb.shape[0], rgb.shape[1])
    width, height = image.size
    image.draft(image.mode, (least, least))
    turn = orientation(image)
    rgb = _to_rgb(Pixels(loaded(image, name), 8, turn), name, MOST_BITS)
    return rgb, (width, height) if turn >= 5 else (height, width)


def image_size(path: Path | str) -> tuple[int, int]:
    """Read height and width of the upright image from the file's header: pixels are not decoded, nor checked.

    Raises:
        ImageError: if the file is missing or is no plain image.
    """
    data, name = read_bytes(path), str(path)
    if tiff.is_tiff(data):
        header = tiff.read_header(data, name, headers.MAX_PIXELS)
        height, width, turn = header.height, header.width, header.orientation
    else:
        image = open_image(data, name)
        (width, height), turn = image.size, orientation(image)
    return (width, height) if turn >= 5 else (height, width)


def load_pixels(data: bytes, name: str, *, all_bits: bool = False) -> Pixels:
    """Decode all pixels of a file.

    Args:
        data: the whole file.
        name: what error messages call the image.
        all_bits: of colour images with 16 bits a sample, keep all of them; else the upper 8, which is quicker.

    Raises:
        ImageError: as `read_image`.
    """
    if tiff.is_tiff(data):
        return _load_tiff(data, name, all_bits)
    image = open_image(data, name)
    bits = stated_bits(image, data)
    if isinstance(image, PpmImageFile) and bits > 8 and (values := _netpbm16(image, data, name)) is not None:
        return Pixels(values, bits, 1)
    loaded(image, name)
    turn = orientation(image)  # of a PNG it may stand behind the pixels
    if is_wide(image):
        bits = bits if bits > 8 else MOST_BITS
        return Pixels(gray16(image, name) >> (MOST_BITS - bits), bits, turn)  # Pillow spread them over the full range
    if bits == MOST_BITS and all_bits:
        if image.format != "PNG":
            raise ImageError(f"{name}: colours of 16 bits in this format are read with bits=auto only: save it as PNG")
        return Pixels(_colour16(data, name, "PNG"), bits, turn)
    return Pixels(image, 8, turn)


def _load_tiff(data: bytes, name: str, all_bits: bool) -> Pixels:
    header = tiff.read_header(data, name, headers.MAX_PIXELS)
    if header.needs_tifffile:
        return Pixels(tiff.decode_tiff(data, name, headers.MAX_PIXELS), header.bits, header.orientation)
    try:
        image = loaded(open_by_pillow(data, name, ("TIFF",)), name)  # which turns it upright
    except ImageError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        return Pixels(tiff.decode_tiff(data, name, headers.MAX_PIXELS), header.bits, header.orientation)
    if is_wide(image):
        values = gray16(image, name)
        if header.white_is_zero:  # which Pillow ignores here
            values = np.uint16(2**header.bits - 1) - values
        return Pixels(values, header.bits, orientation(image))
    if header.bits == 16 and header.samples >= 3 and all_bits:
        return Pixels(_colour16(data, name, "TIFF"), header.bits, orientation(image))
    return Pixels(image, 8, orientation(image))


def _colour16(data: bytes, name: str, format: str) -> AnyArray:
    try:
        return colour16(data, (format,), lambda image: loaded(image, name))
    except ValueError as error:
        raise ImageError(
            f"{name}: 16-bit samples of this kind ({reason(error)}) are read with bits=auto only: save as RGB or gray"
        ) from error


def _netpbm16(image: PpmImageFile, data: bytes, name: str) -> AnyArray | None:
    """The samples of a binary PGM or PPM of more than 8 bits, which Pillow reads a hundred times more slowly.

    Returns:
        (H, W) or (H, W, 3) uint16 from 0 to 2^bits - 1; None of a file in plain text.

    Raises:
        ImageError: if the file is truncated.
    """
    tile = image.tile[0]
    if tile.codec_name not in ("ppm", "raw"):
        return None
    largest = int(tile.args[1]) if isinstance(tile.args, tuple) else 65535
    shape = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    count = int(np.prod(shape))
    if len(data) - tile.offset < 2 * count:
        raise ImageError(f"{name}: the image is truncated or damaged (too few samples): {DAMAGED}")
    values = np.frombuffer(data, ">u2", count, tile.offset).reshape(shape)
    full = 2 ** largest.bit_length() - 1
    if full != largest:
        values = np.minimum(values.astype(np.uint32) * full // largest, full)
    return values.astype(np.uint16)


def _to_rgb(pixels: Pixels, name: str, bits: int) -> UInt8Array:
    """Bring a file's pixels to RGB; a file that states 9 to 15 bits is taken at its word."""
    image = pixels.samples
    bits = pixels.bits if 8 < pixels.bits < MOST_BITS else bits
    rgb = pillow_to_rgb(image, name, bits) if isinstance(image, Image.Image) else as_rgb(image, name, bits=bits)
    return np.require(turned(rgb, pixels.orientation), requirements=["C", "W"])
