"""How good the scores and the maps are: exact metrics of arrays, and what each is not.

- Ties count as in scikit-learn: pixels of one score are passed by a threshold together (a diagonal in a curve).
- A figure that does not exist, because there is only one class, is NaN and never 0 (JSON: null).
- Pixel metrics are updated image by image in bounded memory (`cdo_ad.evaluation.histogram`) and say whether they are
exact.
- AU-PRO as in the evaluation of MVTec AD (Bergmann et al., IJCV 2021): the mean over the 8-connected regions of the
  masks of the share of the region that is found, against the share of *all* good pixels (of good and of defective
  images) that are found too; integrated by trapezoids up to a limit, interpolated there, divided by the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypedDict

import cc3d
import numpy as np
import numpy.typing as npt

from cdo_ad.errors import ConfigError, DataError, needs_extra
from cdo_ad.evaluation.histogram import ScoreHistogram, Steps, sort_keys
from cdo_ad.types import Float32Array, MaskArray

__all__ = ["DecisionMetrics", "PixelMetrics", "Rate", "decision_metrics", "image_metrics", "rate_interval"]

Float64Array = npt.NDArray[np.float64]
AUPRO_LIMITS = (0.3, 0.05)
NAN = float("nan")


class Rate(TypedDict):
    """A share `value` = `count` / `n`, NaN for n = 0, with the ends of its exact binomial interval."""

    value: float
    low: float
    high: float
    count: int
    n: int


class DecisionMetrics(TypedDict):
    """What a threshold does: the rate of good images rejected, and of defective images found."""

    rate: float
    """The false-alarm rate that the thresholds are for."""
    false_alarm_rate: Rate
    detection_rate: Rate


def image_metrics(labels: npt.ArrayLike, scores: npt.ArrayLike) -> dict[str, float]:
    """AUROC, average precision and the largest F1 over all thresholds, of one score per image.

    Args:
        labels: (N,) bool (or 0 and 1), True for a defective image.
        scores: (N,) finite floats, larger is more anomalous.

    Returns:
        ``{"auroc", "ap", "f1max"}`` in [0, 1]; all NaN if there are not both good and defective images. `f1max` is
        a bound on what a threshold can reach, chosen with the labels: not the F1 of the detector's threshold.

    Raises:
        DataError: if the shapes differ, a label is not 0 or 1, or a score is NaN or infinite.
    """
    truth, values = _checked(labels, scores)
    distinct, which = np.unique(values, return_inverse=True)
    total = np.bincount(which, minlength=distinct.size)[::-1]
    bad = np.bincount(which[truth], minlength=distinct.size)[::-1]
    fp1 = np.cumsum(total - bad)
    here = np.flatnonzero(bad)
    fp0 = fp1[here] - (total - bad)[here]
    steps = Steps.after(fp0, fp1[here], fp0, bad[here], bad[here].astype(np.float64))  # no PRO curve: nothing joined
    return _summary([steps], good=int((~truth).sum()), anomalous=int(truth.sum()))[0]


def rate_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Give the exact binomial interval of Clopper and Pearson (Biometrika 1934) for k events in n trials.

    Args:
        k: events, 0 <= k <= n.
        n: trials.
        confidence: in (0, 1); each end is wrong with a probability of at most (1 - confidence) / 2.

    Returns:
        (low, high) in [0, 1]; (0, 1) for n = 0.

    Raises:
        ConfigError: if k, n or confidence is outside its range.
    """
    if not 0 <= k <= n:
        raise ConfigError(f"events and trials must obey 0 <= k <= n, got k = {k}, n = {n}: check the counts")
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must lie in (0, 1), got {confidence}: 0.95 is usual")
    if n == 0:
        return 0.0, 1.0
    with needs_extra("evaluate", "an evaluation"):
        from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def decision_metrics(labels: npt.ArrayLike, decisions: npt.ArrayLike, rate: float) -> DecisionMetrics:
    """False-alarm and detection rate of decisions, with 95 % binomial intervals.

    Args:
        labels: (N,) bool (or 0 and 1), True for a defective image.
        decisions: (N,) bool (or 0 and 1), True for an image that was called anomalous.
        rate: the false-alarm rate that the decisions are for.

    Returns:
        The rate and two measured ones, each over the images of its class. The intervals hold for the thresholds as
        given: they do not contain the chance in their calibration.

    Raises:
        DataError: as `image_metrics`.
    """
    truth, values = _checked(labels, np.asarray(decisions, dtype=np.float64))
    alarm = values > 0
    return {
        "rate": float(rate),
        "false_alarm_rate": _rate(int(alarm[~truth].sum()), int((~truth).sum())),
        "detection_rate": _rate(int(alarm[truth].sum()), int(truth.sum())),
    }


