"""How branches become one map, and how their weights are learned.

Each branch's map is standardised at each position by what good images get there that the branch has not seen, enlarged,
blurred, and put in units of how its image score scatters over such images. The weighted sum of these is the fused map.

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

__all__ = ["greedy_weights", "mean_auroc", "position_statistics"]

SMOOTH = 3
"""Positions a side over which statistics are averaged."""
OWN = 0.7
"""Of a position's variance, the part that is its own; the rest is that of all positions."""
STEPS = 8
"""Of the greedy choice of weights: each step gives an eighth to one branch."""


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


def greedy_weights(good: Sequence[Tensor], anomalous: Sequence[Tensor], kinds: npt.NDArray[np.int64]) -> Tensor:
    """Weights of V branches, chosen step by step: each adds the branch with which the sum tells anomalies best.

    Args:
        good: for each branch the maps (N, h, w) of good images, in units of its scatter.
        anomalous: for each branch the maps (M, h, w) of images with anomalies.
        kinds: (M,) the kind of each anomaly.

    Returns:
        (V,) multiples of 1 / `STEPS` that sum to 1.
    """
    total_good, total_bad = torch.zeros_like(good[0]), torch.zeros_like(anomalous[0])
    weights = torch.zeros(len(good))
    for _ in range(STEPS):
        found = [
            mean_auroc(_peaks(total_good + g), _peaks(total_bad + a), kinds)
            for g, a in zip(good, anomalous, strict=True)
        ]
        best = int(np.argmax(found))
        weights[best] += 1 / STEPS
        total_good, total_bad = total_good + good[best], total_bad + anomalous[best]
    return weights


def _peaks(maps: Tensor) -> npt.NDArray[np.float32]:
    peaks: npt.NDArray[np.float32] = maps.flatten(1).amax(dim=1).numpy()
    return peaks
