"""One door to all readers: which layout a folder has, which categories it holds, and its samples."""

from __future__ import annotations

import warnings
from pathlib import Path

from cdo_ad.data.listing import holds_images, require_folder, subfolders
from cdo_ad.data.readers import folder, mvtec, mvtec3d, visa
from cdo_ad.data.readers.notices import Notice, notices
from cdo_ad.data.readers.pairing import child, no_images
from cdo_ad.errors import CdoWarning, ConfigError, DataError
from cdo_ad.types import Sample

__all__ = ["LAYOUTS", "detect_layout", "list_categories", "read_categories", "read_dataset", "read_with_notices"]

LAYOUTS = ("auto", "folder", "mvtec", "mvtec3d", "visa")
"""The names that `--layout` takes; each but `auto` is a reader module of this package."""

_READERS = {
    "folder": (folder.read, folder.categories),
    "mvtec": (mvtec.read, mvtec.categories),
    "mvtec3d": (mvtec3d.read, mvtec3d.categories),
    "visa": (visa.read, visa.categories),
}


def read_dataset(root: Path | str, layout: str = "auto", category: str | None = None) -> list[Sample]:
    """Read a data set's list of images; the images themselves are not opened.

    Args:
        root: the data set's folder: one category's, or that of several categories.
        layout: one of `LAYOUTS`.
        category: the category; may be left out where there is only one.

    Returns:
        The samples in a fixed order: training, calibration, test by type, each sorted by name. Labels are the data
        set's own; good images have no mask.

    Raises:
        ConfigError: if the layout is unknown.
        DataError: if the folder is missing, empty or unreadable, is not of that layout, a category must be chosen, a
            folder's name does not say whether its images are good, or a mask or an image has no partner.

    Warns:
        CdoWarning: of files that are passed over or not used, and of folders whose names were taken to mean good.
    """
    samples, found = read_with_notices(root, layout, category)
    for notice in found:
        warnings.warn(notice.text, CdoWarning, stacklevel=2)
    return samples


def read_with_notices(
    root: Path | str, layout: str = "auto", category: str | None = None
) -> tuple[list[Sample], list[Notice]]:
    """`read_dataset`, and what it would warn of.

    Raises:
        ConfigError, DataError: as `read_dataset`.
    """
    root = Path(root)
    layout = _resolve(root, layout)
    read, _ = _READERS[layout]
    samples = read(root, category)
    return samples, notices(root, category, samples, labels_from_folders=layout != "visa")


def read_categories(root: Path | str, layout: str = "auto") -> list[list[Sample]]:
    """The samples of every category of a data set, as `read_dataset` gives them, in the order of `list_categories`.

    Raises:
        ConfigError, DataError: as `read_dataset`; DataError also where `root` is one category's folder.
    """
    names = list_categories(root, layout)
    if not names:
        raise DataError(
            f"{root}: holds one category only: give the folder that holds the folders of several categories"
        )
    return [read_dataset(root, layout, name) for name in names]


def list_categories(root: Path | str, layout: str = "auto") -> list[str]:
    """List the categories of a data set, sorted; empty where `root` is one category's folder.

    Raises:
        ConfigError: if the layout is unknown.
        DataError: if the folder is missing, or its layout is not recognised.
    """
    root = Path(root)
    _, categories = _READERS[_resolve(root, layout)]
    return categories(root)


def detect_layout(root: Path | str) -> str:
    """Recognise the layout of a folder by the folders inside it.

    The first that fits: `visa` (split_csv/1cls.csv or Data/Images), `mvtec3d` (train/good/rgb), `mvtec` (train/good,
    and no folder `masks` beside it), `folder` (images, good/, train/ or test/); each in `root` or in the folders
    in it.

    Raises:
        DataError: if the folder is missing or none fits.
    """
    root = Path(root)
    require_folder(root)
    if visa.is_category(root) or visa.is_root(root):
        return "visa"
    if mvtec3d.is_category(root) or mvtec3d.categories(root):
        return "mvtec3d"
    categories = [root] if mvtec.is_category(root) else [root / name for name in mvtec.categories(root)]
    if categories:
        return "folder" if any(child(one, "masks") is not None for one in categories) else "mvtec"
    if folder.is_category(root) or folder.categories(root) or any(holds_images(sub) for sub in subfolders(root)):
        return "folder"
    raise no_images(root, f"looked for {folder.WANTED}, and for the layouts of MVTec AD and VisA")


def _resolve(root: Path, layout: str) -> str:
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    require_folder(root)
    return detect_layout(root) if layout == "auto" else layout
