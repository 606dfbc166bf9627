"""How good scores and maps are: exact metrics of arrays, and what each is not.

- Ties count as in scikit-learn, and a metric that does not exist is NaN, never 0 (`cdo_ad.evaluation.curves`).
- Pixel metrics are updated image by image in bounded memory and say whether they are exact
  (`cdo_ad.evaluation.histogram`).
- AU-PRO as in the evaluation of MVTec AD: the mean over the 8-connected regions of the masks of the share of the region
  that is found, against the share of *all* good pixels (of good and of defective images) that are found too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import ConfigError, DataError, needs_extra
from cdo_ad.evaluation import curves
from cdo_ad.evaluation.curves import Bins, Curve
from cdo_ad.evaluation.histogram import ScoreHistogram
from cdo_ad.evaluation.schema import Decisions, PixelRanking, Ranking, Rate
from cdo_ad.types import Float32Array, MaskArray

__all__ = [
    "PixelMetrics",
    "decision_metrics",
    "image_bins",
    "image_metrics",
    "rate_interval",
    "rate_of",
    "require_intervals",
]

LIMITS = {"aupro_30": 0.3, "aupro_05": 0.05}
"""Largest false-positive rate of each area under the PRO curve."""
LEAST_MEMORY = 4 << 20


def image_metrics(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Ranking:
    """AUROC, average precision and the largest F1 over all thresholds, of one score for each image.

    Args:
        labels: (N,) bool (or 0 and 1), True for a defective image.
        scores: (N,) finite floats, larger is more anomalous.

    Returns:
        Metrics in [0, 1]; all NaN if there are not both good and defective images.

    Raises:
        DataError: the shapes differ, a label is not 0 or 1, or a score is NaN or infinite.
    """
    return Ranking(**_ranking(image_bins(labels, scores)))


def image_bins(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Bins:
    """Numbers of good and defective images by score, for `cdo_ad.evaluation.curves`; arguments as `image_metrics`."""
    truth, values = _checked(labels, scores)
    return curves.by_score(values, ~truth, truth)


def _ranking(bins: Bins) -> dict[str, float]:
    found = {"auroc": curves.auroc(bins), "ap": curves.average_precision(bins), "f1max": curves.f1max(bins)}
    return {name: min(float(value), 1.0) if value == value else float("nan") for name, value in found.items()}


# ---- rates


def require_intervals() -> None:
    """Raise MissingExtraError where the exact binomial interval cannot be computed."""
    with needs_extra("evaluate", "an evaluation"):
        import scipy.stats  # noqa: F401


def rate_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of Clopper and Pearson (Biometrika 1934) for k events in n trials.

    Args:
        k: events, 0 <= k <= n.
        n: trials.
        confidence: in (0, 1); each end is wrong with a probability of at most (1 - confidence) / 2.

    Returns:
        (low, high) in [0, 1]; (0, 1) for n = 0.

    Raises:
        ConfigError: k, n or confidence is outside its range.
        MissingExtraError: the extra `evaluate` is not installed.
    """
    if not 0 <= k <= n:
        raise ConfigError(f"events and trials must obey 0 <= k <= n, got k = {k}, n = {n}: check the counts")
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must lie in (0, 1), got {confidence}: 0.95 is usual")
    if n == 0:
        return 0.0, 1.0
    require_intervals()
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def decision_metrics(labels: npt.ArrayLike, decisions: npt.ArrayLike, rate: float) -> Decisions:
    """False-alarm and detection rate of decisions, with 95 % binomial intervals.

    Args:
        labels: (N,) bool (or 0 and 1), True for a defective image.
        decisions: (N,) bool (or 0 and 1), True for an image that was called anomalous.
        rate: the false-alarm rate that the decisions are for.

    Returns:
        The two measured rates, each over the images of its class. The intervals hold for the thresholds as given:
        they do not contain the chance in their calibration.

    Raises:
        DataError: as `image_metrics`.
    """
    truth, values = _checked(labels, np.asarray(decisions, dtype=np.float64))
    called = values > 0
    return Decisions(
        rate=float(rate),
        false_alarm_rate=rate_of(int(called[~truth].sum()), int((~truth).sum())),
        detection_rate=rate_of(int(called[truth].sum()), int(truth.sum())),
    )


def rate_of(count: int, n: int) -> Rate:
    """`count` of `n`, with its 95 % interval."""
    low, high = rate_interval(count, n)
    return Rate(value=count / n if n else float("nan"), low=low, high=high, count=count, n=n)


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
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


# ---- pixels


