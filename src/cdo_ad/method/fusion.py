"""How branches become one map, and how their weights are learned.

Each branch's map is standardised at each position by what good images get there that the branch has not seen, enlarged,
blurred, and put in units of how its image score scatters over such images. The weighted sum of these is the fused map.

What a new part looks like as a whole raises its entire map, defect or not. A share of that is taken off: the lower
quartile of an image's map, which a local defect hardly moves, times the slope at which the largest values of good
images' maps follow it. An image that is more familiar than almost all good ones, such as another photograph of a known
part, is not raised, and a defect that fills the image is not taken off.

Weights are learned from good images alone: which mixture tells good images from the same images with synthetic
anomalies best, all judged by branches that have seen neither the image nor a copy of it. A branch that only remembers
parts, or that is noise for a category, gets no weight there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["fit_baseline", "image_baselines", "learned_weights", "mean_auroc", "position_statistics"]

SMOOTH = 3
"""Positions a side over which statistics are averaged."""
OWN = 0.7
"""Of a position's variance, the part that is its own; the rest is that of all positions."""
QUARTILE = 0.25
USUAL = (0.05, 0.9)
"""Quantiles of good images' baselines: outside them a baseline counts as if it were there."""
STEPS = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the map that a branch may be given at once."""
EARNS = 0.9
"""A branch gets a share only if the synthetic error falls to this part of what it was, or below. Small changes of this
error say nothing about real defects: with any gain allowed, castings would give half of the map to level 2 and fewer
defects would be found (LOG.md)."""
ROUNDS = 3


def position_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation at each position, smoothed.

    Args:
        maps: (N, h, w) of good images that the branch has not seen, N >= 2.

    Returns:
        (h, w) and (h, w), the latter > 0.
    """
    mean, deviation = _smooth(maps.mean(dim=0)), _smooth(maps.std(dim=0))
    variance = OWN * deviation.square() + (1 - OWN) * deviation.square().mean()
    return mean, variance.clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def image_baselines(maps: Tensor) -> Tensor:
    """(B, P) maps to (B,) the lower quartile of each."""
    # topk, not quantile: exporters know it
    return maps.topk(1 + int(QUARTILE * (maps.shape[1] - 1)), dim=1, largest=False).values[:, -1]


def fit_baseline(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How the largest value of good images' maps follows their baseline.

    Args:
        maps: (N, P) of good images, standardised by branches that have not seen them, N >= 2.

    Returns:
        The slope >= 0 of the regression, and the lowest and the highest baseline that counts; scalars.
    """
    baselines, largest = image_baselines(maps), maps.amax(dim=1)
    away = baselines - baselines.mean()
    variance = away.square().mean().clamp(min=1e-6)
    slope = ((away * largest).mean() / variance).clamp(min=0)
    return slope, baselines.quantile(USUAL[0]), baselines.quantile(USUAL[1])


def _smooth(values: Tensor) -> Tensor:
    return F.avg_pool2d(values[None, None], SMOOTH, 1, SMOOTH // 2, count_include_pad=False)[0, 0]


def mean_auroc(
    good: npt.NDArray[np.floating], anomalous: npt.NDArray[np.floating], kinds: npt.NDArray[np.int64]
) -> float:
    """The mean over kinds of the AUROC of anomalous scores against good ones, ties half.

    Args:
        good: (N,) scores of good images.
        anomalous: (M,) scores of images with anomalies.
        kinds: (M,) the kind of each anomaly.
    """
    ordered = np.sort(good)
    above = (np.searchsorted(ordered, anomalous, "left") + np.searchsorted(ordered, anomalous, "right")) / 2
    return float(np.mean([above[kinds == kind].mean() / len(good) for kind in np.unique(kinds)]))


def learned_weights(
    good: Sequence[Tensor], anomalous: Sequence[Tensor], kinds: npt.NDArray[np.int64], start: Tensor
) -> Tensor:
    """Weights of V branches: others join the start where the sum then tells synthetic anomalies clearly better.

    The synthetic error is 1 - `mean_auroc` of fused image scores. Up to `ROUNDS` times, the branch and share that lower
    it most get that share, the others keep theirs of the rest; a branch that does not lower it by a tenth gets none.

    Args:
        good: for each branch the maps (N, h, w) of good images, in units of its scatter.
        anomalous: for each branch the maps (M, h, w) of images with anomalies.
        kinds: (M,) the kind of each anomaly.
        start: (V,) weights to begin with, sum 1.

    Returns:
        (V,) weights, sum 1.
    """

    def error(weights: Tensor) -> float:
        fused_good = torch.einsum("v,vnhw->nhw", weights, torch.stack(list(good)))
        fused_bad = torch.einsum("v,vnhw->nhw", weights, torch.stack(list(anomalous)))
        return 1 - mean_auroc(_peaks(fused_good), _peaks(fused_bad), kinds)

    weights, least = start, error(start)
    for _ in range(ROUNDS):
        tried = [(1 - share) * weights + share * one for one in torch.eye(len(start)) for share in STEPS]
        errors = [error(each) for each in tried]
        best = int(np.argmin(errors))
        if errors[best] >= EARNS * least:
            break
        weights, least = tried[best], errors[best]
    return weights


def _peaks(maps: Tensor) -> npt.NDArray[np.float32]:
    peaks: npt.NDArray[np.float32] = maps.flatten(1).amax(dim=1).numpy()
    return peaks
