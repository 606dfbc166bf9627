"""Engines that turn images into anomaly maps, behind one contract: a detector need not know which one runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import BundleError, needs_extra
from cdo_ad.types import Float32Array

if TYPE_CHECKING:
    import torch

    from cdo_ad.config import Config
    from cdo_ad.method.network import CdoNetwork

__all__ = ["Runtime", "TorchRuntime", "infer_stream", "load_network", "load_networks"]


class Runtime(Protocol):
    """Images of one size in, maps at the networks' input size and image scores out."""

    name: str

    def infer(self, images: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """Run the networks.

        Args:
            images: (B, H, W, 3) uint8 RGB, any H and W.

        Returns:
            maps (B, h, w) float32 >= 0 at the networks' input size, scores (B,) float32.
        """
        ...


def infer_stream(runtime: Runtime, images: Iterable[npt.NDArray[np.uint8]]) -> Iterator[tuple[Float32Array, float]]:
    """Judge a stream of images, in order; an engine that can have several in flight (`infer_many`) does.

    Args:
        runtime: any engine.
        images: (H, W, 3) uint8 each, of any sizes; taken as they are needed.

    Yields:
        map (h, w) float32 and score of each, the same as `runtime.infer` gives.
    """
    many = getattr(runtime, "infer_many", None)
    if many is not None:
        yield from many(images)
        return
    for image in images:
        maps, scores = runtime.infer(image[None])
        yield maps[0], float(scores[0])


class TorchRuntime:
    """PyTorch, on a CPU or a GPU (there in channels-last and, on CUDA, with autocast switched off: maps stay exact)."""

    def __init__(self, network: CdoNetwork, device: torch.device | str = "cpu") -> None:
        """Take a trained network; it is moved to the device and set to eval mode."""
        with needs_extra("train", "the torch runtime"):
            import torch

        self.device = torch.device(device)
        self.name = f"torch-{self.device.type}"
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()

    def infer(self, images: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """See `Runtime.infer`."""
        import torch

        from cdo_ad.method.resize import resize

        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            # NHWC bytes seen as NCHW are channels-last already
            small = resize(batch.permute(0, 3, 1, 2).float(), self.network.image_size)
            maps, scores = self.network(small.contiguous(memory_format=torch.channels_last))
            return maps.cpu().numpy(), scores.cpu().numpy()


RECOGNISER = "density.defect_head."
"""In the name of each tensor of a branch that recognises labelled defects."""


def load_network(config: Config, model_file: Path) -> CdoNetwork:
    """Build the networks of a bundle and load their weights.

    Raises:
        BundleError: if the file does not hold the weights of these networks.
    """
    with needs_extra("train", "running a bundle with torch"):
        from safetensors.torch import load_model

        from cdo_ad.method.categories import build
        from cdo_ad.method.network import CdoNetwork
    names = _tensor_names(model_file)
    network = build(config, _products(names), weights="none")
    try:
        for place in {name.partition(RECOGNISER)[0] for name in names if RECOGNISER in name}:
            member = network.get_submodule(place.rstrip("."))  # the networks themselves, or those of a product
            if isinstance(member, CdoNetwork):
                member.add_defect_head()
        load_model(network, str(model_file))
    except Exception as error:  # RuntimeError for other tensors
        raise _damaged(model_file, error) from error
    return network.eval()


def load_networks(config: Config, model_file: Path) -> CdoNetwork:
    """Expert and apprentice of a bundle, whatever branches its settings gave it; the branches of `config` are to be fitted.

    Raises:
        BundleError: as in `load_network`.
    """
    with needs_extra("train", "running a bundle with torch"):
        from safetensors.torch import load_file

        from cdo_ad.method.categories import UnifiedNetwork, build
    network = build(config, _products(_tensor_names(model_file)), weights="none")
    branches: tuple[str, ...] = ("density.", "usual", "shares", "products.")
    if not isinstance(network, UnifiedNetwork):
        branches += ("centres", "widths", "units")
    try:
        state = {name: value for name, value in load_file(model_file).items() if not name.startswith(branches)}
        missing, unknown = network.load_state_dict(state, strict=False)
        if wrong := [*unknown, *(name for name in missing if not name.startswith(branches))]:
            raise ValueError(f"{wrong[0]} is in one of both only")
    except Exception as error:  # as above
        raise _damaged(model_file, error) from error
    return network.eval()


def _tensor_names(model_file: Path) -> list[str]:
    from safetensors import safe_open

    try:
        with safe_open(str(model_file), "pt") as file:
            return list(file.keys())
    except Exception as error:  # safetensors raises its own type for a truncated file
        raise _damaged(model_file, error) from error


def _damaged(model_file: Path, error: Exception) -> BundleError:
    return BundleError(f"{model_file} does not hold the networks of its config.json: {error}")


def _products(names: Iterable[str]) -> int:
    """How many products a file's networks are for, by the names of its tensors."""
    return max(1, len({name.split(".")[1] for name in names if name.startswith("products.")}))
