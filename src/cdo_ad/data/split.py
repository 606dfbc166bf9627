"""Groups of near copies, held-out groups, and fingerprints of data.

Everything drawn follows from the seed and the images' names relative to their common folder; not from the order of the
samples, of the disk, or from the machine (raw PCG64 numbers, whose stream numpy guarantees).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import DataError, needs_extra
from cdo_ad.types import Sample

__all__ = ["by_name", "content_digest", "fingerprint", "group_images", "hold_out"]

IntArray = npt.NDArray[np.int64]
HELD_OUT_AT_LEAST = 20


def group_images(paths: Sequence[Path], advance: Callable[[], None] = lambda: None) -> tuple[IntArray, str]:
    """Number the groups of near copies.

    Args:
        paths: images of one category, in the order of their names.
        advance: called once for each image that was compared.

    Returns:
        (N,) the group of each image, from 0 in the order of the first images; and one line for people.

    Raises:
        ImageError: an image that cannot be read.
        MissingExtraError: scipy is not installed.
    """
    with needs_extra("check", "finding near copies"):
        from cdo_ad.data.copies import group_copies
    found = group_copies(paths, advance)
    return found.groups, found.sentence


def hold_out(groups: IntArray, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """(N,) True for images to set aside: whole groups, about `share` of the images and at least 20 of 40 or more.

    A group that does not fit into what is missing is passed over; at least one image and never more than half.
    """
    n = len(groups)
    wanted = min(max(round(share * n), min(HELD_OUT_AT_LEAST, n // 2), 1), n // 2)
    sizes = np.bincount(groups)
    draw = np.random.PCG64(seed).random_raw(len(sizes))
    taken: list[int] = []
    for group in np.argsort(draw, kind="stable").tolist():
        if sizes[group] <= wanted - sum(sizes[taken]):
            taken.append(group)
    return np.isin(groups, taken)


def by_name(samples: Sequence[Sample]) -> list[Sample]:
    """The samples in the order of their names relative to their common folder."""
    if not samples:
        return []
    common = os.path.commonpath([sample.path.parent.absolute() for sample in samples])
    return sorted(samples, key=lambda sample: _relative(sample.path.absolute(), common))


def content_digest(path: Path) -> str:
    """Size and blake2b hash of a file's bytes; raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            return f"{file.tell()} {digest}"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check the path and its rights") from error


def fingerprint(samples: Sequence[Sample], root: Path | str) -> str:
    """Hash a data set: 64 hexadecimal digits that change with any image, mask, point cloud, name, label or split.

    sha256 over the sorted lines of path relative to `root`, split, defect type, and the digests of image, mask and
    point cloud. Every file is read once.

    Raises:
        DataError: if a file cannot be read.
    """
    lines = []
    for sample in samples:
        fields = [_relative(sample.path, root), sample.split, sample.defect_type, content_digest(sample.path)]
        if sample.mask_path is not None:
            fields += [_relative(sample.mask_path, root), content_digest(sample.mask_path)]
        if sample.xyz_path is not None:
            fields += [_relative(sample.xyz_path, root), content_digest(sample.xyz_path)]
        lines.append("\0".join(fields))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _relative(path: Path, root: Path | str) -> str:
    return Path(os.path.relpath(path, root)).as_posix()
