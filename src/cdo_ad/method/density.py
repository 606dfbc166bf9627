"""A second branch beside the disagreement: how probable what the expert sees is at each place of the image.

Three Gaussians a position, each over good images (Defard et al., PaDiM, ICPR 2021, has one over all levels):
the expert's second and third level, for defects of structure, small and large, and the image's own colours on a
coarse grid, for large changes of intensity, which features of an ImageNet network hardly show. It needs one pass over the
good images, no gradient, and at inference only the expert's forward pass, which the disagreement has paid for.

- Features are averaged over 3 x 3 neighbours first: it steadies the covariance and enlarges what a position sees.
- What a position looks like follows in part from how the whole image looks (exposure, batch of material): each
  Gaussian is conditional on the leading components of a description of the whole image, a linear regression.
  Otherwise such changes fill the covariance and hide defects.
- Moments are summed in float64, so images come in any number and order.
- Each map is divided by the image score that it gives a *new* good image on average, so that equal weights give each
  branch an equal say in what is a false alarm. Scores of the fitted images would be too small (with as many channels
  as images, by far); what leaving each image out would give follows from the same moments.
- Levels of many channels are cut to a fixed random choice of them, as PaDiM does: memory grows with their square.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdo_ad.errors import ConfigError
from cdo_ad.method.defect_head import DefectHead
from cdo_ad.method.discrepancy import map_matrix

__all__ = ["BRANCHES", "Density", "Gaussian", "Moments", "intensities", "position_vectors", "to_grid", "whole_image"]

BRANCHES = ("density of level 2", "density of level 3", "density of intensity")
LEVELS = (1, 2)
"""Indices of the expert's levels that have a Gaussian."""
CHANNELS = 128
"""Most channels of a level that are used."""
SHRINKAGE = 0.01
"""Share of the mean variance that is added to each covariance's diagonal; more for intensities, whose noise is small."""
INTENSITY_SHRINKAGE = 0.05
INTENSITY_CELLS = 16
"""Cells of the grid of intensities along the image's longer side."""
IMAGES_A_COMPONENT = 10
"""Good images that each component of the context needs: fewer would fit chance."""


