"""The one inference module: uint8 images of any size in, anomaly maps, image scores and categories out.

Resize, brightness, networks, branches, fusion, map and score are here and nowhere else: training, export, evaluation
and report use this module. It is built from a `ModelSpec` alone.

A run of several categories has one pair of networks and, for each category, branches of its own: a density over all
categories would describe none of them well. Where nobody says which category an image shows, the model takes the one
whose good images the expert's features, averaged over the image, are nearest to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdo_ad.method.backbone import Backbone, create_backbone
from cdo_ad.method.branches import Branches, Shape
from cdo_ad.method.discrepancy import discrepancies, image_score
from cdo_ad.method.inputs import Inputs, describe
from cdo_ad.method.preprocess import normalize_brightness, resize, to_grid
from cdo_ad.spec import ModelSpec

__all__ = ["UNKNOWN", "AnomalyModel", "Features"]

UNKNOWN = -1
"""In the place of a category's number: recognise it."""
LEAST_WIDTH = 1e-3
"""Of a channel, in units of the mean width: one that never changes would decide alone."""


class Features(NamedTuple):
    """What the networks see of B images."""

    images: Tensor
    """(B, 3, H, W) float RGB in 0..255, at the input size."""
    expert: list[Tensor]
    """(B, C_k, H_k, W_k) of each level, finest first."""
    levels: list[Tensor]
    """(B, H_1, W_1) discrepancy of each level, in [0, 4]; none without an apprentice."""
    surfaces: Tensor | None = None
    """(B, 2, H, W), see `cdo_ad.method.surface`; None where no branch looks at depth."""


