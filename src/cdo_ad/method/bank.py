"""A bank of vectors of good images, from any position: what has no near vector in it is improbable.

It knows no position, so it carries over to parts that lie elsewhere or at another angle, where a Gaussian at each
position knows little. Greedy k-centre choice as in PatchCore (Roth et al., CVPR 2022), here on whitened vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Bank"]

CANDIDATES = 10_000
"""Vectors, drawn at random, that the centres are chosen among."""
PROJECTED = 48
"""Dimensions of a random projection in which the choice is made."""
SHRINKAGE = 0.01
CLOSEST = 0.01
"""Of a vector's expected squared length: below it a squared distance, a difference of large numbers, is mere rounding,
and engines would differ."""


class Bank(nn.Module):
    """The distance of a vector to the nearest of K centres, in globally whitened coordinates."""

    mean: Tensor
    whiten: Tensor
    centres: Tensor

    def __init__(self, channels: int, centres: int) -> None:
        """Reserve the buffers; `fit` or a loaded state fills them."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("whiten", torch.eye(channels))
        self.register_buffer("centres", torch.zeros(centres, channels))

    @torch.no_grad()
    def fit(self, vectors: Tensor, floor: float | None = None) -> None:
        """Take everything from good images; the choice is the same for the same vectors.

        Args:
            vectors: (P, n, C) of n images.
            floor: for channels of different units: shrinkage is of each channel's own variance, at least this; None for
                the mean variance of all channels.
        """
        flat = vectors.reshape(-1, vectors.shape[2])
        generator = torch.Generator().manual_seed(0)
        drawn = flat[torch.randperm(len(flat), generator=generator)[: 5 * CANDIDATES].to(flat.device)]
        self.mean.copy_(flat.mean(dim=0))
        covariance = torch.cov(drawn.T)
        identity = torch.eye(len(covariance)).to(covariance)
        added = covariance.diagonal().mean() * identity
        if floor is not None:
            added = covariance.diagonal().clamp(min=floor).diag()
        factor = torch.linalg.cholesky(covariance + SHRINKAGE * added)
        self.whiten.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        candidates = (drawn[:CANDIDATES] - self.mean) @ self.whiten.T
        projection = torch.randn(flat.shape[1], PROJECTED, generator=generator).to(flat) / PROJECTED**0.5
        chosen = _centres(candidates @ projection, len(self.centres))
        # with fewer vectors than centres the last ones stand there again, which changes no distance
        self.centres.copy_(candidates[[*chosen, *([chosen[-1]] * (len(self.centres) - len(chosen)))]])

    def forward(self, vectors: Tensor) -> Tensor:
        """(P, B, C) vectors to (B, P) distances."""
        positions, batch, channels = vectors.shape
        whitened = (vectors.reshape(-1, channels) - self.mean) @ self.whiten.T
        squared = whitened.square().sum(dim=1, keepdim=True) + self.centres.square().sum(dim=1)
        nearest = (squared - 2 * whitened @ self.centres.T).amin(dim=1)
        return nearest.clamp(min=CLOSEST * channels).sqrt().reshape(positions, batch).T


def _centres(points: Tensor, count: int) -> list[int]:
    """Indices of centres: each next one is the point that is farthest from all before."""
    squares = points.square().sum(dim=1)
    nearest = torch.full_like(squares, float("inf"))
    chosen, at = [], 0
    for _ in range(min(count, len(points))):
        chosen.append(at)
        nearest = torch.minimum(nearest, squares + squares[at] - 2 * (points @ points[at]))
        at = int(nearest.argmax())
    return chosen
