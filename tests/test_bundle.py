"""Run folders: recognised by what they say of themselves, written whole or not at all, never at a user's expense."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cdo_ad import bundle as bundles
from cdo_ad import load, read_bundle, read_image, train
from cdo_ad.errors import BundleError, BusyError, ModelError, OutputError
from cdo_ad.files import exclusive, write_bytes
from conftest import TINY


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be spoiled."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def other_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with other weights."""
    out = tmp_path_factory.mktemp("runs") / "other"
    train(tiny_data, out, TINY.replace(seed=4), device="cpu")
    return out


def test_a_folder_with_a_file_named_config_json_is_no_run(tiny_data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(tiny_data / "train" / "good", mine / "good")
    (mine / "config.json").write_text('{"camera": "front"}')
    (mine / "notes.txt").write_text("keep")
    before = sorted(path.relative_to(mine) for path in mine.rglob("*"))
    with pytest.raises(BundleError, match="is not a run folder"):
        train(mine, mine, TINY, device="cpu")
    assert sorted(path.relative_to(mine) for path in mine.rglob("*")) == before


def test_data_and_notes_inside_a_run_survive_its_replacement(run: Path, tiny_data: Path) -> None:
    shutil.copytree(tiny_data / "train" / "good", run / "data")
    for name in ("notes/n.txt", "export/model.xml", "report.html"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    older = read_bundle(run).weights_sha256
    train(run / "data", run, TINY.replace(seed=4), device="cpu")
    assert read_bundle(run).weights_sha256 != older
    assert len(list((run / "data").iterdir())) == 24
    assert all((run / name).read_text() == "mine" for name in ("notes/n.txt", "export/model.xml", "report.html"))
    assert not [path.name for path in run.iterdir() if path.name.startswith((".staging", ".commit"))]


def test_files_are_readable_by_whom_the_umask_lets(tiny_run: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tiny_run.iterdir() if path.is_file() and path.suffix}
    assert len(modes) == 1 and modes.pop() & 0o600 == 0o600


@pytest.mark.parametrize("place", ["header", "middle", "tail", "truncated", "foreign"])
def test_weights_that_are_not_the_runs_own_are_refused(run: Path, place: str) -> None:
    file = run / bundles.MODEL
    data = bytearray(file.read_bytes())
    if place == "truncated":
        del data[len(data) // 2 :]
    elif place == "foreign":
        data = bytearray(b"\0" * len(data))
    else:
        at = {"header": 20, "middle": len(data) // 2, "tail": len(data) - 9}[place]
        data[at] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="is damaged or belongs to another run"):
        load(run, backend="torch", device="cpu")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("calibration.json", {"false_alarm_rate": 2}),
        ("calibration.json", {"false_alarm_rate": "0.05"}),
        ("calibration.json", {"categories": {}}),
        ("calibration.json", {"image_threshold": 1.0}),
        ("calibration.json", {"weights_sha256": "0" * 64}),
        ("calibration.json", {"format": 2}),
        ("config.json", {"format": "x"}),
        ("config.json", {"format": 2}),
        ("config.json", {"kind": "something else"}),
        ("config.json", {"settings": {"gamma": -1}}),
        ("config.json", {"model": None}),
        ("config.json", {"weights_sha256": 5}),
        ("config.json", {"surplus": 1}),
    ],
)
def test_a_document_that_was_not_written_so_is_refused(run: Path, name: str, change: dict[str, object]) -> None:
    document = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**document, **change}))
    with pytest.raises(BundleError, match=r"damaged|newer version|not a run folder|other weights|other categories"):
        read_bundle(run)


@pytest.mark.parametrize("threshold", [-1.0, math.nan, math.inf, "high", None, 0.0])
@pytest.mark.parametrize("which", ["image_threshold", "pixel_threshold"])
def test_a_threshold_must_follow_from_the_scores(run: Path, which: str, threshold: object) -> None:
    file = run / bundles.CALIBRATION
    document = json.loads(file.read_text())
    document["categories"][""][which] = threshold
    file.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"calibration.json is damaged"):
        read_bundle(run)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"x"', "[" * 100_000, "\0", '{"kind": "cdo-ad run"}'])
@pytest.mark.parametrize("name", ["config.json", "calibration.json"])
def test_any_other_text_is_refused(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(BundleError):
        read_bundle(run)


def test_scores_that_are_not_numbers_are_never_a_decision(tiny_run: Path) -> None:
    calibration = read_bundle(tiny_run).calibration
    for score in (math.nan, math.inf, -math.inf):
        for question in (calibration.decide, calibration.p_value, calibration.settle, calibration.sentence):
            with pytest.raises(ModelError, match="damaged"):
                question(score)


@pytest.mark.parametrize("stop_at", range(8))
def test_killed_at_any_step_of_the_commit_the_old_run_or_the_new_one_loads(
    run: Path, other_run: Path, tiny_data: Path, stop_at: int
) -> None:
    """A process that ends hard before the n-th rename of a commit."""
    image = read_image(next((tiny_data / "test" / "good").iterdir()))
    new = other_run
    scores = {load(path, device="cpu").predict(image).score for path in (run, new)}
    script = textwrap.dedent(
        """
        import os, shutil, sys
        from pathlib import Path
        from cdo_ad import bundle as bundles
        run, new, stop_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
        steps = 0
        def counted(function):
            def call(*args):
                global steps
                if steps == stop_at:
                    os._exit(9)
                steps += 1
                return function(*args)
            return call
        with bundles.locked(run), bundles.write_run(run) as folder:
            for source in new.iterdir():
                (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)
            Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(run), str(new), str(stop_at)], check=False)
    assert done.returncode == (9 if stop_at < 7 else 0)
    assert load(run, device="cpu").predict(image).score in scores
    with bundles.locked(run), bundles.write_run(run) as folder:  # the next writer clears up
        for name in (bundles.MODEL, bundles.CONFIG, bundles.CALIBRATION):
            shutil.copy(new / name, folder / name)
    assert load(run, device="cpu").predict(image).score == load(new, device="cpu").predict(image).score
    assert not [path.name for path in run.iterdir() if path.name.startswith((".staging", ".commit"))]


def test_two_trainings_of_one_folder_exclude_each_other(run: Path, tiny_data: Path) -> None:
    with exclusive(run), pytest.raises(BusyError, match="another process is writing there"):
        train(tiny_data, run, TINY, device="cpu")


def test_a_failed_training_leaves_no_folder(tiny_data: Path, tmp_path: Path) -> None:
    (tiny_data / "nothing").mkdir(exist_ok=True)
    with pytest.raises(BundleError, match="nothing to resume"):
        train(tiny_data, tmp_path / "out", TINY, device="cpu", interrupted="resume")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OutputError, match=r"folder.* cannot be written"):
        write_bytes(tmp_path / "folder" / "x.json", b"{}")
    os.mkfifo(tmp_path / "pipe")
    write_bytes(tmp_path / "pipe", b"data")  # replaces it, never blocks on it
    assert (tmp_path / "pipe").read_bytes() == b"data"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