class PixelMetrics:
    """Pixel AUROC, AP, F1max and AU-PRO of anomaly maps, updated image by image in bounded memory.

    Exact as long as the distinct scores fit the memory: with the default about 4e7 of them, which is more than maps of
    a thousand images of a megapixel have. Beyond that the nearest scores are counted together, `exact` is False and
    `error_bound` says what that can cost. Results do not depend on the order of the updates, but for rounding (1e-12).
    """

    def __init__(self, memory: int = 2 << 30, shift: int = 0) -> None:
        """Start empty.

        Args:
            memory: bytes for the counts, at least 4 MiB; taken only as scores need them.
            shift: see `cdo_ad.evaluation.histogram.ScoreHistogram`.

        Raises:
            ConfigError: memory is below 4 MiB.
        """
        if memory < LEAST_MEMORY:
            raise ConfigError(f"pixel metrics need a memory of at least 4 MiB (4194304 bytes), got {memory}")
        self.histogram = ScoreHistogram(memory, shift)

    def update(self, anomaly_map: Float32Array, mask: MaskArray | None = None, inside: MaskArray | None = None) -> None:
        """Add one image; images may differ in size.

        Args:
            anomaly_map: (H, W) finite float32; other floats are rounded to float32.
            mask: (H, W) bool, True on the defect; None (or all False) for a good image.
            inside: (H, W) bool, the region of interest: other pixels do not count; None for all.

        Raises:
            DataError: the map is not (H, W) or not finite, or the mask has another shape or is not bool.
        """
        with np.errstate(over="ignore"):
            scores = np.ascontiguousarray(anomaly_map, dtype=np.float32)
        if scores.ndim != 2:
            raise DataError(f"an anomaly map must be (H, W), got {scores.shape}: give one map at a time")
        if not np.isfinite(scores).all():
            raise DataError(f"{_not_finite(scores)} of {scores.size} pixels in an anomaly map: check the model")
        if mask is not None and mask.shape != scores.shape:
            raise DataError(
                f"map and mask must have one shape, got {scores.shape} and {mask.shape}: resize one of them"
            )
        if mask is not None and mask.dtype != np.bool_:
            raise DataError(f"a mask must be bool, got {mask.dtype}: compare it with a threshold first")
        self.histogram.add(scores, mask, inside)

    def merge(self, other: PixelMetrics) -> None:
        """Add all images of `other`, as if they had been given to `update`; what `other` says does not change."""
        self.histogram.merge(other.histogram)

    @property
    def exact(self) -> bool:
        """True if every distinct score of the images so far is counted by itself."""
        return self.histogram.shift == 0

    def compute(self) -> PixelRanking:
        """The metrics of all images so far, in [0, 1]; all NaN without good or without anomalous pixels."""
        bins = self.histogram.bins()
        areas = {name: float(curves.aupro(bins, limit)) for name, limit in LIMITS.items()}
        return PixelRanking(**_ranking(bins), **areas)

    def error_bound(self) -> dict[str, float]:
        """For each metric of `compute`, how far it can be from the exact one at most; 0 if `exact`.

        Scores that were counted together could each be ordered in the best or in the worst way.
        """
        names = list(PixelRanking.model_fields)
        if self.exact:
            return dict.fromkeys(names, 0.0)
        bins = self.histogram.bins()
        here = bins.anomalous > 0
        fp1, tp1 = np.cumsum(bins.good), np.cumsum(bins.anomalous)
        all_good, all_bad = max(fp1[-1], 1), max(tp1[-1], 1)
        f1 = float(curves.f1max(bins))
        fp1, tp1, good, bad, weight = fp1[here], tp1[here], bins.good[here], bins.anomalous[here], bins.weight[here]
        fp0, tp0, rise = fp1 - good, tp1 - bad, bad / all_bad
        bounds = {
            "auroc": float(rise @ (good / all_good)),
            "ap": float(rise @ (tp1 / (tp1 + fp0) - (tp0 + 1) / (tp0 + 1 + fp1))),
            "f1max": float((2 * tp1 / (tp1 + fp0 + all_bad)).max(initial=f1)) - f1,
        }
        starts, stops = (end[here] / all_good for end in curves.segments(bins.good))
        regions = max(float(bins.weight.sum()), 1.0)
        for name, limit in LIMITS.items():
            width = np.minimum(stops, limit) - np.minimum(starts, limit)
            bounds[name] = float(weight @ width) / regions / limit
        return {name: bounds[name] for name in names}

    def aupro(self, limit: float) -> float:
        """The PRO curve's area up to a false-positive rate, see `cdo_ad.evaluation.curves.aupro`."""
        return float(curves.aupro(self.histogram.bins(), limit))

    def roc_curve(self, n: int = 1000) -> Curve:
        """At most n points; see `cdo_ad.evaluation.curves.roc` and `thin`."""
        return curves.thin(curves.roc(self.histogram.bins()), n)

    def pr_curve(self, n: int = 1000) -> Curve:
        """At most n points; see `cdo_ad.evaluation.curves.pr` and `thin`."""
        return curves.thin(curves.pr(self.histogram.bins()), n)

    def pro_curve(self, limit: float = 1.0, n: int = 1000) -> Curve:
        """At most n points; see `cdo_ad.evaluation.curves.pro` and `thin`."""
        return curves.thin(curves.pro(self.histogram.bins(), limit), n)
