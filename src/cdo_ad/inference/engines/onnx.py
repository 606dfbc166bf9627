"""ONNX Runtime: exported models on many devices. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import BundleError, CdoError, ConfigError, needs_extra
from cdo_ad.inference.artifact import METADATA_KEY, Metadata, check_manifest, first_line
from cdo_ad.inference.engines.base import Categories, Output

__all__ = ["OnnxEngine"]

PROVIDERS = {
    "cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "dml": ("DmlExecutionProvider",),
    "cpu": ("CPUExecutionProvider",),
}
"""ONNX Runtime's providers by device, the preferred first."""


class OnnxEngine:
    """ONNX Runtime, on the first provider that is present: TensorRT, CUDA (without TF32), DirectML, CPU."""

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        """Read a model.

        Args:
            path: the .onnx file; its .onnx.sha256 lies beside it.
            device: `auto`, `cuda`, `dml` or `cpu`.
            threads: of the CPU, for one image; None for as many as there are cores.

        Raises:
            BundleError: a damaged file, or one that is no exported model.
            ConfigError: a device that is not there.
            MissingExtraError: ONNX Runtime is not installed.
        """
        check_manifest(path)
        with needs_extra("onnx", "running an exported model with ONNX Runtime"):
            import onnxruntime as ort
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        # its threads would wait for the next image at full load, which doubled the time of an engine called meanwhile
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=_providers(device))
            text = self._session.get_modelmeta().custom_metadata_map[METADATA_KEY]
        except CdoError:
            raise
        except Exception as error:  # ONNX Runtime raises its own kinds, all of them derived from Exception
            raise BundleError(f"{path} is no exported model: {first_line(error)}") from error
        self.metadata = Metadata.read(text, path)
        self._inputs = [node.name for node in self._session.get_inputs()]
        self.name = "onnx-" + self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """See `Engine.infer`."""
        inputs: dict[str, Any] = {self._inputs[0]: np.ascontiguousarray(images)}
        if len(self._inputs) == 1:
            maps, scores = self._session.run(None, inputs)
            return Output(maps, scores, np.zeros(len(images), np.int64))
        inputs[self._inputs[1]] = np.full(len(images), -1, np.int64) if categories is None else categories
        return Output(*self._session.run(None, inputs))


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
