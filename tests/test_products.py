import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdo_ad.demo import products
from cdo_ad.demo.products import DEFECTS, MARKER, PRODUCTS, make_dataset, render
from cdo_ad.errors import ConfigError, DataError

ALL = [(product, defect) for product in PRODUCTS for defect in DEFECTS[product]]
SMALL = {"train": 2, "test_good": 1, "per_type": 1, "size": 64}
AREA = {  # plausible share of the image
    "bent": (0.004, 0.06),
    "chip": (0.0003, 0.01),
    "cut": (0.0002, 0.02),
    "head": (0.0003, 0.01),
    "hole": (0.0003, 0.02),
    "misprint": (0.0002, 0.02),
    "rust": (0.001, 0.02),
    "scratch": (0.0003, 0.02),
    "shade": (0.15, 0.40),
    "spot": (0.0001, 0.003),
    "stain": (0.01, 0.25),
    "thread": (0.001, 0.06),  # of the fabric and of the screw
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    padded = np.pad(mask, by)
    h, w = mask.shape
    shifts = range(2 * by + 1)
    return np.any([padded[i : i + h, j : j + w] for i in shifts for j in shifts], axis=0)


def test_three_products_with_six_kinds_each() -> None:
    assert PRODUCTS == ("fabric", "plate", "screw")
    assert all(len(DEFECTS[product]) == 6 for product in PRODUCTS)


@pytest.mark.parametrize("product", PRODUCTS)
def test_layout_and_masks(tmp_path: Path, product: str) -> None:
    folder = make_dataset(tmp_path, product, **SMALL)
    assert folder == tmp_path / product
    assert {p.name for p in (folder / "test").iterdir()} == {"good", *DEFECTS[product]}
    assert {p.name for p in (folder / "ground_truth").iterdir()} == set(DEFECTS[product])
    assert len(list((folder / "train" / "good").glob("*.png"))) == 2
    for kind in DEFECTS[product]:
        images = sorted((folder / "test" / kind).iterdir())
        masks = [folder / "ground_truth" / kind / f"{path.stem}_mask.png" for path in images]
        assert sorted((folder / "ground_truth" / kind).iterdir()) == masks
        for path, mask_path in zip(images, masks, strict=True):
            with Image.open(path) as image, Image.open(mask_path) as mask:
                assert (image.mode, mask.mode) == ("RGB", "L")
                assert image.size == mask.size == (64, 64)
                assert set(np.unique(np.asarray(mask))) == {0, 255}
    assert [p.name for p in tmp_path.iterdir()] == [product]  # nothing unfinished is left


@pytest.mark.parametrize("product", PRODUCTS)
def test_same_arguments_same_bytes_another_seed_another_image(tmp_path: Path, product: str) -> None:
    first = files(make_dataset(tmp_path / "a", product, **SMALL))
    assert first == files(make_dataset(tmp_path / "b", product, **SMALL))
    other = files(make_dataset(tmp_path / "c", product, **SMALL, seed=1))
    assert all(first[name] != other[name] for name in first if "ground_truth" not in name)


def test_the_counts_change_no_image(tmp_path: Path) -> None:
    few = files(make_dataset(tmp_path / "few", "plate", **SMALL))
    more = files(make_dataset(tmp_path / "more", "plate", train=3, test_good=2, per_type=2, size=64))
    few.pop(MARKER)
    assert few.items() < more.items()


def test_every_image_is_another(tmp_path: Path) -> None:
    images = [data for name, data in files(make_dataset(tmp_path, "fabric", **SMALL)).items() if "_mask" not in name]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(("product", "defect"), ALL)
def test_area_is_plausible(product: str, defect: str) -> None:
    low, high = AREA[defect]
    for number in range(4):
        _, mask = render(product, (5, number), defect=defect)
        assert low <= mask.mean() <= high


@pytest.mark.parametrize(("product", "defect"), ALL)
def test_twins_differ_in_the_mask_only(product: str, defect: str) -> None:
    for number in range(3):
        bad, mask = render(product, (7, number), defect=defect)
        good, nothing = render(product, (7, number))
        assert not nothing.any()
        difference = np.abs(bad.astype(int) - good).mean(axis=2)
        assert difference[mask].mean() > 3.0
        # the shadow moves with the metal; the part of a soft edge below half of its peak is not masked
        far = ~grown(mask, 14 if defect in ("bent", "cut") else 4)
        soft = defect in ("rust", "shade", "stain", "thread")
        assert (difference[far] > (12.0 if soft else 3.0)).mean() < 0.002


@pytest.mark.parametrize("product", ["fabric", "plate"])
def test_shade_is_large_and_faint(product: str) -> None:
    for number in range(6):
        bad, mask = render(product, (11, number), defect="shade")
        good, _ = render(product, (11, number))
        assert mask.mean() > 0.15
        contrast = bad[mask].mean() / good[mask].mean() - 1.0
        assert 0.025 < abs(contrast) < 0.115


@pytest.mark.parametrize("product", PRODUCTS)
def test_good_images_vary_in_light_and_place(product: str) -> None:
    images = np.stack([render(product, (13, number), size=128)[0] for number in range(12)]).astype(float)
    assert images.mean(axis=(1, 2, 3)).std() > 4.0  # light
    leveled = images / images.mean(axis=(1, 2, 3), keepdims=True)
    assert leveled.std(axis=0).mean() > 0.02  # place and texture
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=-1)
    assert corners.min() > 15.0  # rotation leaves no black corner


