"""From an image of any size to the networks' input, and the linear maps of one axis that everything else is built from.

Bilinear interpolation and Gaussian blur are linear and separable, so on an H x W grid each is `A @ map @ B.T` with one
small matrix for each axis. Matrices agree in every inference engine, where resize operators do not, and they compose:
up-sampling followed by blur is one matrix.

Brightness: features of an ImageNet network change with an image's brightness, and its contrast with it, so a crack in a
dark image hardly shows. One factor for the whole image and all colours takes that out and leaves colours and local
intensities as they are in proportion. Chosen on two drawn products and on solar cells (LOG.md).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "blur_matrix", "cell_means", "corners_matrix", "halfpixel_matrix", "map_matrix", "mean_matrix",
    "normalize_brightness", "resize", "to_grid",
]  # fmt: skip

DARKEST = 8.0
"""Mean brightness below which an image counts as this bright: what is nearly black would be blown up to mere noise."""
STEPS = 64
"""To how many parts of a gray level the mean is rounded. Engines add up in another order, even one engine for another
batch; the last bit of a factor would then move every pixel by as much, and int8 rounds some of them the other way."""
BRIGHTEST = 400.0
"""Highest value that a pixel can get. White is 255; a highlight of a dark image may lie above, within bounds that
leave int8 enough steps for the rest."""


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images, bilinear with antialiasing (a triangle filter as wide as the shrink factor), half-pixel centres.

    Args:
        images: (B, C, h, w) float, any range.
        size: (H, W) of the result, in pixels.

    Returns:
        (B, C, H, W) float; `images` itself when it has that size already.
    """
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def normalize_brightness(images: Tensor, brightness: Tensor) -> Tensor:
    """Each image times `brightness` / its own mean.

    Args:
        images: (B, 3, H, W) float RGB in 0..255.
        brightness: () the mean that all shall have, in the same unit.

    Returns:
        (B, 3, H, W) float in [0, `BRIGHTEST`].
    """
    own = (images.mean(dim=(1, 2, 3), keepdim=True) * STEPS).round() / STEPS
    own = own.clamp(min=DARKEST)
    return (images * (brightness / own)).clamp(max=BRIGHTEST)


def halfpixel_matrix(target: int, source: int) -> Tensor:
    """(target, source) float64 matrix of 1-D linear interpolation with half-pixel centres (`align_corners=False`)."""
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
    return _linear(position.clamp(0, source - 1), source)


def corners_matrix(target: int, source: int) -> Tensor:
    """(target, source) float64 matrix of 1-D linear interpolation whose end points coincide (`align_corners=True`)."""
    step = (source - 1) / (target - 1) if target > 1 else 0.0
    return _linear(torch.arange(target, dtype=torch.float64) * step, source)


def blur_matrix(size: int, sigma: float, truncate: float = 4.0) -> Tensor:
    """(size, size) float64 matrix of a 1-D Gaussian blur: scipy's kernel, cut at `truncate` sigma, reflected edges.

    Args:
        size: length of the axis in pixels.
        sigma: standard deviation in pixels; 0 gives the identity.
        truncate: the kernel's radius in sigmas (scipy.ndimage.gaussian_filter's default is 4).
    """
    if sigma <= 0:
        return torch.eye(size, dtype=torch.float64)
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    # "reflect" repeats the edge pixel: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ..., of period 2n
    folded = (torch.arange(size)[:, None] + offsets[None, :]) % (2 * size)
    folded = torch.minimum(folded, 2 * size - 1 - folded)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, folded, kernel.expand(size, -1))


def _linear(position: Tensor, source: int) -> Tensor:
    low = position.floor().long().clamp(0, max(source - 2, 0))
    fraction = position - low
    matrix = torch.zeros(len(position), source, dtype=torch.float64)
    matrix.scatter_add_(1, low[:, None], (1 - fraction)[:, None])
    if source > 1:
        matrix.scatter_add_(1, low[:, None] + 1, fraction[:, None])
    return matrix


# kept matrices are made outside inference mode, or a training after a prediction could not use them


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def map_matrix(target: int, source: int, sigma: float) -> Tensor:
    """(target, source) float32: up-sampling to the image (half-pixel centres) and Gaussian blur, in one matrix."""
    return (blur_matrix(target, sigma) @ halfpixel_matrix(target, source)).float()


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def mean_matrix(target: int, source: int) -> Tensor:
    """(target, source) float32: row t averages the source positions in [t, t + 1) * source / target, edges by share."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    places = torch.arange(source, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], places[None, :])
    high = torch.minimum(edges[1:, None], places[None, :] + 1)
    return ((high - low).clamp(min=0) * target / source).float()


def cell_means(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(..., H, W) values to (..., h, w) means of the cells of a grid, as two small matrices."""
    rows, columns = (mean_matrix(t, int(s)).to(values) for t, s in zip(grid, values.shape[-2:], strict=True))
    return rows @ values @ columns.T


def to_grid(maps: Tensor, size: tuple[int, int], blur: float = 0.0) -> Tensor:
    """(..., h, w) maps to (..., H, W), bilinear with half-pixel centres, as two small matrices.

    Args:
        maps: to be brought to `size`.
        size: (H, W).
        blur: standard deviation of a Gaussian blur of the result, pixels; 0 for none.
    """
    if tuple(maps.shape[-2:]) == size and not blur:
        return maps
    rows, columns = (map_matrix(int(t), int(s), blur).to(maps) for t, s in zip(size, maps.shape[-2:], strict=True))
    return rows @ maps @ columns.T
