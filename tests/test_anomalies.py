"""The kinds of synthetic anomalies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cdo_ad.method.anomalies import KINDS, add_anomalies, add_anomaly
from cdo_ad.method.white_noise import white_noise

DRAWN = [kind for kind in KINDS if kind != "noise"]


def textures(count: int = 8, size: tuple[int, int] = (96, 64)) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    wave = 120 + 40 * torch.sin(torch.arange(size[1]) / 5)
    noise = torch.randn(count, 3, *size, generator=generator) * 6
    return (wave + noise).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("size", [(96, 64), (256, 256), (40, 333)])
def test_what_changes_is_in_the_mask(kind, size) -> None:
    images = textures(6, size)
    before = images.clone()
    changed, masks = add_anomaly(images, kind, range(6))
    assert torch.equal(images, before)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    assert masks.dtype == torch.bool and masks.shape == (6, *size)
    assert bool(masks.flatten(1).any(dim=1).all())
    difference = (changed.float() - images.float()).abs().mean(dim=1)
    for i in range(6):
        inside, outside = difference[i][masks[i]].mean(), difference[i][~masks[i]].mean()
        assert inside > 3 * outside  # soft edges reach out a little
        assert inside > 1


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_decide(kind) -> None:
    images = textures()
    seeds = list(range(1, 9))
    first, again, other = (add_anomaly(images, kind, s) for s in (seeds, seeds, [s + 100 for s in seeds]))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_an_image_does_not_depend_on_its_place_in_the_batch_but_for_pieces_of_others() -> None:
    images = textures()
    for kind in ("intensity", "line", "spot", "smear"):
        alone = add_anomaly(images[3:4], kind, [7])
        together = add_anomaly(images, kind, [1, 2, 3, 7, 5, 6, 8, 9])
        assert torch.equal(alone[0][0], together[0][3])


def test_intensity_is_large_and_low_in_contrast_where_line_and_spot_are_small() -> None:
    images = textures(32, (256, 256))
    share = {kind: float(add_anomaly(images, kind, range(32))[1].float().mean()) for kind in DRAWN}
    assert share["intensity"] > 0.08
    assert share["line"] < 0.01 and share["spot"] < 0.01


def test_several_kinds_give_each_image_one_of_the_kinds() -> None:
    images = textures(40)
    seeds = [1000 + i for i in range(40)]
    changed, masks = add_anomalies(images, ("intensity", "spot"), seeds)
    matches = {kind: add_anomaly(images, kind, seeds)[0] for kind in ("intensity", "spot")}
    of_kind = {kind: [torch.equal(changed[i], m[i]) for i in range(40)] for kind, m in matches.items()}
    assert all(a != b for a, b in zip(of_kind["intensity"], of_kind["spot"], strict=True))
    assert 8 < sum(of_kind["intensity"]) < 32
    assert bool(masks.flatten(1).any(dim=1).all())


def test_noise_alone_is_the_papers() -> None:
    images, seeds = textures(), list(range(8))
    for got, expected in zip(add_anomalies(images, ("noise",), seeds), white_noise(images, seeds), strict=True):
        assert torch.equal(got, expected)
