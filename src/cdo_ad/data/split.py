"""The seeded split of the good pictures into fit and calibration, and a fingerprint of a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdo_ad.errors import ConfigError, DataError
from cdo_ad.types import Sample

__all__ = ["fingerprint", "hold_out"]


def hold_out(
    samples: Sequence[Sample], share: float = 0.1, minimum: int = 20, seed: int = 0
) -> tuple[list[Sample], list[Sample]]:
    """Set aside good pictures for calibration; they are never trained on.

    If the data set has calibration pictures of its own (`split == "calibration"`) they are taken and every training
    picture is fitted on. Otherwise, of n training pictures `max(round(share * n), min(minimum, n // 2))` are drawn (at
    most n - 1): a tenth, but at least 20 where there are, and never more than half for the sake of those 20.

    Pictures are drawn one by one: several pictures of the same part can fall on both sides, which makes calibration
    scores look better than those of new parts.

    The draw depends on the seed and on the pictures' names relative to their common folder; not on the order of
    `samples`, of the disk, or on the machine (it uses raw PCG64 numbers, whose stream numpy guarantees).

    Args:
        samples: of a data set; test samples are left out.
        share: of the training pictures to hold out, in [0, 1).
        minimum: number of pictures to hold out where half of them are as many.
        seed: of the draw, >= 0.

    Returns:
        (fit, calibration), each in the order of the names.

    Raises:
        ConfigError: if an argument is out of its range.
        DataError: if there are fewer than two training pictures (one, where the data set has calibration pictures).
    """
    if not 0.0 <= share < 1.0 or minimum < 0 or seed < 0:
        raise ConfigError(f"share must lie in [0, 1), minimum and seed be >= 0, got {share}, {minimum}, {seed}")
    train = _by_name([sample for sample in samples if sample.split == "train"])
    own = _by_name([sample for sample in samples if sample.split == "calibration"])
    needed = 1 if own else 2
    if len(train) < needed:
        raise DataError(
            f"{len(train)} good training picture(s), but at least {needed} are needed, one of them to calibrate with: "
            "add good pictures (50 or more make a useful model)"
        )
    if own:
        return train, own
    n = len(train)
    n_calibration = min(max(round(share * n), min(minimum, n // 2)), n - 1)
    order = np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")
    drawn = set(order[:n_calibration].tolist())
    fit = [sample for i, sample in enumerate(train) if i not in drawn]
    return fit, [sample for i, sample in enumerate(train) if i in drawn]


def fingerprint(samples: Sequence[Sample], root: Path | str) -> str:
    """Hash a data set: 64 hexadecimal digits that change with any picture, mask, name, label or split.

    sha256 over the sorted lines of (path relative to `root`, split, defect type, and of the picture and its mask the
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
