"""The region of interest: where it comes from, and that training, scores, thresholds and metrics keep to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cdo_ad.bundle import read_bundle
from cdo_ad.data import read_dataset, read_image
from cdo_ad.data.region import foreground, read_region
from cdo_ad.errors import ConfigError, DataError
from cdo_ad.evaluation.evaluate import evaluate
from cdo_ad.evaluation.metrics import PixelMetrics
from cdo_ad.inference.detector import load
from cdo_ad.region import pack_region, resize_region, unpack_region
from cdo_ad.spec import CategorySpec, ModelSpec
from cdo_ad.training.adapt import adapt
from cdo_ad.training.train import train
from conftest import DENSE

LEFT = "0,0 0.5,0 0.5,1 0,1"


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("region") / "run"
    branches = ("level 3", "bank", "intensity")
    train(tiny_data, out, DENSE.replace(branches=branches), region=LEFT, device="cpu")
    return out


def test_a_region_is_packed_and_unpacked() -> None:
    region = np.random.default_rng(0).random((37, 53)) > 0.5
    assert (unpack_region(pack_region(region)) == region).all()


@pytest.mark.parametrize("text", ["!", "AAAA", "A" * (1 << 21)])
def test_any_other_text_is_no_region(text: str) -> None:
    with pytest.raises(ValueError, match=r"region|base64|Base64|character"):
        unpack_region(text)


def test_a_region_of_another_size_is_refused() -> None:
    spec = CategorySpec(branches=("level 3",), standardized=True, region=pack_region(np.ones((32, 32), bool)))
    with pytest.raises(ValidationError, match="not of the input's size"):
        ModelSpec(
            backbone="resnet18", image_size=(64, 64), normalize_brightness=False, blur_sigma=4, score_top=0,
            categories=(spec,),
        )  # fmt: skip


def test_a_region_grows_and_shrinks() -> None:
    region = np.zeros((64, 64), bool)
    region[:, :32] = True
    for size in ((128, 96), (16, 32)):
        there = resize_region(region, size)
        assert there.shape == size and there[:, : size[1] // 2].all() and not there[:, size[1] // 2 :].any()


def test_a_polygon_and_a_mask_file_are_regions(tmp_path: Path) -> None:
    mask = np.zeros((50, 100), np.uint8)
    mask[:, :50] = 255
    Image.fromarray(mask).save(tmp_path / "nut.png")
    for wanted in (LEFT, tmp_path / "nut.png", tmp_path):
        region = read_region(wanted, (64, 64), category="nut")
        assert region[:, :31].all() and not region[:, 33:].any()


@pytest.mark.parametrize("text", ["0,0 1,1", "0,0 1,1 2,0", "a,b c,d e,f", "0,0,0 1,1 1,0"])
def test_what_is_no_polygon_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match="three or more corners"):
        read_region(text, (64, 64))


def test_a_region_that_covers_nothing_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((50, 100), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(DataError, match="white is what is inspected"):
        read_region(tmp_path / "black.png", (64, 64))


def test_the_foreground_is_where_parts_lie(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for k in range(6):
        image = np.full((80, 120), 60, np.uint8) + random.integers(0, 8, (80, 120), np.uint8)
        image[20 + k : 60 + k, 40:90] = 190
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    found = foreground(sorted(tmp_path.iterdir()), (80, 120))
    assert found[20:65, 40:90].all() and found.mean() < 0.4


def test_outside_the_region_the_map_is_zero_and_the_score_does_not_change(run: Path, tiny_data: Path) -> None:
    detector = load(run, device="cpu")
    image = read_image(read_dataset(tiny_data)[0].path)
    changed = image.copy()
    changed[:, image.shape[1] * 15 // 16 :] = 255 - changed[:, image.shape[1] * 15 // 16 :]
    for each in (image, changed):
        found = detector.predict(each)
        assert not found.anomaly_map[:, image.shape[1] // 2 + 4 :].any() and not found.mask[:, -4:].any()
        assert found.anomaly_map[:, : image.shape[1] // 2 - 4].min() > 0


def test_a_mark_outside_the_region_sets_no_threshold(tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    marked = sorted((tmp_path / "data" / "train" / "good").iterdir())[0]
    image = read_image(marked).copy()
    image[8:56, image.shape[1] * 5 // 8 :] = 255
    Image.fromarray(image).save(marked)
    config = DENSE.replace(branches=("intensity",))
    runs = {where: tmp_path / str(where) for where in (None, LEFT)}
    for where, out in runs.items():
        train(tmp_path / "data", out, config, region=where, device="cpu")
    high = {where: max(read_bundle(out).calibration.of().scores) for where, out in runs.items()}
    assert high[None] > 1.5 * high[LEFT]


def test_pixels_outside_do_not_count(run: Path, tiny_data: Path) -> None:
    detector = load(run, device="cpu")
    samples = [s for s in read_dataset(tiny_data) if s.split == "test"]
    image = read_image(samples[0].path)
    inside = detector.region("", image.shape[:2])
    assert inside is not None and inside.mean() == pytest.approx(0.5, abs=0.02)
    counted = PixelMetrics()
    scores, mask = np.random.default_rng(0).random((20, 30), np.float32), np.zeros((20, 30), bool)
    mask[5:15, 10:20] = True
    half = np.zeros((20, 30), bool)
    half[:, :15] = True
    counted.update(scores, mask, half)
    plain = PixelMetrics()
    plain.update(np.ascontiguousarray(scores[:, :15]), mask[:, :15])
    assert counted.compute() == plain.compute()
    assert evaluate(detector, samples).metrics.n.good > 0


def test_an_adapted_run_keeps_the_region(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    adapted, _ = adapt(run, tmp_path / "new", good=tiny_data / "test" / "good", epochs=0, device="cpu")
    assert adapted.model.categories[0].region == read_bundle(run).model.categories[0].region != ""
