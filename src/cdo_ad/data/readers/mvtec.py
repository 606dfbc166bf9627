"""Reader of the MVTec AD layout, one category or a folder of categories.

Folders of good images may have any of the names in `cdo_ad.data.labels`.

<category>/train/good/000.png
<category>/validation/good/000.png               optional: good images set aside for calibration
<category>/test/good/000.png                     good images to test with
<category>/test/<type>/000.png                   one folder for each defect type
<category>/ground_truth/<type>/000_mask.png      masks, also 000.png; a type without a folder has no masks
"""

from __future__ import annotations

from pathlib import Path

from cdo_ad.data.labels import is_good, label_of
from cdo_ad.data.listing import holds_images, subfolders
from cdo_ad.data.readers.pairing import (
    category_folders,
    child,
    find_category,
    good_folder,
    images_of,
    mask_folders,
    no_images,
    samples_of,
)
from cdo_ad.errors import DataError
from cdo_ad.types import GOOD, Sample

__all__ = ["categories", "is_category", "read", "read_test", "refuse_defects"]

WANTED = "train/good/ with images, test/<type>/ and ground_truth/<type>/, or folders of categories with these inside"


def is_category(folder: Path) -> bool:
    """Tell whether the folder holds train/good."""
    train = child(folder, "train")
    return train is not None and good_folder(train) is not None


def categories(root: Path) -> list[str]:
    """List the categories' names; none if `root` is one category's folder."""
    return [folder.name for folder in category_folders(root, is_category)]


def read(root: Path, category: str | None = None) -> list[Sample]:
    """Read the data set: training images, then calibration, then test by type; each sorted by name.

    Raises:
        DataError: if the folders are not there, the training folder is empty or holds defects, or a mask or a
            image has no partner.
    """
    folder, name = find_category(root, category, is_category, WANTED)
    samples = []
    for split, sub in (("train", "train"), ("calibration", "validation")):
        parent = child(folder, sub)
        good = good_folder(parent) if parent is not None else None
        if parent is None or good is None:
            continue
        refuse_defects(parent)
        samples += samples_of(good, "train" if split == "train" else "calibration", category=name)
    if not any(sample.split == "train" for sample in samples):
        raise no_images(good_folder(folder / "train") or folder, "put good images there")
    test = child(folder, "test")
    return samples + (read_test(test, child(folder, "ground_truth"), name) if test is not None else [])


def read_test(test: Path, masks: Path | None, category: str) -> list[Sample]:
    """Read test/<type>/ and the masks of each type.

    Args:
        test: the folder of the types' folders.
        masks: the folder of the types' mask folders, or None.
        category: the category's name.
    """
    good_folder(test)  # refuses several
    types = {label_of(sub): sub for sub in subfolders(test) if holds_images(sub)}
    if loose := images_of(test):
        raise DataError(
            f"{loose[0]}: a test image outside a type's folder has no label: move it to {test / GOOD} or to a folder "
            "named for its defect"
        )
    found = mask_folders(masks, list(types))
    return [
        sample for name, sub in types.items() for sample in samples_of(sub, "test", name, found.get(name), category)
    ]


def refuse_defects(train: Path) -> None:
    """Raise `DataError` if a folder of training images holds a folder of images that is not good, or loose ones too."""
    good = good_folder(train)
    if good is not None and (loose := images_of(train)):
        raise DataError(f"{loose[0]}: an image outside the folder of good images is not used: move it to {good}")
    for sub in subfolders(train):
        if not is_good(sub.name) and holds_images(sub):
            label_of(sub)
            raise DataError(f"{sub}: only good images are trained on: move it to {train.parent / 'test' / sub.name}")
