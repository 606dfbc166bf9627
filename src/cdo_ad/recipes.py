"""Named settings: each recipe is a function that returns a `Config`."""

from __future__ import annotations

from collections.abc import Callable

from cdo_ad.config import DEPTH, Config
from cdo_ad.errors import ConfigError

__all__ = ["RECIPES", "cdo2025", "get", "lite0", "lite0_3d", "paper", "stronger"]

PAPER_BACKBONES = {
    "hrnet32": "hrnet_w32",
    "hrnet18": "hrnet_w18",
    "hrnet48": "hrnet_w48",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "wide_resnet50": "wide_resnet50_2",
    "lite0": "tf_efficientnet_lite0",
}

STRONGER = {
    "lite2": "tf_efficientnet_lite2",
    "wide_resnet50": "wide_resnet50_2",
    "convnext": "convnext_tiny",
    "dinov2": "vit_small_patch14_dinov2",
    "dinov3": "vit_small_patch16_dinov3",
}


def lite0() -> Config:
    """The default: the frozen EfficientNet-Lite0 and densities of its features, for CPUs. See docs/results.md."""
    return Config(
        recipe="lite0",
        image_height=0,
        image_width=0,
        normalize_brightness=True,
        branches=("level 3", "level 2", "bank", "intensity"),
        defect_head_weight=0.2,
        head_examples=40,
        baseline_share=0.5,
        calibration="cross",
    )


def lite0_3d() -> Config:
    """The default with two branches for depth: each image needs its point cloud, see docs/data-layouts.md."""
    default = lite0()
    return default.replace(recipe="lite0_3d", branches=(*default.branches, *DEPTH))


def stronger(name: str) -> Config:
    """The default with a stronger expert, which costs more; see docs/results.md.

    Args:
        name: lite2 (its weights come with the extra `lite2`), or with weights from timm's hub or a file: wide_resnet50,
            convnext, dinov2, dinov3. The input of `dinov2` is 252 x 252, as its patches have 14 pixels a side.

    Raises:
        ConfigError: for another name.
    """
    if name not in STRONGER:
        raise ConfigError(f"unknown expert {name!r} for this recipe: choose from {', '.join(STRONGER)}")
    side = 252 if name == "dinov2" else 0
    return lite0().replace(recipe=name, backbone=STRONGER[name], image_height=side, image_width=side)


def paper(backbone: str = "hrnet32") -> Config:
    """The paper's recipe: AdamW, lr 4e-4, times 0.95 each epoch, batch 16, 50 epochs, 256 x 256, seed 111.

    Args:
        backbone: hrnet18, hrnet32 (the paper's), hrnet48, resnet18, resnet34, resnet50, wide_resnet50 or lite0.

    Raises:
        ConfigError: for another backbone.
    """
    return Config(recipe=f"paper_{backbone}", backbone=_backbone(backbone))


def cdo2025(backbone: str = "hrnet32") -> Config:
    """The same authors' recipe of 2025: Adam (0.5, 0.999), batch 32, 100 epochs, times 0.1 at 80 %, top 1 % score.

    Args:
        backbone: as in `paper`.

    Raises:
        ConfigError: for another backbone.
    """
    batch = 32
    return Config(
        recipe=f"cdo2025_{backbone}",
        backbone=_backbone(backbone),
        optimizer="adam",
        batch_size=batch,
        lr=5e-4 * batch / 16,
        weight_decay=0.05,
        epochs=100,
        schedule="step",
        decay=0.1,
        score_top=0.01,
    )


def _backbone(name: str) -> str:
    if name not in PAPER_BACKBONES:
        raise ConfigError(f"unknown backbone {name!r} for this recipe: choose from {', '.join(PAPER_BACKBONES)}")
    return PAPER_BACKBONES[name]


RECIPES: dict[str, Callable[[], Config]] = {"lite0": lite0, "lite0_3d": lite0_3d}
"""Every recipe by name: `lite0`, `lite0_3d`, those of `STRONGER`, `paper_<backbone>` and `cdo2025_<backbone>`."""
for _name in STRONGER:
    RECIPES[_name] = lambda name=_name: stronger(name)  # type: ignore[misc]
for _name in PAPER_BACKBONES:
    RECIPES[f"paper_{_name}"] = lambda name=_name: paper(name)  # type: ignore[misc]
    RECIPES[f"cdo2025_{_name}"] = lambda name=_name: cdo2025(name)  # type: ignore[misc]


def get(name: str) -> Config:
    """The recipe of that name.

    Raises:
        ConfigError: if there is none; the message lists all.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}: the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()
