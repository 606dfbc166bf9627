"""The seeded split of the good images into fit and calibration, and a fingerprint of a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cdo_ad.data.near_copies import hash_images, near_groups, near_limit
from cdo_ad.errors import ConfigError, DataError
from cdo_ad.types import Sample

__all__ = ["GoodSplit", "fingerprint", "hold_out", "split_by_part", "split_good"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GoodSplit:
    """The good images of a data set, parted."""

    fit: list[Sample]
    """To train on, in the order of the names."""
    calibration: list[Sample]
    """Held out, in the order of the names."""
    note: str
    """How they were drawn, in one line for people."""
    grouped: bool
    """True where no held-out image has a near copy among those to train on."""
    limit: int | None = None
    """Bits of the hashes up to which images counted as near copies; None where that was not asked for."""


def hold_out(
    samples: Sequence[Sample], share: float = 0.1, minimum: int = 20, seed: int = 0
) -> tuple[list[Sample], list[Sample]]:
    """(fit, calibration) of `split_good`, drawn image by image: near copies can fall on both sides."""
    split = split_good(samples, share, minimum, seed)
    return split.fit, split.calibration


def split_by_part(
    samples: Sequence[Sample],
    share: float = 0.1,
    minimum: int = 20,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> GoodSplit:
    """`split_good` with the hashes of the training images; they are read where the data set leaves the draw to us.

    Args:
        samples: see `split_good`.
        share: see `split_good`.
        minimum: see `split_good`.
        seed: see `split_good`.
        advance: called once for each image that was hashed.

    Raises:
        ConfigError, DataError: as `split_good`.
        ImageError: a training image that cannot be read.
        MissingExtraError: if the extra `train` is not installed.
    """
    train = [sample.path for sample in samples if sample.split == "train"]
    drawn = len(train) > 1 and not any(sample.split == "calibration" for sample in samples)
    return split_good(samples, share, minimum, seed, hash_images(train, advance) if drawn else None)


def split_good(
    samples: Sequence[Sample],
    share: float = 0.1,
    minimum: int = 20,
    seed: int = 0,
    hashes: Mapping[Path, npt.NDArray[np.bool_]] | None = None,
) -> GoodSplit:
    """Set aside good images for calibration; they are never trained on.

    If the data set has calibration images of its own (`split == "calibration"`) they are taken and every training
    image is fitted on. Otherwise, of n training images `k = max(round(share * n), min(minimum, n // 2))` are drawn
    (at most n - 1): a tenth, but at least 20 where there are, and never more than half for the sake of those 20.

    With `hashes`, groups of near copies are drawn whole, such as the same part under another exposure: otherwise the
    calibration scores are those of parts that the model knows, and new parts raise more false alarms than promised. A
    group that does not fit into what is missing is passed over, so k images are drawn wherever sizes allow; where
    they do not, the smallest group left comes on top, up to half of the images. If one group holds more than half of
    the images, or no whole groups can be held out, images are drawn one by one and the note says so.

    The draw depends on the seed and on the images' names relative to their common folder; not on the order of
    `samples`, of the disk, or on the machine (it uses raw PCG64 numbers, whose stream numpy guarantees). Without near
    copies it is the same with and without hashes.

    Args:
        samples: of a data set; test samples are left out.
        share: of the training images to hold out, in [0, 1).
        minimum: number of images to hold out where half of them are as many.
        seed: of the draw, >= 0.
        hashes: `cdo_ad.data.near_copies.hash_images` of (at least) the training images.

    Raises:
        ConfigError: if an argument is out of its range.
        DataError: if there are fewer than two training images (one, where the data set has calibration images).
    """
    if not 0.0 <= share < 1.0 or minimum < 0 or seed < 0:
        raise ConfigError(f"share must lie in [0, 1), minimum and seed be >= 0, got {share}, {minimum}, {seed}")
    train = _by_name([sample for sample in samples if sample.split == "train"])
    own = _by_name([sample for sample in samples if sample.split == "calibration"])
    needed = 1 if own else 2
    if len(train) < needed:
        raise DataError(
            f"{len(train)} good training image(s), but at least {needed} are needed, one of them to calibrate with: "
            "add good images (50 or more make a useful model)"
        )
    if own:
        return GoodSplit(train, own, "the data set's own calibration images", grouped=False)
    n = len(train)
    k = min(max(round(share * n), min(minimum, n // 2)), n - 1)
    draw = np.random.PCG64(seed).random_raw(n)
    whole, note, limit = None, "drawn image by image", None
    if hashes is not None:
        bits = np.stack([hashes[sample.path] for sample in train])
        limit = near_limit(bits)
        note += ": the images are so alike that near copies cannot be told from others"
        if limit >= 0:
            whole, note = _draw_groups(near_groups(bits, limit), k, draw)
    drawn = set(np.argsort(draw, kind="stable")[:k].tolist()) if whole is None else whole
    fit = [sample for i, sample in enumerate(train) if i not in drawn]
    return GoodSplit(fit, [sample for i, sample in enumerate(train) if i in drawn], note, whole is not None, limit)


def _draw_groups(groups: IntArray, k: int, draw: npt.NDArray[np.uint64]) -> tuple[set[int] | None, str]:
    """Indices of about k images in whole groups, or None, and a note.

    Args:
        groups: (n,) the group of each image, numbered in the order of the first images.
        k: images wanted.
        draw: (n,) random numbers; groups are taken in the order of the number of their first image.
    """
    n = len(groups)
    sizes = np.bincount(groups)
    optimistic = "near copies of held-out images are trained on, so expect more false alarms on new parts than promised"
    if sizes.max() > max(n / 2, 1):
        return (
            None,
            f"drawn image by image: {sizes.max()} of {n} images are near copies of each other; {optimistic}",
        )
    order = np.argsort(draw[np.unique(groups, return_index=True)[1]], kind="stable").tolist()
    taken, missing = [], k
    for group in order:
        if sizes[group] <= missing:
            taken.append(group)
            missing -= int(sizes[group])
    if missing:
        extra = min((group for group in order if group not in taken), key=lambda group: sizes[group])
        if k - missing + sizes[extra] > max(n // 2, k):
            return (
                None,
                f"drawn image by image: groups of near copies are too large to be held out whole; {optimistic}",
            )
        taken.append(extra)
    copies = int(sizes[sizes > 1].sum())
    note = f"drawn in {len(taken)} of {len(sizes)} groups; {copies} of {n} images have near copies, which stay together"
    return set(np.flatnonzero(np.isin(groups, taken)).tolist()), note


def fingerprint(samples: Sequence[Sample], root: Path | str) -> str:
    """Hash a data set: 64 hexadecimal digits that change with any image, mask, name, label or split.

    sha256 over the sorted lines of (path relative to `root`, split, defect type, and of the image and its mask the
    size and the blake2b hash of the bytes). Every file is read once.

    Raises:
        DataError: if a file cannot be read.
    """
    lines = []
    for sample in samples:
        fields = [_relative(sample.path, root), sample.split, sample.defect_type, _content(sample.path)]
        if sample.mask_path is not None:
            fields += [_relative(sample.mask_path, root), _content(sample.mask_path)]
        lines.append("\0".join(fields))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _by_name(samples: list[Sample]) -> list[Sample]:
    if not samples:
        return []
    common = os.path.commonpath([sample.path.parent.absolute() for sample in samples])
    return sorted(samples, key=lambda sample: _relative(sample.path.absolute(), common))


def _relative(path: Path, root: Path | str) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            return f"{file.tell()} {digest}"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check the path and its rights") from error
