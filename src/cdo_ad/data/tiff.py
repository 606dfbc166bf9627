"""TIFF: what its first page holds, whether it is one plain image, the kinds that Pillow cannot read, point clouds.

Pillow decodes; tifffile tells what the tags say, and reads what Pillow cannot, or reads wrongly: 16-bit planes and
big-endian BigTIFF.
"""

from __future__ import annotations

import io
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cdo_ad.data.convert import AnyArray, known_orientation
from cdo_ad.data.files import DAMAGED, reason
from cdo_ad.errors import ImageError

if TYPE_CHECKING:
    from tifffile import TiffPage

__all__ = ["TiffHeader", "decode_points", "decode_tiff", "is_tiff", "read_header"]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BIG_ENDIAN_BIGTIFF = b"MM\0+"  # Pillow misreads its header
_ORIENTATION = 274
_WHITE_IS_ZERO, _RGB = 0, 2
_UNSIGNED, _FLOAT, _UNDEFINED = 1, 3, 4
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_UNSPECIFIED, _MULTIPLIED_ALPHA = 0, 1
_CONTIGUOUS, _SEPARATE_PLANES = 1, 2
_UNCOMPRESSED, _PACK_BITS, _DEFLATE = 1, 32773, (8, 32946)
_LOSSY = (6, 7, 33003, 33005, 34712, 34892, 50001, 52546)  # JPEG, JPEG 2000, lossy JPEG of DNG, WebP, JPEG XL
_REMEDY = "save it again as an 8- or 16-bit TIFF or PNG"


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """What the tags of the first page say."""

    height: int
    """As stored, before the orientation is applied."""
    width: int
    bits: int
    """Of a sample."""
    samples: int
    """Channels, alpha included."""
    orientation: int
    """Of EXIF, 1..8."""
    white_is_zero: bool
    colour: bool
    lossy: bool
    needs_tifffile: bool
    """True where Pillow reads it wrongly."""


def is_tiff(data: bytes) -> bool:
    """Tell by the first bytes."""
    return data[:4] in _MAGIC


def read_header(data: bytes, name: str, most: int) -> TiffHeader:
    """Read the tags, and refuse what is no plain image.

    Args:
        data: the whole file.
        name: what error messages call it.
        most: pixels that an image may have.

    Raises:
        ImageError: for a damaged file, one with several pages, one whose samples have no stated range or mean
            something else than colours and alpha, or one above `most`.
    """
    with _first_page(data, name, most) as page:
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        planes = page.planarconfig == _SEPARATE_PLANES and page.samplesperpixel > 1
        tag = page.tags.get(_ORIENTATION)
        return TiffHeader(
            height=page.imagelength,
            width=page.imagewidth,
            bits=bits,
            samples=page.samplesperpixel,
            orientation=known_orientation(tag.value if tag is not None else None),
            white_is_zero=page.photometric == _WHITE_IS_ZERO,
            colour=page.samplesperpixel >= 3 or page.colormap is not None,
            lossy=page.compression in _LOSSY,
            needs_tifffile=data[:4] == _BIG_ENDIAN_BIGTIFF or (planes and bits > 8),
        )


def decode_tiff(data: bytes, name: str, most: int) -> AnyArray:
    """Read the first page by tifffile.

    Returns:
        (H, W) or (H, W, C), dtype as stored, not yet upright; 0 is black.

    Raises:
        ImageError: as `read_header`, or for a kind that tifffile cannot decode.
    """
    with _first_page(data, name, most) as page:
        _refuse_bombs(page, data, name)
        _refuse_gaps(page, name)
        array = np.array(page.asarray())
        if page.axes == "SYX":
            array = np.moveaxis(array, 0, 2)
        if page.photometric == _WHITE_IS_ZERO:  # alpha, if there is one, stays
            gray = array if array.ndim == 2 else array[:, :, 0]
            np.invert(gray, out=gray)
        if tuple(page.extrasamples) == (_MULTIPLIED_ALPHA,):  # the colours lie over black already
            array = array[:, :, :-1]
        return array


def decode_points(data: bytes, name: str, most: int) -> npt.NDArray[np.float32]:
    """Read the coordinates of an organised point cloud.

    Args:
        data: the whole file.
        name: what error messages call it.
        most: points that it may have.

    Returns:
        (H, W, 3) float32: x, y and z of each point, as stored.

    Raises:
        ImageError: for a damaged file, one above `most`, or one that is not a single page of three channels of
            floating-point samples.
    """
    if not is_tiff(data):
        raise ImageError(f"{name}: is no TIFF: a point cloud is a TIFF of three floating-point channels x, y, z")
    with _first_page(data, name, most, _refuse_images, DAMAGED) as page:
        _refuse_bombs(page, data, name)
        _refuse_gaps(page, name)
        array = np.asarray(page.asarray())
        return np.ascontiguousarray(np.moveaxis(array, 0, 2) if page.axes == "SYX" else array, dtype=np.float32)