class AnomalyModel(nn.Module):
    """A frozen expert, an apprentice of the same architecture where the disagreement is a branch, and the branches.

    The expert is in eval mode always, its parameters and buffers never change.
    """

    mean: Tensor
    std: Tensor
    centres: Tensor
    widths: Tensor

    def __init__(self, spec: ModelSpec, weights: str = "none") -> None:
        """Build it; the apprentice starts from random weights (torch's global generator), branches are to be fitted.

        Args:
            spec: what it is made of.
            weights: the expert's weights, see `cdo_ad.method.backbone.create_backbone`.

        Raises:
            ConfigError: from the backbone.
        """
        super().__init__()
        self.spec = spec
        self.apprentice: Backbone | None = None
        if "disagreement" in spec.branches:
            self.apprentice = create_backbone(spec.backbone, spec.image_size)
        self.expert: Backbone = create_backbone(spec.backbone, spec.image_size, weights)
        self.expert.requires_grad_(False)
        # for images in 0..255
        self.register_buffer("mean", torch.tensor(self.expert.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(self.expert.std).view(1, 3, 1, 1) * 255)
        shapes = level_shapes(self.expert, spec.image_size)
        self.members = nn.ModuleList(Branches(shapes, spec.image_size, category) for category in spec.categories)
        if len(spec.categories) > 1:
            self.register_buffer("centres", torch.zeros(len(spec.categories), shapes[-1][0]))
            self.register_buffer("widths", torch.ones(shapes[-1][0]))
        self.train()

    def branches(self, number: int = 0) -> Branches:
        """The branches of a category, by its number."""
        member = self.members[number]
        assert isinstance(member, Branches)
        return member

    def train(self, mode: bool = True) -> AnomalyModel:
        """Set the apprentice's mode; the expert stays in eval mode."""
        super().train(mode)
        self.expert.eval()
        return self

    # ---- from images to features

    def prepare(self, images: Tensor, surfaces: Tensor | None = None) -> Tensor:
        """What this model looks at, at the input size.

        Args:
            images: (B, h, w, 3) uint8 RGB of any size.
            surfaces: (B, 2, H, W) float, see `cdo_ad.method.surface`, where the model looks at depth.

        Returns:
            (B, 3, H, W) float in 0..255, not rounded; with depth (B, 5, H, W), the surface behind the colours.
        """
        # NHWC bytes seen as NCHW are channels-last already
        planes = resize(images.permute(0, 3, 1, 2).float(), self.spec.image_size)
        if surfaces is not None:
            planes = torch.cat([planes, surfaces], dim=1)
        return planes.contiguous(memory_format=torch.channels_last)

    def normalize(self, planes: Tensor) -> Tensor:
        """(B, 3 or more, H, W) float, as `prepare` gives, to the input of the networks: (B, 3, H, W)."""
        if self.spec.depth:
            planes = planes[:, :3]
        if self.spec.normalize_brightness:
            planes = normalize_brightness(planes, self.mean.mean())
        return (planes - self.mean) / self.std

    def features(self, planes: Tensor) -> Features:
        """What the networks see; `planes` as `prepare` gives them."""
        normalized = self.normalize(planes)
        with torch.no_grad():
            expert = self.expert(normalized)
        levels = [] if self.apprentice is None else discrepancies(expert, self.apprentice(normalized))
        if self.spec.depth:
            return Features(planes[:, :3], expert, levels, planes[:, 3:])
        return Features(planes, expert, levels)

    def inputs(self, seen: Features) -> Inputs:
        """What the branches look at."""
        return describe(self.spec.branches, *seen)

    # ---- from features to maps and scores

    def forward(
        self, images: Tensor, categories: Tensor | None = None, surfaces: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Judge images.

        Args:
            images: (B, h, w, 3) uint8 RGB of any size.
            categories: (B,) int64 numbers of their categories, `UNKNOWN` to be recognised; None for all unknown.
            surfaces: as in `prepare`.

        Returns:
            Anomaly maps (B, H, W) float32 >= 0 at the input size, image scores (B,), categories (B,) int64.
        """
        return self.judge(self.prepare(images, surfaces), categories)

    def judge(self, planes: Tensor, categories: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, from what `prepare` gives."""
        seen = self.features(planes)
        chosen = self.choose(seen.expert, categories)
        if len(self.members) == 1:
            maps = self.finish(self.branches(), list(self.branches().maps(self.inputs(seen)).values()))
        else:
            maps = planes.new_zeros(len(planes), *self.spec.image_size)
            for number in sorted(set(chosen.tolist())):  # a category that no image shows costs nothing
                at, own = chosen == number, self.branches(number)
                maps[at] = self.finish(own, list(own.maps(self.inputs(_some(seen, at))).values()))
        return maps, image_score(maps, self.spec.score_top), chosen

    def explain(
        self, images: Tensor, categories: Tensor | None = None, surfaces: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted map of each branch (B, h, w), see `Branches.maps`; images of one category at a time."""
        seen = self.features(self.prepare(images, surfaces))
        number = int(self.choose(seen.expert, categories)[0])
        return self.branches(number).maps(self.inputs(seen))

    def enlarge(self, maps: Tensor) -> Tensor:
        """(B, h, w) on a branch's grid to (B, H, W) at the input size, blurred."""
        return to_grid(maps, self.spec.image_size, self.spec.blur_sigma)

    def finish(self, branches: Branches, maps: Sequence[Tensor]) -> Tensor:
        """The anomaly map (B, H, W) >= 0 of a category's weighted maps.

        Standardised maps are negative where an image is more usual than most. `softplus` makes them positive and keeps
        their order: a good image's largest value is about 1.3 on average, and 1 more for each standard deviation.
        Outside the region of interest the map is 0.
        """
        by_grid: dict[tuple[int, int], Tensor] = {}
        for each in maps:  # maps of one grid are added before they are enlarged
            grid = (int(each.shape[-2]), int(each.shape[-1]))
            by_grid[grid] = by_grid[grid] + each if grid in by_grid else each
        total = torch.stack([self.enlarge(each) for each in by_grid.values()]).sum(dim=0)
        found = total if branches.plain else F.softplus(total - branches.offset + 1)
        return found if branches.region is None else found * branches.region

    # ---- categories

    def choose(self, expert: Sequence[Tensor], categories: Tensor | None = None) -> Tensor:
        """(B,) int64: the given categories; in the place of an unknown one, the nearest."""
        count = expert[-1].shape[0]  # not len(): a tracer would take it for a constant
        if len(self.members) == 1:
            return torch.zeros(count, dtype=torch.int64, device=expert[-1].device)
        away = ((_mean(expert)[:, None] - self.centres) / self.widths).square().sum(dim=2)
        nearest = away.argmin(dim=1)
        return nearest if categories is None else torch.where(categories < 0, nearest, categories)

    @torch.no_grad()
    def fit_categories(self, planes: Sequence[Sequence[Tensor]]) -> None:
        """Learn to tell the categories apart.

        Args:
            planes: for each category batches (B, 3, H, W) of its good images, as `prepare` gives them.
        """
        of = [torch.cat([_mean(self.expert(self.normalize(b.to(self.mean.device)))) for b in own]) for own in planes]
        self.centres.copy_(torch.stack([given.mean(dim=0) for given in of]))
        within = torch.cat([given - given.mean(dim=0) for given in of]).square().mean(dim=0).sqrt()
        self.widths.copy_(within.clamp(min=LEAST_WIDTH * float(within.mean())))


def level_shapes(backbone: nn.Module, image_size: tuple[int, int]) -> list[Shape]:
    """(C, H, W) of each of a backbone's maps for images of that size."""
    training = backbone.training
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, *image_size))
    backbone.train(training)
    return [(int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in maps]


def _mean(expert: Sequence[Tensor]) -> Tensor:
    return expert[-1].float().mean(dim=(2, 3))


def _some(seen: Features, at: Tensor) -> Features:
    surfaces = None if seen.surfaces is None else seen.surfaces[at]
    return Features(seen.images[at], [m[at] for m in seen.expert], [m[at] for m in seen.levels], surfaces)
