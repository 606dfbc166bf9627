"""The accuracy benchmark, on tiny data, with a stand-in for anomalib whose numbers can be worked out by hand."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdo_ad.calibration import Calibration
from cdo_ad.conformal import GoodScores
from cdo_ad.data import read_dataset, read_mask
from cdo_ad.data.store import load_all
from cdo_ad.errors import ConfigError
from cdo_ad.evaluation.metrics import PixelMetrics, image_metrics
from cdo_ad.inference.detector import load, resize_map
from cdo_ad.training.material import gather
from fakes import load_script, make_mvtec

SIZE = 64
TINY = ["backbone=resnet18", "weights=none", f"image_height={SIZE}", f"image_width={SIZE}", "epochs=1",
        "keep_groups_together=false", "false_alarm_rate=0.1"]  # fmt: skip

PEER = '''#!{python}
"""The distance to the mean good image, but a failure as STFPM; it counts how often it is called."""
import json, sys
from pathlib import Path
import numpy as np
job = Path(sys.argv[2])
order = json.loads((job / "job.json").read_text())
with Path("{calls}").open("a") as file:
    file.write(order["method"] + str(order["seed"]) + "\\n")
if order["method"] == "stfpm":
    sys.exit("ValueError: broken on purpose")
fit, judge = np.load(job / "fit.npy"), np.load(job / "judge.npy")
(job / "maps").mkdir()
maps = np.abs(judge - fit.mean(axis=0)).mean(axis=1).astype(np.float32)
for i, found in enumerate(maps):
    np.save(job / "maps" / f"{{i:05d}}.npy", found)
(job / "done.json").write_text(json.dumps({{"scores": [float(found.mean()) for found in maps]}}))
'''

accuracy = load_script("accuracy")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mvtec(tmp_path_factory.mktemp("accuracy") / "parts", train=20, good=3, defective=2)


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    file = tmp_path / "python"
    file.write_text(PEER.format(python=sys.executable, calls=tmp_path / "calls"))
    file.chmod(0o755)
    return file


def calls(peer: Path) -> list[str]:
    file = peer.with_name("calls")
    return file.read_text().split() if file.exists() else []


def run(data: Path, out: Path, *words: object) -> dict[str, Any]:
    assert accuracy.main([str(data), "--out", str(out), *map(str, words), "--set", *TINY]) == 0
    document: dict[str, Any] = json.loads((out / "accuracy.json").read_text())
    return document


@pytest.mark.slow
def test_a_recipe_is_trained_once_and_its_numbers_are_those_of_evaluate(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods", "paper_lite0", "paper_lite0 score_top=0.1", "--seeds", 0, 1, "--device", "cpu"]
    document = run(data, tmp_path, *words)
    assert [(row["data"], row["method"], row["seeds"]) for row in document["rows"]] == [
        ("parts", "paper_lite0", 2), ("parts", "paper_lite0 score_top=0.1", 2),
    ]  # fmt: skip
    mean, std = (document["rows"][0][key] for key in ("mean", "std"))
    runs = [load(tmp_path / f"cells/parts/all/paper_lite0-{seed}/run", device="cpu") for seed in (0, 1)]
    evaluations = [accuracy.evaluate(detector, read_dataset(data)) for detector in runs]
    values = [evaluation.metrics.image.auroc for evaluation in evaluations]
    assert mean["image_auroc"] == pytest.approx(statistics.fmean(values))
    assert std["image_auroc"] == pytest.approx(statistics.stdev(values))
    worst = [min(own.image.auroc for own in evaluation.metrics.types.values()) for evaluation in evaluations]
    assert mean["worst_type"] == pytest.approx(statistics.fmean(worst))
    assert mean["aupro"] == pytest.approx(statistics.fmean(e.metrics.pixel.aupro_30 for e in evaluations))
    assert mean["found_01"] is None and mean["found_05"] is None  # ten held out guarantee a tenth at best
    assert mean["seconds"] > 0
    assert "worst type" in capsys.readouterr().out
    model = tmp_path / "cells/parts/all/paper_lite0-0/run/model.safetensors"
    before = model.stat().st_mtime_ns
    (tmp_path / "cells/parts/all/paper_lite0-0/cell.json").unlink()  # interrupted between training and evaluation
    assert run(data, tmp_path, *words)["rows"][0]["mean"]["pixel_ap"] == mean["pixel_ap"]
    assert model.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_peer_learns_and_calibrates_on_the_papers_images(
    data: Path, tmp_path: Path, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "RATES", (0.05, 0.1))
    monkeypatch.setattr(accuracy, "COLUMNS", {"image_auroc": "", "pixel_ap": "", "found_10": "", "alarms_10": ""})
    words = ["--methods", "padim", "stfpm", "--seeds", 0, 1, "--peers-python", peer]
    document = run(data, tmp_path, *words)
    assert calls(peer) == ["padim0", "padim1", "stfpm0", "stfpm1"]
    [row] = document["rows"]
    expected = [by_hand(data, seed) for seed in (0, 1)]
    assert expected[0] != expected[1]  # other good images are held out
    for key, mean in row["mean"].items():
        assert mean == pytest.approx(statistics.fmean(numbers[key] for numbers in expected)), key
    assert len(document["notes"]) == 2
    assert all(note == "parts: stfpm was not run: ValueError: broken on purpose" for note in document["notes"])

    assert run(data, tmp_path, *words)["rows"] == [row] and calls(peer)[4:] == ["stfpm0", "stfpm1"]
    shutil.rmtree(tmp_path / "cells/parts/all/padim-1")
    run(data, tmp_path, *words)
    assert calls(peer)[6:] == ["padim1", "stfpm0", "stfpm1"]
    run(data, tmp_path, *words[:2], *words[3:], "--coreset", 0.5)  # another identity
    assert calls(peer)[9:] == ["padim0", "padim1"]


def by_hand(data: Path, seed: int) -> dict[str, float]:
    """What the stand-in must get."""
    config = accuracy.recipes.paper("lite0").with_settings(TINY).replace(seed=seed)
    material = gather(data, config, "auto", None, False, [])
    mean = load_all(material.paths, (SIZE, SIZE)).numpy().mean(axis=0)

    def found(path: Path) -> np.ndarray:
        [image] = load_all([path], (SIZE, SIZE)).numpy()
        result: np.ndarray = np.abs(image - mean).mean(axis=0).astype(np.float32)
        return result

    held_out = [found(path) for path, _ in material.held_out]
    good = GoodScores([float(m.mean()) for m in held_out], [float(m.max()) for m in held_out])
    calibration = Calibration.fit({"": good}, 0.1)
    pixels, labels, scores = PixelMetrics(), [], []
    for sample in (s for s in read_dataset(data) if s.split == "test"):
        size = accuracy.read_image(sample.path).shape[:2]
        own = read_mask(sample.mask_path) if sample.mask_path else np.zeros(size, bool)
        pixels.update(resize_map(found(sample.path), size), own)
        labels.append(sample.anomalous)
        scores.append(float(found(sample.path).mean()))
    decided = np.array([calibration.decide(score) for score in scores])
    truth = np.array(labels)
    return {
        "image_auroc": image_metrics(labels, scores).auroc, "pixel_ap": pixels.compute().ap,
        "found_10": float(decided[truth].mean()), "alarms_10": float(decided[~truth].mean()),
    }  # fmt: skip


def test_each_category_has_a_row_and_their_mean_follows(tmp_path: Path, peer: Path) -> None:
    for name in ("nut", "bolt"):
        make_mvtec(tmp_path / "hardware" / name, train=20, good=2, defective=1)
    bolt, nut, mean = run(
        tmp_path / "hardware", tmp_path / "out", "--methods", "padim", "--peers-python", peer
    )["rows"]  # fmt: skip
    assert [row["data"] for row in (bolt, nut, mean)] == ["hardware/bolt", "hardware/nut", "hardware, mean of 2"]
    both = [row["mean"]["image_auroc"] for row in (bolt, nut)]
    assert mean["mean"]["image_auroc"] == pytest.approx(statistics.fmean(both))
    assert bolt["std"]["image_auroc"] is None


def test_without_an_interpreter_each_peer_says_why_it_is_missing(data: Path, tmp_path: Path) -> None:
    document = run(data, tmp_path, "--methods", "padim", "patchcore")
    assert document["rows"] == []
    assert document["notes"][1] == (
        "parts: patchcore was not run: no --peers-python was given: name a Python that has anomalib"
    )
    gone = run(data, tmp_path, "--methods", "padim", "--peers-python", tmp_path / "none")
    assert "cannot be run or gave nothing back" in gone["notes"][0]


def test_two_data_sets_of_one_name_are_refused(data: Path, tmp_path: Path) -> None:
    make_mvtec(tmp_path / "parts", train=1)
    with pytest.raises(ConfigError, match="two data sets have one name"):
        accuracy.main([str(data), str(tmp_path / "parts"), "--out", str(tmp_path / "out")])
