"""The two networks as one module: uint8 or float images in, discrepancy maps, anomaly map and score out.

With a density the module has two branches of an image: where the networks disagree, and where the expert's features are
improbable; with labelled defects a third: what looks like them. Each is divided by what it is on good images, then
they are added; without a density it is the paper's form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdo_ad.errors import ConfigError
from cdo_ad.method.backbone import Backbone, create_backbone
from cdo_ad.method.brightness import normalize_brightness
from cdo_ad.method.defect_head import DEFECT_HEAD, DefectHead
from cdo_ad.method.density import BRANCHES, Density, to_grid
from cdo_ad.method.discrepancy import anomaly_map, discrepancies, image_score
from cdo_ad.method.fusion import FUSED

if TYPE_CHECKING:
    from cdo_ad.config import Config

__all__ = ["LEVEL_NAMES", "CdoNetwork"]

LEVEL_NAMES = ("level 1", "level 2", "level 3")


class CdoNetwork(nn.Module):
    """A frozen expert and an apprentice of the same architecture.

    The expert is in eval mode always, its parameters and buffers never change. `mean` and `std` are buffers, so
    preprocessing travels with the model.
    """

    apprentice: Backbone
    expert: Backbone
    mean: Tensor
    std: Tensor
    usual: Tensor
    shares: Tensor

    least_threshold = 0.0
    """Below it no image threshold keeps its rate, see `cdo_ad.method.categories`."""

    @staticmethod
    def from_config(config: Config, weights: str | None = None, share: CdoNetwork | None = None) -> CdoNetwork:
        """The networks that the settings describe.

        Args:
            config: the settings.
            weights: the expert's weights; None for the settings' own.
            share: see `__init__`.

        Raises:
            ConfigError: from the backbone.
        """
        return CdoNetwork(
            config.backbone,
            config.image_size,
            config.weights if weights is None else weights,
            config.blur_sigma,
            config.score_top,
            config.density_context if config.density else None,
            config.normalize_brightness,
            share,
        )

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int] = (256, 256),
        weights: str = "none",
        blur_sigma: float = 4.0,
        score_top: float = 0.0,
        density_context: int | None = None,
        normalize_brightness: bool = False,
        share: CdoNetwork | None = None,
    ) -> None:
        """Build both networks; the apprentice starts from random weights (torch's global generator).

        Args:
            backbone: a timm model name.
            image_size: (H, W) of the networks' input in pixels.
            weights: the expert's weights, see `cdo_ad.method.backbone.create_backbone`.
            blur_sigma: of the anomaly map, in pixels of the input.
            score_top: see `cdo_ad.method.discrepancy.image_score`.
            density_context: components of the density's context, see `cdo_ad.method.density.Density`; None for no
                density. Fit it with `cdo_ad.method.fit.fit_branches`.
            normalize_brightness: scale each image to one mean brightness, see `cdo_ad.method.brightness`.
            share: take expert and apprentice of these networks instead of building them.

        Raises:
            ConfigError: from the backbone.
        """
        super().__init__()
        self.image_size = image_size
        self.blur_sigma = blur_sigma
        self.score_top = score_top
        self.normalize_brightness = normalize_brightness
        if share is None:
            self.apprentice = create_backbone(backbone, image_size)
            self.expert = create_backbone(backbone, image_size, weights)
            self.expert.requires_grad_(False)
        else:  # not as submodules: whoever owns them saves and moves them, once
            object.__setattr__(self, "apprentice", share.apprentice)
            object.__setattr__(self, "expert", share.expert)
        # for images in 0..255
        self.register_buffer("mean", torch.tensor(self.expert.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(self.expert.std).view(1, 3, 1, 1) * 255)
        self.density: Density | None = None
        if density_context is not None:
            self.density = Density(feature_shapes(self.expert, image_size), image_size, density_context)
            # what the disagreement alone scores good images on average, and the share of each of `FUSED`
            self.register_buffer("usual", torch.ones(()))
            self.register_buffer("shares", torch.full((len(FUSED),), 1 / len(FUSED)))
        self.train()

    def add_defect_head(self) -> DefectHead:
        """Give the density the branch of labelled defects, still to be fitted and with no share of the map.

        Raises:
            ConfigError: no density, on whose vectors it works.
        """
        if self.density is None:
            raise ConfigError("labelled defects are recognised in what the density sees: set density=true")
        defect_head = self.density.defect_head = DefectHead(self.density.stacked_channels).to(self.shares.device)
        self.shares = torch.cat([self.shares[: len(FUSED)], self.shares.new_zeros(1)])
        return defect_head

    def train(self, mode: bool = True) -> CdoNetwork:
        """Set the apprentice's mode; the expert stays in eval mode."""
        super().train(mode)
        self.expert.eval()
        return self

    def features(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Expert's and apprentice's three maps of images.

        Args:
            images: (B, 3, H, W) uint8 or float RGB in 0..255, at `image_size`.
        """
        normalised = self.normalise(images)
        with torch.no_grad():
            expert = self.expert(normalised)
        return expert, self.apprentice(normalised)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or float RGB in 0..255 to the float input of both networks."""
        values = images.float()
        if self.normalize_brightness:
            values = normalize_brightness(values, self.mean.mean())
        return (values - self.mean) / self.std

    def discrepancies(self, images: Tensor) -> list[Tensor]:
        """One (B, H_1, W_1) float32 discrepancy map a level, in [0, 4]; `images` as in `features`."""
        return discrepancies(*self.features(images))

    def branches(self, images: Tensor) -> dict[str, Tensor]:
        """The maps whose sum, up-sampled and blurred, is the anomaly map.

        Args:
            images: as in `features`.

        Returns:
            `LEVEL_NAMES`, with a density its `BRANCHES`, with labelled defects `DEFECT_HEAD`: (B, H_1, W_1) float32 >= 0.
            With a density each is in units of what a new good image scores, times its share; a typical good image
            then scores a little under 1.
        """
        expert, apprentice = self.features(images)
        return self.weigh(discrepancies(expert, apprentice), images, expert)

    def weigh(self, levels: Sequence[Tensor], images: Tensor, expert: list[Tensor]) -> dict[str, Tensor]:
        """What `branches` gives, from the discrepancies (B, H_1, W_1) of the levels and the expert's maps."""
        if self.density is None:
            return dict(zip(LEVEL_NAMES, levels, strict=True))
        disagreement, *shares = self.shares.unbind()
        branches = {name: disagreement / self.usual * level for name, level in zip(LEVEL_NAMES, levels, strict=True)}
        grid = (int(levels[0].shape[-2]), int(levels[0].shape[-1]))
        names = BRANCHES if self.density.defect_head is None else (*BRANCHES, DEFECT_HEAD)
        for name, share, seen in zip(names, shares, self.density(images, expert), strict=True):
            branches[name] = share * to_grid(seen, grid)
        return branches

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps (B, H, W) float32 >= 0 and image scores (B,) of images as in `features`."""
        return self.finish(list(self.branches(images).values()))

    def finish(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The anomaly map and image score of the sum of (B, h, w) maps of one size."""
        fused = anomaly_map(maps, self.image_size, self.blur_sigma)
        return fused, image_score(fused, self.score_top)


def feature_shapes(backbone: nn.Module, image_size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(C, H, W) of each of a backbone's maps for images of that size."""
    training = backbone.training
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, *image_size))
    backbone.train(training)
    return [(int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in maps]
