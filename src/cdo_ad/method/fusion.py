"""How branches become one map: each over its own scale, times its weight; and how the weights are learned.

A branch that is right for one category is noise for another: intensities tell a stain on even cloth, and nothing on
solar cells that each have an intensity of their own. Good images and copies of them with synthetic anomalies of all
kinds show which is the case, without an image of a defect.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["WEIGHT_POWER", "learned_weights", "separation"]

WEIGHT_POWER = 4
"""Chosen among 0, 1, 2, 4, 8 by image AUROC on two drawn products and on solar cells; see LOG.md."""


def separation(good: Tensor, anomalous: Tensor) -> Tensor:
    """Image AUROC of each branch: the chance that an anomalous image scores above a good one, ties half.

    Args:
        good: (V, N) scores of good images by each of V branches.
        anomalous: (V, M) scores of anomalous ones.

    Returns:
        (V,) float64 in [0, 1].
    """
    difference = anomalous.double()[:, :, None] - good.double()[:, None, :]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean(dim=(1, 2))


def learned_weights(separations: Tensor, power: float = WEIGHT_POWER) -> Tensor:
    """Weights in proportion to `max(0, 2 a - 1) ** power`, a the mean AUROC over the kinds of anomalies.

    Args:
        separations: (K, V) AUROC of each kind and branch.
        power: 0 for equal weights.

    Returns:
        (V,) float32, sum 1; equal weights where no branch sees anything.
    """
    informedness = (2 * separations.mean(dim=0) - 1).clamp(min=0) ** power
    if not informedness.sum() > 0:
        informedness = torch.ones_like(informedness)
    return (informedness / informedness.sum()).float()
