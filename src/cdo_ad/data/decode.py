"""The only decoder: every image and every mask of this package comes in through this module.

- An image is (H, W, 3) uint8 RGB in [0, 255], upright (its EXIF orientation is applied).
- 16 bit becomes 8 bit by `value >> 8`: the file's full range 0..65535 maps onto 0..255 and nothing is stretched to the
  image's own darkest and brightest value, so equal light gives equal numbers. 10 or 12 bit samples stored in the low
  bits of a 16-bit file therefore look black: write them shifted up. A TIFF that says 12 bit is shifted by 4.
- Alpha is blended over black, `round(colour * alpha / 255)`: what is transparent shows nothing, and whatever colour
  lies hidden under it does not leak into the model. An image that is transparent everywhere is refused.
- Colour profiles are ignored; of a file with several pages or frames the first is read.
- Pillow decodes; tifffile reads the TIFF kinds that Pillow cannot, or reads wrongly (16-bit planes,
  big-endian BigTIFF).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cdo_ad.errors import DataError, ImageError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "as_rgb",
    "decode_image",
    "decode_reduced",
    "image_size",
    "list_images",
    "read_bytes",
    "read_image",
    "read_mask",
    "write_png16",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The endings that `list_images` takes, in any letter case. Decoding goes by the content, never by the ending."""

MAX_PIXELS = 500_000_000
"""The largest image that is decoded, e.g. 22,360 x 22,360 (1.5 GB as RGB); larger ones raise `ImageError`."""

SOFT_MASK_LEVEL = 128
LABEL_ID_MAX = 64

UInt8Array = npt.NDArray[np.uint8]
AnyArray = npt.NDArray[Any]

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_WIDE_GRAY = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes of gray with more than 8 bits
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0")
_BIG_ENDIAN_BIGTIFF = b"MM\0+"  # Pillow misreads its header
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_ORIENTATION, _TIFF_PLANAR = 258, 262, 274, 284
_TIFF_SIZE_AND_ORIENTATION = (256, 257, _TIFF_ORIENTATION)
_TOO_LARGE = f"larger than {MAX_PIXELS:,} pixels: cut it into smaller images"
_REMEDY = "copy it again from its source, or take it out of the folder"

