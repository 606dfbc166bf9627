"""The bank: nearest neighbours in whitened coordinates, against brute force; which vectors it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cdo_ad.method.bank import Bank

CHANNELS = 5
FLOOR = 0.05**0.5  # the square of the smallest distance is a hundredth of the channels


def vectors(images: int, seed: int = 0, positions: int = 6) -> Tensor:
    """(P, n, C) float64, far from white."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.randn(positions, images, CHANNELS, generator=generator, dtype=torch.float64) @ mixing + 3


def fitted(given: Tensor, centres: int) -> Bank:
    bank = Bank(CHANNELS, centres).to(given.dtype)
    bank.fit(given)
    return bank


@pytest.mark.parametrize("centres", [60, 100])
def test_with_a_centre_for_every_vector_it_is_the_nearest_neighbour(centres: int) -> None:
    good, new = vectors(10), vectors(4, seed=1)
    found = fitted(good, centres)(new)
    assert found.shape == (4, 6)
    flat = good.reshape(-1, CHANNELS).numpy()
    covariance = np.cov(flat.T)
    inverse = np.linalg.inv(covariance + 0.01 * np.diag(covariance).mean() * np.eye(CHANNELS))
    for position in range(6):
        for image in range(4):
            offset = flat - new[position, image].numpy()
            nearest = np.sqrt(np.einsum("kc,cd,kd->k", offset, inverse, offset).min())
            assert float(found[image, position]) == pytest.approx(nearest, rel=1e-9)
    own = fitted(good, centres)(good)  # each is its own neighbour: the smallest distance there is
    torch.testing.assert_close(own, torch.full_like(own, FLOOR))


def test_single_precision_agrees() -> None:
    good, new = vectors(10), vectors(4, seed=1)
    expected = fitted(good, 60)(new)
    torch.testing.assert_close(fitted(good.float(), 60)(new.float()).double(), expected, rtol=1e-4, atol=1e-4)


def test_fewer_centres_lie_apart_and_leave_no_vector_far_away() -> None:
    good = vectors(40)
    good[2, 7] += 30  # alone, far from all others
    few, many = fitted(good, 8), fitted(good, 40)
    assert float(few(good)[7, 2]) == pytest.approx(FLOOR)
    assert len(few.centres.unique(dim=0)) == 8
    assert float(many(good).max()) < float(few(good).max())


def test_it_knows_no_position() -> None:
    good, new = vectors(10), vectors(3, seed=1)
    bank = fitted(good, 20)
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(bank(new[order]), bank(new)[:, order])


def test_the_same_vectors_give_the_same_bank_whatever_was_drawn_before() -> None:
    good = vectors(30)
    first = fitted(good, 12).state_dict()
    torch.manual_seed(5)
    torch.rand(7)
    second = fitted(good, 12).state_dict()
    assert set(first) == {"mean", "whiten", "centres"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = Bank(CHANNELS, 12).double()
    again.load_state_dict(first)
    assert torch.equal(again(vectors(2, 3)), fitted(good, 12)(vectors(2, 3)))
