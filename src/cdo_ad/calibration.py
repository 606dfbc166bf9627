"""The one owner of decisions: scores of good images, thresholds with a stated error rate, p-values, and the sentence.

The maths and its sources are in `cdo_ad.conformal`.

- A rate of 1 / (G + 1) or more can be guaranteed from G units. For held-out scores that is a theorem. For left-out
  scores the theorem says twice the rate at most; rates within the promise are what was measured (docs/calibration.md).
- With too few units the threshold is an estimate, and `guaranteed` is False.
- Each category of a run has scores and thresholds of its own, so the rate holds for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from cdo_ad.conformal import CategoryCalibration, GoodScores, require_units, units_needed
from cdo_ad.errors import BundleError, CalibrationError, ConfigError, ModelError
from cdo_ad.files import Document, problem

__all__ = ["ENGINE_TOLERANCE", "Calibration"]

ENGINE_TOLERANCE = 1e-4
"""Scores that differ by less, relatively, are the same score computed by two engines: an export is held to this."""
UNUSUAL = 0.2
"""Good images with a p-value of at most this are called unusual."""


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
