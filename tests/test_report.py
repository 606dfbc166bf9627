"""The page about a run: its numbers are those of `evaluate`, and it works in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from browser import CHROMIUM, browser_page, numbers
from fakes import make_folder, make_mvtec

pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("jinja2", reason="the extra `report` is not installed")
pytest.importorskip("plotly", reason="the extra `report` is not installed")

from cdo_ad import recipes
from cdo_ad.bundle import read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.cli.main import app
from cdo_ad.errors import BundleError
from cdo_ad.evaluation.metrics import rate_interval
from cdo_ad.reporting import write_report
from cdo_ad.reporting.collect import thumbnails
from cdo_ad.reporting.distributions import Distributions, margin_and_overlap
from cdo_ad.sentence import sentence
from cdo_ad.training.job import train

CONFIG = recipes.get("paper_resnet18").replace(
    image_height=64, image_width=64, epochs=1, weights="none", false_alarm_rate=0.1
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a tiny data set, evaluated, with its page."""
    root = tmp_path_factory.mktemp("report")
    data = make_mvtec(root / "data", train=24, good=6, defective=3)
    (data / "test" / "good" / "zz <!--<script> &.png").write_bytes((data / "test" / "good" / "000.png").read_bytes())
    train(data, root / "run", CONFIG, device="cpu")
    for command in (["evaluate", str(root / "run"), str(data)], ["report", str(root / "run")]):
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return root / "run"


@pytest.mark.slow
def test_the_figures_are_those_of_evaluate(run: Path) -> None:
    document = numbers(run / "report.html")
    metrics = json.loads((run / "metrics.json").read_text())
    assert document["metrics"] == {key: value for key, value in metrics.items() if key != "data"}
    assert len(document["images"]) == metrics["n"]["good"] + metrics["n"]["anomalous"] == 13
    assert all(p["image"].startswith("data:image/jpeg") for p in document["images"])
    assert sum("mask" in p for p in document["images"]) == 6
    current = next(row for row in document["costs"] if row["rate"] == CONFIG.false_alarm_rate)
    assert current["false_alarm_rate"] == metrics["decision"]["false_alarm_rate"]
    assert next(row for row in document["costs"] if row["rate"] == 0.01)["missing"] == 99 - 12
    for source in ("real", "synthetic"):
        assert list(document["distributions"][source]) == ["level 1", "level 2", "level 3", "fused"]
    x, y = (np.array(document["curves"]["image_roc"][k]) for k in "xy")
    assert np.trapezoid(y, x) == pytest.approx(metrics["image"]["auroc"], abs=1e-4)
    assert document["power"]["n"] == 12


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside(run: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=[\"']?(https?:)?//", text)
    assert (run / "report.html").stat().st_size < 8e6


@pytest.mark.slow
def test_in_a_browser_threshold_gallery_and_theme_work(run: Path) -> None:
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    with browser_page(run / "report.html") as (page, complaints):
        metrics = json.loads((run / "metrics.json").read_text())
        document = numbers(run / "report.html")
        page.wait_for_selector("#histogram .main-svg")

        def shown(selector: str) -> float:
            return float(page.inner_text(selector).replace("%", "").strip()) / 100

        decision = metrics["decision"]
        assert shown("#false-alarms") == pytest.approx(decision["false_alarm_rate"]["value"], abs=6e-4)
        assert shown("#detections") == pytest.approx(decision["detection_rate"]["value"], abs=6e-4)
        low, high = (f"{100 * decision['detection_rate'][end]:.1f} %" for end in ("low", "high"))
        assert f"{low} to {high}" in page.inner_text("#cards")

        # a threshold in the middle of the scores, moved as a person moves it
        scores = sorted(p["score"] for p in document["images"])
        middle = (scores[5] + scores[6]) / 2
        page.evaluate(
            "t => { const r = document.getElementById('threshold'); "
            "r.value = t; r.dispatchEvent(new Event('input')); }",
            middle,
        )
        defects = [p for p in document["images"] if p["anomalous"]]
        hit = sum(p["score"] > middle for p in defects)
        page.wait_for_function(f"document.getElementById('missed-count').textContent === '({len(defects) - hit})'")
        assert shown("#detections") == pytest.approx(hit / len(defects), abs=6e-4)
        low, high = rate_interval(hit, len(defects))
        assert f"{100 * low:.1f} % to {100 * high:.1f} %" in page.inner_text("#cards")
        line = page.evaluate("document.getElementById('histogram').layout.shapes[0].x0")
        assert line == pytest.approx(middle, abs=1e-9)

        page.select_option("#filter-what", "missed")
        assert page.locator("#cards-images figure").count() == len(defects) - hit
        page.select_option("#filter-what", "all")
        page.select_option("#filter-type", "spot")
        assert page.locator("#cards-images figure").count() == 3
        page.select_option("#filter-type", "all")
        page.select_option("#sort", "up")
        assert f"score {scores[0]:.3f}" in page.locator("#cards-images figcaption").first.inner_text()
        page.locator("#cards-images .trio").first.click()
        assert page.locator("#zoom[open] img").count() >= 2
        page.keyboard.press("Escape")
        page.click("#reset")
        assert shown("#detections") == pytest.approx(decision["detection_rate"]["value"], abs=6e-4)
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
        page.emulate_media(media="print")  # the images are on paper too, what can only be clicked is not
        assert page.locator("#cards-images img").first.is_visible()
        assert not page.locator("#theme").is_visible() and not page.locator("#reset").is_visible()
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": 390, "height": 800})
        page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=10_000)
        assert complaints == []


