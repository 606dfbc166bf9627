"""All branches of one category: what each sees of an image, standardised, weighted and summed.

- `disagreement`: where expert and apprentice disagree (the paper).
- `level 2`, `level 3`: where the expert's features at these levels are improbable at their position, given the image.
- `bank`: where the features of both levels are unlike those of any good image, at whatever position.
- `intensity`: where the image's own colours on a coarse grid are improbable at their position.
- `depth`: where heights and normals of the surface beside the image are improbable at their position.
- `depth bank`: where height, slope and curvature are unlike those of any good surface, at whatever position and angle.
- a defect head, where defects are labelled: what looks like them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdo_ad.config import BranchName
from cdo_ad.method.bank import Bank
from cdo_ad.method.defect_head import DefectHead
from cdo_ad.method.fusion import image_baselines
from cdo_ad.method.gaussian import ConditionalGaussian
from cdo_ad.method.inputs import CHANNELS, CONTEXT_CELLS, Inputs, intensity_grid
from cdo_ad.method.preprocess import to_grid
from cdo_ad.method.surface import FEATURES, RELIEF_CELLS, SHAPE_FEATURES
from cdo_ad.region import unpack_region
from cdo_ad.spec import CategorySpec

__all__ = ["DEFECT_HEAD", "Branches", "Shape"]

Shape = tuple[int, int, int]
"""(C, H, W) of a level's features."""
DEFECT_HEAD = "defect head"


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
        self.baseline = spec.baseline and not self.plain
        self.grids = {name: _grid(name, shapes, image_size) for name in names}
        context = shapes[-1][0] * CONTEXT_CELLS**2
        self.densities = nn.ModuleDict()
        for name in names:
            height, width = self.grids[name]
            channels = _channels(name, shapes)
            if name in ("bank", "depth bank"):
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
        # numbers of the cells in it, by grid: ready, so that a traced model holds them as constants
        self.cells = {grid: self.inspected(grid).flatten().nonzero()[:, 0] for grid in self.grids.values()}
        if self.plain:
            return
        for name in names:  # what good images get that the branch has not seen
            self.register_buffer(f"mean_{_key(name)}", torch.zeros(self.grids[name]))
            self.register_buffer(f"deviation_{_key(name)}", torch.ones(self.grids[name]))
            if self.baseline:  # slope, lowest and highest, see `cdo_ad.method.fusion.fit_baseline`
                self.register_buffer(f"baseline_{_key(name)}", torch.zeros(3))
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
                if self.baseline:
                    delattr(self, f"baseline_{_key(name)}")
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
        """(B, h, w) raw distances in standard deviations from what good images get at each position.

        Less what lies in the image as a whole, where that was fitted.
        """
        found = (raw - self.get_buffer(f"mean_{_key(name)}")) / self.get_buffer(f"deviation_{_key(name)}")
        if not self.baseline:
            return found
        slope, lowest, highest = self.get_buffer(f"baseline_{_key(name)}")
        return self.less_baseline(found, slope, lowest, highest)

    def less_baseline(self, maps: Tensor, slope: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """(B, h, w) standardised maps less `slope` times each image's baseline between `lowest` and `highest`."""
        return maps - slope * image_baselines(self.flat(maps)).clamp(lowest, highest)[:, None, None]

    def flat(self, maps: Tensor) -> Tensor:
        """(B, h, w) on a branch's grid to (B, P), the cells in the region of interest."""
        flat = maps.flatten(1)
        if self.region is None:
            return flat
        return flat[:, self.cells[int(maps.shape[1]), int(maps.shape[2])].to(maps.device)]

    def set_statistics(self, name: BranchName, mean: Tensor, deviation: Tensor) -> None:
        """Set what good images get at each position; (h, w) each."""
        self.get_buffer(f"mean_{_key(name)}").copy_(mean)
        self.get_buffer(f"deviation_{_key(name)}").copy_(deviation)

    def set_baseline(self, name: BranchName, *fitted: Tensor) -> None:
        """Set what is taken off for the image as a whole: slope, lowest and highest, scalars."""
        self.get_buffer(f"baseline_{_key(name)}").copy_(torch.stack(fitted))

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


def _grid(name: BranchName, shapes: Sequence[Shape], image_size: tuple[int, int]) -> tuple[int, int]:
    if name == "intensity":
        return intensity_grid(image_size)
    _, height, width = shapes[
        {"disagreement": 0, "level 2": 1, "depth": 1, "depth bank": 1, "level 3": 2, "bank": 2}[name]
    ]
    return height, width


def _channels(name: BranchName, shapes: Sequence[Shape]) -> int:
    if name == "bank":
        return shapes[1][0] + shapes[2][0]
    if name == "intensity":
        return 3
    if name == "depth":
        return FEATURES
    if name == "depth bank":
        return SHAPE_FEATURES
    return min(shapes[1 if name == "level 2" else 2][0], CHANNELS)


def _key(name: str) -> str:
    return name.replace(" ", "_")
