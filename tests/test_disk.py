"""A disk that is full, a folder that cannot be made: one clear error, no half file, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdo_ad.bundle import read_bundle
from cdo_ad.errors import ImageError, OutputError
from cdo_ad.evaluation.results import evaluate_run
from cdo_ad.files import write_bytes
from cdo_ad.inference.calibrate import calibrate
from cdo_ad.inference.detector import load
from cdo_ad.inference.predict import predict_files
from cdo_ad.reporting.build import report
from cdo_ad.training.adapt import adapt
from cdo_ad.training.train import train
from conftest import TINY

Step = Callable[[Path, Path], object]
STEPS: dict[str, tuple[Step, int]] = {
    "train": (lambda run, data: train(data, run, TINY.replace(seed=9), device="cpu"), 100_000),
    "adapt": (lambda run, data: adapt(run, run, good=data / "test" / "good", epochs=0, device="cpu"), 100_000),
    "calibrate": (lambda run, data: calibrate(run, false_alarm_rate=0.2), 100),
    "evaluate": (lambda run, data: evaluate_run(run, data, device="cpu"), 100),
    "report": (lambda run, data: report(run, data, device="cpu"), 10_000),
}
"""What writes into a run, and bytes of a file after which the disk is full."""


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond `limit` bytes; the system's call fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".lock"))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "runs" / "run")
    return tmp_path / "runs" / "run"


@pytest.mark.parametrize("step", STEPS)
def test_on_a_full_disk_the_run_stays_as_it_was(run: Path, tiny_data: Path, step: str) -> None:
    function, limit = STEPS[step]
    before = _contents(run.parent)
    with full_disk(limit), pytest.raises(OutputError, match="cannot be written"):
        function(run, tiny_data)
    assert _contents(run.parent) == before
    read_bundle(run).weights()
    function(run, tiny_data)  # and with room it works


def test_a_training_on_a_full_disk_leaves_no_folder(tiny_data: Path, tmp_path: Path) -> None:
    with full_disk(100_000), pytest.raises(OutputError, match="cannot be written"):
        train(tiny_data, tmp_path / "runs" / "new", TINY, device="cpu")
    assert not _contents(tmp_path)


def test_lines_of_predictions_are_whole_when_the_disk_fills(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    detector = load(tiny_run, device="cpu")
    judged = []
    with full_disk(1000), pytest.raises(OutputError, match=r"predictions.jsonl cannot be written"):
        judged.extend(predict_files(detector, [tiny_data / "train" / "good"], tmp_path / "out"))
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert lines and all("score" in json.loads(line) or "error" in json.loads(line) for line in lines)


@pytest.mark.parametrize("step", ["train", "report"])
def test_a_folder_below_a_file_is_a_clear_error(tiny_run: Path, tiny_data: Path, tmp_path: Path, step: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises((OutputError, ImageError), match="file"):
        if step == "train":
            train(tiny_data, tmp_path / "file" / "run", TINY, device="cpu")
        else:
            report(tiny_run, tiny_data, tmp_path / "file" / "page.html", device="cpu")
    assert (tmp_path / "file").read_text() == "no folder"


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    left = tmp_path / f".a.json.{gone.pid}-1.tmp"
    alive, other = tmp_path / f".a.json.{os.getppid()}-1.tmp", tmp_path / f".b.json.{gone.pid}-1.tmp"
    for file in (left, alive, other):
        file.write_text("half")
    write_bytes(tmp_path / "a.json", b"{}")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", alive, other])