def _rate(count: int, n: int) -> Rate:
    low, high = rate_interval(count, n)
    return {"value": count / n if n else NAN, "low": low, "high": high, "count": count, "n": n}


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], Float64Array]:
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise DataError(f"labels and scores must both be (N,), got {truth.shape} and {values.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise DataError("labels must be True or False (or 1 and 0): check the labels of the images")
    if not np.isfinite(values).all():
        raise DataError(f"{_not_finite(values)} of {values.size} image scores: check the model and its images")
    return truth.astype(np.bool_), values


def _not_finite(values: npt.NDArray[np.floating]) -> str:
    return f"{int(np.isnan(values).sum())} NaN and {int(np.isinf(values).sum())} infinite"


class PixelMetrics:
    """Pixel AUROC, AP, F1max and AU-PRO of anomaly maps, updated image by image in bounded memory.

    Exact as long as the distinct scores fit the budget: with the default about 2**28 values, that is maps whose
    largest and smallest scores differ by a factor of up to 2**16. Beyond that the nearest scores are counted
    together, `exact` is False and `error_bound` says what that can cost. Results do not depend on the order of the
    updates (AU-PRO: but for rounding, 1e-12).
    """

    def __init__(self, memory: int = 2 << 30) -> None:
        """Start empty.

        Args:
            memory: bytes for the counts, at least 4 MiB; taken only as scores need them. About 0.5 GiB come on top
                while images are added.

        Raises:
            ConfigError: if memory is below 4 MiB.
        """
        if memory < 4 << 20:
            raise ConfigError(f"pixel metrics need a memory of at least 4 MiB (4194304 bytes), got {memory}")
        self._histogram = ScoreHistogram(memory)
        self._regions = 0

    def update(self, anomaly_map: Float32Array, mask: MaskArray | None = None) -> None:
        """Add one image; images may differ in size.

        Args:
            anomaly_map: (H, W) finite float32; other floats are rounded to float32.
            mask: (H, W) bool, True on the defect; None (or all False) for a good image.

        Raises:
            DataError: if the map is not (H, W) or not finite, or the mask has another shape or is not bool.
        """
        with np.errstate(over="ignore"):
            scores = np.ascontiguousarray(anomaly_map, dtype=np.float32)
        if scores.ndim != 2:
            raise DataError(f"an anomaly map must be (H, W), got {scores.shape}: give one map at a time")
        if not np.isfinite(scores).all():
            raise DataError(f"{_not_finite(scores)} of {scores.size} pixels in an anomaly map: check the model")
        keys = sort_keys(scores)
        if mask is None:
            mask = np.zeros(scores.shape, np.bool_)
        if mask.shape != scores.shape:
            raise DataError(
                f"map and mask must have one shape, got {scores.shape} and {mask.shape}: resize one of them"
            )
        if mask.dtype != np.bool_:
            raise DataError(f"a mask must be bool, got {mask.dtype}: compare it with a threshold first")
        if not mask.any():
            self._histogram.add(keys.ravel(), keys.ravel()[:0], np.zeros(0, np.uint64))
            return
        regions = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=8)[mask]
        areas = np.bincount(regions)
        self._regions += int(np.count_nonzero(areas))
        self._histogram.add(keys[~mask], keys[mask], areas[regions].astype(np.uint64))

    def merge(self, other: PixelMetrics) -> None:
        """Add all images of `other`, as if they had been given to `update`; `other` stays as it is."""
        self._histogram.merge(other._histogram)
        self._regions += other._regions

    @property
    def exact(self) -> bool:
        """True if every distinct score of the images so far is counted by itself."""
        return self._histogram.shift == 0

    def compute(self) -> dict[str, float]:
        """Give the metrics of all images so far.

        Returns:
            ``{"auroc", "ap", "f1max", "aupro_0.3", "aupro_0.05"}`` in [0, 1]; all NaN without good or without
            anomalous pixels. `f1max` is reached at a threshold chosen with the masks.
        """
        return self._summary()[0]

    def error_bound(self) -> dict[str, float]:
        """For each figure of `compute`, how far it can be from the exact one at most; 0 if `exact`."""
        values, bounds = self._summary()
        return dict.fromkeys(values, 0.0) if self.exact else bounds

    def aupro(self, limit: float) -> float:
        """Integrate the PRO curve up to the false-positive rate `limit` and divide by it.

        The curve has one point for each false-positive rate that some threshold reaches: the highest overlap there.
        Points are joined by straight lines, as in the reference numbers of the original evaluation.

        Args:
            limit: in (0, 1].

        Raises:
            ConfigError: if limit is outside (0, 1].
        """
        return self._summary((_limit(limit),))[0][f"aupro_{limit:g}"]

    def roc_curve(self, n: int = 1000) -> tuple[Float64Array, Float64Array]:
        """False-positive rate and true-positive rate, both rising from 0 to 1, for a plot: at most n points.

        All corners where there are no more than n, else the first in each of equal parts of the way along the curve.
        Empty without good or without anomalous pixels.

        Raises:
            ConfigError: if n is below 10.
        """
        good, bad = self._histogram.good, self._histogram.anomalous
        corners = ((_woven(s.fp0, s.fp1) / good, _woven(s.tp0, s.tp1) / bad) for s in self._steps())
        return _thinned(corners, 1.0, n)

    def pro_curve(self, limit: float = 1.0, n: int = 1000) -> tuple[Float64Array, Float64Array]:
        """False-positive rate, up to `limit`, and mean per-region overlap, as `roc_curve`.

        Raises:
            ConfigError: if limit is outside (0, 1] or n is below 10.
        """
        good, regions = self._histogram.good, self._regions
        corners = (
            _highest(_woven(s.fp0, s.fp1) / good, np.minimum(_woven(s.overlap0, s.overlap1) / regions, 1.0))
            for s in self._steps()
        )
        return _thinned(corners, _limit(limit), n)

    def pr_curve(self, n: int = 1000) -> tuple[Float64Array, Float64Array]:
        """Recall, rising to 1, and precision at it, as `roc_curve` (no point at recall 0, where it is undefined)."""
        corners = ((s.tp1 / self._histogram.anomalous, s.tp1 / (s.tp1 + s.fp1)) for s in self._steps())
        return _thinned(corners, 1.0, n, closed=False)

    def _steps(self) -> Iterator[Steps]:
        return self._histogram.steps() if self._histogram.good and self._histogram.anomalous else iter(())

    def _summary(self, limits: tuple[float, ...] = AUPRO_LIMITS) -> tuple[dict[str, float], dict[str, float]]:
        return _summary(self._steps(), self._histogram.good, self._histogram.anomalous, self._regions, limits)


