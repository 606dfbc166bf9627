from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import beta
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from cdo_ad.errors import ConfigError, DataError
from cdo_ad.evaluation import histogram
from cdo_ad.evaluation.histogram import COARSE, ScoreHistogram
from cdo_ad.evaluation.metrics import PixelMetrics, decision_metrics, image_metrics, rate_interval
from cdo_ad.evaluation.schema import Ranking, Rate

GOLDEN = Path(__file__).parent / "golden" / "metrics_reference.npz"
SMALL = 4 << 20
Images = list[tuple[np.ndarray, np.ndarray | None]]


# ---- oracles: slow, and written without looking at the code under test


def regions_of(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected regions by flood fill."""
    left = {(int(i), int(j)) for i, j in np.argwhere(mask)}
    regions = []
    while left:
        stack = [left.pop()]
        region = set(stack)
        while stack:
            i, j = stack.pop()
            near = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            region |= near
            stack += near
        regions.append(region)
    return regions


def oracle_aupro(images: Images, limit: float) -> float:
    """Every distinct threshold, every region, one by one; then trapezoids up to the interpolated limit."""
    masks = [np.zeros(m.shape, bool) if k is None else k for m, k in images]
    cases = [(m, k, regions_of(k)) for (m, _), k in zip(images, masks, strict=True)]
    values = np.unique(np.concatenate([m.ravel() for m, _ in images]))[::-1]
    points = [(0.0, 0.0)]
    for value in values:
        false, good, overlaps = 0, 0, []
        for scores, truth, regions in cases:
            false += int(((scores >= value) & ~truth).sum())
            good += int((~truth).sum())
            overlaps += [np.mean([scores[p] >= value for p in region]) for region in regions]
        points.append((false / good, float(np.mean(overlaps))))
    area = 0.0
    points = [p for p, q in pairwise([*points, (2.0, 1.0)]) if p[0] != q[0]]  # the highest at each rate
    for (x0, y0), (x1, y1) in pairwise([(0.0, 0.0), *points] if points[0][0] > 0 else points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def oracle_ranking(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    precision, recall, _ = precision_recall_curve(labels, scores)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "ap": float(average_precision_score(labels, scores)),
        "f1max": float(f1.max()),
    }


def oracle_pixels(images: Images) -> dict[str, float]:
    masks = [np.zeros(m.shape, bool) if k is None else k for m, k in images]
    flat = oracle_ranking(np.concatenate([k.ravel() for k in masks]), np.concatenate([m.ravel() for m, _ in images]))
    return {**flat, "aupro_30": oracle_aupro(images, 0.3), "aupro_05": oracle_aupro(images, 0.05)}


# ---- makers


def golden() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Maps (12, 96, 128) float32, masks of that shape and the metrics of the original evaluation by name."""
    with np.load(GOLDEN) as archive:
        data = dict(archive)
    maps = data["maps"].astype(np.float32)
    return maps, np.unpackbits(data["masks"], count=maps.size).reshape(maps.shape).astype(bool), data


def filled(images: Images, memory: int = 2 << 30, shift: int = 0) -> PixelMetrics:
    metrics = PixelMetrics(memory, shift)
    for scores, mask in images:
        metrics.update(scores, mask)
    return metrics


def random_images(seed: int, *, levels: int | None = None, count: int = 3, size: int = 9) -> Images:
    """Mixed sizes, negative scores too, the first image good; with `levels` few distinct scores (many ties)."""
    rng = np.random.default_rng(seed)
    images: Images = []
    for index in range(count):
        shape = (size + index, size + 3 - index)
        mask = rng.random(shape) < 0.12 if index else None
        scores = rng.normal(size=shape) + (0 if mask is None else 1.2 * mask)
        if levels:
            scores = np.round(scores * levels) / levels
        images.append((scores.astype(np.float32), mask))
    return images


def smooth_images(seed: int, count: int = 6, size: int = 176) -> Images:
    """Like anomaly maps: values in (0.05, 3), one square defect in each but the first."""
    rng = np.random.default_rng(seed)
    images: Images = []
    for index in range(count):
        scores = 0.3 * np.exp(0.5 * rng.normal(size=(size, size)))
        mask = np.zeros((size, size), bool)
        if index:
            y, x = rng.integers(0, size - 40, 2)
            mask[y : y + 8 * index, x : x + 20] = True
        images.append(((scores * (1 + 0.8 * mask)).astype(np.float32), mask))
    return images


# ---- image level


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=40))
def test_image_metrics_equal_scikit_learn_with_ties(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] / 3 for r in rows])
    got = dict(image_metrics(labels, scores))
    if labels.all() or not labels.any():
        assert all(math.isnan(v) for v in got.values())
    else:
        assert got == pytest.approx(oracle_ranking(labels, scores), abs=1e-12)


