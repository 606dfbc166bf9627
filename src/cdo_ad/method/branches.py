"""All branches of one category: what each sees of an image, standardised, weighted and summed.

- `disagreement`: where expert and apprentice disagree (the paper).
- `level 2`, `level 3`: where the expert's features at these levels are improbable at their position, given the image.
- `bank`: where the features of both levels are unlike those of any good image, at whatever position.
- `intensity`: where the image's own colours on a coarse grid are improbable at their position.
- `depth`: where heights and normals of the surface beside the image are improbable at their position.
- a defect head, where defects are labelled: what looks like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdo_ad.config import BranchName, CategorySpec
from cdo_ad.method.bank import Bank
from cdo_ad.method.defect_head import DefectHead
from cdo_ad.method.gaussian import ConditionalGaussian
from cdo_ad.method.preprocess import mean_matrix, to_grid
from cdo_ad.method.surface import FEATURES, RELIEF_CELLS, relief, surface_cells
from cdo_ad.region import unpack_region

__all__ = ["DEFECT_HEAD", "Branches", "Inputs", "Shape", "describe"]

Shape = tuple[int, int, int]
"""(C, H, W) of a level's features."""
DEFECT_HEAD = "defect head"
CONTEXT_CELLS = 4
"""The last level, averaged to this many cells a side, describes the whole image."""
INTENSITY_CELLS = 16
"""Cells of the grid of intensities along the image's longer side."""
CHANNELS = 128
"""Most channels of a level that a Gaussian uses, a fixed random choice: memory grows with their square."""


class Inputs(NamedTuple):
    """What the branches look at, of B images."""

    levels: list[Tensor]
    """(B, H_1, W_1) discrepancy of each level; none where no branch needs them."""
    vectors: dict[BranchName, Tensor]
    """(P, B, C) by branch."""
    context: Tensor
    """(B, Q) of the whole image."""
    cells: dict[BranchName, Tensor]
    """(B, q) by branch: values of all its coarse cells, the context of `intensity` and of `depth`."""

    def context_of(self, name: BranchName) -> Tensor:
        """(B, Q) what a branch's Gaussian is conditional on: its own cells, or else the whole image."""
        return self.cells.get(name, self.context)

    def some(self, at: Tensor, device: torch.device | None = None) -> Inputs:
        """Those of some of the images, on another device if one is given."""
        return Inputs(
            [level[at].to(device) for level in self.levels],
            {name: each[:, at].to(device) for name, each in self.vectors.items()},
            self.context[at].to(device),
            {name: each[at].to(device) for name, each in self.cells.items()},
        )

    def only(self, *names: BranchName) -> Inputs:
        """Without the vectors and cells of other branches."""
        own = [{name: each for name, each in of.items() if name in names} for of in (self.vectors, self.cells)]
        return self._replace(vectors=own[0], cells=own[1])


def describe(
    names: Sequence[BranchName],
    images: Tensor,
    expert: Sequence[Tensor],
    levels: Sequence[Tensor],
    surfaces: Tensor | None = None,
) -> Inputs:
    """What branches look at.

    Args:
        names: of the branches.
        images: (B, 3, H, W) float RGB in 0..255, at the input size.
        expert: the expert's (B, C_k, H_k, W_k) maps of them.
        levels: the discrepancies (B, H_1, W_1) of the levels.
        surfaces: (B, 2, H, W), see `cdo_ad.method.surface`; None where no branch looks at depth.
    """
    vectors: dict[BranchName, Tensor] = {}
    middle, last = _pooled(expert[1]), _pooled(expert[2])
    if "level 2" in names:
        vectors["level 2"] = _positions(_chosen(middle))
    if "level 3" in names:
        vectors["level 3"] = _positions(_chosen(last))
    if "bank" in names:
        size = (int(last.shape[-2]), int(last.shape[-1]))
        vectors["bank"] = _positions(torch.cat([F.adaptive_avg_pool2d(middle, size), last], dim=1))
    cells: dict[BranchName, Tensor] = {}
    if "intensity" in names:
        grid = intensities(images, intensity_grid((int(images.shape[-2]), int(images.shape[-1]))))
        vectors["intensity"], cells["intensity"] = _positions(grid), grid.flatten(1)
    if "depth" in names and surfaces is not None:
        vectors["depth"] = _positions(surface_cells(surfaces, (int(middle.shape[-2]), int(middle.shape[-1]))))
        cells["depth"] = relief(surfaces)
    return Inputs(list(levels), vectors, whole_image(expert), cells)


