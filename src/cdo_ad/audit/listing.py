"""List a data set that its reader refuses: everything that can be told from folder names, and what has no partner."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cdo_ad.data.decode import list_images
from cdo_ad.types import GOOD, Sample

__all__ = ["Listing", "list_leniently"]

MASK_FOLDERS = ("ground_truth", "masks", "gt")
INNER = ("rgb", "images", "data")  # folders inside a type's folder that name nothing


@dataclass
class Listing:
    """What was found, complete where a strict reader stops at the first mistake."""

    samples: list[Sample] = field(default_factory=list)
    orphan_images: list[Path] = field(default_factory=list)
    """Defect images without a mask, of types that have masks."""
    orphan_masks: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    """Images that lie where no label can be told."""
    trained_defects: list[Path] = field(default_factory=list)
    """Images below the training folder in a folder that is not `good`."""


def list_leniently(root: Path, category: str | None = None) -> Listing:
    """List images and masks by the names of their folders; never raises for what is wrong in the data set.

    Args:
        root: the data set's folder, of any layout.
        category: only what lies in this folder of `root`, where there is one.
    """
    base = root / category if category and (root / category).is_dir() else root
    listing = Listing()
    images: dict[tuple[str, str], Path] = {}
    masks: dict[tuple[str, str], Path] = {}
    for path in list_images(base, recursive=True):
        folders = [part.casefold() for part in path.relative_to(base).parts[:-1]]
        names = path.relative_to(base).parts[:-1]
        mask_at = next((i for i, part in enumerate(folders) if part in MASK_FOLDERS), None)
        if mask_at is not None:
            after = [name for name in names[mask_at + 1 :] if name.casefold() not in INNER]
            kind = after[0] if after else names[mask_at - 1] if mask_at else ""
            masks[kind.casefold(), path.stem.removesuffix("_mask")] = path
            continue
        sample = _sample(path, [n for n in names if n.casefold() not in INNER], listing, category or "")
        if sample is not None:
            listing.samples.append(sample)
            if sample.anomalous:
                images[sample.defect_type.casefold(), path.stem] = path
    _pair(listing, images, masks)
    return listing


def _sample(path: Path, names: list[str], listing: Listing, category: str) -> Sample | None:
    words = [name.casefold() for name in names]
    if "train" in words:
        kind = names[words.index("train") + 1 :]
        if kind and kind[0].casefold() != GOOD:
            listing.trained_defects.append(path)
            return Sample(path, "test", kind[0], category=category)
        return Sample(path, "train", category=category)
    if "validation" in words:
        return Sample(path, "calibration", category=category)
    if "test" in words:
        kind = names[words.index("test") + 1 :]
        if not kind:
            listing.unlabelled.append(path)
            return None
        return Sample(path, "test", GOOD if kind[0].casefold() == GOOD else kind[0], category=category)
    if not names or words[-1] in (GOOD, "normal"):
        return Sample(path, "train", category=category)
    return Sample(path, "test", names[-1], category=category)


def _pair(listing: Listing, images: dict[tuple[str, str], Path], masks: dict[tuple[str, str], Path]) -> None:
    listing.orphan_masks = [mask for key, mask in masks.items() if key not in images and key[0] not in (GOOD, "normal")]
    masked_types = {kind for kind, _ in masks}
    by_path = {path: key for key, path in images.items()}
    paired = []
    for sample in listing.samples:
        key = by_path.get(sample.path)
        mask = masks.get(key) if key is not None else None
        if key is not None and mask is None and key[0] in masked_types:
            listing.orphan_images.append(sample.path)
        paired.append(Sample(sample.path, sample.split, sample.defect_type, mask, sample.category))
    listing.samples = paired
