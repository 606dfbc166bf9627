from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import cdo_ad
from fakes import make_folder, write

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cdo_ad"
TINY_WORDS = [
    "--recipe", "paper_resnet18", "--set", "weights=none", "--set", "image_height=64", "--set", "image_width=64",
    "--set", "epochs=1", "--false-alarm-rate", "0.1",
]  # fmt: skip


def run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cdo_ad.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr
    return done


def test_train_calibrate_evaluate_predict(tiny_data, tmp_path) -> None:
    out = tmp_path / "run"
    trained = json.loads(run("train", tiny_data, "--out", out, "--seed", 5, *TINY_WORDS, "--json").stdout)
    assert trained["settings"]["seed"] == 5 and trained["calibration"]["false_alarm_rate"] == 0.1
    calibrated = json.loads(run("calibrate", out, "--false-alarm-rate", "0.2", "--json").stdout)
    assert calibrated["image_threshold"] < trained["calibration"]["image_threshold"]
    refused = run("calibrate", out, "--false-alarm-rate", "0.01", code=1)
    assert "needs 99" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    assert json.loads((out / "calibration.json").read_text()) == calibrated
    assert "was trained on" in run("calibrate", out, tiny_data, "--false-alarm-rate", "0.2", code=1).stderr

    metrics = json.loads(run("evaluate", out, tiny_data, "--json").stdout)
    assert {"image", "pixel", "decision", "n", "types", "categories", "weights_sha256", "thresholds"} <= set(metrics)
    assert set(metrics["pixel"]) == {"auroc", "ap", "f1max", "aupro_30", "aupro_05"}
    assert {"value", "low", "high"} <= set(metrics["decision"]["detection_rate"])
    assert json.loads((out / "metrics.json").read_text()) == metrics
    table = run("evaluate", out, tiny_data, "--at-size", "64x64").stdout
    assert "AUROC" in table and all(name in table for name in metrics["types"])

    images = tiny_data / "test" / "good"
    lines = run("predict", out, images, "--json", "--out", tmp_path / "drawn", "--maps").stdout.splitlines()
    parsed = [json.loads(line) for line in lines]
    assert len(parsed) == 3 and all({"path", "score", "p_value", "anomalous"} <= set(p) for p in parsed)
    assert all(" of 12 good images score" in p["sentence"] for p in parsed)
    assert (
        len(list((tmp_path / "drawn").glob("*_overlay.png"))) == len(list((tmp_path / "drawn").glob("*_map.png"))) == 3
    )
    assert len((tmp_path / "drawn" / "predictions.jsonl").read_text().splitlines()) == 3
    with (
        Image.open(sorted((tmp_path / "drawn").glob("*_overlay.png"))[0]) as drawn,
        Image.open(parsed[0]["path"]) as given,
    ):
        assert drawn.size == given.size


@pytest.mark.slow
def test_two_devices_really_are_two(tiny_data, tmp_path) -> None:
    done = run("train", tiny_data, "--out", tmp_path / "run", *TINY_WORDS, "--device", "cpu", "--devices", 2)
    assert done.stdout.count("trained on") == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["provenance"]["devices"] == 2


def test_a_truncated_image_is_reported_and_the_rest_goes_on(tiny_run, tmp_path) -> None:
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
        (["predict", "{run}", "none.png"], 1, "none.png"),
        (["predict", "{run}", "{data}", "--maps"], 1, "--out DIR"),
        (["evaluate", "{run}", "{data}", "--at-size", "big"], 1, "HEIGHTxWIDTH"),
    ],
)
def test_errors_are_one_line_and_have_their_exit_code(tiny_run, tiny_data, tmp_path, words, code, message) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": tiny_run, "data": tiny_data, "empty": tmp_path / "empty"}
    done = run(*[w.format(**places) for w in words], code=code)
    assert message in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")


def test_the_traceback_comes_with_debug() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cdo_ad.cli.main", "--debug", "evaluate", "nowhere", "."], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_odd_images_are_used_rightly(tiny_run, tmp_path) -> None:
    import numpy as np

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


def test_the_public_names() -> None:
    assert set(cdo_ad.__all__) == set(cdo_ad._HOMES)
    for name in cdo_ad.__all__:
        assert getattr(cdo_ad, name) is not None
    assert callable(cdo_ad.train) and callable(cdo_ad.evaluate)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cdo_ad.nothing  # noqa: B018
    assert set(cdo_ad.__all__) <= set(dir(cdo_ad))


@pytest.mark.parametrize(
    "statement",
    ["import cdo_ad", "import cdo_ad.cli.main", "import cdo_ad.inference.detector, cdo_ad.evaluation.evaluate"],
)
def test_imports_load_no_heavy_package(statement) -> None:
    heavy = {
        "torch",
        "timm",
        "fastapi",
        "ray",
        "openvino",
        "onnx",
        "onnxruntime",
        "plotly",
        "matplotlib",
        "scipy",
        "cv2",
    }
    code = f"import sys; {statement}; print(sorted(set(sys.modules) & {heavy!r}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_imports_point_one_way() -> None:
    for file in (SOURCE / "method").glob("*.py"):
        assert not any(name.startswith("cdo_ad.data") for name in imports(file)), file
    for file in SOURCE.rglob("*.py"):
        if file.name not in ("cli.py", "__init__.py"):
            assert not any(
                name == "cdo_ad.cli.main" or name.startswith("cdo_ad.cli.main.") for name in imports(file)
            ), file
    low = {"config.py", "errors.py", "types.py", "calibrate.py", "metrics.py", "histogram.py", "regions.py", "draw.py"}
    for name in low:
        above = {
            n
            for n in imports(SOURCE / name)
            if n.startswith(("cdo_ad.training.job", "cdo_ad.inference.detector", "cdo_ad.data"))
        }
        assert not above, (name, above)


def test_the_version_is_one() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{cdo_ad.__version__}"' in text
    assert shutil.which("git") is None or cdo_ad.__version__ in (ROOT / "CITATION.cff").read_text()
