"""After the apprentice's training: densities, the scale and weight of each branch, and left-out scores.

Every good image teaches and calibrates. Images lie in folds; for each fold the densities are fitted without it (its
moments are subtracted, which is exact) and judge it. These left-out maps give the scale of each branch, with synthetic
anomalies drawn into the same images the weights, and fused the scores from which thresholds follow. The final densities
are fitted on all images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdo_ad.config import AnomalyKind
from cdo_ad.errors import ConfigError
from cdo_ad.method.anomalies import KINDS, add_anomaly
from cdo_ad.method.branches import FUSED, Branches
from cdo_ad.method.defect_head import STEPS, fit_defect_head
from cdo_ad.method.density import Density
from cdo_ad.method.fusion import learned_weights, separation
from cdo_ad.method.gaussian import Moments
from cdo_ad.method.model import AnomalyModel, Features
from cdo_ad.method.white_noise import image_seed

__all__ = ["FitSettings", "ImageSource", "LeftOut", "fit_branches"]

BATCH = 16
CONTRAST = 0.5
"""Of the anomalies that weights are learned on: at full contrast several branches see nearly all of them, and the
weights say little."""
JUDGED = 64
"""Images, evenly spread, that anomalies are drawn into."""
SMALLEST = 32
"""With fewer good images weights stay equal, and there is no defect head."""


class ImageSource(Protocol):
    """Good images: item i is a (3, H, W) float tensor in 0..255 at the input size, as `AnomalyModel.prepare` gives."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class FitSettings:
    """How branches are fitted; see the settings of these names in `cdo_ad.config.Config`."""

    fusion_weights: Literal["learned", "equal"] | tuple[float, ...] = "learned"
    defect_head_weight: float = 0.0
    seed: int = 0


class LeftOut(NamedTuple):
    """Scores of N good images, each by branches that have not seen it."""

    scores: npt.NDArray[np.float64]
    """(N,) image scores."""
    maxima: npt.NDArray[np.float64]
    """(N,) the largest value of each anomaly map."""


Progress = Callable[[int, int], None]


def fit_branches(
    model: AnomalyModel,
    number: int,
    images: ImageSource,
    folds: npt.NDArray[np.int64],
    settings: FitSettings,
    defects: tuple[Tensor, Tensor] | None = None,
    progress: Progress = lambda done, total: None,
) -> LeftOut:
    """Fit the branches of one category; leaves the model in eval mode.

    Args:
        model: its apprentice is trained.
        number: of the category.
        images: its good images.
        folds: (N,) the fold of each image; near copies share one.
        settings: weights and seed.
        defects: labelled defects, (K, 3, H, W) float in 0..255, and where they are, (K, H, W) bool: where weights are
            learned, each counts as much as a kind of synthetic anomalies; with `defect_head_weight` they also teach a
            branch of their own.
        progress: told how many images were looked at, and how many it will be in all.

    Returns:
        The left-out scores, in the order of the images.

    Raises:
        ConfigError: fewer than two images or folds, or images without any variation.
    """
    return _Fit(model, number, images, folds, settings, defects, progress).run()


