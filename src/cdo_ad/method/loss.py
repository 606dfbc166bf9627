"""The collaborative loss: agree on normal pixels, disagree on synthetic anomalies, hard pixels first (MOM and OOM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["collaborative_loss"]

SMALLEST_RATIO = 1e-8  # keeps d^-gamma finite where a synthetic pixel has no discrepancy at all

Sum = Callable[[Tensor], Tensor]
"""Adds up a vector over all processes of a training, without gradient."""


def collaborative_loss(
    maps: Sequence[Tensor],
    mask: Tensor,
    gamma: float = 2.0,
    oom: bool = True,
    sum_over_processes: Sum = lambda values: values,
) -> Tensor:
    """The loss of one batch (METHOD: "OOM", "Loss").

    `sum_k B (sum_N w_n d - sum_S w_s d) / (sum_N w_n + sum_S w_s)` with `w_n = (d / mean_N d)^gamma` and
    `w_s = (d / mean_S d)^-gamma`, taken without gradient; all weights are 1 when `oom` is off.

    Several processes that each hold a part of the batch, of any size and even empty, get the parts of one loss: means,
    the sums of weights and B are those of the whole batch. The parts add up to the loss, and their gradients to its.

    Args:
        maps: one (B, h, w) discrepancy map for each level, all of one size.
        mask: (B, H, W) bool, True on synthetic anomalies, at any size: nearest neighbours bring it to (h, w).
        gamma: exponent of the weights, >= 0.
        oom: overlap optimisation on or off.
        sum_over_processes: adds up a vector over processes; the default is for one process.

    Returns:
        A scalar. It is negative when the synthetic pixels disagree more than the normal ones.
    """
    batch = sum_over_processes(maps[0].new_tensor([len(mask)]))[0]
    if len(mask):
        small = F.interpolate(mask[:, None].float(), size=maps[0].shape[-2:], mode="nearest")[:, 0]
    else:
        small = torch.zeros_like(maps[0])
    synthetic = small > 0.5
    return torch.stack([_level(d, ~synthetic, synthetic, gamma, oom, sum_over_processes) for d in maps]).sum() * batch


def _level(d: Tensor, normal: Tensor, synthetic: Tensor, gamma: float, oom: bool, total: Sum) -> Tensor:
    d_n, d_s = d[normal], d[synthetic]
    if oom:
        fixed_n, fixed_s = d_n.detach(), d_s.detach()
        sums = total(torch.stack([fixed_n.sum(), fixed_s.sum(), *_counts(d, d_n, d_s)]))
        w_n = _ratio(fixed_n, sums[0], sums[2]).pow(gamma)
        w_s = _ratio(fixed_s, sums[1], sums[3]).pow(-gamma)
    else:
        w_n, w_s = torch.ones_like(d_n), torch.ones_like(d_s)
    weights = total((w_n.sum() + w_s.sum())[None])[0]
    return ((w_n * d_n).sum() - (w_s * d_s).sum()) / weights


def _counts(d: Tensor, d_n: Tensor, d_s: Tensor) -> tuple[Tensor, Tensor]:
    return d.new_tensor(float(d_n.numel())), d.new_tensor(float(d_s.numel()))


def _ratio(d: Tensor, total: Tensor, count: Tensor) -> Tensor:
    mean = total / count.clamp(min=1)
    return (d / mean.clamp(min=torch.finfo(d.dtype).tiny)).clamp(min=SMALLEST_RATIO)
