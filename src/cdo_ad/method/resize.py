"""The project's only resize of images, and the linear maps of one axis that everything else is built from.

Bilinear interpolation and Gaussian blur are linear and separable, so on an H x W grid each is `A @ map @ B.T` with one
small matrix an axis. Matrices agree in every inference engine, where resize operators do not, and they compose:
up-sampling followed by blur is one matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["blur_matrix", "corners_matrix", "halfpixel_matrix", "resize"]


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
