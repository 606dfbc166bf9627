"""Tables of runs: groups, means and deviations worked out by hand, in each form of file."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from browser import browser_page, numbers
from cdo_ad.bundle import CALIBRATION, CONFIG, MODEL, Manifest
from cdo_ad.calibration import Calibration
from cdo_ad.cli.main import app
from cdo_ad.config import Config
from cdo_ad.conformal import GoodScores
from cdo_ad.errors import BundleError, ConfigError, OutputError
from cdo_ad.evaluation.schema import (
    CategoryMetrics,
    Count,
    Decisions,
    EvaluatedData,
    MetricsFile,
    PixelRanking,
    Ranking,
    Rate,
)
from cdo_ad.files import write_json
from cdo_ad.provenance import DataRecord, Provenance
from cdo_ad.reporting.table_files import to_latex, to_text, write_table
from cdo_ad.reporting.tables import Cell
from cdo_ad.reporting.tables import table as make_table
from cdo_ad.spec import CategorySpec, ModelSpec


def make(
    folder: Path, auroc: float, category: str = "bottle", print_of: str = "x", also: str = "", **settings: object
) -> Path:
    """A run folder with metrics, of one category or also of another, and with weights that are none."""
    folder.mkdir(parents=True)
    config = Config(recipe="a", backbone="resnet18").replace(**settings)
    names = (category, also) if also else (category,)
    scores = GoodScores([float(i) for i in range(30)], [1.0] * 30)
    record = DataRecord(
        root="/data/tiles", category="", fingerprint="f", images=(), split="", units=dict.fromkeys(names, "group")
    )  # fmt: skip
    manifest = Manifest(
        settings=config,
        model=ModelSpec.from_config(config, [CategorySpec.from_config(config, name) for name in names]),
        weights_sha256="w",
        provenance=Provenance(data=record, seed=config.seed, device="cpu", devices=1, versions={}, revision=None),
    )
    measured = metrics(auroc)
    document = MetricsFile(
        **dict(measured),
        categories={name: measured for name in names} if also else {},
        weights_sha256="w",
        thresholds=dict.fromkeys(names, 1.0),
        data=EvaluatedData(root="/data/tiles", fingerprints=dict.fromkeys(names, print_of), at_size=None),
        failed=0,
        learned=0,
        files={},
    )
    calibration = Calibration.fit(dict.fromkeys(names, scores), 0.05, weights_sha256="w")
    for name, content in ((CONFIG, manifest), (CALIBRATION, calibration), ("metrics.json", document)):
        write_json(folder / name, content.to_json())
    (folder / MODEL).write_bytes(b"")
    return folder


def metrics(auroc: float) -> CategoryMetrics:
    nan = float("nan")
    found, none = (Rate(value=value, low=0.0, high=1.0, count=0, n=0) for value in (0.75, nan))
    return CategoryMetrics(
        image=Ranking(auroc=auroc, ap=nan, f1max=nan),
        pixel=PixelRanking(auroc=auroc / 2, ap=0.5, f1max=0.5, aupro_30=0.9, aupro_05=nan),
        decision=Decisions(rate=0.05, false_alarm_rate=none, detection_rate=found),
        n=Count(good=0, anomalous=4),
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """OOM on and off, two categories, two seeds; one seed of one category only."""
    of = {(True, "bottle"): (0.90, 0.94), (True, "cable"): (0.80, 0.86), (False, "bottle"): (0.70, 0.80)}
    made = [
        make(tmp_path / f"{oom}-{category}-{seed}", value, category, f"of {category}", oom=oom, seed=seed)
        for (oom, category), values in of.items()
        for seed, value in enumerate(values)
    ]
    return [*made, make(tmp_path / "last", 0.6, "cable", "of cable", oom=False, seed=0)]


def test_groups_means_and_deviations(runs: list[Path]) -> None:
    table = make_table(runs)
    assert table.settings == ("oom",)
    found = {(row.settings, row.category): row for row in table.rows}
    two = found[("true",), "bottle"]
    assert two.seeds == 2 and two.cells["image.auroc"] == Cell(pytest.approx(0.92), pytest.approx(0.0282843, abs=1e-6))
    mean = found[("true",), "mean of 2"].cells["image.auroc"]  # of each seed first: .85 and .90
    assert (mean.mean, mean.std) == (pytest.approx(0.875), pytest.approx(statistics.stdev([0.85, 0.90])))
    one = found[("false",), "cable"]
    assert one.seeds == 1 and one.cells["image.auroc"] == Cell(0.6, None)
    uneven = found[("false",), "mean of 2"].cells["image.auroc"]  # seed 1 of the cable is missing
    assert (uneven.mean, uneven.std) == (pytest.approx((0.75 + 0.6) / 2), None)
    assert "image.ap" not in table.metrics and "decision.false_alarm_rate" not in table.metrics
    published = [row for row in table.rows if row.kind == "published"]
    assert published[0].cells["pixel.aupro_30"] == Cell(0.9468, 0.0020) and published[0].seeds == 3
    assert any("2 of them are here, so do not compare the means" in note for note in table.notes)
    assert any("doi 10.1109/TII.2023.3241579" in note for note in table.notes)


def test_one_run_has_no_deviation_and_no_columns_of_settings(tmp_path: Path) -> None:
    table = make_table([make(tmp_path / "run", 0.9, category="")])
    assert table.settings == () and [row.category for row in table.rows] == ["tiles"]
    assert to_text(table).splitlines()[1].split()[:3] == ["tiles", "1", "90.00"]
    beside = make_table([make(tmp_path / "visa", 0.9, category="candle")])
    assert beside.settings == ("run",)
    assert [row.settings for row in beside.rows] == [("these runs",), ("CDO 2025",)]
    assert beside.rows[1].cells["pixel.ap"] == Cell(0.4034, None)


def test_a_run_of_several_categories_gives_a_row_for_each(tmp_path: Path) -> None:
    found = make_table([make(tmp_path / "run", 0.9, "left", also="right")])
    assert [row.category for row in found.rows] == ["left", "right", "mean of 2"]
    assert found.rows[1].cells["image.auroc"] == found.rows[2].cells["image.auroc"] == Cell(0.9, None)
    beside = make_table(
        [make(tmp_path / "all", 0.9, "left", also="right"), make(tmp_path / "one", 0.8, "left", seed=2)]
    )
    assert [row.seeds for row in beside.rows] == [2, 1, 2]


def test_the_recipes_name_is_a_column_only_where_it_tells_more(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0.9, recipe="one", lr=1e-3)
    b = make(tmp_path / "b", 0.8, recipe="two", lr=2e-3)
    c = make(tmp_path / "c", 0.8, recipe="three", lr=2e-3)
    assert make_table([a, b]).settings == ("lr",)
    assert make_table([a, b, c]).settings == ("recipe", "lr")
    assert make_table([b, c]).settings == ("recipe",)


def test_mixtures_are_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "first", 0.9)
    twin = make(tmp_path / "twin", 0.9)
    with pytest.raises(BundleError, match=r"first and twin have the same settings, category and seed 111"):
        make_table([first, twin])
    other = make(tmp_path / "other", 0.9, print_of="y", seed=2)
    with pytest.raises(BundleError, match=r"both of 'bottle' but were evaluated on different test images"):
        make_table([first, other])


def test_each_form_of_file_holds_the_numbers(runs: list[Path], tmp_path: Path) -> None:
    table = make_table(runs)
    write_table(table, tmp_path / "out" / "t.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "t.csv").read_text())))
    assert len(rows) == len(table.rows)
    assert (rows[0]["oom"], rows[0]["category"], rows[0]["seeds"]) == ("true", "bottle", "2")
    assert float(rows[0]["image.auroc"]) == pytest.approx(0.92)
    assert float(rows[0]["image.auroc_std"]) == pytest.approx(0.028284, abs=1e-6)
    assert rows[-1]["kind"] == "published" and rows[-1]["image.auroc_std"] == ""
    latex = to_latex(table)
    assert r"true & bottle & 2 & 92.00 $\pm$ 2.83 & " in latex and "CDO 2025" in latex
    assert latex.count(r"\midrule") == 3  # after the head would be a fourth: two choices and the published
    assert r"false & cable & 1 & 60.00 & " in latex and r"& -- &" in latex
    assert all(
        line.count("&") == latex.splitlines()[-3].count("&") for line in latex.splitlines() if line.endswith(r"\\")
    )
    with pytest.raises(ConfigError, match=r"\.html, \.csv, \.tex"):
        write_table(table, tmp_path / "t.xls")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_table(table, tmp_path / "file" / "t.csv")


def test_no_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a run"):
        make_table([])


def test_special_characters_of_latex_are_escaped(tmp_path: Path) -> None:
    pair = [make(tmp_path / "a", 0.9, weights="my_file & 5%.safetensors"), make(tmp_path / "b", 0.9)]
    assert r"my\_file \& 5\%.safetensors" in to_latex(make_table(pair))


def test_on_the_command_line_and_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="the extra `report` is not installed")
    page = tmp_path / "t.html"
    words = ["table", *map(str, runs), "--out", str(page), "--out", str(tmp_path / "t.tex"), "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0 and (tmp_path / "t.tex").is_file()
    assert json.loads(done.stdout) == numbers(page)["table"] == make_table(runs).to_json()
    printed = CliRunner().invoke(app, ["table", *map(str, runs)], catch_exceptions=False).stdout
    assert "92.00 ± 2.83" in printed
    with browser_page(page) as (browser, complaints):
        assert browser.locator("#runs tbody tr").count() == len(make_table(runs).rows)
        assert browser.locator("#runs tbody tr").first.locator("td").nth(3).inner_text() == "92.00 ± 2.83"
        browser.set_viewport_size({"width": 390, "height": 800})
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        browser.click("#theme")
        assert complaints == []
