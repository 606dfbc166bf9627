"""What the branches see: of good images, of the same with synthetic anomalies drawn in, of labelled defects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdo_ad.config import AnomalyKind
from cdo_ad.method.anomalies import KINDS, SURFACE_KINDS, SurfaceKind, add_anomaly, add_surface_anomaly
from cdo_ad.method.inputs import Inputs
from cdo_ad.method.model import AnomalyModel
from cdo_ad.method.white_noise import image_seed

__all__ = ["BATCH", "CONTRAST", "Anomalous", "ImageSource", "Progress", "Seen", "joined"]

BATCH = 16
JUDGED = 280
"""Synthetic anomalies that weights are learned on, each kind as often as any other."""
CONTRAST = (0.35, 1.0)
"""Of these anomalies, uniform: at full contrast several branches see nearly all of them, and weights say little."""

Progress = Callable[[int, int], None]


class ImageSource(Protocol):
    """Good images: item i is a (3, H, W) float tensor in 0..255 at the input size, as `AnomalyModel.prepare` gives; for
    a model that looks at depth (5, H, W).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class Anomalous(NamedTuple):
    """M images with anomalies."""

    inputs: Inputs
    kinds: npt.NDArray[np.int64]
    """(M,) the kind of each; a labelled defect is a kind of its own."""
    sources: Tensor
    """(M,) int64 the good image that each lies in. A labelled defect lies in none: it is judged like the first."""


class Seen:
    """What the branches of a model see of its images."""

    def __init__(
        self, model: AnomalyModel, images: ImageSource, seed: int, progress: Progress, region: Tensor | None = None
    ) -> None:
        """Nothing is looked at yet.

        Args:
            model: its features.
            images: the good images of a category.
            seed: of the synthetic anomalies.
            progress: told how many images were looked at, and how many it will be in all.
            region: (H, W), 0 where anomalies do not count; None for the whole image.
        """
        self.model, self.images, self.seed, self.region = model, images, seed, region
        self.kinds: tuple[AnomalyKind | SurfaceKind, ...] = (*KINDS, *(SURFACE_KINDS if model.spec.depth else ()))
        self.report, self.done, self.total = progress, 0, 2 * len(images) + JUDGED * len(self.kinds) // len(KINDS)

    def good(self) -> Iterator[Inputs]:
        """All good images, batch by batch."""
        for start in range(0, len(self.images), BATCH):
            places = range(start, min(start + BATCH, len(self.images)))
            planes = torch.stack([self.images[i] for i in places])
            yield self.inputs(planes)
            self._advance(len(places))

    def inputs(self, planes: Tensor) -> Inputs:
        """What the branches look at of (B, 3 or 5, H, W) images as of an `ImageSource`, on the CPU."""
        seen = self.model.inputs(self.model.features(planes.to(self.model.mean.device)))
        vectors, cells = ({name: each.cpu() for name, each in of.items()} for of in (seen.vectors, seen.cells))
        return Inputs([m.cpu() for m in seen.levels], vectors, seen.context.cpu(), cells)

    def anomalous(self, defects: tuple[Tensor, Tensor] | None) -> Anomalous:
        """Good images with synthetic anomalies, and labelled defects: images (K, 3 or 5, H, W) and masks (K, H, W).

        An anomaly is drawn into the image or into the surface, so that each kind tells which branch sees what.
        """
        found: list[Inputs] = []
        kinds: list[int] = []
        sources: list[int] = []
        each = max(1, JUDGED // len(KINDS))
        for number, kind in enumerate(self.kinds):
            order = np.random.PCG64(image_seed(self.seed, 2**34, number)).random_raw(len(self.images)).argsort()
            places = np.resize(order, min(each, 4 * len(self.images))).tolist()
            for start in range(0, len(places), BATCH):
                own = places[start : start + BATCH]
                planes, drawn = self._drawn(kind, number, own, start)
                if bool(drawn.any()):
                    found.append(self.inputs(planes[drawn]))
                    sources += [place for place, there in zip(own, drawn.tolist(), strict=True) if there]
                    kinds += [number] * int(drawn.sum())
                self._advance(len(own))
        for k, image in enumerate([] if defects is None else torch.split(defects[0], 1)):
            found.append(self.inputs(image))
            sources.append(0)
            kinds.append(len(self.kinds) + k)
        return Anomalous(joined(found), np.array(kinds, dtype=np.int64), torch.tensor(sources))

    def examples(self, places: Sequence[int], each: int) -> tuple[Tensor, Tensor]:
        """Some good images with synthetic anomalies to learn from, and where these are.

        Args:
            places: of the images that they are drawn into.
            each: number of each kind.

        Returns:
            (K, 3 or 5, H, W) float and (K, H, W) bool; others than those of `anomalous`. Surfaces are as they were: a
            defect head, which learns from these, looks at images alone.
        """
        images, masks = [], []
        for number, kind in enumerate(KINDS):
            order = np.random.PCG64(image_seed(self.seed, 2**35, number)).random_raw(len(places)).argsort()
            chosen = [places[i] for i in np.resize(order, each).tolist()]
            changed, inside = self._changed(kind, len(KINDS) + number, chosen, 0)
            there = inside.flatten(1).any(dim=1)
            images.append(changed[there])
            masks.append(inside[there])
        return torch.cat(images), torch.cat(masks)

    def _drawn(
        self, kind: AnomalyKind | SurfaceKind, number: int, places: Sequence[int], turn: int
    ) -> tuple[Tensor, Tensor]:
        """Images with an anomaly of a kind, and (B,) whether one was drawn."""
        changed, inside = self._changed(kind, number, places, turn)
        return changed, inside.flatten(1).any(dim=1)

    def _changed(
        self, kind: AnomalyKind | SurfaceKind, number: int, places: Sequence[int], turn: int
    ) -> tuple[Tensor, Tensor]:
        """Images with an anomaly of a kind, each with a contrast of its own, and (B, H, W) where it is."""
        planes = torch.stack([self.images[i] for i in places])
        seeds = [image_seed(self.seed, number, 2**20 * (turn + i) + place) for i, place in enumerate(places)]
        changed, masks = _with_anomaly(planes, kind, seeds)
        random = torch.Generator().manual_seed(seeds[0])
        low, high = CONTRAST
        contrast = low + (high - low) * torch.rand(len(planes), 1, 1, 1, generator=random)
        inside = masks if self.region is None else masks & (self.region.to(masks.device) > 0)
        return torch.lerp(planes, changed, contrast.to(planes)), inside

    def _advance(self, count: int) -> None:
        self.done = min(self.done + count, self.total)
        self.report(self.done, self.total)


def _with_anomaly(planes: Tensor, kind: AnomalyKind | SurfaceKind, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One anomaly in the colours or in the surface of each image."""
    if kind == "dent" or kind == "rough":
        surfaces, masks = add_surface_anomaly(planes[:, 3:], kind, seeds)
        return torch.cat([planes[:, :3], surfaces], dim=1), masks
    if planes.shape[1] == 3:
        return add_anomaly(planes, kind, seeds)
    images, masks = add_anomaly(planes[:, :3], kind, seeds)
    return torch.cat([images, planes[:, 3:]], dim=1), masks


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Several batches as one."""
    return Inputs(
        [torch.cat(levels) for levels in zip(*(part.levels for part in parts), strict=True)],
        {name: torch.cat([part.vectors[name] for part in parts], dim=1) for name in parts[0].vectors},
        torch.cat([part.context for part in parts]),
        {name: torch.cat([part.cells[name] for part in parts]) for name in parts[0].cells},
    )
