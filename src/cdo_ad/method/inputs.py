"""What the branches of a category look at, from images and the expert's features of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cdo_ad.config import BranchName
from cdo_ad.method.preprocess import cell_means
from cdo_ad.method.surface import relief, shape_cells, surface_cells

__all__ = ["CHANNELS", "CONTEXT_CELLS", "Inputs", "describe", "intensities", "intensity_grid", "whole_image"]

CONTEXT_CELLS = 4
"""The last level, averaged to this many cells a side, describes the whole image."""
INTENSITY_CELLS = 16
"""Cells of the grid of intensities along the image's longer side."""
CHANNELS = 128
"""Most channels of a level that a Gaussian uses, a fixed random choice: memory grows with their square."""


class Inputs(NamedTuple):
    """What the branches look at, of B images."""

    levels: list[Tensor]
    """(B, H_1, W_1) discrepancy of each level; none where no branch needs them."""
    vectors: dict[BranchName, Tensor]
    """(P, B, C) by branch."""
    context: Tensor
    """(B, Q) of the whole image."""
    cells: dict[BranchName, Tensor]
    """(B, q) by branch: values of all its coarse cells, the context of `intensity` and of `depth`."""

    def context_of(self, name: BranchName) -> Tensor:
        """(B, Q) what a branch's Gaussian is conditional on: its own cells, or else the whole image."""
        return self.cells.get(name, self.context)

    def some(self, at: Tensor, device: torch.device | None = None) -> Inputs:
        """Those of some of the images, on another device if one is given."""
        return Inputs(
            [level[at].to(device) for level in self.levels],
            {name: each[:, at].to(device) for name, each in self.vectors.items()},
            self.context[at].to(device),
            {name: each[at].to(device) for name, each in self.cells.items()},
        )

    def only(self, *names: BranchName) -> Inputs:
        """Without the vectors and cells of other branches."""
        own = [{name: each for name, each in of.items() if name in names} for of in (self.vectors, self.cells)]
        return self._replace(vectors=own[0], cells=own[1])


def describe(
    names: Sequence[BranchName],
    images: Tensor,
    expert: Sequence[Tensor],
    levels: Sequence[Tensor],
    surfaces: Tensor | None = None,
) -> Inputs:
    """What branches look at.

    Args:
        names: of the branches.
        images: (B, 3, H, W) float RGB in 0..255, at the input size.
        expert: the expert's (B, C_k, H_k, W_k) maps of them.
        levels: the discrepancies (B, H_1, W_1) of the levels.
        surfaces: (B, 2, H, W), see `cdo_ad.method.surface`; None where no branch looks at depth.
    """
    vectors: dict[BranchName, Tensor] = {}
    middle, last = _pooled(expert[1]), _pooled(expert[2])
    if "level 2" in names:
        vectors["level 2"] = _positions(_chosen(middle))
    if "level 3" in names:
        vectors["level 3"] = _positions(_chosen(last))
    if "bank" in names:
        size = (int(last.shape[-2]), int(last.shape[-1]))
        vectors["bank"] = _positions(torch.cat([F.adaptive_avg_pool2d(middle, size), last], dim=1))
    cells: dict[BranchName, Tensor] = {}
    if "intensity" in names:
        grid = intensities(images, intensity_grid((int(images.shape[-2]), int(images.shape[-1]))))
        vectors["intensity"], cells["intensity"] = _positions(grid), grid.flatten(1)
    fine = (int(middle.shape[-2]), int(middle.shape[-1]))
    if "depth" in names and surfaces is not None:
        vectors["depth"], cells["depth"] = _positions(surface_cells(surfaces, fine)), relief(surfaces)
    if "depth bank" in names and surfaces is not None:
        vectors["depth bank"] = _positions(shape_cells(surfaces, fine))
    return Inputs(list(levels), vectors, whole_image(expert), cells)


def intensities(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean log colour of each cell of a grid: a factor of exposure becomes a shift.

    Args:
        images: (B, 3, H, W) float RGB in 0..255.
        grid: (h, w) cells.

    Returns:
        (B, 3, h, w) float32.
    """
    values = (images.float() + 8).log()  # 8 of 255: the noise of dark pixels does not matter
    return cell_means(values, grid)


def intensity_grid(image_size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) cells of the grid of intensities for images of that size."""
    height, width = (max(1, round(INTENSITY_CELLS * side / max(image_size))) for side in image_size)
    return height, width


def whole_image(expert: Sequence[Tensor]) -> Tensor:
    """(B, Q) description of the whole image: the last of the expert's maps, averaged to a few cells."""
    return F.adaptive_avg_pool2d(expert[-1].float(), CONTEXT_CELLS).flatten(1)


def _pooled(features: Tensor) -> Tensor:
    """(B, C, h, w) averaged over 3 x 3 neighbours: it steadies the covariance and enlarges what a position sees."""
    return F.avg_pool2d(features.float(), 3, stride=1, padding=1, count_include_pad=False)


def _positions(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (h * w, B, C)."""
    return maps.flatten(2).permute(2, 0, 1)


def _chosen(maps: Tensor) -> Tensor:
    """The channels that a Gaussian uses of a level, always the same ones."""
    channels = int(maps.shape[1])
    if channels <= CHANNELS:
        return maps
    return maps[:, _choice(channels).to(maps.device)]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _choice(channels: int) -> Tensor:
    """(CHANNELS,) int64, ascending; kept, so that a traced model holds it as a constant."""
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(0))
    return order[:CHANNELS].sort().values
