"""Files for deployment, the commands that the documents name, model repositories, the demo."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import typer

from cdo_ad.cli.main import app
from cdo_ad.config import Config
from cdo_ad.demo.products import PRODUCTS
from cdo_ad.deploy.repository import write_repository
from cdo_ad.errors import ConfigError
from cdo_ad.server.demo import DrawnLine, demo_config, set_up_demo
from cdo_ad.server.line.sinks import open_sink
from cdo_ad.server.teaching.school import SETTINGS
from serving import running, until

ROOT = Path(__file__).parents[1]


def options_of(verb: str) -> set[str]:
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def commands(text: str) -> list[list[str]]:
    found = re.findall(r"cdo-ad (?:serve|watch|keys|export)\b[^\n`]*", text)
    return [shlex.split(line.split("  #")[0].replace('"]', ""), comments=True)[1:] for line in found]


@pytest.mark.parametrize("name", ["docs/server.md", "deployment/cdo-ad.service", "deployment/compose.yaml"])
def test_commands_in_documents_are_ones(name: str) -> None:
    listed = commands((ROOT / name).read_text("utf-8"))
    assert listed
    for verb, *words in listed:
        for word in words:
            if word.startswith("--"):
                assert word in options_of(verb), (name, verb, word)


def test_containers_use_options_that_there_are() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    compose = yaml.safe_load((ROOT / "deployment" / "compose.yaml").read_text("utf-8"))
    server = compose["services"]["server"]
    entry = re.search(r"ENTRYPOINT (\[.*\])", (ROOT / "deployment" / "Dockerfile").read_text("utf-8"))
    assert entry is not None and server["read_only"]
    words = json.loads(entry[1])[2:] + server["command"]
    assert {word for word in words if word.startswith("--")} <= options_of("serve")
    open_sink(words[words.index("--to") + 1])
    assert "USER cdo" in (ROOT / "deployment" / "Dockerfile").read_text("utf-8")


def test_the_unit_of_systemd_is_one() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = ROOT / "deployment" / "cdo-ad.service"
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if "cdo-ad.service" in line and "is not executable" not in line]
    assert told == []


def test_a_repository_for_triton(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    from google.protobuf import text_format

    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    folder = write_repository(run, tmp_path / "repository", "triton", "part", 3)
    parsed = text_format.Parse((folder / "config.pbtxt").read_text(), config.ModelConfig())
    assert parsed.name == folder.name == "part" and parsed.backend == "onnxruntime"
    assert list(parsed.input[0].dims) == [-1, -1, -1, 3] and parsed.input[0].data_type == config.TYPE_UINT8
    assert {each.name for each in parsed.output} == {"maps", "scores"}
    assert (folder / "3" / "model.onnx").is_file()


def test_a_repository_for_openvino_model_server(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    config = tmp_path / "repository" / "config.json"
    config.parent.mkdir()
    known = [{"config": {"name": name, "base_path": f"/models/{name}"}} for name in ("part", "other")]
    config.write_text(json.dumps({"model_config_list": known}))
    folder = write_repository(run, tmp_path / "repository", "ovms", "part")
    assert {each.name for each in (folder / "1").iterdir()} == {"model.xml", "model.bin"}
    listed = json.loads(config.read_text())["model_config_list"]
    assert [each["config"]["base_path"] for each in listed] == ["/models/other", "/models/part"]


@pytest.mark.parametrize(
    ("to", "name", "version"), [("ftp", "a", 1), ("triton", "0a", 1), ("ovms", "a/b", 1), ("ovms", "a", 0)]
)
def test_repositories_that_are_none(to: str, name: str, version: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_repository(tmp_path, tmp_path / "out", to, name, version)


def test_the_demo_shows_all_of_it(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DrawnLine.__init__, "__defaults__", (0.2,))
    state = tmp_path / "state"
    for product in PRODUCTS:  # trained already, as after a first start
        shutil.copytree(tiny_run, state / "demo" / "runs" / product)
    told: list[str] = []

    def prepare(service: Any) -> None:
        set_up_demo(service, told.append, images=4)

    with running(state, auth=False, prepare=prepare) as served:
        assert told == []
        assert {model["name"] for model in served.http.get("/v1/models").json()} == set(PRODUCTS)
        until(lambda: served.http.get("/v1/history").json()["total"] >= 6)
        until(lambda: (state / "demo" / "decisions.jsonl").is_file())
        assert served.http.get("/v1/teach/new part").json()["count"] == 4
        versions = served.http.get(f"/v1/models/{PRODUCTS[0]}/versions").json()
        assert versions["shadow"] == 2
        sources = served.http.get("/v1/line").json()["sources"]
        assert len(sources) == 3 and all(each["connected"] for each in sources)


def test_settings_of_the_server_are_ones() -> None:
    assert set(Config.model_fields) >= SETTINGS
    assert demo_config().image_size == (128, 128)


def test_a_drawn_line_gives_parts() -> None:
    stop = threading.Event()
    frame = next(iter(DrawnLine("plate", 0.01).frames(stop)))
    assert frame.content.shape == (192, 192, 3) and frame.name.startswith("plate 1")
