"""Corrections of an operator: what is learned, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from cdo_ad.bundle import read_bundle
from cdo_ad.cli.main import app
from cdo_ad.errors import BundleError, ConfigError, DataError
from cdo_ad.training.adapt import adapt, refit
from cdo_ad.training.train import train
from conftest import DENSE
from fakes import write


@pytest.fixture(scope="module")
def corrections(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """good/ is darker than all that the run knows; bad/ has masks."""
    root = tmp_path_factory.mktemp("corrections")
    random = np.random.default_rng(0)
    example = np.asarray(Image.open(tiny_data / "train" / "good" / "000.png").convert("RGB"), dtype=float)
    for i in range(8):
        image = (example * 0.6 + random.normal(0, 3, example.shape)).clip(0, 255).astype(np.uint8)
        write(root / "good" / f"{i}.png", image)
    mask = np.zeros(example.shape[:2], np.uint8)
    mask[10:30, 10:30] = 255
    for i in range(2):
        write(root / "bad" / f"{i}.png", np.where(mask[..., None] > 0, 128 + 40 * i, example).astype(np.uint8))
        write(root / "bad" / "masks" / f"{i}.png", mask)
    return root


@pytest.mark.slow
def test_false_alarms_stop_and_the_old_images_stay_good(dense_run: Path, corrections: Path, tmp_path: Path) -> None:
    good, bad = corrections / "good", corrections / "bad"
    bundle, changes = adapt(dense_run, tmp_path / "new", good=good, bad=bad, epochs=1, device="cpu")
    groups = {change.group: change for change in changes}
    assert list(groups) == ["new good", "new bad", "good"]
    assert (groups["new good"].images, groups["new bad"].images, groups["good"].images) == (8, 2, 24)
    assert groups["new good"].alarms_before == 8 and groups["new good"].alarms_after <= 2
    assert groups["new good"].score_after < 1 < groups["new good"].score_before
    assert groups["good"].alarms_after <= 3
    old, data = read_bundle(dense_run).data, bundle.data
    assert len(data.images) == bundle.calibration.images == 32 and data.images[:24] == old.images
    assert len({record.group for record in data.images}) == 32
    assert all(path.is_file() for path in bundle.good_paths)
    assert len(data.defects) == 2 and data.adapted_from == old.fingerprint != data.fingerprint
    assert bundle.model.categories[0].defect_head  # 32 good images are enough for one

    before, after = (load_file(str(path / "model.safetensors")) for path in (dense_run, bundle.path))
    name = "apprentice.body.layer1.0.conv1.weight"  # it went on from the run's, a short way
    moved = (before[name] - after[name]).norm() / before[name].norm()
    assert 0 < moved < 0.1
    expert = "expert.body.layer1.0.conv1.weight"
    assert torch.equal(before[expert], after[expert])


@pytest.mark.slow
def test_without_an_epoch_the_apprentice_stays_and_a_second_correction_keeps_the_first(
    dense_run: Path, corrections: Path, tmp_path: Path
) -> None:
    first, _ = adapt(dense_run, tmp_path / "first", bad=corrections / "bad", epochs=0, device="cpu")
    before, after = (load_file(str(path / "model.safetensors")) for path in (dense_run, first.path))
    kept = [name for name in before if name.startswith("apprentice.")]
    assert kept and all(torch.equal(after[name], before[name]) for name in kept)
    assert first.config == read_bundle(dense_run).config
    assert not first.model.categories[0].defect_head  # 24 good images are too few
    second, changes = adapt(first.path, tmp_path / "second", good=corrections / "good", epochs=0, device="cpu")
    assert second.data.defects == first.data.defects and second.model.categories[0].defect_head
    groups = {change.group: change for change in changes}
    assert groups["new good"].alarms_after < groups["new good"].alarms_before


@pytest.mark.slow
def test_a_refit_keeps_the_apprentice_and_makes_the_rest_anew(dense_run: Path, tmp_path: Path) -> None:
    config = read_bundle(dense_run).config
    before = load_file(str(dense_run / "model.safetensors"))
    same = refit(dense_run, tmp_path / "same", config, device="cpu")
    for name, value in load_file(str(same.path / "model.safetensors")).items():
        torch.testing.assert_close(value, before[name], msg=name)
    scores = read_bundle(dense_run).calibration.of().scores
    assert same.calibration.of().scores == pytest.approx(scores, rel=1e-5)

    other = refit(dense_run, tmp_path / "other", config.replace(fusion_weights=(0, 0.5, 0.5), score_top=0.1))
    assert other.config.score_top == 0.1 and other.model.branches == ("level 3", "intensity")
    assert other.calibration.of().scores != pytest.approx(scores, rel=1e-2)

    for change, message in (
        ({"gamma": 1.0}, r"gamma was 2\.0 and is 1\.0"),
        ({"calibration": "held-out"}, "calibration was 'cross' and is 'held-out'"),
    ):
        with pytest.raises(ConfigError, match=f"{message}: that needs a training of its own"):
            refit(dense_run, tmp_path / "never", config.replace(**change))
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_a_correction_that_copies_a_known_part_joins_its_group(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    for i in range(6):
        small = random.normal(120, 30, (24, 24)).clip(0, 255).astype(np.uint8)
        part = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC), dtype=float)
        write(tmp_path / "data" / "good" / f"{i}.png", part.astype(np.uint8))
        if i == 2:
            for k in range(2):
                noisy = part * (0.8 + 0.1 * k) + random.normal(0, 1, part.shape)
                write(tmp_path / "wrong" / f"{k}.png", noisy.clip(0, 255).astype(np.uint8))
    config = DENSE.replace(branches=("level 3",), keep_groups_together=True, false_alarm_rate=0.2)
    train(tmp_path / "data", tmp_path / "run", config, device="cpu")
    bundle, _ = adapt(tmp_path / "run", tmp_path / "new", good=tmp_path / "wrong", epochs=0, device="cpu")
    groups = [record.group for record in bundle.data.images]
    assert len(set(groups[:6])) == 6 and groups[6:] == [groups[2]] * 2


@pytest.mark.slow
def test_a_run_with_held_out_images_keeps_them_held_out(tiny_run: Path, corrections: Path, tmp_path: Path) -> None:
    before = read_bundle(tiny_run)
    again = refit(tiny_run, tmp_path / "again", before.config.replace(blur_sigma=2.0), device="cpu")
    assert again.data == before.data and again.calibration.images == 12
    adapted, _ = adapt(tiny_run, tmp_path / "adapted", good=corrections / "good", epochs=1, device="cpu")
    assert adapted.data.held_out == before.data.held_out and len(adapted.data.images) == 20
    assert adapted.calibration.images == 12


@pytest.mark.slow
def test_on_the_command_line_it_replaces_the_run(tiny_run: Path, corrections: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "copy")
    words = ["adapt", str(tmp_path / "copy"), "--good", str(corrections / "good"), "--epochs", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    assert [c["group"] for c in json.loads(result.stdout)["changes"]] == ["new good", "good"]
    assert len(read_bundle(tmp_path / "copy").data.images) == len(read_bundle(tiny_run).data.images) + 8


def test_what_cannot_be_done_is_said(tiny_run: Path, corrections: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --good FOLDER, --bad FOLDER or both"):
        adapt(tiny_run, tmp_path / "new")
    with pytest.raises(ConfigError, match="epochs must be >= 0, got -1"):
        adapt(tiny_run, tmp_path / "new", good=corrections / "good", epochs=-1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        adapt(tiny_run, tmp_path / "new", good=tmp_path / "empty", device="cpu")
    assert not (tmp_path / "new").exists()


def test_a_run_is_adapted_with_its_own_images_or_not_at_all(
    tiny_run: Path, tiny_data: Path, corrections: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(tiny_data, tmp_path / "data")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["provenance"]["data"]["root"] = str(tmp_path / "data")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    first = read_bundle(tmp_path / "run").good_paths[0]
    first.write_bytes(read_bundle(tmp_path / "run").good_paths[1].read_bytes())
    with pytest.raises(BundleError, match=f"{first.name} is not the image that the run was made from"):
        adapt(tmp_path / "run", tmp_path / "new", good=corrections / "good")
    first.unlink()
    with pytest.raises(BundleError, match="is gone, and a run is adapted together with"):
        adapt(tmp_path / "run", tmp_path / "new", good=corrections / "good")
    assert not (tmp_path / "new").exists()
