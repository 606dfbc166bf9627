"""What the branches of depth look at: heights, normals and curvature of a surface, in the cells of a coarse grid.

A surface is (B, 2, H, W) float: heights above the background in pixels, and 1 where points are present, else 0; see
`cdo_ad.data.surface`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cdo_ad.method.preprocess import cell_means, to_grid

__all__ = ["FEATURES", "RELIEF_CELLS", "SHAPE_FEATURES", "normals", "relief", "shape_cells", "surface_cells"]

FEATURES = 6
"""Numbers that describe a cell for `depth`."""
SCALES = (1.0, 2.0, 4.0)
"""Standard deviations in pixels of the finer of two blurs, whose difference tells bumps from hollows of that size; the
coarser one is three times as wide."""
SHAPE_FEATURES = 2 + len(SCALES)
"""Numbers that describe a cell for `depth bank`."""
SMALL = 0.3
"""Pixels: differences of heights count in proportion below it, by their logarithm above, since edges are so large."""
RELIEF_CELLS = 8
"""Cells a side whose heights describe the whole surface."""


def surface_cells(surfaces: Tensor, grid: tuple[int, int]) -> Tensor:
    """Describe each cell of a grid.

    Args:
        surfaces: (B, 2, H, W).
        grid: (h, w) cells.

    Returns:
        (B, 6, h, w) float32: mean and standard deviation of the heights in pixels, mean of the normals' x and y, the
        normals' scatter (the square root of x's and y's variance together), share of missing points.
    """
    heights, present = surfaces[:, :1].float(), surfaces[:, 1:].float()
    slopes = normals(heights)
    level = cell_means(heights, grid)
    size = (int(heights.shape[-2]), int(heights.shape[-1]))
    residual = heights - F.interpolate(level, size=size)  # squares of heights themselves would lose their last digits
    spread = (cell_means(residual.square(), grid) - cell_means(residual, grid).square()).clamp(min=0).sqrt()
    mean = cell_means(slopes, grid)
    scatter = (cell_means(slopes.square(), grid) - mean.square()).clamp(min=0).sum(dim=1, keepdim=True).sqrt()
    return torch.cat([level, spread, mean, scatter, 1 - cell_means(present, grid)], dim=1)


def shape_cells(surfaces: Tensor, grid: tuple[int, int]) -> Tensor:
    """Describe the shape of each cell of a grid, whatever its position and its angle in the image.

    Args:
        surfaces: (B, 2, H, W).
        grid: (h, w) cells.

    Returns:
        (B, 5, h, w) float32: mean height in pixels, mean slope as the sine of its angle, and of each of `SCALES` how
        far the surface lies above its surroundings, on a scale that is logarithmic for large values.
    """
    heights = surfaces[:, :1].float()
    slope = normals(heights).square().sum(dim=1, keepdim=True).sqrt()
    size = (int(heights.shape[-2]), int(heights.shape[-1]))
    above = [torch.asinh((to_grid(heights, size, fine) - to_grid(heights, size, 3 * fine)) / SMALL) for fine in SCALES]
    return cell_means(torch.cat([heights, slope, *above], dim=1), grid)


def normals(heights: Tensor) -> Tensor:
    """(B, 1, H, W) heights in pixels to (B, 2, H, W): x and y of the unit normals, by central differences."""
    padded = F.pad(heights, (1, 1, 1, 1), mode="replicate")
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return -torch.cat([right, down], dim=1) / (1 + right.square() + down.square()).sqrt()


def relief(surfaces: Tensor) -> Tensor:
    """(B, 64) mean heights of the cells of a coarse grid: a description of the whole surface."""
    return cell_means(surfaces[:, :1].float(), (RELIEF_CELLS, RELIEF_CELLS)).flatten(1)