def position_vectors(features: Tensor, pool: int = 3) -> Tensor:
    """(B, C, H, W) maps to (H * W, B, C) float32, each the mean of `pool` x `pool` neighbours, of those that exist."""
    values = features.float()
    if pool > 1:
        values = F.avg_pool2d(values, pool, stride=1, padding=pool // 2, count_include_pad=False)
    return values.flatten(2).permute(2, 0, 1)


def intensities(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean log colour of each cell of a grid: a factor of exposure becomes a shift.

    Args:
        images: (B, 3, H, W) uint8 or float RGB in 0..255.
        grid: (h, w) cells.

    Returns:
        (B, 3, h, w) float32.
    """
    values = (images.float() + 8).log()  # 8 of 255: the noise of dark pixels does not matter
    rows, columns = (_mean_matrix(t, int(s)).to(values) for t, s in zip(grid, values.shape[-2:], strict=True))
    return rows @ values @ columns.T


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _mean_matrix(target: int, source: int) -> Tensor:
    """(target, source) float32: row t averages the source positions in [t, t + 1) * source / target, edges by share."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    places = torch.arange(source, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], places[None, :])
    high = torch.minimum(edges[1:, None], places[None, :] + 1)
    return ((high - low).clamp(min=0) * target / source).float()


class Moments:
    """Running sums at each of P positions, in float64: x, x x^T and x g^T, with g the image's context."""

    def __init__(self, positions: int, channels: int, context: int) -> None:
        """Start empty: P = `positions`, C = `channels`, Q = `context` numbers an image."""
        self.count = 0
        self.first = torch.zeros(positions, channels, dtype=torch.float64)
        self.second = torch.zeros(positions, channels, channels, dtype=torch.float64)
        self.context_first = torch.zeros(context, dtype=torch.float64)
        self.context_second = torch.zeros(context, context, dtype=torch.float64)
        self.cross = torch.zeros(positions, channels, context, dtype=torch.float64)

    def add(self, vectors: Tensor, context: Tensor) -> None:
        """Take in (P, B, C) vectors of B images and their (B, Q) context."""
        values, given = vectors.detach().cpu().double(), context.detach().cpu().double()
        self.count += len(given)
        self.first += values.sum(dim=1)
        self.second.baddbmm_(values.transpose(1, 2), values)
        self.context_first += given.sum(dim=0)
        self.context_second += given.T @ given
        self.cross += values.transpose(1, 2) @ given

    def __add__(self, other: Moments) -> Moments:
        return self._combined(other, 1)

    def __sub__(self, other: Moments) -> Moments:
        """The sums without the images of `other`, which must be among them."""
        return self._combined(other, -1)

    def _combined(self, other: Moments, sign: int) -> Moments:
        total = Moments(self.first.shape[0], self.first.shape[1], len(self.context_first))
        for name in vars(total):
            setattr(total, name, getattr(self, name) + sign * getattr(other, name))
        return total

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of x with itself (P, C, C), of x with g (P, C, Q), of g with itself (Q, Q)."""
        mean, given = self.first / self.count, self.context_first / self.count
        return (
            self.second / self.count - mean[:, :, None] * mean[:, None, :],
            self.cross / self.count - mean[:, :, None] * given,
            self.context_second / self.count - given[:, None] * given,
        )


class Gaussian(nn.Module):
    """One conditional Gaussian a position: distance `|W_p (x - m_p - A_p z)| / s_p`.

    z holds the context's leading components, centred and of unit variance; A_p is the regression of x on them, W_p the
    inverse Cholesky factor of the covariance of what is left, s_p the root mean square distance of new good images.
    """

    mean: Tensor
    slope: Tensor
    whiten: Tensor
    spread: Tensor
    context_mean: Tensor
    context_axes: Tensor

    def __init__(self, positions: int, channels: int, context: int, components: int) -> None:
        """A standard normal at each position; `fit` or a loaded state replaces it.

        Args:
            positions: P.
            channels: C, the length of a position's vector.
            context: Q, the length of the description of the whole image.
            components: q <= Q, how many of its principal components are used at most; 0 for none.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, 1, channels))
        self.register_buffer("slope", torch.zeros(positions, components, channels))
        self.register_buffer("whiten", torch.eye(channels).repeat(positions, 1, 1))
        self.register_buffer("spread", torch.ones(positions))
        self.register_buffer("context_mean", torch.zeros(1, context))
        self.register_buffer("context_axes", torch.zeros(context, components))

    @torch.no_grad()
    def fit(self, moments: Moments, shrinkage: float = SHRINKAGE) -> None:
        """Take everything from `moments`.

        `S' = S + shrinkage * v * I`, S the covariance left by the regression on q components, v its mean variance.
        A fitted image's squared distance is `tr(S'^-1 S)` on average over n of them; see `left_out` for a new one's.

        Raises:
            ConfigError: with fewer than two images, or vectors that are the same in every image.
        """
        n = moments.count
        if n < 2:
            raise ConfigError(
                f"the density needs at least 2 good images, got {n}: switch it off with  --set density=false"
            )
        covariance, cross, given = moments.covariances()
        axes = _principal_axes(given, min(self.context_axes.shape[1], n // IMAGES_A_COMPONENT))
        slope = cross @ axes  # the components have unit variance
        covariance = covariance - slope @ slope.transpose(1, 2)
        variance = covariance.diagonal(dim1=1, dim2=2).mean()
        if not variance > 1e-12:
            raise ConfigError("the density found no variation at all: are the good images copies of one?")
        identity = torch.eye(covariance.shape[-1], dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance + shrinkage * variance * identity)
        whiten = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        within = ((whiten @ covariance) * whiten).sum(dim=(1, 2))  # tr(W S W^T)
        used = axes.shape[1]
        unseen = _left_out(within, torch.tensor((1 + used) / n), n)
        self.slope.zero_()[:, :used] = slope.transpose(1, 2).to(self.slope)
        self.context_axes.zero_()[:, :used] = axes.to(self.context_axes)
        self.context_mean.copy_(moments.context_first[None] / n)
        self.mean.copy_((moments.first / n)[:, None])
        self.whiten.copy_(whiten)
        # a position that never changes (a black frame) would otherwise divide by nothing
        self.spread.copy_(unseen.clamp(min=1e-3 * float(unseen.mean())).sqrt())

    def forward(self, vectors: Tensor, context: Tensor) -> Tensor:
        """(P, B, C) vectors and (B, Q) context to (B, P) distances."""
        return self.distances(self.whitened(vectors, context))

    def whitened(self, vectors: Tensor, context: Tensor) -> Tensor:
        """(P, B, C) `W_p (x - m_p - A_p z)`: its norm is the distance times s_p, see the class."""
        residual = vectors - self.mean
        components = self._components(context)
        if components.shape[1]:
            # components @ slope at each position, as one product of matrices: OpenVINO fails on the batched form
            positions, _, channels = self.slope.shape
            explained = components @ self.slope.transpose(0, 1).flatten(1)
            residual = residual - explained.view(-1, positions, channels).transpose(0, 1)
        return residual @ self.whiten.transpose(1, 2)

    def distances(self, whitened: Tensor) -> Tensor:
        """(P, B, C) from `whitened` to (B, P) distances."""
        return whitened.square().sum(dim=2).T.sqrt() / self.spread

    def left_out(self, vectors: Tensor, context: Tensor, count: int) -> Tensor:
        """The distances of images that were among the `count` fitted ones, as if they had not been.

        With l = (1 + |z|^2) / n the image's leverage in the regression, its residual e grows to e / (1 - l) and the
        sum of squares loses e e^T / (1 - l): by the rank-one formula a squared distance h becomes
        `(1 - 1/n) h / (1 - l)^2 / (1 - h / (n (1 - l)))`. The shrinkage is taken as it is.
        """
        leverage = (1 + self._components(context).square().sum(dim=1, keepdim=True)) / count
        within = self.whitened(vectors, context).square().sum(dim=2).T
        return _left_out(within, leverage, count).sqrt() / self.spread

    def _components(self, context: Tensor) -> Tensor:
        return (context - self.context_mean) @ self.context_axes


def _left_out(within: Tensor, leverage: Tensor, count: int) -> Tensor:
    """See `Gaussian.left_out`. With fewer images than channels only the shrinkage keeps the last factor above 0."""
    kept = (1 - leverage).clamp(min=1 / count)
    return (1 - 1 / count) * within / kept**2 / (1 - within / (count * kept)).clamp(min=1e-4)


def _principal_axes(covariance: Tensor, count: int) -> Tensor:
    """(Q, <= count) axes whose components have unit variance, the leading ones; those without variance are left out."""
    variances, vectors = torch.linalg.eigh(covariance)
    kept = [i for i in range(len(variances) - count, len(variances)) if variances[i] > 1e-9 * variances[-1]]
    axes: Tensor = vectors[:, kept] / variances[kept].sqrt()
    return axes


class Density(nn.Module):
    """Three maps of improbability, see the module; `usual` holds what each is divided by, 1 until it is set."""

    usual: Tensor

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], image_size: tuple[int, int], components: int = 8
    ) -> None:
        """Reserve the buffers, so that a state can be loaded; `fit` fills them.

        Args:
            shapes: (C_k, H_k, W_k) of each of the expert's levels, finest first.
            image_size: (H, W) of the images.
            components: of the context that the Gaussians are conditional on; 0 for none.

        Raises:
            ConfigError: more components than the context has.
        """
        super().__init__()
        longer = max(image_size)
        self.intensity_grid = (
            max(1, round(INTENSITY_CELLS * image_size[0] / longer)),
            max(1, round(INTENSITY_CELLS * image_size[1] / longer)),
        )
        contexts = [shapes[-1][0]] * len(LEVELS) + [3 * self.intensity_grid[0] * self.intensity_grid[1]]
        if not 0 <= components <= min(contexts):
            raise ConfigError(f"density_context must lie in 0..{min(contexts)} here, got {components}")
        self.chosen = [_choose(shapes[k][0]) for k in LEVELS]
        self.grids = [shapes[k][1:] for k in LEVELS] + [self.intensity_grid]
        channels = [min(shapes[k][0], CHANNELS) for k in LEVELS] + [3]
        self.gaussians = nn.ModuleList(
            Gaussian(h * w, c, context, components)
            for (h, w), c, context in zip(self.grids, channels, contexts, strict=True)
        )
        self.register_buffer("usual", torch.ones(len(BRANCHES)))
        self.defect_head: DefectHead | None = None  # set where defects are labelled
        self.count = 0  # fitted images; not kept in the state, as it serves only right after a fit

    def moments(self) -> list[Moments]:
        """Empty sums, one for each branch."""
        return [Moments(g.mean.shape[0], g.mean.shape[2], g.context_mean.shape[1]) for g in self._gaussians()]

    def add(self, moments: Sequence[Moments], images: Tensor, features: Sequence[Tensor]) -> None:
        """Take images, as in `forward`, into `moments`."""
        for sums, (vectors, context) in zip(moments, self._inputs(images, features), strict=True):
            sums.add(vectors, context)

    @torch.no_grad()
    def fit(self, moments: Sequence[Moments]) -> None:
        """Take the Gaussians from `moments`; maps are not scaled then, see `usual`.

        Raises:
            ConfigError: from `Gaussian.fit`.
        """
        shrinkages = (*[SHRINKAGE] * len(LEVELS), INTENSITY_SHRINKAGE)
        for gaussian, sums, shrinkage in zip(self._gaussians(), moments, shrinkages, strict=True):
            gaussian.fit(sums, shrinkage)
        self.count = moments[0].count
        self.usual.fill_(1)

    def left_out(self, images: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """The maps of `forward` for images that were fitted, as if they had not been, before any scaling."""
        branches = zip(self._gaussians(), self._inputs(images, features), self.grids, strict=True)
        return [g.left_out(*inputs, self.count).reshape(-1, *grid) for g, inputs, grid in branches]

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """The maps of `BRANCHES`, and after them that of the defect_head, where there is one.

        Args:
            images: (B, 3, H, W) uint8 or float RGB in 0..255.
            features: the expert's (B, C_k, H_k, W_k) maps of them.

        Returns:
            One (B, h, w) float32 map >= 0 a branch, each on a grid of its own.
        """
        whitened = self.whitened(images, features)
        branches = zip(self._gaussians(), whitened, self.grids, self.usual.unbind(), strict=True)
        maps = [gaussian.distances(given).reshape(-1, *grid) / usual for gaussian, given, grid, usual in branches]
        return maps if self.defect_head is None else [*maps, self.defect_head(self.stacked(whitened))]

    def whitened(self, images: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """(P, B, C) a branch, of images as in `forward`: see `Gaussian.whitened`."""
        inputs = self._inputs(images, features)
        return [gaussian.whitened(*given) for gaussian, given in zip(self._gaussians(), inputs, strict=True)]

    def stacked(self, whitened: Sequence[Tensor]) -> Tensor:
        """The levels of `whitened` over what is usual at each position, as one (B, C, h, w) on the finest one's grid.

        The factor of a covariance is triangular: each channel is what the channels before it do not tell. So channels
        mean the same at every position.
        """
        levels = [
            to_grid((w / g.spread[:, None, None]).permute(1, 2, 0).reshape(-1, w.shape[2], *grid), self.grids[0])
            for w, g, grid in zip(whitened, self._gaussians()[: len(LEVELS)], self.grids, strict=False)
        ]
        return torch.cat(levels, dim=1)

    @property
    def stacked_channels(self) -> int:
        """C of `stacked`."""
        return sum(int(g.mean.shape[2]) for g in self._gaussians()[: len(LEVELS)])

    def _inputs(self, images: Tensor, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(P, B, C) vectors and (B, Q) context of each branch."""
        context = whole_image(features)
        levels = [features[k] if c is None else features[k][:, c] for k, c in zip(LEVELS, self.chosen, strict=True)]
        cells = intensities(images, self.intensity_grid)
        return [(position_vectors(level), context) for level in levels] + [
            (position_vectors(cells, pool=1), cells.flatten(1))
        ]

    def _gaussians(self) -> list[Gaussian]:
        return [g for g in self.gaussians if isinstance(g, Gaussian)]


def whole_image(features: Sequence[Tensor]) -> Tensor:
    """(B, Q) float32 description of the whole image: the mean of the last of the expert's (B, C_k, H_k, W_k) maps."""
    return features[-1].float().mean(dim=(2, 3))


def _choose(channels: int) -> list[int] | None:
    """The channels that are used of a level, always the same ones; None for all."""
    if channels <= CHANNELS:
        return None
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(0))
    chosen: list[int] = order[:CHANNELS].sort().values.tolist()
    return chosen


def to_grid(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) maps to (..., H, W), bilinear with half-pixel centres, as two small matrices."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    rows, columns = (map_matrix(int(t), int(s), 0.0).to(maps) for t, s in zip(size, maps.shape[-2:], strict=True))
    return rows @ maps @ columns.T
