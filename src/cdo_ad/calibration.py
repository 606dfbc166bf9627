"""Decisions with a stated error rate, from the scores of good images alone.

The scores of n held-out good images are exchangeable with that of the next good image, so its rank among them is
uniform. From that alone (split conformal prediction; Vovk, Gammerman, Shafer 2005) follow a valid p-value and a
threshold that at most a share alpha of good images exceeds, on average over calibration sets, for any distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cdo_ad.errors import BundleError, CalibrationError
from cdo_ad.types import Float32Array

__all__ = ["ENGINE_TOLERANCE", "Calibration", "conformal_threshold", "images_needed", "p_value"]

ENGINE_TOLERANCE = 1e-4
"""Scores that differ by less, relatively, are the same score computed by two engines: an export is held to this."""


def images_needed(false_alarm_rate: float) -> int:
    """The smallest number n of calibration images that can promise the rate: n >= 1 / rate - 1."""
    return max(1, math.ceil(1 / false_alarm_rate - 1 - 1e-9))


def conformal_threshold(scores: Sequence[float] | Float32Array, false_alarm_rate: float) -> float:
    """The ceil((n + 1)(1 - rate))-th smallest score: a good image exceeds it with probability <= rate.

    Args:
        scores: (n,) scores of held-out good images, in any order.
        false_alarm_rate: in (0, 1).

    Raises:
        CalibrationError: if n is too small; the message says how many are missing and which rate can be had.
    """
    n = len(scores)
    check_count(n, false_alarm_rate)
    # the tolerance keeps (n + 1)(1 - rate) from being rounded up where it is a whole number but for the last bit
    rank = math.ceil((n + 1) * (1 - false_alarm_rate) - 1e-9)
    return float(np.sort(np.asarray(scores, dtype=np.float64))[max(rank, 1) - 1])


def check_count(n: int, false_alarm_rate: float) -> None:
    """Raise CalibrationError unless n calibration images can promise the rate."""
    if not 0 < false_alarm_rate < 1:
        raise CalibrationError(f"the false-alarm rate must lie between 0 and 1, got {false_alarm_rate}")
    needed = images_needed(false_alarm_rate)
    if n < needed:
        raise CalibrationError(
            f"a false-alarm rate of {false_alarm_rate:g} needs {needed} good calibration images, there are {n}: "
            f"add {needed - n} more, ask for  --false-alarm-rate {math.ceil(1e4 / (n + 1)) / 1e4:g}  or, to start "
            "without a promise, train with  --few"
        )


def p_value(calibration_scores: Sequence[float] | Float32Array, score: float) -> float:
    """(1 + number of calibration scores >= score) / (n + 1); for a good image P(p <= alpha) <= alpha.

    Args:
        calibration_scores: (n,) ascending.
        score: the new image's.
    """
    n = len(calibration_scores)
    below = int(np.searchsorted(np.asarray(calibration_scores, dtype=np.float64), score, side="left"))
    return (1 + n - below) / (n + 1)


@dataclass(frozen=True)
class Calibration:
    """Scores of the held-out good images and the thresholds that follow from them."""

    scores: tuple[float, ...]
    """Image scores, ascending."""
    pixel_maxima: tuple[float, ...]
    """The largest value of each image's anomaly map, ascending."""
    false_alarm_rate: float
    """The rate that both thresholds promise."""
    image_threshold: float
    """An image is anomalous when its score is larger."""
    pixel_threshold: float
    """A pixel is drawn when its value is larger: at most `false_alarm_rate` of good images show any such pixel."""
    guaranteed: bool = True
    """False where the scores are those of altered copies of the training images: no rate follows from them."""

    @classmethod
    def fit(
        cls,
        scores: Sequence[float],
        pixel_maxima: Sequence[float],
        false_alarm_rate: float,
        guaranteed: bool = True,
    ) -> Calibration:
        """Thresholds from the held-out good images.

        Args:
            scores: (n,) image scores.
            pixel_maxima: (n,) the largest pixel of each anomaly map.
            false_alarm_rate: in (0, 1).
            guaranteed: see `Calibration.guaranteed`.

        Raises:
            CalibrationError: too few images for the rate, or a score that is not a finite number.
        """
        if not np.isfinite([*scores, *pixel_maxima]).all():
            raise CalibrationError("a calibration score is not a finite number: the network is broken, train it again")
        return cls(
            scores=tuple(sorted(map(float, scores))),
            pixel_maxima=tuple(sorted(map(float, pixel_maxima))),
            false_alarm_rate=false_alarm_rate,
            image_threshold=conformal_threshold(scores, false_alarm_rate),
            pixel_threshold=conformal_threshold(pixel_maxima, false_alarm_rate),
            guaranteed=guaranteed,
        )

    def at_rate(self, false_alarm_rate: float) -> Calibration:
        """The same images at another false-alarm rate; raises CalibrationError as `fit` does."""
        return Calibration.fit(self.scores, self.pixel_maxima, false_alarm_rate, self.guaranteed)

    def at_least(self, threshold: float) -> Calibration:
        """The same with both thresholds raised to `threshold`, or to a calibration score that is level with it."""

        def raised(own: float, scores: Sequence[float]) -> float:
            level = [s for s in scores if abs(s - threshold) <= ENGINE_TOLERANCE * threshold]
            return max(own, threshold, *level)

        return replace(
            self,
            image_threshold=raised(self.image_threshold, self.scores),
            pixel_threshold=raised(self.pixel_threshold, self.pixel_maxima),
        )

    def p_value(self, score: float) -> float:
        """See `p_value`."""
        return p_value(self.scores, score)

    def settle(self, score: float) -> float:
        """The nearest calibration score if it lies within `ENGINE_TOLERANCE`, else the score itself.

        Engines and devices round differently in the last digits. A threshold is itself a calibration score, so without
        this the image that gave it would be judged by those digits. It moves decisions towards good only: the
        promised rate holds.
        """
        at = int(np.searchsorted(np.asarray(self.scores, dtype=np.float64), score))
        near = min(self.scores[max(at - 1, 0) : at + 1], key=lambda s: abs(s - score), default=score)
        return near if abs(near - score) <= ENGINE_TOLERANCE * abs(near) else score

    def decide(self, score: float) -> bool:
        """True when an image of this score is anomalous, whichever engine computed it."""
        return self.settle(score) > self.image_threshold

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "false_alarm_rate": self.false_alarm_rate,
            "image_threshold": self.image_threshold,
            "pixel_threshold": self.pixel_threshold,
            "scores": list(self.scores),
            "pixel_maxima": list(self.pixel_maxima),
            "guaranteed": self.guaranteed,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibration:
        """The inverse of `to_json`.

        Raises:
            BundleError: if an entry is missing or of another kind.
        """
        try:
            return cls(
                scores=tuple(values["scores"]),
                pixel_maxima=tuple(values["pixel_maxima"]),
                false_alarm_rate=float(values["false_alarm_rate"]),
                image_threshold=float(values["image_threshold"]),
                pixel_threshold=float(values["pixel_threshold"]),
                guaranteed=bool(values.get("guaranteed", True)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"calibration.json is damaged ({error}): run  cdo-ad calibrate  again") from error
