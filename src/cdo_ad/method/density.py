"""Beside the disagreement: how probable what the expert sees is at each place of the image.

Three Gaussians at each position, over good images (Defard et al., PaDiM, ICPR 2021, has one over all levels): the
expert's second and third level, for defects of structure, small and large, and the image's own colours on a coarse
grid, for large changes of intensity, which features of an ImageNet network hardly show. It needs one pass over the good
images, no gradient, and at inference only the expert's forward pass, which the disagreement has paid for.

- Features are averaged over 3 x 3 neighbours first: it steadies the covariance and enlarges what a position sees.
- What a position looks like follows in part from how the whole image looks (exposure, batch of material): each
  Gaussian is conditional on the leading components of a description of the whole image, a linear regression.
  Otherwise such changes fill the covariance and hide defects.
- Moments are summed in float64, so images come in any number and order.
- Levels of many channels are cut to a fixed random choice of them, as PaDiM does: memory grows with their square.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdo_ad.errors import ConfigError
from cdo_ad.method.gaussian import SHRINKAGE, Gaussian, Moments
from cdo_ad.method.preprocess import mean_matrix, to_grid

__all__ = ["DENSITIES", "Density", "Shape", "intensities", "position_vectors", "whole_image"]

DENSITIES = ("level 2", "level 3", "intensity")
"""Names of the maps that a density gives."""
LEVELS = (1, 2)
"""Indices of the expert's levels that have a Gaussian."""
CHANNELS = 128
"""Most channels of a level that are used."""
INTENSITY_SHRINKAGE = 0.05
"""More than for features, as the noise of mean intensities is small."""
Shape = tuple[int, int, int]
INTENSITY_CELLS = 16
"""Cells of the grid of intensities along the image's longer side."""


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
    rows, columns = (mean_matrix(t, int(s)).to(values) for t, s in zip(grid, values.shape[-2:], strict=True))
    return rows @ values @ columns.T


class Density(nn.Module):
    """Maps of improbability, see the module: of two levels of the expert's features and of the image's intensities."""

    def __init__(self, shapes: Sequence[Shape], image_size: tuple[int, int], components: int = 8) -> None:
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
        height, width = (max(1, round(INTENSITY_CELLS * side / longer)) for side in image_size)
        self.intensity_grid = (height, width)
        contexts = [shapes[-1][0]] * len(LEVELS) + [3 * height * width]
        if not 0 <= components <= min(contexts):
            raise ConfigError(f"density_context must lie in 0..{min(contexts)} here, got {components}")
        self.chosen = [_choose(shapes[k][0]) for k in LEVELS]
        self.grids = [shapes[k][1:] for k in LEVELS] + [self.intensity_grid]
        channels = [min(shapes[k][0], CHANNELS) for k in LEVELS] + [3]
        self.gaussians = nn.ModuleList(
            Gaussian(h * w, c, context, components)
            for (h, w), c, context in zip(self.grids, channels, contexts, strict=True)
        )

    def moments(self) -> list[Moments]:
        """Empty sums, one for each Gaussian."""
        return [Moments(g.mean.shape[0], g.mean.shape[2], g.context_mean.shape[1]) for g in self._gaussians()]

    def add(self, moments: Sequence[Moments], images: Tensor, expert: Sequence[Tensor]) -> None:
        """Take images, as in `forward`, into `moments`."""
        for sums, (vectors, context) in zip(moments, self._inputs(images, expert), strict=True):
            sums.add(vectors, context)

    @torch.no_grad()
    def fit(self, moments: Sequence[Moments]) -> None:
        """Take the Gaussians from `moments`; raises ConfigError as `Gaussian.fit`."""
        shrinkages = (*[SHRINKAGE] * len(LEVELS), INTENSITY_SHRINKAGE)
        for gaussian, sums, shrinkage in zip(self._gaussians(), moments, shrinkages, strict=True):
            gaussian.fit(sums, shrinkage)

    def forward(self, images: Tensor, expert: Sequence[Tensor]) -> list[Tensor]:
        """One (B, h, w) float32 map >= 0 for each of `DENSITIES`, each on a grid of its own.

        Args:
            images: (B, 3, H, W) float RGB in 0..255, at the input size.
            expert: the expert's (B, C_k, H_k, W_k) maps of them.
        """
        return self.maps(self.whitened(images, expert))

    def maps(self, whitened: Sequence[Tensor]) -> list[Tensor]:
        """What `forward` gives, from `whitened`."""
        parts = zip(self._gaussians(), whitened, self.grids, strict=True)
        return [gaussian.distances(given).reshape(-1, *grid) for gaussian, given, grid in parts]

    def whitened(self, images: Tensor, expert: Sequence[Tensor]) -> list[Tensor]:
        """(P, B, C) of each Gaussian, of images as in `forward`: see `Gaussian.whitened`."""
        inputs = self._inputs(images, expert)
        return [gaussian.whitened(*given) for gaussian, given in zip(self._gaussians(), inputs, strict=True)]

    def stacked(self, whitened: Sequence[Tensor]) -> Tensor:
        """The levels of `whitened`, each over its spread, as one (B, C, h, w) on the finest one's grid.

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

    def _inputs(self, images: Tensor, expert: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(P, B, C) vectors and (B, Q) context of each Gaussian."""
        context = whole_image(expert)
        levels = [expert[k] if c is None else expert[k][:, c] for k, c in zip(LEVELS, self.chosen, strict=True)]
        cells = intensities(images, self.intensity_grid)
        return [(position_vectors(level), context) for level in levels] + [
            (position_vectors(cells, pool=1), cells.flatten(1))
        ]

    def _gaussians(self) -> list[Gaussian]:
        return [g for g in self.gaussians if isinstance(g, Gaussian)]


def whole_image(expert: Sequence[Tensor]) -> Tensor:
    """(B, Q) float32 description of the whole image: the mean of the last of the expert's (B, C_k, H_k, W_k) maps."""
    return expert[-1].float().mean(dim=(2, 3))


def _choose(channels: int) -> list[int] | None:
    """The channels that are used of a level, always the same ones; None for all."""
    if channels <= CHANNELS:
        return None
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(0))
    chosen: list[int] = order[:CHANNELS].sort().values.tolist()
    return chosen