@contextmanager
def _first_page(
    data: bytes,
    name: str,
    most: int,
    refuse: Callable[[TiffPage, str], None] | None = None,
    remedy: str = _REMEDY,
) -> Iterator[TiffPage]:
    """The first page, checked; any failure of tifffile, also in the block, becomes an ImageError.

    Args:
        data: the whole file.
        name: what error messages call it.
        most: pixels that it may have.
        refuse: raises ImageError for samples that are not wanted; None refuses all that are no image's.
        remedy: what to do about a damaged file.
    """
    import tifffile

    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # its remarks on odd tags are for those who configure logging
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            if not isinstance(page, tifffile.TiffPage):
                raise ImageError(f"{name}: a TIFF without tags: {_REMEDY}")
            _refuse_size(page, name, most)
            (refuse or _refuse)(page, name)
            _refuse_more_pages(file.pages, name)
            yield page
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit into memory: cut it into smaller images") from error
    except Exception as error:
        raise ImageError(f"{name}: a TIFF that cannot be read ({reason(error)}): {remedy}") from error


def _refuse_size(page: TiffPage, name: str, most: int) -> None:
    sides = page.imagewidth, page.imagelength, page.imagedepth, page.tilewidth, page.tilelength
    if not all(isinstance(side, int) for side in sides):  # a number times a tuple would fill the memory
        raise ImageError(f"{name}: the image is damaged (its size is no number): {DAMAGED}")
    width, height, depth, tile_width, tile_height = sides
    if max(width * height, tile_width * tile_height) * max(depth, 1) > most:
        raise ImageError(f"{name}: larger than {most:,} pixels: cut it into smaller images")


def _refuse_gaps(page: TiffPage, name: str) -> None:
    """Refuse a page with fewer strips or tiles than cover it: tifffile leaves the rest as it finds the memory."""
    known = page.planarconfig in (_CONTIGUOUS, _SEPARATE_PLANES)  # for another number `chunked` knows no planes
    if not known or len(page.dataoffsets) < math.prod(page.chunked):
        raise ImageError(f"{name}: the image is truncated or damaged (strips or tiles are missing): {DAMAGED}")


def _refuse_images(page: TiffPage, name: str) -> None:
    if page.sampleformat != _FLOAT or page.samplesperpixel != 3:
        raise ImageError(
            f"{name}: holds {page.samplesperpixel} channel(s) of {page.bitspersample} bits: a point cloud is a TIFF of "
            "three floating-point channels x, y, z"
        )


def _refuse(page: TiffPage, name: str) -> None:
    if page.is_reduced:
        raise ImageError(f"{name}: its first page is only a preview (a camera's raw file?): save it as TIFF or PNG")
    if page.sampleformat not in (_UNSIGNED, _UNDEFINED):
        word = _SAMPLE_FORMATS.get(page.sampleformat, "unknown")
        raise ImageError(f"{name}: {word} samples have no stated range: {_REMEDY}")
    extra = tuple(page.extrasamples)
    missing = page.photometric != _RGB and page.samplesperpixel == 2 and not extra
    if len(extra) > 1 or _UNSPECIFIED in extra or missing:
        raise ImageError(
            f"{name}: holds {page.samplesperpixel} channels, and not all of them are colours or alpha: "
            "save the channels to be judged as gray or RGB"
        )


def _refuse_bombs(page: TiffPage, data: bytes, name: str) -> None:
    """Strips are unpacked by tifffile whatever their size: make sure that none is larger than the tags say."""
    if page.compression not in (_UNCOMPRESSED, _PACK_BITS, *_DEFLATE):
        raise ImageError(f"{name}: a TIFF of a compression that is not read for this kind of samples: {_REMEDY}")
    if page.compression in _DEFLATE:
        expected = int(np.prod(page.shape)) * page.dtype.itemsize if page.dtype is not None else 0
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            unpacking = zlib.decompressobj()
            unpacking.decompress(data[offset : offset + count], expected + 1)
            if unpacking.unconsumed_tail:
                raise ImageError(f"{name}: its data are longer than its tags say: {_REMEDY}")


def _refuse_more_pages(pages: object, name: str) -> None:
    """Later pages that are smaller copies (a pyramid, a thumbnail) or masks of the first are no images of their own."""
    for page in list(pages)[1:]:  # type: ignore[call-overload]
        if not (page.is_reduced or page.is_mask):
            raise ImageError(f"{name}: holds several pages, but one image is judged: save each page as a file")
