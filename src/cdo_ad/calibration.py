"""The one owner of decisions: scores of good images, thresholds with a stated error rate, p-values, and the sentence.

Each good image is scored by a detector that has seen neither it nor a copy of it. The scores of G such units are
exchangeable with that of the next good one, so its rank among them is uniform. From that alone follow a valid p-value
and a threshold that at most a share alpha of good images exceeds, on average, whatever the scores' distribution
(conformal prediction; Vovk, Gammerman, Shafer 2005).

- **Groups count, not images.** Near copies of one part say the same thing again. Each group has weight 1, shared by its
  images (Dunn, Wasserman, Ramdas 2022): the threshold is the smallest score below which lies a share 1 - alpha of
  G + 1. Without copies that is the rank ceil((1 - alpha)(n + 1)) of n images.
- A rate of 1 / (G + 1) or more can be guaranteed. For held-out scores that is a theorem. For left-out scores the
  theorem says twice the rate at most; rates within the promise are what was measured (docs/calibration.md).
- With too few units the threshold is an estimate, and `guaranteed` is False.
- Each category of a run has scores and thresholds of its own, so the rate holds for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from cdo_ad.errors import BundleError, CalibrationError, ConfigError, ModelError
from cdo_ad.files import Document, problem

__all__ = [
    "ENGINE_TOLERANCE", "Calibration", "CategoryCalibration", "GoodScores", "Unit", "conformal_threshold",
    "units_needed",
]  # fmt: skip

ENGINE_TOLERANCE = 1e-4
"""Scores that differ by less, relatively, are the same score computed by two engines: an export is held to this."""
ROUNDING = 1e-9
UNUSUAL = 0.2
"""Good images with a p-value of at most this are called unusual."""

Unit = Literal["group", "image"]
"""What counts once. `group`: the rate holds for new parts. `image`: it holds for further images of these parts."""
Score = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FloatArray = npt.NDArray[np.floating]


class GoodScores(NamedTuple):
    """Scores of n good images of one category that the detector has not seen, in any order."""

    scores: Sequence[float]
    """(n,) image scores."""
    maxima: Sequence[float]
    """(n,) the largest value of each anomaly map."""
    groups: Sequence[int] | None = None
    """(n,) images of one number count once; None where each counts."""
    unit: Unit = "group"
    """What a group is, for the sentence."""


def units_needed(false_alarm_rate: float) -> int:
    """The smallest number of units that can guarantee the rate: 1 / rate - 1."""
    return max(1, math.ceil(1 / false_alarm_rate - 1 - ROUNDING))


def conformal_threshold(
    scores: Sequence[float] | FloatArray, false_alarm_rate: float, groups: Sequence[int] | None = None, new: int = 1
) -> float:
    """The smallest score t with `sum over groups of (share of its images <= t) >= (1 - rate)(G + new)`.

    Args:
        scores: (n,) in any order.
        false_alarm_rate: in (0, 1).
        groups: (n,) see `GoodScores`.
        new: 1 for the group of the next image, which the guarantee counts; 0 for the plain quantile.

    Returns:
        The threshold; infinity where there are too few groups for the rate.
    """
    values = np.asarray(scores, dtype=np.float64)
    given = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(given)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(1 / sizes[given[order]])
    # rounding must not cost a rank where (1 - rate)(G + new) is whole but for the last bit
    at = int(np.searchsorted(reached, (1 - false_alarm_rate) * (len(sizes) + new) - ROUNDING * len(values)))
    return float(values[order[at]]) if at < len(values) else math.inf


def require_units(count: int, false_alarm_rate: float, category: str = "") -> None:
    """Raise CalibrationError unless so many units can guarantee the rate; the message says how many are missing."""
    if not 0 < false_alarm_rate < 1:
        raise CalibrationError(f"the false-alarm rate must lie between 0 and 1, got {false_alarm_rate}")
    needed = units_needed(false_alarm_rate)
    if count < needed:
        of = f" of {category}" if category else ""
        raise CalibrationError(
            f"a false-alarm rate of {false_alarm_rate:g} needs good images{of} of {needed} different parts, there are "
            f"{count}: add {needed - count} more, or ask for  --false-alarm-rate {math.ceil(1e4 / (count + 1)) / 1e4:g}"
        )


class CategoryCalibration(Document):
    """Scores of one category's good images, and the thresholds that follow from them."""

    scores: tuple[Score, ...] = Field(min_length=1)
    """Image scores, ascending."""
    groups: tuple[int, ...]
    """The group of each score's image."""
    pixel_maxima: tuple[Score, ...]
    """The largest value of each anomaly map, ascending."""
    pixel_groups: tuple[int, ...]
    """The group of each of `pixel_maxima`."""
    unit: Unit
    image_threshold: Score
    """An image is anomalous when its score is larger."""
    pixel_threshold: Score
    """A pixel is drawn when its value is larger: at most `false_alarm_rate` of good images show any such pixel."""
    guaranteed: bool
    """False where there are too few units for the rate: the thresholds are estimates then."""

    @classmethod
    def fit(cls, good: GoodScores, false_alarm_rate: float) -> Self:
        """Thresholds for a rate, from scores in any order."""
        scores, maxima = (np.asarray(each, dtype=np.float64) for each in (good.scores, good.maxima))
        groups = np.arange(len(scores)) if good.groups is None else np.asarray(good.groups, dtype=np.int64)
        by_score, by_pixel = np.argsort(scores, kind="stable"), np.argsort(maxima, kind="stable")
        guaranteed = len(np.unique(groups)) >= units_needed(false_alarm_rate)
        new = 1 if guaranteed else 0
        return cls(
            scores=tuple(scores[by_score].tolist()),
            groups=tuple(groups[by_score].tolist()),
            pixel_maxima=tuple(maxima[by_pixel].tolist()),
            pixel_groups=tuple(groups[by_pixel].tolist()),
            unit=good.unit,
            image_threshold=conformal_threshold(scores, false_alarm_rate, groups.tolist(), new),
            pixel_threshold=conformal_threshold(maxima, false_alarm_rate, groups.tolist(), new),
            guaranteed=guaranteed,
        )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name, of in (("scores", "groups"), ("pixel_maxima", "pixel_groups")):
            values, groups = getattr(self, name), getattr(self, of)
            if list(values) != sorted(values):
                raise ValueError(f"{name} must be ascending")
            if len(groups) != len(values):
                raise ValueError(f"{len(values)} {name} but {len(groups)} {of}")
        if sorted(self.groups) != sorted(self.pixel_groups):
            raise ValueError("scores and pixel_maxima are of different images")
        return self

    @property
    def units(self) -> int:
        """Number of groups."""
        return len(set(self.groups))

    def at_rate(self, false_alarm_rate: float) -> Self:
        """The same scores at another rate."""
        guaranteed = self.units >= units_needed(false_alarm_rate)
        new = 1 if guaranteed else 0
        changes = {
            "image_threshold": conformal_threshold(self.scores, false_alarm_rate, self.groups, new),
            "pixel_threshold": conformal_threshold(self.pixel_maxima, false_alarm_rate, self.pixel_groups, new),
            "guaranteed": guaranteed,
        }
        return type(self)(**{**self.model_dump(), **changes})

    def p_value(self, score: float) -> float:
        """(1 + share of each group's images that score as high, summed) / (G + 1); for a good image P(p <= a) <= a."""
        groups = np.asarray(self.groups)
        sizes = np.bincount(np.unique(groups, return_inverse=True)[1])[np.unique(groups, return_inverse=True)[1]]
        first = int(np.searchsorted(np.asarray(self.scores), score, side="left"))
        return min(1.0, (1 + float((1 / sizes[first:]).sum())) / (len(set(self.groups)) + 1))

    def one_of_each(self) -> npt.NDArray[np.float64]:
        """Ascending scores, one for each group (its lower median): independent of each other, for the drift test."""
        values, groups = np.asarray(self.scores), np.asarray(self.groups)
        own = [values[groups == group] for group in np.unique(groups)]
        return np.sort(np.array([each[(len(each) - 1) // 2] for each in own]))


class Calibration(Document):
    """Decides: nothing else in this package compares a score with a threshold."""

    kind: Literal["cdo-ad calibration"] = "cdo-ad calibration"
    format: Literal[1] = 1
    weights_sha256: str
    """Of the weights that gave the scores."""
    false_alarm_rate: float = Field(gt=0, lt=1)
    """The rate that the thresholds are for."""
    method: Literal["cross", "held-out"]
    """`cross`: every good image, by a detector that has not seen it; `held-out`: images that were never trained on."""
    categories: dict[str, CategoryCalibration] = Field(min_length=1)
    """By name, in the model's order."""

    @classmethod
    def fit(
        cls,
        scores: Mapping[str, GoodScores | CategoryCalibration],
        false_alarm_rate: float,
        *,
        method: Literal["cross", "held-out"] = "held-out",
        weights_sha256: str = "",
    ) -> Calibration:
        """Thresholds of each category from scores of good images.

        Args:
            scores: of each category, in the model's order; what is calibrated already keeps its scores.
            false_alarm_rate: in (0, 1).
            method: where the scores come from.
            weights_sha256: of the model that gave them.

        Raises:
            CalibrationError: a rate outside (0, 1), a category without images, a score that is not a finite number.
        """
        if not 0 < false_alarm_rate < 1:
            raise CalibrationError(f"the false-alarm rate must lie between 0 and 1, got {false_alarm_rate}")
        for category, good in scores.items():
            if not len(good.scores):
                raise CalibrationError(
                    f"there is no good image of the category {category!r} to calibrate with: add some"
                )
            maxima = good.maxima if isinstance(good, GoodScores) else good.pixel_maxima
            if not np.isfinite([*good.scores, *maxima]).all():
                raise CalibrationError(
                    "the score of a good image is not a finite number: the model is damaged, train it again"
                )
        categories = {
            name: CategoryCalibration.fit(good, false_alarm_rate)
            if isinstance(good, GoodScores)
            else good.at_rate(false_alarm_rate)
            for name, good in scores.items()
        }
        return cls(
            weights_sha256=weights_sha256,
            false_alarm_rate=false_alarm_rate,
            method=method,
            categories=categories,
        )

    @model_validator(mode="after")
    def _follows_from_its_scores(self) -> Self:
        for name, own in self.categories.items():
            if own.at_rate(self.false_alarm_rate) != own:
                raise ValueError(f"the thresholds of {name!r} do not follow from its scores")
        return self

    @classmethod
    def read(cls, document: object, name: str) -> Calibration:
        """From a JSON document; raises BundleError, which names the file, for anything that `to_json` did not write."""
        try:
            return cls.from_json(document)
        except (ValidationError, ValueError) as error:
            what = problem(error) if isinstance(error, ValidationError) else error
            raise BundleError(f"{name} is damaged ({what}): copy the run again, or train it again") from error

    def at_rate(self, false_alarm_rate: float) -> Calibration:
        """The same scores at another rate.

        Raises:
            CalibrationError: a category has too few images to guarantee it.
        """
        for name, own in self.categories.items():
            require_units(own.units, false_alarm_rate, name)
        changes = {
            "false_alarm_rate": false_alarm_rate,
            "categories": {name: own.at_rate(false_alarm_rate) for name, own in self.categories.items()},
        }
        return Calibration(**{**dict(self), **changes})

    def of(self, category: str | None = None) -> CategoryCalibration:
        """What belongs to a category; None where the run has only one.

        Raises:
            ConfigError: there is no such category, or there are several and none is named.
        """
        if category is None and len(self.categories) == 1:
            return next(iter(self.categories.values()))
        if category is None or category not in self.categories:
            names = ", ".join(map(repr, self.categories))
            problem = "name the category" if category is None else f"there is no category {category!r}"
            raise ConfigError(f"{problem}: this run has {names}")
        return self.categories[category]

    @property
    def guaranteed(self) -> bool:
        """True where every category has enough images for the rate."""
        return all(own.guaranteed for own in self.categories.values())

    @property
    def images(self) -> int:
        """Number of good images that the thresholds come from."""
        return sum(len(own.scores) for own in self.categories.values())

    def p_value(self, score: float, category: str | None = None) -> float:
        """See `CategoryCalibration.p_value`; raises ModelError for a score that is not a finite number."""
        return self.of(category).p_value(self.settle(score, category))

    def settle(self, score: float, category: str | None = None) -> float:
        """The nearest calibration score if it lies within `ENGINE_TOLERANCE`, else the score itself.

        Engines and devices round differently in the last digits. A threshold is itself a calibration score, so without
        this the image that gave it would be judged by those digits. It moves decisions towards good only: the rate
        still holds.

        Raises:
            ModelError: the score is not a finite number.
        """
        if not math.isfinite(score):
            raise ModelError(
                f"the model gave the score {score}: its weights are damaged; copy the run again, or train it"
            )
        scores = self.of(category).scores
        at = int(np.searchsorted(np.asarray(scores, dtype=np.float64), score))
        near = min(scores[max(at - 1, 0) : at + 1], key=lambda s: abs(s - score), default=score)
        return near if abs(near - score) <= ENGINE_TOLERANCE * abs(near) else score

    def decide(self, score: float, category: str | None = None) -> bool:
        """True when an image of this score is anomalous, whichever engine computed it; raises as `settle` and `of`."""
        return self.settle(score, category) > self.of(category).image_threshold

    def mark(self, anomaly_map: npt.NDArray[np.float32], category: str | None = None) -> npt.NDArray[np.bool_]:
        """The pixel rule: (H, W) bool, True where the map exceeds the pixel threshold.

        Raises:
            ModelError: a pixel that is not a finite number.
        """
        if not np.isfinite(anomaly_map).all():
            raise ModelError("the model gave an anomaly map with values that are not numbers: its weights are damaged")
        marked: npt.NDArray[np.bool_] = anomaly_map > self.of(category).pixel_threshold
        return marked

    def sentence(self, score: float, category: str | None = None) -> str:
        """The decision and its reason, e.g. ``unusual but good: only 3 of 42 good images score as high``."""
        own = self.of(category)
        n, settled = len(own.scores), self.settle(score, category)
        as_high = n - int(np.searchsorted(np.asarray(own.scores), settled, side="left"))
        if self.decide(score, category):
            word = "anomalous"
        else:
            word = "unusual but good" if own.p_value(settled) <= UNUSUAL else "good"
        images = "good image" if n == 1 else "good images"
        if as_high == 0:
            return f"{word}: none of {n} {images} scores as high"
        only = "" if word == "good" else "only "
        return f"{word}: {only}{as_high} of {n} {images} {'scores' if as_high == 1 else 'score'} as high"

    def summary(self) -> list[str]:
        """What the thresholds promise, a line for each category."""
        return [_promise(name, own, self.false_alarm_rate) for name, own in self.categories.items()]


def _promise(name: str, own: CategoryCalibration, rate: float) -> str:
    prefix = f"{name}: " if name else ""
    n, units = len(own.scores), own.units
    source = f"{n} good images" + (f" of {units} parts" if units < n else "")
    start = f"{prefix}threshold {own.image_threshold:.4f}: "
    if not own.guaranteed:
        return (
            f"{start}an estimate for a false-alarm rate of {rate:.2%}, which needs good images of {units_needed(rate)} "
            f"different parts; there are {source}, which can guarantee {math.ceil(1e4 / (units + 1)) / 1e4:.2%}"
        )
    promise = f"{start}at most {rate:.2%} of good images raise a false alarm, on average; from {source}"
    if own.unit == "image":
        promise += ", copies counted one by one: this holds for further images of these parts, not for new parts"
    return promise
