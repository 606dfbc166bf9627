"""Corrections of an operator: what is learned, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cdo_ad.training.job import train
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from cdo_ad import adapt as public_adapt
from cdo_ad.bundle import read_bundle
from cdo_ad.cli.main import app
from cdo_ad.errors import BundleError, ConfigError, DataError
from cdo_ad.training.adapt import adapt, refit
from conftest import TINY
from fakes import make_mvtec


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/ with a density, its data/, good/ of another intensity, bad/ with masks."""
    root = tmp_path_factory.mktemp("adapt")
    data = make_mvtec(root / "data", train=24, good=3, defective=3)
    train(data, root / "run", TINY.replace(density=True, density_context=2, lr=2e-3), device="cpu")
    random = np.random.default_rng(0)
    example = np.asarray(Image.open(sorted((data / "train" / "good").iterdir())[0]).convert("RGB"), dtype=float)
    for i in range(8):
        image = (example * 0.6 + random.normal(0, 3, example.shape)).clip(0, 255).astype(np.uint8)
        save(root / "good" / f"{i}.png", image)
    mask = np.zeros(example.shape[:2], np.uint8)
    mask[10:30, 10:30] = 255
    for i in range(2):
        save(root / "bad" / f"{i}.png", np.where(mask[..., None] > 0, 128, example).astype(np.uint8))
        save(root / "bad" / "masks" / f"{i}.png", mask)
    return root


def test_false_alarms_stop_and_the_old_images_stay_good(made: Path) -> None:
    bundle, changes = adapt(made / "run", made / "new", good=made / "good", bad=made / "bad", device="cpu")
    groups = {change.group: change for change in changes}
    assert list(groups) == ["new good", "new bad", "held-out good"]
    assert groups["new good"].images == 8 and groups["new good"].alarms_before == 8
    assert groups["new good"].alarms_after <= 2
    assert groups["held-out good"].alarms_after <= 2
    old = read_bundle(made / "run").provenance["data"]
    data = bundle.provenance["data"]
    assert len(data["fit"]) == len(old["fit"]) + 6 and len(data["calibration"]) == len(old["calibration"]) + 2
    assert len(bundle.calibration.scores) == len(data["calibration"])
    assert all(path.is_file() for path in bundle.calibration_paths)
    assert len(data["defects"]) == 2 and data["adapted_from"] == old["fingerprint"] != data["fingerprint"]


def test_it_goes_on_from_the_runs_weights(made: Path) -> None:
    bundle, _ = adapt(made / "run", made / "short", good=made / "good", epochs=1, device="cpu")
    before, after = (load_file(str(path / "model.safetensors")) for path in (made / "run", bundle.path))
    fresh = train(made / "data", made / "other", TINY.replace(seed=9), device="cpu")
    other = load_file(str(fresh.path / "model.safetensors"))
    name = "apprentice.body.layer1.0.conv1.weight"
    moved, apart = (before[name] - after[name]).norm(), (before[name] - other[name]).norm()
    assert 0 < moved < 0.2 * apart
    expert = "expert.body.layer1.0.conv1.weight"
    assert torch.equal(before[expert], after[expert])


def test_without_an_epoch_the_apprentice_stays_and_the_rest_is_made_anew(made: Path) -> None:
    bundle, changes = adapt(made / "run", made / "quick", good=made / "good", bad=made / "bad", epochs=0, device="cpu")
    before, after = (load_file(str(path / "model.safetensors")) for path in (made / "run", bundle.path))
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("apprentice."))
    assert bundle.config.lr == read_bundle(made / "run").config.lr
    groups = {change.group: change for change in changes}
    assert groups["new good"].alarms_after < groups["new good"].alarms_before


def test_a_second_correction_keeps_the_first(made: Path) -> None:
    first, _ = adapt(made / "run", made / "first", bad=made / "bad", epochs=1, device="cpu")
    second, _ = adapt(first.path, made / "second", good=made / "good", epochs=1, device="cpu")
    assert second.provenance["data"]["defects"] == first.provenance["data"]["defects"]


def test_a_refit_keeps_the_apprentice_and_makes_the_rest_anew(made: Path) -> None:
    config = read_bundle(made / "run").config
    before = load_file(str(made / "run" / "model.safetensors"))
    same = refit(made / "run", made / "same", config, device="cpu")
    for name, value in load_file(str(same.path / "model.safetensors")).items():
        torch.testing.assert_close(value, before[name], msg=name)
    assert same.calibration.scores == pytest.approx(read_bundle(made / "run").calibration.scores)

    alone = refit(made / "run", made / "alone", config.replace(density=False, score_top=0.1), device="cpu")
    after = load_file(str(alone.path / "model.safetensors"))
    assert alone.config.score_top == 0.1 and not any(name.startswith("density") for name in after)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    back = refit(alone.path, made / "back", config, device="cpu")
    assert back.calibration.scores == pytest.approx(same.calibration.scores)

    with pytest.raises(ConfigError, match=r"gamma was 2\.0 and is 1\.0: that needs a training of its own"):
        refit(made / "run", made / "never", config.replace(gamma=1.0))
    assert not (made / "never").exists()


def test_on_the_command_line_it_replaces_the_run(made: Path) -> None:
    shutil.copytree(made / "run", made / "copy")
    result = CliRunner().invoke(
        app, ["adapt", str(made / "copy"), "--good", str(made / "good"), "--epochs", "1", "--device", "cpu", "--json"]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [c["group"] for c in document["changes"]] == ["new good", "held-out good"]
    assert len(read_bundle(made / "copy").provenance["data"]["fit"]) > len(
        read_bundle(made / "run").provenance["data"]["fit"]
    )


def test_what_cannot_be_done_is_said(made: Path, tmp_path: Path) -> None:
    assert public_adapt is not None
    with pytest.raises(ConfigError, match="give --good FOLDER, --bad FOLDER or both"):
        adapt(made / "run", tmp_path / "new")
    with pytest.raises(ConfigError, match="epochs must be >= 0, got -1"):
        adapt(made / "run", tmp_path / "new", good=made / "good", epochs=-1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        adapt(made / "run", tmp_path / "new", good=tmp_path / "empty")
    shutil.copytree(made / "run", tmp_path / "moved")
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    config["provenance"]["data"]["root"] = str(tmp_path / "gone")
    (tmp_path / "moved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="is gone, and a run is adapted together with"):
        adapt(tmp_path / "moved", tmp_path / "new", good=made / "good")
    assert not (tmp_path / "new").exists()