def _summary(
    blocks: Iterable[Steps], good: int, anomalous: int, regions: int = 0, limits: tuple[float, ...] = ()
) -> tuple[dict[str, float], dict[str, float]]:
    """All figures, and how far each is from the exact one at most if scores were counted together."""
    names = {limit: f"aupro_{limit:g}" for limit in limits}
    keys = ("auroc", "ap", "f1max", *names.values())
    if not good or not anomalous:
        return dict.fromkeys(keys, NAN), dict.fromkeys(keys, NAN)
    value, slack, best_f1 = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0.0), 0.0
    for s in blocks:
        x0, x1, rise = s.fp0 / good, s.fp1 / good, (s.tp1 - s.tp0) / anomalous
        value["auroc"] += _area(rise, x0, x1, 1.0)
        slack["auroc"] += float(rise @ (x1 - x0))
        value["ap"] += float(rise @ (s.tp1 / (s.tp1 + s.fp1)))
        slack["ap"] += float(rise @ (s.tp1 / (s.tp1 + s.fp0) - (s.tp0 + 1) / (s.tp0 + 1 + s.fp1)))
        value["f1max"] = max(value["f1max"], float((2 * s.tp1 / (s.tp1 + s.fp1 + anomalous)).max()))
        best_f1 = max(best_f1, float((2 * s.tp1 / (s.tp1 + s.fp0 + anomalous)).max()))
        rise = (s.overlap1 - s.overlap0) / max(regions, 1)
        # points of the PRO curve that share a false-positive rate are one, the highest: what rises without a good
        # pixel belongs to the segment before it
        x0 = np.where(s.fp1 > s.fp0, s.fp0, s.joined) / good
        for limit, name in names.items():
            value[name] += _area(rise, x0, x1, limit) / limit
            slack[name] += float(rise @ (np.minimum(x1, limit) - np.minimum(x0, limit))) / limit
    slack["f1max"] = best_f1 - value["f1max"]
    return {key: min(v, 1.0) for key, v in value.items()}, slack


