"""What each branch sees of an image, and how their maps add up."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cdo_ad.config import BranchName
from cdo_ad.method.branches import DEFECT_HEAD, Branches
from cdo_ad.method.inputs import describe, intensities, intensity_grid, whole_image
from cdo_ad.method.preprocess import to_grid
from cdo_ad.spec import CategorySpec

SHAPES = [(3, 12, 8), (4, 6, 4), (5, 3, 2)]
SIZE = (48, 32)
ALL: tuple[BranchName, ...] = ("disagreement", "level 2", "level 3", "bank", "intensity")


def seen(count: int, seed: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Images, expert maps and discrepancies."""
    generator = torch.Generator().manual_seed(seed)
    images = 90 + 20 * torch.rand(count, 3, *SIZE, generator=generator)
    expert = [torch.randn(count, *shape, generator=generator) + 3 for shape in SHAPES]
    levels = [torch.rand(count, 12, 8, generator=generator) for _ in SHAPES]
    return images, expert, levels


def fitted(names: tuple[BranchName, ...] = ALL, count: int = 40) -> Branches:
    spec = CategorySpec(branches=names, standardized=True, components=3, intensity_components=2, centres=30)
    branches = Branches(SHAPES, SIZE, spec)
    inputs = describe(names, *seen(count))
    for name in names:
        if name in ("level 2", "level 3"):
            branches.density(name).fit(inputs.vectors[name], inputs.context)
        elif name == "bank":
            branches.density(name).fit(inputs.vectors[name])
        elif name == "intensity":
            branches.density(name).fit(inputs.vectors[name], inputs.context_of(name))
    return branches


def test_levels_are_averaged_over_the_neighbours_that_there_are() -> None:
    expert = [torch.zeros(1, 1, 6, 6), torch.arange(9.0).reshape(1, 1, 3, 3), torch.zeros(1, 1, 2, 2)]
    vectors = describe(("level 2",), torch.zeros(1, 3, 8, 8), expert, []).vectors["level 2"]
    assert vectors.shape == (9, 1, 1)
    assert vectors[0, 0, 0] == pytest.approx((0 + 1 + 3 + 4) / 4) and vectors[4, 0, 0] == pytest.approx(4)


def test_the_bank_sees_both_levels_on_the_coarser_grid() -> None:
    images, expert, levels = seen(2)
    vectors = describe(("bank",), images, expert, levels).vectors["bank"]
    assert vectors.shape == (3 * 2, 2, 4 + 5)
    pooled = F.avg_pool2d(expert[2], 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(vectors[:, 1, 4:].T.reshape(5, 3, 2), pooled[1])


def test_intensities_are_mean_logs_and_a_factor_is_a_shift() -> None:
    images = torch.arange(5.0).reshape(1, 1, 5, 1).expand(1, 3, 5, 1) * 10
    logs = (torch.arange(5.0) * 10 + 8).log()
    expected = torch.stack([logs[:2].sum() + logs[2] / 2, logs[2] / 2 + logs[3:].sum()]) / 2.5
    torch.testing.assert_close(intensities(images, (2, 1))[0, 0, :, 0], expected)
    bright = torch.full((1, 3, 8, 8), 200.0)
    change = intensities(bright, (2, 2)) - intensities((bright + 8) / 2 - 8, (2, 2))
    torch.testing.assert_close(change, torch.full_like(change, 2).log())


def test_the_grid_of_intensities_has_the_shape_of_the_image() -> None:
    assert intensity_grid((256, 256)) == (16, 16) and intensity_grid((48, 32)) == (16, 11)
    assert intensity_grid((32, 2048)) == (1, 16)


def test_the_whole_image_is_the_last_level_in_a_few_cells() -> None:
    _, expert, _ = seen(2)
    assert whole_image(expert).shape == (2, 5 * 16)
    even = [torch.ones(1, *shape) * 7 for shape in SHAPES]
    assert bool((whole_image(even) == 7).all())


def test_levels_of_many_channels_are_cut_to_the_same_ones_each_time() -> None:
    shapes = [(8, 4, 4), (300, 4, 4), (200, 2, 2)]
    expert = [torch.randn(2, *shape) for shape in shapes]
    vectors = [describe(ALL, torch.zeros(2, 3, 16, 16), expert, []).vectors for _ in range(2)]
    assert [vectors[0][name].shape[2] for name in ("level 2", "level 3", "bank")] == [128, 128, 500]
    assert all(torch.equal(vectors[0][name], vectors[1][name]) for name in vectors[0])
    spec = CategorySpec(branches=ALL, standardized=True, centres=3)
    branches = Branches(shapes, (16, 16), spec)
    assert branches.density("level 2").mean.shape[-1] == 128 and branches.density("bank").mean.shape[-1] == 500


def test_each_branch_finds_an_odd_place_where_it_is() -> None:
    branches = fitted()
    images, expert, levels = seen(1, seed=9)
    before = describe(ALL, images, expert, levels)
    odd = [m.clone() for m in expert]
    odd[1][:, :, 4, 3] += 20
    odd[2][:, :, 2, 1] += 20
    dark = images.clone()
    dark[..., 30:36, 20:24] -= 60
    disagreeing = [m.clone() for m in levels]
    disagreeing[1][:, 7, 5] += 2
    after = describe(ALL, dark, odd, disagreeing)
    where = {"disagreement": (7, 5), "level 2": (4, 3), "level 3": (2, 1), "bank": (2, 1), "intensity": (11, 7)}
    for name in ALL:
        change = (branches.raw(name, after) - branches.raw(name, before))[0]
        assert tuple(change.shape) == branches.grids[name]
        row, column = divmod(int(change.argmax()), change.shape[1])
        assert abs(row - where[name][0]) <= 1 and abs(column - where[name][1]) <= 1, name


def test_maps_are_standardised_and_weighted() -> None:
    names: tuple[BranchName, ...] = ("level 3", "intensity")
    branches = fitted(names)
    inputs = describe(names, *seen(3, seed=4))
    for k, name in enumerate(names):
        branches.set_statistics(name, torch.full(branches.grids[name], 2.0), torch.full(branches.grids[name], 4.0))
        branches.weight[k] = 0.5 + k
    maps = branches.maps(inputs)
    for k, name in enumerate(names):
        torch.testing.assert_close(maps[name], (0.5 + k) * (branches.raw(name, inputs) - 2) / 4)


def test_the_papers_form_is_the_levels_as_they_are() -> None:
    spec = CategorySpec(branches=("disagreement",), standardized=False)
    branches = Branches(SHAPES, SIZE, spec)
    images, expert, levels = seen(2)
    maps = branches.maps(describe(("disagreement",), images, expert, levels))
    assert list(maps) == ["disagreement 1", "disagreement 2", "disagreement 3"]
    assert all(torch.equal(one, other) for one, other in zip(maps.values(), levels, strict=True))
    assert branches.state_dict() == {}


def test_branches_that_are_dropped_leave_nothing_behind() -> None:
    branches, inputs = fitted(), describe(ALL, *seen(2, seed=4))
    before = branches.maps(inputs)
    branches.keep(["level 2", "disagreement"])
    assert branches.names == ("disagreement", "level 2") and set(branches.densities) == {"level_2"}
    left = {re.sub("^(mean|deviation|baseline)_", "", name.partition(".")[0]) for name in branches.state_dict()}
    assert left == {"weight", "offset", "disagreement", "level_2", "densities"}
    after = branches.maps(inputs)
    assert list(after) == ["disagreement", "level 2"]
    assert all(torch.equal(after[name], before[name]) for name in after)
    spec = CategorySpec(branches=branches.names, standardized=True, components=3)
    again = Branches(SHAPES, SIZE, spec)
    again.load_state_dict(branches.state_dict())
    assert all(torch.equal(again.maps(inputs)[name], after[name]) for name in after)


def test_a_defect_head_looks_at_whitened_levels_on_the_finer_grid_and_begins_without_weight() -> None:
    branches, inputs = fitted(), describe(ALL, *seen(2, seed=4))
    vectors = branches.head_vectors(inputs)
    assert vectors.shape == (2, 4 + 5, 6, 4)
    whitened = branches.density("level 2").whitened(inputs.vectors["level 2"], inputs.context)
    torch.testing.assert_close(vectors[:, :4], whitened.permute(1, 2, 0).reshape(2, 4, 6, 4))
    branches.add_defect_head()
    assert len(branches.weight) == 6 and float(branches.weight[-1]) == 0
    with torch.no_grad():
        assert float(branches.maps(inputs)[DEFECT_HEAD].abs().max()) == 0


def test_to_grid_is_bilinear() -> None:
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4))).float()
    expected = F.interpolate(maps[:, None], size=(7, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(to_grid(maps, (7, 8)), expected)
    assert to_grid(maps, (3, 4)) is maps
