from __future__ import annotations

import numpy as np
import pytest

from cdo_ad.calibration import Calibration, conformal_threshold, images_needed, p_value
from cdo_ad.errors import BundleError, CalibrationError


@pytest.mark.parametrize(("rate", "count"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1), (0.3, 3), (0.001, 999)])
def test_images_needed(rate, count) -> None:
    assert images_needed(rate) == count
    conformal_threshold(np.arange(count), rate)
    if count > 1:
        with pytest.raises(CalibrationError, match=f"needs {count} .* there are {count - 1}: add 1 more"):
            conformal_threshold(np.arange(count - 1), rate)


@pytest.mark.parametrize(("n", "rate", "rank"), [(19, 0.05, 19), (39, 0.05, 38), (99, 0.1, 90), (42, 0.05, 41)])
def test_the_threshold_is_the_stated_order_statistic(n, rate, rank) -> None:
    scores = np.random.default_rng(0).permutation(n) + 1.0
    assert conformal_threshold(scores, rate) == rank


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_rates_outside_the_open_interval_are_refused(rate) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        conformal_threshold([1.0], rate)


def test_p_values_count_ties_against_the_image() -> None:
    scores = [1.0, 2.0, 2.0, 3.0]
    assert [p_value(scores, s) for s in (0.0, 2.0, 2.5, 3.0, 9.0)] == [1.0, 0.8, 0.4, 0.4, 0.2]


def test_the_promise_holds_on_average() -> None:
    rng = np.random.default_rng(1)
    scores, new = rng.normal(size=(4000, 39)), rng.normal(size=4000)
    alarms = np.mean([x > conformal_threshold(s, 0.1) for s, x in zip(scores, new, strict=True)])
    assert 0.08 < alarms <= 0.115
    small = np.mean([p_value(np.sort(s), x) <= 0.1 for s, x in zip(scores, new, strict=True)])
    assert 0.08 < small <= 0.115


def test_a_decision_is_a_small_p_value() -> None:
    rng = np.random.default_rng(2)
    calibration = Calibration.fit(rng.normal(size=42).tolist(), rng.normal(size=42).tolist(), 0.05)
    for score in rng.normal(size=200):
        assert (score > calibration.image_threshold) == (calibration.p_value(score) <= 0.05)


def test_json_and_back_and_another_rate() -> None:
    calibration = Calibration.fit([3.0, 1.0, 2.0], [6.0, 5.0, 4.0], 0.5)
    assert Calibration.from_json(calibration.to_json()) == calibration
    assert calibration.at_rate(0.25).image_threshold == 3.0 and calibration.at_rate(0.25).pixel_threshold == 6.0
    with pytest.raises(BundleError, match="damaged"):
        Calibration.from_json({"scores": []})


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CalibrationError, match="not a finite number"):
        Calibration.fit([1.0, float("nan")], [1.0, 1.0], 0.5)


def test_a_raised_threshold_takes_scores_that_are_level_with_it_along() -> None:
    scores = [0.5, 0.6, 0.7, 1.0 - 1e-6, 1.0 + 1e-6, 1.3]
    low = Calibration.fit(scores, [2 * s for s in scores], 0.5)
    assert low.image_threshold == 1.0 - 1e-6 and low.pixel_threshold == 2 * (1.0 - 1e-6)
    raised = low.at_least(1.0)
    assert raised.image_threshold == 1.0 + 1e-6 and raised.pixel_threshold == low.pixel_threshold
    assert not raised.decide(1.0 + 1e-6) and raised.decide(1.01)
    assert low.at_least(1.1).image_threshold == 1.1 and raised.scores == low.scores
