"""The one inference module: uint8 images of any size in, anomaly maps, image scores and categories out.

Resize, brightness, expert and apprentice, branches, fusion, map and score are here and nowhere else: training, export,
evaluation and report use this module. It is built from a `ModelSpec` alone.

A run of several categories has one pair of networks and, for each category, branches of its own: a density over all
categories would describe none of them well, as a position shows something else in each. Where nobody says which category
an image shows, the model takes the one whose good images the expert's features, averaged over the image, are nearest to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cdo_ad.config import ModelSpec
from cdo_ad.method.backbone import Backbone, create_backbone
from cdo_ad.method.branches import Branches
from cdo_ad.method.density import Shape, whole_image
from cdo_ad.method.discrepancy import anomaly_map, discrepancies, image_score
from cdo_ad.method.preprocess import normalize_brightness, resize

__all__ = ["UNKNOWN", "AnomalyModel", "Features"]

UNKNOWN = -1
"""In the place of a category's number: recognise it."""
LEAST_WIDTH = 1e-3
"""Of a channel, in units of the mean width: one that never changes would decide alone."""


class Features(NamedTuple):
    """What the two networks see of B images."""

    images: Tensor
    """(B, 3, H, W) float RGB in 0..255, at the input size."""
    expert: list[Tensor]
    """(B, C_k, H_k, W_k) of each level, finest first."""
    levels: list[Tensor]
    """(B, H_1, W_1) discrepancy of each level, in [0, 4]."""


class AnomalyModel(nn.Module):
    """A frozen expert, an apprentice of the same architecture, and the branches of each category.

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
            ConfigError: from the backbone or the density.
        """
        super().__init__()
        self.spec = spec
        self.apprentice: Backbone = create_backbone(spec.backbone, spec.image_size)
        self.expert: Backbone = create_backbone(spec.backbone, spec.image_size, weights)
        self.expert.requires_grad_(False)
        # for images in 0..255
        self.register_buffer("mean", torch.tensor(self.expert.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(self.expert.std).view(1, 3, 1, 1) * 255)
        shapes = level_shapes(self.expert, spec.image_size)
        self.members = nn.ModuleList(
            Branches(shapes, spec.image_size, spec.density_context, name in spec.defect_heads)
            for name in spec.categories
        )
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

    def prepare(self, images: Tensor) -> Tensor:
        """(B, h, w, 3) uint8 RGB of any size to (B, 3, H, W) float in 0..255 at the input size, not rounded."""
        # NHWC bytes seen as NCHW are channels-last already
        planes = resize(images.permute(0, 3, 1, 2).float(), self.spec.image_size)
        return planes.contiguous(memory_format=torch.channels_last)

    def normalize(self, planes: Tensor) -> Tensor:
        """(B, 3, H, W) float RGB in 0..255 to the input of both networks."""
        if self.spec.normalize_brightness:
            planes = normalize_brightness(planes, self.mean.mean())
        return (planes - self.mean) / self.std

    def features(self, planes: Tensor) -> Features:
        """What the networks see; `planes` as `prepare` gives them."""
        normalized = self.normalize(planes)
        with torch.no_grad():
            expert = self.expert(normalized)
        return Features(planes, expert, discrepancies(expert, self.apprentice(normalized)))

    # ---- from features to maps and scores

    def forward(self, images: Tensor, categories: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Judge images.

        Args:
            images: (B, h, w, 3) uint8 RGB of any size.
            categories: (B,) int64 numbers of their categories, `UNKNOWN` to be recognised; None for all unknown.

        Returns:
            Anomaly maps (B, H, W) float32 >= 0 at the input size, image scores (B,), categories (B,) int64.
        """
        return self.judge(self.prepare(images), categories)

    def judge(self, planes: Tensor, categories: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, from what `prepare` gives."""
        seen = self.features(planes)
        chosen = self.choose(seen.expert, categories)
        if len(self.members) == 1:
            fused = self._fused(0, seen)
        else:
            fused = torch.zeros_like(seen.levels[0])
            for number in sorted(set(chosen.tolist())):  # a category that no image shows costs nothing
                at = chosen == number
                fused[at] = self._fused(number, _some(seen, at))
        maps, scores = self.finish(fused)
        return maps, scores, chosen

    def explain(self, images: Tensor, categories: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted map of each branch, see `Branches.explain`; images of one category at a time."""
        seen = self.features(self.prepare(images))
        number = int(self.choose(seen.expert, categories)[0])
        return self.branches(number).explain(*seen)

    def finish(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """The anomaly map (B, H, W) and image score (B,) of a fused map (B, h, w)."""
        maps = anomaly_map([fused], self.spec.image_size, self.spec.blur_sigma)
        return maps, image_score(maps, self.spec.score_top)

    def _fused(self, number: int, seen: Features) -> Tensor:
        branches = self.branches(number)
        return branches.fuse(branches.see(*seen))

    # ---- categories

    def choose(self, expert: Sequence[Tensor], categories: Tensor | None = None) -> Tensor:
        """(B,) int64: the given categories; in the place of an unknown one, the nearest."""
        count = len(expert[-1])
        if len(self.members) == 1:
            return torch.zeros(count, dtype=torch.int64, device=expert[-1].device)
        away = ((whole_image(expert)[:, None] - self.centres) / self.widths).square().sum(dim=2)
        nearest = away.argmin(dim=1)
        return nearest if categories is None else torch.where(categories < 0, nearest, categories)

    @torch.no_grad()
    def fit_categories(self, contexts: Sequence[Tensor]) -> None:
        """Learn to tell the categories apart.

        Args:
            contexts: for each category (N_k, Q): `whole_image` of its good images.
        """
        self.centres.copy_(torch.stack([given.mean(dim=0) for given in contexts]))
        within = torch.cat([given - given.mean(dim=0) for given in contexts]).square().mean(dim=0).sqrt()
        self.widths.copy_(within.clamp(min=LEAST_WIDTH * float(within.mean())))


def level_shapes(backbone: nn.Module, image_size: tuple[int, int]) -> list[Shape]:
    """(C, H, W) of each of a backbone's maps for images of that size."""
    training = backbone.training
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, *image_size))
    backbone.train(training)
    return [(int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in maps]


def _some(seen: Features, at: Tensor) -> Features:
    return Features(seen.images[at], [m[at] for m in seen.expert], [m[at] for m in seen.levels])
