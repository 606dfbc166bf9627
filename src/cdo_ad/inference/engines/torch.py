"""PyTorch, on a CPU or a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle
from cdo_ad.errors import BundleError, ConfigError, needs_extra
from cdo_ad.inference.engines.base import Categories, Output
from cdo_ad.types import Float32Array

if TYPE_CHECKING:
    import torch

    from cdo_ad.method.model import AnomalyModel

__all__ = [
    "TorchDepthEngine", "TorchEngine", "choose_device", "exact_arithmetic", "gpu_present", "load_model", "torch_engine",
]  # fmt: skip

GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""Files of the drivers of GPUs on Linux: NVIDIA, AMD, Windows' subsystem."""


class TorchEngine:
    """PyTorch in float32: autocast and TF32 are switched off, so maps are the same on a GPU up to rounding."""

    def __init__(self, model: AnomalyModel, device: torch.device | str = "cpu") -> None:
        """Take a trained model; it is moved to the device and set to eval mode."""
        with needs_extra("train", "the torch engine"):
            import torch

        self.device = torch.device(device)
        self.name = f"torch-{self.device.type}"
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """See `Engine.infer`."""
        return self._judge(images, categories)

    def _judge(
        self, images: npt.NDArray[np.uint8], categories: Categories | None, surfaces: Float32Array | None = None
    ) -> Output:
        import torch

        with torch.inference_mode(), exact_arithmetic(self.device):
            batch, given = self._on_device(images, categories)
            beside = None if surfaces is None else torch.from_numpy(surfaces).to(self.device)
            maps, scores, judged = self.model(batch, given, beside)
            return Output(maps.cpu().numpy(), scores.cpu().numpy(), judged.cpu().numpy())

    def explain(
        self, image: npt.NDArray[np.uint8], category: int, surface: Float32Array | None = None
    ) -> dict[str, Float32Array]:
        """The weighted map of each branch, whose sum, enlarged and blurred, is the anomaly map; (h, w) each, by name.

        Args:
            image: (H, W, 3) uint8 RGB.
            category: its number, or `UNKNOWN`.
            surface: as `TorchDepthEngine.infer_depth` takes it, of a model that looks at depth.
        """
        import torch

        with torch.inference_mode(), exact_arithmetic(self.device):
            batch, given = self._on_device(image[None], np.array([category], np.int64))
            beside = None if surface is None else torch.from_numpy(surface[None]).to(self.device)
            return {name: seen[0].cpu().numpy() for name, seen in self.model.explain(batch, given, beside).items()}

    def _on_device(
        self, images: npt.NDArray[np.uint8], categories: Categories | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return batch, None if categories is None else torch.from_numpy(categories).to(self.device)


class TorchDepthEngine(TorchEngine):
    """Runs a model that looks at the surface beside each image."""

    @property
    def surface_size(self) -> tuple[int, int]:
        """(H, W) of the surfaces: the model's input size."""
        return self.model.spec.image_size

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """Always raises ConfigError: images alone are not enough."""
        raise ConfigError(
            "this run looks at depth beside the image, and no point cloud was given: use  predict  or  evaluate  on "
            "files, or train without depth"
        )

    def infer_depth(
        self, images: npt.NDArray[np.uint8], surfaces: Float32Array, categories: Categories | None = None
    ) -> Output:
        """See `cdo_ad.inference.engines.base.DepthEngine.infer_depth`."""
        return self._judge(images, categories, surfaces)


def torch_engine(model: AnomalyModel, device: torch.device | str = "cpu") -> TorchEngine:
    """The engine for a model: one that takes surfaces too, where the model looks at depth."""
    return (TorchDepthEngine if model.spec.depth else TorchEngine)(model, device)


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Float32 as it says: no TF32 in products and convolutions, no autocast; what was set before comes back."""
    import torch

    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    same = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    try:
        with cudnn.flags(**same, allow_tf32=False), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def load_model(bundle: Bundle) -> AnomalyModel:
    """Build the model of a run and load its weights.

    Raises:
        BundleError: the weights are damaged, do not belong to the run's model, or hold a value that is not finite.
    """
    with needs_extra("train", "running a run folder with torch"):
        import torch
        from safetensors.torch import load

        from cdo_ad.method.model import AnomalyModel
    data = bundle.weights()
    model = AnomalyModel(bundle.model)
    try:
        state = load(data)
        model.load_state_dict(state)
    except Exception as error:  # safetensors raises a type of its own for a damaged file, torch RuntimeError
        raise BundleError(f"{bundle.path} does not hold the weights of its model: {error}") from error
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise BundleError(f"{bundle.path}: the weights {name} hold values that are not numbers: train it again")
    return model.eval()


def gpu_present() -> bool:
    """True where torch is installed and sees a GPU; torch, slow to import, is asked only where there may be one."""
    if sys.platform == "linux" and not any(Path(file).exists() for file in GPU_DEVICES):
        return False
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def choose_device(device: str) -> str:
    """Resolve `auto`; raises ConfigError for a device that this machine does not have."""
    with needs_extra("train", "the torch engine"):
        import torch
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = device.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        have = ", ".join(name for name, is_there in there.items() if is_there)
        raise ConfigError(f"device {device!r} is not on this machine: it has {have}")
    if number and not (number.isdigit() and int(number) < torch.cuda.device_count()):
        raise ConfigError(f"device {device!r} is not on this machine: it has {torch.cuda.device_count()} of that kind")
    return device
