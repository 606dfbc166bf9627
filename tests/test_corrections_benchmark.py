"""The benchmark of an operator's corrections: who is labelled, who judges, what the table holds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from cdo_ad.data import read_dataset, read_image
from cdo_ad.errors import ConfigError
from cdo_ad.types import Sample
from fakes import load_script

corrections = load_script("corrections")


@pytest.mark.slow
def test_every_case_is_judged_before_and_after_on_the_same_images(
    dense_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(dense_run), str(tiny_data), "--labelled", "2", "--types-labelled", "scratch", "--of-each", "1",
             "--marked", "1", "--out", str(tmp_path / "out")]  # fmt: skip
    assert corrections.main(words) == 0
    rows = json.loads((tmp_path / "out" / "corrections.json").read_text())["rows"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    assert cases[:2] == ["labelled-2-draw-0 other images", "labelled-2-draw-0 other parts"]
    assert {"marked-1 with the mark", "marked-1 without it"} < set(cases)
    assert {"types-labelled scratch", "types-labelled spot"} < set(cases)
    for case in cases:
        pair = [row for row in rows if row["case"] == case]
        assert [row["state"] for row in pair] == ["before", "after"] and pair[0]["n"] == pair[1]["n"]
    n = {row["case"]: row["n"] for row in rows}
    assert n[cases[0]]["good"] == 3 and n[cases[0]]["anomalous"] == 4
    assert n[cases[1]]["good"] == 3 and n[cases[1]]["anomalous"] <= 4
    assert n["marked-1 with the mark"] == n["marked-1 without it"] and n["marked-1 without it"]["good"] == 2
    shown = capsys.readouterr().out
    assert all(case in shown for case in cases)


def test_near_copies_of_a_labelled_defect_do_not_judge() -> None:
    test = [Sample(Path(name), "test", kind) for name, kind in
            [("a", "crack"), ("b", "crack"), ("c", "crack"), ("d", "good"), ("e", "good")]]  # fmt: skip
    parts = {Path("a"): 0, Path("b"): 0, Path("c"): 1, Path("d"): 0, Path("e"): 2}
    assert [str(s.path) for s in corrections.others(test, test[:1], parts)] == ["c", "d", "e"]
    assert [str(s.path) for s in corrections.others(test, test[3:4], parts)] == ["c", "e"]  # a good one was learned


def test_types_are_labelled_equally_often() -> None:
    defects = [Sample(Path(f"{kind}{i}"), "test", kind) for kind in ("crack", "fray") for i in range(4)]
    drawn = corrections.drawn(defects, 4, random.Random(0))
    assert sorted(s.defect_type for s in drawn) == ["crack", "crack", "fray", "fray"]
    assert drawn != corrections.drawn(defects, 4, random.Random(1))
    with pytest.raises(ConfigError, match="only 8 have a mask"):
        corrections.drawn(defects, 9, random.Random(0))


def test_a_number_darkens_its_place_alone(tiny_data: Path, tmp_path: Path) -> None:
    sample = next(s for s in read_dataset(tiny_data) if s.split == "test" and not s.anomalous)
    before = read_image(sample.path).astype(int)
    after = read_image(corrections.print_number(sample, tmp_path)).astype(int)
    changed = (np.abs(after - before) > 1).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 0.005 < changed.mean() < 0.2
    assert abs(rows.mean() / before.shape[0] - 0.5) < 0.15 and abs(columns.mean() / before.shape[1] - 0.5) < 0.15


def test_a_type_that_is_not_there_is_named(dense_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no defect is called dent"):
        corrections.main([str(dense_run), str(tiny_data), "--types-labelled", "dent", "--out", str(tmp_path)])
