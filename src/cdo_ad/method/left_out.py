"""Fit the densities of a category's branches on some of its good images; judge images by those that left them out."""

from __future__ import annotations

import torch
from torch import Tensor

from cdo_ad.config import DEPTH, BranchName
from cdo_ad.method.bank import Bank
from cdo_ad.method.branches import Branches
from cdo_ad.method.inputs import Inputs

__all__ = ["Densities", "raised"]

DEPTH_FLOOR = 4e-3
"""Least variance that the shrinkage of a channel of depth is a share of; units as in `cdo_ad.method.surface`."""


class Densities:
    """Of the branches of one category, on a device. Each fit takes the place of the one before."""

    def __init__(self, branches: Branches, device: torch.device) -> None:
        """The branches, whose buffers lie on `device`."""
        self.branches, self.device = branches, device

    def fit(self, name: BranchName, good: Inputs, chosen: Tensor | None = None) -> None:
        """Fit a branch's density on some of the good images, or all."""
        if name == "disagreement":
            return
        at = torch.arange(len(good.context)) if chosen is None else chosen
        device = self.device
        density, vectors = self.branches.density(name), good.vectors[name][:, at].to(device)
        floor = DEPTH_FLOOR if name in DEPTH else None
        if isinstance(density, Bank):
            inside = self.branches.inspected(self.branches.grids[name]).flatten().to(vectors.device)
            density.fit(vectors[inside], floor)
        else:
            density.fit(vectors, good.context_of(name)[at].to(device), floor=floor)

    def raw(self, name: BranchName, seen: Inputs, chosen: Tensor) -> Tensor:
        """(M, h, w) distances of a branch for some images."""
        return self.branches.raw(name, seen.only(name).some(chosen, self.device)).cpu()

    def left_out(self, name: BranchName, good: Inputs, folds: Tensor, *judged: tuple[Inputs, Tensor]) -> list[Tensor]:
        """(M, h, w) distances of images, each by a density that was fitted without one fold of the good images.

        Args:
            name: of the branch.
            good: what the densities are fitted on.
            folds: (N,) of the good images.
            judged: images to judge and, (M,), the fold whose density judges each; may be given several times, as each
                density is fitted once for all.
        """
        found = [torch.empty(len(own), *self.branches.grids[name]) for _, own in judged]
        for fold in range(int(folds.max()) + 1):
            self.fit(name, good, torch.nonzero(folds != fold).flatten())
            for maps, (seen, own) in zip(found, judged, strict=True):
                at = torch.nonzero(own == fold).flatten()
                if len(at):
                    maps[at] = self.raw(name, seen, at)
        return found


def raised(maps: Tensor, enlarged: Tensor, trained: Tensor) -> Tensor:
    """Maps of images that the apprentice or the head learned from, times how much too small they are on the median."""
    peaks = enlarged.flatten(1).amax(dim=1)
    ratio = max(1.0, float(peaks[~trained].median() / peaks[trained].median()))
    return torch.where(trained[:, None, None], maps * ratio, maps)
