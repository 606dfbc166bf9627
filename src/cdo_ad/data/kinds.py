"""What kind of file an image is, and whether a model was trained on files of that kind.

A model that learned from PNG files calls the blocks of a JPEG anomalous, and one that learned from colour images does
not know gray ones. `ImageKind` is read from a file's header; `TrainedKinds` sums up those of a training, small enough
for a run's JSON, and says in a sentence what is new about another file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin

from cdo_ad.data import headers, tiff
from cdo_ad.data.convert import UInt8Array, orientation
from cdo_ad.data.decode import decode_image
from cdo_ad.data.depth import Bits
from cdo_ad.data.files import read_bytes
from cdo_ad.data.headers import open_image, stated_bits

__all__ = ["ImageKind", "TrainedKinds", "kind_of", "read_with_kind"]

QUALITY_MARGIN = 7
"""Points of JPEG quality by which a file may lie outside those of the training."""
SIZE_FACTOR = 1.5
"""Factor by which the longer side of a file may lie outside those of the training."""
SHAPE_FACTOR = 1.1
"""The same of width / height: a resize to the networks' input stretches the image by as much."""

_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
_LOSSY = ("JPEG", "AVIF", "HEIF")
# libjpeg's table of luminance steps at quality 50; other qualities scale it
_LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageKind:
    """The kind of an image's file."""

    format: str
    """`JPEG`, `PNG`, `TIFF`, `BMP`, `WEBP`, `PPM`, `AVIF`, `JPEG2000`, `GIF` or `HEIF`."""
    lossy: bool
    """True where the compression changes pixels."""
    quality: int | None
    """Of a JPEG: 1..100, libjpeg's number whose steps come nearest to the file's; None of other files."""
    subsampling: str | None
    """Of a colour JPEG: `4:4:4`, `4:2:2`, `4:2:0` or `other`; None of other files."""
    colour: bool
    """True where the file has colour channels and, if pixels were given to `kind_of`, they are not gray."""
    bits: int
    """Of a sample, as the file states them, at least 8."""
    height: int
    width: int
    """Of the upright image, pixels."""


def read_with_kind(path: Path | str, *, bits: Bits = "auto") -> tuple[UInt8Array, ImageKind]:
    """Decode an image file and tell its kind; the file is read once.

    Returns:
        What `cdo_ad.data.read_image` gives, and `kind_of` the file and its pixels.

    Raises:
        ConfigError, ImageError: as `read_image`.
    """
    data = read_bytes(path)
    image = decode_image(data, str(path), bits=bits)
    return image, kind_of(data, str(path), image)


def kind_of(data: bytes, name: str, image: UInt8Array | None = None) -> ImageKind:
    """Read the kind of an image's file from its header.

    Args:
        data: the whole file.
        name: what error messages call the image.
        image: (H, W, 3) uint8, the file decoded; where it is given, a colour file that shows gray counts as gray.

    Raises:
        ImageError: if the file is no image, or its header is damaged.
    """
    if tiff.is_tiff(data):
        head = tiff.read_header(data, name, headers.MAX_PIXELS)
        return ImageKind(
            "TIFF", head.lossy, None, None, head.colour and _shows_colour(image), max(8, head.bits),
            *_upright(head.height, head.width, head.orientation),
        )  # fmt: skip
    opened = open_image(data, name)
    form = "JPEG" if opened.format == "MPO" else str(opened.format)
    jpeg = opened if isinstance(opened, JpegImagePlugin.JpegImageFile) else None
    return ImageKind(
        form,
        form in _LOSSY or (form == "WEBP" and b"VP8 " in data[:64]) or (form == "JPEG2000" and _is_irreversible(data)),
        _quality(jpeg) if jpeg else None,
        _SUBSAMPLING.get(JpegImagePlugin.get_sampling(jpeg), "other") if jpeg and jpeg.mode != "L" else None,
        not _is_gray(opened) and _shows_colour(image),
        stated_bits(opened, data),
        *_upright(opened.height, opened.width, orientation(opened)),
    )


