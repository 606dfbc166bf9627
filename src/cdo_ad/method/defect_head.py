"""A branch that knows what anomalies look like: synthetic ones, and a few labelled defects where there are any.

A small classifier of the Gaussians' whitened vectors, which no longer hold what depends on the position or on the whole
image: a crack in a corner and one in the middle look alike there, so that a handful of images says something about
others. It learns from the anomalous pixels against good images and the good pixels of the anomalous images, each side
with half of the weight, each anomaly with as much as any other, however small. Where defects are labelled they make
half of the anomalies. What it has never seen it does not recognise: it gets a small part of the map, the other branches
see the rest as before.

The good images must be new to the Gaussians, as the defects are: of images that they were fitted to the vectors are
short, and the classifier would learn that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DefectHead", "fit_defect_head"]

WIDTH = 64
STEPS = 150
BATCH = 16
"""Images of defects a step, and as many good ones."""
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1.0
COVERED = 0.25
"""A cell counts as defective from this share of its pixels; of a defect that covers no cell so far the fullest do."""
NEIGHBOURS = 2
"""Cells so near to a labelled pixel are of neither kind."""


class DefectHead(nn.Module):
    """Whitened vectors to a map of how much they look like the labelled defects."""

    scale: Tensor

    def __init__(self, channels: int) -> None:
        """Random weights (torch's global generator); `fit_defect_head` or a loaded state replaces them.

        Args:
            channels: C of the vectors, see `cdo_ad.method.branches.Branches.head_vectors`.
        """
        super().__init__()
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))
        self.layers = nn.Sequential(nn.Conv2d(channels, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, 1, 1))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, C, h, w) float32 vectors to (B, h, w) maps >= 0."""
        return F.softplus(self.logits(vectors))

    def logits(self, vectors: Tensor) -> Tensor:
        """(B, h, w) log-odds of a labelled defect, good and bad being equally likely."""
        found: Tensor = self.layers(vectors / self.scale)[:, 0]
        return found


def fit_defect_head(
    defect_head: DefectHead,
    good: Tensor,
    defects: Tensor,
    masks: Tensor,
    seed: int = 0,
    labelled: int | None = None,
) -> None:
    """Train it.

    Args:
        defect_head: with random weights.
        good: (N, C, h, w) vectors of good images.
        defects: (K, C, h, w) vectors of anomalous images.
        masks: (K, H, W) bool, where their anomalies are.
        seed: of the order of images.
        labelled: the last so many of them show labelled defects, the others synthetic anomalies: both are drawn as
            often. None where all are of one kind.
    """
    generator = torch.Generator().manual_seed(seed)
    covered, near = _cells(masks, (int(defects.shape[-2]), int(defects.shape[-1])))
    weights = covered.float() / covered.flatten(1).sum(dim=1).clamp(min=1).view(-1, 1, 1)
    clean = (~near).float()
    with torch.no_grad():
        spread = good.std(dim=(0, 2, 3), keepdim=True)
        defect_head.scale.copy_(spread.clamp(min=1e-3 * float(spread.mean()) + 1e-12))
    often = torch.ones(len(defects))
    if labelled is not None and 0 < labelled < len(defects):
        often[-labelled:] = (len(defects) - labelled) / labelled
    optimizer = torch.optim.AdamW(defect_head.layers.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(STEPS):
        g = torch.randperm(len(good), generator=generator)[:BATCH].to(good.device)
        d = torch.multinomial(often, min(BATCH, len(defects)), generator=generator).to(good.device)
        logits = defect_head.logits(torch.cat([good[g], defects[d]]))
        normal, found = logits[: len(g)], logits[len(g) :]
        missed = (F.softplus(-found) * weights[d]).sum() / len(d)
        mistaken = (F.softplus(found) * clean[d]).sum() / clean[d].sum().clamp(min=1)
        loss = missed + 0.5 * (F.softplus(normal).mean() + mistaken)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _cells(masks: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(K, h, w) bool each: cells that are defective, and cells that are that or near it."""
    share = F.adaptive_avg_pool2d(masks[:, None].float(), grid)[:, 0]
    fullest = share.flatten(1).amax(dim=1).view(-1, 1, 1)
    covered = (share >= fullest.clamp(max=COVERED)) & (share > 0)
    size = 2 * NEIGHBOURS + 1
    near = F.max_pool2d((share > 0).float()[:, None], size, stride=1, padding=NEIGHBOURS)[:, 0] > 0
    return covered, near
