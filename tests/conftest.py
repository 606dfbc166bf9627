from __future__ import annotations

import os
from collections.abc import Iterator

# before numpy is loaded, and for processes that tests start: tiny arrays, where more threads only wait for each other
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from pathlib import Path

import pytest
import torch

from browser import NO_BROWSER, REMEDY
from cdo_ad.config import Config
from cdo_ad.training.train import train
from fakes import make_mvtec

TINY = Config(
    recipe="tiny",
    backbone="resnet18",
    weights="none",
    image_height=64,
    image_width=64,
    epochs=2,
    batch_size=8,
    seed=3,
    false_alarm_rate=0.1,
    keep_groups_together=False,
)
"""Settings that train in a second: what a run looks like, not how well it detects."""
DENSE = TINY.replace(branches=("disagreement", "level 3", "intensity"), fusion_weights="equal", calibration="cross")
"""The same with densities beside the disagreement, each with a third of the map."""

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mvtec(tmp_path_factory.mktemp("data"), train=24, good=3, defective=3)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run folder; tests must not write into it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_data, out, TINY, device="cpu")
    return out


@pytest.fixture(scope="session")
def dense_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run folder with densities; tests must not write into it."""
    out = tmp_path_factory.mktemp("runs") / "dense"
    train(tiny_data, out, DENSE, device="cpu")
    return out


@pytest.fixture(scope="session")
def local_ray() -> Iterator[object]:
    """A Ray of two processors, of this package's making; for tests that skip without Ray."""
    from cdo_ad.scale.cluster import cluster

    with cluster(None, "tests") as resources:
        yield resources


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line which tests were not run for want of a browser."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and NO_BROWSER in str(report.longrepr[2])
    ]
    if skipped:
        names = ", ".join(report.nodeid.rpartition("::")[2] for report in skipped)
        terminalreporter.write_line(f"not run for want of a browser: {names}. {REMEDY.capitalize()}", yellow=True)
