"""The accuracy benchmark's glue, on tiny data, with a stand-in for anomalib whose figures can be worked out by hand."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdo_ad import recipes
from cdo_ad.bundle import read_bundle
from cdo_ad.data import read_dataset, read_mask
from cdo_ad.data.store import load_all
from cdo_ad.errors import ConfigError
from cdo_ad.evaluation.metrics import PixelMetrics, image_metrics
from cdo_ad.inference.detector import resize_map
from fakes import load_script, make_mvtec, make_mvtec3d

SIZE = 64
TINY = ["backbone=resnet18", "weights=none", f"image_height={SIZE}", f"image_width={SIZE}", "epochs=1",
        "false_alarm_rate=0.1", "calibration_minimum=9"]  # fmt: skip

PEER = '''#!{python}
"""The distance to the mean good image, but a failure as STFPM; it counts how often it is called."""
import json, shutil, sys
from pathlib import Path
import numpy as np
job = Path(sys.argv[2])
order = json.loads((job / "job.json").read_text())
with Path("{calls}").open("a") as file:
    file.write(order["method"] + str(order["seed"]) + "\\n")
if order["method"] == "stfpm":
    sys.exit("ValueError: broken on purpose")
fit, judge = np.load(job / "fit.npy"), np.load(job / "judge.npy")
shutil.copy(job / "fit.npy", "{calls}-" + str(order["seed"]) + ".npy")
(job / "maps").mkdir()
maps = np.abs(judge - fit.mean(axis=0)).mean(axis=1).astype(np.float32)
for i, found in enumerate(maps):
    np.save(job / "maps" / f"{{i:05d}}.npy", found)
scores = [float(found.mean()) for found in maps]
(job / "done.json").write_text(json.dumps({{"scores": scores, "versions": {{"anomalib": "of the test"}}}}))
'''


accuracy = load_script("accuracy")


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    file = tmp_path / "python"
    file.write_text(PEER.format(python=sys.executable, calls=tmp_path / "calls"))
    file.chmod(0o755)
    return file


def calls(peer: Path) -> list[str]:
    file = peer.with_name("calls")
    return file.read_text().split() if file.exists() else []


def run(data: Path, out: Path, *words: str) -> dict[str, Any]:
    """The document of one data set, once the whole table was made."""
    assert accuracy.main([str(data), "--out", str(out), *words, "--set", *TINY]) == 0
    document: dict[str, Any] = json.loads((out / "accuracy.json").read_text())["data_sets"][data.name]
    return document


def rows_of(document: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [row for row in document["rows"] if method in row["settings"]["method"]]


@pytest.mark.slow
def test_ours_and_peers_on_one_split_by_one_set_of_metrics(tmp_path: Path, peer: Path) -> None:
    data, out = make_mvtec(tmp_path / "parts", train=24), tmp_path / "out"
    words = ["--seeds", "0", "1", "--methods", "stfpm", "padim", "lite0", "--peers-python", str(peer)]
    document = run(data, out, *words)
    assert calls(peer) == ["stfpm0", "stfpm1", "padim0", "padim1"]

    expected = [
        figures_by_hand(data, out / "cells" / "parts" / "parts" / f"lite0-{s}" / "run", peer, s) for s in (0, 1)
    ]
    assert expected[0] != expected[1]  # other good images are held out
    [row] = rows_of(document, "PaDiM")
    assert row["settings"] == {"method": "PaDiM", "backbone": "resnet18", "input": f"{SIZE}x{SIZE}"}
    assert row["seeds"] == 2
    for key in ("image.auroc", "pixel.ap"):
        values = [figures[key] for figures in expected]
        assert row["metrics"][key]["mean"] == pytest.approx(statistics.fmean(values))
        assert row["metrics"][key]["std"] == pytest.approx(statistics.stdev(values))
    [ours] = rows_of(document, "CDO, lite0")
    measured = json.loads((out / "cells/parts/parts/lite0-0/run/metrics.json").read_text())
    other = json.loads((out / "cells/parts/parts/lite0-1/run/metrics.json").read_text())
    mean = statistics.fmean([measured["image"]["auroc"], other["image"]["auroc"]])
    assert ours["metrics"]["image.auroc"]["mean"] == pytest.approx(mean)

    [failed] = rows_of(document, "STFPM")
    assert failed["metrics"] == {} and failed["category"] == "parts: not run"
    assert any("STFPM was not run: ValueError: broken on purpose" in note for note in document["notes"])
    lines = list(csv.DictReader((out / "parts.csv").read_text().splitlines()))
    assert [line["method"] for line in lines] == ["CDO, lite0", "STFPM", "PaDiM"]
    assert float(lines[2]["image.auroc"]) == pytest.approx(row["metrics"]["image.auroc"]["mean"], abs=1e-6)
    assert r"\begin{tabular}" in (out / "parts.tex").read_text()
    alone = run(data, tmp_path / "alone", *words[:4], "padim", *words[-2:])  # no run of ours to take the split from
    assert rows_of(alone, "PaDiM") == [row]

    model = out / "cells/parts/parts/lite0-0/run/model.safetensors"
    before = model.stat().st_mtime_ns
    (out / "cells/parts/parts/lite0-0/cell.json").unlink()  # interrupted between training and evaluation
    assert rows_of(run(data, out, *words), "CDO, lite0") == [ours]
    assert model.stat().st_mtime_ns == before


def figures_by_hand(data: Path, bundle: Path, peer: Path, seed: int) -> dict[str, float]:
    """What the peer of the test must get, from the split of our own run."""
    fit = read_bundle(bundle).provenance["data"]["fit"]
    images = load_all([data / name for name in fit], (SIZE, SIZE)).numpy()
    np.testing.assert_array_equal(np.load(peer.with_name(f"calls-{seed}.npy")), images)
    mean, pixels, labels, scores = images.mean(axis=0), PixelMetrics(), [], []
    for sample in (s for s in read_dataset(data) if s.split == "test"):
        [image] = load_all([sample.path], (SIZE, SIZE)).numpy()
        found = np.abs(image - mean).mean(axis=0).astype(np.float32)
        own = read_mask(sample.mask_path) if sample.mask_path else None
        size = own.shape if own is not None else size_of(sample.path)
        pixels.update(resize_map(found, size), np.zeros(size, bool) if own is None else own)
        labels.append(sample.anomalous)
        scores.append(float(found.mean()))
    return {"image.auroc": image_metrics(labels, scores).auroc, "pixel.ap": pixels.compute().ap}


def size_of(path: Path) -> tuple[int, int]:
    from cdo_ad.data import read_image

    return read_image(path).shape[:2]


@pytest.mark.slow
def test_finished_cells_are_kept_and_stale_ones_are_not(tmp_path: Path, peer: Path) -> None:
    data, out = make_mvtec(tmp_path / "parts", train=24), tmp_path / "out"
    words = ["--seeds", "0", "1", "--methods", "padim", "patchcore", "--peers-python", str(peer)]
    first = run(data, out, *words)
    assert calls(peer) == ["padim0", "padim1", "patchcore0", "patchcore1"]
    assert run(data, out, *words) == first and len(calls(peer)) == 4
    shutil.rmtree(out / "cells" / "parts" / "parts" / "padim-1")  # as after an interruption
    assert run(data, out, *words) == first and calls(peer)[4:] == ["padim1"]
    run(data, out, *words, "--coreset", "0.5")
    assert calls(peer)[5:] == ["patchcore0", "patchcore1"]
    make_mvtec(data, train=23)  # test images as before, but the last training image has other pixels
    (data / "train/good/023.png").write_bytes((data / "train/good/000.png").read_bytes())
    run(data, out, *words, "--coreset", "0.5")
    assert len(calls(peer)) == 11


@pytest.mark.slow
def test_settings_of_a_methods_own_and_one_training_for_those_that_share_it(tmp_path: Path) -> None:
    data, out = make_mvtec(tmp_path / "parts", train=24), tmp_path / "out"
    variants = ["lite0 density=false", "lite0 fusion_weights=0,1,0,0", "lite0 mom=false"]
    document = run(data, out, "--methods", "lite0", *variants)
    assert [row["settings"]["method"] for row in document["rows"]] == [
        "CDO, lite0", "CDO, lite0, density=false", "CDO, lite0, fusion_weights=0,1,0,0", "CDO, lite0, mom=false",
    ]  # fmt: skip
    runs = {path.parent.name: read_bundle(path) for path in (out / "cells/parts/parts").glob("*/run")}
    trained = {name for name, bundle in runs.items() if (bundle.path / "train_log.csv").is_file()}
    assert trained == {"lite0-0", "lite0_mom=false-0"}
    assert runs["lite0_density=false-0"].config.density is False
    assert runs["lite0_fusion_weights=0,1,0,0-0"].config.shares() == (0, 1, 0, 0)
    assert all(recipes.get("lite0").with_settings(settings.split()) for settings in accuracy.ABLATION)


@pytest.mark.slow
def test_all_products_of_a_layout_with_published_figures_below(tmp_path: Path, peer: Path) -> None:
    root = tmp_path / "mvtec3d"
    for category in ("bagel", "rope"):
        make_mvtec3d(root, train=6, validation=9, category=category)
    document = run(root, tmp_path / "out", "--methods", "padim", "--peers-python", str(peer), "--at-size", "32x32")
    assert [row["category"] for row in document["rows"]] == ["bagel", "rope", "mean of 2", "mean of 10"]
    assert document["rows"][-1]["kind"] == "published"
    assert document["rows"][-1]["metrics"]["pixel.aupro_30"]["mean"] == 0.9375
    full = run(root, tmp_path / "full", "--methods", "padim", "--peers-python", str(peer))
    assert full["rows"][0]["metrics"]["image.auroc"] == document["rows"][0]["metrics"]["image.auroc"]
    assert full["rows"][0]["metrics"]["pixel.ap"] != document["rows"][0]["metrics"]["pixel.ap"]
    assert any("Pixels are compared at 32x32" in note for note in document["notes"])


def test_without_an_interpreter_each_peer_says_why_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_mvtec(tmp_path / "parts", train=12)
    document = run(data, tmp_path / "out", "--methods", "padim", "patchcore", "stfpm")
    assert [row["category"] for row in document["rows"]] == ["parts: not run"] * 3
    text = capsys.readouterr().out
    assert "PatchCore, coreset 1 % was not run: no --peers-python was given" in text
    gone = run(data, tmp_path / "out", "--methods", "padim", "--peers-python", str(tmp_path / "none"))
    assert any("cannot be run or gave nothing back" in note for note in gone["notes"])


def test_two_data_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make_mvtec(tmp_path / folder / "parts", train=1)
    with pytest.raises(ConfigError, match="two data sets have one name"):
        accuracy.main([str(tmp_path / "a" / "parts"), str(tmp_path / "b" / "parts"), "--out", str(tmp_path / "out")])
