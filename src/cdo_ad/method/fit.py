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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdo_ad.config import AnomalyKind, BranchName
from cdo_ad.errors import ConfigError
from cdo_ad.method.anomalies import KINDS, add_anomaly
from cdo_ad.method.bank import Bank
from cdo_ad.method.branches import INTENSITY_SHRINKAGE, Branches, Inputs
from cdo_ad.method.defect_head import fit_defect_head
from cdo_ad.method.discrepancy import image_score
from cdo_ad.method.fusion import learned_weights, position_statistics
from cdo_ad.method.model import AnomalyModel
from cdo_ad.method.white_noise import image_seed

__all__ = ["FitSettings", "ImageSource", "LeftOut", "fit_branches", "make_folds"]

BATCH = 16
FOLDS_FOR_WEIGHTS = 10
MOST_FOLDS, FEWEST_FOLDS, WORK = 100, 10, 40_000
"""Folds of the calibration: as many as `WORK` images in all of them allow. The more, the nearer a left-out score is to
what the final detector gives a new image; with ten folds it is too large, and fewer defects are found."""
JUDGED = 280
"""Synthetic anomalies that weights are learned on, each kind as often as any other."""
CONTRAST = (0.35, 1.0)
"""Of these anomalies, uniform: at full contrast several branches see nearly all of them, and weights say little."""
BASE = "level 3"
"""The branch that the map begins with."""
FEW, STEADY = 64, ("level 2", "level 3", "bank")
"""With fewer good images the map begins with an equal say of these: each alone is poorly estimated."""
SMALLEST = 8
"""With fewer good images weights stay equal."""
SMALLEST_FOR_HEAD = 32
"""With fewer good images there is no defect head: nothing to learn it against."""

IntArray = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Maps = dict[BranchName, Tensor]
"""(N, h, w) by branch, each on its own grid."""


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


