"""Metrics of test sets drawn again: how far a difference between two runs could be chance.

A resample draws as many good and as many anomalous images as there are, with replacement (Efron and Tibshirani 1993,
stratified). All runs are measured on the same resamples, so what an image does to all of them cancels: the interval
of the *difference* is what counts, and it is narrower than the intervals of the runs suggest.

The resamples are a matrix of multiplicities, so every figure of every resample is a product with the table of the
images' counts and a sum along its bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.evaluation.pixel_histogram import PixelTable
from cdo_ad.evaluation.results import Results

__all__ = ["draw", "interval", "metrics_of", "ranking"]

FloatArray = npt.NDArray[Any]
PRO_LIMITS = (0.3, 0.05)
CHUNK_VALUES = 4_000_000


def draw(anomalous: npt.NDArray[np.bool_], count: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each image is in each resample.

    Args:
        anomalous: (N,) the truth.
        count: of resamples R.
        seed: of the draw.

    Returns:
        (R, N): each row adds up to the number of good images on those, and of anomalous ones on those.
    """
    random = np.random.default_rng(seed)
    times = np.zeros((count, anomalous.size))
    for stratum in (~anomalous, anomalous):
        n = int(stratum.sum())
        if n:
            times[:, stratum] = random.multinomial(n, np.full(n, 1 / n), size=count)
    return times


def metrics_of(results: Results, times: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Every figure of a run on every resample.

    Args:
        results: of one run on N images.
        times: (R, N), see `draw`.

    Returns:
        By name (R,): `image.auroc`, `image.ap`, `decision.detection_rate`, `decision.false_alarm_rate`, for each type
        `TYPE.detection_rate`, and where pixels were counted `pixel.auroc`, `pixel.ap`, `pixel.aupro_0.3` and
        `pixel.aupro_0.05`, from binned scores. NaN where a resample has no image of the kind.
    """
    bad = results.anomalous
    auroc, ap = _image_ranking(results.scores, bad, times)
    found = {"image.auroc": auroc, "image.ap": ap}
    kinds = {"decision.detection_rate": bad, "decision.false_alarm_rate": ~bad}
    types = np.array(results.types)
    kinds.update({f"{kind}.detection_rate": types == kind for kind in sorted(set(types[bad].tolist()))})
    for name, kind in kinds.items():
        found[name] = _ratio(times[:, kind] @ results.decisions[kind], times[:, kind].sum(axis=1))
    if results.pixels is not None:
        found.update(_pixel_figures(results.pixels, times))
    return found


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of (R,) values, those that are no numbers left out; NaN where none is one."""
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def ranking(good: FloatArray, bad: FloatArray) -> tuple[FloatArray, FloatArray]:
    """AUROC and average precision of counts by score, ties passed together as in `cdo_ad.evaluation.metrics`.

    Args:
        good: (R, B) how many good ones have each score, the largest score first.
        bad: (R, B) anomalous ones.

    Returns:
        (R,) and (R,), NaN for rows without both kinds.
    """
    all_good, all_bad = good.sum(axis=1), bad.sum(axis=1)
    false, true = np.cumsum(good, axis=1), np.cumsum(bad, axis=1)
    precision = np.divide(true, true + false, out=np.zeros(true.shape), where=true > 0)
    defined = (all_good > 0) & (all_bad > 0)
    ap = np.where(defined, _ratio((bad * precision).sum(axis=1), all_bad), np.nan)
    return _area(good, bad, all_bad, 1.0), ap


def _image_ranking(
    scores: npt.NDArray[np.float64], bad: npt.NDArray[np.bool_], times: npt.NDArray[np.float64]
) -> tuple[FloatArray, FloatArray]:
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.concatenate(([True], np.diff(scores[order]) != 0)))
    return ranking(*(np.add.reduceat((times * kind)[:, order], starts, axis=1) for kind in (~bad, bad)))


def _pixel_figures(table: PixelTable, times: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    names = ("pixel.auroc", "pixel.ap", *(f"pixel.aupro_{limit:g}" for limit in PRO_LIMITS))
    # the sum of a region's weights is 1, so their sum over an image is the number of its regions
    regions = np.rint(table.weight.sum(axis=1, dtype=np.float64))
    rows = [
        (*ranking(good, bad), *(_area(good, weight, rows_of @ regions, limit) for limit in PRO_LIMITS))
        for rows_of, good, bad, weight in _chunks(table, times)
    ]
    columns: Sequence[FloatArray] = [np.concatenate(column) for column in zip(*rows, strict=True)]
    return dict(zip(names, columns, strict=True))


def _chunks(
    table: PixelTable, times: npt.NDArray[np.float64]
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray, FloatArray]]:
    """A few resamples at a time: their multiplicities, and (r, B) counts with the largest score first."""
    step = max(1, CHUNK_VALUES // max(1, table.good.shape[1]))
    for start in range(0, len(times), step):
        part = times[start : start + step]

        def counted(counts: FloatArray, part: FloatArray = part) -> FloatArray:
            return (part.astype(np.float32) @ counts)[:, ::-1].astype(np.float64)

        yield part, counted(table.good), counted(table.anomalous), counted(table.weight)


def _area(good: FloatArray, rise: FloatArray, total_rise: FloatArray, limit: float) -> FloatArray:
    """Under the curve of the share of `rise` against that of `good`, up to `limit` and divided by it; see `metrics`."""
    all_good = good.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        end = np.cumsum(good, axis=1) / all_good
        width = good / all_good
        inside = np.clip(limit - (end - width), 0.0, width)
        done = np.where(width > 0, inside / width, 1.0)
        area = (rise * done * (inside / 2 + np.maximum(limit - end, 0.0))).sum(axis=1) / total_rise / limit
    return np.where((total_rise > 0) & (all_good[:, 0] > 0), area, np.nan)


def _ratio(part: FloatArray, whole: FloatArray) -> npt.NDArray[np.float64]:
    ratio: npt.NDArray[np.float64] = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio
