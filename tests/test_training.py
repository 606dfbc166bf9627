from __future__ import annotations

import csv
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from cdo_ad.method.network import CdoNetwork
from safetensors.torch import load_file

from cdo_ad import load
from cdo_ad.bundle import read_bundle
from cdo_ad.conformal import conformal_threshold
from cdo_ad.data import read_image
from cdo_ad.errors import BundleError, CalibrationError, ConfigError, DataError, ImageError, TrainingError
from cdo_ad.training import job as training
from cdo_ad.training import loop as training_loop
from conftest import TINY
from fakes import make_folder, make_mvtec, make_mvtec3d, make_visa


def weights(run):
    return load_file(run / "model.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_bundle_is_complete(tiny_run, tiny_data) -> None:
    names = {p.name for p in tiny_run.iterdir()}
    assert {"model.safetensors", "config.json", "calibration.json", "train_log.csv", "tensorboard"} <= names
    bundle = read_bundle(tiny_run)
    assert bundle.config == TINY
    data = bundle.provenance["data"]
    assert not set(data["fit"]) & set(data["calibration"])
    assert len(data["fit"]) + len(data["calibration"]) == 24
    assert len(data["calibration"]) == len(bundle.calibration.scores) == 9
    assert all((tiny_data / name).is_file() for name in data["fit"] + data["calibration"])
    with (tiny_run / "train_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1]["lr"]) == pytest.approx(4e-4 * 0.95)
    assert not list(tiny_run.parent.glob(".*"))


def test_thresholds_come_from_the_held_out_images(tiny_run) -> None:
    bundle = read_bundle(tiny_run)
    detector = load(tiny_run, device="cpu")
    scores = [detector.predict_file(path).score for path in bundle.calibration_paths]
    assert sorted(scores) == pytest.approx(list(bundle.calibration.scores), rel=1e-5)
    assert bundle.calibration.image_threshold == conformal_threshold(bundle.calibration.scores, 0.1)
    assert not any(detector.predict_file(path).anomalous for path in bundle.calibration_paths)


def test_the_expert_never_changes(tiny_run) -> None:
    torch.manual_seed(TINY.seed)
    before = CdoNetwork("resnet18", (64, 64)).state_dict()
    after = weights(tiny_run)
    expert = [name for name in before if name.startswith("expert.")]
    assert expert and all(torch.equal(before[name], after[name]) for name in expert)
    apprentice = [name for name in before if name.startswith("apprentice.") and name.endswith("conv1.weight")]
    assert apprentice and not any(torch.equal(before[name], after[name]) for name in apprentice)


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(tiny_run, tiny_data, tmp_path) -> None:
    training.train(tiny_data, tmp_path / "again", TINY, device="cpu", workers=1, memory_budget=0)
    assert same(weights(tiny_run), weights(tmp_path / "again"))


def test_one_model_for_several_products(tmp_path) -> None:
    data = tmp_path / "data"
    for name, count in (("plate", 14), ("cloth", 12)):
        make_mvtec(data / name, train=count, good=2, defective=1)
    with pytest.raises(ConfigError, match=r"takes all products .* leave the category 'plate' out"):
        training.train(data, tmp_path / "run", TINY, category="plate", unified=True, device="cpu")
    with pytest.raises(DataError, match="holds one category only"):
        training.train(data / "plate", tmp_path / "run", TINY, unified=True, device="cpu")
    bundle = training.train(data, tmp_path / "run", TINY.replace(epochs=1), unified=True, device="cpu")
    about = bundle.provenance["data"]
    assert about["category"] == "cloth, plate"
    for part, counts in (("fit", {"cloth": 6, "plate": 7}), ("calibration", {"cloth": 6, "plate": 7})):
        assert Counter(name.partition("/")[0] for name in about[part]) == counts
    assert len(bundle.calibration.scores) == 13
    assert about["split"].startswith("cloth: ") and "; plate: " in about["split"]


def test_another_seed_gives_other_weights(tiny_run, tiny_data, tmp_path) -> None:
    training.train(tiny_data, tmp_path / "other", TINY.replace(seed=4, epochs=1), device="cpu")
    assert not same(weights(tiny_run), weights(tmp_path / "other"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_resuming_equals_not_being_interrupted(tiny_run, tiny_data, tmp_path, monkeypatch, error) -> None:
    run = tmp_path / "run"
    real = training_loop._epoch

    def interrupted(fabric, network, apprentice, optimizer, store, defects, config, epoch, workers):
        for step in real(fabric, network, apprentice, optimizer, store, defects, config, epoch, workers):
            yield step
            if epoch == 1:
                raise error

    monkeypatch.setattr(training_loop, "_epoch", interrupted)
    with pytest.raises(error):
        training.train(tiny_data, run, TINY, device="cpu")
    assert not run.exists()
    monkeypatch.setattr(training_loop, "_epoch", real)
    with pytest.raises(ConfigError, match=r"gamma was 2\.0 and is 1\.0"):
        training.train(tiny_data, run, TINY.replace(gamma=1.0), device="cpu", resume=True)
    training.train(tiny_data, run, TINY, device="cpu", resume=True)
    assert same(weights(tiny_run), weights(run))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(BundleError, match="nothing to resume"):
        training.train(tiny_data, run, TINY, device="cpu", resume=True)


def test_an_interrupted_training_leaves_the_old_run_whole(tiny_run, tiny_data, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_run", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(tiny_data, run, TINY.replace(epochs=1), device="cpu")
    assert same(weights(tiny_run), weights(run))
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".run.*.tmp"))


def test_a_diverging_loss_stops_with_advice(tiny_data, tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"loss is (nan|-?inf) in epoch .*--set lr="):
        training.train(tiny_data, tmp_path / "run", TINY.replace(lr=1e30, epochs=4), device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_not_overwritten(tiny_data, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a run folder"):
        training.train(tiny_data, tmp_path / "photos", TINY, device="cpu")
    assert (tmp_path / "photos" / "a.txt").read_text() == "mine"


def test_two_images_are_too_few_for_the_promise(tmp_path) -> None:
    make_folder(tmp_path / "data", good=2, defective=0)
    with pytest.raises(CalibrationError, match=r"needs 19 .* there are 1: add 18 more, .*--false-alarm-rate 0\.5"):
        training.train(tmp_path / "data", tmp_path / "run", TINY.replace(false_alarm_rate=0.05), device="cpu")
    training.train(tmp_path / "data", tmp_path / "run", TINY.replace(false_alarm_rate=0.5, epochs=1), device="cpu")
    assert len(read_bundle(tmp_path / "run").calibration.scores) == 1


def test_a_truncated_training_image_is_named(tmp_path) -> None:
    make_folder(tmp_path / "data", good=24, defective=0)
    file = tmp_path / "data" / "good" / "003.jpg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ImageError, match=r"003\.jpg"):
        training.train(tmp_path / "data", tmp_path / "run", TINY, device="cpu")


def test_a_data_sets_own_validation_split_calibrates(tmp_path) -> None:
    make_mvtec3d(tmp_path / "data", train=6, validation=9)
    bundle = training.train(tmp_path / "data", tmp_path / "run", TINY.replace(epochs=1), device="cpu", category="bagel")
    assert len(bundle.calibration.scores) == 9
    assert all("validation" in name for name in bundle.provenance["data"]["calibration"])


def test_visa_trains(tmp_path) -> None:
    make_visa(tmp_path / "data", train=24)
    bundle = training.train(tmp_path / "data", tmp_path / "run", TINY.replace(epochs=1), device="cpu")
    assert len(bundle.provenance["data"]["fit"]) == 15


@pytest.mark.parametrize(
    "settings",
    [
        {"mom": False},
        {"oom": False},
        {"optimizer": "adam", "schedule": "step", "decay": 0.1},
        {"schedule": "one-cycle", "background": "border"},
        {"schedule": "constant", "score_top": 0.01},
        {"image_width": 96},
        {"precision": "bf16-mixed"},
    ],
)
def test_switches_train(tiny_run, tiny_data, tmp_path, settings) -> None:
    config = TINY.replace(**settings)
    training.train(tiny_data, tmp_path / "run", config, device="cpu")
    assert not same(weights(tiny_run), weights(tmp_path / "run")) or "score_top" in settings
    prediction = load(tmp_path / "run", device="cpu").predict(np.zeros((50, 70, 3), np.uint8))
    assert prediction.anomaly_map.shape == (50, 70)


def test_learning_rates() -> None:
    factor = training_loop._lr_factor
    assert [factor(TINY.replace(schedule="exponential", decay=0.5), e, 0, 4) for e in range(3)] == [1, 0.5, 0.25]
    step = TINY.replace(schedule="step", decay=0.1, epochs=10)
    assert [factor(step, e, 0, 4) for e in (0, 7, 8, 9)] == [1, 1, 0.1, 0.1]
    cycle = TINY.replace(schedule="one-cycle", epochs=10)
    values = [factor(cycle, e, s, 4) for e in range(10) for s in range(4)]
    assert values.index(max(values)) == 3 and max(values) == pytest.approx(1) and values[-1] < 1e-6
    assert factor(TINY.replace(schedule="constant"), 3, 0, 4) == 1


def test_batches_cover_each_image_once_over_all_ranks() -> None:
    shares = [training_loop._batches(50, 16, 0, 0, rank, 2) for rank in range(2)]
    seen = [i for batches in shares for batch in batches for i in batch]
    assert sorted(seen) == list(range(50))
    assert training_loop._batches(17, 16, 0, 0, 0, 1) == [training_loop._batches(17, 16, 0, 0, 0, 1)[0]]
    assert training_loop._batches(50, 16, 0, 1, 0, 2) != shares[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "model.safetensors is missing"),
        ("config.json", "{", "cannot be read"),
        ("config.json", '{"format": 99}', "newer version"),
        ("config.json", '{"format": 1}', "damaged"),
        ("config.json", "[]", "one JSON object"),
        ("calibration.json", "{}", "damaged"),
    ],
)
def test_damaged_bundles_are_named(tiny_run, tmp_path, name, content, message) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(BundleError, match=message):
        read_bundle(run)


def test_weights_of_other_networks_are_refused(tiny_run, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    document = json.loads((run / "config.json").read_text())
    document["settings"]["backbone"] = "resnet34"
    (run / "config.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="does not hold the networks"):
        load(run, device="cpu")
    with pytest.raises(BundleError, match="not a run folder"):
        load(tmp_path / "nowhere")


def test_loading_gives_the_identical_output(tiny_run, tiny_data) -> None:
    image = read_image(sorted((tiny_data / "test" / "good").iterdir())[0])
    one, other = (load(tiny_run, device="cpu").predict(image) for _ in range(2))
    assert np.array_equal(one.anomaly_map, other.anomaly_map) and one.score == other.score


def test_images_may_be_links_to_another_place(tiny_data, tmp_path) -> None:
    (tmp_path / "links" / "good").mkdir(parents=True)
    for path in (tiny_data / "train" / "good").iterdir():
        (tmp_path / "links" / "good" / path.name).symlink_to(path)
    bundle = training.train(tmp_path / "links", tmp_path / "run", TINY.replace(epochs=1), device="cpu")
    assert all(path.is_symlink() for path in bundle.calibration_paths)
    assert all(name.startswith("good/") for name in bundle.provenance["data"]["fit"])
