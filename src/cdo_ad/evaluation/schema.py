"""What an evaluation measures, as documents: `metrics.json` is one of them, written and read back strictly."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from cdo_ad.files import Document

__all__ = [
    "CategoryMetrics",
    "Count",
    "Decisions",
    "EvaluatedData",
    "MetricValue",
    "Metrics",
    "MetricsFile",
    "PixelRanking",
    "Ranking",
    "Rate",
    "TypeMetrics",
]


def _from_null(value: object) -> object:
    return math.nan if value is None else value


def _share(value: float) -> float:
    if not (math.isnan(value) or 0 <= value <= 1):
        raise ValueError(f"must lie between 0 and 1, got {value}")
    return value


def _to_null(value: float) -> float | None:
    return None if math.isnan(value) else value


MetricValue = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(_from_null),
    AfterValidator(_share),
    PlainSerializer(_to_null, return_type=float | None),
]
"""A metric in [0, 1]; NaN, in JSON null, where it does not exist, for instance because there is only one class."""


class Ranking(Document):
    """How well scores tell good from anomalous, whatever the threshold."""

    auroc: MetricValue
    ap: MetricValue
    """Average precision."""
    f1max: MetricValue
    """The largest F1 over all thresholds: a bound, chosen with the labels, not the F1 of the detector."""


class PixelRanking(Ranking):
    """The same for pixels, and the mean overlap of the regions."""

    aupro_30: MetricValue
    """Area under the PRO curve up to a false-positive rate of 30 %, over 0.3."""
    aupro_05: MetricValue
    """The same up to 5 %, over 0.05."""


class Rate(Document):
    """A share `value` = `count` / `n`, NaN for n = 0, with the ends of its exact 95 % binomial interval."""

    value: MetricValue
    low: float
    high: float
    count: int = Field(ge=0)
    n: int = Field(ge=0)


class Decisions(Document):
    """What the thresholds do: how many good images are called anomalous, and how many defective ones."""

    rate: float
    """The false-alarm rate that the thresholds are for."""
    false_alarm_rate: Rate
    detection_rate: Rate


class Count(Document):
    """Number of images."""

    good: int
    anomalous: int


class TypeMetrics(Document):
    """Everything that is measured on a set of images."""

    image: Ranking
    pixel: PixelRanking
    decision: Decisions
    n: Count


class CategoryMetrics(TypeMetrics):
    """The metrics of one category."""

    types: dict[str, TypeMetrics] = Field(default_factory=dict)
    """By type of defect: those of the type against all good images."""


class Metrics(CategoryMetrics):
    """The metrics of a data set."""

    categories: dict[str, CategoryMetrics] = Field(default_factory=dict)
    """Where there are several. The rankings above are then means over them, since each has its own scale of scores;
    decisions and numbers are of all images, and `types` is empty."""


class EvaluatedData(Document):
    """The images that were evaluated."""

    root: str
    """The data set's folder."""
    fingerprints: dict[str, str]
    """By category: changes with any test image, mask, name or label."""
    at_size: tuple[int, int] | None
    """(H, W) at which pixels were compared; None for the images' own size."""


class MetricsFile(Metrics):
    """What `metrics.json` holds."""

    kind: Literal["cdo-ad metrics"] = "cdo-ad metrics"
    format: Literal[1] = 1
    weights_sha256: str
    """Of the run's weights that were evaluated."""
    thresholds: dict[str, float]
    """The image thresholds that decided, by the run's categories."""
    data: EvaluatedData
    failed: int
    """Images that could not be read; they are in no metric."""
    learned: int
    """Defects that the run has learned from; they are in no metric."""
    files: dict[str, str]
    """sha256 of the files that belong to this evaluation, by name."""
