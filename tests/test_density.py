"""The density of the expert's features: against independent formulas, and what it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cdo_ad.errors import ConfigError
from cdo_ad.method.density import Density, Gaussian, Moments, group_vectors

SHAPES = [(3, 12, 8), (4, 6, 4), (5, 3, 2)]


def features(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=generator) + 3 for shape in SHAPES]


def moments_of(vectors: Tensor) -> Moments:
    moments = Moments(vectors.shape[0], vectors.shape[2])
    moments.add(vectors)
    return moments


def test_vectors_are_the_levels_joined_on_the_coarsest_grid() -> None:
    maps = features(2)
    vectors = group_vectors(maps, [0, 1], pool=1)
    assert vectors.shape == (24, 2, 7)
    joined = vectors.permute(1, 2, 0).reshape(2, 7, 6, 4)
    torch.testing.assert_close(joined[:, :3], F.avg_pool2d(maps[0], 2))
    torch.testing.assert_close(joined[:, 3:], maps[1])


def test_a_grid_that_does_not_divide_averages_by_share() -> None:
    vectors = group_vectors([torch.arange(5.0).reshape(1, 1, 5, 1), torch.zeros(1, 1, 2, 1)], [0, 1], pool=1)
    # rows 0, 1 and half of 2; half of 2 and rows 3, 4
    torch.testing.assert_close(vectors[:, 0, 0], torch.tensor([2 / 2.5, 8 / 2.5]))


def test_pooling_averages_the_neighbours_that_exist() -> None:
    vectors = group_vectors([torch.arange(9.0).reshape(1, 1, 3, 3)], [0], pool=3)
    assert vectors[0, 0, 0] == pytest.approx((0 + 1 + 3 + 4) / 4)
    assert vectors[4, 0, 0] == pytest.approx(4)


def test_distance_is_mahalanobis() -> None:
    vectors = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(1)).double()
    gaussian = Gaussian(2, 4).double()
    gaussian.fit(moments_of(vectors), shrinkage=0.1)
    new = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2)).double()
    covariances = [torch.cov(v.T, correction=0) for v in vectors]
    added = 0.1 * torch.stack([c.diagonal() for c in covariances]).mean() * torch.eye(4)
    for place in range(2):
        offset = new[place] - vectors[place].mean(dim=0)
        expected = (offset @ torch.linalg.inv(covariances[place] + added) * offset).sum(dim=1).sqrt()
        torch.testing.assert_close(gaussian(new)[:, place] * gaussian.scale, expected)


def test_moments_do_not_depend_on_how_pictures_come() -> None:
    vectors = torch.randn(3, 10, 2)
    one, many = moments_of(vectors), Moments(3, 2)
    for part in vectors.split(3, dim=1):
        many.add(part)
    assert many.count == one.count == 10
    torch.testing.assert_close(many.second, one.second)
    torch.testing.assert_close(many.first, one.first)


@pytest.mark.parametrize("count", [24, 60, 400])
def test_scale_is_the_distance_of_an_unseen_good_picture(count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(16, 16, generator=generator)
    vectors = torch.randn(40, count + 400, 16, generator=generator) @ mixing
    gaussian = Gaussian(40, 16)
    gaussian.fit(moments_of(vectors[:, :count]), shrinkage=1e-3)
    unseen = gaussian(vectors[:, count:]).square().mean().sqrt()
    seen = gaussian(vectors[:, :count]).square().mean().sqrt()
    assert unseen == pytest.approx(1, rel=0.25 if count == 24 else 0.06)
    assert seen < unseen


def test_an_odd_place_stands_out_where_it_is() -> None:
    density = Density(SHAPES, groups=[[0], [0, 1]])
    density.fit(features(8, seed) for seed in range(12))
    good = features(1, 99)
    odd = [m.clone() for m in good]
    odd[0][:, :, 10, 6] += 9
    change = density(odd) - density(good)
    assert change.shape == (1, 12, 8)
    row, column = divmod(int(change.flatten().argmax()), 8)
    assert abs(row - 10) <= 1 and abs(column - 6) <= 1  # the neighbourhood is 3 x 3
    assert change[0, :6].abs().max() < 1e-5


def test_the_map_is_about_one_on_good_pictures_and_weights_count() -> None:
    density = Density(SHAPES, groups=[[0], [1, 2]], weights=[0.25, 0.5])
    density.fit([features(100, 5)])
    assert density(features(100, 6)).mean() == pytest.approx(0.75, rel=0.05)


def test_state_into_a_new_object_gives_the_same_map() -> None:
    density = Density(SHAPES, groups=[[0], [0, 1]])
    density.fit([features(20)])
    again = Density(SHAPES, groups=[[0], [0, 1]])
    again.load_state_dict(density.state_dict())
    new = features(2, 7)
    assert torch.equal(density(new), again(new))
    assert not torch.equal(density(new), Density(SHAPES, groups=[[0], [0, 1]])(new))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": [[3]]}, "levels among 0..2"),
        ({"groups": []}, "levels among 0..2"),
        ({"groups": [[]]}, "levels among 0..2"),
        ({"groups": [[0]], "pool": 2}, "odd"),
        ({"groups": [[0]], "weights": [1.0, 2.0]}, "1 groups but 2 weights"),
    ],
)
def test_impossible_settings_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Density(SHAPES, **arguments)  # type: ignore[arg-type]


def test_too_few_or_equal_pictures_are_named() -> None:
    density = Density(SHAPES, groups=[[0]])
    with pytest.raises(ConfigError, match="at least 2 good pictures, got 1"):
        density.fit([features(1)])
    with pytest.raises(ConfigError, match="no variation"):
        density.fit([[torch.ones(4, *shape) for shape in SHAPES]])
