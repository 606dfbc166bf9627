"""The density: against independent formulas, against leaving images out for real, and what it promises."""

from __future__ import annotations

import pytest
import torch
from cdo_ad.method.density import Density, Gaussian, Moments, intensities, position_vectors, to_grid
from torch import Tensor

from cdo_ad.errors import ConfigError

SHAPES = [(3, 12, 8), (4, 6, 4), (5, 3, 2)]
SIZE = (48, 32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(2, count, 4) vectors that follow in part from their (count, 3) context."""
    context = normal(count, 3, seed=seed) @ torch.diag(torch.tensor([3.0, 2.0, 1.0]).double())
    return 2 + normal(2, count, 4, seed=seed + 1) + context @ normal(2, 3, 4, seed=99), context


def moments_of(vectors: Tensor, context: Tensor) -> Moments:
    moments = Moments(vectors.shape[0], vectors.shape[2], context.shape[1])
    moments.add(vectors, context)
    return moments


def fitted(vectors: Tensor, context: Tensor, components: int, shrinkage: float = 0.0) -> Gaussian:
    gaussian = Gaussian(vectors.shape[0], vectors.shape[2], context.shape[1], components).double()
    gaussian.fit(moments_of(vectors, context), shrinkage)
    return gaussian


def batch(count: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(90, 110, (count, 3, *SIZE), generator=generator, dtype=torch.uint8)
    return images, [torch.randn(count, *shape, generator=generator) + 3 for shape in SHAPES]


def fit(density: Density, count: int, seeds: int) -> None:
    """Fit on `seeds` batches of `count` images and scale by what each of them scores without itself."""
    moments = density.moments()
    batches = [batch(count, seed) for seed in range(seeds)]
    for images, features in batches:
        density.add(moments, images, features)
    density.fit(moments)
    scores = [torch.stack([peak(m) for m in density.left_out(*given)]) for given in batches]
    density.usual.copy_(torch.cat(scores, dim=1).mean(dim=1))


def fit_to(density: Density, batches: list[tuple[Tensor, list[Tensor]]]) -> None:
    moments = density.moments()
    for images, features in batches:
        density.add(moments, images, features)
    density.fit(moments)


def peak(maps: Tensor) -> Tensor:
    return maps.flatten(1).amax(dim=1)


def test_pooling_averages_the_neighbours_that_exist() -> None:
    vectors = position_vectors(torch.arange(9.0).reshape(1, 1, 3, 3))
    assert vectors.shape == (9, 1, 1)
    assert vectors[0, 0, 0] == pytest.approx((0 + 1 + 3 + 4) / 4)
    assert vectors[4, 0, 0] == pytest.approx(4)


def test_shades_are_mean_logs_and_a_factor_is_a_shift() -> None:
    images = torch.arange(5.0).reshape(1, 1, 5, 1).expand(1, 3, 5, 1) * 10
    logs = (torch.arange(5.0) * 10 + 8).log()
    expected = torch.stack([logs[:2].sum() + logs[2] / 2, logs[2] / 2 + logs[3:].sum()]) / 2.5
    torch.testing.assert_close(intensities(images, (2, 1))[0, 0, :, 0], expected)
    bright = torch.full((1, 3, 8, 8), 200.0)
    change = intensities(bright, (2, 2)) - intensities((bright + 8) / 2 - 8, (2, 2))
    torch.testing.assert_close(change, torch.full_like(change, 2).log())


def test_distance_is_mahalanobis() -> None:
    vectors, context = related(50)
    gaussian = fitted(vectors, context, components=0, shrinkage=0.1)
    new, new_context = related(3, seed=7)
    covariances = [torch.cov(v.T, correction=0) for v in vectors]
    added = 0.1 * torch.stack([c.diagonal() for c in covariances]).mean() * torch.eye(4)
    for place in range(2):
        offset = new[place] - vectors[place].mean(dim=0)
        expected = (offset @ torch.linalg.inv(covariances[place] + added) * offset).sum(dim=1).sqrt()
        torch.testing.assert_close(gaussian(new, new_context)[:, place] * gaussian.spread[place], expected)


def test_given_the_context_it_is_the_conditional_of_the_joint_gaussian() -> None:
    vectors, context = related(60)
    gaussian = fitted(vectors, context, components=3)
    new, new_context = related(4, seed=7)

    def squared(x: Tensor, fit: Tensor) -> Tensor:
        offset = x - fit.mean(dim=0)
        return (offset @ torch.linalg.inv(torch.cov(fit.T, correction=0)) * offset).sum(dim=1)

    for place in range(2):
        joint = squared(torch.cat([new[place], new_context], 1), torch.cat([vectors[place], context], 1))
        expected = (joint - squared(new_context, context)).sqrt()
        torch.testing.assert_close(gaussian(new, new_context)[:, place] * gaussian.spread[place], expected)


@pytest.mark.parametrize("components", [0, 3])
def test_left_out_equals_a_fit_without_the_image(components: int) -> None:
    vectors, context = related(40)
    gaussian = fitted(vectors, context, components)
    got = gaussian.left_out(vectors, context, 40) * gaussian.spread
    for i in (0, 17):
        others = [k for k in range(40) if k != i]
        without = fitted(vectors[:, others], context[others], components)
        expected = without(vectors[:, [i]], context[[i]]) * without.spread
        torch.testing.assert_close(got[[i]], expected)


def test_moments_do_not_depend_on_how_images_come() -> None:
    vectors, context = related(10)
    one, many = moments_of(vectors, context), Moments(2, 4, 3)
    for part in torch.arange(10).split(3):
        many.add(vectors[:, part], context[part])
    assert many.count == one.count == 10
    parts = moments_of(vectors[:, :4], context[:4]) + moments_of(vectors[:, 4:], context[4:])
    for a, b in zip(one.covariances(), parts.covariances(), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(one.covariances(), many.covariances(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("count", [24, 60, 400])
def test_new_good_images_are_at_distance_one(count: int) -> None:
    mixing = normal(16, 16, seed=3)
    vectors, context = normal(40, count + 400, 16, seed=4) @ mixing, normal(count + 400, 2, seed=5)
    gaussian = fitted(vectors[:, :count], context[:count], components=2, shrinkage=1e-3)
    unseen = gaussian(vectors[:, count:], context[count:]).square().mean().sqrt()
    seen = gaussian(vectors[:, :count], context[:count]).square().mean().sqrt()
    assert unseen == pytest.approx(1, rel=0.25 if count == 24 else 0.06)
    assert seen < unseen


def test_new_good_images_score_one_in_each_view() -> None:
    density = Density(SHAPES, SIZE, components=2)
    fit(density, 30, 4)
    for branch in density(*batch(100, 50)):
        assert float(peak(branch).mean()) == pytest.approx(1, rel=0.05)


def test_an_odd_place_stands_out_where_it_is() -> None:
    density = Density(SHAPES, SIZE, components=2)
    fit(density, 30, 4)
    images, features = batch(1, 99)
    before = density(images, features)
    odd = [f.clone() for f in features]
    odd[1][:, :, 4, 3] += 9
    change = density(images, odd)[0] - before[0]
    row, column = divmod(int(change.flatten().argmax()), 4)
    assert abs(row - 4) <= 1 and abs(column - 3) <= 1  # the neighbourhood is 3 x 3
    dark = images.clone()
    dark[..., 30:36, 20:24] -= 40
    change = density(dark, features)[2] - before[2]
    row, column = divmod(int(change.flatten().argmax()), change.shape[-1])
    assert change.shape == (1, 16, 11) and row in (10, 11) and column in (6, 7, 8)


def test_a_image_that_is_darker_as_a_whole_is_less_odd_with_context() -> None:
    def lit(count: int, seed: int) -> tuple[Tensor, list[Tensor]]:
        images, features = batch(count, seed)
        light = torch.linspace(0.6, 1.4, count).view(-1, 1, 1, 1)
        return (images * light).to(torch.uint8), features

    scores = {}
    for components in (0, 2):
        density = Density(SHAPES, SIZE, components)
        fit_to(density, [lit(60, seed) for seed in range(3)])
        images, features = lit(20, 9)
        stained = images.clone()
        stained[..., 12:24, 8:16] = (stained[..., 12:24, 8:16] * 0.9).to(torch.uint8)
        scores[components] = float(peak(density(stained, features)[2]).mean())
    assert scores[2] > 1.5 * scores[0]


def test_state_into_a_new_object_gives_the_same_maps() -> None:
    density = Density(SHAPES, SIZE, components=2)
    fit(density, 40, 1)
    again = Density(SHAPES, SIZE, components=2)
    again.load_state_dict(density.state_dict())
    new = batch(2, 7)
    assert all(torch.equal(a, b) for a, b in zip(density(*new), again(*new), strict=True))
    assert not torch.equal(density(*new)[0], Density(SHAPES, SIZE, components=2)(*new)[0])


def test_levels_of_many_channels_are_cut() -> None:
    density = Density([(8, 4, 4), (300, 4, 4), (200, 2, 2)], (16, 16))
    assert [g.mean.shape[2] for g in density._gaussians()] == [128, 128, 3]
    features = [torch.randn(20, *shape) for shape in [(8, 4, 4), (300, 4, 4), (200, 2, 2)]]
    images = torch.randint(0, 255, (20, 3, 16, 16), dtype=torch.uint8)
    fit_to(density, [(images, features)])
    assert all(bool(branch.isfinite().all()) for branch in density(images, features))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_handful_of_images_gives_finite_maps(count: int) -> None:
    density = Density(SHAPES, SIZE, components=2)
    fit(density, count, 1)
    assert all(bool(branch.isfinite().all()) for branch in density(*batch(3, 8)))


def test_a_place_that_never_changes_counts_for_nothing_until_it_does() -> None:
    def framed(count: int, seed: int) -> tuple[Tensor, list[Tensor]]:
        images, features = batch(count, seed)
        images[..., :6, :] = 0
        return images, features

    density = Density(SHAPES, SIZE, components=2)
    fit_to(density, [framed(50, seed) for seed in range(2)])
    images, features = framed(1, 9)
    intensity = density(images, features)[2]
    assert float(intensity[0, 0].max()) < 0.1 < float(intensity[0, 8].max())
    images[..., :6, :8] = 60
    assert float(density(images, features)[2][0, 0].max()) > 2


def test_impossible_settings_and_images_are_named() -> None:
    with pytest.raises(ConfigError, match=r"density_context must lie in 0\.\.5 here, got 6"):
        Density(SHAPES, SIZE, components=6)
    density = Density(SHAPES, SIZE, components=2)
    with pytest.raises(ConfigError, match="at least 2 good images, got 1"):
        fit(density, 1, 1)
    images, features = batch(1)
    same = images.expand(4, -1, -1, -1), [f.expand(4, -1, -1, -1) for f in features]
    with pytest.raises(ConfigError, match="no variation"):
        fit_to(density, [same])


def test_to_grid_is_bilinear() -> None:
    maps = torch.randn(2, 3, 4)
    expected = torch.nn.functional.interpolate(maps[:, None], size=(7, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(to_grid(maps, (7, 8)), expected)
    assert to_grid(maps, (3, 4)) is maps