def make_folds(units: IntArray, count: int, seed: int) -> IntArray:
    """(N,) the fold of each image: whole units, in folds of nearly equal size.

    Args:
        units: (N,) what counts once, numbered from 0.
        count: folds wanted; there are no more than units.
        seed: of the draw (raw PCG64 numbers, whose stream numpy guarantees).
    """
    sizes = np.bincount(units)
    draw = np.random.PCG64(seed).random_raw(len(sizes))
    fold_of = np.zeros(len(sizes), dtype=np.int64)
    filled = np.zeros(min(count, len(sizes)), dtype=np.int64)
    for unit in np.lexsort((draw, -sizes)):  # the largest first, so that small ones even out
        fold_of[unit] = np.argmin(filled)
        filled[fold_of[unit]] += sizes[unit]
    return fold_of[units]


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
        ConfigError: fewer than two images or units, or images without any variation.
    """
    model.eval()
    if len(images) < 2 or len(np.unique(units)) < 2:
        raise ConfigError(
            f"{len(np.unique(units))} different good image(s) cannot calibrate a detector: give 2 at least"
        )
    fit = _Fit(model, model.branches(number), images, settings, progress)
    with torch.no_grad():
        return fit.plain() if fit.branches.plain else fit.run(units, trained, defects)


def _fold_count(images: int) -> int:
    return max(FEWEST_FOLDS, min(MOST_FOLDS, WORK // images))


class _Fit:
    """One call of `fit_branches`."""

    def __init__(
        self, model: AnomalyModel, branches: Branches, images: ImageSource, settings: FitSettings, progress: Progress
    ) -> None:
        self.model, self.branches, self.images, self.settings = model, branches, images, settings
        self.report, self.done, self.total = progress, 0, 2 * len(images) + JUDGED

    def plain(self) -> LeftOut:
        """The paper's form has nothing to fit; scores are left-out only where the images are held out."""
        maps = [self.model.finish(self.branches, list(self.branches.maps(seen).values())) for seen, _ in self._looked()]
        return self._scores(torch.cat(maps))

    def run(
        self, units: IntArray, trained: npt.NDArray[np.bool_] | None, defects: tuple[Tensor, Tensor] | None
    ) -> LeftOut:
        good = _joined([seen for seen, _ in self._looked()])
        weights = self._weights(good, units, defects)
        self.branches.keep([name for name, weight in weights.items() if weight > 0])
        folds = torch.from_numpy(make_folds(units, _fold_count(len(units)), self.settings.seed))
        maps = {name: self._left_out(name, good, folds) for name in self.branches.names}
        if "disagreement" in maps and trained is not None and not trained.all():
            maps["disagreement"] = self._raised(maps["disagreement"], torch.from_numpy(trained))
        standard = self._standardized(maps, folds)
        self._set_units(standard, torch.tensor([weights[name] for name in self.branches.names]))
        heads = None
        if defects is not None and self.settings.defect_head_weight > 0 and self._has_head():
            self._add_head(good, folds, defects)
            heads = self._head_maps(good, folds)
        scores = self._fused(standard, heads)
        for name in self.branches.names:
            self._fit(name, good)
            self.branches.set_statistics(name, *position_statistics(maps[name]))
        return scores

    def _has_head(self) -> bool:
        return len(self.images) >= SMALLEST_FOR_HEAD and bool({"level 2", "level 3"} & set(self.branches.names))

    def _weights(self, good: Inputs, units: IntArray, defects: tuple[Tensor, Tensor] | None) -> dict[BranchName, float]:
        """The weight of each branch, as the settings say."""
        names, chosen = self.branches.names, self.settings.fusion_weights
        if isinstance(chosen, tuple):
            return dict(zip(names, chosen, strict=True))
        if chosen == "equal" or len(names) == 1 or len(self.images) < SMALLEST:
            return dict.fromkeys(names, 1 / len(names))
        folds = torch.from_numpy(make_folds(units, FOLDS_FOR_WEIGHTS, self.settings.seed))
        changed, kinds, sources = self._anomalous(defects)
        all_good, all_bad = [], []
        for name in names:
            maps, bad = self._left_out(name, good, folds), self._left_out(name, changed, folds, good, folds[sources])
            own, other = self._standardized({name: maps}, folds)[0], self._in_units(bad, maps, folds, folds[sources])
            own, other = self._coarse(own), self._coarse(other)
            peaks = own.flatten(1).amax(dim=1)
            middle, scatter = peaks.mean(), peaks.std().clamp(min=1e-6)
            all_good.append((own - middle) / scatter)
            all_bad.append((other - middle) / scatter)
        found = learned_weights(all_good, all_bad, np.array(kinds, dtype=np.int64), self._start())
        return dict(zip(names, found.tolist(), strict=True))

    def _start(self) -> Tensor:
        """The weights to begin with: the base branch alone, or where images are few, those that are steady then."""
        names = self.branches.names
        begin = [name for name in (STEADY if len(self.images) < FEW else (BASE,)) if name in names] or [names[0]]
        return torch.tensor([1 / len(begin) if name in begin else 0.0 for name in names])

    # ---- what is looked at

    def _looked(self) -> Iterator[tuple[Inputs, Sequence[int]]]:
        """What the branches look at of all good images, batch by batch."""
        for start in range(0, len(self.images), BATCH):
            places = range(start, min(start + BATCH, len(self.images)))
            planes = torch.stack([self.images[i] for i in places])
            yield self._inputs(planes), places
            self._advance(len(places))

    def _inputs(self, planes: Tensor) -> Inputs:
        seen = self.model.inputs(self.model.features(planes.to(self.model.mean.device)))
        vectors = {name: each.cpu() for name, each in seen.vectors.items()}
        return Inputs([m.cpu() for m in seen.levels], vectors, seen.context.cpu(), seen.cells.cpu())

    def _anomalous(self, defects: tuple[Tensor, Tensor] | None) -> tuple[Inputs, list[int], list[int]]:
        """Images with synthetic anomalies and labelled defects: what is looked at, kinds, and the images they lie in.

        A labelled defect lies in no good image; it is judged as if it lay in the first.
        """
        found: list[Inputs] = []
        kinds: list[int] = []
        sources: list[int] = []
        each = max(1, JUDGED // len(KINDS))
        for number, kind in enumerate(KINDS):
            order = (
                np.random.PCG64(image_seed(self.settings.seed, 2**34, number)).random_raw(len(self.images)).argsort()
            )
            places = np.resize(order, min(each, 4 * len(self.images))).tolist()
            for start in range(0, len(places), BATCH):
                own = places[start : start + BATCH]
                planes, drawn = self._drawn(kind, number, own, start)
                if bool(drawn.any()):
                    found.append(self._inputs(planes[drawn]))
                    sources += [place for place, there in zip(own, drawn.tolist(), strict=True) if there]
                    kinds += [number] * int(drawn.sum())
                self._advance(len(own))
        for k, image in enumerate([] if defects is None else torch.split(defects[0], 1)):
            found.append(self._inputs(image))
            sources.append(0)
            kinds.append(len(KINDS) + k)
        return _joined(found), kinds, sources

    def _drawn(self, kind: AnomalyKind, number: int, places: Sequence[int], turn: int) -> tuple[Tensor, Tensor]:
        """Images with an anomaly of a kind, each with a contrast of its own, and (B,) whether one was drawn."""
        planes = torch.stack([self.images[i] for i in places])
        seeds = [image_seed(self.settings.seed, number, 2**20 * (turn + i) + place) for i, place in enumerate(places)]
        changed, masks = add_anomaly(planes, kind, seeds)
        random = torch.Generator().manual_seed(seeds[0])
        low, high = CONTRAST
        contrast = low + (high - low) * torch.rand(len(planes), 1, 1, 1, generator=random)
        return torch.lerp(planes, changed, contrast.to(planes)), masks.flatten(1).any(dim=1)

    # ---- left-out maps

    def _fit(self, name: BranchName, good: Inputs, chosen: Tensor | None = None) -> None:
        """Fit a branch's density on some of the good images, or all."""
        if name == "disagreement":
            return
        at = torch.arange(len(good.context)) if chosen is None else chosen
        device = self.model.mean.device
        density, vectors = self.branches.density(name), good.vectors[name][:, at].to(device)
        if isinstance(density, Bank):
            density.fit(vectors)
        elif name == "intensity":
            density.fit(vectors, good.cells[at].to(device), INTENSITY_SHRINKAGE)
        else:
            density.fit(vectors, good.context[at].to(device))

    def _raw(self, name: BranchName, seen: Inputs, chosen: Tensor) -> Tensor:
        """(M, h, w) distances of a branch for some images."""
        device = self.model.mean.device
        vectors = {name: seen.vectors[name][:, chosen].to(device)} if name in seen.vectors else {}
        some = Inputs(
            [m[chosen].to(device) for m in seen.levels],
            vectors,
            seen.context[chosen].to(device),
            seen.cells[chosen].to(device),
        )
        return self.branches.raw(name, some).cpu()

    def _left_out(
        self,
        name: BranchName,
        seen: Inputs,
        folds: Tensor,
        good: Inputs | None = None,
        seen_folds: Tensor | None = None,
    ) -> Tensor:
        """(M, h, w) distances of images, each by a density that was fitted without their fold.

        Args:
            name: of the branch.
            seen: of the images that are judged.
            folds: (N,) of the good images.
            good: the good images, where they are not those that are judged.
            seen_folds: (M,) the fold whose density judges each image, where it is not its own.
        """
        good, own = seen if good is None else good, folds if seen_folds is None else seen_folds
        found = torch.empty(len(own), *self.branches.grids[name])
        for fold in range(int(folds.max()) + 1):
            at = torch.nonzero(own == fold).flatten()
            if len(at):
                self._fit(name, good, torch.nonzero(folds != fold).flatten())
                found[at] = self._raw(name, seen, at)
        return found

    def _raised(self, maps: Tensor, trained: Tensor) -> Tensor:
        """The disagreement of images that the apprentice learned from, times how much too small it is on the median."""
        peaks = self.model.enlarge(maps).flatten(1).amax(dim=1)
        ratio = max(1.0, float(peaks[~trained].median() / peaks[trained].median()))
        return torch.where(trained[:, None, None], maps * ratio, maps)

    # ---- one map

    def _standardized(self, maps: Maps, folds: Tensor) -> list[Tensor]:
        """Maps of good images in standard deviations from what those of other folds get."""
        return [self._in_units(each, each, folds, folds) for each in maps.values()]

    def _in_units(self, maps: Tensor, good: Tensor, folds: Tensor, own: Tensor) -> Tensor:
        """Maps in standard deviations from what good images get that are in another fold than each."""
        found = torch.empty_like(maps)
        for fold in range(int(folds.max()) + 1):
            others = good[folds != fold]
            mean, deviation = position_statistics(others if len(others) > 1 else good)
            found[own == fold] = (maps[own == fold] - mean) / deviation
        return found

    def _set_units(self, good: list[Tensor], weights: Tensor) -> None:
        """Put each branch in units of how its image score scatters over good images."""
        peaks = [self._coarse(maps).flatten(1).amax(dim=1) for maps in good]
        middles = torch.stack([p.mean() for p in peaks])
        scatters = torch.stack([p.std() for p in peaks]).clamp(min=1e-6)
        self.branches.weight[: len(weights)] = (weights / scatters).to(self.branches.weight)
        self.branches.offset.copy_((weights * middles / scatters).sum())

    def _coarse(self, maps: Tensor) -> Tensor:
        """(N, h, w) to (N, H/4, W/4): enlarged and blurred as the anomaly map, at a quarter of its size."""
        if not len(maps):
            return maps
        return torch.cat([self.model.enlarge(part)[:, 2::4, 2::4] for part in torch.split(maps, 64)])

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

    # ---- labelled defects

    def _head_vectors(self, seen: Inputs, at: Tensor) -> Tensor:
        device = self.model.mean.device
        vectors = {name: each[:, at].to(device) for name, each in seen.vectors.items()}
        return self.branches.head_vectors(Inputs([], vectors, seen.context[at].to(device), seen.cells[at].to(device)))

    def _head_maps(self, good: Inputs, folds: Tensor) -> Tensor:
        """(N, h, w) what the defect head sees of good images, by densities that were fitted without their fold."""
        everything, parts = torch.arange(len(folds)), []
        for fold in range(int(folds.max()) + 1):
            self._fit_levels(good, everything[folds != fold])
            at = everything[folds == fold]
            assert self.branches.defect_head is not None
            parts.append((at, self.branches.defect_head(self._head_vectors(good, at)).cpu()))
        found = torch.empty(len(folds), *parts[0][1].shape[1:])
        for at, maps in parts:
            found[at] = maps
        return found

    def _fit_levels(self, good: Inputs, chosen: Tensor) -> None:
        for name in self.branches.names:
            if name in ("level 2", "level 3"):
                self._fit(name, good, chosen)

    def _add_head(self, good: Inputs, folds: Tensor, defects: tuple[Tensor, Tensor]) -> None:
        """Train a defect head against good images of the first folds, which the densities have not seen then."""
        aside = folds < max(1, int(folds.max() + 1) // 4)
        chosen = torch.arange(len(folds))
        self._fit_levels(good, chosen[~aside])
        seen = _joined([self._inputs(part) for part in torch.split(defects[0], BATCH)])
        with torch.random.fork_rng():  # its start follows from the seed alone
            torch.manual_seed(self.settings.seed)
            head = self.branches.add_defect_head()
        normal = self._head_vectors(good, chosen[aside])
        known = len(normal) - len(normal) // 4
        with torch.enable_grad():
            fit_defect_head(
                head, normal[:known], self._head_vectors(seen, torch.arange(len(seen.context))),
                defects[1].to(normal.device), self.settings.seed,
            )  # fmt: skip
        # the others, new to it, tell what a good image gets; in units of its scatter it is like any other branch
        peaks = self._coarse(head(normal[known:])).flatten(1).amax(dim=1)
        share, scatter = self.settings.defect_head_weight, peaks.std().clamp(min=1e-3)
        self.branches.weight[:-1] *= 1 - share
        self.branches.weight[-1] = share / scatter
        self.branches.offset.copy_((1 - share) * self.branches.offset + share * peaks.mean() / scatter)

    def _advance(self, count: int) -> None:
        self.done = min(self.done + count, self.total)
        self.report(self.done, self.total)


def _joined(parts: Sequence[Inputs]) -> Inputs:
    """Several batches as one."""
    return Inputs(
        [torch.cat(levels) for levels in zip(*(part.levels for part in parts), strict=True)],
        {name: torch.cat([part.vectors[name] for part in parts], dim=1) for name in parts[0].vectors},
        torch.cat([part.context for part in parts]),
        torch.cat([part.cells for part in parts]),
    )
