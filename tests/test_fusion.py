"""Weights of branches: what tells synthetic anomalies gets a share, what tells nothing gets none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cdo_ad.method.fusion import (
    fit_baseline,
    image_baselines,
    learned_weights,
    mean_auroc,
    position_statistics,
)

GOOD, BAD, GRID = 60, 40, (6, 8)
KINDS = np.arange(BAD) % 4


def branch(seed: int, signal: float = 0.0, kinds: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Tensor, Tensor]:
    """Maps of good and of anomalous images: noise, and a signal at one position for some kinds."""
    generator = torch.Generator().manual_seed(seed)
    good, bad = (torch.randn(count, *GRID, generator=generator) for count in (GOOD, BAD))
    bad[np.isin(KINDS, kinds), 2, 3] += signal
    return good, bad


def learned(branches: list[tuple[Tensor, Tensor]], start: list[float]) -> list[float]:
    good, bad = zip(*branches, strict=True)
    found = learned_weights(good, bad, KINDS, torch.tensor(start, dtype=torch.float32))
    assert float(found.sum()) == pytest.approx(1)
    weights: list[float] = found.tolist()
    return weights


def test_the_error_is_that_of_the_auroc_of_each_kind() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=50).round(1), rng.normal(size=31).round(1) + 0.5  # with ties
    kinds = np.arange(31) % 3
    expected = [
        roc_auc_score(np.r_[np.zeros(50), np.ones((kinds == k).sum())], np.r_[good, bad[kinds == k]]) for k in range(3)
    ]
    assert mean_auroc(good, bad, kinds) == pytest.approx(np.mean(expected))


def test_a_branch_that_tells_nothing_gets_no_weight() -> None:
    assert learned([branch(0, signal=4), branch(1), branch(2)], [1, 0, 0]) == [1, 0, 0]


def test_a_branch_that_tells_all_takes_the_place_of_one_that_tells_nothing() -> None:
    useless, useful = learned([branch(0), branch(1, signal=6)], [1, 0])
    assert useful > 0.7 > useless


def test_branches_that_tell_different_kinds_share_the_map() -> None:
    both = learned([branch(0, 6, (0, 1)), branch(1, 6, (2, 3)), branch(2)], [1, 0, 0])
    assert min(both[:2]) >= 0.25 and both[2] == 0


def test_a_rare_kind_counts_as_much_as_a_frequent_one() -> None:
    kinds = np.array([0] * 36 + [1] * 4)
    (own, frequent), (other, rare) = branch(0), branch(1)
    frequent[kinds == 0, 2, 3] += 3.5
    rare[kinds == 1, 2, 3] += 4
    found = learned_weights([own, other], [frequent, rare], kinds, torch.tensor([1.0, 0.0]))
    assert float(found[1]) > 0.3


def test_where_all_is_told_already_nothing_changes() -> None:
    start = [1 / 3, 1 / 3, 1 / 3]
    assert learned([branch(k, signal=30) for k in range(3)], start) == pytest.approx(start)


def test_statistics_are_smoothed_means_and_deviations_of_each_position() -> None:
    maps = torch.rand(9, *GRID, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    mean, deviation = position_statistics(maps)
    values = maps.numpy()

    def smooth(grid: np.ndarray) -> np.ndarray:
        """Over three by three positions, of those that there are."""
        found = np.zeros_like(grid)
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                found[row, column] = grid[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean()
        return found

    np.testing.assert_allclose(mean.numpy(), smooth(values.mean(axis=0)))
    variance = smooth(values.std(axis=0, ddof=1)) ** 2
    np.testing.assert_allclose(deviation.numpy() ** 2, 0.7 * variance + 0.3 * variance.mean())


def test_maps_that_never_change_have_a_deviation_above_zero() -> None:
    _, deviation = position_statistics(torch.ones(5, *GRID))
    assert bool((deviation > 0).all())


def test_the_baseline_is_the_lower_quartile() -> None:
    maps = torch.rand(3, 41, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(image_baselines(maps), maps.sort(dim=1).values[:, 10])
    assert image_baselines(torch.tensor([[3.0, 1.0, 2.0]])).item() == 1


@given(st.floats(0, 3))
def test_the_slope_is_that_at_which_largest_values_follow_baselines(slope: float) -> None:
    baselines = torch.linspace(-1, 1, 21)
    maps = baselines[:, None].repeat(1, 16)
    maps[:, 7] = 10 + slope * baselines
    found, lowest, highest = fit_baseline(maps)
    assert float(found) == pytest.approx(slope, abs=1e-4)
    assert float(lowest) == pytest.approx(-0.9, abs=1e-4) and float(highest) == pytest.approx(0.8, abs=1e-4)


def test_no_slope_is_below_zero_and_equal_maps_have_none() -> None:
    baselines = torch.linspace(-1, 1, 21)
    maps = baselines[:, None].repeat(1, 16)
    maps[:, 7] = 10 - baselines
    assert float(fit_baseline(maps)[0]) == 0
    assert float(fit_baseline(torch.ones(5, 16))[0]) == 0
