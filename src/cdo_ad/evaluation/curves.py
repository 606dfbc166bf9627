"""Ranking metrics and curves from counts by score: the one place where a ROC, precision-recall or PRO curve is walked.

All functions take counts of B scores, the *largest score first*, and work on the last axis; leading axes are other test
sets (resamples) with the same scores. Images or pixels of one score are passed by a threshold together, as in
scikit-learn. A metric that does not exist, because there is only one class, is NaN.

PRO (Bergmann et al., IJCV 2021) is the mean overlap of the regions of the masks, so each anomalous pixel has the weight
1 / area of its region. The curve has one point for each false-positive rate that some threshold reaches, the highest.
What rises at a score that no good pixel has therefore belongs to the segment that ends there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import ConfigError

__all__ = [
    "Bins",
    "Curve",
    "aupro",
    "auroc",
    "average_precision",
    "by_score",
    "f1max",
    "pr",
    "pro",
    "roc",
    "segments",
    "thin",
]

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]


class Bins(NamedTuple):
    """Counts at B scores, the largest first; (..., B) each."""

    good: Array
    anomalous: Array
    weight: Array
    """Anomalous pixels, each divided by the area of its region; where there are no regions, as `anomalous`."""


class Curve(NamedTuple):
    """Points of a curve, (P,) each."""

    x: Float64Array
    y: Float64Array


def by_score(scores: npt.NDArray[np.float64], good: Array, anomalous: Array) -> Bins:
    """Counts by distinct score.

    Args:
        scores: (N,) finite.
        good: (..., N) how many good ones each of the N stands for.
        anomalous: (..., N) how many anomalous ones.
    """
    order = np.argsort(-scores, kind="stable")
    if not scores.size:
        return Bins(good, anomalous, anomalous)
    starts = np.flatnonzero(np.concatenate(([True], np.diff(scores[order]) != 0)))
    counts = [np.add.reduceat(part[..., order], starts, axis=-1, dtype=np.float64) for part in (good, anomalous)]
    return Bins(counts[0], counts[1], counts[1])


# ---- areas


def auroc(bins: Bins) -> Float64Array:
    """(...) area under the ROC curve: the chance that an anomalous one scores above a good one, ties half."""
    all_good, all_bad = _total(bins.good), _total(bins.anomalous)
    below = all_good - np.cumsum(bins.good, axis=-1)
    return _ratio((bins.anomalous * (below + bins.good / 2)).sum(axis=-1), (all_good * all_bad)[..., 0])


def average_precision(bins: Bins) -> Float64Array:
    """(...) area under the precision-recall curve, by steps, as in scikit-learn."""
    true = np.cumsum(bins.anomalous, axis=-1)
    precision = _quotient(true, true + np.cumsum(bins.good, axis=-1))
    return _ratio((bins.anomalous * precision).sum(axis=-1), _both(bins))


def f1max(bins: Bins) -> Float64Array:
    """(...) the largest F1 over all thresholds: a bound, chosen with the labels, not the F1 of any detector."""
    true = np.cumsum(bins.anomalous, axis=-1)
    called = true + np.cumsum(bins.good, axis=-1)
    best = (2 * true / np.maximum(called + _total(bins.anomalous), 1)).max(axis=-1, initial=0.0)
    return np.where(np.isnan(_both(bins)), np.nan, best)


def aupro(bins: Bins, limit: float) -> Float64Array:
    """(...) area under the PRO curve up to the false-positive rate `limit`, divided by it.

    Points are joined by straight lines, as in the original evaluation of MVTec AD.

    Args:
        bins: of pixels.
        limit: in (0, 1].

    Raises:
        ConfigError: the limit is outside (0, 1].
    """
    end, regions = _limit(limit) * _total(bins.good), _total(bins.weight)
    (start, stop), weight = segments(bins.good), bins.weight
    if weight.ndim == 1:
        rises = np.flatnonzero(weight)
        start, stop, weight = start[rises], stop[rises], weight[rises]
    width = stop - start
    inside = np.clip(end - start, 0.0, width)
    done = np.where(width > 0, _quotient(inside, width), 1.0)
    area = (weight * done * (inside / 2 + np.maximum(end - stop, 0.0))).sum(axis=-1)
    return np.minimum(_ratio(area, (regions * end)[..., 0]), 1.0)


# ---- curves of one test set


def roc(bins: Bins) -> Curve:
    """False-positive and true-positive rate, from (0, 0) to (1, 1); no point where a class is missing."""
    if np.isnan(_both(bins)):
        return _NOTHING
    return Curve(_rising(bins.good), _rising(bins.anomalous))


def pr(bins: Bins) -> Curve:
    """Recall, rising to 1, and precision there; no point at recall 0, where it is undefined."""
    if np.isnan(_both(bins)):
        return _NOTHING
    here = bins.anomalous > 0
    true, false = np.cumsum(bins.anomalous)[here], np.cumsum(bins.good)[here]
    return Curve(true / true[-1], true / (true + false))


def pro(bins: Bins, limit: float = 1.0) -> Curve:
    """False-positive rate, from 0 to `limit`, and mean overlap of a region; see `aupro`."""
    limit = _limit(limit)
    if np.isnan(_both(bins)):
        return _NOTHING
    x, y = _rising(bins.good), _rising(bins.weight)
    highest = np.append(np.diff(x) > 0, True)
    x, y = x[highest], y[highest]
    if x[0] > 0:
        x, y = np.append(0.0, x), np.append(0.0, y)
    inside = x < limit
    return Curve(np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y)))


def thin(curve: Curve, most: int) -> Curve:
    """At most that many points, spread evenly along the way of the curve; the first and the last stay.

    Raises:
        ConfigError: fewer than 10 points are asked for.
    """
    if most < 10:
        raise ConfigError(f"a curve needs at least 10 points, got n = {most}")
    x, y = curve
    if x.size <= most:
        return curve
    way = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    keep = np.unique(np.searchsorted(way, np.linspace(0, way[-1], most - 1)))
    keep = np.append(keep[keep < x.size - 1], x.size - 1)
    return Curve(x[keep], y[keep])


_NOTHING = Curve(np.zeros(0), np.zeros(0))


def segments(good: Array) -> tuple[Array, Array]:
    """Good pixels passed where the PRO curve's segment begins and ends that each bin's rise belongs to."""
    stop = np.cumsum(good, axis=-1)
    return np.maximum.accumulate(np.where(good > 0, stop - good, 0), axis=-1), stop


def _rising(counts: Array) -> Float64Array:
    passed = np.append(0, np.cumsum(counts))
    return np.asarray(passed / passed[-1])


def _total(counts: Array) -> Array:
    """(..., 1) the sum over all scores."""
    total: Array = counts.sum(axis=-1, keepdims=True)
    return total


def _both(bins: Bins) -> Float64Array:
    """(...) the number of anomalous ones, NaN where one of the classes is missing."""
    all_good, all_bad = bins.good.sum(axis=-1), bins.anomalous.sum(axis=-1)
    return np.where((all_good > 0) & (all_bad > 0), all_bad, np.nan)


def _quotient(part: Array, whole: Array) -> Float64Array:
    """0 where there is nothing to divide by."""
    quotient: Float64Array = np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole > 0)
    return quotient


def _ratio(part: Array, whole: Array) -> Float64Array:
    """NaN where there is nothing to divide by."""
    ratio: Float64Array = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return ratio


def _limit(limit: float) -> float:
    if not 0.0 < limit <= 1.0:
        raise ConfigError(f"the limit of the false-positive rate must lie in (0, 1], got {limit}: 0.3 is usual")
    return limit