def test_image_scores_keep_double_precision() -> None:
    assert image_metrics([False, True], [1.0, 1.0 + 1e-12]).auroc == 1.0


@pytest.mark.parametrize("labels", [[], [False, False], [True, True]])
def test_one_class_only_is_undefined_not_zero(labels: list[bool]) -> None:
    got = dict(image_metrics(labels, np.arange(len(labels))))
    assert set(got) == {"auroc", "ap", "f1max"}
    assert all(math.isnan(v) for v in got.values())


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([True, False], [1.0], r"\(2,\) and \(1,\)"),
        ([[True]], [[1.0]], r"\(1, 1\)"),
        ([True, False], [1.0, math.nan], "1 NaN and 0 infinite"),
        ([True, False], [1.0, math.inf], "0 NaN and 1 infinite"),
        ([2, 0], [1.0, 2.0], "True or False"),
    ],
)
def test_bad_image_scores_are_named(labels: list[bool], scores: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_metrics(labels, scores)


# ---- pixel level


@pytest.mark.parametrize("merged", [False, True])
def test_reference_numbers(merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if merged:
        monkeypatch.setattr(histogram, "BUFFER_PIXELS", 1000)
    maps, masks, data = golden()
    metrics = filled(list(zip(maps, masks, strict=True)))
    got = metrics.compute()
    assert metrics.exact
    assert got.aupro_30 == metrics.aupro(0.3)
    for name in ("auroc", "ap", "f1max"):
        assert getattr(got, name) == pytest.approx(float(data[f"pixel_{name}"]), abs=1e-6)
    image = image_metrics(masks.any(axis=(1, 2)), maps.max(axis=(1, 2)))
    assert image.auroc == pytest.approx(float(data["image_auroc"]), abs=1e-6)
    assert image.ap == pytest.approx(float(data["image_ap"]), abs=1e-6)


@pytest.mark.parametrize(("limit", "tolerance"), [(0.3, 1e-6), (0.05, 1e-6), (0.01, 1.1e-6)])
def test_reference_aupro(limit: float, tolerance: float) -> None:
    # at 0.01 the difference is 1.08e-6: there an area of 1e-8, less than one good pixel's, counts a hundredfold
    maps, masks, data = golden()
    metrics = filled(list(zip(maps, masks, strict=True)))
    assert metrics.aupro(limit) == pytest.approx(float(data[f"aupro_{limit}"]), abs=tolerance, rel=0)


@pytest.mark.parametrize("limit", [0.3, 0.05, 0.01])
def test_aupro_equals_sorted_sums_on_the_reference_maps(limit: float) -> None:
    maps, masks, _ = golden()
    metrics = filled(list(zip(maps, masks, strict=True)))
    weight, false, count = np.zeros(masks.shape), ~masks, 0
    for image, mask in zip(weight, masks, strict=True):
        for region in regions_of(mask):
            count += 1
            image[tuple(np.array(list(region)).T)] = 1 / len(region)
    order = np.argsort(-maps.ravel(), kind="stable")
    x = np.cumsum(false.ravel()[order]) / false.sum()
    y = np.cumsum(weight.ravel()[order]) / count
    last = np.append((np.diff(maps.ravel()[order]) != 0) & (np.diff(x) != 0), True)
    x, y = np.concatenate(([0.0], x[last])), np.concatenate(([0.0], y[last]))
    inside = x < limit
    x, y = np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))
    assert metrics.aupro(limit) == pytest.approx(np.trapezoid(y, x) / limit, abs=1e-10)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("levels", [None, 2, 1])
@pytest.mark.parametrize("seed", range(4))
def test_pixel_metrics_equal_the_oracles(
    seed: int, levels: int | None, merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if merged:
        monkeypatch.setattr(histogram, "BUFFER_PIXELS", 100)
    images = random_images(seed, levels=levels)
    metrics = filled(images)
    assert dict(metrics.compute()) == pytest.approx(oracle_pixels(images), abs=1e-12)
    assert metrics.aupro(0.01) == pytest.approx(oracle_aupro(images, 0.01), abs=1e-12)
    assert metrics.aupro(1.0) == pytest.approx(oracle_aupro(images, 1.0), abs=1e-12)


def diagonal() -> np.ndarray:
    return np.eye(6, dtype=bool)


def one_pixel() -> np.ndarray:
    mask = np.zeros((6, 6), bool)
    mask[2, 3] = True
    return mask


def two_sizes() -> np.ndarray:
    mask = one_pixel()
    mask[4:, :] = True  # 12 pixels, not connected with the single one
    return mask


@pytest.mark.parametrize("make", [diagonal, one_pixel, two_sizes])
@pytest.mark.parametrize("levels", [2, 50])
def test_regions(make: object, levels: int) -> None:
    mask = make()  # type: ignore[operator]
    rng = np.random.default_rng(levels)
    images: Images = [((rng.integers(0, levels, mask.shape) / levels).astype(np.float32), mask)]
    assert dict(filled(images).compute()) == pytest.approx(oracle_pixels(images), abs=1e-12)


def test_a_small_region_counts_as_much_as_a_large_one() -> None:
    mask = two_sizes()
    scores = one_pixel().astype(np.float32)  # only the single pixel is found
    assert filled([(scores, mask)]).aupro(1.0) == pytest.approx((0.5 + 1.0) / 2)  # (0, .5) -> (1, 1)


@pytest.mark.parametrize("masks", [[None, None], [np.ones((5, 5), bool)], []])
def test_pixels_of_one_class_are_undefined(masks: list[np.ndarray | None]) -> None:
    metrics = filled([(np.arange(25, dtype=np.float32).reshape(5, 5), mask) for mask in masks])
    got = dict(metrics.compute())
    assert list(got) == ["auroc", "ap", "f1max", "aupro_30", "aupro_05"]
    assert all(math.isnan(v) for v in got.values())
    assert math.isnan(metrics.aupro(0.1))
    assert metrics.roc_curve()[0].size == metrics.pr_curve()[0].size == metrics.pro_curve()[0].size == 0


def test_an_all_false_mask_is_a_good_image() -> None:
    images = random_images(0)
    with_mask: Images = [(m, np.zeros(m.shape, bool) if k is None else k) for m, k in images]
    assert filled(images).compute() == filled(with_mask).compute()


def test_a_image_of_nothing_but_defect_counts() -> None:
    images = [*random_images(1), (np.full((3, 4), 0.7, np.float32), np.ones((3, 4), bool))]
    assert dict(filled(images).compute()) == pytest.approx(oracle_pixels(images), abs=1e-12)


def test_minus_zero_ties_with_zero_and_sort_keys_follow_the_scores() -> None:
    mask = np.array([[True, False]])
    assert filled([(np.array([[0.0, -0.0]], np.float32), mask)]).compute().auroc == 0.5
    values = np.array([-3e38, -1.5, -1e-40, -0.0, 0.0, 1e-45, 1e-40, 1.0, np.nextafter(np.float32(1), 2), 3e38], "f4")
    keys = histogram.sort_keys(values).astype(np.int64)
    assert (np.sign(np.diff(keys)) == np.sign(np.diff(values))).all()


# ---- bounded memory


@pytest.mark.parametrize("seed", range(3))
def test_a_tiny_budget_stays_near_and_within_its_bound(seed: int) -> None:
    images = smooth_images(seed)
    exact, coarse = filled(images), filled(images, SMALL)
    assert exact.exact
    assert set(exact.error_bound().values()) == {0.0}
    assert not coarse.exact
    bound = coarse.error_bound()
    for name, value in exact.compute():
        assert abs(getattr(coarse.compute(), name) - value) <= min(bound[name] + 1e-12, 1e-4)
    assert 0 < bound["auroc"] < 1e-3


def test_the_bound_holds_where_scores_are_very_coarse() -> None:
    images = smooth_images(7)
    coarse = filled(images, shift=16)
    exact, bound = filled(images).compute(), coarse.error_bound()
    differences = {name: abs(value - getattr(exact, name)) for name, value in coarse.compute()}
    assert max(differences.values()) > 1e-6  # so coarse that it shows
    for name, difference in differences.items():
        assert difference <= bound[name] < 0.2


@pytest.mark.parametrize("memory", [SMALL, 2 << 30])
def test_the_order_of_the_images_does_not_matter(memory: int) -> None:
    images = smooth_images(3)
    one, other = filled(images, memory), filled(images[::-1], memory)
    assert one.exact == other.exact == (memory != SMALL)
    assert dict(one.compute()) == pytest.approx(dict(other.compute()), abs=1e-12)
    assert one.histogram.shift == other.histogram.shift


@pytest.mark.parametrize("memories", [(SMALL, SMALL), (2 << 30, 2 << 30), (2 << 30, SMALL), (SMALL, 2 << 30)])
def test_merging_equals_updating(memories: tuple[int, int]) -> None:
    images = smooth_images(5, count=12)
    one, two = filled(images[:6], memories[0]), filled(images[6:], memories[1])
    assert two.exact == (memories[1] != SMALL)
    before = two.compute()
    one.merge(two)
    assert two.compute() == before
    if memories[0] == memories[1]:
        assert dict(one.compute()) == pytest.approx(dict(filled(images, memories[0]).compute()), abs=1e-12)
    exact, bound = filled(images).compute(), one.error_bound()
    for name, value in one.compute():
        assert abs(value - getattr(exact, name)) <= bound[name] + 1e-12


def test_bins_stay_within_the_budget_for_any_scores() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, (400, 400), dtype=np.uint32)
    scores = bits.view(np.float32)
    scores = np.where(np.isfinite(scores), scores, np.float32(0))  # every exponent, both signs
    metrics = filled([(scores, rng.random(scores.shape) < 0.5)] * 2, SMALL)
    assert metrics.compute().auroc == pytest.approx(0.5, abs=0.01)
    assert 0 < metrics.histogram.nbytes <= SMALL / 2


