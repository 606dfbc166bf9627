"""One to a few good images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cdo_ad import load
from cdo_ad.calibration import Calibration
from cdo_ad.cli.main import app
from cdo_ad.data import read_image
from cdo_ad.data.few import CopyStore, altered
from cdo_ad.errors import CalibrationError
from cdo_ad.sentence import sentence
from cdo_ad.training.job import train
from conftest import TINY
from fakes import make_mvtec


def test_a_copy_is_moved_relit_and_noisy_but_the_same_part() -> None:
    random = np.random.default_rng(0)
    image = np.repeat(random.integers(60, 180, (10, 10, 3)), 20, axis=0).repeat(20, axis=1).astype(np.uint8)
    copies = [altered(image, seed) for seed in range(20)]
    assert all(c.shape == image.shape and c.dtype == np.uint8 for c in copies)
    assert np.array_equal(altered(image, 3), copies[3]) and not np.array_equal(copies[3], copies[4])
    means = [float(c.mean()) / float(image.mean()) for c in copies]
    assert 0.85 < min(means) < 0.99 and 1.01 < max(means) < 1.15
    assert all(np.corrcoef(c.ravel(), image.ravel())[0, 1] > 0.6 for c in copies)


@pytest.mark.parametrize(("count", "expected"), [(1, 64), (8, 64), (20, 80), (70, 70)])
def test_the_store_holds_the_images_and_enough_copies(tiny_data: Path, count: int, expected: int) -> None:
    paths = (sorted((tiny_data / "train" / "good").iterdir()) * 3)[:count]
    store = CopyStore(paths, (32, 48), wanted=64, seed=1)
    assert len(store) == expected and store[0].shape == (3, 32, 48) and store[0].dtype == torch.uint8
    again = CopyStore(paths, (32, 48), wanted=64, seed=1)
    assert torch.equal(store.images, again.images)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_handful_trains_and_promises_nothing(tmp_path: Path, count: int) -> None:
    data = make_mvtec(tmp_path / "data", train=count, good=2, defective=2)
    config = TINY.replace(epochs=1, density=True, density_context=2, few=True, false_alarm_rate=0.05)
    bundle = train(data, tmp_path / "run", config, device="cpu")
    assert not bundle.calibration.guaranteed and len(bundle.calibration.scores) == 64
    assert bundle.provenance["data"]["calibration"] == [] and len(bundle.provenance["data"]["fit"]) == count
    detector = load(tmp_path / "run", backend="torch")
    prediction = detector.predict(read_image(next((data / "test" / "good").iterdir())))
    assert np.isfinite(prediction.anomaly_map).all()
    assert "altered copies" in sentence(prediction.score, detector.calibration)


def test_without_the_flag_the_error_names_it(tmp_path: Path) -> None:
    data = make_mvtec(tmp_path / "data", train=8, good=2, defective=2)
    with pytest.raises(CalibrationError, match="train with  --few"):
        train(data, tmp_path / "run", TINY.replace(false_alarm_rate=0.05), device="cpu")


def test_the_command_line_says_what_cannot_be_promised(tmp_path: Path) -> None:
    data = make_mvtec(tmp_path / "data", train=4, good=25, defective=2)
    settings = [f"--set={k}={v}" for k, v in {"backbone": "resnet18", "weights": "none", "epochs": 1}.items()]
    settings += ["--set=image_height=64", "--set=image_width=64", "--set=density_context=2"]
    run = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", str(data), "--out", str(run), "--few", "--device", "cpu", *settings])
    assert result.exit_code == 0, result.output
    assert "no false-alarm rate is promised" in result.stdout
    result = CliRunner().invoke(app, ["calibrate", str(run), str(data / "test" / "good"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads((run / "calibration.json").read_text())["guaranteed"] is True


def test_an_older_calibration_is_promised() -> None:
    values = Calibration.fit([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.5).to_json()
    del values["guaranteed"]
    assert Calibration.from_json(values).guaranteed
