"""A second view beside the disagreement: how probable the expert's own features are at each place of the picture.

One full Gaussian for each position of a grid, over the expert's feature vectors there (Defard et al., PaDiM, ICPR 2021,
with all channels instead of a random hundred). It needs one pass over the good pictures, no gradient, and at inference
only the expert's forward pass, which the disagreement has paid for already.

- Features are averaged over 3 x 3 neighbours first: it steadies the covariance and enlarges what a position sees.
- A group holds the levels that share one grid; finer levels are averaged down to it. Small defects show on a fine grid,
  large and structural ones where levels are joined on a coarse one.
- Moments are summed in float64, so pictures come in any number and order; no picture is kept.
- The distance is divided by what a *new* good picture has on average. Distances of the fitted pictures are too small
  (with as many channels as pictures, by far); what leaving each out would give follows from the same moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdo_ad.errors import ConfigError
from cdo_ad.method.resize import halfpixel_matrix

__all__ = ["SHRINKAGE", "Density", "Gaussian", "Moments", "group_vectors"]

SHRINKAGE = 0.01
"""Share of the mean variance that is added to each covariance's diagonal."""

Groups = Sequence[Sequence[int]]
"""For each group the indices of its levels, coarsest last; the last one gives the grid."""


def group_vectors(features: Sequence[Tensor], levels: Sequence[int], pool: int = 3) -> Tensor:
    """Join levels on the grid of the last of them, each averaged over `pool` x `pool` neighbours before.

    Args:
        features: (B, C_k, H_k, W_k) maps of the expert, finest first.
        levels: indices into `features`; the last is the coarsest and gives the grid (H, W).
        pool: odd side of the neighbourhood in positions; 1 takes each position alone. Edges average what is there.

    Returns:
        (H * W, B, C) float32, C the sum of the levels' channels.
    """
    size = features[levels[-1]].shape[-2:]
    joined = []
    for level in levels:
        values = features[level].float()
        if pool > 1:
            values = F.avg_pool2d(values, pool, stride=1, padding=pool // 2, count_include_pad=False)
        if values.shape[-2:] != size:
            # the mean of the positions that fall together, as matrices: any ratio, the same in every engine
            rows, columns = (
                _mean_matrix(int(t), int(s)).to(values) for t, s in zip(size, values.shape[-2:], strict=True)
            )
            values = rows @ values @ columns.T
        joined.append(values)
    return torch.cat(joined, dim=1).flatten(2).permute(2, 0, 1)


def _mean_matrix(target: int, source: int) -> Tensor:
    """(target, source) float32: row t averages the source positions in [t, t + 1) * source / target, edges by share."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    places = torch.arange(source, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], places[None, :])
    high = torch.minimum(edges[1:, None], places[None, :] + 1)
    return ((high - low).clamp(min=0) * target / source).float()


class Moments:
    """Running sums of x and x x^T at each of P positions, in float64; addition of two is a merge of two data sets."""

    def __init__(self, positions: int, channels: int) -> None:
        """Start empty: P = `positions`, C = `channels`."""
        self.count = 0
        self.first = torch.zeros(positions, channels, dtype=torch.float64)
        self.second = torch.zeros(positions, channels, channels, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Take in (P, B, C) vectors of B pictures."""
        values = vectors.detach().cpu().double()
        self.count += values.shape[1]
        self.first += values.sum(dim=1)
        self.second.baddbmm_(values.transpose(1, 2), values)


class Gaussian(nn.Module):
    """One Gaussian a position: `|W_p (x - m_p)| / scale`, W_p the inverse Cholesky factor of its covariance."""

    mean: Tensor
    whiten: Tensor
    scale: Tensor

    def __init__(self, positions: int, channels: int) -> None:
        """A standard normal at each position; `fit` or a loaded state replaces it."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, 1, channels))
        self.register_buffer("whiten", torch.eye(channels).repeat(positions, 1, 1))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, moments: Moments, shrinkage: float = SHRINKAGE) -> None:
        """Take mean and covariance from `moments`.

        `S' = S + shrinkage * v * I`, v the mean variance over positions and channels. `scale` is the root of the mean
        squared distance that a picture would have that the fit did not see: with `h = x^T S'^-1 x` its distance
        within, leaving one out of n gives `h / (1 - h / n)` to first order, and the mean of h is `tr(S'^-1 S)`.

        Raises:
            ConfigError: with fewer than two pictures, or features that are all the same in every picture.
        """
        n = moments.count
        if n < 2:
            raise ConfigError(
                f"the density needs at least 2 good pictures, got {n}: switch it off with  --set density=false"
            )
        mean = moments.first / n
        covariance = moments.second / n - mean[:, :, None] * mean[:, None, :]
        channels = covariance.shape[-1]
        variance = covariance.diagonal(dim1=1, dim2=2).mean()
        if not variance > 0:
            raise ConfigError("the density found no variation at all: are the good pictures copies of one?")
        identity = torch.eye(channels, dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance + shrinkage * variance * identity)
        whiten = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        within = ((whiten @ covariance) * whiten).sum(dim=(1, 2))  # tr(W S W^T)
        unseen = within / (1 - within / n).clamp(min=1 / n)
        self.mean.copy_(mean[:, None])
        self.whiten.copy_(whiten)
        self.scale.copy_(unseen.mean().sqrt())

    def forward(self, vectors: Tensor) -> Tensor:
        """(P, B, C) vectors to (B, P) distances, about 1 for good pictures."""
        whitened = (vectors - self.mean) @ self.whiten.transpose(1, 2)
        return (whitened.square().sum(dim=2).sqrt() / self.scale).T


class Density(nn.Module):
    """The weighted sum of the groups' distance maps on the finest group's grid."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int]],
        groups: Groups,
        weights: Sequence[float] | None = None,
        pool: int = 3,
    ) -> None:
        """Reserve the buffers, so that a state can be loaded; `fit` fills them.

        Args:
            shapes: (C_k, H_k, W_k) of each of the expert's levels.
            groups: the levels of each group, see `group_vectors`; the first group has the finest grid.
            weights: one a group; equal, summing to 1, where None.
            pool: see `group_vectors`.

        Raises:
            ConfigError: a level that does not exist, an empty group, an even `pool` or weights of another number.
        """
        super().__init__()
        if not groups or any(not g or not all(0 <= k < len(shapes) for k in g) for g in groups):
            raise ConfigError(
                f"density groups {[list(g) for g in groups]}: each needs levels among 0..{len(shapes) - 1}"
            )
        if pool < 1 or pool % 2 == 0:
            raise ConfigError(f"density pool must be odd and >= 1, got {pool}")
        self.weights = list(weights) if weights is not None else [1 / len(groups)] * len(groups)
        if len(self.weights) != len(groups):
            raise ConfigError(f"density: {len(groups)} groups but {len(self.weights)} weights")
        self.groups = [list(g) for g in groups]
        self.pool = pool
        self.grids = [shapes[g[-1]][1:] for g in groups]
        self.gaussians = nn.ModuleList(
            Gaussian(h * w, sum(shapes[k][0] for k in g)) for g, (h, w) in zip(self.groups, self.grids, strict=True)
        )

    def fit(self, batches: Iterable[Sequence[Tensor]], shrinkage: float = SHRINKAGE) -> None:
        """Fit all groups in one pass.

        Args:
            batches: the expert's features of the good pictures, a list of (B, C_k, H_k, W_k) maps a batch.
            shrinkage: see `SHRINKAGE`.

        Raises:
            ConfigError: from `Gaussian.fit`.
        """
        moments = [Moments(g.mean.shape[0], g.mean.shape[2]) for g in self._gaussians()]
        for features in batches:
            for levels, sums in zip(self.groups, moments, strict=True):
                sums.add(group_vectors(features, levels, self.pool))
        for gaussian, sums in zip(self._gaussians(), moments, strict=True):
            gaussian.fit(sums, shrinkage)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The expert's maps of B pictures to a (B, H, W) float32 map >= 0, about 1 on good pictures; finest grid."""
        maps = []
        for levels, grid, weight, gaussian in zip(
            self.groups, self.grids, self.weights, self._gaussians(), strict=True
        ):
            distances = gaussian(group_vectors(features, levels, self.pool)).reshape(-1, *grid)
            rows, columns = (
                halfpixel_matrix(int(t), int(s)).to(distances) for t, s in zip(self.grids[0], grid, strict=True)
            )
            maps.append(weight * (rows @ distances @ columns.T))
        return torch.stack(maps).sum(dim=0)

    def _gaussians(self) -> list[Gaussian]:
        return [g for g in self.gaussians if isinstance(g, Gaussian)]
