"""Reader of the VisA layout.

split_csv/1cls.csv                               columns object, split, label, image, mask; paths from the root
<category>/Data/Images/{Normal,Anomaly}/000.JPG
<category>/Data/Masks/Anomaly/000.png            label ids: 0 is good, 1, 2, ... are kinds of defect

`split_csv/1cls.csv` is the data set's own split and labels: it is required, since a split made up here would give
figures that cannot be compared. The root may be the folder with the csv, or one product's folder beside it. VisA
names several kinds of defect in one image, so every defective image has the type "anomaly".
"""

from __future__ import annotations

import csv
from pathlib import Path

from cdo_ad.data.readers.pairing import child, choose, subfolders
from cdo_ad.errors import DataError
from cdo_ad.types import Sample, Split

__all__ = ["categories", "is_category", "is_root", "read"]

ANOMALY = "anomaly"
SPLIT_FILE = Path("split_csv") / "1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")


def is_category(folder: Path) -> bool:
    """Tell whether the folder holds Data/Images."""
    data = child(folder, "Data")
    return data is not None and child(data, "Images") is not None


def is_root(folder: Path) -> bool:
    """Tell whether the folder holds the split file or products."""
    return (folder / SPLIT_FILE).is_file() or any(is_category(sub) for sub in subfolders(folder))


def categories(root: Path) -> list[str]:
    """List the products' names that the split file knows; none if `root` is one product's folder."""
    return [] if is_category(root) else sorted({row["object"] for row in _rows(root)})


def read(root: Path, category: str | None = None) -> list[Sample]:
    """Read one product: training images, then test, in the order of their paths.

    Raises:
        DataError: if the split file is missing or damaged, or names a file that is missing; or as to the category.
    """
    if is_category(root):
        base, product = root.resolve().parent, root.resolve().name
        if category is not None and category != product:
            raise DataError(f"{root}: holds the product {product!r}, not {category!r}: leave the category out")
        if not (base / SPLIT_FILE).is_file():
            raise DataError(
                f"{root}: looked for VisA's own split in {base / SPLIT_FILE}: put split_csv/ of the VisA archive there"
            )
        rows = _rows(base)
        root = root.parent if root.name == product else base  # paths as the user wrote them where that is possible
        category = product
    else:
        rows = _rows(root)
    name = choose(root, category, sorted({row["object"] for row in rows}))
    samples = [_sample(root, row) for row in rows if row["object"] == name]
    return sorted(samples, key=lambda sample: (sample.split != "train", sample.path.as_posix()))


def _sample(root: Path, row: dict[str, str]) -> Sample:
    image = _existing(root, row["image"])
    if row["split"] not in ("train", "test") or row["label"] not in ("normal", ANOMALY):
        raise DataError(
            f"{root / SPLIT_FILE}: {row['image']} has split {row['split']!r} and label {row['label']!r}; "
            "known are train, test and normal, anomaly: mend that line"
        )
    split: Split = "train" if row["split"] == "train" else "test"
    if row["label"] == "normal":
        return Sample(image, split, category=row["object"])
    if not row["mask"]:
        raise DataError(f"{image}: {root / SPLIT_FILE} names no mask for this anomaly: add it to that line")
    return Sample(image, split, ANOMALY, _existing(root, row["mask"]), row["object"])


def _existing(root: Path, name: str) -> Path:
    path = root / name.replace("\\", "/")
    if not path.is_file():
        raise DataError(f"{path}: named in {root / SPLIT_FILE} but missing: unpack the data set again")
    return path


def _rows(root: Path) -> list[dict[str, str]]:
    """Read the split file: one dictionary of `COLUMNS` an image, values stripped."""
    path = root / SPLIT_FILE
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: VisA's own split is missing: put split_csv/ of the VisA archive there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}): unpack the VisA archive again") from error
    reader = csv.DictReader(text.splitlines())
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
    if missing:
        raise DataError(f"{path}: looked for the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    rows = [{column: (row[column] or "").strip() for column in COLUMNS} for row in reader]
    if not rows:
        raise DataError(f"{path}: names no images: unpack the VisA archive again")
    return rows
