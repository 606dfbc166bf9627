"""The parts of an exported graph as modules that torch can trace; `AnomalyModel.judge` asks Python, which none can.

The whole takes (B, 3, H, W) planes at the input size, B being dynamic. In a model of several categories each
category's branches see the images of this category alone, so a category that no image shows costs next to nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from cdo_ad.errors import needs_extra

with needs_extra("train", "exporting a run"):
    import torch
    from torch import Tensor, nn

    from cdo_ad.method.backbone import Backbone
    from cdo_ad.method.discrepancy import discrepancies, image_score
    from cdo_ad.method.model import AnomalyModel, Features

__all__ = ["Judge", "Network", "Normalize", "Score", "Whole", "examples", "quietly"]


class Judge(nn.Module):
    """What follows the networks."""

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, planes: Tensor, categories: Tensor | None, *features: Tensor) -> tuple[Tensor, ...]:
        """Judge.

        Args:
            planes: (B, 3, H, W) float in 0..255.
            categories: (B,) int64 numbers, `UNKNOWN` to be recognised; None for all unknown.
            features: the expert's maps, then the apprentice's.

        Returns:
            Maps (B, H, W) and, of a model of several categories, their numbers (B,).
        """
        model, levels = self.model, len(features) if self.model.apprentice is None else len(features) // 2
        expert, apprentice = features[:levels], features[levels:]
        seen = Features(planes, list(expert), discrepancies(expert, apprentice) if apprentice else [])
        inputs = model.inputs(seen)
        if len(model.members) == 1:
            return (model.finish(model.branches(), list(model.branches().maps(inputs).values())),)
        chosen = model.choose(expert, categories)
        parts, places = [], []
        for number in range(len(model.members)):
            own, at = model.branches(number), (chosen == number).nonzero()[:, 0]
            parts.append(model.finish(own, list(own.maps(inputs.some(at)).values())))
            places.append(at)
        return torch.cat(parts)[torch.cat(places).argsort()], chosen


class Normalize(nn.Module):
    """Before the networks."""

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, planes: Tensor) -> Tensor:
        """(B, 3, H, W) float planes in 0..255 to the input of the networks."""
        return self.model.normalize(planes)


class Network(nn.Module):
    """One network, with a tuple of maps."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, normalized: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised images to three maps (B, C_k, H_k, W_k)."""
        return tuple(self.network(normalized))


class Score(nn.Module):
    """Behind the map."""

    def __init__(self, top: float) -> None:
        super().__init__()
        self.top = top

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W) maps to (B,) scores."""
        return image_score(maps, self.top)


class Whole(nn.Module):
    """All of these."""

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model
        self.judge = Judge(model)

    def forward(self, planes: Tensor, categories: Tensor | None = None) -> tuple[Tensor, ...]:
        """As `Judge.forward` without features: maps (B, H, W), scores (B,) and, of several categories, numbers (B,)."""
        normalized = self.model.normalize(planes)
        features = self.model.expert(normalized)
        if self.model.apprentice is not None:
            features = [*features, *self.model.apprentice(normalized)]
        maps, *chosen = self.judge(planes, categories, *features)
        return maps, image_score(maps, self.model.spec.score_top), *chosen


def examples(model: AnomalyModel) -> tuple[Tensor, Tensor]:
    """Planes and categories to trace with; they also fill the caches of matrices, which no tracer may fill."""
    model.cpu().eval()
    planes = 255 * torch.rand(2, 3, *model.spec.image_size, generator=torch.Generator().manual_seed(0))
    categories = torch.arange(2) % len(model.members)
    with torch.no_grad():
        Whole(model)(planes, categories)
    return planes, categories


def quietly(function: Callable[[], Any]) -> Any:
    """Tracers warn of Python values that become constants, which is what is wanted here."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return function()