class Branches(nn.Module):
    """The branches of one category. The disagreement alone is the paper's form: the plain sum of its levels."""

    region: Tensor | None
    weight: Tensor
    offset: Tensor

    def __init__(self, shapes: Sequence[Shape], image_size: tuple[int, int], spec: CategorySpec) -> None:
        """Reserve the buffers; `cdo_ad.method.fit` fills them.

        Args:
            shapes: (C_k, H_k, W_k) of each of the expert's levels, finest first.
            image_size: (H, W) of the input.
            spec: of the category.
        """
        super().__init__()
        self.names = names = spec.branches
        self.plain = not spec.standardized
        self.grids = {name: _grid(name, shapes, image_size) for name in names}
        context = shapes[-1][0] * CONTEXT_CELLS**2
        self.densities = nn.ModuleDict()
        for name in names:
            height, width = self.grids[name]
            channels = _channels(name, shapes)
            if name == "bank":
                self.densities[_key(name)] = Bank(channels, spec.centres)
            elif name in ("intensity", "depth"):
                own = RELIEF_CELLS**2 if name == "depth" else channels * height * width
                self.densities[_key(name)] = ConditionalGaussian(
                    height * width, channels, own, spec.intensity_components
                )
            elif name != "disagreement":
                self.densities[_key(name)] = ConditionalGaussian(height * width, channels, context, spec.components)
        self.defect_head: DefectHead | None = None
        # (H, W) float, 1 where images are inspected; it is in the spec, so not among the weights
        self.register_buffer(
            "region", torch.from_numpy(unpack_region(spec.region)).float() if spec.region else None, persistent=False
        )
        if self.plain:
            return
        for name in names:  # what good images get that the branch has not seen
            self.register_buffer(f"mean_{_key(name)}", torch.zeros(self.grids[name]))
            self.register_buffer(f"deviation_{_key(name)}", torch.ones(self.grids[name]))
        # of each branch the weight over the scatter of its image score, and the weighted mean scores of all, together
        self.register_buffer("weight", torch.full((len(names),), 1 / len(names)))
        self.register_buffer("offset", torch.zeros(()))
        if spec.defect_head:
            self.add_defect_head()

    def inspected(self, grid: tuple[int, int]) -> Tensor:
        """(h, w) bool: cells of a grid that hold some of the region of interest; all without one."""
        if self.region is None:
            return torch.ones(grid, dtype=torch.bool)
        return F.adaptive_max_pool2d(self.region[None, None], grid)[0, 0] > 0

    def density(self, name: BranchName) -> ConditionalGaussian | Bank:
        """The fitted part of a branch."""
        found = self.densities[_key(name)]
        assert isinstance(found, ConditionalGaussian | Bank)
        return found

    def add_defect_head(self) -> DefectHead:
        """Reserve a branch for labelled defects, with weight 0; random weights from torch's global generator."""
        channels = sum(int(self.density(name).mean.shape[-1]) for name in self.head_inputs)
        self.defect_head = DefectHead(channels).to(self.weight.device)
        self.weight = torch.cat([self.weight[: len(self.names)], self.weight.new_zeros(1)])
        return self.defect_head

    def keep(self, names: Sequence[BranchName]) -> None:
        """Drop all other branches: they have no weight."""
        chosen = [k for k, name in enumerate(self.names) if name in names]
        for name in self.names:
            if name not in names:
                delattr(self, f"mean_{_key(name)}")
                delattr(self, f"deviation_{_key(name)}")
                if name != "disagreement":
                    del self.densities[_key(name)]
        self.weight = self.weight[chosen]
        self.names = tuple(self.names[k] for k in chosen)
        self.grids = {name: self.grids[name] for name in self.names}

    def raw(self, name: BranchName, inputs: Inputs) -> Tensor:
        """(B, h, w) distances >= 0 of a branch, on its own grid; the disagreement is the sum of its levels."""
        if name == "disagreement":
            return torch.stack(inputs.levels).sum(dim=0)
        density, vectors = self.density(name), inputs.vectors[name]
        if isinstance(density, Bank):
            flat: Tensor = density(vectors)
        else:
            flat = density(vectors, inputs.context_of(name))
        return flat.reshape(-1, *self.grids[name])

    def standardized(self, name: BranchName, raw: Tensor) -> Tensor:
        """(B, h, w) raw distances in standard deviations from what good images get at each position."""
        return (raw - self.get_buffer(f"mean_{_key(name)}")) / self.get_buffer(f"deviation_{_key(name)}")

    def set_statistics(self, name: BranchName, mean: Tensor, deviation: Tensor) -> None:
        """Set what good images get at each position; (h, w) each."""
        self.get_buffer(f"mean_{_key(name)}").copy_(mean)
        self.get_buffer(f"deviation_{_key(name)}").copy_(deviation)

    def maps(self, inputs: Inputs) -> dict[str, Tensor]:
        """The weighted maps, whose sum, enlarged, blurred and less `offset`, is the fused map: (B, h, w) by name."""
        if self.plain:
            return {f"disagreement {k + 1}": level for k, level in enumerate(inputs.levels)}
        found: dict[str, Tensor] = {
            name: self.weight[k] * self.standardized(name, self.raw(name, inputs)) for k, name in enumerate(self.names)
        }
        if self.defect_head is not None:
            found[DEFECT_HEAD] = self.weight[len(self.names)] * self.defect_head(self.head_vectors(inputs))
        return found

    def head_vectors(self, inputs: Inputs) -> Tensor:
        """(B, C, h, w) whitened features of the levels, on the finest one's grid: what a defect head looks at.

        The factor of a covariance is triangular: each channel is what the channels before it do not tell. So channels
        mean the same at every position, and a crack in a corner looks like one in the middle.
        """
        parts = []
        for name in self.head_inputs:
            gaussian = self.density(name)
            assert isinstance(gaussian, ConditionalGaussian)
            whitened = gaussian.whitened(inputs.vectors[name], inputs.context)
            grid = whitened.permute(1, 2, 0).reshape(-1, whitened.shape[2], *self.grids[name])
            parts.append(to_grid(grid, self.grids[self.head_inputs[0]]))
        return torch.cat(parts, dim=1)

    @property
    def head_inputs(self) -> list[BranchName]:
        """The branches whose whitened vectors a defect head looks at, the finest grid first."""
        levels: tuple[BranchName, ...] = ("level 2", "level 3")
        return [name for name in levels if name in self.names]


