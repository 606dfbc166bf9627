"""The drift test: how often it accuses good streams (at most alpha), and how soon it sees a real change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cdo_ad.bundle import read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.cli.main import app
from cdo_ad.conformal import GoodScores
from cdo_ad.errors import ConfigError
from cdo_ad.inference.drift import DriftTest, drift


def test_good_streams_are_falsely_accused_at_most_as_often_as_promised() -> None:
    """300 streams of 100 good images, each with its own calibration of 42, as the real tiles have.

    A test whose p-values were all taken against the calibration alone would fail here: they are not independent.
    """
    alpha, streams = 0.05, 300
    rng = np.random.default_rng(0)
    accused = sum(
        drift(rng.gamma(2, 1, 42).tolist(), rng.gamma(2, 1, 100).tolist(), alpha, seed=i).drifted
        for i in range(streams)
    )
    assert accused <= alpha * streams


def test_ties_do_not_accuse() -> None:
    rng = np.random.default_rng(1)
    accused = sum(
        drift(rng.integers(0, 3, 42).tolist(), rng.integers(0, 3, 60).tolist(), 0.05, seed=i).drifted for i in range(60)
    )
    assert accused <= 3


def test_a_rise_of_two_standard_deviations_is_seen_within_twenty_images() -> None:
    late = 0
    for i in range(50):
        rng = np.random.default_rng(100 + i)
        found = drift(rng.normal(0, 1, 42).tolist(), rng.normal(2, 1, 60).tolist(), 0.01, seed=i)
        late += found.first is None or found.first > 20
    assert late <= 2


def test_the_first_alarm_comes_after_the_change() -> None:
    rng = np.random.default_rng(3)
    scores = [*rng.normal(0, 1, 60), *rng.normal(3, 1, 60)]
    found = drift(rng.normal(0, 1, 100).tolist(), scores, 0.01)
    assert found.first is not None and 60 <= found.first < 90
    assert f"drift at image {found.first + 1} of 120" in found.sentence
    assert found.to_json()["n"] == 120


def test_the_martingale_is_the_integral_of_powers() -> None:
    """Against numerical integration of the formula, with p-values that this test works out by itself."""
    scores, stream = [1.0, 2.0, 3.0], [2.5, 9.0, 9.5]
    uniform = np.random.default_rng(7)
    reference, ps = list(scores), []
    for score in stream:
        ps.append((sum(r > score for r in reference) + uniform.uniform()) / (len(reference) + 1))
        reference.append(score)
    e = (np.arange(20_000) + 0.5) / 20_000
    expected = np.log(np.mean([np.prod([x * p ** (x - 1) for p in ps]) for x in e]))
    test = DriftTest(Calibration.fit({"": GoodScores(scores, scores)}, 0.25).of(), 0.05, seed=7)
    assert [test.update(s) for s in stream][-1] == pytest.approx(expected, abs=2e-3)


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="alpha must lie"):
        drift([1.0], [1.0], alpha=0)
    with pytest.raises(ConfigError, match="at least one image"):
        drift([1.0], [])


def test_on_the_command_line(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    """A run whose calibration fits the stream, and one whose calibration scored far lower; a broken file in between."""
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(tiny_data / "train" / "good", tmp_path / "stream")
    words = ["drift", str(tmp_path / "run"), str(tmp_path / "stream"), "--device", "cpu"]
    calm = CliRunner().invoke(app, words, catch_exceptions=False)
    assert calm.exit_code == 0 and calm.stdout.startswith("no drift: 24 images look like those of the calibration")
    victim = tmp_path / "stream" / "004.png"
    victim.write_bytes(victim.read_bytes()[:200])
    broken = CliRunner().invoke(app, words, catch_exceptions=False)
    assert broken.exit_code == 1 and broken.stdout.startswith("no drift: 23 images")
    assert "error: " in broken.stderr and "004.png" in broken.stderr
    victim.unlink()
    low = [i * 1e-6 for i in range(1, 41)]
    lower = Calibration.fit({"": GoodScores(low, low)}, 0.1, weights_sha256=read_bundle(tiny_run).weights_sha256)
    (tmp_path / "run" / "calibration.json").write_text(json.dumps(lower.to_json()))
    risen = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    found = json.loads(risen.stdout)
    assert risen.exit_code == 1 and found["drifted"] and found["n"] == 23 and found["first"] < 8
    assert f"drift at image {found['first'] + 1} of 23" in found["sentence"]
    patient = CliRunner().invoke(app, [*words, "--alpha", "1e-30"], catch_exceptions=False)
    assert patient.exit_code == 0
