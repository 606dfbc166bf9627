"""The command line: what each verb prints and writes, exit codes, errors in one line; and what the package imports."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import cdo_ad
from cdo_ad.cli.main import main
from fakes import make_folder, write

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cdo_ad"
TINY_WORDS = [
    "--recipe", "paper_resnet18", "--set", "weights=none", "--set", "image_height=64", "--set", "image_width=64",
    "--set", "epochs=1", "--false-alarm-rate", "0.1",
]  # fmt: skip


class Done(NamedTuple):
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the entry point in this process; what Ctrl-C does comes back."""

    def call(*words: object, code: int = 0) -> Done:
        before = signal.getsignal(signal.SIGINT)
        monkeypatch.setattr(sys, "argv", ["cdo-ad", *map(str, words)])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGINT, before)
        done = Done(*capsys.readouterr())
        assert (ended.value.code or 0) == code, done.stderr
        return done

    return call


def in_a_process(*words: object) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "cdo_ad.cli.main", *map(str, words)]
    return subprocess.run(start, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_train_calibrate_evaluate_predict(run: Run, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = json.loads(run("train", tiny_data, "--out", out, "--seed", 5, *TINY_WORDS, "--json").stdout)
    assert trained["settings"]["seed"] == 5 and trained["calibration"]["false_alarm_rate"] == 0.1
    calibrated = json.loads(run("calibrate", out, "--false-alarm-rate", "0.2", "--json").stdout)
    before, after = (document["categories"][""] for document in (trained["calibration"], calibrated))
    assert after["image_threshold"] < before["image_threshold"] and after["scores"] == before["scores"]
    refused = run("calibrate", out, "--false-alarm-rate", "0.01", code=1)
    assert "99 different parts, there are 12" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    assert json.loads((out / "calibration.json").read_text()) == calibrated
    learned = run("calibrate", out, tiny_data, "--false-alarm-rate", "0.2", code=1)
    assert "the run learned from this image (12 of 24 are such)" in learned.stderr

    metrics = json.loads(run("evaluate", out, tiny_data, "--json").stdout)
    assert set(metrics["pixel"]) == {"auroc", "ap", "f1max", "aupro_30", "aupro_05"}
    assert {"value", "low", "high"} <= set(metrics["decision"]["detection_rate"])
    assert json.loads((out / "metrics.json").read_text()) == metrics
    table = run("evaluate", out, tiny_data, "--at-size", "64x64").stdout
    assert "AUROC" in table and all(name in table for name in metrics["types"])

    images, drawn = tiny_data / "test" / "good", tmp_path / "drawn"
    lines = run("predict", out, images, "--json", "--out", drawn, "--maps").stdout.splitlines()
    parsed = [json.loads(line) for line in lines]
    assert len(parsed) == 3 and all({"path", "score", "p_value", "anomalous"} <= set(p) for p in parsed)
    assert all(" of 12 good images score" in p["sentence"] for p in parsed)
    assert len(list(drawn.glob("*_overlay.png"))) == len(list(drawn.glob("*_map.png"))) == 3
    assert len((drawn / "predictions.jsonl").read_text().splitlines()) == 3
    with Image.open(sorted(drawn.glob("*_overlay.png"))[0]) as overlay, Image.open(parsed[0]["path"]) as given:
        assert overlay.size == given.size


@pytest.mark.slow
def test_refit_and_drift(run: Run, dense_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    told = run("refit", dense_run, "--out", tmp_path / "new", "--set", "blur_sigma=2", "--device", "cpu")
    assert told.stdout.startswith("threshold ") and "of good images raise a false alarm" in told.stdout
    assert json.loads((tmp_path / "new" / "config.json").read_text())["settings"]["blur_sigma"] == 2
    refused = run("refit", dense_run, "--out", tmp_path / "other", "--set", "gamma=1", code=1)
    assert "that needs a training of its own" in refused.stderr
    found = json.loads(run("drift", dense_run, tiny_data / "train" / "good", "--json").stdout)
    assert found["drifted"] is False


def test_help_names_every_verb(run: Run) -> None:
    text = run("--help").stdout
    verbs = {"train", "adapt", "refit", "calibrate", "demo", "predict", "evaluate", "drift", "check", "report", "table",
             "export", "benchmark"}  # fmt: skip
    assert {verb for verb in verbs if f" {verb} " not in text} == set()


@pytest.mark.slow
def test_two_devices_really_are_two(tiny_data: Path, tmp_path: Path) -> None:
    done = in_a_process("train", tiny_data, "--out", tmp_path / "run", *TINY_WORDS, "--device", "cpu", "--devices", 2)
    assert done.returncode == 0 and done.stdout.count("trained on") == 1, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["provenance"]["devices"] == 2


def test_a_truncated_image_is_reported_and_the_rest_goes_on(run: Run, tiny_run: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", good=3, defective=0) / "good"
    broken = folder / "001.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    done = run("predict", tiny_run, folder, "--json", code=1)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in r for r in results] == [False, True, False]
    assert "001.jpg" in done.stderr and "1 of 3" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["evaluate", "nowhere", "."], 1, "nowhere is not a run folder"),
        (["train", "nowhere", "--out", "run"], 1, "nowhere"),
        (["train", "{empty}", "--out", "run"], 1, "empty"),
        (["train", "{data}", "--out", "run", "--recipe", "best"], 1, "unknown recipe 'best'"),
        (["train", "{data}", "--out", "run", "--set", "lr"], 1, "key=value"),
        (["train", "{data}"], 2, "--out"),
        (["fly"], 2, "fly"),
        (["train", "{data}", "--out", "run", "--resume", "--restart"], 1, "exclude each other"),
        (["calibrate", "{run}", "--false-alarm-rate", "2"], 1, "must lie between 0 and 1"),
        (["adapt", "{run}"], 1, "give --good FOLDER"),
        (["drift", "{run}", "{data}/test/good", "--alpha", "2"], 1, "alpha must lie between 0 and 1"),
        (["report", "{run}", "{data}", "{data}"], 1, "is not a run folder"),
        (["check", "nowhere"], 1, "nowhere"),
        (["table", "nowhere"], 1, "nowhere"),
        (["predict", "{run}", "{data}", "--maps"], 1, "--out DIR"),
        (["evaluate", "{run}", "{data}", "--at-size", "big"], 1, "HEIGHTxWIDTH"),
    ],
)
def test_errors_are_one_line_and_have_their_exit_code(
    run: Run, tiny_run: Path, tiny_data: Path, tmp_path: Path, words: list[str], code: int, message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"run": tiny_run, "data": tiny_data, "empty": tmp_path / "empty"}
    done = run(*[w.format(**places) for w in words], code=code)
    assert message in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")


def test_the_traceback_comes_with_debug() -> None:
    done = in_a_process("--debug", "evaluate", "nowhere", ".")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_file_that_is_not_there_is_named_and_counted(run: Run, tiny_run: Path) -> None:
    done = run("predict", tiny_run, "none.png", code=1)
    assert done.stderr.splitlines() == [
        "error: none.png: there is no such file: check the path", "1 of 1 files could not be judged or drawn",
    ]  # fmt: skip


def test_odd_images_are_used_rightly(run: Run, tiny_run: Path, tmp_path: Path) -> None:
    gray = np.tile(np.arange(100, dtype=np.uint8), (40, 1))
    write(tmp_path / "gray.png", gray)
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    write(tmp_path / "alpha.png", np.dstack([gray, np.full_like(gray, 255)]))
    turned = Image.fromarray(np.rot90(gray).copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    done = run("predict", tiny_run, tmp_path, "--json")
    scores = {Path(r["path"]).stem: r["score"] for r in map(json.loads, done.stdout.splitlines())}
    assert scores["deep"] == scores["alpha"] == scores["turned"] == scores["gray"]


# ---- the package


@pytest.mark.parametrize("name", cdo_ad.__all__)
def test_public_names_are_there(name: str) -> None:
    assert name in dir(cdo_ad) and getattr(cdo_ad, name) is not None


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cdo_ad.nothing  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    ["import cdo_ad", "import cdo_ad.cli.main", "import cdo_ad.inference.detector, cdo_ad.evaluation.evaluate"],
)
def test_imports_load_no_heavy_package(statement: str) -> None:
    heavy = {"torch", "timm", "fastapi", "ray", "openvino", "onnx", "onnxruntime", "plotly", "matplotlib", "scipy"}
    code = f"import sys; {statement}; print(sorted(set(sys.modules) & {heavy!r}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_closed_output_stops_nothing(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    image = next((tiny_data / "train" / "good").iterdir())
    words = [sys.executable, "-m", "cdo_ad.cli.main", "predict", str(tiny_run), str(image), "--out", str(tmp_path)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words], stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "predictions.jsonl").read_text().count("\n") == 1


def test_the_version_is_one() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{cdo_ad.__version__}"' in text
    assert shutil.which("git") is None or cdo_ad.__version__ in (ROOT / "CITATION.cff").read_text()
