"""From good images to a run folder: what it holds, what decides its bytes, interruptions, refusals."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cdo_ad import load
from cdo_ad.bundle import read_bundle
from cdo_ad.config import Config
from cdo_ad.conformal import Unit, conformal_threshold
from cdo_ad.data import read_image
from cdo_ad.errors import (
    BundleError,
    CalibrationError,
    CdoWarning,
    ConfigError,
    DataError,
    ImageError,
    Interrupted,
    TrainingError,
)
from cdo_ad.method.model import AnomalyModel
from cdo_ad.provenance import DataRecord, ImageRecord
from cdo_ad.spec import ModelSpec
from cdo_ad.training import train as training
from cdo_ad.training.loop import ApprenticeTraining, lr_factor, split_batches
from cdo_ad.training.material import Material
from cdo_ad.training.postfit import specify
from cdo_ad.training.train import train
from conftest import DENSE, TINY
from fakes import make_folder, make_mvtec, make_mvtec3d, make_visa, write

QUICK = TINY.replace(epochs=1)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- the run


def test_a_run_is_complete(tiny_run: Path, tiny_data: Path) -> None:
    names = {p.name for p in tiny_run.iterdir()}
    assert {"model.safetensors", "config.json", "calibration.json", "train_log.csv", "tensorboard"} <= names
    bundle = read_bundle(tiny_run)
    assert bundle.config == TINY
    learned, held_out = ({record.name for record in part} for part in (bundle.data.images, bundle.data.held_out))
    assert not learned & held_out and len(learned | held_out) == 24
    assert len(held_out) == bundle.calibration.images == 12  # half of fewer than forty
    assert all((tiny_data / name).is_file() for name in learned | held_out)
    with (tiny_run / "train_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1]["lr"]) == pytest.approx(4e-4 * 0.95)
    assert not list(tiny_run.parent.glob(".*"))


def test_thresholds_come_from_the_held_out_images(tiny_run: Path) -> None:
    bundle = read_bundle(tiny_run)
    detector, own = load(tiny_run, device="cpu"), bundle.calibration.of()
    found = [detector.predict_file(bundle.data.path(record)) for record in bundle.data.held_out]
    assert sorted(p.score for p in found) == pytest.approx(list(own.scores), rel=1e-5)
    assert own.image_threshold == conformal_threshold(own.scores, 0.1) and own.guaranteed
    assert not any(p.anomalous for p in found)


def test_in_cross_calibration_every_good_image_teaches_and_calibrates(dense_run: Path) -> None:
    bundle = read_bundle(dense_run)
    assert len(bundle.data.images) == bundle.calibration.images == 24 and not bundle.data.held_out
    detector = load(dense_run, device="cpu")
    seen = [detector.predict_file(path).score for path in bundle.good_paths]
    assert np.mean(seen) < np.mean(bundle.calibration.of().scores)  # an image that was learned from looks better


def test_the_expert_never_changes(tiny_run: Path) -> None:
    torch.manual_seed(TINY.seed)
    before = AnomalyModel(ModelSpec.from_config(TINY)).state_dict()
    after = weights(tiny_run)
    expert = [name for name in before if name.startswith("expert.")]
    assert expert and all(torch.equal(before[name], after[name]) for name in expert)
    apprentice = [name for name in before if name.startswith("apprentice.") and name.endswith("conv1.weight")]
    assert apprentice and not any(torch.equal(before[name], after[name]) for name in apprentice)


def test_without_the_disagreement_there_is_no_apprentice(tiny_data: Path, tmp_path: Path) -> None:
    config = QUICK.replace(branches=("level 3",), calibration="cross")
    bundle = train(tiny_data, tmp_path / "run", config, device="cpu")
    assert not any(name.startswith("apprentice.") for name in weights(bundle.path))
    with (bundle.path / "train_log.csv").open() as file:
        assert list(csv.DictReader(file)) == []
    assert load(bundle.path, device="cpu").predict(np.zeros((50, 70, 3), np.uint8)).anomalous


# ---- what decides its bytes


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    train(tiny_data, tmp_path / "again", TINY, device="cpu", workers=1, memory_budget=0)
    assert same(weights(tiny_run), weights(tmp_path / "again"))
    first, again = (read_bundle(run) for run in (tiny_run, tmp_path / "again"))
    assert first.calibration == again.calibration and first.weights_sha256 == again.weights_sha256


def test_another_seed_gives_other_weights(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    train(tiny_data, tmp_path / "other", QUICK.replace(seed=4), device="cpu")
    assert not same(weights(tiny_run), weights(tmp_path / "other"))


@pytest.mark.parametrize(
    "settings",
    [
        {"mom": False},
        {"oom": False},
        {"optimizer": "adam", "schedule": "step", "decay": 0.1},
        {"schedule": "one-cycle", "background": "border"},
        {"image_width": 96},
        {"precision": "bf16-mixed"},
        {"anomalies": ("cut", "line")},
    ],
)
def test_switches_train(tiny_run: Path, tiny_data: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    train(tiny_data, tmp_path / "run", QUICK.replace(**settings), device="cpu")
    assert not same(weights(tiny_run), weights(tmp_path / "run"))
    prediction = load(tmp_path / "run", device="cpu").predict(np.zeros((50, 70, 3), np.uint8))
    assert prediction.anomaly_map.shape == (50, 70)


def test_loading_gives_the_identical_output(tiny_run: Path, tiny_data: Path) -> None:
    image = read_image(sorted((tiny_data / "test" / "good").iterdir())[0])
    one, other = (load(tiny_run, device="cpu").predict(image) for _ in range(2))
    assert np.array_equal(one.anomaly_map, other.anomaly_map) and one.score == other.score


# ---- interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_resuming_equals_not_being_interrupted(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    run, real = tmp_path / "run", ApprenticeTraining.epoch

    def interrupted(self: ApprenticeTraining, epoch: int):  # type: ignore[no-untyped-def]
        for step in real(self, epoch):
            yield step
            if epoch == 1:
                raise error

    monkeypatch.setattr(ApprenticeTraining, "epoch", interrupted)
    with pytest.raises(Interrupted if error is KeyboardInterrupt else error):
        train(tiny_data, run, TINY, device="cpu")
    assert not (run / "model.safetensors").exists()
    monkeypatch.setattr(ApprenticeTraining, "epoch", real)
    with pytest.raises(BundleError, match=r"interrupted training .*1 of 2 epochs are done.* --resume"):
        train(tiny_data, run, TINY, device="cpu")
    with pytest.raises(ConfigError, match=r"gamma was 2\.0 and is 1\.0"):
        train(tiny_data, run, TINY.replace(gamma=1.0), device="cpu", interrupted="resume")
    train(tiny_data, run, TINY, device="cpu", interrupted="resume")
    assert same(weights(tiny_run), weights(run))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(BundleError, match="nothing to resume"):
        train(tiny_data, run, TINY, device="cpu", interrupted="resume")


def test_an_interrupted_training_leaves_the_old_run_whole(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_model", stop)
    with pytest.raises(Interrupted, match="--resume"):
        train(tiny_data, run, QUICK, device="cpu")
    assert same(weights(tiny_run), weights(run))


def test_a_diverging_loss_stops_with_advice(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss is (nan|-?inf) in epoch .*--set lr="):
        train(tiny_data, tmp_path / "run", TINY.replace(lr=1e30, epochs=4), device="cpu")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_folder_that_is_no_run_is_not_overwritten(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a run folder"):
        train(tiny_data, tmp_path / "photos", TINY, device="cpu")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.txt"]


# ---- images


def test_too_few_images_to_hold_out_are_refused_before_any_training(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", good=2, defective=0)
    with pytest.raises(CalibrationError, match=r"19 different parts, there are 1: add 18 more, .*rate 0\.5"):
        train(tmp_path / "data", tmp_path / "run", TINY.replace(false_alarm_rate=0.05), device="cpu")
    bundle = train(tmp_path / "data", tmp_path / "run", QUICK.replace(false_alarm_rate=0.5), device="cpu")
    assert bundle.calibration.images == 1


def test_too_few_images_give_an_estimate_in_cross_calibration(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", good=6, defective=0)
    config = QUICK.replace(branches=("level 3", "intensity"), calibration="cross", false_alarm_rate=0.05)
    bundle = train(tmp_path / "data", tmp_path / "run", config, device="cpu")
    assert bundle.calibration.images == 6 and not bundle.calibration.guaranteed
    assert "an estimate" in bundle.calibration.summary()[0]
    make_folder(tmp_path / "one", good=1, defective=0)
    with pytest.raises(DataError, match=r"1 good image\(s\) cannot make a calibrated detector: give 3"):
        train(tmp_path / "one", tmp_path / "run", config, device="cpu")


def test_a_lone_good_image_that_sets_the_threshold_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", good=12, defective=0, ending=".png")
    file = tmp_path / "data" / "good" / "004.png"
    write(file, (read_image(file) * 0.3).astype(np.uint8))
    config = QUICK.replace(branches=("intensity",), calibration="cross")
    with pytest.warns(CdoWarning, match=r"004\.png alone sets the threshold"):
        train(tmp_path / "data", tmp_path / "run", config, device="cpu")


@pytest.mark.slow
def test_copies_of_few_parts_are_counted_one_by_one_and_that_is_said(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="the extra `check` is not installed")
    rng = np.random.default_rng(0)
    for i in range(6):
        part = 60 + 120 * rng.random((72, 72, 3))
        for k, gain in enumerate((1.0, 0.8)):
            write(tmp_path / "data" / "good" / f"{i}_{k}.png", (part * gain).astype(np.uint8))
    config = DENSE.replace(epochs=1, branches=("level 3", "intensity"), keep_groups_together=True)
    with pytest.warns(CdoWarning, match="12 good images show only 6 different parts"):
        bundle = train(tmp_path / "data", tmp_path / "run", config, device="cpu")
    own = bundle.calibration.of()
    assert (own.unit, own.units, bundle.calibration.images) == ("image", 12, 12) and own.guaranteed
    assert len({record.group for record in bundle.data.images}) == 6
    assert "further images of these parts, not for new parts" in bundle.calibration.summary()[0]


@pytest.mark.parametrize(
    ("groups", "unit", "share", "expected"),
    [
        ([0, 0, 1, 1, 2, 2], "group", 0.5, True),
        ([0, 0, 1, 1, 2, 2], "group", 0.0, False),
        ([0, 0, 1, 1, 2, 2], "image", 0.5, False),  # for further images of known parts
        ([0, 1, 2, 3, 4, 4], "group", 0.5, False),  # nothing shows that a raised map belongs to a part
    ],
)
def test_what_lies_in_the_image_is_taken_off_where_parts_are_seen_again_and_thresholds_are_for_new_ones(
    groups: list[int], unit: Unit, share: float, expected: bool
) -> None:
    images = tuple(
        ImageRecord(name=f"{i}.png", digest="0" * 64, category="", group=group) for i, group in enumerate(groups)
    )
    record = DataRecord(root="/", category="", fingerprint="f" * 64, images=images, split="", units={"": unit})
    spec = specify(DENSE.replace(baseline_share=share), Material(record, ("",)))
    assert spec.categories[0].baseline is expected


def test_a_truncated_training_image_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", good=24, defective=0)
    file = tmp_path / "data" / "good" / "003.jpg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ImageError, match=r"003\.jpg"):
        train(tmp_path / "data", tmp_path / "run", TINY, device="cpu")


def test_a_data_sets_own_validation_split_calibrates(tmp_path: Path) -> None:
    make_mvtec3d(tmp_path / "data", train=6, validation=9)
    bundle = train(tmp_path / "data", tmp_path / "run", QUICK, device="cpu", category="bagel")
    assert bundle.calibration.images == 9
    assert all("validation" in record.name for record in bundle.data.held_out)


def test_visa_trains(tmp_path: Path) -> None:
    make_visa(tmp_path / "data", train=24)
    assert len(train(tmp_path / "data", tmp_path / "run", QUICK, device="cpu").data.images) == 12


def test_the_input_size_follows_the_images_where_none_is_given(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / "data" / "good" / f"{i}.png", np.random.default_rng(i).integers(0, 255, (24, 48), np.uint8))
    config = QUICK.replace(image_height=0, image_width=0, branches=("intensity",), calibration="cross")
    bundle = train(tmp_path / "data", tmp_path / "run", config, device="cpu")
    assert bundle.model.image_size == bundle.config.image_size == (192, 352)
    assert "input 192 x 352" in bundle.data.split


def test_one_model_for_several_categories(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, count in (("plate", 20), ("cloth", 18)):
        make_mvtec(data / name, train=count, good=2, defective=1)
    with pytest.raises(ConfigError, match=r"takes all categories .* leave the category 'plate' out"):
        train(data, tmp_path / "run", TINY, category="plate", unified=True, device="cpu")
    with pytest.raises(DataError, match="holds one category only"):
        train(data / "plate", tmp_path / "run", TINY, unified=True, device="cpu")
    bundle = train(data, tmp_path / "run", QUICK, unified=True, device="cpu")
    assert bundle.data.category == "cloth, plate"
    for part, counts in (
        (bundle.data.images, {"cloth": 9, "plate": 10}),
        (bundle.data.held_out, {"cloth": 9, "plate": 10}),
    ):
        assert Counter(record.name.partition("/")[0] for record in part) == counts
    assert {name: len(own.scores) for name, own in bundle.calibration.categories.items()} == {"cloth": 9, "plate": 10}
    assert bundle.data.split.startswith("cloth: ") and "; plate: " in bundle.data.split


def test_images_may_be_links_to_another_place(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "links" / "good").mkdir(parents=True)
    for path in (tiny_data / "train" / "good").iterdir():
        (tmp_path / "links" / "good" / path.name).symlink_to(path)
    bundle = train(tmp_path / "links", tmp_path / "run", QUICK, device="cpu")
    assert all(path.is_symlink() for path in bundle.good_paths)
    assert all(record.name.startswith("good/") for record in bundle.data.images)


def test_weights_of_another_model_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    document = json.loads((run / "config.json").read_text())
    document["model"]["backbone"] = "resnet34"
    (run / "config.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="does not hold the weights of its model"):
        load(run, device="cpu")
    with pytest.raises(BundleError, match="not a run folder"):
        load(tmp_path / "nowhere")


# ---- pieces of the loop


def test_learning_rates() -> None:
    def factors(config: Config, places: list[tuple[int, int]]) -> list[float]:
        return [lr_factor(config, epoch, step, 4) for epoch, step in places]

    starts = [(e, 0) for e in range(10)]
    assert factors(TINY.replace(schedule="exponential", decay=0.5), starts[:3]) == [1, 0.5, 0.25]
    assert factors(TINY.replace(schedule="step", decay=0.1, epochs=10), starts) == [1] * 8 + [0.1] * 2
    values = factors(TINY.replace(schedule="one-cycle", epochs=10), [(e, s) for e in range(10) for s in range(4)])
    assert values.index(max(values)) == 3 and max(values) == pytest.approx(1) and values[-1] < 1e-6
    assert factors(TINY.replace(schedule="constant"), [(3, 0)]) == [1]


def test_the_order_of_images_changes_with_the_epoch_and_follows_from_the_seed() -> None:
    first = split_batches(50, 16, 0, 0, 0, 1)
    assert first == split_batches(50, 16, 0, 0, 0, 1)
    assert first != split_batches(50, 16, 0, 1, 0, 1) and first != split_batches(50, 16, 1, 0, 0, 1)
    assert [len(batch) for batch in first] == [16, 16, 16, 2]
