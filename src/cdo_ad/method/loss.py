"""The collaborative loss: agree on normal pixels, disagree on synthetic anomalies, hard pixels first (MOM and OOM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["collaborative_loss"]

SMALLEST_RATIO = 1e-8  # keeps d^-gamma finite where a synthetic pixel has no discrepancy at all


def collaborative_loss(maps: Sequence[Tensor], mask: Tensor, gamma: float = 2.0, oom: bool = True) -> Tensor:
    """The loss of one batch (METHOD: "OOM", "Loss").

    `sum_k B (sum_N w_n d - sum_S w_s d) / (sum_N w_n + sum_S w_s)` with `w_n = (d / mean_N d)^gamma` and
    `w_s = (d / mean_S d)^-gamma`, taken without gradient; all weights are 1 when `oom` is off.

    Args:
        maps: one (B, h, w) discrepancy map a level, all of one size.
        mask: (B, H, W) bool, True on synthetic anomalies, at any size: nearest neighbours bring it to (h, w).
        gamma: exponent of the weights, >= 0.
        oom: overlap optimisation on or off.

    Returns:
        A scalar. It is negative when the synthetic pixels disagree more than the normal ones.
    """
    small = F.interpolate(mask[:, None].float(), size=maps[0].shape[-2:], mode="nearest")[:, 0]
    synthetic = small > 0.5
    normal = ~synthetic
    batch = mask.shape[0]
    return torch.stack([_level(d, normal, synthetic, gamma, oom) for d in maps]).sum() * batch


def _level(d: Tensor, normal: Tensor, synthetic: Tensor, gamma: float, oom: bool) -> Tensor:
    d_n, d_s = d[normal], d[synthetic]
    if oom:
        w_n = _ratio(d_n.detach()).pow(gamma)
        w_s = _ratio(d_s.detach()).pow(-gamma)
    else:
        w_n, w_s = torch.ones_like(d_n), torch.ones_like(d_s)
    return ((w_n * d_n).sum() - (w_s * d_s).sum()) / (w_n.sum() + w_s.sum())


def _ratio(d: Tensor) -> Tensor:
    if d.numel() == 0:
        return d
    return (d / d.mean().clamp(min=torch.finfo(d.dtype).tiny)).clamp(min=SMALLEST_RATIO)
