"""List a data set that its reader refuses: all that can be told from folder names, and what has no partner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cdo_ad.data.labels import is_good, label_of
from cdo_ad.data.listing import is_folder, list_images
from cdo_ad.errors import DataError
from cdo_ad.types import GOOD, Sample

__all__ = ["LenientListing", "list_leniently"]

MASK_FOLDERS = ("ground_truth", "masks", "gt")
INNER = ("rgb", "images", "data")  # folders inside a type's folder that name nothing

Key = tuple[str, str]  # a mask belongs to the image of the same type, in lower case, and name


@dataclass(frozen=True, slots=True)
class LenientListing:
    """What was found, complete where a strict reader stops at the first mistake."""

    samples: list[Sample]
    orphan_images: list[Path]
    """Defect images without a mask, of types that have masks."""
    orphan_masks: list[Path]
    unlabelled: list[Path]
    """Images that lie where no label can be told."""
    trained_defects: list[Path]
    """Images below the training folder in a folder that is not of good ones; among the samples they are for test."""


def list_leniently(root: Path, category: str | None = None) -> LenientListing:
    """List images and masks by the names of their folders, whatever is wrong in the data set.

    Args:
        root: the data set's folder, of any layout.
        category: only what lies in this folder of `root`, where there is one.

    Raises:
        DataError: if the folder cannot be listed.
    """
    base = root / category if category and is_folder(root / category) else root
    samples: list[Sample] = []
    unlabelled: list[Path] = []
    trained_defects: list[Path] = []
    masks: dict[Key, Path] = {}
    for path in list_images(base, recursive=True):
        folders = path.relative_to(base).parts[:-1]
        mask_key = _mask_key(path, folders)
        if mask_key is not None:
            masks[mask_key] = path
            continue
        named = [name for name in folders if name.casefold() not in INNER]
        sample, in_training = _sample(path, named, category or "")
        if sample is None:
            unlabelled.append(path)
            continue
        samples.append(sample)
        if in_training and sample.anomalous:
            trained_defects.append(path)
    samples = [replace(sample, mask_path=masks.get(_key(sample))) if sample.anomalous else sample for sample in samples]
    return LenientListing(samples, *_orphans(samples, masks), unlabelled, trained_defects)


def _key(sample: Sample) -> Key:
    return sample.defect_type.casefold(), sample.path.stem


def _mask_key(path: Path, folders: Sequence[str]) -> Key | None:
    """The image that a mask belongs to; None of what is no mask."""
    at = next((i for i, name in enumerate(folders) if name.casefold() in MASK_FOLDERS), None)
    if at is None:
        return None
    after = [name for name in folders[at + 1 :] if name.casefold() not in INNER]
    kind = after[0] if after else folders[at - 1] if at else ""
    return kind.casefold(), path.stem.removesuffix("_mask")


def _sample(path: Path, folders: Sequence[str], category: str) -> tuple[Sample | None, bool]:
    """The sample that the folders' names make of an image, None where they do not say; whether it lies in train/."""
    words = [name.casefold() for name in folders]
    for split in ("train", "validation", "test"):
        if split in words:
            below = folders[words.index(split) + 1 :]
            break
    else:
        split, below = "", folders[-1:]
    label = _label(below[0]) if below else None if split == "test" else GOOD
    if label is None:
        return None, False
    if split == "validation" and label == GOOD:
        return Sample(path, "calibration", category=category), False
    good_to_train_on = split != "test" and label == GOOD
    return Sample(path, "train" if good_to_train_on else "test", label, category=category), split == "train"


def _label(name: str) -> str | None:
    try:
        return label_of(Path(name))
    except DataError:
        return None


def _orphans(samples: Sequence[Sample], masks: dict[Key, Path]) -> tuple[list[Path], list[Path]]:
    """Defect images without a mask where others of their type have one, and masks without an image."""
    defects = [sample for sample in samples if sample.anomalous]
    keys, masked_types = {_key(sample) for sample in defects}, {kind for kind, _ in masks}
    images = [s.path for s in defects if s.mask_path is None and s.defect_type.casefold() in masked_types]
    return images, [mask for key, mask in masks.items() if key not in keys and not is_good(key[0])]
