"""What one decode tells of an image and its mask: the facts that `cdo_ad.audit.check` judges.

A JPEG is decoded at a fraction of its size, never below the training size: brightness, sharpness and the perceptual
hash are those of means over small blocks of pixels. That is three times as fast, and facts are read for outliers only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.data.decode import decode_reduced, read_bytes, read_image, read_mask
from cdo_ad.data.near_copies import LOOK, perceptual_hash
from cdo_ad.errors import DataError, ImageError, needs_extra
from cdo_ad.provenance import processors
from cdo_ad.types import Sample

__all__ = ["Facts", "MaskFacts", "gather", "pixels_digest"]

DARK, BRIGHT = 5, 250
_TIFF_BITS = 258


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """Of a defect's mask."""

    height: int
    width: int
    largest_region: int
    """Pixels of the largest 8-connected region; 0 for an empty mask."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one image that could be decoded."""

    height: int
    width: int
    bits: int
    """Bits of a sample in the file: 8 or 16, or what a TIFF says."""
    colour: bool
    """False where the three channels are equal everywhere."""
    perceptual: npt.NDArray[np.bool_]
    """(256,) perceptual hash (DCT signs against the median): nearly blind to exposure, contrast and size."""
    mean: float
    """Mean gray, 0..255."""
    largest: int
    """Largest value of any channel, 0..255."""
    dark: float
    """Share of pixels with gray <= 5."""
    bright: float
    """Share of pixels with gray >= 250."""
    sharpness: float
    """Energy of the Laplacian over the variance, at the training size; low in a blurred image."""
    mask: MaskFacts | None = None


def gather(
    samples: Sequence[Sample], size: tuple[int, int], advance: Callable[[], None] = lambda: None
) -> tuple[dict[Path, Facts], dict[Path, str], dict[Path, str]]:
    """Decode every image and mask once, in as many threads as there are processors.

    Args:
        samples: the images.
        size: (h, w) of the training images.
        advance: called once for each image that is done.

    Returns:
        Facts by image; the error by image that cannot be read; the error by mask that cannot be read.

    Raises:
        MissingExtraError: if `imagehash` is not installed.
    """
    with needs_extra("check", "finding near duplicates"):
        import imagehash  # noqa: F401
    facts: dict[Path, Facts] = {}
    broken: dict[Path, str] = {}
    broken_masks: dict[Path, str] = {}

    def look(sample: Sample) -> tuple[Sample, Facts | str, MaskFacts | str | None]:
        return sample, _image(sample.path, size), _mask(sample)

    with ThreadPoolExecutor(processors()) as pool:
        for sample, found, mask in pool.map(look, samples):
            advance()
            if isinstance(mask, str) and sample.mask_path is not None:
                broken_masks[sample.mask_path] = mask
                mask = None
            if isinstance(found, str):
                broken[sample.path] = found
                continue
            if isinstance(mask, MaskFacts):
                object.__setattr__(found, "mask", mask)
            facts[sample.path] = found
    return facts, broken, broken_masks


def _mask(sample: Sample) -> MaskFacts | str | None:
    if sample.mask_path is None:
        return None
    try:
        mask = read_mask(sample.mask_path)
    except DataError as error:
        return str(error)
    largest = 0
    if mask.any():
        labels = cc3d.connected_components(mask, connectivity=8, binary_image=True)
        largest = int(np.bincount(labels[labels > 0]).max())
    return MaskFacts(mask.shape[0], mask.shape[1], largest)


def _image(path: Path, size: tuple[int, int]) -> Facts | str:
    try:
        data = read_bytes(path)
        image, (height, width) = decode_reduced(data, str(path), max(LOOK, *size))
    except ImageError as error:
        return str(error)
    gray = Image.fromarray(image).convert("L")
    histogram = np.array(gray.histogram())
    total = image.shape[0] * image.shape[1]
    small = np.asarray(gray.resize((size[1], size[0]), Image.Resampling.BOX), dtype=np.float32)
    return Facts(
        height=height,
        width=width,
        bits=_bits(data),
        colour=_coloured(image),
        perceptual=perceptual_hash(gray),
        mean=float(histogram @ np.arange(256) / total),
        largest=int(image.max()),
        dark=float(histogram[: DARK + 1].sum() / total),
        bright=float(histogram[BRIGHT:].sum() / total),
        sharpness=_sharpness(small),
    )


def pixels_digest(path: Path) -> bytes:
    """Hash of the whole decoded pixels and their shape: equal for equal images, whatever the file format.

    Raises:
        ImageError: if the file cannot be read.
    """
    image = read_image(path)
    return hashlib.sha256(image.data).digest() + repr(image.shape).encode()


def _coloured(image: npt.NDArray[np.uint8]) -> bool:
    """False where the three channels are equal everywhere; a few pixels tell most coloured images."""
    return any(not np.array_equal(part[..., 0], part[..., k]) for part in (image[::16, ::16], image) for k in (1, 2))


def _sharpness(gray: npt.NDArray[np.float32]) -> float:
    """Mean squared Laplacian over the variance of a (h, w) image; 0 for a flat one."""
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * gray[1:-1, 1:-1]
    variance = float(gray.var())
    return float(np.square(laplacian).mean()) / variance if variance > 1e-6 else 0.0


def _bits(data: bytes) -> int:
    """Bits of a sample as the file's header states them; the pixels are not decoded again."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return max(8, data[24])
    if data[:4] in (b"II*\0", b"MM\0*"):
        import io

        try:
            with Image.open(io.BytesIO(data)) as header:
                bits = getattr(header, "tag_v2", {}).get(_TIFF_BITS, (8,))
                return max(8, int(bits[0] if isinstance(bits, tuple) else bits))
        except Exception:  # a kind that only tifffile reads: those are 16-bit
            return 16
    return 8
