"""The page about a run: its numbers are those of `evaluate`, and it works in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from browser import browser_page, numbers
from fakes import make_folder, make_mvtec

pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("jinja2", reason="the extra `report` is not installed")
pytest.importorskip("plotly", reason="the extra `report` is not installed")

from cdo_ad import recipes
from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.cli.main import app
from cdo_ad.data import read_image
from cdo_ad.errors import BundleError, OutputError
from cdo_ad.evaluation.metrics import rate_interval
from cdo_ad.inference.detector import load
from cdo_ad.inference.maps import resize_map
from cdo_ad.method.discrepancy import anomaly_map
from cdo_ad.reporting.build import report
from cdo_ad.reporting.collect import FUSED, branch_maps, with_noise
from cdo_ad.reporting.distributions import Distributions, margin_and_overlap
from cdo_ad.reporting.thumbnails import thumbnails
from cdo_ad.training.train import train

DISAGREEMENT = ("disagreement 1", "disagreement 2", "disagreement 3")
"""The maps of the paper's form, one for each level."""
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
def test_the_numbers_are_those_of_evaluate(run: Path) -> None:
    document = numbers(run / "report.html")
    metrics = json.loads((run / "metrics.json").read_text())
    assert document["metrics"].items() <= metrics.items()
    (category,) = document["categories"]
    assert category["metrics"].items() <= metrics.items()
    calibration = read_bundle(run).calibration.of()
    assert (category["threshold"], category["guaranteed"]) == (calibration.image_threshold, True)
    assert len(document["images"]) == metrics["n"]["good"] + metrics["n"]["anomalous"] == 13
    assert all(p["image"].startswith("data:image/jpeg") for p in document["images"])
    current = next(row for row in category["costs"] if row["rate"] == 0.1)
    assert current["threshold"] == category["threshold"]
    assert current["detection_rate"] == metrics["decision"]["detection_rate"]
    assert current["false_alarm_rate"] == metrics["decision"]["false_alarm_rate"]
    assert next(row for row in category["costs"] if row["rate"] == 0.01)["missing"] == 99 - 12
    for source in ("real", "synthetic"):
        assert list(category["distributions"][source]) == [*DISAGREEMENT, FUSED]
    x, y = (np.array(category["curves"]["image_roc"][k]) for k in "xy")
    assert np.trapezoid(y, x) == pytest.approx(metrics["image"]["auroc"], abs=1e-4)
    assert category["power"]["n"] == 12


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside(run: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=[\"']?(https?:)?//", text)
    assert (run / "report.html").stat().st_size < 8e6


@pytest.mark.slow
def test_in_a_browser_threshold_gallery_and_theme_work(run: Path) -> None:
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
    page = report(run, data, tmp_path / "page.html", device="cpu")
    document = numbers(page)
    category = document["categories"][0]
    assert document["metrics"] is category["metrics"] is None and not document["labelled"]
    scores = [p["score"] for p in document["images"]]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)
    assert category["power"]["n"] == 12 and category["distributions"]["real"] == {}
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
        report(copy, device="cpu")


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
    finer = np.full((4, 4), 3, np.float32)  # a branch with a grid of its own
    finer[:2, :2] = 7
    finer[0, 2] = 100
    distributions.add({"a": np.array([[5, 100], [1, 2]], np.float32), "b": finer}, mask)
    found = distributions.summary()
    assert (found["a"]["mean_anomalous"], found["a"]["mean_normal"]) == (5, 1.5)
    assert (found["b"]["mean_anomalous"], found["b"]["mean_normal"]) == (7, 3)


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


@pytest.mark.slow
def test_the_branch_maps_add_up_to_the_anomaly_map(run: Path, tmp_path: Path) -> None:
    import torch

    detector = load(run, backend="torch", device="cpu")
    bundle = detector.bundle
    assert isinstance(bundle, Bundle)
    image = read_image(bundle.good_paths[0])
    prediction = detector.predict(image)
    maps = branch_maps(detector, image, prediction)
    fused = torch.from_numpy(np.sum([maps[name] for name in DISAGREEMENT], axis=0))[None]
    again = anomaly_map([fused], bundle.model.image_size, bundle.model.blur_sigma)[0].numpy()
    np.testing.assert_allclose(resize_map(again, image.shape[:2]), prediction.anomaly_map, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_noise_is_drawn_where_its_mask_says(run: Path) -> None:
    path = read_bundle(run).good_paths[0]
    noisy, mask = with_noise(path, (64, 64), 0, 0)
    other, elsewhere = with_noise(path, (64, 64), 0, 1)
    assert mask.any() and not mask.all() and (mask != elsewhere).any()
    assert (noisy != other).any(axis=2)[mask & ~elsewhere].mean() > 0.9
    assert (noisy == other)[~mask & ~elsewhere].all()


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_said_in_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        report(run, out=tmp_path / "file" / "page.html", device="cpu")


@pytest.mark.slow
def test_a_run_of_several_categories_shows_each(tmp_path: Path) -> None:
    for name in ("nut", "bolt"):
        make_mvtec(tmp_path / "data" / name, train=10, good=2, defective=2)
    branches = {"branches": ("disagreement", "level 3"), "fusion_weights": "equal", "calibration": "cross"}
    train(tmp_path / "data", tmp_path / "run", CONFIG.replace(**branches), unified=True, device="cpu")
    page = report(tmp_path / "run", device="cpu")
    document = numbers(page)
    assert [c["name"] for c in document["categories"]] == ["bolt", "nut"]
    assert sorted(document["metrics"]["categories"]) == ["bolt", "nut"]
    for category in document["categories"]:
        assert category["metrics"] == document["metrics"]["categories"][category["name"]]
        assert category["power"]["n"] == 10 and len(category["calibration"]) == 10
    with browser_page(page) as (browser, complaints):
        browser.wait_for_selector("#histogram .main-svg")
        assert browser.locator("#categories tbody tr").count() == 3
        browser.locator("#categories tbody tr").nth(1).click()
        assert browser.locator(".of").first.inner_text().endswith(" nut")
        assert browser.input_value("#category") == "1"
        threshold = document["categories"][1]["threshold"]
        assert browser.inner_text("#threshold-value") == f"{threshold:.4f}"
        assert browser.locator("#cards-images figure").count() == 6
        browser.select_option("#category", "0")
        assert all("bolt/" in text for text in browser.locator("#cards-images figcaption").all_inner_texts())
        browser.set_viewport_size({"width": 390, "height": 800})
        browser.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=10_000)
        assert complaints == []
