"""Runs side by side: differences with paired intervals, checked by drawing and counting the slow way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from browser import browser_page, numbers
from fakes import make_image, make_mvtec, write

pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("jinja2", reason="the extra `report` is not installed")
pytest.importorskip("plotly", reason="the extra `report` is not installed")

from cdo_ad.cli.main import app
from cdo_ad.errors import BundleError, ConfigError
from cdo_ad.evaluation.metrics import PixelMetrics, image_metrics
from cdo_ad.evaluation.pixel_counts import PixelCounter, PixelCounts
from cdo_ad.evaluation.results import Results, read_results
from cdo_ad.reporting.bootstrap import draw, interval, kinds_of, metrics_of
from cdo_ad.reporting.compare import comparison
from cdo_ad.reporting.settings import run_names


def command(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two runs of random weights on one data set, evaluated, and the data set."""
    from runs import make_run

    root = tmp_path_factory.mktemp("compare")
    made = [make_run(root / name, size=size).path for name, size in (("one", (64, 64)), ("two", (32, 64)))]
    data = make_mvtec(root / "data", train=2, good=8, defective=4)
    for run in made:
        command("evaluate", run, data, "--device", "cpu")
    return made[0], made[1], data


@pytest.fixture(scope="module")
def results(pair: tuple[Path, Path, Path]) -> list[Results]:
    return [read_results(run) for run in pair[:2]]


def test_what_evaluate_wrote_is_read(pair: tuple[Path, Path, Path], results: list[Results]) -> None:
    first = results[0]
    assert len(first.paths) == 16 and first.anomalous.sum() == 8
    assert first.metrics.data.root == str(pair[2].resolve())
    assert [len(print_of) for print_of in first.metrics.data.fingerprints.values()] == [64]
    decide = first.bundle.calibration.decide
    assert first.decisions.tolist() == [decide(score) for score in first.scores]
    once = metrics_of(first, np.ones((1, 16)))
    for key, values in once.items():
        group, _, name = key.partition(".")
        if group in ("image", "pixel"):
            exact = getattr(getattr(first.metrics, group), name)
            assert values[0] == pytest.approx(exact, abs=1e-9 if group == "image" else 2e-3)
        elif group == "decision":
            assert values[0] == pytest.approx(getattr(first.metrics.decision, name).value)
        else:
            assert values[0] == first.metrics.types[group].decision.detection_rate.value
    assert {"scratch.detection_rate", "pixel.aupro_05"} <= once.keys()


def test_figures_of_a_resample_are_those_of_the_images_repeated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    anomalous = np.arange(9) > 4
    maps = [rng.gamma(2, 1, (20, 30)).astype(np.float32) + 0.5 * bad for bad in anomalous]
    masks = [np.zeros((20, 30), bool) for _ in maps]
    for k in np.flatnonzero(anomalous):
        masks[k][2:9, 4:12] = masks[k][12:15, 20:25] = True
        maps[k][masks[k]] += 2
    scores = np.round(np.array([m.max() for m in maps]))  # with ties
    counts = PixelCounter()
    for k, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        counts.add(k, anomaly_map, mask)
    file = tmp_path / "pixels.npz"
    file.write_bytes(counts.to_bytes())
    types = tuple("dent" if bad else "good" for bad in anomalous)
    names = tuple(map(str, range(9)))
    decisions = scores > np.median(scores)
    pixels = PixelCounts.load(file, 9)
    run = Results(None, None, names, types, ("",) * 9, scores, scores, decisions, pixels)  # type: ignore[arg-type]
    times = draw(anomalous, 6, seed=3)
    assert (times[:, ~anomalous].sum(axis=1) == 5).all() and (times[:, anomalous].sum(axis=1) == 4).all()
    found = metrics_of(run, times)
    for r, row in enumerate(times.astype(int)):
        again = np.repeat(np.arange(9), row)
        exact = image_metrics(anomalous[again], scores[again])
        assert found["image.auroc"][r] == pytest.approx(exact.auroc, abs=1e-12)
        assert found["image.ap"][r] == pytest.approx(exact.ap, abs=1e-12)
        pixel = PixelMetrics()
        for k in again:
            pixel.update(maps[k], masks[k])
        for name, value in pixel.compute():
            if name != "f1max":
                assert found[f"pixel.{name}"][r] == pytest.approx(value, abs=2e-3)
        good = [k for k in again if not anomalous[k]]
        assert found["decision.false_alarm_rate"][r] == pytest.approx(np.mean(decisions[good]))


def test_intervals_of_differences_are_paired_and_honest(results: list[Results]) -> None:
    document = comparison(results, seed=1, resamples=400)
    times = draw(results[0].anomalous, 400, 1)
    for row in document["rows"]:
        assert row["values"][0] is not None
        drawn = [metrics_of(run, times)[row["key"]] for run in results]
        expected = np.quantile(drawn[1] - drawn[0], (0.025, 0.975))
        found = row["differences"][0]
        assert (found["low"], found["high"]) == pytest.approx(tuple(expected))
        assert found["value"] == pytest.approx(row["values"][1] - row["values"][0])
    assert [row["key"] for row in document["rows"]][:2] == ["decision.detection_rate", "decision.false_alarm_rate"]
    assert [row["name"] for row in document["types"]] == ["scratch", "spot"]
    assert document == comparison(results, seed=1, resamples=400) != comparison(results, seed=2, resamples=400)
    same = comparison([results[0], results[0]], resamples=100)
    assert all(r["differences"][0] == {"value": 0.0, "low": 0.0, "high": 0.0, "verdict": "not told apart"}
               for r in same["rows"])  # fmt: skip
    assert same["sentences"] == [] and document["settings"] == {"image_height": [64, 32]}


