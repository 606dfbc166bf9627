"""Where expert and apprentice disagree: the discrepancy of each level and the anomaly map made from it.

Two forms of the discrepancy give the same numbers. `discrepancies_plain` is the paper's text. `discrepancies` never
up-samples a map of many channels: at an up-sampled point a vector is `a = sum_i w_i a_i` over at most four
low-resolution neighbours, so `<a, e> = sum_ij w_i w_j <a_i, e_j>` and only inner products of neighbours are needed.
With bilinear weights those fall into four families (a point with itself, with its right, lower and diagonal neighbour),
each interpolated by a separable weight, so that the whole up-sampling is `R @ products @ C.T` on single-channel maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from cdo_ad.method.preprocess import corners_matrix, map_matrix

__all__ = ["anomaly_map", "discrepancies", "discrepancies_plain", "image_score"]

EPSILON = 1e-12  # the smallest norm that is divided by, as in torch.nn.functional.normalize


def discrepancies_plain(expert: Sequence[Tensor], apprentice: Sequence[Tensor]) -> list[Tensor]:
    """Discrepancy maps as the paper writes them: up-sample, normalise, squared distance (METHOD: "Discrepancy").

    Args:
        expert: one (B, C_k, H_k, W_k) float map a level, finest first.
        apprentice: the same shapes.

    Returns:
        One (B, H_1, W_1) float32 map a level, in [0, 4].
    """
    size = expert[0].shape[-2:]
    maps = []
    for e, a in zip(expert, apprentice, strict=True):
        if e.shape[-2:] != size:
            e = F.interpolate(e, size=size, mode="bilinear", align_corners=True)
            a = F.interpolate(a, size=size, mode="bilinear", align_corners=True)
        maps.append((F.normalize(e, dim=1) - F.normalize(a, dim=1)).pow(2).sum(dim=1))
    return maps


def discrepancies(expert: Sequence[Tensor], apprentice: Sequence[Tensor]) -> list[Tensor]:
    """The same as `discrepancies_plain`, equal to 1e-5 in value and gradient, without up-sampling a feature map.

    Args:
        expert: one (B, C_k, H_k, W_k) map a level, finest first; inner products are taken in float32.
        apprentice: the same shapes.

    Returns:
        One (B, H_1, W_1) float32 map a level, in [0, 4].
    """
    size = (int(expert[0].shape[-2]), int(expert[0].shape[-1]))
    return [_discrepancy(_wide(e), _wide(a), size) for e, a in zip(expert, apprentice, strict=True)]


def _wide(features: Tensor) -> Tensor:
    """At least float32: half precision loses the digits that matter."""
    return features if features.dtype == torch.float64 else features.float()


def _discrepancy(expert: Tensor, apprentice: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(expert.shape[-2:]) == size:
        # nothing to up-sample: the difference keeps the digits that 2 - 2 cos loses where both nearly agree
        return (F.normalize(expert, dim=1) - F.normalize(apprentice, dim=1)).pow(2).sum(dim=1)
    products = torch.stack(
        [
            _neighbour_products(expert, expert),
            _neighbour_products(apprentice, apprentice),
            _neighbour_products(expert, apprentice),
        ]
    )
    rows = _pair_matrix(size[0], int(expert.shape[-2])).to(products)
    columns = _pair_matrix(size[1], int(expert.shape[-1])).to(products)
    ee, aa, ea = (rows @ products @ columns.T).unbind(0)
    # clamped before the root, so that a zero vector has a finite gradient, as F.normalize gives it
    squared_e, squared_a = ee.clamp(min=EPSILON**2), aa.clamp(min=EPSILON**2)
    # |e^|^2 + |a^|^2 - 2 cos; the two norms are 1 but for zero vectors
    return ee / squared_e + aa / squared_a - 2 * ea * torch.rsqrt(squared_e) * torch.rsqrt(squared_a)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=1)


def _neighbour_products(x: Tensor, y: Tensor) -> Tensor:
    """(B, 2h-1, 2w-1): [[itself, right], [below, diagonal]], each summed over both orders of the pair."""
    same = x is y
    point = _inner(x, y)
    right = _pairs(x[..., :, :-1], x[..., :, 1:], y[..., :, :-1], y[..., :, 1:], same)
    below = _pairs(x[..., :-1, :], x[..., 1:, :], y[..., :-1, :], y[..., 1:, :], same)
    diagonal = _pairs(x[..., :-1, :-1], x[..., 1:, 1:], y[..., :-1, :-1], y[..., 1:, 1:], same)
    diagonal = diagonal + _pairs(x[..., :-1, 1:], x[..., 1:, :-1], y[..., :-1, 1:], y[..., 1:, :-1], same)
    return torch.cat([torch.cat([point, right], dim=-1), torch.cat([below, diagonal], dim=-1)], dim=-2)


def _pairs(x0: Tensor, x1: Tensor, y0: Tensor, y1: Tensor, same: bool) -> Tensor:
    return 2 * _inner(x0, x1) if same else _inner(x0, y1) + _inner(x1, y0)


# the matrices are kept: made outside inference mode, or a training after a prediction could not use them


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _pair_matrix(target: int, source: int) -> Tensor:
    """(target, 2 source - 1) float32: weights w_i^2 of the points, then w_i w_(i+1) of the neighbouring pairs."""
    weights = corners_matrix(target, source)
    return torch.cat([weights**2, weights[:, :-1] * weights[:, 1:]], dim=1).float()


def anomaly_map(maps: Sequence[Tensor], size: tuple[int, int], sigma: float = 4.0) -> Tensor:
    """The anomaly map: the sum of the levels, up-sampled to the image and blurred (METHOD: "Anomaly map").

    Args:
        maps: one (B, h, w) map a level, all of one size.
        size: (H, W) of the image at the network's input.
        sigma: standard deviation of the blur in pixels of that size; 0 switches it off.

    Returns:
        (B, H, W) float32, >= 0.
    """
    total = torch.stack(list(maps)).sum(dim=0)
    rows = map_matrix(size[0], int(total.shape[-2]), sigma).to(total)
    columns = map_matrix(size[1], int(total.shape[-1]), sigma).to(total)
    return rows @ total @ columns.T


def image_score(maps: Tensor, top: float = 0.0) -> Tensor:
    """The image score: the map's maximum, or the mean of its largest values.

    Args:
        maps: (B, H, W) anomaly maps.
        top: 0 for the maximum (the paper), else the share of pixels that is averaged (2025: 0.01).

    Returns:
        (B,) scores.
    """
    flat = maps.flatten(1)
    if top <= 0:
        return flat.amax(dim=1)
    count = max(1, round(top * flat.shape[1]))
    return flat.topk(count, dim=1).values.mean(dim=1)