def intensities(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean log colour of each cell of a grid: a factor of exposure becomes a shift.

    Args:
        images: (B, 3, H, W) float RGB in 0..255.
        grid: (h, w) cells.

    Returns:
        (B, 3, h, w) float32.
    """
    values = (images.float() + 8).log()  # 8 of 255: the noise of dark pixels does not matter
    rows, columns = (mean_matrix(t, int(s)).to(values) for t, s in zip(grid, values.shape[-2:], strict=True))
    return rows @ values @ columns.T


def intensity_grid(image_size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) cells of the grid of intensities for images of that size."""
    height, width = (max(1, round(INTENSITY_CELLS * side / max(image_size))) for side in image_size)
    return height, width


def whole_image(expert: Sequence[Tensor]) -> Tensor:
    """(B, Q) description of the whole image: the last of the expert's maps, averaged to a few cells."""
    return F.adaptive_avg_pool2d(expert[-1].float(), CONTEXT_CELLS).flatten(1)


def _pooled(features: Tensor) -> Tensor:
    """(B, C, h, w) averaged over 3 x 3 neighbours: it steadies the covariance and enlarges what a position sees."""
    return F.avg_pool2d(features.float(), 3, stride=1, padding=1, count_include_pad=False)


def _positions(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (h * w, B, C)."""
    return maps.flatten(2).permute(2, 0, 1)


def _chosen(maps: Tensor) -> Tensor:
    """The channels that a Gaussian uses of a level, always the same ones."""
    channels = int(maps.shape[1])
    if channels <= CHANNELS:
        return maps
    return maps[:, _choice(channels).to(maps.device)]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _choice(channels: int) -> Tensor:
    """(CHANNELS,) int64, ascending; kept, so that a traced model holds it as a constant."""
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(0))
    return order[:CHANNELS].sort().values


def _grid(name: BranchName, shapes: Sequence[Shape], image_size: tuple[int, int]) -> tuple[int, int]:
    if name == "intensity":
        return intensity_grid(image_size)
    _, height, width = shapes[{"disagreement": 0, "level 2": 1, "depth": 1, "level 3": 2, "bank": 2}[name]]
    return height, width


def _channels(name: BranchName, shapes: Sequence[Shape]) -> int:
    if name == "bank":
        return shapes[1][0] + shapes[2][0]
    if name == "intensity":
        return 3
    if name == "depth":
        return FEATURES
    return min(shapes[1 if name == "level 2" else 2][0], CHANNELS)


def _key(name: str) -> str:
    return name.replace(" ", "_")
