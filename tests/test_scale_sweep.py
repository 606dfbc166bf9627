"""A sweep on a real Ray: every job once, whatever is killed; finished jobs are recognised."""

from __future__ import annotations

import csv
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdo_ad import recipes
from cdo_ad.bundle import read_bundle
from cdo_ad.cli.main import app
from cdo_ad.errors import ConfigError, DataError
from cdo_ad.files import write_json
from cdo_ad.scale.cluster import Resources
from cdo_ad.scale.jobs import Job, Outcome, fingerprints, finished, run_job
from fakes import make_mvtec
from rays import kill

pytest.importorskip("ray", reason="Ray is not installed: pip install 'cdo-ad[scale]'")

from cdo_ad.scale.sweeps import Sweep, sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

EPOCHS = 4
SETTINGS = [
    "weights=none", "image_height=64", "image_width=64", f"epochs={EPOCHS}", "false_alarm_rate=0.1",
    "keep_groups_together=false",
]  # fmt: skip


def tiny(data: Path, out: Path, **more: object) -> tuple[Sweep, list[Outcome]]:
    told: list[Outcome] = []
    wanted = {"recipes": ["paper_resnet18"], "seeds": 2, "settings": SETTINGS, "device": "cpu", **more}
    return sweep(data, out=out, tell=told.append, **wanted), told


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep") / "data"
    for category in ("bolt", "nut"):
        make_mvtec(root / category, train=24, good=3, defective=2)
    return root


@pytest.fixture(scope="module")
def swept(data: Path, local_ray: Resources) -> tuple[Path, Sweep, list[Outcome], list[int]]:
    """Four jobs, of which those that run when the first checkpoint is written are killed."""
    out, killed = data.parent / "runs", []

    def watch() -> None:
        while not ended.wait(0.02):
            if any(out.glob("*/*/.*.training/checkpoint.pt")):
                killed.extend(kill("seed"))
                return

    ended = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done, told = tiny(data, out)
    finally:
        ended.set()
        watcher.join()
    return out, done, told, killed


def test_killed_jobs_are_done_all_the_same_and_nothing_is_doubled(
    swept: tuple[Path, Sweep, list[Outcome], list[int]],
) -> None:
    out, done, told, killed = swept
    assert killed, "no process was killed: the test shows nothing"
    assert not done.failed
    names = ["bolt paper_resnet18 seed 111", "bolt paper_resnet18 seed 112"]
    names += ["nut paper_resnet18 seed 111", "nut paper_resnet18 seed 112"]
    assert [outcome.job.name for outcome in done.outcomes] == names
    assert sorted(outcome.job.name for outcome in told) == names
    assert len(list(out.rglob("config.json"))) == 4 and not list(out.rglob(".*.training"))
    for outcome in done.outcomes:
        with (outcome.run / "train_log.csv").open() as file:
            assert [float(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]
    assert done.table is not None
    assert [(row.category, row.seeds) for row in done.table.rows] == [("bolt", 2), ("nut", 2), ("mean of 2", 2)]


def test_only_what_is_missing_or_made_otherwise_is_done_again(
    swept: tuple[Path, Sweep, list[Outcome], list[int]],
    data: Path,
    tmp_path: Path,
) -> None:
    before, done, _, _ = swept
    out = tmp_path / "runs"
    shutil.copytree(before, out)
    runs = {outcome.job.name: out / outcome.run.relative_to(before) for outcome in done.outcomes}
    weights = {name: read_bundle(run).weights_sha256 for name, run in runs.items()}
    made = {name: (run / "model.safetensors").stat().st_mtime_ns for name, run in runs.items()}
    (runs["bolt paper_resnet18 seed 111"] / "metrics.json").unlink()  # killed before it was evaluated
    (runs["nut paper_resnet18 seed 112"] / "model.safetensors").write_bytes(b"damaged")
    again, _ = tiny(data, out)
    assert not again.failed
    assert [outcome.found for outcome in again.outcomes] == [False, True, True, False]
    after = {name: (run / "model.safetensors").stat().st_mtime_ns for name, run in runs.items()}
    assert [name for name in made if made[name] != after[name]] == ["nut paper_resnet18 seed 112"]
    assert weights == {name: read_bundle(run).weights_sha256 for name, run in runs.items()}

    words = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["sweep", data, "--seeds", 2, "--recipe", "paper_resnet18", *words, "--out", out]
    shown = CliRunner().invoke(app, list(map(str, words)))
    assert shown.exit_code == 0, shown.output
    assert shown.stderr.count("finished before") == 4 and "mean of 2" in shown.stdout


def test_another_image_or_setting_is_another_job(
    swept: tuple[Path, Sweep, list[Outcome], list[int]], data: Path, tmp_path: Path
) -> None:

    _, done, _, _ = swept
    job = done.outcomes[0].job
    assert finished(job, fingerprints(job)) is not None
    assert finished(replace(job, config=job.config.replace(gamma=1.0)), fingerprints(job)) is None
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    elsewhere = replace(job, data=moved)
    assert finished(elsewhere, fingerprints(elsewhere)) is not None  # a copy of the same images
    test_image = next((moved / "bolt" / "test" / "good").iterdir())
    shutil.copy(next((moved / "nut" / "train" / "good").iterdir()), test_image)
    assert finished(elsewhere, fingerprints(elsewhere)) is None


def test_a_failed_job_is_reported_and_the_rest_is_done(data: Path, tmp_path: Path, local_ray: Resources) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    (broken / "bolt" / "train" / "good" / "000.png").write_bytes(b"no image")
    done, told = tiny(broken, tmp_path / "runs", seeds=1, settings=[*SETTINGS, "epochs=1"])
    assert [bool(outcome.error) for outcome in done.outcomes] == [True, False] and len(told) == 2
    assert "000.png" in done.failed[0].error
    assert done.table is not None and [row.category for row in done.table.rows] == ["nut"]


def test_a_folder_of_other_things_is_not_written_into(data: Path, tmp_path: Path) -> None:
    config = recipes.get("paper_resnet18").with_settings(SETTINGS)
    job = Job(data, "auto", "bolt", "paper_resnet18", config, tmp_path / "run", "cpu")
    job.out.mkdir(parents=True)
    write_json(job.out / "config.json", {"kind": "of somebody else"})
    outcome = run_job(job)
    assert "is not a run folder" in outcome.error
    assert list(job.out.iterdir()) == [job.out / "config.json"]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"recipes": ["paper_resnet19"]}, "unknown recipe"),
        ({"recipes": []}, "nothing to do"),
        ({"seeds": 0}, "number of seeds"),
        ({"categories": ["screw"]}, "'screw'"),
        ({"settings": ["gama=1"]}, "gama"),
    ],
)
def test_wrong_wishes_end_before_any_training(data: Path, tmp_path: Path, more: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        tiny(data, tmp_path / "runs", **more)
    assert not (tmp_path / "runs").exists()


def test_a_missing_folder_ends_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        tiny(tmp_path / "nowhere", tmp_path / "runs")


def test_shares_of_a_cluster() -> None:
    assert Resources(64, 8).of_each("auto", None) == (8, 1) and Resources(64, 8).at_once(8, 1) == 8
    assert Resources(2, 0).of_each("auto", None) == (1, 0) and Resources(2, 0).at_once(1, 0) == 2
    assert Resources(64, 8).of_each("cpu", 4) == (4, 0)
    with pytest.raises(ConfigError, match="no GPU"):
        Resources(2, 0).of_each("cuda", None)
    with pytest.raises(ConfigError, match="only 2"):
        Resources(2, 0).of_each("cpu", 3)
