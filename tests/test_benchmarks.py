"""Benchmarks that have no tests of their own run on a small scale and say what they measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cdo_ad import recipes
from cdo_ad.bundle import read_bundle
from cdo_ad.inference.detector import load
from fakes import load_script


def test_both_loops_of_the_epoch_benchmark_have_the_same_loss() -> None:
    epoch = load_script("epoch")
    images = torch.randint(0, 256, (4, 3, 256, 256), generator=torch.Generator().manual_seed(0)).float()
    losses = {}
    for form in ("plain", "ours"):
        seconds, losses[form] = epoch.Loop(form, "resnet18", "none").epoch(images, 2, 0)
        assert seconds > 0
    assert losses["plain"] == pytest.approx(losses["ours"], rel=1e-4)


def test_the_scale_of_metrics_is_measured_and_compared_with_a_plain_sort(capsys: pytest.CaptureFixture[str]) -> None:
    load_script("metrics_scale").main(["--maps", "6", "--size", "64", "--check", "4"])
    out = capsys.readouterr().out
    assert "6 maps of 64x64" in out and "first 4 maps, this budget: exact True, largest difference" in out
    difference = float(out.partition("this budget: exact True, largest difference ")[2].split()[0])
    assert difference < 1e-9


def test_the_scale_of_the_check_finds_the_copies_that_it_drew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy", reason="the extra `check` is not installed")
    load_script("check_scale").main(["--count", "40", "--side", "96", "--folder", str(tmp_path)])
    assert "40 images of 96 x 96" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.jpg"))) == 40


@pytest.mark.parametrize("recipe", ["paper_resnet18", "lite0"])
def test_random_runs_of_the_speed_benchmarks_judge_images(tmp_path: Path, recipe: str) -> None:
    config = recipes.get(recipe).replace(backbone="resnet18", image_height=64, image_width=64)
    run = load_script("peers").random_run(tmp_path / "run", config)
    assert read_bundle(run).model.branches == config.branches
    found = load(run, backend="torch", device="cpu").predict(np.zeros((50, 60, 3), np.uint8))
    assert np.isfinite(found.anomaly_map).all()


def test_calls_are_timed_in_turns(capsys: pytest.CaptureFixture[str]) -> None:
    peers = load_script("peers")
    seen: list[tuple[str, int]] = []

    def call(name: str):  # type: ignore[no-untyped-def]
        def one(images: np.ndarray) -> float:
            seen.append((name, len(images)))
            return 0.5 if name == "slow" else 0.25

        return one

    rows = peers.measure({"slow": call("slow"), "quick": call("quick")}, size=8, rounds=3)
    assert seen[:4] == [("slow", 1), ("slow", 1), ("quick", 1), ("quick", 1)]
    assert [(row["name"], row["latency_ms_median"], row["images_per_second"]) for row in rows] == [
        ("slow", 500.0, peers.BATCH / 0.5), ("quick", 250.0, peers.BATCH / 0.25),
    ]  # fmt: skip
