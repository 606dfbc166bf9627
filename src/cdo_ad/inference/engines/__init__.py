"""Engines that run a model: torch, OpenVINO, ONNX Runtime, behind one contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdo_ad.inference.engines.onnx import OnnxEngine
    from cdo_ad.inference.engines.openvino import OpenVinoEngine

__all__ = ["load_export"]


def load_export(
    path: Path, *, device: str = "auto", mode: str = "latency", threads: int | None = None
) -> OpenVinoEngine | OnnxEngine:
    """The engine for an exported file, by its ending; arguments and errors as of the two classes."""
    if path.suffix == ".onnx":
        from cdo_ad.inference.engines.onnx import OnnxEngine

        return OnnxEngine(path, device=device, threads=threads)
    from cdo_ad.inference.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(path, device=device, mode=mode, threads=threads)