@pytest.mark.slow
def test_without_any_test_image_the_page_still_serves(run: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "good only", good=10, defective=0)
    page = write_report(run, data, tmp_path / "page.html", device="cpu")
    document = numbers(page)
    assert document["metrics"] is None and not document["labelled"]
    scores = [p["score"] for p in document["images"]]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)
    assert document["power"]["n"] == 12 and document["distributions"]["real"] == {}
    if CHROMIUM.is_file():
        with browser_page(page) as (browser, complaints):
            browser.wait_for_selector("#histogram .main-svg")
            assert browser.locator("#cards-images figure").count() == 10
            assert complaints == []


@pytest.mark.slow
def test_a_data_set_that_is_gone_must_be_named(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["provenance"]["data"]["root"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    assert read_bundle(copy).data_root == tmp_path / "gone"
    with pytest.raises(BundleError, match="is not there any more"):
        write_report(copy, device="cpu")


def test_margin_and_overlap_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    normal = rng.uniform(0, 1, 200_000).astype(np.float32)
    shifted = rng.uniform(0.5, 1.5, 100_000).astype(np.float32)
    found = margin_and_overlap(shifted, normal)
    assert found["margin"] == pytest.approx(0.5, abs=0.01)
    assert found["overlap"] == pytest.approx(0.5, abs=0.02)
    assert margin_and_overlap(normal + 2, normal)["overlap"] == 0
    assert margin_and_overlap(normal, normal)["overlap"] == pytest.approx(1)


def test_cells_that_are_partly_defect_count_for_neither() -> None:
    distributions = Distributions()
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = True  # one whole cell of a 2 x 2 grid
    mask[0, 4] = True  # a sixteenth of its neighbour
    distributions.add({"a": np.array([[5, 100], [1, 2]], np.float32)}, mask)
    found = distributions.summary()["a"]
    assert (found["mean_anomalous"], found["mean_normal"]) == (5, 1.5)


def test_thumbnails_keep_to_their_budget_and_keep_small_defects() -> None:
    import base64
    import io

    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    mask = np.zeros((900, 900), bool)
    mask[450, 450] = True
    found = thumbnails(noise, noise, mask, 60_000)
    assert sum(map(len, found.values())) <= 60_000
    small = Image.open(io.BytesIO(base64.b64decode(found["mask"].split(",")[1])))
    assert np.asarray(small).any()


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (20.5, "anomalous: none of 20 good images scores as high"),
        (19.5, "anomalous: only 1 of 20 good images scores as high"),
        (18.5, "unusual but good: only 2 of 20 good images score as high"),
        (5.0, "good: 16 of 20 good images score as high"),
    ],
)
def test_the_plain_line_says_what_the_p_value_says(score: float, expected: str) -> None:
    values = [float(i) for i in range(1, 21)]
    assert sentence(score, Calibration.fit(values, values, 0.1)) == expected


def test_the_levels_of_a_image_are_kept_while_it_is_judged_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from cdo_ad.inference.detector import load
    from cdo_ad.inference.engines.torch import TorchRuntime
    from cdo_ad.method.network import CdoNetwork
    from cdo_ad.reporting.collect import LevelRuntime

    detector = load(run, device="cpu")
    assert isinstance(detector.runtime, TorchRuntime)
    network = detector.runtime.network
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = network.branches(torch.from_numpy(image[None]).permute(0, 3, 1, 2))
    calls = []
    original = CdoNetwork.features
    monkeypatch.setattr(CdoNetwork, "features", lambda *a: calls.append(1) or original(*a))
    runtime = LevelRuntime(detector.runtime)
    maps, scores = runtime.infer(image[None])
    assert calls == [1] and list(runtime.levels) == list(expected)
    for name, wanted in expected.items():
        np.testing.assert_allclose(runtime.levels[name], wanted[0].numpy(), atol=1e-6)
    for found, judged in zip((maps, scores), detector.runtime.infer(image[None]), strict=True):
        np.testing.assert_array_equal(found, judged)
