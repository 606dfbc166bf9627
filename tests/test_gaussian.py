"""The Gaussian at each position, given the image: against plain formulas, and what its context is for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cdo_ad.errors import ConfigError
from cdo_ad.method.gaussian import SHRINKAGE, ConditionalGaussian, components_for

Array = npt.NDArray[np.float64]


def related(count: int, seed: int = 0, positions: int = 3, channels: int = 4, context: int = 6) -> tuple[Array, Array]:
    """(P, count, C) vectors that follow in part from their (count, Q) context."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, context)) * np.linspace(3, 1, context)
    slope = np.random.default_rng(99).normal(size=(positions, context, channels))
    return 2 + rng.normal(size=(positions, count, channels)) + z @ slope, z + 5


def fitted(vectors: Array, context: Array, components: int, shrinkage: float = SHRINKAGE) -> ConditionalGaussian:
    gaussian = ConditionalGaussian(vectors.shape[0], vectors.shape[2], context.shape[1], components).double()
    gaussian.fit(torch.from_numpy(vectors), torch.from_numpy(context), shrinkage)
    return gaussian


def distances(gaussian: ConditionalGaussian, vectors: Array, context: Array) -> Array:
    found: Array = gaussian(torch.from_numpy(vectors), torch.from_numpy(context)).numpy()
    return found


def plain(good: Array, of: Array, new: Array, about: Array, components: int, shrinkage: float) -> Array:
    """The same distances, written down position by position with numpy."""
    n = good.shape[1]
    _, values, axes = np.linalg.svd(of - of.mean(axis=0), full_matrices=False)
    scale = values[:components] / np.sqrt(n)
    z, new_z = ((each - of.mean(axis=0)) @ axes[:components].T / scale for each in (of, about))
    residuals, new_residuals = [], []
    for x, y in zip(good, new, strict=True):
        slope, *_ = np.linalg.lstsq(np.column_stack([np.ones(n), z]), x, rcond=None)
        residuals.append(x - np.column_stack([np.ones(n), z]) @ slope)
        new_residuals.append(y - np.column_stack([np.ones(len(new_z)), new_z]) @ slope)
    covariances = [r.T @ r / n for r in residuals]
    added = shrinkage * np.mean([np.diag(c) for c in covariances]) * np.eye(good.shape[2])
    found = []
    for r, covariance in zip(new_residuals, covariances, strict=True):
        squared = np.einsum("bc,cd,bd->b", r, np.linalg.inv(covariance + added), r)
        certain = (1 + (1 + (new_z**2).sum(axis=1)) / n) / (1 + (1 + components) / n)
        found.append(np.sqrt(squared / certain))
    return np.array(found).T


@pytest.mark.parametrize("components", [0, 1, 4])
@pytest.mark.parametrize("shrinkage", [0.0, 0.05, 0.5])
def test_distances_are_those_of_a_plain_regression(components: int, shrinkage: float) -> None:
    good, new = related(40), related(7, seed=1)
    found = distances(fitted(*good, components, shrinkage), *new)
    assert found.shape == (7, 3)
    np.testing.assert_allclose(found, plain(*good, *new, components, shrinkage), rtol=1e-9)


def test_single_precision_is_as_good_as_the_plain_form() -> None:
    good, new = related(40), related(7, seed=1)
    gaussian = ConditionalGaussian(3, 4, 6, 4)
    gaussian.fit(*(torch.from_numpy(each).float() for each in good))
    found = gaussian(*(torch.from_numpy(each).float() for each in new)).numpy()
    np.testing.assert_allclose(found, plain(*good, *new, 4, SHRINKAGE), rtol=1e-5)


def test_given_all_of_the_context_it_is_the_conditional_of_the_joint_gaussian() -> None:
    good, new = related(60), related(5, seed=1)
    found = distances(fitted(*good, components=6, shrinkage=0.0), *new)

    def squared(x: Array, fit: Array) -> Array:
        offset = x - fit.mean(axis=0)
        result: Array = np.einsum("bc,cd,bd->b", offset, np.linalg.inv(np.cov(fit.T, bias=True)), offset)
        return result

    alone = squared(new[1], good[1])
    certain = (1 + (1 + alone) / 60) / (1 + (1 + 6) / 60)
    for place in range(3):
        joint = squared(np.column_stack([new[0][place], new[1]]), np.column_stack([good[0][place], good[1]]))
        np.testing.assert_allclose(found[:, place], np.sqrt((joint - alone) / certain), rtol=1e-9)


