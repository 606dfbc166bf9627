"""Metrics by type and category against metrics that are updated image by image; what is written and read back."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from cdo_ad.bundle import Bundle, locked, read_bundle
from cdo_ad.data import read_dataset, read_image, read_mask
from cdo_ad.errors import BundleError, BusyError, DataError, MissingExtraError
from cdo_ad.evaluation.evaluate import evaluate
from cdo_ad.evaluation.judge import read_samples
from cdo_ad.evaluation.metrics import PixelMetrics, image_metrics, rate_interval
from cdo_ad.evaluation.results import evaluate_run, images_csv, read_metrics, read_results, write_results
from cdo_ad.files import finite, relative_name
from cdo_ad.inference.detector import load
from cdo_ad.training.train import train
from cdo_ad.types import GOOD, Sample
from conftest import DENSE, TINY
from fakes import make_mvtec


@pytest.fixture(scope="module")
def unified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """A run of two categories, and their data set."""
    root = tmp_path_factory.mktemp("unified")
    for name in ("nut", "bolt"):
        make_mvtec(root / "data" / name, train=10, good=2, defective=2)
    config = DENSE.replace(epochs=1)
    return train(root / "data", root / "run", config, unified=True, device="cpu"), root / "data"


def test_the_metrics_of_a_type_are_those_of_its_images_and_the_good_ones(tiny_run: Path, tiny_data: Path) -> None:
    detector = load(tiny_run, device="cpu")
    samples = [s for s in read_dataset(tiny_data) if s.split == "test"]
    found = evaluate(detector, samples).metrics
    for wanted in ("all", "scratch", "spot"):
        expected = PixelMetrics()
        for sample in samples:
            if wanted == "all" or sample.defect_type in (GOOD, wanted):
                mask = None if sample.mask_path is None else read_mask(sample.mask_path)
                expected.update(detector.predict(read_image(sample.path)).anomaly_map, mask)
        metrics = found if wanted == "all" else found.types[wanted]
        assert dict(metrics.pixel) == pytest.approx(dict(expected.compute()), abs=1e-12)
        assert metrics.n.anomalous == (6 if wanted == "all" else 3)


def test_each_category_has_metrics_of_its_own_and_rankings_are_means(unified: tuple[Bundle, Path]) -> None:
    bundle, data = unified
    detector = load(bundle.path, device="cpu")
    found = evaluate(detector, read_samples(detector, data))
    metrics = found.metrics
    assert sorted(metrics.categories) == ["bolt", "nut"] and metrics.types == {}
    for name, own in metrics.categories.items():
        scored = [s for s in found.scored if s.category == name]
        assert all(s.sample.category == name for s in scored)
        expected = image_metrics([s.sample.anomalous for s in scored], [s.score for s in scored])
        assert own.image == expected and sorted(own.types) == ["scratch", "spot"]
        alone = evaluate(detector, read_samples(detector, data, category=name)).metrics
        assert alone.model_copy(update={"categories": {}}).to_json().items() >= own.to_json().items()
    assert metrics.image.auroc == pytest.approx(np.mean([m.image.auroc for m in metrics.categories.values()]))
    assert metrics.pixel.aupro_05 == pytest.approx(np.mean([m.pixel.aupro_05 for m in metrics.categories.values()]))
    rates = [m.decision.detection_rate for m in metrics.categories.values()]
    pooled = metrics.decision.detection_rate
    assert (pooled.count, pooled.n) == (sum(r.count for r in rates), sum(r.n for r in rates))
    assert (pooled.low, pooled.high) == rate_interval(pooled.count, pooled.n)


def test_data_of_other_categories_is_refused(unified: tuple[Bundle, Path], tmp_path: Path) -> None:
    make_mvtec(tmp_path / "data" / "gear", train=2)
    make_mvtec(tmp_path / "data" / "cog", train=2)
    with pytest.raises(DataError, match="none of the run's categories, which are bolt, nut"):
        read_samples(load(unified[0].path, device="cpu"), tmp_path / "data")


def test_what_is_written_is_read_back(unified: tuple[Bundle, Path], tmp_path: Path) -> None:
    run = shutil.copytree(unified[0].path, tmp_path / "run")
    found, document = evaluate_run(run, unified[1], device="cpu")
    results = read_results(run)
    assert results.metrics == document == read_metrics(read_bundle(run))
    assert results.scores.tolist() == [s.score for s in found.scored]
    assert results.p_values.tolist() == [s.p_value for s in found.scored]
    assert results.decisions.tolist() == [s.anomalous for s in found.scored]
    assert results.categories == tuple(s.category for s in found.scored) and results.pixels is not None
    calibration = unified[0].calibration
    assert results.thresholds.tolist() == [calibration.of(s.category).image_threshold for s in found.scored]
    assert document.weights_sha256 == unified[0].weights_sha256
    text = (run / "metrics.json").read_text()
    assert json.loads(text)["categories"]["nut"]["image"]["auroc"] == document.categories["nut"].image.auroc


def test_a_missing_extra_is_said_before_any_image_is_judged(
    tiny_run: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = load(tiny_run, device="cpu")
    monkeypatch.setattr(detector, "engine", None)  # judging would fail
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cdo-ad\[evaluate\]'"):
        evaluate(detector, read_dataset(tiny_data))


def test_an_evaluation_at_another_rate_names_its_thresholds(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    _, document = evaluate_run(run, tiny_data, false_alarm_rate=0.3, device="cpu")
    expected = read_bundle(run).calibration.at_rate(0.3).of().image_threshold
    assert list(document.thresholds.values()) == [expected] and document.decision.rate == 0.3
    assert set(read_results(run).thresholds) == {expected}


def test_results_that_do_not_belong_to_the_run_or_together_are_refused(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    with pytest.raises(BundleError, match="was not evaluated yet: run  cdo-ad evaluate"):
        read_results(run)
    found, _ = evaluate_run(run, tiny_data, device="cpu")
    text, rows = (run / "metrics.json").read_text(), (run / "images.csv").read_text()
    (run / "images.csv").write_text(rows.replace(",0\n", ",1\n", 1))
    with pytest.raises(BundleError, match=r"images.csv has changed since the evaluation: run  cdo-ad evaluate"):
        read_results(run)
    (run / "images.csv").unlink()
    with pytest.raises(BundleError, match=r"images.csv cannot be read: No such file"):
        read_results(run)
    (run / "metrics.json").write_text(text.replace(read_bundle(run).weights_sha256, "0" * 64))
    with pytest.raises(BundleError, match="was evaluated with other weights: run  cdo-ad evaluate"):
        read_results(run)
    (run / "metrics.json").write_text(text.replace('"auroc": 1.0', '"auroc": 1.5').replace('"ap"', '"AP"', 1))
    with pytest.raises(BundleError, match=r"metrics.json is damaged \(image"):
        read_results(run)
    other = shutil.copytree(tiny_run, tmp_path / "other")
    train(tiny_data, other, TINY.replace(seed=4, epochs=1), device="cpu")
    with pytest.raises(BundleError, match="is of other weights than the run's"):
        write_results(other, found, tiny_data)
    with locked(run), pytest.raises(BusyError):
        write_results(run, found, tiny_data)


def test_names_with_commas_quotes_and_line_breaks_are_kept(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    names = ["a.png", 'comma, and "quote".png', "sub/line\nbreak.png"]
    source = tiny_data / "test" / "spot" / "000.png"
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / name)
    found = evaluate(load(tiny_run, device="cpu"), [Sample(tmp_path / name, "test", "dent") for name in names])
    rows = list(csv.DictReader(io.StringIO(images_csv(found, tmp_path), newline="")))
    assert [row["path"] for row in rows] == names
    assert [float(row["score"]) for row in rows] == [s.score for s in found.scored]
    assert [row["anomalous"] for row in rows] == [str(int(s.anomalous)) for s in found.scored]


def test_names_are_relative_to_the_folder_also_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert relative_name(tmp_path / "real" / "a.png", tmp_path / "link") == "a.png"
    assert relative_name(Path("/elsewhere/a.png"), tmp_path) == "/elsewhere/a.png"


def test_json_knows_no_infinity() -> None:
    assert finite({"a": (1.0, float("nan")), "b": [float("inf"), np.inf, "text", 3]}) == {
        "a": [1.0, None],
        "b": [None, None, "text", 3],
    }
