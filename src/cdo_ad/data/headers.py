"""The headers of image files: which format, how large, how many frames and how deep; no pixel is decoded.

TIFF has a module of its own, `cdo_ad.data.tiff`.
"""

from __future__ import annotations

import io
import logging
import warnings

from PIL import Image, UnidentifiedImageError
from PIL.PpmImagePlugin import PpmImageFile

from cdo_ad.data.files import DAMAGED, reason
from cdo_ad.errors import ImageError

__all__ = ["FORMATS", "MAX_PIXELS", "open_by_pillow", "open_image", "stated_bits"]

MAX_PIXELS = 500_000_000
"""The largest image that is decoded, e.g. 22,360 x 22,360 (1.5 GB as RGB); larger ones raise `ImageError`."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "AVIF", "JPEG2000", "GIF")
"""Pillow's names of the formats that are read, beside TIFF; HEIF comes by a plug-in of its own."""

_NAMES = "JPEG, PNG, TIFF, BMP, WebP, PGM, PPM, AVIF, JPEG 2000, GIF or HEIC"
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_J2K_START = b"\xff\x4f\xff\x51"  # start of codestream, and the SIZ segment that must follow
_J2K_DEPTH = 42  # bytes from there to the depth of the first component
_PILLOW = r"PIL\..*"


def open_image(data: bytes, name: str) -> Image.Image:
    """Read the header of an image file other than TIFF (`cdo_ad.data.tiff`); pixels are not decoded.

    Raises:
        ImageError: if it is no image, has several frames, or is above `MAX_PIXELS`.
    """
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and not any(b in data[8:64] for b in _AVIF_BRANDS):
        image = _open_heif(data, name)
    else:
        image = open_by_pillow(data, name, FORMATS)
    try:
        several = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception as error:  # Pillow looks for a second frame of a GIF
        raise ImageError(f"{name}: the image is damaged ({reason(error)}): {DAMAGED}") from error
    if several:
        raise ImageError(f"{name}: holds several frames, but one image is judged: save each frame as a file")
    return image


def open_by_pillow(data: bytes, name: str, formats: tuple[str, ...]) -> Image.Image:
    """Open by one of the named formats of Pillow.

    Raises:
        ImageError: if it is none of them, damaged, or above `MAX_PIXELS`; its cause is Pillow's own error.
    """
    _quiet_pillow()
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a {_NAMES} image, or damaged: {DAMAGED}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit into memory: cut it into smaller images") from error
    except Exception as error:
        raise ImageError(f"{name}: the image is damaged ({reason(error)}): {DAMAGED}") from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    return image


def stated_bits(image: Image.Image, data: bytes) -> int:
    """Bits of a sample as the header of a PNG, PGM, PPM or JPEG 2000 states them; 8 of any other format."""
    if image.format == "PNG":
        return max(8, data[24])
    if isinstance(image, PpmImageFile) and image.tile and image.mode in ("L", "RGB", "I"):
        arguments = image.tile[0].args
        largest = arguments[1] if isinstance(arguments, tuple) else 65535 if image.mode == "I" else 255
        return max(8, int(largest).bit_length())
    start = data.find(_J2K_START) if image.format == "JPEG2000" else -1
    return max(8, (data[start + _J2K_DEPTH] & 0x7F) + 1) if 0 <= start < len(data) - _J2K_DEPTH else 8


def _open_heif(data: bytes, name: str) -> Image.Image:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            f"{name}: reading HEIC needs a plug-in: run  pip install 'cdo-ad[heic]'  or save it as PNG"
        ) from error
    try:
        file = pillow_heif.open_heif(data)
        if len(file) > 1:
            raise ImageError(f"{name}: holds several images, but one is judged: save each as a file")
        if file.size[0] * file.size[1] > MAX_PIXELS:
            raise _too_large(name)
        image: Image.Image = file.to_pillow()
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit into memory: cut it into smaller images") from error
    except Exception as error:
        raise ImageError(f"{name}: the image is truncated or damaged ({reason(error)}): {DAMAGED}") from error
    image.format = "HEIF"
    return image


def _quiet_pillow() -> None:
    """Raise Pillow's limit of pixels to ours, and drop its warnings: damaged metadata must not lose an image.

    These are settings of the process. They are set again at each image, should somebody have reset them; changing and
    restoring them would not be safe, since images are decoded in threads. What Pillow logs is for those who configure
    logging.
    """
    if not (logger := logging.getLogger("PIL")).handlers:
        logger.addHandler(logging.NullHandler())
    if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    for category in (UserWarning, Image.DecompressionBombWarning):
        if not any(rule[0] == "ignore" and rule[2] is category and _is_of_pillow(rule[3]) for rule in warnings.filters):
            warnings.filterwarnings("ignore", category=category, module=_PILLOW)


def _is_of_pillow(module: object) -> bool:
    return getattr(module, "pattern", None) == _PILLOW


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name}: larger than {MAX_PIXELS:,} pixels: cut it into smaller images")
