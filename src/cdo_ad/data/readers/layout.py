"""One door to all readers: which layout a folder has, which categories it holds, and its samples."""

from __future__ import annotations

from pathlib import Path

from cdo_ad.data.readers import folder, mvtec, mvtec3d, visa
from cdo_ad.data.readers.pairing import child, images_of, subfolders
from cdo_ad.errors import ConfigError, DataError
from cdo_ad.types import Sample

__all__ = ["LAYOUTS", "detect_layout", "list_categories", "read_categories", "read_dataset"]

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
        root: the data set's folder: one product's, or that of several products.
        layout: one of `LAYOUTS`.
        category: the product; may be left out where there is only one.

    Returns:
        The samples in a fixed order: training, calibration, test by type, each sorted by name. Labels are the data
        set's own; good images have no mask.

    Raises:
        ConfigError: if the layout is unknown.
        DataError: if the folder is missing or empty, is not of that layout, a category must be chosen, or a mask or a
            image has no partner.
    """
    root = Path(root)
    read, _ = _READERS[_resolve(root, layout)]
    return read(root, category)


def read_categories(root: Path | str, layout: str = "auto") -> list[list[Sample]]:
    """The samples of every product of a data set, as `read_dataset` gives them, in the order of `list_categories`.

    Raises:
        ConfigError, DataError: as `read_dataset`; DataError also where `root` is one product's folder.
    """
    names = list_categories(root, layout)
    if not names:
        raise DataError(f"{root}: holds one product only: give the folder that holds the folders of several products")
    return [read_dataset(root, layout, name) for name in names]


def list_categories(root: Path | str, layout: str = "auto") -> list[str]:
    """List the products of a data set, sorted; empty where `root` is one product's folder.

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
    _must_be_folder(root)
    if visa.is_category(root) or visa.is_root(root):
        return "visa"
    if mvtec3d.is_category(root) or mvtec3d.categories(root):
        return "mvtec3d"
    products = [root] if mvtec.is_category(root) else [root / name for name in mvtec.categories(root)]
    if products:
        return "folder" if any(child(product, "masks") is not None for product in products) else "mvtec"
    if folder.is_category(root) or folder.categories(root) or any(images_of(sub) for sub in subfolders(root)):
        return "folder"
    raise DataError(f"{root}: found no data here; looked for {folder.WANTED}, and for the layouts of MVTec AD and VisA")


def _resolve(root: Path, layout: str) -> str:
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    _must_be_folder(root)
    return detect_layout(root) if layout == "auto" else layout


def _must_be_folder(root: Path) -> None:
    if not root.exists():
        raise DataError(f"{root}: there is no such folder: check the path")
    if not root.is_dir():
        raise DataError(f"{root}: is a file, not a data set's folder: give the folder that holds the images")