def test_counts_of_one_score_do_not_overflow() -> None:
    metrics = filled([(np.zeros((1100, 1000), np.float32), None)] * 16)
    for _ in range(8):  # 17.6 million good pixels of one score, doubled eight times: 4.5e9 > 2**32
        metrics.merge(metrics)
    metrics.update(np.array([[1.0, 0.0]], np.float32), np.array([[True, True]]))
    assert metrics.histogram.good == 17_600_000 * 256
    assert metrics.exact
    assert metrics.compute().auroc == pytest.approx(0.75, abs=1e-12)


def test_small_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4 MiB"):
        PixelMetrics((4 << 20) - 1)


# ---- errors of update


@pytest.mark.parametrize(
    ("scores", "mask", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2), bool), r"\(2, 3\) and \(3, 2\)"),
        (np.zeros((1, 2, 3)), None, r"\(H, W\), got \(1, 2, 3\)"),
        (np.array([[0.0, np.nan]]), None, "1 NaN and 0 infinite of 2 pixels"),
        (np.array([[-np.inf, 1e300]]), None, "0 NaN and 2 infinite"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.uint8), "bool, got uint8"),
    ],
)
def test_bad_maps_are_named(scores: np.ndarray, mask: np.ndarray | None, message: str) -> None:
    metrics = PixelMetrics()
    with pytest.raises(DataError, match=message):
        metrics.update(scores, mask)
    assert math.isnan(metrics.compute().auroc)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.01, math.nan])
def test_limits_outside_their_range(limit: float) -> None:
    metrics = filled(random_images(0))
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        metrics.aupro(limit)
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        metrics.pro_curve(limit)


# ---- curves