class _Fit:
    """One call of `fit_branches`."""

    def __init__(
        self,
        model: AnomalyModel,
        number: int,
        images: ImageSource,
        folds: npt.NDArray[np.int64],
        settings: FitSettings,
        defects: tuple[Tensor, Tensor] | None,
        progress: Progress,
    ) -> None:
        self.model, self.images, self.settings, self.defects = model, images, settings, defects
        self.branches: Branches = model.branches(number)
        self.members = [np.flatnonzero(folds == fold).tolist() for fold in np.unique(folds)]
        if len(images) < 2 or len(self.members) < 2:
            raise ConfigError(f"{len(images)} different good image(s) cannot calibrate a detector: give 2 at the least")
        self.device = model.mean.device
        learn = settings.fusion_weights == "learned" and len(images) >= SMALLEST
        self.judged = (
            set(np.linspace(0, len(images) - 1, min(JUDGED, len(images))).astype(int).tolist()) if learn else set()
        )
        self.head = defects is not None and settings.defect_head_weight > 0 and len(images) >= SMALLEST
        self.report = progress
        self.total = 2 * len(images) + len(KINDS) * len(self.judged) + (STEPS if self.head else 0)
        self.done = 0

    @torch.no_grad()
    def run(self) -> LeftOut:
        self.model.eval()
        if self.branches.density is None:
            return self._scores([self._see(planes) for planes in self._batches(range(len(self.images)))])
        moments = self._moments(self.branches.density)
        if self.head:
            self._fit_head(self.branches.density, moments)
        seen, separations = self._left_out(self.branches.density, moments)
        self._weigh(seen, separations)
        self.branches.density.fit(_total(moments))
        return self._scores(seen)

    def _moments(self, density: Density) -> list[list[Moments]]:
        """The sums of each fold."""
        sums = []
        for members in self.members:
            own = density.moments()
            for batch in self._batches(members):
                density.add(own, batch, self._features(batch).expert)
            sums.append(own)
        return sums

    def _left_out(self, density: Density, moments: list[list[Moments]]) -> tuple[list[list[Tensor]], list[Tensor]]:
        """What each branch sees of each image that it has not seen, and how well it tells anomalies from them.

        Returns:
            For each image, in order, a (1, h, w) map of each branch; for each kind of anomalies and each labelled
            defect the branches' separation (V,).
        """
        total = _total(moments)
        seen: list[list[Tensor]] = [[] for _ in range(len(self.images))]
        changed: dict[AnomalyKind, list[Tensor]] = {kind: [] for kind in KINDS}
        for own, members in zip(moments, self.members, strict=True):
            density.fit([a - b for a, b in zip(total, own, strict=True)])
            for planes, places in self._with_places(members):
                maps = self._see(planes)
                for i, place in enumerate(places):
                    seen[place] = [m[i : i + 1].cpu() for m in maps]
                self._advance(len(places))
            for kind in KINDS if self.judged else ():
                changed[kind] += self._anomalous(kind, [i for i in members if i in self.judged])
        if not self.judged:
            return seen, []
        good = torch.cat([self._alone(seen[i]) for i in sorted(self.judged)], dim=1)
        separations = [separation(good, torch.cat(scores, dim=1)) for scores in changed.values() if scores]
        return seen, [*separations, *self._of_defects(good, separations)]

    def _of_defects(self, good: Tensor, separations: Sequence[Tensor]) -> list[Tensor]:
        """The separation of each labelled defect; the apprentice knows it, so of the disagreement that of others."""
        if self.defects is None or not separations:
            return []
        disagreement = torch.stack(list(separations)).mean(dim=0)[0]
        found = []
        for image in torch.split(self.defects[0], 1):
            row = separation(good, self._alone(self._see(image.to(self.device))))
            row[0] = disagreement
            found.append(row)
        return found

    def _weigh(self, seen: list[list[Tensor]], separations: Sequence[Tensor]) -> None:
        """Set the scale of each branch, and its weight."""
        scale = torch.cat([self._alone(maps) for maps in seen], dim=1).mean(dim=1)
        self.branches.scale.copy_(scale.clamp(min=torch.finfo(torch.float32).tiny))
        chosen = self.settings.fusion_weights
        if isinstance(chosen, tuple):
            weights = torch.tensor(chosen)
        elif separations:
            weights = learned_weights(torch.stack([row[: len(FUSED)] for row in separations]))
        else:
            weights = torch.full((len(FUSED),), 1 / len(FUSED))
        if self.branches.defect_head is not None:
            share = self.settings.defect_head_weight
            weights = torch.cat([(1 - share) * weights, weights.new_tensor([share])])
        self.branches.weight.copy_(weights)

    def _scores(self, seen: list[list[Tensor]]) -> LeftOut:
        """Scores of the fused left-out maps."""
        found: list[tuple[float, float]] = []
        for maps in seen:
            fused = self.branches.fuse([m.to(self.device) for m in maps])
            anomaly, score = self.model.finish(fused)
            found += zip(score.tolist(), anomaly.flatten(1).amax(dim=1).tolist(), strict=True)
        scores, maxima = zip(*found, strict=True)
        return LeftOut(np.array(scores), np.array(maxima))

    def _fit_head(self, density: Density, moments: list[list[Moments]]) -> None:
        """Train a defect head against good images that the density has not seen: those of the first fold."""
        assert self.defects is not None
        density.fit([a - b for a, b in zip(_total(moments), moments[0], strict=True)])
        with torch.random.fork_rng():  # its start follows from the seed alone
            torch.manual_seed(self.settings.seed)
            head = self.branches.add_defect_head()
        good = torch.cat([self._vectors(density, batch) for batch in self._batches(self.members[0])])
        bad = torch.cat([self._vectors(density, part.to(self.device)) for part in torch.split(self.defects[0], BATCH)])
        with torch.enable_grad():
            fit_defect_head(
                head, good, bad, self.defects[1].to(self.device), self.settings.seed, lambda _: self._advance(1)
            )

    def _vectors(self, density: Density, planes: Tensor) -> Tensor:
        return density.stacked(density.whitened(planes, self._features(planes).expert))

    def _anomalous(self, kind: AnomalyKind, places: Sequence[int]) -> list[Tensor]:
        """(V, B) scores of branches for images with anomalies of a kind, at half of their contrast."""
        found = []
        for planes, at in self._with_places(places):
            index = KINDS.index(kind)
            changed, masks = add_anomaly(planes, kind, [image_seed(self.settings.seed, index, i) for i in at])
            drawn = masks.flatten(1).any(dim=1)
            if bool(drawn.any()):
                found.append(self._alone(self._see(torch.lerp(planes[drawn], changed[drawn], CONTRAST))))
            self._advance(len(at))
        return found

    def _alone(self, seen: Sequence[Tensor]) -> Tensor:
        """(V, B) image scores by each of V unscaled maps alone."""
        return torch.stack([self.model.finish(m.to(self.device))[1] for m in seen])

    def _features(self, planes: Tensor) -> Features:
        return self.model.features(planes)

    def _see(self, planes: Tensor) -> list[Tensor]:
        return self.branches.see(*self._features(planes))

    def _batches(self, places: Sequence[int]) -> Iterator[Tensor]:
        for planes, at in self._with_places(places):
            yield planes
            self._advance(len(at))

    def _with_places(self, places: Sequence[int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        for start in range(0, len(places), BATCH):
            at = places[start : start + BATCH]
            yield torch.stack([self.images[i] for i in at]).to(self.device), at

    def _advance(self, count: int) -> None:
        self.done = min(self.done + count, self.total)
        self.report(self.done, self.total)


def _total(moments: Sequence[Sequence[Moments]]) -> list[Moments]:
    total = list(moments[0])
    for sums in moments[1:]:
        total = [a + b for a, b in zip(total, sums, strict=True)]
    return total
