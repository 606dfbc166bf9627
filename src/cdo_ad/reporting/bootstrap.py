"""Metrics of test sets drawn again: how far a difference between two runs could be chance.

A resample draws as many good and as many anomalous images as there are, with replacement (Efron and Tibshirani 1993,
stratified). All runs are measured on the same resamples, so what an image does to all of them cancels: the interval
of the *difference* is what counts, and it is narrower than the intervals of the runs suggest.

The resamples are a matrix of multiplicities, so all of them are measured at once (`cdo_ad.evaluation.curves`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.evaluation import curves
from cdo_ad.evaluation.metrics import LIMITS
from cdo_ad.evaluation.results import Results

__all__ = ["draw", "interval", "kinds_of", "metrics_of"]

Float64Array = npt.NDArray[np.float64]
CHUNK_VALUES = 4_000_000
"""Resamples times scores that are in memory at once."""


def draw(strata: Sequence[Hashable], count: int, seed: int) -> Float64Array:
    """How often each image is in each resample.

    Args:
        strata: (N,) the kind of each image, such as good or anomalous; their numbers are the same in each resample.
        count: of resamples R.
        seed: of the draw.

    Returns:
        (R, N): in each row the images of a kind add up to their number.
    """
    random = np.random.default_rng(seed)
    numbers = np.unique([str(stratum) for stratum in strata], return_inverse=True)[1]
    times = np.zeros((count, numbers.size))
    for number in range(numbers.max(initial=-1) + 1):
        own = numbers == number
        n = int(own.sum())
        times[:, own] = random.multinomial(n, np.full(n, 1 / n), size=count)
    return times


def metrics_of(results: Results, times: Float64Array) -> dict[str, Float64Array]:
    """Every metric of a run on every resample; rankings of a run of several categories are means over them.

    Args:
        results: of one run on N images.
        times: (R, N), see `draw`.

    Returns:
        By name (R,): `image.auroc`, `image.ap`, `decision.detection_rate`, `decision.false_alarm_rate`, for each type
        `TYPE.detection_rate` (see `kinds_of`), and where pixels were counted `pixel.auroc`, `pixel.ap`,
        `pixel.aupro_30` and `pixel.aupro_05`, from binned scores. NaN where a resample has no image of the kind.
    """
    bad = results.anomalous
    found = _means([_rankings(results, times, own) for own in _by_category(results)])
    kinds = {"decision.detection_rate": bad, "decision.false_alarm_rate": ~bad}
    for name, kind in (kinds | {f"{name}.detection_rate": kind for name, kind in kinds_of(results).items()}).items():
        found[name] = _ratio(times[:, kind] @ results.decisions[kind], times[:, kind].sum(axis=1))
    return found


def kinds_of(results: Results) -> dict[str, npt.NDArray[np.bool_]]:
    """(N,) the images of each type of defect, by name: `TYPE`; of several categories `CATEGORY/TYPE`."""
    several = len(set(results.categories)) > 1
    names = [f"{c}/{t}" if several else t for c, t in zip(results.categories, results.types, strict=True)]
    bad = results.anomalous
    return {name: bad & (np.array(names) == name) for name in sorted({n for n, b in zip(names, bad, strict=True) if b})}


def interval(values: Float64Array) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of (R,) values, those that are no numbers left out; NaN where none is one."""
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _by_category(results: Results) -> Iterator[npt.NDArray[np.bool_]]:
    for category in sorted(set(results.categories)):
        yield np.array(results.categories) == category


def _rankings(results: Results, times: Float64Array, own: npt.NDArray[np.bool_]) -> dict[str, Float64Array]:
    """The ranking metrics of one category, whose images are `own`."""
    bad, part = results.anomalous[own], times[:, own]
    bins = curves.by_score(results.scores[own], part * ~bad, part * bad)
    found = {"image.auroc": curves.auroc(bins), "image.ap": curves.average_precision(bins)}
    if results.pixels is None:
        return found
    counts = results.pixels.chosen(own)
    rows: list[list[Float64Array]] = []
    step = max(1, CHUNK_VALUES // max(1, counts.good.shape[1]))
    for start in range(0, len(part), step):
        drawn = counts.drawn(part[start : start + step])
        rows.append(
            [
                curves.auroc(drawn),
                curves.average_precision(drawn),
                *(curves.aupro(drawn, limit) for limit in LIMITS.values()),
            ]
        )
    names = ("pixel.auroc", "pixel.ap", *(f"pixel.{name}" for name in LIMITS))
    return found | {name: np.concatenate(c) for name, c in zip(names, zip(*rows, strict=True), strict=True)}


def _means(parts: Sequence[dict[str, Float64Array]]) -> dict[str, Float64Array]:
    """Of each metric, the mean over the categories that have it."""
    found = {}
    for name in parts[0]:
        values = np.array([part[name] for part in parts])
        known = ~np.isnan(values)
        found[name] = _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))
    return found


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Float64Array:
    ratio: Float64Array = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio
