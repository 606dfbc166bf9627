"""Exported models: one file that takes camera images and carries its calibration. Needs no torch.

- `model.xml` with `model.bin` (OpenVINO) or `model.onnx` (ONNX Runtime); `model_int8.xml` for the quantised one.
- What the detector must know (settings, calibration, data fingerprint, labels, versions) is one JSON text inside.
- The file ends with a seal, the SHA-256 of all before it and of its weights: a damaged file is refused, not trusted.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle
from cdo_ad.calibration import Calibration
from cdo_ad.config import Config
from cdo_ad.errors import BundleError, CdoError, ConfigError, needs_extra
from cdo_ad.inference.engines.torch import Runtime
from cdo_ad.types import Float32Array

__all__ = [
    "FILES",
    "INT8_FILE",
    "METADATA_KEY",
    "OnnxRuntime",
    "OpenVinoGraph",
    "OpenVinoRuntime",
    "exported_bundle",
    "import_openvino",
    "load_runtime",
    "openvino_core",
    "seal",
]

FILES = {"openvino": "model.xml", "onnx": "model.onnx"}
"""Name of the exported file by engine, in the run's folder `export`."""
INT8_FILE = "model_int8.xml"
"""Name of the quantised one; it carries a calibration of its own."""
METADATA_KEY = "cdo_ad"
FORMAT = 1

# An XML comment, and a further entry of ONNX's metadata_props: protobuf messages that follow each other are merged.
_SEALS = {
    ".xml": (b"<!--cdo_ad_sha256 ", b"-->\n"),
    ".onnx": (b"\x72\x51\x0a\x0dcdo_ad_sha256\x12\x40", b""),
}
_HEX = 64


def seal(path: Path) -> None:
    """Append the seal to a model file; `path` has the ending .xml (its .bin beside it) or .onnx."""
    begin, end = _SEALS[path.suffix]
    data = path.read_bytes()
    path.write_bytes(data + begin + _digest(path, data) + end)


def check_seal(path: Path) -> None:
    """Raise BundleError unless the file and its weights are what was written."""
    if path.suffix not in _SEALS:
        raise BundleError(f"{path} is no exported model: name a .xml or .onnx file written by  cdo-ad export")
    weights = path.with_suffix(".bin")
    for file in (path, weights) if path.suffix == ".xml" else (path,):
        if not file.is_file():
            raise BundleError(f"{file} is missing: copy the exported model again, with all its files")
    begin, end = _SEALS[path.suffix]
    data = path.read_bytes()
    length = len(begin) + _HEX + len(end)
    body, found = data[:-length], data[-length:]
    if not found.startswith(begin) or found != begin + _digest(path, body) + end:
        raise BundleError(f"{path} is damaged or was not written by  cdo-ad export: copy or export it again")


def _digest(path: Path, body: bytes) -> bytes:
    digest = hashlib.sha256(body)
    if path.suffix == ".xml":
        digest.update(path.with_suffix(".bin").read_bytes())
    return digest.hexdigest().encode()


