"""Reader of the MVTec 3D-AD layout, one category or a folder of categories.

<category>/train/good/rgb/000.png
<category>/validation/good/rgb/000.png           good images for calibration
<category>/test/<type>/rgb/000.png  gt/000.png   masks; those of good images are all zero and not used

The point cloud of rgb/000.png is xyz/000.tiff beside it, where there is one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cdo_ad.data.labels import is_good, label_of
from cdo_ad.data.listing import subfolders
from cdo_ad.data.readers.mvtec import refuse_defects
from cdo_ad.data.readers.pairing import category_folders, child, find_category, good_folder, no_images, samples_of
from cdo_ad.data.surface import find_xyz
from cdo_ad.errors import DataError
from cdo_ad.types import Sample, Split

__all__ = ["categories", "is_category", "read"]

WANTED = "train/good/rgb/ with images and test/<type>/{rgb,gt}/, or folders of categories with these inside"


def is_category(folder: Path) -> bool:
    """Tell whether the folder holds train/good/rgb."""
    return _good_rgb(folder, "train") is not None


def categories(root: Path) -> list[str]:
    """List the categories' names; none if `root` is one category's folder."""
    return [folder.name for folder in category_folders(root, is_category)]


def read(root: Path, category: str | None = None) -> list[Sample]:
    """Read the data set: training images, then calibration, then test by type; each sorted by name.

    Raises:
        DataError: if the folders are not there, the training folder is empty, or a mask or an image has no partner.
    """
    folder, name = find_category(root, category, is_category, WANTED)
    samples: list[Sample] = []
    splits: tuple[tuple[Split, str], ...] = (("train", "train"), ("calibration", "validation"))
    for split, sub in splits:
        rgb = _good_rgb(folder, sub)
        if rgb is not None:
            _refuse_rgb_defects(rgb.parent.parent)
            samples += samples_of(rgb, split, category=name)
    if not any(sample.split == "train" for sample in samples):
        raise no_images(_good_rgb(folder, "train") or folder, "put good images there")
    good_folder(folder / "test")  # refuses several
    for kind in subfolders(folder / "test"):
        rgb = child(kind, "rgb")
        if rgb is None:
            raise DataError(f"{kind}: looked for rgb/ in it: add its images or remove the folder")
        samples += samples_of(rgb, "test", label_of(kind), child(kind, "gt"), name)
    return [replace(sample, xyz_path=find_xyz(sample.path)) for sample in samples]


def _good_rgb(folder: Path, sub: str) -> Path | None:
    parent = child(folder, sub)
    good = good_folder(parent) if parent is not None else None
    return child(good, "rgb") if good is not None else None


def _refuse_rgb_defects(split: Path) -> None:
    refuse_defects(split)
    for kind in subfolders(split):
        if not is_good(kind.name) and child(kind, "rgb") is not None:
            raise DataError(f"{kind}: only good images are trained on: move it to {split.parent / 'test' / kind.name}")
