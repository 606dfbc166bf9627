"""One Gaussian at each position of a grid, conditional on a description of the whole image.

What a position looks like follows in part from how the whole image looks: exposure, batch of material, how the part
lies. A regression on the leading components of such a description takes that out; otherwise it fills the covariance
and hides defects. (Defard et al., PaDiM, ICPR 2021, has an unconditional Gaussian at each position.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdo_ad.errors import ConfigError

__all__ = ["SHRINKAGE", "ConditionalGaussian", "components_for"]

SHRINKAGE = 0.05
"""Share of the mean variance that is added to each covariance's diagonal."""


def components_for(images: int, share: float, context: int) -> int:
    """How many components of a context of that many numbers a Gaussian over so many images is conditional on."""
    return max(0, min(int(share * images), images - 2, context))


class ConditionalGaussian(nn.Module):
    """The distance of a vector x at position p: `|W_p (x - m_p - A_p z)|`, over how certain its image is.

    z are the context's leading q components, of unit variance over n good images; A_p is the regression of x on them,
    W_p the inverse Cholesky factor of the covariance of what is left. The squared distance is divided by
    `[1 + (1 + |z|^2) / n] / [1 + (1 + q) / n]`: a regression says less of an image that is unlike all others.
    """

    mean: Tensor
    slope: Tensor
    whiten: Tensor
    context_mean: Tensor
    context_axes: Tensor
    count: Tensor

    def __init__(self, positions: int, channels: int, context: int, components: int) -> None:
        """A standard normal at each position; `fit` or a loaded state replaces it.

        Args:
            positions: P.
            channels: C, the length of a position's vector.
            context: Q, the length of the description of the whole image.
            components: q <= Q of its principal components; 0 for none.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(positions, 1, channels))
        self.register_buffer("slope", torch.zeros(components, positions * channels))
        self.register_buffer("whiten", torch.eye(channels).repeat(positions, 1, 1))
        self.register_buffer("context_mean", torch.zeros(1, context))
        self.register_buffer("context_axes", torch.zeros(context, components))
        self.register_buffer("count", torch.ones(()))

    @torch.no_grad()
    def fit(self, vectors: Tensor, context: Tensor, shrinkage: float = SHRINKAGE, floor: float | None = None) -> None:
        """Take everything from good images.

        Fewer images than at the start lower the number of components that are used in proportion, so that a fold's
        Gaussian is like the final one.

        Args:
            vectors: (P, n, C) of n images.
            context: (n, Q) of them.
            shrinkage: see `SHRINKAGE`.
            floor: for channels of different units: shrinkage is of each channel's own mean variance, at least this;
                None for that of all channels.

        Raises:
            ConfigError: fewer than two images, or vectors that are the same in every image.
        """
        n = vectors.shape[1]
        if n < 2:
            raise ConfigError(f"a density needs at least 2 good images, got {n}")
        self.count.fill_(n)
        self.mean.copy_(vectors.mean(dim=1, keepdim=True))
        self.context_mean.copy_(context.mean(dim=0, keepdim=True))
        residual = vectors - self.mean
        used = min(self.context_axes.shape[1], max(n - 2, 0))
        self.slope.zero_()
        self.context_axes.zero_()
        if used:
            axes = _principal_axes(context - self.context_mean, used)
            z = (context - self.context_mean) @ axes
            slope = z.T @ residual / n  # (P, q, C)
            residual = residual - z @ slope
            self.context_axes[:, : axes.shape[1]] = axes
            self.slope[: axes.shape[1]] = slope.transpose(0, 1).flatten(1)
        covariance = residual.transpose(1, 2) @ residual / n
        variance = covariance.diagonal(dim1=1, dim2=2).mean()
        if not variance > 1e-12:
            raise ConfigError("a density found no variation at all: are the good images copies of one?")
        identity = torch.eye(covariance.shape[-1]).to(covariance)
        added = variance * identity
        if floor is not None:
            added = covariance.diagonal(dim1=1, dim2=2).mean(dim=0).clamp(min=floor).diag()
        factor = torch.linalg.cholesky(covariance + shrinkage * added)
        self.whiten.copy_(torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False))

    def forward(self, vectors: Tensor, context: Tensor) -> Tensor:
        """(P, B, C) vectors and (B, Q) context to (B, P) distances."""
        return self.distances(self.whitened(vectors, context), context)

    def whitened(self, vectors: Tensor, context: Tensor) -> Tensor:
        """(P, B, C) `W_p (x - m_p - A_p z)`."""
        residual = vectors - self.mean
        if self.context_axes.shape[1]:
            # z @ slope at each position, as one product of matrices: OpenVINO fails on the batched form
            positions, _, channels = self.mean.shape
            explained = self._components(context) @ self.slope
            residual = residual - explained.view(-1, positions, channels).transpose(0, 1)
        return residual @ self.whiten.transpose(1, 2)

    def distances(self, whitened: Tensor, context: Tensor) -> Tensor:
        """(P, B, C) from `whitened` to (B, P) distances."""
        squared = whitened.square().sum(dim=2).T
        z = self._components(context)
        leverage = (1 + (1 + z.square().sum(dim=1, keepdim=True)) / self.count) / (1 + (1 + z.shape[1]) / self.count)
        return (squared / leverage).sqrt()

    def _components(self, context: Tensor) -> Tensor:
        return (context - self.context_mean) @ self.context_axes


def _principal_axes(centred: Tensor, count: int) -> Tensor:
    """(Q, <= count) axes whose components have unit variance, the leading ones; those without variance are left out.

    Through the n x n Gram matrix: a context has more numbers than there are images.
    """
    n = len(centred)
    wide = centred.double()
    variances, vectors = torch.linalg.eigh(wide @ wide.T / n)
    kept = [i for i in range(n - count, n) if variances[i] > 1e-9 * variances[-1]]
    axes = wide.T @ (vectors[:, kept] / (variances[kept] * n**0.5))
    narrow: Tensor = axes.to(centred)
    return narrow