@dataclass(frozen=True)
class Metadata:
    """What an exported file says of itself."""

    precision: str
    """`fp32` or `int8`."""
    config: Config
    calibration: Calibration
    provenance: dict[str, Any]
    """As in the bundle, without the names of the images; `labels` names the two decisions."""

    def to_json(self) -> str:
        """One JSON text."""
        document = {
            "format": FORMAT,
            "precision": self.precision,
            "labels": ["good", "anomalous"],
            "settings": self.config.to_json(),
            "calibration": self.calibration.to_json(),
            "provenance": self.provenance,
        }
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str, path: Path) -> Metadata:
        """The inverse of `to_json`; `path` names the file in errors.

        Raises:
            BundleError: a newer format, or a text that `to_json` did not write.
        """
        try:
            document = json.loads(text)
            if document["format"] > FORMAT:
                raise BundleError(
                    f"{path} was exported by a newer version (format {document['format']}): update cdo-ad"
                )
            return cls(
                str(document["precision"]),
                Config.from_json(document["settings"]),
                Calibration.from_json(document["calibration"]),
                dict(document["provenance"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path} does not carry a calibration ({error}): export it again") from error


def import_openvino(purpose: str = "running an exported model with OpenVINO") -> Any:
    """The module `openvino`, without the messages home that it and its tools would send: a line PC sends nothing.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: an import of it fails
    with needs_extra("runtime", purpose):
        import openvino
    return openvino


def openvino_core() -> Any:
    """The process's one `openvino.Core`, which lives as long as the process.

    Its plugin for CPUs gives the thread a stack for signals and takes it back when the core goes. Of two cores that
    go in the order in which they came, the second brings back the stack of the first, which is gone: the next signal
    that Python handles (a child's end, Ctrl-C) then kills the process. One core that stays has none of that.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with _core_lock:  # a cache alone would let two threads make one each
        return _core()


@cache
def _core() -> Any:
    return import_openvino().Core()


_core_lock = threading.Lock()


class OpenVinoGraph:
    """A graph of `cdo_ad.deploy.export`, compiled in float32 (int8 where it says so); may be called from several threads."""

    def __init__(self, model: Any, target: str = "CPU", mode: str = "latency", profile: bool = False) -> None:
        """Compile an `openvino.Model` for a device of OpenVINO; `mode` as in `OpenVinoRuntime`, see `profiled`."""
        # OpenVINO would pick bf16 by itself where the processor has it
        self._options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": mode.upper(), "PERF_COUNT": profile}
        self._target = target
        self.source = model
        # with one image all sizes behind the resize are known now, and not looked up node by node each time
        single = model.clone()
        single.reshape([1, -1, -1, 3])
        self._single = self._compile(single)
        self._local = threading.local()
        self.name = f"openvino-{target.lower()}"

    def _compile(self, model: Any) -> Any:
        return openvino_core().compile_model(model, self._target, self._options)

    @cached_property
    def _several(self) -> Any:
        """Compiled for any number of images; made when it is first needed."""
        return self._compile(self.source)

    def _model(self, images: npt.NDArray[np.uint8]) -> Any:
        return self._single if len(images) == 1 else self._several

    def infer(self, images: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """See `Runtime.infer`."""
        requests = self._local.__dict__.setdefault("requests", {})
        model = self._model(images)
        if model not in requests:
            requests[model] = model.create_infer_request()
        result = requests[model].infer({0: np.ascontiguousarray(images)})
        return result[0], result[1]

    def profiled(self, images: npt.NDArray[np.uint8]) -> list[tuple[str, str, float]]:
        """Run the networks; (name, type, milliseconds) of each node, where compiled with `profile`."""
        request = self._model(images).create_infer_request()
        request.infer({0: np.ascontiguousarray(images)})
        found = request.get_profiling_info()
        return [(node.node_name, node.node_type, node.real_time.total_seconds() * 1e3) for node in found]

    def infer_many(self, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[tuple[Float32Array, float]]:
        """Judge a stream of images, several at a time, in order; the next are fetched while others are computed.

        Args:
            images: (H, W, 3) uint8 each, of any sizes.

        Yields:
            map (h, w) float32 and score of each.
        """
        count = max(2, int(self._single.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
        idle = [self._single.create_infer_request() for _ in range(count)]
        busy: deque[Any] = deque()
        for image in images:
            if not idle:
                idle.append(busy.popleft())
                yield _finish(idle[-1])
            request = idle.pop()
            request.start_async({0: np.ascontiguousarray(image)[None]})
            busy.append(request)
        for request in busy:
            yield _finish(request)


class OpenVinoRuntime(OpenVinoGraph):
    """An exported OpenVINO file."""

    def __init__(self, path: Path, *, device: str = "auto", mode: str = "latency", profile: bool = False) -> None:
        """Read and compile a model.

        Args:
            path: the .xml file; its .bin lies beside it.
            device: `auto` and `cpu` are the CPU; any other is a name of OpenVINO, e.g. `gpu`.
            mode: `latency` (all cores for one image) or `throughput` (several images side by side, `infer_many`).
            profile: let OpenVINO time each node, for `profiled`.

        Raises:
            BundleError: a damaged file, or one that is no exported model.
            ConfigError: an unknown mode, or a device that is not there.
            MissingExtraError: OpenVINO is not installed.
        """
        if mode not in ("latency", "throughput"):
            raise ConfigError(f"unknown mode {mode!r}: choose latency or throughput")
        check_seal(path)
        core = openvino_core()
        target = "CPU" if device in ("auto", "cpu") else device.upper()
        if target.partition(".")[0] not in {name.partition(".")[0] for name in core.available_devices}:
            raise ConfigError(f"OpenVINO has no device {device!r} here: it has {', '.join(core.available_devices)}")
        try:
            model = core.read_model(path)
            text = str(model.get_rt_info([METADATA_KEY, "metadata"]).value)
        except RuntimeError as error:
            raise BundleError(f"{path} is no exported model: {_first_line(error)}") from error
        self.metadata = Metadata.from_json(text, path)
        super().__init__(model, target, mode, profile)


def _finish(request: Any) -> tuple[Float32Array, float]:
    request.wait()
    # copied: the request's memory is used again
    return np.array(request.get_output_tensor(0).data[0]), float(request.get_output_tensor(1).data[0])


PROVIDERS = {
    "cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "dml": ("DmlExecutionProvider",),
    "cpu": ("CPUExecutionProvider",),
}
"""ONNX Runtime's providers by device, the preferred first."""


class OnnxRuntime:
    """ONNX Runtime, on the first provider that is present: TensorRT, CUDA (without TF32), DirectML, CPU."""

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        """Read a model.

        Args:
            path: the .onnx file.
            device: `auto`, `cuda`, `dml` or `cpu`.

        Raises:
            BundleError: a damaged file, or one that is no exported model.
            ConfigError: a device that is not there.
            MissingExtraError: ONNX Runtime is not installed.
        """
        check_seal(path)
        with needs_extra("onnx", "running an exported model with ONNX Runtime"):
            import onnxruntime as ort
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # its threads would wait for the next image at full load, which doubled the time of an engine called meanwhile
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=_providers(device))
            text = self._session.get_modelmeta().custom_metadata_map[METADATA_KEY]
        except CdoError:
            raise
        except Exception as error:  # ONNX Runtime raises its own kinds, all of them derived from Exception
            raise BundleError(f"{path} is no exported model: {_first_line(error)}") from error
        self.metadata = Metadata.from_json(text, path)
        self._input = self._session.get_inputs()[0].name
        self.name = "onnx-" + self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()

    def infer(self, images: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """See `Runtime.infer`."""
        maps, scores = self._session.run(None, {self._input: np.ascontiguousarray(images)})
        return maps, scores


def _providers(device: str) -> list[tuple[str, dict[str, Any]]]:
    import onnxruntime as ort

    if device not in ("auto", *PROVIDERS):
        raise ConfigError(f"unknown device {device!r} for ONNX Runtime: choose auto, {', '.join(PROVIDERS)}")
    wanted = sum(PROVIDERS.values(), ()) if device == "auto" else PROVIDERS[device]
    present = [name for name in wanted if name in ort.get_available_providers()]
    if not present:
        have = ", ".join(ort.get_available_providers())
        raise ConfigError(f"ONNX Runtime has no device {device!r} here: its providers are {have}")
    exact = {"CUDAExecutionProvider": {"use_tf32": 0}}
    return [(name, exact.get(name, {})) for name in dict.fromkeys([*present, "CPUExecutionProvider"])]


def load_runtime(path: Path, *, device: str = "auto", mode: str = "latency") -> OpenVinoRuntime | OnnxRuntime:
    """The engine for an exported file, by its ending; raises as the two classes do."""
    if path.suffix == ".xml":
        return OpenVinoRuntime(path, device=device, mode=mode)
    return OnnxRuntime(path, device=device)


def exported_bundle(path: Path, metadata: Metadata) -> Bundle:
    """What a bundle says, from an exported file; it names no images and has no torch weights."""
    return Bundle(path.parent, metadata.config, metadata.calibration, metadata.provenance)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _check_protocol(runtime: OpenVinoRuntime | OnnxRuntime) -> Runtime:
    return runtime  # mypy holds both engines to the contract
