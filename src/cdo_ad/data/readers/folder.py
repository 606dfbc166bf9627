"""Reader of plain folders, for users who have images and no data-set layout. One category, or a folder of categories.

    *.jpg                                  images alone: all are good, all are for training
    good/*.jpg                             the same
    good/*.jpg  <type>/*.jpg               good: all for training; every other folder: a defect type, for test
    train/good/  test/good/  test/<type>/  as MVTec AD; train/ may also hold its images directly, or be good/
    masks/<type>/ or ground_truth/<type>/  masks of any of these, optional, named as in MVTec AD

So with `good/` beside defect folders no good image is left for test except those held out for calibration: to
measure false alarms on images of their own, use test/good/.
"""

from __future__ import annotations

from pathlib import Path

from cdo_ad.data.labels import is_good, label_of
from cdo_ad.data.listing import holds_images, subfolders
from cdo_ad.data.readers.mvtec import read_test, refuse_defects
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

__all__ = ["categories", "is_category", "read"]

MASK_ROOTS = ("ground_truth", "masks")
WANTED = (
    "images (.jpg .png .tif .bmp and others), or good/ with images, or train/good/ and test/<type>/, "
    "or folders of categories with these inside"
)


def is_category(folder: Path) -> bool:
    """Tell whether the folder holds good/, train/ or test/, or images."""
    return _is_structured(folder) or holds_images(folder)


def categories(root: Path) -> list[str]:
    """List the categories' names; none if `root` is one category's folder."""
    return [folder.name for folder in category_folders(root, _is_structured)]


def read(root: Path, category: str | None = None) -> list[Sample]:
    """Read the data set: training images, then test by type; each sorted by name.

    Raises:
        DataError: if there are no images, if a training folder holds defects, if it is not clear which images are
            good, or if a mask or an image has no partner.
    """
    folder, name = _category(root, category)
    good, loose = _training_folder(folder), images_of(folder)
    if good is not None and loose:
        raise DataError(f"{loose[0]}: an image outside the folders has no label: move it to {good}")
    if good is not None and not images_of(good):
        raise no_images(good, "put good images there")
    test = child(folder, "test")
    masks = next((found for root_name in MASK_ROOTS if (found := child(folder, root_name)) is not None), None)
    if good is None and test is None:
        samples = _loose(folder, loose, name)
    else:
        samples = samples_of(good, "train", category=name) if good is not None else []
        samples += read_test(test, masks, name) if test is not None else _siblings(folder, masks, name)
    if not samples:
        raise no_images(folder, f"looked for {WANTED}")
    return samples


def _is_structured(folder: Path) -> bool:
    """Tell whether the folder has a category's folders; images alone do not make it one of several categories."""
    return good_folder(folder) is not None or any(child(folder, name) is not None for name in ("train", "test"))


def _category(root: Path, category: str | None) -> tuple[Path, str]:
    """Find the category's folder and name; a folder that is none is given back as it is, for `read` to judge."""
    if category is None and not categories(root):
        return root, ""
    if is_category(root) and category == root.resolve().name:
        return root, ""
    return find_category(root, category, _is_structured, WANTED)


def _training_folder(folder: Path) -> Path | None:
    """Find the folder whose images are the good ones to train on: train/good, train or good."""
    train = child(folder, "train")
    if train is None:
        return good_folder(folder)
    refuse_defects(train)
    return good_folder(train) or train


def _siblings(folder: Path, masks: Path | None, category: str) -> list[Sample]:
    """Read the defect folders beside good/ or train/; folders without images are passed over."""
    taken = {"train", *MASK_ROOTS}
    others = [sub for sub in subfolders(folder) if sub.name.casefold() not in taken and not is_good(sub.name)]
    types = {label_of(sub): sub for sub in others if holds_images(sub)}
    found = mask_folders(masks, list(types))
    return [
        sample for name, sub in types.items() for sample in samples_of(sub, "test", name, found.get(name), category)
    ]


def _loose(folder: Path, images: list[Path], category: str) -> list[Sample]:
    """Read images alone: all good, all for training."""
    unclear = [sub.name for sub in subfolders(folder) if holds_images(sub)]
    if unclear:
        raise DataError(
            f"{folder}: it is not clear which images are good, those here or those in {', '.join(unclear)}: "
            f"put the good ones in {folder / GOOD}"
            if images
            else f"{folder}: holds folders of images ({', '.join(unclear)}) but none named good: name the good ones' "
            "folder good, or give that folder itself"
        )
    return [Sample(path, "train", category=category) for path in images]
