"""Metrics by type against metrics that are updated image by image; the table of images."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from cdo_ad.data import read_dataset
from cdo_ad.data.decode import read_image, read_mask
from cdo_ad.evaluation.evaluate import Evaluation, Scored, evaluate
from cdo_ad.evaluation.metrics import PixelMetrics
from cdo_ad.evaluation.results import images_csv
from cdo_ad.files import finite, relative_name
from cdo_ad.inference.detector import load
from cdo_ad.types import GOOD, Sample


def test_the_figures_of_a_type_are_those_of_its_images_and_the_good_ones(tiny_run: Path, tiny_data: Path) -> None:
    detector = load(tiny_run, device="cpu")
    samples = [s for s in read_dataset(tiny_data) if s.split == "test"]
    found = evaluate(detector, samples).metrics
    for wanted in ("all", "scratch", "spot"):
        expected = PixelMetrics()
        for sample in samples:
            if wanted == "all" or sample.defect_type in (GOOD, wanted):
                mask = None if sample.mask_path is None else read_mask(sample.mask_path)
                expected.update(detector.predict(read_image(sample.path)).anomaly_map, mask)
        figures = found if wanted == "all" else found["per_type"][wanted]
        assert figures["pixel"] == pytest.approx(expected.compute(), abs=1e-12)
        assert figures["n"]["anomalous"] == (6 if wanted == "all" else 3)


def test_the_table_of_images_survives_odd_names(tmp_path: Path) -> None:
    names = ["a.png", 'comma, and "quote".png', "sub/line\nbreak.png"]
    scored = tuple(Scored(Sample(tmp_path / name, "test", "dent"), i / 3, 0.1, i > 1) for i, name in enumerate(names))
    rows = list(csv.DictReader(io.StringIO(images_csv(Evaluation({}, scored), tmp_path))))
    assert [row["path"] for row in rows] == names
    assert [float(row["score"]) for row in rows] == [0.0, 1 / 3, 2 / 3]
    assert [row["anomalous"] for row in rows] == ["0", "0", "1"]


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