_UPRIGHT: dict[int, Callable[[AnyArray], AnyArray]] = {
    # EXIF orientation -> the turn that makes the image upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def read_image(path: Path | str) -> UInt8Array:
    """Decode an image file.

    Args:
        path: JPEG, PNG, TIFF, BMP or WebP; gray, colour, palette, 1-bit, CMYK, with or without alpha; 8 or 16 bit.

    Returns:
        (H, W, 3) uint8 RGB, upright, C-contiguous, writable; see the module's text for 16 bit and alpha.

    Raises:
        ImageError: if the file is missing, empty, truncated, not an image or above `MAX_PIXELS`.
    """
    return decode_image(read_bytes(path), str(path))


def decode_image(data: bytes, name: str = "<bytes>") -> UInt8Array:
    """Decode the bytes of an image file, exactly as `read_image` does.

    Args:
        data: the whole file.
        name: what error messages call the image.

    Returns:
        (H, W, 3) uint8 RGB, upright, C-contiguous, writable.

    Raises:
        ImageError: as `read_image`.
    """
    image, orientation = _load(data, name)
    rgb = as_rgb(image, name) if isinstance(image, np.ndarray) else _image_to_rgb(image, name)
    return np.require(_upright(rgb, orientation), requirements=["C", "W"])


def decode_reduced(data: bytes, name: str, least: int) -> tuple[UInt8Array, tuple[int, int]]:
    """Decode an image for a quick look: a JPEG at a half, a quarter or an eighth of its size, others in full.

    A reduced JPEG costs a third of a whole one. The whole file is read, so a truncated one is found all the same; its
    pixels are means over blocks (libjpeg's scaled inverse transform).

    Args:
        data: the whole file.
        name: what error messages call the image.
        least: pixels; a JPEG is not reduced so far that a side falls below this.

    Returns:
        (h, w, 3) uint8 RGB, upright, and (H, W) of the image itself.

    Raises:
        ImageError: as `read_image`.
    """
    image = _open(data, name)
    if isinstance(image, np.ndarray) or image.format != "JPEG":
        rgb = decode_image(data, name)
        return rgb, (rgb.shape[0], rgb.shape[1])
    width, height = image.size
    image.draft(image.mode, (least, least))
    loaded, orientation = _loaded(image, data, name)
    rgb = np.ascontiguousarray(_upright(_image_to_rgb(loaded, name), orientation))
    return rgb, (width, height) if orientation >= 5 else (height, width)


def read_mask(path: Path | str, shape: tuple[int, int] | None = None) -> npt.NDArray[np.bool_]:
    """Read a pixel mask: True where the defect is.

    A mask whose maximum is at most 64 holds label ids: everything above 0 is defect (so 0/1 masks work). Any other is
    a soft mask: defect where the value is at least 128 of 255. All zero is all False. 16-bit masks are read by the
    same two rules, as 8-bit values if none exceeds 255, else by their upper byte. Of a palette of grays the gray
    counts, of any other palette the index; of colours the largest channel; alpha is blended over black.

    Args:
        path: the mask's file, any format that `read_image` takes.
        shape: (H, W) of the image it belongs to; checked if given.

    Returns:
        (H, W) bool, upright.

    Raises:
        ImageError: as `read_image`, or if the mask's size is not `shape`.
    """
    image, orientation = _load(read_bytes(path), str(path))
    values = _upright(_mask_values(image, str(path)), orientation)
    if shape is not None and values.shape != tuple(shape):
        raise ImageError(
            f"{path}: the mask is {values.shape[1]}x{values.shape[0]} pixels but its image is {shape[1]}x{shape[0]}: "
            "export the mask at the image's own size"
        )
    if values.dtype == np.uint16:
        values = values if values.max() <= 255 else values >> 8
    mask: npt.NDArray[np.bool_] = values > 0 if values.max() <= LABEL_ID_MAX else values >= SOFT_MASK_LEVEL
    return np.ascontiguousarray(mask)


def as_rgb(array: AnyArray, name: str = "the array") -> UInt8Array:
    """Turn an array that a user hands in into an image, by the rules of the decoder.

    Args:
        array: (H, W), (H, W, 1) gray, (H, W, 2) gray and alpha, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 (full
            range, reduced by `>> 8`) or bool (False 0, True 255).
        name: what error messages call the array.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous; shares memory with `array` where that is such an array already.

    Raises:
        ImageError: if the shape or the dtype is none of these, or if the alpha channel is 0 everywhere.
    """
    array = np.asarray(array)
    shape_ok = array.ndim == 2 or (array.ndim == 3 and 1 <= array.shape[2] <= 4)
    if not shape_ok or array.size == 0:
        raise ImageError(
            f"{name}: an image must be (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) with H, W >= 1, "
            f"channels last, got {array.shape}: hand in one image of such a shape"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # either byte order
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(
            f"{name}: an image must be uint8 (0..255), uint16 (0..65535) or bool, got {array.dtype}, whose range is "
            "not known: scale it and convert with astype(numpy.uint8)"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] in (2, 4):
        array = _over_black(array[:, :, :-1], array[:, :, -1:], name)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array)


def image_size(path: Path | str) -> tuple[int, int]:
    """Read height and width of the upright image from the file's header: pixels are not decoded, nor checked.

    Raises:
        ImageError: if the file is missing or is no image.
    """
    data = read_bytes(path)
    image = _open(data, str(path))
    if isinstance(image, np.ndarray):
        height, width = image.shape[:2]
        orientation = _orientation(image, data)
    elif image.format == "TIFF":  # from the tags: Pillow states the size upright or as stored, by its version
        width, height, orientation = (int(_tiff_tag(image, tag) or 1) for tag in _TIFF_SIZE_AND_ORIENTATION)
    else:
        width, height = image.size
        orientation = _orientation(image, data)
    return (width, height) if orientation >= 5 else (height, width)


def list_images(folder: Path | str, recursive: bool = False) -> list[Path]:
    """List the image files of a folder, by their ending, sorted by name (by relative path if recursive).

    Hidden files and folders (names that begin with a dot) are left out.

    Raises:
        DataError: if `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder: check the path")
    found = []
    for path in folder.rglob("*") if recursive else folder.iterdir():
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def write_png16(path: Path | str, array: npt.NDArray[np.uint16]) -> None:
    """Write a 16-bit gray PNG.

    Args:
        path: the file to write; an existing one is replaced.
        array: (H, W) uint16.

    Raises:
        ImageError: if the array is not (H, W) uint16 or the file cannot be written.
    """
    if array.ndim != 2 or array.dtype != np.uint16 or array.size == 0:
        raise ImageError(f"{path}: a 16-bit map must be (H, W) uint16, got {array.shape} {array.dtype}")
    try:
        Image.fromarray(np.ascontiguousarray(array)).save(Path(path), format="PNG")
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({_reason(error)}): check the folder and its rights") from error


def read_bytes(path: Path | str) -> bytes:
    """The content of an image's file; raises ImageError, which names it, if it is missing, unreadable or empty."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file: check the path") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({_reason(error)}): check the path and its rights") from error
    if not data:
        raise ImageError(f"{path}: the file is empty: {_REMEDY}")
    return data


def _load(data: bytes, name: str) -> tuple[Image.Image | AnyArray, int]:
    """Decode all pixels; the second value is the EXIF orientation that is still to be applied."""
    image = _open(data, name)
    return (image, _orientation(image, data)) if isinstance(image, np.ndarray) else _loaded(image, data, name)


def _loaded(image: Image.Image, data: bytes, name: str) -> tuple[Image.Image, int]:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on broken files
        raise ImageError(f"{name}: the image is truncated or damaged ({_reason(error)}): {_REMEDY}") from error
    return image, _orientation(image, data)


def _open(data: bytes, name: str) -> Image.Image | AnyArray:
    """Read the header; TIFF kinds that Pillow cannot read come back decoded, as an array."""
    if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow's guard is one number per process: raised, never lowered
    if data[:4] == _BIG_ENDIAN_BIGTIFF:
        return _decode_tiff(data, name)
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        if data[:4] in _TIFF_MAGIC:
            return _decode_tiff(data, name)
        raise ImageError(f"{name}: not a JPEG, PNG, TIFF, BMP or WebP image, or damaged: {_REMEDY}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: {_TOO_LARGE}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: the image is damaged ({_reason(error)}): {_REMEDY}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name}: {_TOO_LARGE}")
    if image.format == "TIFF" and _tiff_tag(image, _TIFF_PLANAR) == 2 and _tiff_bits(image) > 8:
        return _decode_tiff(data, name)
    return image


def _decode_tiff(data: bytes, name: str) -> AnyArray:
    """Read the first page of a TIFF by tifffile: (H, W) or (H, W, C), dtype as stored, not yet upright."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            if page.imagewidth * page.imagelength > MAX_PIXELS:
                raise ImageError(f"{name}: {_TOO_LARGE}")
            array = np.array(page.asarray())
            if page.axes == "SYX":
                array = np.moveaxis(array, 0, 2)
            if page.photometric == 0:  # 0 is white; alpha, if there is one, stays
                gray = array if array.ndim == 2 else array[:, :, 0]
                np.invert(gray, out=gray)
            return array
    except (MemoryError, ImageError):
        raise
    except Exception as error:
        raise ImageError(
            f"{name}: a TIFF that cannot be read ({_reason(error)}): save it again as an 8- or 16-bit TIFF or PNG"
        ) from error


def _orientation(image: Image.Image | AnyArray, data: bytes) -> int:
    """Find the EXIF orientation left to apply, 1..8; broken EXIF counts as upright. Pillow turns TIFFs by itself."""
    try:
        if isinstance(image, np.ndarray):
            import tifffile

            with tifffile.TiffFile(io.BytesIO(data)) as file:
                tag = file.pages.first.tags.get(_TIFF_ORIENTATION)
                return int(tag.value) if tag is not None else 1
        return 1 if image.format == "TIFF" else int(image.getexif().get(_TIFF_ORIENTATION, 1))
    except Exception:  # the pixels are whole: damaged notes about the image must not lose it
        return 1


def _upright(array: AnyArray, orientation: int) -> AnyArray:
    turn = _UPRIGHT.get(orientation)
    return array if turn is None else turn(array)


def _image_to_rgb(image: Image.Image, name: str) -> UInt8Array:
    if image.mode in _WIDE_GRAY:
        gray16 = _gray16(image, name)
        gray = (gray16 >> (_tiff_bits(image) - 8)).astype(np.uint8)
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # a PNG that names one gray value as transparent
            gray = np.stack([gray, np.where(gray16 == clear, 0, 255).astype(np.uint8)], axis=2)
        return as_rgb(gray, name)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point samples have no stated range: save it as 8 or 16 bit")
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    if image.has_transparency_data:
        return as_rgb(np.asarray(image.convert("RGBA")), name)
    return np.asarray(image.convert("RGB"))


def _mask_values(image: Image.Image | AnyArray, name: str) -> AnyArray:
    """(H, W) uint8 or uint16: the numbers that `read_mask` judges."""
    if isinstance(image, np.ndarray):
        wide = image.ndim == 2 and image.dtype.kind == "u" and image.dtype.itemsize == 2
        return image.astype(np.uint16) if wide else as_rgb(image, name).max(axis=2)
    if image.mode in _WIDE_GRAY:
        return _gray16(image, name)
    if image.mode == "P" and "transparency" not in image.info:
        index = np.asarray(image)
        colours = np.asarray(image.convert("RGB"))
        all_gray = bool((colours == colours[:, :, :1]).all())
        return colours[:, :, 0] if all_gray else index
    largest: UInt8Array = _image_to_rgb(image, name).max(axis=2)
    return largest


def _gray16(image: Image.Image, name: str) -> npt.NDArray[np.uint16]:
    """Give the raw samples of a gray image with 9 to 16 bits, (H, W)."""
    values = np.asarray(image)
    if image.mode == "I" and (image.format == "TIFF" or values.min() < 0 or values.max() > 65535):
        raise ImageError(f"{name}: signed or 32-bit samples have no stated range: save it as 8 or 16 bit")
    values = values.astype(np.uint16)
    if image.format == "TIFF" and _tiff_tag(image, _TIFF_PHOTOMETRIC) == 0:  # 0 is white, which Pillow ignores here
        values = np.uint16(2 ** _tiff_bits(image) - 1) - values
    return values


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    tags = getattr(image, "tag_v2", {})
    return tags.get(tag)


def _tiff_bits(image: Image.Image) -> int:
    """Bits of a sample as a TIFF states them; 16 for any other file (asked for wide images only)."""
    bits = _tiff_tag(image, _TIFF_BITS)
    return int(bits[0]) if bits else 16


def _over_black(colour: AnyArray, alpha: AnyArray, name: str) -> UInt8Array:
    """round(colour * alpha / 255), uint8; colour (H, W, C), alpha (H, W, 1)."""
    if not alpha.any():
        raise ImageError(f"{name}: its alpha is 0 everywhere, so nothing of it is visible: remove the alpha channel")
    if alpha.min() == 255:
        return colour
    product = colour.astype(np.uint16) * alpha
    return ((product + 127) // 255).astype(np.uint8)


def _reason(error: BaseException) -> str:
    """Take the first line of a foreign error, for a message of one line."""
    text = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return text[0] if text else type(error).__name__