@dataclass(frozen=True, slots=True)
class TrainedKinds:
    """The kinds of the files that a model was trained on, summed up; all ranges include both ends."""

    lossless: bool
    """True if there were files whose compression keeps pixels."""
    lossy: bool
    quality: tuple[int, int] | None
    """Of the JPEG files; None if there were none."""
    subsampling: tuple[str, ...]
    """Of the colour JPEG files."""
    colour: bool
    gray: bool
    bits: tuple[int, int]
    longer_side: tuple[int, int]
    """Pixels."""
    shape: tuple[float, float]
    """Width / height."""

    @classmethod
    def of(cls, kinds: Iterable[ImageKind]) -> TrainedKinds:
        """Sum up the kinds of a training's files, one or more."""
        found = list(kinds)
        qualities = [kind.quality for kind in found if kind.quality is not None]
        bits = [kind.bits for kind in found]
        sides = [max(kind.height, kind.width) for kind in found]
        shapes = [kind.width / kind.height for kind in found]
        return cls(
            lossless=any(not kind.lossy for kind in found),
            lossy=any(kind.lossy for kind in found),
            quality=(min(qualities), max(qualities)) if qualities else None,
            subsampling=tuple(sorted({kind.subsampling for kind in found if kind.subsampling is not None})),
            colour=any(kind.colour for kind in found),
            gray=any(not kind.colour for kind in found),
            bits=(min(bits), max(bits)),
            longer_side=(min(sides), max(sides)),
            shape=(min(shapes), max(shapes)),
        )

    def difference(self, kind: ImageKind) -> str | None:
        """What is new about a file, e.g. ``a JPEG of quality 90 (training: lossless files)``; None if nothing is.

        The text begins in lower case and has no full stop. All that differs is named, the gravest first.
        """
        compression = self.compression_difference(kind)
        found = ([] if compression is None else [compression]) + self._content(kind)
        return "; ".join(found) if found else None

    def compression_difference(self, kind: ImageKind) -> str | None:
        """The part of `difference` that is about compression: lossy or not, JPEG quality, chroma subsampling."""
        if kind.lossy and not self.lossy:
            return f"{_compressed(kind)} (training: lossless files)"
        if not kind.lossy and not self.lossless:
            return f"a lossless {kind.format} (training: lossy files{_range(', JPEG quality ', self.quality)})"
        if kind.quality is None or self.quality is None:
            return None
        low, high = self.quality
        if not low - QUALITY_MARGIN <= kind.quality <= high + QUALITY_MARGIN:
            return f"{_compressed(kind)} (training:{_range(' quality ', self.quality)})"
        if kind.subsampling is not None and self.subsampling and kind.subsampling not in self.subsampling:
            return f"a JPEG with chroma {kind.subsampling} (training: {', '.join(self.subsampling)})"
        return None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainedKinds:
        """The inverse of `to_json`, also of what went through JSON.

        Raises:
            TypeError: for a missing or an unknown name.
        """
        ranges_as_tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**ranges_as_tuples)

    def _content(self, kind: ImageKind) -> list[str]:
        found = []
        if (not kind.colour and not self.gray) or (kind.colour and not self.colour):
            words = ("colour", "gray") if kind.colour else ("gray", "colour")
            found.append(f"{words[0]} (training: {words[1]} images)")
        if not self.bits[0] <= kind.bits <= self.bits[1]:
            found.append(f"{kind.bits} bits a sample (training:{_range(' ', self.bits)})")
        side = max(kind.height, kind.width)
        if not self.longer_side[0] / SIZE_FACTOR <= side <= self.longer_side[1] * SIZE_FACTOR:
            found.append(
                f"{kind.width} x {kind.height} pixels (training:{_range(' ', self.longer_side)} on the longer side)"
            )
        shape = kind.width / kind.height
        if not self.shape[0] / SHAPE_FACTOR <= shape <= self.shape[1] * SHAPE_FACTOR:
            low, high = (f"{value:.2f}" for value in self.shape)
            found.append(f"width / height {shape:.2f} (training: {low if low == high else f'{low} to {high}'})")
        return found


def _compressed(kind: ImageKind) -> str:
    if kind.quality is None:
        return f"a lossy {kind.format}"
    return f"a JPEG of quality {kind.quality}" + (f", chroma {kind.subsampling}" if kind.subsampling else "")


def _range(before: str, ends: tuple[int, int] | None) -> str:
    if ends is None:
        return ""
    return f"{before}{ends[0]}" if ends[0] == ends[1] else f"{before}{ends[0]} to {ends[1]}"


def _quality(image: JpegImagePlugin.JpegImageFile) -> int:
    """The quality whose luminance table has the sum nearest to the file's; the order of the table does not matter."""
    table = getattr(image, "quantization", {}).get(0)
    if not table:
        return 50
    qualities = np.arange(1, 101)
    scale = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    sums = np.clip((_LUMINANCE[None] * scale[:, None] + 50) // 100, 1, 255).sum(axis=1)
    return int(qualities[np.abs(sums - sum(table)).argmin()])


def _is_irreversible(data: bytes) -> bool:
    """Tell whether a JPEG 2000 uses the 9/7 wavelet: the last byte of a COD segment's parameters is 0."""
    at = data.find(b"\xff\x52")  # marker, length, style, order, layers (2), transform, levels, width, height, style
    return 0 <= at < len(data) - 13 and data[at + 13] == 0


def _is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def _shows_colour(image: UInt8Array | None) -> bool:
    """False where the three channels are equal everywhere; a few pixels tell most coloured images."""
    if image is None:
        return True
    return any(not np.array_equal(part[..., 0], part[..., k]) for part in (image[::16, ::16], image) for k in (1, 2))


def _upright(height: int, width: int, turn: int) -> tuple[int, int]:
    return (width, height) if turn >= 5 else (height, width)
