"""Reader of the VisA layout.

split_csv/1cls.csv                               columns object, split, label, image, mask; paths from the root
<category>/Data/Images/{Normal,Anomaly}/000.JPG
<category>/Data/Masks/Anomaly/000.png            label ids: 0 is good, 1, 2, ... are kinds of defect

`split_csv/1cls.csv` is the data set's own split and labels: it is required, since a split made up here would give
metrics that cannot be compared. The root may be the folder with the csv, or one category's folder beside it. VisA
names several kinds of defect in one image, so every defective image has the type "anomaly".
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path, PurePosixPath

from cdo_ad.data.files import read_bytes, reason
from cdo_ad.data.labels import is_good
from cdo_ad.data.listing import subfolders
from cdo_ad.data.readers.pairing import child, choose
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
    """Tell whether the folder holds the split file or categories."""
    return os.path.lexists(folder / SPLIT_FILE) or any(is_category(sub) for sub in subfolders(folder))


def categories(root: Path) -> list[str]:
    """List the categories' names that the split file knows; none if `root` is one category's folder."""
    return [] if is_category(root) else sorted({row["object"] for row in _rows(root)})


def read(root: Path, category: str | None = None) -> list[Sample]:
    """Read one category: training images, then test, in the order of their paths.

    Raises:
        DataError: if the split file is missing or damaged, or names a file that is missing; or as to the category.
    """
    if is_category(root):
        base, own = root.resolve().parent, root.resolve().name
        if category is not None and category != own:
            raise DataError(f"{root}: holds the category {own!r}, not {category!r}: leave the category out")
        if not os.path.lexists(base / SPLIT_FILE):
            raise DataError(
                f"{root}: looked for VisA's own split in {base / SPLIT_FILE}: put split_csv/ of the VisA archive there"
            )
        rows = _rows(base)
        root = root.parent if root.name == own else base  # paths as the user wrote them where that is possible
        category = own
    else:
        rows = _rows(root)
    name = choose(root, category, sorted({row["object"] for row in rows}))
    samples = [_sample(root, row) for row in rows if row["object"] == name]
    return sorted(samples, key=lambda sample: (sample.split != "train", sample.path.as_posix()))


def _sample(root: Path, row: dict[str, str]) -> Sample:
    image = _existing(root, row["image"])
    good = is_good(row["label"])
    if row["split"] not in ("train", "test") or not (good or row["label"] == ANOMALY):
        raise DataError(
            f"{root / SPLIT_FILE}: {row['image']} has split {row['split']!r} and label {row['label']!r}; "
            "known are train, test and normal, anomaly: mend that line"
        )
    split: Split = "train" if row["split"] == "train" else "test"
    if good:
        return Sample(image, split, category=row["object"])
    if not row["mask"]:
        raise DataError(f"{image}: {root / SPLIT_FILE} names no mask for this anomaly: add it to that line")
    return Sample(image, split, ANOMALY, _existing(root, row["mask"]), row["object"])


def _existing(root: Path, name: str) -> Path:
    relative = PurePosixPath(name.replace("\\", "/"))
    if not name or relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{root / SPLIT_FILE}: names {name!r}, no file inside the data set's folder: mend that line")
    path = root / relative
    if not os.path.lexists(path):  # what is no readable file is named by whoever reads it
        raise DataError(f"{path}: named in {root / SPLIT_FILE} but missing: unpack the data set again")
    return path


def _rows(root: Path) -> list[dict[str, str]]:
    """Read the split file: one dictionary of `COLUMNS` an image, values stripped.

    Raises:
        DataError: if it is missing, no table of these columns, or names an image twice.
    """
    path = root / SPLIT_FILE
    if not os.path.lexists(path):
        raise DataError(f"{path}: VisA's own split is missing: put split_csv/ of the VisA archive there")
    try:
        text = read_bytes(path).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        rows = [{column: (row[column] or "").strip() for column in COLUMNS} for row in reader] if not missing else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}): unpack the VisA archive again") from error
    if missing:
        raise DataError(f"{path}: looked for the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    if not rows:
        raise DataError(f"{path}: names no images: unpack the VisA archive again")
    seen: set[str] = set()
    for row in rows:
        if row["image"] in seen:
            raise DataError(f"{path}: names {row['image']!r} twice: remove one of the lines")
        seen.add(row["image"])
    return rows
