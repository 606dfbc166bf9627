"""Thresholds and p-values from scores of good images: the maths of `cdo_ad.calibration`.

Each good image is scored by a detector that has seen neither it nor a copy of it. The scores of G such units are
exchangeable with that of the next good one, so its rank among them is uniform. From that alone follow a valid p-value
and a threshold that at most a share alpha of good images exceeds, on average, whatever the scores' distribution
(conformal prediction; Vovk, Gammerman, Shafer 2005).

Groups count, not images: near copies of one part say the same thing again. Each group has weight 1, shared by its
images (Dunn, Wasserman, Ramdas 2022): the threshold is the smallest score below which lies a share 1 - alpha of G + 1.
Without copies that is the rank ceil((1 - alpha)(n + 1)) of n images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cdo_ad.errors import CalibrationError
from cdo_ad.files import Document

__all__ = ["CategoryCalibration", "GoodScores", "Unit", "conformal_threshold", "require_units", "units_needed"]

ROUNDING = 1e-9

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