def test_curves_hold_every_corner_when_there_are_few() -> None:
    images = random_images(2, levels=2)
    metrics = filled(images)
    x, y = metrics.roc_curve()
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(metrics.compute().auroc, abs=1e-12)
    for limit in (0.3, 0.05, 1.0):
        x, y = metrics.pro_curve(limit)
        assert x[-1] == limit
        assert np.trapezoid(y, x) / limit == pytest.approx(metrics.aupro(limit), abs=1e-12)
    recall, precision = metrics.pr_curve()
    assert np.sum(np.diff(recall, prepend=0) * precision) == pytest.approx(metrics.compute().ap, abs=1e-12)


@pytest.mark.parametrize("merged", [False, True])
def test_thinned_curves_stay_near(merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if merged:
        monkeypatch.setattr(histogram, "BUFFER_PIXELS", 5000)
    metrics = filled(smooth_images(1))
    x, y = metrics.roc_curve(200)
    assert 150 < x.size <= 200
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    assert np.trapezoid(y, x) == pytest.approx(metrics.compute().auroc, abs=1e-3)
    x, y = metrics.pro_curve(0.3, 200)
    assert x.size <= 200
    assert np.trapezoid(y, x) / 0.3 == pytest.approx(metrics.compute().aupro_30, abs=2e-3)
    recall, precision = metrics.pr_curve(200)
    assert 100 < recall.size <= 200
    assert recall[-1] == 1
    assert np.sum(np.diff(recall, prepend=0) * precision) == pytest.approx(metrics.compute().ap, abs=5e-3)
    with pytest.raises(ConfigError, match="at least 10"):
        metrics.roc_curve(9)


def test_a_curve_that_rises_at_the_right_edge_keeps_its_corner() -> None:
    mask = np.array([[True, False, False]])
    x, y = filled([(np.array([[0.0, 1.0, 2.0]], np.float32), mask)]).roc_curve()
    assert np.trapezoid(y, x) == 0.0


# ---- rates


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 20), (1, 150), (75, 150), (149, 150), (12, 5000)]
)
def test_rate_interval_equals_the_beta_quantiles(k: int, n: int, confidence: float) -> None:
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, k, n - k + 1) if k else 0.0
    high = beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    assert rate_interval(k, n, confidence) == pytest.approx((low, high), abs=1e-10)


def test_rate_interval_without_trials_says_nothing() -> None:
    assert rate_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0)])
def test_rate_interval_outside_its_range(k: int, n: int, confidence: float) -> None:
    with pytest.raises(ConfigError):
        rate_interval(k, n, confidence)


def test_rates_are_of_the_images_of_their_class() -> None:
    got = decision_metrics([False, False, False, False, True, True], [0, 0, 0, 1, 0, 1], 0.05)
    low, high = rate_interval(1, 4)
    assert got.rate == 0.05
    assert got.false_alarm_rate == Rate(value=0.25, low=low, high=high, count=1, n=4)
    assert (got.detection_rate.value, got.detection_rate.count, got.detection_rate.n) == (0.5, 1, 2)


def test_rates_of_a_missing_class() -> None:
    rate = decision_metrics([False], [0.0], 0.05).detection_rate
    assert math.isnan(rate.value)
    assert (rate.low, rate.high, rate.count, rate.n) == (0.0, 1.0, 0, 0)
    document = rate.to_json()
    assert document["value"] is None and math.isnan(Rate.from_json(document).value)


@pytest.mark.parametrize("value", [1.01, -0.1, "0.5", float("inf")])
def test_a_metric_outside_its_range_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        Ranking.model_validate({"auroc": value, "ap": 0.5, "f1max": 0.5}, strict=True)


def test_counts_of_one_image_are_the_exact_ones_in_coarse_bins() -> None:
    scores, mask = smooth_images(4)[2]
    exact, coarse = ScoreHistogram(), ScoreHistogram(shift=COARSE)
    for counter in (exact, coarse):
        counter.add(scores, mask)
    one, other = exact.counted(), coarse.counted()
    bins, where = np.unique(one.keys >> np.uint32(COARSE), return_inverse=True)
    assert other.keys.tolist() == bins.tolist() and len(bins) < 2000 < len(one.keys)
    for fine, wide in ((one.good, other.good), (one.anomalous, other.anomalous), (one.weight, other.weight)):
        np.testing.assert_allclose(np.bincount(where, fine), wide, rtol=1e-12)
    assert other.weight.sum() == pytest.approx(len(regions_of(mask)))
