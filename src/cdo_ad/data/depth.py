"""Samples of more than 8 bits: which bits of them count, and how they become 8.

A sample of b significant bits becomes 8 bits by `value >> (b - 8)`: the range 0..2^b - 1 maps onto 0..255 and nothing
is stretched to the image's own darkest and brightest value, so equal light gives equal numbers. Many cameras put 10 or
12 bits into the low end of 16; such a file does not say so, and looks black unless the setting `bits` tells.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from cdo_ad.errors import ConfigError, ImageError

__all__ = ["LEAST_BITS", "MOST_BITS", "Bits", "check_bits", "colour16", "low_bits", "significant_bits", "to_8_bits"]

Bits = int | Literal["auto"]
"""Significant bits of the samples in a 16-bit file, 8..16, counted from the lowest; `auto`: all 16.

A file that states fewer bits itself, such as a TIFF of 12 or a PGM up to 4095, is read as it states.
"""

LEAST_BITS, MOST_BITS = 8, 16

LOW_BITS = 14
"""Files of 16 bits that use no more than this are suspected to be those of a camera with fewer bits."""

_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def check_bits(bits: Bits) -> int:
    """The number of significant bits: 16 for `auto`.

    Raises:
        ConfigError: if it is neither `auto` nor 8..16.
    """
    if bits == "auto":
        return MOST_BITS
    if isinstance(bits, bool) or not isinstance(bits, int) or not LEAST_BITS <= bits <= MOST_BITS:
        raise ConfigError(f"bits must be auto or a number from {LEAST_BITS} to {MOST_BITS}, got {bits!r}")
    return bits


def to_8_bits(values: npt.NDArray[np.uint16], bits: int, name: str) -> npt.NDArray[np.uint8]:
    """`values >> (bits - 8)`, of the same shape.

    Raises:
        ImageError: if a value needs more than `bits` bits.
    """
    if bits < MOST_BITS and values.size and int(values.max()) >= 2**bits:
        raise ImageError(
            f"{name}: holds values up to {values.max()}, but samples of {bits} bits end at {2**bits - 1}: "
            f"set the number of bits to {int(values.max()).bit_length()}, or to auto for the full range"
        )
    reduced: npt.NDArray[np.uint8] = (values >> (bits - 8)).astype(np.uint8)
    return reduced


def significant_bits(images: Iterable[npt.NDArray[np.uint8]]) -> int:
    """How many of 16 bits a set of 16-bit files uses: 8 to 16, counted from the lowest.

    Args:
        images: of 16-bit files (see `cdo_ad.data.kinds.ImageKind.bits`), as `read_image` decodes them with
            `bits="auto"`; any shape, uint8.

    Returns:
        8 + the bits of the largest value; one bright image is enough to give 16. See `low_bits`.
    """
    largest = max((int(image.max()) for image in images), default=0)
    return 8 + largest.bit_length()


def low_bits(used: int, files: int) -> str | None:
    """The sentence for files that use so few of their 16 bits that they look nearly black; None where they do not.

    Args:
        used: of `significant_bits`.
        files: how many 16-bit files there are.
    """
    if used > LOW_BITS:
        return None
    return (
        f"{files} file(s) of 16 bits a sample use the lower {used} only and look nearly black: "
        f"--set sample_bits={used} reads them as a camera of {used} bits wrote them, sample_bits=16 as they are"
    )


def colour16(data: bytes, formats: tuple[str, ...], load: Callable[[Image.Image], object]) -> npt.NDArray[np.uint16]:
    """All 16 bits of a colour PNG or TIFF, of which Pillow keeps the upper byte only: it is decoded twice.

    The second time the byte order of the samples is exchanged, so that Pillow keeps the lower byte.

    Args:
        data: the whole file, of 16 bits a sample and three or four channels.
        formats: Pillow's name of the format.
        load: decodes the pixels of an opened image and raises ImageError where that fails.

    Returns:
        (H, W, C) uint16.

    Raises:
        ValueError: of a kind whose lower byte Pillow cannot give (gray with alpha).
    """
    planes = []
    for exchanged in (False, True):
        image = Image.open(io.BytesIO(data), formats=formats)
        if exchanged:
            assert isinstance(image, ImageFile.ImageFile)  # Pillow's type of what it opens
            image.tile = [tile._replace(args=_exchange(tile.args)) for tile in image.tile]
        load(image)
        planes.append(np.asarray(image).astype(np.uint16))
    samples: npt.NDArray[np.uint16] = planes[0] << np.uint16(8) | planes[1]
    return samples


def _exchange(args: Any) -> Any:
    """The arguments of a Pillow decoder with the other byte order in the raw mode, such as `RGB;16B`."""
    raw = args if isinstance(args, str) else args[0]
    if raw[:-1] not in ("RGB;16", "RGBA;16"):
        raise ValueError(raw)
    other = raw[:-1] + _OTHER_BYTE[raw[-1]]
    return other if isinstance(args, str) else (other, *args[1:])
