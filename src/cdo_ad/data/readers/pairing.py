"""What all readers share: folders by name, images of a folder, masks paired with images by name, categories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cdo_ad.data.labels import is_good
from cdo_ad.data.listing import list_folder, list_images, subfolders
from cdo_ad.errors import DataError
from cdo_ad.types import GOOD, Sample, Split

__all__ = [
    "category_folders",
    "child",
    "choose",
    "find_category",
    "good_folder",
    "images_of",
    "mask_folders",
    "no_images",
    "pair_masks",
    "samples_of",
]


def child(folder: Path, name: str) -> Path | None:
    """Find the folder `name` inside `folder`, in any letter case; None if there is none.

    Raises:
        DataError: if there are several, which differ in letter case only.
    """
    return _only([sub for sub in subfolders(folder) if sub.name.casefold() == name.casefold()])


def good_folder(folder: Path) -> Path | None:
    """Find the folder of good images inside `folder`, by any name in `cdo_ad.data.labels`; None if there is none.

    Raises:
        DataError: if there are several.
    """
    return _only([sub for sub in subfolders(folder) if is_good(sub.name)])


def _only(found: Sequence[Path]) -> Path | None:
    if len(found) > 1:
        raise DataError(f"{found[0]}: {found[1].name} beside it has the same meaning: put all images into one of them")
    return found[0] if found else None


def images_of(folder: Path) -> list[Path]:
    """List the images of a folder, sorted by name; two of the same stem are refused.

    Raises:
        DataError: if two images differ only in their ending, so that a mask's name would fit both.
    """
    images = list_images(folder)
    by_stem: dict[str, Path] = {}
    for path in images:
        if path.stem in by_stem:
            raise DataError(
                f"{path}: {by_stem[path.stem].name} beside it has the same name but for the ending, so a mask or a "
                "result could belong to either: remove or rename one"
            )
        by_stem[path.stem] = path
    return images


def no_images(folder: Path, remedy: str) -> DataError:
    """The error for a folder that holds no images; it names the first of the files there that were passed over."""
    listing = list_folder(folder, recursive=True)
    text = f"{folder}: holds no images: {remedy}"
    if listing.unread:
        text += f" ({len(listing.unread)} file(s) passed over; {next(iter(listing.unread.values()))})"
    elif listing.own:
        text += f" (only {len(listing.own)} overlays or maps that cdo-ad wrote)"
    return DataError(text)


def pair_masks(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Pair images with masks by name: the mask of `007.jpg` is `007_mask.png` or `007.png`, of any image ending.

    Raises:
        DataError: if an image has no mask, a mask has no image, or two masks fit one image; names the file.
    """
    stems = {image.stem: image for image in images}
    pairs: dict[Path, Path] = {}
    for mask in images_of(folder):
        image = stems.get(mask.stem.removesuffix("_mask")) or stems.get(mask.stem)
        if image is None:
            raise DataError(f"{mask}: no image belongs to this mask: add the image or remove the mask")
        if image in pairs:
            raise DataError(f"{mask}: {pairs[image].name} beside it is a mask of the same image: remove one of them")
        pairs[image] = mask
    for image in images:
        if image not in pairs:
            raise DataError(
                f"{image}: no mask belongs to this image: looked for {image.stem}_mask.png and "
                f"{image.stem}.png (any image ending) in {folder}: add it, or remove that folder to do without"
            )
    return pairs


def samples_of(
    images: Path, split: Split, defect_type: str = GOOD, masks: Path | None = None, category: str = ""
) -> list[Sample]:
    """Make the samples of one folder of images; masks of good images are not used.

    Args:
        images: the folder.
        split: of all of them.
        defect_type: of all of them.
        masks: the folder of their masks; None where there are none.
        category: the category.

    Raises:
        DataError: as `images_of` and `pair_masks`.
    """
    paths = images_of(images)
    pairs = pair_masks(paths, masks) if masks is not None and defect_type != GOOD else {}
    return [Sample(path, split, defect_type, pairs.get(path), category) for path in paths]


def mask_folders(masks: Path | None, types: Sequence[str]) -> dict[str, Path]:
    """Find the mask folder of each defect type.

    Args:
        masks: the folder that holds one folder of masks for each type; None where there are no masks.
        types: the defect types that have images.

    Raises:
        DataError: if there are masks of a type that has no images.
    """
    found = {folder.name: folder for folder in subfolders(masks)} if masks is not None else {}
    for name, folder in found.items():
        if name not in types and not is_good(name) and (orphans := list_images(folder)):
            raise DataError(
                f"{orphans[0]}: masks of {name!r}, but no test folder of that name holds images: "
                "add the images or remove the masks"
            )
    return found


def category_folders(root: Path, is_category: Callable[[Path], bool]) -> list[Path]:
    """List the folders inside `root` that are categories of their own; none if `root` is a category itself."""
    return [] if is_category(root) else [folder for folder in subfolders(root) if is_category(folder)]


def find_category(
    root: Path, category: str | None, is_category: Callable[[Path], bool], wanted: str
) -> tuple[Path, str]:
    """Find the category's folder in a data set that holds one category or several.

    Args:
        root: the category's folder, or the folder of the categories' folders.
        category: which one; may be None where there is only one.
        is_category: tells a category's folder by what is in it.
        wanted: what a category's folder holds, for the error message.

    Returns:
        The folder, and the category's name: "" if `root` is the category's folder itself.

    Raises:
        DataError: if there is none, or several and `category` names none of them.
    """
    if is_category(root):
        if category is not None and category != root.resolve().name:
            raise DataError(f"{root}: holds one category only, so there is no category {category!r}: leave it out")
        return root, ""
    names = [folder.name for folder in category_folders(root, is_category)]
    if not names:
        raise DataError(f"{root}: found no data here; looked for {wanted}")
    return (root / choose(root, category, names)), choose(root, category, names)


def choose(root: Path, category: str | None, names: Sequence[str]) -> str:
    """Pick `category` out of the categories of a data set; the only one where `category` is None.

    Raises:
        DataError: if `category` is not among them, or is None and there are several; lists them.
    """
    if category in names:
        return str(category)
    if category is None and len(names) == 1:
        return names[0]
    problem = "holds several categories" if category is None else f"has no category {category!r}"
    raise DataError(f"{root}: {problem}: choose one of {', '.join(names)}")
