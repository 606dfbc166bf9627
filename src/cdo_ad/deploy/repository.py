"""Model repositories for serving engines that are there already: Triton and OpenVINO Model Server.

The model is the verified export. What it gives are maps and scores; thresholds and decisions stay with `cdo-ad serve`
or with whoever reads the calibration that lies in the run.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from cdo_ad.deploy.export import export
from cdo_ad.errors import ConfigError, needs_extra
from cdo_ad.files import write_text, writing

__all__ = ["ENGINES", "write_repository"]

ENGINES = {"triton": "onnx", "ovms": "openvino"}
"""What each takes: an ONNX file, or OpenVINO's pair."""
_NAME = re.compile(r"[A-Za-z1-9][A-Za-z0-9_-]{0,63}")
_TRITON = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


def write_repository(run: Path | str, out: Path, to: str, name: str, version: int = 1) -> Path:
    """Export a run and put it into a model repository.

    Args:
        run: a run folder.
        out: the repository's folder; other models in it stay.
        to: `triton` or `ovms`.
        name: of the model; letters, digits, `_` and `-`, with no 0 at the start, which Triton would pass over.
        version: a whole number from 1 on.

    Returns:
        The model's folder.

    Raises:
        ConfigError: another engine, or a name or number that it would not take.
        Besides those, what `cdo_ad.export` raises.
    """
    if to not in ENGINES:
        raise ConfigError(f"there is no repository for {to!r}: choose from {', '.join(ENGINES)}")
    if not _NAME.fullmatch(name) or version < 1:
        raise ConfigError(f"{name!r} version {version}: a name has letters, digits, '_' and '-'; versions begin with 1")
    file, _ = export(run, ENGINES[to])
    folder = out / name
    with writing(folder):
        (folder / str(version)).mkdir(parents=True, exist_ok=True)
        parts = [file] if to == "triton" else [file, file.with_suffix(".bin")]
        for part in parts:
            shutil.copy2(part, folder / str(version) / part.name)
    if to == "triton":
        write_text(folder / "config.pbtxt", _triton_config(folder / str(version) / file.name, name))
    else:
        _add_to_ovms(out, name)
    return folder


def _triton_config(model: Path, name: str) -> str:
    with needs_extra("onnx", "writing a Triton repository"):
        import onnxruntime
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0"]
    for kind, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        lines += [f"{kind} [", ",\n".join(_tensor(each) for each in tensors), "]"]
    return "\n".join([*lines, "instance_group [ { count: 1 kind: KIND_CPU } ]", ""])


def _tensor(tensor: Any) -> str:
    sides = ", ".join(str(side) if isinstance(side, int) else "-1" for side in tensor.shape)
    return f'  {{ name: "{tensor.name}" data_type: {_TRITON[tensor.type]} dims: [ {sides} ] }}'


def _add_to_ovms(out: Path, name: str) -> None:
    """Name the model in `config.json`; the paths are those inside the container, where the repository is /models."""
    file = out / "config.json"
    known: list[dict[str, Any]] = []
    if file.is_file():
        try:
            known = json.loads(file.read_text("utf-8"))["model_config_list"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is no configuration of OpenVINO Model Server: move it away") from error
    others = [each for each in known if each.get("config", {}).get("name") != name]
    entry = {"config": {"name": name, "base_path": f"/models/{name}", "plugin_config": {"PERFORMANCE_HINT": "LATENCY"}}}
    write_text(file, json.dumps({"model_config_list": [*others, entry]}, indent=2) + "\n")