def _area(rise: Float64Array, x0: Float64Array, x1: Float64Array, limit: float) -> float:
    """Integrate from 0 to `limit` a curve that rises by `rise` on each [x0, x1], linearly, and is level between.

    Each rise counts by itself: a triangle on [x0, x1], cut at the limit, and a rectangle from x1 to the limit.
    """
    width = x1 - x0
    inside = np.clip(limit - x0, 0.0, width)
    done = np.divide(inside, width, out=np.ones_like(width), where=width > 0)
    return float((rise * done) @ (inside / 2.0 + np.maximum(limit - x1, 0.0)))


def _limit(limit: float) -> float:
    if not 0.0 < limit <= 1.0:
        raise ConfigError(f"the limit of the false-positive rate must lie in (0, 1], got {limit}: 0.3 is usual")
    return limit


def _highest(x: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The last, highest, point of each run of equal x."""
    last = np.append(np.diff(x) != 0, True) if len(x) else np.zeros(0, dtype=bool)
    return x[last], y[last]


def _woven(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(K,) and (K,) -> (2K,): before, after, before, after ..."""
    return np.stack((before, after), axis=1).ravel()


def _thinned(
    blocks: Iterable[tuple[Float64Array, Float64Array]], limit: float, n: int, closed: bool = True
) -> tuple[Float64Array, Float64Array]:
    """At most n points of a curve given in blocks; x is cut at `limit`, with interpolation.

    A closed curve rises from (0, 0) to (limit, its largest y) and is thinned by x + y, another one by x.
    """
    if n < 10:
        raise ConfigError(f"a curve needs at least 10 points, got n = {n}")
    x, y = np.zeros(0), np.zeros(0)
    empty = True
    for block_x, block_y in blocks:
        empty = False
        x, y = np.concatenate((x, block_x)), np.concatenate((y, block_y))
        if x.size > n - 2:
            way = (x / limit + y) / 2.0 if closed else x  # above 1 beyond the limit, where it is cut below
            part = (way * (n - 5)).astype(np.int64)
            first = np.concatenate(([True], part[1:] > part[:-1]))
            x, y = x[first], y[first]
    if empty or not closed:
        return x, y
    end = float(np.interp(limit, np.concatenate((x, [1.0])), np.concatenate((y, [1.0]))))
    inside = x <= limit
    return np.concatenate(([0.0], x[inside], [limit])), np.concatenate(([0.0], y[inside], [end]))
