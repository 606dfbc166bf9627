"""Normalised brightness: what it does to values, and that a detector with it does not mind the light."""

from __future__ import annotations

import pytest
import torch

from cdo_ad import recipes
from cdo_ad.config import Config
from cdo_ad.method.model import AnomalyModel
from cdo_ad.method.preprocess import BRIGHTEST, DARKEST, normalize_brightness
from cdo_ad.spec import CategorySpec, ModelSpec

SIZE = (64, 48)


def planes(count: int = 2, low: int = 20, high: int = 80) -> torch.Tensor:
    return torch.randint(low, high, (count, 3, *SIZE), generator=torch.Generator().manual_seed(0)).float()


def test_the_mean_becomes_the_one_asked_for_and_colours_keep_their_proportions() -> None:
    before = planes() * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    after = normalize_brightness(before, torch.tensor(120.0))
    torch.testing.assert_close(after.mean(dim=(1, 2, 3)), torch.tensor([120.0, 120.0]), rtol=5e-4, atol=0)
    factor = 120 / before.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(after, before * factor, rtol=5e-4, atol=0)


def test_the_last_bit_of_the_mean_does_not_matter() -> None:
    before = planes(1)
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


@pytest.mark.parametrize("branches", [("disagreement",), ("disagreement", "level 2", "level 3", "bank")])
def test_maps_do_not_depend_on_the_light_unless_switched_off(branches: tuple[str, ...]) -> None:
    category = CategorySpec(branches=branches, standardized=len(branches) > 1, components=2, centres=5)
    spec = ModelSpec(
        backbone="resnet18", image_size=SIZE, normalize_brightness=True, blur_sigma=4.0, score_top=0.0,
        categories=(category,),
    )  # fmt: skip
    torch.manual_seed(0)
    even = AnomalyModel(spec).eval()
    given = AnomalyModel(spec.model_copy(update={"normalize_brightness": False})).eval()
    given.load_state_dict(even.state_dict())
    with torch.no_grad():
        bright, dark = planes(), planes() / 2
        torch.testing.assert_close(even.judge(bright)[0], even.judge(dark)[0], rtol=1e-3, atol=1e-4)
        assert float((given.judge(bright)[0] - given.judge(dark)[0]).abs().max()) > 0.01
        assert float((given.judge(bright)[0] - even.judge(bright)[0]).abs().max()) > 0.01


def test_intensities_are_of_the_image_as_it_is() -> None:
    config = Config(branches=("intensity",), calibration="cross", backbone="resnet18", weights="none",
                    image_height=64, image_width=48, normalize_brightness=True)  # fmt: skip
    model = AnomalyModel(ModelSpec.from_config(config)).eval()
    with torch.no_grad():
        bright, dark = (model.inputs(model.features(p)).vectors["intensity"] for p in (planes(), planes() / 2))
    assert float((bright - dark).min()) > 0.1


def test_the_default_recipe_has_it_and_the_papers_does_not() -> None:
    for name, expected in (("lite0", True), ("paper_lite0", False), ("cdo2025_lite0", False)):
        assert recipes.get(name).normalize_brightness is expected
        assert ModelSpec.from_config(recipes.get(name)).normalize_brightness is expected
