"""The readers: what each layout gives, and what each refuses."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cdo_ad.data import LAYOUTS, detect_layout, list_categories, read_dataset, read_image, read_mask
from cdo_ad.data.labels import label_of
from cdo_ad.data.marks import write_png
from cdo_ad.errors import CdoWarning, ConfigError, DataError
from cdo_ad.types import Sample
from fakes import make_folder, make_image, make_mvtec, make_mvtec3d, make_visa, write

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "magnetic_tile"


def counts(samples: list[Sample]) -> dict[tuple[str, str, bool], int]:
    """How many samples of each (split, defect type, has a mask)."""
    return dict(Counter((sample.split, sample.defect_type, sample.mask_path is not None) for sample in samples))


def image_at(path: Path) -> Path:
    return write(path, make_image(0)[0])


def replace_folder(root: Path, old: str, new: str) -> Path:
    """Move root/old to root/new and remove the folder it leaves empty."""
    shutil.move(root / old, root / (new + " moving"))
    if (root / old).parent != root:
        (root / old).parent.rmdir()
    return (root / (new + " moving")).rename(root / new)


MVTEC = {
    ("train", "good", False): 8,
    ("test", "good", False): 3,
    ("test", "scratch", True): 3,
    ("test", "spot", True): 3,
}
GOOD_AND_TYPES = {("train", "good", False): 8, ("test", "scratch", False): 3, ("test", "spot", False): 3}
WITH_MASKS = {("train", "good", False): 8, ("test", "scratch", True): 3, ("test", "spot", True): 3}
READS: list[tuple[str, Callable[[Path], object], str, dict[tuple[str, str, bool], int]]] = [
    ("mvtec", make_mvtec, "mvtec", MVTEC),
    ("mvtec, in a parent", lambda root: make_mvtec(root / "bottle"), "mvtec", MVTEC),
    (
        "mvtec, one type without masks",
        lambda root: shutil.rmtree(make_mvtec(root) / "ground_truth" / "spot"),
        "mvtec",
        {**{key: n for key, n in MVTEC.items() if key[1] != "spot"}, ("test", "spot", False): 3},
    ),
    (
        "mvtec, no test",
        lambda root: [shutil.rmtree(make_mvtec(root) / "test"), shutil.rmtree(root / "ground_truth")],
        "mvtec",
        {("train", "good", False): 8},
    ),
    ("mvtec, masks/", lambda root: replace_folder(make_mvtec(root), "ground_truth", "masks"), "folder", MVTEC),
    (
        "mvtec3d",
        make_mvtec3d,
        "mvtec3d",
        {
            ("train", "good", False): 6,
            ("calibration", "good", False): 3,
            ("test", "good", False): 2,
            ("test", "scratch", True): 2,
            ("test", "spot", True): 2,
        },
    ),
    (
        "visa",
        make_visa,
        "visa",
        {("train", "good", False): 6, ("test", "good", False): 2, ("test", "anomaly", True): 3},
    ),
    ("good and types", make_folder, "folder", GOOD_AND_TYPES),
    ("good and types, Good", lambda root: replace_folder(make_folder(root), "good", "Good"), "folder", GOOD_AND_TYPES),
    ("good and types, upper-case endings", lambda root: make_folder(root, ending=".JPG"), "folder", GOOD_AND_TYPES),
    ("good, types, masks", lambda root: make_folder(root, masks=True), "folder", WITH_MASKS),
    (
        "good, types, ground_truth",
        lambda root: replace_folder(make_folder(root, masks=True), "masks", "ground_truth"),
        "folder",
        WITH_MASKS,
    ),
    ("good alone", lambda root: make_folder(root, defective=0), "folder", {("train", "good", False): 8}),
    ("two images", lambda root: make_folder(root, good=2, defective=0), "folder", {("train", "good", False): 2}),
    (
        "images alone",
        lambda root: [image_at(root / name) for name in ("a.png", "b.JPG", "c.tif")],
        "folder",
        {("train", "good", False): 3},
    ),
    (
        "train/ with images, test/ by type",
        lambda root: (replace_folder(make_mvtec(root), "train/good", "t"), replace_folder(root, "t", "train")),
        "folder",
        MVTEC,
    ),
    ("good/ and test/", lambda root: replace_folder(make_mvtec(root), "train/good", "good"), "folder", MVTEC),
    (
        "test/ alone",
        lambda root: shutil.rmtree(make_mvtec(root) / "train"),
        "folder",
        {key: n for key, n in MVTEC.items() if key[0] == "test"},
    ),
    (
        "a folder without images is passed over",
        lambda root: (make_folder(root) / "notes").mkdir(),
        "folder",
        GOOD_AND_TYPES,
    ),
]


@pytest.mark.parametrize(("make", "layout", "expected"), [row[1:] for row in READS], ids=[row[0] for row in READS])
def test_reads(
    tmp_path: Path, make: Callable[[Path], object], layout: str, expected: dict[tuple[str, str, bool], int]
) -> None:
    make(tmp_path)
    assert detect_layout(tmp_path) == layout
    samples = read_dataset(tmp_path)
    assert counts(samples) == expected
    assert samples == read_dataset(tmp_path, layout)
    assert [s.path for s in samples if s.split == "train"] == sorted(s.path for s in samples if s.split == "train")
    for sample in samples:
        image = read_image(sample.path)
        if sample.mask_path is not None:
            assert sample.mask_path.stem.removesuffix("_mask") == sample.path.stem
            assert read_mask(sample.mask_path, image.shape[:2]).any()


def test_masks_named_as_their_images_and_of_other_endings(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path)
    masks = root / "ground_truth" / "spot"
    (masks / "000_mask.png").rename(masks / "000.png")
    write(masks / "001_mask.BMP", read_mask(masks / "001_mask.png").astype(np.uint8) * 255)
    (masks / "001_mask.png").unlink()
    names = [s.mask_path.name for s in read_dataset(root) if s.defect_type == "spot" and s.mask_path is not None]
    assert names == ["000.png", "001_mask.BMP", "002_mask.png"]


def test_the_label_is_the_folders_even_where_the_mask_is_empty(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path)
    sample = next(s for s in read_dataset(root) if s.defect_type == "spot")
    assert sample.mask_path is not None
    write(sample.mask_path, np.zeros(read_image(sample.path).shape[:2], np.uint8))
    assert next(s for s in read_dataset(root) if s.path == sample.path).anomalous


def test_masks_of_good_images_are_not_used(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path)
    write(root / "ground_truth" / "good" / "000_mask.png", np.zeros((40, 40), np.uint8))
    assert counts(read_dataset(root)) == MVTEC


def two(root: Path, make: Callable[[Path], object] = make_mvtec) -> Path:
    make(root / "bottle")
    make(root / "cable")
    return root


@pytest.mark.parametrize("make", [
    lambda root: two(root),
    lambda root: (two(root, make_folder), image_at(root / "overview.png")),
    lambda root: (make_mvtec3d(root, category="bottle"), make_mvtec3d(root, category="cable")),
    lambda root: (make_visa(root, category="bottle"), make_visa(root, category="cable")),
], ids=["mvtec", "folder", "mvtec3d", "visa"])  # fmt: skip
def test_categories(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path)
    assert list_categories(tmp_path) == ["bottle", "cable"]
    chosen = read_dataset(tmp_path, category="cable")
    assert chosen and all("cable" in sample.path.parts and sample.category == "cable" for sample in chosen)
    with pytest.raises(DataError, match="several categories: choose one of bottle, cable"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="no category 'pill': choose one of bottle, cable"):
        read_dataset(tmp_path, category="pill")
    inside = read_dataset(tmp_path / "cable")
    assert [s.path for s in inside] == [s.path for s in chosen]
    assert list_categories(tmp_path / "cable") == []
    assert [s.path for s in read_dataset(tmp_path / "cable", category="cable")] == [s.path for s in chosen]
    with pytest.raises(DataError, match=r"category|found no data|not 'pill'"):
        read_dataset(tmp_path / "cable", category="pill")


def drop(root: Path, name: str) -> None:
    (root / name).unlink()


def visa_with(root: Path, old: str, new: str) -> None:
    """A VisA data set whose split file says `new` for `old`."""
    path = make_visa(root) / "split_csv" / "1cls.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda root: root.rmdir(), "no such folder"),
    ("a file", lambda root: (root.rmdir(), root.write_text("x")), "is a file"),
    ("empty", lambda root: None, r"holds no images: looked for .*good/"),
    ("no images", lambda root: (root / "notes.txt").write_text("x"), "holds no images: looked for"),
    ("an empty good/", lambda root: (root / "good").mkdir(), "good: holds no images"),
    (
        "an empty train/good/",
        lambda root: (root / "train" / "good").mkdir(parents=True),
        "train/good: holds no images",
    ),
    (
        "a mask is missing",
        lambda root: drop(make_mvtec(root), "ground_truth/spot/001_mask.png"),
        "spot/001.png: no mask",
    ),
    ("an image is missing", lambda root: drop(make_mvtec(root), "test/spot/001.png"), "001_mask.png: no image"),
    (
        "masks of a type without images",
        lambda root: shutil.rmtree(make_mvtec(root) / "test" / "spot"),
        "000_mask.png: masks of 'spot'",
    ),
    (
        "two masks for an image",
        lambda root: shutil.copy(
            make_mvtec(root) / "ground_truth/spot/001_mask.png", root / "ground_truth/spot/001.png"
        ),
        "001_mask.png: 001.png beside it is a mask of the same",
    ),
    (
        "two images of a stem",
        lambda root: image_at(make_mvtec(root) / "test/spot/001.jpg"),
        "001.png: 001.jpg beside",
    ),
    (
        "defects in train/",
        lambda root: image_at(make_mvtec(root) / "train/spot/0.png"),
        "train/spot: only good images",
    ),
    (
        "loose images beside train/good/",
        lambda root: image_at(make_mvtec(root) / "train/0.png"),
        "train/0.png: an image outside the folder of good images",
    ),
    (
        "a test image without a type",
        lambda root: image_at(make_mvtec(root) / "test/0.png"),
        "test/0.png: a test image",
    ),
    (
        "mvtec3d, a mask is missing",
        lambda root: drop(make_mvtec3d(root), "bagel/test/spot/gt/001.png"),
        "rgb/001.png: no mask",
    ),
    (
        "mvtec3d, an image is missing",
        lambda root: drop(make_mvtec3d(root), "bagel/test/spot/rgb/001.png"),
        "gt/001.png: no image",
    ),
    (
        "mvtec3d, defects in validation/",
        lambda root: image_at(make_mvtec3d(root) / "bagel/validation/spot/rgb/0.png"),
        "spot: only good images",
    ),
    (
        "visa, no split file",
        lambda root: shutil.rmtree(make_visa(root) / "split_csv"),
        "1cls.csv: VisA's own split is missing",
    ),
    (
        "visa, an image is missing",
        lambda root: drop(make_visa(root), "candle/Data/Images/Anomaly/001.JPG"),
        "001.JPG: named in",
    ),
    (
        "visa, a mask is missing",
        lambda root: drop(make_visa(root), "candle/Data/Masks/Anomaly/001.png"),
        "001.png: named in",
    ),
    (
        "visa, a mask is not named",
        lambda root: visa_with(root, "candle/Data/Masks/Anomaly/001.png", ""),
        "names no mask",
    ),
    ("visa, an unknown label", lambda root: visa_with(root, "train,normal", "train,fine"), "'fine'"),
    ("visa, an anomaly to train on", lambda root: visa_with(root, "test,anomaly", "train,anomaly"), "must be good"),
    ("visa, no such column", lambda root: visa_with(root, "label,", "kind,"), "missing: label"),
    (
        "visa, an empty table",
        lambda root: (make_visa(root) / "split_csv/1cls.csv").write_text("object,split,label,image,mask\n"),
        "names no images",
    ),
    ("images beside good/", lambda root: image_at(make_folder(root) / "0.png"), "0.png: an image outside"),
    (
        "no good/",
        lambda root: shutil.rmtree(make_folder(root) / "good"),
        r"folders of images \(scratch, spot\) but none named",
    ),
    (
        "images beside folders",
        lambda root: (shutil.rmtree(make_folder(root) / "good"), image_at(root / "0.png")),
        "not clear which images are good",
    ),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refuses(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(root)
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["mvtec", "mvtec3d", "visa"])
def test_a_stated_layout_says_what_it_looked_for(tmp_path: Path, layout: str) -> None:
    make_folder(tmp_path)
    with pytest.raises(DataError, match=r"looked for|split is missing"):
        read_dataset(tmp_path, layout)


def test_visa_product_without_the_split_file(tmp_path: Path) -> None:
    shutil.rmtree(make_visa(tmp_path) / "split_csv")
    with pytest.raises(DataError, match=r"candle: looked for VisA's own split in .*1cls.csv"):
        read_dataset(tmp_path / "candle")


def test_layouts_are_a_closed_list(tmp_path: Path) -> None:
    assert LAYOUTS == ("auto", "folder", "mvtec", "mvtec3d", "visa")
    with pytest.raises(ConfigError, match="layout must be one of auto, folder, mvtec, mvtec3d, visa, got 'coco'"):
        read_dataset(tmp_path, "coco")


# ---- names that mean good


@pytest.mark.parametrize(
    "name", ["OK", "ok", "Okay", "normal", "PASS", "passed", "Gut", "io", "i.O.", "in Ordnung", "GOOD"]
)
def test_folders_of_good_images_have_many_names(tmp_path: Path, name: str) -> None:
    root = make_mvtec(tmp_path)
    (root / "test" / "good").rename(root / "test" / name)
    if name == "GOOD":
        assert counts(read_dataset(root)) == MVTEC
        return
    (root / "train" / "good").rename(root / "train" / name)
    with pytest.warns(CdoWarning) as told:
        assert counts(read_dataset(root)) == MVTEC
    assert sorted(str(warning.message) for warning in told) == [
        f"{root / 'test' / name}: its 3 images are taken as good, for the folder's name",
        f"{root / 'train' / name}: its 8 images are taken as good, for the folder's name",
    ]


@pytest.mark.parametrize("layout", ["folder", "mvtec3d"])
def test_other_layouts_know_the_same_names(tmp_path: Path, layout: str) -> None:
    if layout == "folder":
        replace_folder(make_folder(tmp_path), "good", "OK")
        expected = GOOD_AND_TYPES
    else:
        root = make_mvtec3d(tmp_path) / "bagel"
        for split in ("train", "validation", "test"):
            (root / split / "good").rename(root / split / "io")
        expected = {
            ("train", "good", False): 6, ("calibration", "good", False): 3, ("test", "good", False): 2,
            ("test", "scratch", True): 2, ("test", "spot", True): 2,
        }  # fmt: skip
    with pytest.warns(CdoWarning, match="taken as good"):
        assert counts(read_dataset(tmp_path)) == expected


@pytest.mark.parametrize(
    "name", ["NG", "NOK", "n.i.O.", "not_ok", "no good", "abnormal", "nicht in Ordnung", "bad", "broken_large"]
)
def test_other_names_are_defects(tmp_path: Path, name: str) -> None:
    assert label_of(tmp_path / name) == name


@pytest.mark.parametrize("name", ["good_2", "OK neu", "ok-ng", "pass 1", "good images", "unknown", "unsorted"])
def test_a_name_that_leaves_the_label_open_is_refused(tmp_path: Path, name: str) -> None:
    make_mvtec(tmp_path)
    image_at(tmp_path / "test" / name / "0.png")
    with pytest.raises(DataError, match="the name does not say whether its images are good: rename the folder to good"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_folders_of_good_images_are_refused(tmp_path: Path, split: str) -> None:
    image_at(make_mvtec(tmp_path) / split / "OK" / "0.png")
    with pytest.raises(DataError, match=r"(OK: good|good: OK) beside it has the same meaning"):
        read_dataset(tmp_path)


def test_two_folders_that_differ_in_letter_case_are_refused(tmp_path: Path) -> None:
    image_at(make_mvtec(tmp_path) / "Train" / "good" / "0.png")
    with pytest.raises(DataError, match="train beside it has the same meaning"):
        read_dataset(tmp_path)


# ---- what is passed over is told


@pytest.mark.parametrize(("make", "text"), [
    (lambda root: image_at(root.parent / "overview.png"), "1 image not used; the first: overview.png"),
    (lambda root: image_at(root / "validation" / "0.png"), "1 image not used; the first: bottle/validation/0.png"),
    (lambda root: (root / "train" / "good" / "x.dng").write_bytes(b"x"), "x.dng: a camera's raw file that is not read"),
    (lambda root: write_png(root / "train/good/0_overlay.png", np.zeros((9, 9, 3), np.uint8)), "1 image left out"),
    (lambda root: (root / "test" / "dent").symlink_to("/nothing"), "dent: a link to what is missing"),
    (lambda root: (root / "circle.png").symlink_to("circle.png"), "1 image not used; the first: bottle/circle.png"),
], ids=["stray", "unknown folder", "raw", "overlay", "broken link", "circle"])  # fmt: skip
def test_what_is_passed_over_is_told(tmp_path: Path, make: Callable[[Path], object], text: str) -> None:
    make(make_mvtec(tmp_path / "bottle"))
    with pytest.warns(CdoWarning, match=text) as told:
        assert counts(read_dataset(tmp_path)) == MVTEC
    assert len(told) == 1


@pytest.mark.parametrize("make", [make_mvtec, make_visa], ids=["mvtec", "visa"])
def test_the_path_to_a_data_set_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    """No warning of unused images by whatever path; tests turn warnings into errors."""
    make(tmp_path / "real")
    inner = tmp_path / "real" / ("candle" if make is make_visa else "")
    (tmp_path / "link").symlink_to(inner)
    expected = counts(read_dataset(inner))
    assert counts(read_dataset(tmp_path / "link")) == expected
    monkeypatch.chdir(inner)
    assert counts(read_dataset(".")) == expected
    monkeypatch.chdir(tmp_path)
    assert counts(read_dataset("link")) == expected


def test_folders_of_what_is_not_read_say_so(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "a.dng").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"good: holds no images: .*1 file\(s\) passed over; .*a.dng: a camera's raw file"
    ):
        read_dataset(tmp_path)
    (tmp_path / "good" / "a.dng").unlink()
    write_png(tmp_path / "good" / "a.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DataError, match="only 1 overlays or maps that cdo-ad wrote"):
        read_dataset(tmp_path)


def test_overlays_in_the_data_are_no_defects(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for i in range(3):
        (tmp_path / "out").mkdir(exist_ok=True)
        write_png(tmp_path / "out" / f"{i}_overlay.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.warns(CdoWarning, match="3 images left out, overlays and maps that cdo-ad itself wrote"):
        assert counts(read_dataset(tmp_path)) == GOOD_AND_TYPES


# ---- VisA's table comes from others


VISA_LINE = "candle/Data/Images/Normal/0000.JPG"


@pytest.mark.parametrize(("new", "message"), [
    ("/etc/hostname", "no file inside the data set's folder"),
    ("candle/../../../etc/hostname", "no file inside the data set's folder"),
    ("", "no file inside the data set's folder"),
    ("candle/Data/Images/Normal/0001.JPG", "twice"),
    ('"' + "x" * 200_000 + '"', "cannot be read .field larger"),
], ids=["absolute", "upwards", "empty", "twice", "a huge field"])  # fmt: skip
def test_a_hostile_table_is_refused(tmp_path: Path, new: str, message: str) -> None:
    visa_with(tmp_path, VISA_LINE, new)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


@pytest.mark.timeout(20)
def test_a_table_that_is_no_file_does_not_hang(tmp_path: Path) -> None:
    table = make_visa(tmp_path) / "split_csv" / "1cls.csv"
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(DataError, match="is a pipe"):
        read_dataset(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the magnetic tile images are not on this machine")
def test_magnetic_tile() -> None:
    samples = read_dataset(REAL)
    types = ("blowhole", "break", "crack", "fray", "uneven")
    assert counts(samples) == {
        ("train", "good", False): 420,
        ("test", "good", False): 150,
        **{("test", name, True): 30 for name in types},
    }
    for sample in [sample for sample in samples if sample.anomalous][::10]:
        assert sample.mask_path is not None
        assert read_mask(sample.mask_path, read_image(sample.path).shape[:2]).any()