def test_a_screw_lies_at_any_angle_and_inside_the_image() -> None:
    angles, inside = [], []
    for number in range(40):
        image = render("screw", (17, number), size=64)[0].astype(float)
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).mean(axis=0)
        y, x = np.nonzero(np.abs(image - edge).sum(axis=2) > 60)
        inside.append(min(x.min(), y.min(), 63 - x.max(), 63 - y.max()))
        angles.append(np.degrees(np.angle(np.mean((x - x.mean() + 1j * (y - y.mean())) ** 2)) / 2) % 180)
    assert min(inside) >= 0 and np.histogram(angles, 6, (0, 180))[0].min() >= 2


@pytest.mark.parametrize("product", ["plate", "screw"])
def test_the_same_part_at_another_size(product: str) -> None:
    small, large = render(product, (3,), size=128)[0], render(product, (3,), size=256)[0]
    halved = large.reshape(128, 2, 128, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 6.0


def test_a_whole_data_set_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dataset(tmp_path, "plate", **SMALL)
    monkeypatch.setattr(products, "render", None)  # drawing again would fail
    assert make_dataset(tmp_path, "plate", **SMALL) == folder


def test_another_data_set_is_left_alone(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, "plate", **SMALL)
    before = files(folder)
    with pytest.raises(DataError, match="other arguments"):
        make_dataset(tmp_path, "plate", **SMALL, seed=1)
    assert files(folder) == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, "plate", **SMALL)
    (folder / "test" / "chip" / "000.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 .*000\.png"):
        make_dataset(tmp_path, "plate", **SMALL)


@pytest.mark.parametrize("marker", [None, "{", "[]"])
def test_a_foreign_folder_is_refused(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "plate").mkdir()
    if marker is not None:
        (tmp_path / "plate" / MARKER).write_text(marker)
    with pytest.raises(DataError, match=r"not a built-in data set|other arguments"):
        make_dataset(tmp_path, "plate", **SMALL)


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(products, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path, "plate", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_both_succeed(tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(make_dataset(tmp_path, "plate", **SMALL))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "plate"] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["plate"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make_dataset(tmp_path / "root", "plate", **SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"product": "bolt"}, "no built-in product 'bolt'"),
        ({"product": "plate", "size": 16}, "size must be at least 32"),
        ({"product": "plate", "train": -1}, "train must not be negative"),
        ({"product": "plate", "seed": -1}, "seed must not be negative"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_dataset(tmp_path, **arguments)  # type: ignore[arg-type]


def test_an_unknown_defect() -> None:
    with pytest.raises(ConfigError, match="plate has no defect 'hole'"):
        render("plate", (0,), defect="hole")


def test_the_marker_holds_the_arguments(tmp_path: Path) -> None:
    marker = json.loads((make_dataset(tmp_path, "plate", **SMALL) / MARKER).read_text())
    assert marker.items() >= {**SMALL, "product": "plate", "seed": 0}.items()


def test_needs_numpy_and_pillow_only() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'scipy', 'cv2', 'timm'])); import cdo_ad.demo.products"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(products.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