def test_new_images_are_farther_than_those_that_were_seen_and_an_odd_place_is_farthest() -> None:
    vectors, context = related(400, channels=8)
    gaussian = fitted(vectors[:, :30], context[:30], components=2)
    seen = distances(gaussian, vectors[:, :30], context[:30])
    unseen = distances(gaussian, vectors[:, 30:], context[30:])
    assert seen.mean() < unseen.mean()
    odd = vectors[:, 30:31].copy()
    odd[1, 0] += 8
    found = distances(gaussian, odd, context[30:31])[0]
    np.testing.assert_allclose(found[[0, 2]], unseen[0, [0, 2]])
    assert found[1] > 2 * unseen.max()


def test_context_takes_out_what_follows_from_the_whole_image() -> None:
    vectors, context = related(200)
    stained = vectors[:, 150:].copy()
    stained[1] += 2.5
    seen = {}
    for components in (0, 6):
        gaussian = fitted(vectors[:, :150], context[:150], components)
        clean, found = (distances(gaussian, v, context[150:])[:, 1] for v in (vectors[:, 150:], stained))
        seen[components] = (found.mean() - clean.mean()) / clean.std()
    assert seen[6] > 2 * seen[0]


def test_an_image_unlike_all_others_counts_less() -> None:
    vectors, context = related(30)
    gaussian = fitted(vectors, context, components=3)
    usual, far = context[:1], context[:1] + 100 * (context[:1] - context.mean(axis=0))
    whitened = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, away = (gaussian.distances(whitened, torch.from_numpy(each)) for each in (usual, far))
    assert bool((away < 0.1 * near).all())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_fewer_images_than_components_give_finite_distances(count: int) -> None:
    gaussian = fitted(*related(count), components=6)
    assert np.isfinite(distances(gaussian, *related(4, seed=3))).all()
    used = int((gaussian.context_axes != 0).any(dim=0).sum())
    assert used == count - 2


def test_a_context_that_never_changes_is_left_out() -> None:
    vectors, context = related(20)
    gaussian = fitted(vectors, np.full_like(context, 3.0), components=2)
    without = fitted(vectors, context, components=0)
    found = gaussian.whitened(*(torch.from_numpy(each) for each in (vectors, context)))
    torch.testing.assert_close(found, without.whitened(*(torch.from_numpy(each) for each in (vectors, context))))


def test_a_fit_takes_the_place_of_the_one_before_and_a_state_of_all() -> None:
    first, second, new = related(30), related(20, seed=5), related(3, seed=6)
    gaussian = fitted(*first, components=3)
    gaussian.fit(*(torch.from_numpy(each) for each in second))
    expected = distances(fitted(*second, components=3), *new)
    np.testing.assert_array_equal(distances(gaussian, *new), expected)
    again = ConditionalGaussian(3, 4, 6, 3).double()
    again.load_state_dict(gaussian.state_dict())
    np.testing.assert_array_equal(distances(again, *new), expected)


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(ConfigError, match="at least 2 good images, got 1"):
        fitted(*related(1), components=0)
    vectors, context = related(1)
    with pytest.raises(ConfigError, match="no variation at all"):
        fitted(np.repeat(vectors, 5, axis=1), np.repeat(context, 5, axis=0), components=0)


@pytest.mark.parametrize(("images", "share", "context", "expected"), [
    (30, 1 / 3, 100, 10), (30, 0.0, 100, 0), (30, 0.99, 100, 28), (30, 0.5, 4, 4), (2, 0.5, 9, 0), (1, 0.5, 9, 0),
])  # fmt: skip
def test_how_many_components(images: int, share: float, context: int, expected: int) -> None:
    assert components_for(images, share, context) == expected
