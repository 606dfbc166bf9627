"""All branches of one category: what each sees of an image, over its scale and times its weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cdo_ad.method.defect_head import DefectHead
from cdo_ad.method.density import DENSITIES, Density, Shape
from cdo_ad.method.preprocess import to_grid

__all__ = ["DEFECT_HEAD", "DISAGREEMENT", "FUSED", "Branches"]

DISAGREEMENT = ("disagreement 1", "disagreement 2", "disagreement 3")
"""The disagreement at each of the three levels, finest first; together they are one branch."""
FUSED = ("disagreement", *DENSITIES)
"""The branches that share the map, in this order, before a defect head."""
DEFECT_HEAD = "defect head"


class Branches(nn.Module):
    """The branches of one category. Without a density the map is the plain sum of the three disagreements (paper)."""

    scale: Tensor
    weight: Tensor

    def __init__(
        self, shapes: Sequence[Shape], image_size: tuple[int, int], context: int | None, defect_head: bool = False
    ) -> None:
        """Reserve the buffers; `cdo_ad.method.fit` fills them.

        Args:
            shapes: (C_k, H_k, W_k) of each of the expert's levels, finest first.
            image_size: (H, W) of the input.
            context: components of the densities' context; None for no density.
            defect_head: with a branch for labelled defects.
        """
        super().__init__()
        self.density = None if context is None else Density(shapes, image_size, context)
        self.defect_head: DefectHead | None = None
        if self.density is not None:
            # the score that a good image which the branch has not seen gets from it on average, and its weight
            self.register_buffer("scale", torch.ones(len(FUSED)))
            self.register_buffer("weight", torch.full((len(FUSED),), 1 / len(FUSED)))
            if defect_head:
                self.add_defect_head()

    def add_defect_head(self) -> DefectHead:
        """Reserve a branch for labelled defects, with weight 0; random weights from torch's global generator."""
        assert self.density is not None
        self.defect_head = DefectHead(self.density.stacked_channels).to(self.scale.device)
        self.scale = torch.cat([self.scale[: len(FUSED)], self.scale.new_ones(1)])
        self.weight = torch.cat([self.weight[: len(FUSED)], self.weight.new_zeros(1)])
        return self.defect_head

    def see(self, images: Tensor, expert: Sequence[Tensor], levels: Sequence[Tensor]) -> list[Tensor]:
        """The unscaled map of each branch on the grid of the first level: (B, h, w) each.

        Args:
            images: (B, 3, H, W) float RGB in 0..255, at the input size.
            expert: the expert's (B, C_k, H_k, W_k) maps of them.
            levels: the discrepancies (B, h, w) of the three levels.

        Returns:
            Maps for `FUSED` and the defect head, where there is one; without a density the disagreement alone.
        """
        total = torch.stack(list(levels)).sum(dim=0)
        if self.density is None:
            return [total]
        grid = (int(total.shape[-2]), int(total.shape[-1]))
        whitened = self.density.whitened(images, expert)
        maps = self.density.maps(whitened)
        if self.defect_head is not None:
            maps.append(self.defect_head(self.density.stacked(whitened)))
        return [total, *(to_grid(seen, grid) for seen in maps)]

    def explain(self, images: Tensor, expert: Sequence[Tensor], levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """The weighted maps, whose sum, enlarged and blurred, is the anomaly map: (B, h, w) by name; as `see`."""
        _, *others = self.see(images, expert, levels)
        if self.density is None:
            return dict(zip(DISAGREEMENT, levels, strict=True))
        factor = self.weight / self.scale
        found = {name: factor[0] * level for name, level in zip(DISAGREEMENT, levels, strict=True)}
        names = (*DENSITIES, DEFECT_HEAD)[: len(others)]
        return {
            **found,
            **{name: factor[k + 1] * seen for k, (name, seen) in enumerate(zip(names, others, strict=True))},
        }

    def fuse(self, seen: Sequence[Tensor]) -> Tensor:
        """(B, h, w) weighted sum of what `see` gives."""
        if self.density is None:
            return seen[0]
        return torch.einsum("v,vbhw->bhw", self.weight / self.scale, torch.stack(list(seen)))
