"""One Gaussian at each position of a grid, conditional on a description of the whole image, fitted from running sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdo_ad.errors import ConfigError

__all__ = ["SHRINKAGE", "Gaussian", "Moments"]

SHRINKAGE = 0.01
"""Share of the mean variance that is added to each covariance's diagonal."""
IMAGES_A_COMPONENT = 10
"""Good images that each component of the context needs: fewer would fit chance."""


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
        A fitted image's squared distance is `tr(S'^-1 S)` on average over n of them; `unseen` is what a new image's would be.

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

    def _components(self, context: Tensor) -> Tensor:
        return (context - self.context_mean) @ self.context_axes


def _left_out(within: Tensor, leverage: Tensor, count: int) -> Tensor:
    """The squared distance of an image that was among the `count` fitted ones, as if it had not been.

    With l its leverage in the regression, `(1 + |z|^2) / n`, its residual e grows to e / (1 - l) and the sum of squares
    loses e e^T / (1 - l): by the rank-one formula a squared distance h becomes
    `(1 - 1/n) h / (1 - l)^2 / (1 - h / (n (1 - l)))`. With fewer images than channels only the shrinkage keeps the last
    factor above 0.
    """
    kept = (1 - leverage).clamp(min=1 / count)
    return (1 - 1 / count) * within / kept**2 / (1 - within / (count * kept)).clamp(min=1e-4)


def _principal_axes(covariance: Tensor, count: int) -> Tensor:
    """(Q, <= count) axes whose components have unit variance, the leading ones; those without variance are left out."""
    variances, vectors = torch.linalg.eigh(covariance)
    kept = [i for i in range(len(variances) - count, len(variances)) if variances[i] > 1e-9 * variances[-1]]
    axes: Tensor = vectors[:, kept] / variances[kept].sqrt()
    return axes
