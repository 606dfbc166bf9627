"""Fit the branches of a category so that every good image teaches and calibrates.

Images lie in folds of whole units (parts, or images). For each fold all densities are fitted without it and judge it,
and copies of it with synthetic anomalies drawn in. From these left-out maps follow what a good image gets at each
position, the weight of each branch, and, fused, the scores that thresholds are made of. The final densities are
fitted on all images.

An apprentice cannot be trained for each fold. It learns from most images; the others tell how much too small its
disagreement is where it has trained, and its maps are raised by that ratio. That is measured, not proven; see
docs/calibration.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdo_ad.config import BranchName
from cdo_ad.errors import ConfigError
from cdo_ad.method.branches import Branches
from cdo_ad.method.defect_head import fit_defect_head
from cdo_ad.method.discrepancy import image_score
from cdo_ad.method.folds import fold_count, make_folds
from cdo_ad.method.fusion import fit_baseline, learned_weights, position_statistics
from cdo_ad.method.inputs import Inputs
from cdo_ad.method.left_out import Densities, raised
from cdo_ad.method.model import AnomalyModel
from cdo_ad.method.seen import BATCH, ImageSource, Progress, Seen, joined

__all__ = ["FitSettings", "LeftOut", "fit_branches"]

FOLDS_FOR_WEIGHTS = 10
BASE = "level 3"
"""The branch that the map begins with."""
FEW, STEADY = 64, ("level 2", "level 3", "bank")
"""With fewer good images the map begins with an equal say of these: each alone is poorly estimated."""
NOWHERE = -1e4
"""In standard deviations: what a map is outside the region of interest."""
SMALLEST = 8
"""With fewer good images weights stay equal."""
SMALLEST_FOR_HEAD, SMALLEST_FOR_EXAMPLES = 32, 64
"""With fewer good images there is no defect head, which learns against a quarter of them: the first where defects are
labelled, the second where it learns synthetic anomalies alone."""

IntArray = npt.NDArray[np.int64]
Maps = dict[BranchName, Tensor]
"""(N, h, w) by branch, each on its own grid."""


@dataclass(frozen=True)
class FitSettings:
    """How branches are fitted; see the settings of these names in `cdo_ad.config.Config`."""

    fusion_weights: Literal["learned", "equal"] | tuple[float, ...] = "learned"
    defect_head_weight: float = 0.0
    head_examples: int = 0
    baseline_share: float = 0.0
    seed: int = 0


class LeftOut(NamedTuple):
    """Scores of N good images, each by branches that have not seen it."""

    scores: npt.NDArray[np.float64]
    """(N,) image scores."""
    maxima: npt.NDArray[np.float64]
    """(N,) the largest value of each anomaly map."""


def fit_branches(
    model: AnomalyModel,
    number: int,
    images: ImageSource,
    units: IntArray,
    settings: FitSettings,
    *,
    trained: npt.NDArray[np.bool_] | None = None,
    defects: tuple[Tensor, Tensor] | None = None,
    progress: Progress = lambda done, total: None,
) -> LeftOut:
    """Fit the branches of one category; leaves the model in eval mode.

    Args:
        model: its apprentice, if it has one, is trained.
        number: of the category.
        images: its good images.
        units: (N,) what counts once: near copies of one part share a number.
        settings: weights and seed.
        trained: (N,) True for the images that the apprentice learned from; None for all.
        defects: labelled defects, (K, 3, H, W) float in 0..255, and where they are, (K, H, W) bool: where weights are
            learned, each counts as much as a kind of synthetic anomalies; with `defect_head_weight` they also teach a
            branch of their own.
        progress: told how many images were looked at, and how many it will be in all.

    Returns:
        The left-out scores, in the order of the images.

    Raises:
        ConfigError: without one part fewer than two images are left, or images have no variation.
    """
    model.eval()
    fit = _Fit(model, model.branches(number), images, settings, progress)
    with torch.no_grad():
        if fit.branches.plain:
            return fit.plain()
        parts = np.unique(units, return_counts=True)[1]
        if len(images) - parts.max() < 2:
            raise ConfigError(
                f"good images of {len(parts)} part(s) cannot calibrate a detector: each is judged by those of the "
                "other parts, which must be two images at least; add good images"
            )
        return fit.run(units, trained, defects)


class _Fit:
    """One call of `fit_branches`."""

    def __init__(
        self, model: AnomalyModel, branches: Branches, images: ImageSource, settings: FitSettings, progress: Progress
    ) -> None:
        self.model, self.branches, self.images, self.settings = model, branches, images, settings
        self.seen = Seen(model, images, settings.seed, progress, branches.region)
        self.densities = Densities(branches, model.mean.device)

    def plain(self) -> LeftOut:
        """The paper's form has nothing to fit, and learned from these images: thresholds come from held-out ones."""
        maps = torch.cat(
            [self.model.finish(self.branches, list(self.branches.maps(seen).values())) for seen in self.seen.good()]
        )
        return self._scores(maps)

    def run(
        self, units: IntArray, trained: npt.NDArray[np.bool_] | None, defects: tuple[Tensor, Tensor] | None
    ) -> LeftOut:
        good = joined(list(self.seen.good()))
        weights = self._weights(good, units, defects)
        self.branches.keep([name for name, weight in weights.items() if weight > 0])
        folds = torch.from_numpy(make_folds(units, fold_count(len(units)), self.settings.seed))
        maps = {name: self.densities.left_out(name, good, folds, (good, folds))[0] for name in self.branches.names}
        if "disagreement" in maps and trained is not None and not trained.all():
            own = maps["disagreement"]
            maps["disagreement"] = raised(own, self.model.enlarge(own), torch.from_numpy(trained))
        standard = self._standardized(maps, folds)
        self._set_units(standard, torch.tensor([weights[name] for name in self.branches.names]))
        heads = None
        if self._has_head(defects is not None):
            heads = self._add_head(good, folds, defects)
        scores = self._fused(standard, heads)
        for name in self.branches.names:
            self.densities.fit(name, good)
            mean, deviation = position_statistics(maps[name])
            self.branches.set_statistics(name, mean, deviation)
            if self.branches.baseline:
                self.branches.set_baseline(name, *self._baseline((maps[name] - mean) / deviation))
        return scores

    def _has_head(self, labelled: bool) -> bool:
        least = SMALLEST_FOR_HEAD if labelled else SMALLEST_FOR_EXAMPLES
        wanted = self.settings.defect_head_weight > 0 and len(self.images) >= least
        return wanted and (labelled or self.settings.head_examples > 0) and bool(self.branches.head_inputs)

    def _weights(self, good: Inputs, units: IntArray, defects: tuple[Tensor, Tensor] | None) -> dict[BranchName, float]:
        """The weight of each branch, as the settings say."""
        names, chosen = self.branches.names, self.settings.fusion_weights
        if isinstance(chosen, tuple):
            return dict(zip(names, chosen, strict=True))
        if chosen == "equal" or len(names) == 1 or len(self.images) < SMALLEST:
            return dict.fromkeys(names, 1 / len(names))
        folds = torch.from_numpy(make_folds(units, FOLDS_FOR_WEIGHTS, self.settings.seed))
        changed = self.seen.anomalous(defects)
        other_folds = folds[changed.sources]
        all_good, all_bad = [], []
        for name in names:
            maps, bad = self.densities.left_out(name, good, folds, (good, folds), (changed.inputs, other_folds))
            own, other = self._standardized({name: maps}, folds)[0], self._in_units(bad, maps, folds, other_folds)
            own, other = self._coarse(own), self._coarse(other)
            peaks = own.flatten(1).amax(dim=1)
            middle, scatter = peaks.mean(), peaks.std().clamp(min=1e-6)
            all_good.append((own - middle) / scatter)
            all_bad.append((other - middle) / scatter)
        found = learned_weights(all_good, all_bad, changed.kinds, self._start())
        return dict(zip(names, found.tolist(), strict=True))

    def _start(self) -> Tensor:
        """The weights to begin with: the base branch alone, or where images are few, those that are steady then."""
        names = self.branches.names
        begin = [name for name in (STEADY if len(self.images) < FEW else (BASE,)) if name in names] or [names[0]]
        return torch.tensor([1 / len(begin) if name in begin else 0.0 for name in names])

    # ---- one map

    def _standardized(self, maps: Maps, folds: Tensor) -> list[Tensor]:
        """Maps of good images in standard deviations from what those of other folds get."""
        return [self._in_units(each, each, folds, folds) for each in maps.values()]

    def _in_units(self, maps: Tensor, good: Tensor, folds: Tensor, own: Tensor) -> Tensor:
        """Maps in standard deviations from what good images get that are in another fold than each."""
        found = torch.empty_like(maps)
        for fold in range(int(folds.max()) + 1):
            others = good[folds != fold]
            others = others if len(others) > 1 else good
            mean, deviation = position_statistics(others)
            judged = (maps[own == fold] - mean) / deviation
            if self.branches.baseline:
                judged = self.branches.less_baseline(judged, *self._baseline((others - mean) / deviation))
            found[own == fold] = judged
        return found

    def _baseline(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is taken off for the image as a whole: slope, lowest and highest baseline."""
        slope, lowest, highest = fit_baseline(self.branches.flat(maps))
        return self.settings.baseline_share * slope, lowest, highest

    def _set_units(self, good: list[Tensor], weights: Tensor) -> None:
        """Put each branch in units of how its image score scatters over good images."""
        peaks = [self._coarse(maps).flatten(1).amax(dim=1) for maps in good]
        middles = torch.stack([p.mean() for p in peaks])
        scatters = torch.stack([p.std() for p in peaks]).clamp(min=1e-6)
        self.branches.weight[: len(weights)] = (weights / scatters).to(self.branches.weight)
        self.branches.offset.copy_((weights * middles / scatters).sum())

    def _coarse(self, maps: Tensor) -> Tensor:
        """(N, h, w) to (N, H/4, W/4): enlarged and blurred as the anomaly map, at a quarter of its size.

        Outside the region of interest it is so low that it is never the largest value.
        """
        if not len(maps):
            return maps
        found = torch.cat([self.model.enlarge(part)[:, 2::4, 2::4] for part in torch.split(maps, 64)])
        region = self.branches.region
        return found if region is None else found.masked_fill(region[2::4, 2::4].cpu() == 0, NOWHERE)

    def _fused(self, good: list[Tensor], heads: Tensor | None) -> LeftOut:
        """Scores of the left-out maps, fused."""
        parts = [w * maps for w, maps in zip(self.branches.weight.cpu(), good, strict=False)]
        if heads is not None:
            parts.append(self.branches.weight[-1].cpu() * heads)
        found = []
        for at in torch.split(torch.arange(len(good[0])), 64):
            found.append(
                self.model.finish(self.branches, [part[at].to(self.model.mean.device) for part in parts]).cpu()
            )
        return self._scores(torch.cat(found))

    def _scores(self, maps: Tensor) -> LeftOut:
        scores = image_score(maps, self.model.spec.score_top)
        return LeftOut(scores.double().numpy(), maps.flatten(1).amax(dim=1).double().numpy())

    # ---- the defect head

    def _head_vectors(self, seen: Inputs, at: Tensor) -> Tensor:
        wanted = seen.only(*self.branches.head_inputs)._replace(levels=[])
        return self.branches.head_vectors(wanted.some(at, self.model.mean.device))

    def _fit_levels(self, good: Inputs, chosen: Tensor) -> None:
        for name in self.branches.names:
            if name in ("level 2", "level 3"):
                self.densities.fit(name, good, chosen)

    def _add_head(self, good: Inputs, folds: Tensor, defects: tuple[Tensor, Tensor] | None) -> Tensor:
        """Train a defect head; (N, h, w) what it sees of good images, by densities fitted without their fold.

        It learns from good images of the first folds, which the densities have not seen then, from these with synthetic
        anomalies, and from labelled defects.
        """
        numbers = torch.arange(len(folds))
        learned = folds < max(1, int(folds.max() + 1) // 4)
        self._fit_levels(good, numbers[~learned])
        examples = [] if defects is None else [defects]
        if self.settings.head_examples:
            examples.insert(0, self.seen.examples(numbers[learned].tolist(), self.settings.head_examples))
        images, masks = (torch.cat(each) for each in zip(*examples, strict=True))
        seen = joined([self.seen.inputs(part) for part in torch.split(images, BATCH)])
        with torch.random.fork_rng():  # its start follows from the seed alone
            torch.manual_seed(self.settings.seed)
            head = self.branches.add_defect_head()
        with torch.enable_grad():
            fit_defect_head(
                head, self._head_vectors(good, numbers[learned]), self._head_vectors(seen, torch.arange(len(masks))),
                masks.to(self.model.mean.device), self.settings.seed, None if defects is None else len(defects[0]),
            )  # fmt: skip
        found = torch.empty(len(folds), *self.branches.grids[self.branches.head_inputs[0]])
        for fold in range(int(folds.max()) + 1):
            self._fit_levels(good, numbers[folds != fold])
            found[folds == fold] = head(self._head_vectors(good, numbers[folds == fold])).cpu()
        # images new to it tell what a good image gets; in units of its scatter it is like any other branch
        peaks = self._coarse(found[~learned]).flatten(1).amax(dim=1)
        share, scatter = self.settings.defect_head_weight, peaks.std().clamp(min=1e-3)
        self.branches.weight[:-1] *= 1 - share
        self.branches.weight[-1] = share / scatter
        self.branches.offset.copy_((1 - share) * self.branches.offset + share * peaks.mean() / scatter)
        return raised(found, self.model.enlarge(found), learned)
