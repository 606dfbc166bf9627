"""The one owner of decisions: scores of good images, thresholds with a stated error rate, p-values, and the sentence.

The scores of n good images that the detector has not seen are exchangeable with that of the next good image, so its
rank among them is uniform. From that alone (conformal prediction; Vovk, Gammerman, Shafer 2005) follow a valid p-value
and a threshold that at most a share alpha of good images exceeds, on average over calibration sets, whatever the
scores' distribution. Each category of a run has scores and thresholds of its own, so the rate holds for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from cdo_ad.errors import BundleError, CalibrationError, ConfigError, ModelError
from cdo_ad.files import Document, problem

__all__ = ["ENGINE_TOLERANCE", "Calibration", "CategoryCalibration", "conformal_threshold", "images_needed", "p_value"]

ENGINE_TOLERANCE = 1e-4
"""Scores that differ by less, relatively, are the same score computed by two engines: an export is held to this."""
UNUSUAL = 0.2
"""Good images with a p-value of at most this are called unusual."""

Score = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FloatArray = npt.NDArray[np.floating]


def images_needed(false_alarm_rate: float) -> int:
    """The smallest number n of good images that can guarantee the rate: n >= 1 / rate - 1."""
    return max(1, math.ceil(1 / false_alarm_rate - 1 - 1e-9))


def conformal_threshold(scores: Sequence[float] | FloatArray, false_alarm_rate: float) -> float:
    """The ceil((n + 1)(1 - rate))-th smallest score: a new good image exceeds it with probability <= rate.

    Args:
        scores: (n,) scores of good images that the detector has not seen, in any order.
        false_alarm_rate: in (0, 1).

    Raises:
        CalibrationError: n is too small; the message says how many are missing and which rate can be had.
    """
    n = len(scores)
    check_count(n, false_alarm_rate)
    # the tolerance keeps (n + 1)(1 - rate) from being rounded up where it is a whole number but for the last bit
    rank = math.ceil((n + 1) * (1 - false_alarm_rate) - 1e-9)
    return float(np.sort(np.asarray(scores, dtype=np.float64))[max(rank, 1) - 1])


def check_count(n: int, false_alarm_rate: float, category: str = "") -> None:
    """Raise CalibrationError unless n good images can guarantee the rate."""
    if not 0 < false_alarm_rate < 1:
        raise CalibrationError(f"the false-alarm rate must lie between 0 and 1, got {false_alarm_rate}")
    needed = images_needed(false_alarm_rate)
    if n < needed:
        of = f" of {category}" if category else ""
        raise CalibrationError(
            f"a false-alarm rate of {false_alarm_rate:g} needs {needed} good images{of}, there are {n}: "
            f"add {needed - n} more, or ask for  --false-alarm-rate {math.ceil(1e4 / (n + 1)) / 1e4:g}"
        )


def p_value(scores: Sequence[float] | FloatArray, score: float) -> float:
    """(1 + number of scores >= score) / (n + 1); for a good image P(p <= alpha) <= alpha.

    Args:
        scores: (n,) of good images, ascending.
        score: the new image's.
    """
    n = len(scores)
    below = int(np.searchsorted(np.asarray(scores, dtype=np.float64), score, side="left"))
    return (1 + n - below) / (n + 1)


class CategoryCalibration(Document):
    """Scores of one category's good images, and the thresholds that follow from them."""

    scores: tuple[Score, ...] = Field(min_length=1)
    """Image scores, ascending, each by a detector that has not seen its image."""
    pixel_maxima: tuple[Score, ...] = Field(min_length=1)
    """The largest value of each of the anomaly maps, ascending."""
    image_threshold: Score
    """An image is anomalous when its score is larger."""
    pixel_threshold: Score
    """A pixel is drawn when its value is larger: at most `false_alarm_rate` of good images show any such pixel."""
    guaranteed: bool
    """False where there are too few images for the rate: the thresholds are the largest values then."""

    @classmethod
    def fit(cls, scores: Sequence[float], pixel_maxima: Sequence[float], false_alarm_rate: float) -> Self:
        """Thresholds for a rate; where there are too few images for it, the largest values, `guaranteed` False."""
        guaranteed = len(scores) >= images_needed(false_alarm_rate)
        rate = false_alarm_rate if guaranteed else 1 / (len(scores) + 1)
        return cls(
            scores=tuple(sorted(map(float, scores))),
            pixel_maxima=tuple(sorted(map(float, pixel_maxima))),
            image_threshold=conformal_threshold(scores, rate),
            pixel_threshold=conformal_threshold(pixel_maxima, rate),
            guaranteed=guaranteed,
        )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("scores", "pixel_maxima"):
            values = getattr(self, name)
            if list(values) != sorted(values):
                raise ValueError(f"{name} must be ascending")
        if len(self.scores) != len(self.pixel_maxima):
            raise ValueError(f"{len(self.scores)} scores but {len(self.pixel_maxima)} pixel_maxima")
        return self


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
        scores: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        false_alarm_rate: float,
        *,
        method: Literal["cross", "held-out"] = "held-out",
        weights_sha256: str = "",
    ) -> Calibration:
        """Thresholds of each category from scores of good images.

        Args:
            scores: image scores (n,) and largest pixels (n,) by category.
            false_alarm_rate: in (0, 1).
            method: where the scores come from.
            weights_sha256: of the model that gave them.

        Raises:
            CalibrationError: a rate outside (0, 1), a category without images, a score that is not a finite number.
        """
        if not 0 < false_alarm_rate < 1:
            raise CalibrationError(f"the false-alarm rate must lie between 0 and 1, got {false_alarm_rate}")
        for category, (image, pixel) in scores.items():
            if not len(image):
                raise CalibrationError(
                    f"there is no good image of the category {category!r} to calibrate with: add some"
                )
            if not np.isfinite([*image, *pixel]).all():
                raise CalibrationError(
                    "the score of a good image is not a finite number: the model is damaged, train it again"
                )
        return cls(
            weights_sha256=weights_sha256,
            false_alarm_rate=false_alarm_rate,
            method=method,
            categories={name: CategoryCalibration.fit(*each, false_alarm_rate) for name, each in scores.items()},
        )

    @model_validator(mode="after")
    def _follows_from_its_scores(self) -> Self:
        for name, own in self.categories.items():
            again = CategoryCalibration.fit(own.scores, own.pixel_maxima, self.false_alarm_rate)
            if again != own:
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
            check_count(len(own.scores), false_alarm_rate, name)
        return Calibration.fit(
            {name: (own.scores, own.pixel_maxima) for name, own in self.categories.items()},
            false_alarm_rate,
            method=self.method,
            weights_sha256=self.weights_sha256,
        )

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
        """See `p_value`; raises ModelError for a score that is not a finite number."""
        return p_value(self.of(category).scores, self.settle(score, category))

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
        n = len(own.scores)
        p = self.p_value(score, category)
        as_high = round(p * (n + 1)) - 1
        if self.decide(score, category):
            word = "anomalous"
        else:
            word = "unusual but good" if p <= UNUSUAL else "good"
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
    n = len(own.scores)
    if own.guaranteed:
        return (
            f"{prefix}threshold {own.image_threshold:.4f}: at most {rate:.2%} of good images are called anomalous, on "
            f"average (from {n} good images)"
        )
    return (
        f"{prefix}threshold {own.image_threshold:.4f}: {n} good images are too few for a false-alarm rate of {rate:.2%}, "
        f"which needs {images_needed(rate)}; expect up to {1 / (n + 1):.1%}"
    )