def test_a_clear_difference_is_called_one(results: list[Results]) -> None:
    base = results[0]
    better = replace(base, scores=base.scores + 100 * base.anomalous, decisions=base.anomalous, pixels=None)
    document = comparison([base, better], resamples=400)
    # without masks there is nothing to say of pixels, and the page says so
    assert not any(row["key"].startswith("pixel") for row in document["rows"])
    assert document["notes"] == ["The test images have no masks, so there are no pixel metrics."]
    auroc = next(row for row in document["rows"] if row["key"] == "image.auroc")
    assert auroc["differences"][0]["low"] > 0 and auroc["differences"][0]["verdict"] == "better"
    alarms = next(row for row in document["rows"] if row["key"] == "decision.false_alarm_rate")
    assert alarms["differences"][0]["verdict"] in ("better", "not told apart")


def test_runs_of_other_images_are_refused(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, two, data = pair
    copy = shutil.copytree(data, tmp_path / "data")
    other = shutil.copytree(two, tmp_path / "other")
    (copy / "test" / "good" / "000.png").rename(copy / "test" / "good" / "900.png")
    command("evaluate", other, copy, "--device", "cpu")
    with pytest.raises(BundleError, match=r"different test images \(1 and 1 .*test/good/000.png.*cdo-ad evaluate"):
        comparison([read_results(one), read_results(other)])
    (copy / "test" / "good" / "900.png").unlink()
    write(copy / "test" / "good" / "000.png", make_image(4711)[0])
    command("evaluate", other, copy, "--device", "cpu")
    with pytest.raises(BundleError, match="same names but other content"):
        comparison([read_results(one), read_results(other)])
    with pytest.raises(ConfigError, match="two runs or more"):
        comparison([read_results(one)])
    with pytest.raises(ConfigError, match="too few for an interval"):
        comparison([read_results(one)] * 2, resamples=10)


def test_pixels_at_different_sizes_are_not_compared(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(pair[1], tmp_path / "other")
    command("evaluate", other, pair[2], "--at-size", "32x32", "--device", "cpu")
    document = comparison([read_results(pair[0]), read_results(other)], resamples=100)
    assert not any(row["key"].startswith("pixel") for row in document["rows"]) and "--at-size" in document["notes"][0]


def test_rankings_of_several_categories_are_means_over_them(results: list[Results]) -> None:
    one = results[0]
    half = np.arange(16) % 2
    run = replace(one, categories=tuple("ab"[k] for k in half), scores=one.scores + 100 * half)
    found = metrics_of(run, np.ones((1, 16)))
    parts = [image_metrics(run.anomalous[half == k], run.scores[half == k]).auroc for k in (0, 1)]
    assert found["image.auroc"][0] == pytest.approx(np.mean(parts))
    assert sorted(kinds_of(run)) == ["a/scratch", "a/spot", "b/scratch", "b/spot"]
    times = draw(list(zip(run.categories, run.anomalous, strict=True)), 5, seed=0)
    for k in (0, 1):
        for bad in (False, True):
            own = (half == k) & (run.anomalous == bad)
            assert (times[:, own].sum(axis=1) == own.sum()).all()


def test_an_interval_of_nothing_is_no_number() -> None:
    assert np.isnan(interval(np.full(5, np.nan))).all()
    assert interval(np.array([1.0, np.nan, 1.0])) == (1.0, 1.0)


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    assert run_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert run_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert run_names([tmp_path / "a"] * 2) == [f"{tmp_path / 'a'} (1)", f"{tmp_path / 'a'} (2)"]


@pytest.mark.slow
def test_the_page_in_a_browser(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, two, data = pair
    page = tmp_path / "out" / "page.html"
    assert command("report", one, two, two, "--out", page).strip() == str(page)
    document = numbers(page)
    assert [run["name"] for run in document["runs"]][1:] == [f"{two} (2)", f"{two} (3)"]
    command("report", one, two, "--out", page)
    document = numbers(page)
    assert "not a run folder: to compare" in str(
        CliRunner().invoke(app, ["report", *map(str, (one, data, two))]).exception
    )
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    with browser_page(page) as (browser, complaints):
        browser.wait_for_selector("#forest .main-svg")
        rows = browser.locator("#rows tbody tr")
        assert rows.count() == len(document["rows"]) == 8
        cells = rows.nth(0).locator("td")
        for k, figures in enumerate(metrics):
            shown = cells.nth(k + 1).inner_text().split("%")[0]
            assert float(shown) / 100 == pytest.approx(figures["decision"]["detection_rate"]["value"], abs=6e-4)
        drawn = browser.evaluate("document.getElementById('forest').data[0].x")
        assert sorted(drawn) == pytest.approx(sorted(100 * r["differences"][0]["value"] for r in document["rows"]))
        differ = sum(a != b for a, b in zip(*(run["decisions"] for run in document["runs"]), strict=True))
        assert browser.locator("#disagreements tbody tr").count() == differ
        assert browser.inner_text("#different") == f"{differ} of 16 images"
        assert browser.locator("#charts .main-svg").count() >= 4
        for width in (1300, 390):
            browser.set_viewport_size({"width": width, "height": 800})
            browser.wait_for_function(f"document.documentElement.scrollWidth <= {width}", timeout=10_000)
        before = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.click("#theme")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") != before
        # on paper: light, and no chart is wider than the page
        browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        widths = browser.evaluate(
            "[...document.querySelectorAll('.main-svg')].map((s) => s.getBoundingClientRect().width)"
        )
        assert max(widths) <= 175 / 25.4 * 96 + 1
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        browser.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert not browser.evaluate("document.documentElement.classList.contains('paper')")
        assert complaints == []
