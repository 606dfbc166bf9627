"""normalized brightness: what it does to values, and that a detector with it does not mind the light."""

from __future__ import annotations

import pytest
import torch
from cdo_ad.method.brightness import BRIGHTEST, DARKEST, normalize_brightness
from cdo_ad.method.network import CdoNetwork

from cdo_ad import recipes

SIZE = (64, 48)


def images(count: int = 2, low: int = 20, high: int = 80) -> torch.Tensor:
    return torch.randint(low, high, (count, 3, *SIZE), generator=torch.Generator().manual_seed(0)).float()


def test_the_mean_becomes_the_one_asked_for_and_colours_keep_their_proportions() -> None:
    before = images() * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    after = normalize_brightness(before, torch.tensor(120.0))
    torch.testing.assert_close(after.mean(dim=(1, 2, 3)), torch.tensor([120.0, 120.0]), rtol=5e-4, atol=0)
    factor = 120 / before.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(after, before * factor, rtol=5e-4, atol=0)


def test_the_last_bit_of_the_mean_does_not_matter() -> None:
    before = images(1)
    nudged = before.clone()
    nudged[..., 0, 0] += 0.1  # moves the mean by 3e-5, as another order of adding may
    assert not torch.equal(nudged.mean(), before.mean())
    after, again = (normalize_brightness(p, torch.tensor(120.0)) for p in (before, nudged))
    assert torch.equal(after[..., 1:, :], again[..., 1:, :])


def test_what_is_nearly_black_is_not_blown_up_and_highlights_are_bounded() -> None:
    black = torch.zeros(1, 3, *SIZE)
    assert normalize_brightness(black, torch.tensor(120.0)).abs().max() == 0
    dark = torch.full((1, 3, *SIZE), 2.0)
    torch.testing.assert_close(normalize_brightness(dark, torch.tensor(120.0)), dark * 120 / DARKEST)
    dark[..., 0, 0] = 255
    assert float(normalize_brightness(dark, torch.tensor(120.0)).max()) == BRIGHTEST


@pytest.mark.parametrize("density_context", [None, 2])
def test_maps_do_not_depend_on_the_light_unless_switched_off(density_context: int | None) -> None:
    torch.manual_seed(0)
    even = CdoNetwork("resnet18", SIZE, density_context=density_context, normalize_brightness=True).eval()
    if density_context is not None:
        even.shares.copy_(torch.tensor([0.4, 0.3, 0.3, 0.0]))  # intensities are of the image as it is
    given = CdoNetwork("resnet18", SIZE, density_context=density_context).eval()
    given.load_state_dict(even.state_dict())
    with torch.no_grad():
        bright, dark = images(), images() / 2
        torch.testing.assert_close(even(bright)[0], even(dark)[0], rtol=1e-3, atol=1e-4)
        assert float((given(bright)[0] - given(dark)[0]).abs().max()) > 0.01
        assert float((given(bright)[0] - even(bright)[0]).abs().max()) > 0.01


def test_the_default_recipe_has_it_and_the_papers_does_not() -> None:
    for name, expected in (("lite0", True), ("paper_lite0", False), ("cdo2025_lite0", False)):
        assert recipes.get(name).normalize_brightness is expected
    config = recipes.get("lite0").replace(backbone="resnet18", weights="none", image_height=64, image_width=48)
    assert CdoNetwork.from_config(config).normalize_brightness
    assert not CdoNetwork.from_config(config.replace(normalize_brightness=False)).normalize_brightness
