"""Thresholds, p-values, decisions and guarantees agree with each other and with the theory."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdo_ad.calibration import ENGINE_TOLERANCE, Calibration
from cdo_ad.conformal import GoodScores, conformal_threshold, units_needed
from cdo_ad.errors import BundleError, CalibrationError, ConfigError


def fit(scores, rate, groups=None, unit="group") -> Calibration:
    values = np.asarray(scores, dtype=float).tolist()
    return Calibration.fit({"": GoodScores(values, values, groups, unit)}, rate)


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.01, 99), (0.02, 49), (0.1, 9), (0.5, 1), (0.9, 1)])
def test_units_needed(rate: float, needed: int) -> None:
    assert units_needed(rate) == needed
    assert fit(np.arange(1.0, needed + 1), rate).guaranteed
    if needed > 1:
        assert not fit(np.arange(1.0, needed), rate).guaranteed


@pytest.mark.parametrize("n", [19, 20, 99, 150, 399])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_without_copies_the_threshold_is_the_conformal_rank(n: int, rate: float) -> None:
    scores = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    rank = math.ceil((1 - rate) * (n + 1) - 1e-9)
    assert fit(scores, rate).of().image_threshold == rank == fit(scores, rate).of().pixel_threshold


def test_copies_share_the_weight_of_one() -> None:
    """Twenty parts, the worst of which was photographed ten times: it still counts once in twenty."""
    scores, groups = [*range(1, 20), *[30.0 + k for k in range(10)]], [*range(19), *[19] * 10]
    assert fit(scores, 0.1, groups).of().image_threshold == 19
    assert fit(scores, 0.1).of().image_threshold == 37  # were they ten parts
    # at 5 % a part of the weight of the worst one is needed: (1 - .05) 21 = 19.95 of 20
    assert fit(scores, 0.05, groups).of().image_threshold == 39


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0.1, 9.9)), min_size=2, max_size=60), st.floats(0.01, 0.6))
@settings(max_examples=100, deadline=None)
def test_decisions_agree_with_p_values(images: list[tuple[int, float]], rate: float) -> None:
    groups, scores = zip(*images, strict=True)
    calibration = fit(scores, rate, list(groups))
    if not calibration.guaranteed:
        return
    for score in {*scores, 0.05, 10.5, *(s + 0.01 for s in scores)}:
        p = calibration.p_value(score)
        assert 0 < p <= 1
        if abs(p - rate) > 1e-6:
            assert calibration.decide(score) == (p <= rate)


def test_the_rate_is_kept_for_new_parts_with_copies() -> None:
    r = np.random.default_rng(1)
    alarms = []
    for _ in range(1500):
        sizes = r.integers(1, 7, 25)
        sizes[0] = 40
        r.shuffle(sizes)
        groups = np.repeat(np.arange(25), sizes)
        scores = np.exp(0.3 * r.standard_normal(25))[groups] * np.exp(0.1 * r.standard_normal(len(groups)))
        new = math.exp(0.3 * r.standard_normal() + 0.1 * r.standard_normal())
        alarms.append(new > conformal_threshold(scores, 0.1, groups.tolist()))
    assert 0.03 < np.mean(alarms) < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 1500)


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_a_run_of_two_categories_calibrated_again_keeps_the_rate_for_each(rate: float) -> None:
    """300 and 40 images whose scores lie far apart; calibrated at .1, then again at the rate, 3000 times."""
    r = np.random.default_rng(3)
    alarms = {"many": 0, "few": 0}
    for _ in range(3000):
        many, few = np.exp(0.3 * r.standard_normal(301)), 5 * np.exp(0.1 * r.standard_normal(41))
        good = {
            "many": GoodScores(many[:300].tolist(), many[:300].tolist()),
            "few": GoodScores(few[:40].tolist(), few[:40].tolist()),
        }
        first = Calibration.fit(good, 0.1)
        again = first.at_rate(rate) if units_needed(rate) <= 40 else Calibration.fit(good, rate)
        alarms["many"] += again.decide(float(many[300]), "many")
        alarms["few"] += again.decide(float(few[40]), "few")
    for name, count in alarms.items():
        if name == "few" and rate < 1 / 41:  # cannot be guaranteed: an estimate, 1 / 41 at most
            assert not again.of("few").guaranteed
            assert count / 3000 < 1 / 41 + 3 * math.sqrt(1 / 41 / 3000)
        else:
            assert 0.5 * rate < count / 3000 < rate + 3 * math.sqrt(rate * (1 - rate) / 3000), name


def test_too_few_images_give_an_estimate() -> None:
    scores = np.exp(0.2 * np.random.default_rng(0).standard_normal(10))
    calibration = fit(scores, 0.01)
    assert not calibration.guaranteed and calibration.of().image_threshold == scores.max()
    assert (
        "needs good images of 99 different parts; there are 10 good images, which can guarantee 9.10%"
        in (calibration.summary()[0])
    )
    assert calibration.at_rate(0.1).guaranteed
    with pytest.raises(CalibrationError, match="needs good images of 19 different parts, there are 10: add 9 more"):
        calibration.at_rate(0.05)


def test_an_estimate_is_the_plain_quantile_of_equally_weighted_groups() -> None:
    """Four parts of many images cannot guarantee 10 %; 10 % of left-out images, parts weighted equally, exceed it."""
    groups = np.repeat(np.arange(4), [10, 50, 20, 100])
    scores = np.random.default_rng(0).random(180) + groups
    calibration = fit(scores, 0.1, groups.tolist())
    assert not calibration.guaranteed
    shares = [np.mean(scores[groups == g] > calibration.of().image_threshold) for g in range(4)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.003)


def test_the_summary_says_what_the_rate_holds_for() -> None:
    groups = [k // 2 for k in range(60)]
    assert "from 60 good images of 30 parts" in fit(np.arange(60.0), 0.05, groups).summary()[0]
    assert "not for new parts" in fit(np.arange(60.0), 0.05, None, "image").summary()[0]


def test_categories_have_to_be_named_where_there_are_several() -> None:
    good = GoodScores([1.0, 2.0], [1.0, 2.0])
    calibration = Calibration.fit({"a": good, "b": good}, 0.5)
    assert calibration.of("b") == calibration.of("a")
    for name in (None, "c"):
        with pytest.raises(ConfigError, match="this run has 'a', 'b'"):
            calibration.decide(1.0, name)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5])
def test_rates_outside_the_open_interval_are_refused(rate: float) -> None:
    with pytest.raises(CalibrationError, match="must lie between 0 and 1"):
        fit([1.0, 2.0], rate)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="not a finite number"):
        fit([1.0, bad, 2.0], 0.5)
    with pytest.raises(CalibrationError, match="no good image of the category 'x'"):
        Calibration.fit({"x": GoodScores([], [])}, 0.5)


def test_json_and_back() -> None:
    calibration = fit(np.random.default_rng(0).random(40), 0.05, [k // 2 for k in range(40)])
    again = Calibration.read(json.loads(json.dumps(calibration.to_json())), "calibration.json")
    assert again == calibration
    with pytest.raises(BundleError, match=r"calibration\.json is damaged"):
        Calibration.read({**calibration.to_json(), "false_alarm_rate": 0.2}, "calibration.json")


def test_a_score_settles_on_the_nearest_calibration_score() -> None:
    calibration = fit([1.0, 2.0, 3.0], 0.3)
    assert calibration.settle(2.0 * (1 + 0.9 * ENGINE_TOLERANCE)) == 2.0
    assert calibration.settle(2.0 * (1 + 1.1 * ENGINE_TOLERANCE)) != 2.0
    top = calibration.of().image_threshold
    assert not calibration.decide(top * (1 + 0.9 * ENGINE_TOLERANCE)) and calibration.decide(top * 1.01)


def test_sentences() -> None:
    calibration = fit(np.arange(1.0, 21.0), 0.05)
    assert calibration.sentence(30.0) == "anomalous: none of 20 good images scores as high"
    assert calibration.sentence(19.5) == "unusual but good: only 1 of 20 good images scores as high"
    assert calibration.sentence(10.0) == "good: 11 of 20 good images score as high"


def test_the_drift_test_gets_one_score_of_each_group() -> None:
    calibration = fit([1.0, 2.0, 3.0, 10.0], 0.5, [0, 0, 0, 1])
    assert calibration.of().one_of_each().tolist() == [2.0, 10.0]
    three = fit([1.0, 2.0, 3.0, 4.0, 10.0], 0.5, [0, 2, 0, 0, 1])  # each of its own, not of the others
    assert three.of().one_of_each().tolist() == [2.0, 3.0, 10.0]
