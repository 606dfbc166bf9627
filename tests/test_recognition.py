"""The branch of labelled defects: what it learns from a handful, what it leaves alone, that a run keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdo_ad.bundle import read_bundle
from cdo_ad.config import Config
from cdo_ad.inference.engines.torch import load_model
from cdo_ad.method.branches import DEFECT_HEAD
from cdo_ad.method.defect_head import DefectHead, fit_defect_head
from cdo_ad.method.fit import FitSettings, fit_branches
from cdo_ad.method.model import AnomalyModel
from cdo_ad.spec import ModelSpec
from cdo_ad.training.adapt import refit
from cdo_ad.training.train import train
from conftest import DENSE
from fakes import make_mvtec

CHANNELS, GRID = 12, (8, 10)
SIZE = (48, 48)


def vectors(count: int, seed: int, mark: int | None = None, row: int = 0) -> Tensor:
    """Normal vectors; with a mark, that channel is large in two cells of a row."""
    values = torch.randn(count, CHANNELS, *GRID, generator=torch.Generator().manual_seed(seed))
    if mark is not None:
        values[:, mark, row, 3:5] += 6
    return values


def masks_of(count: int, row: int) -> Tensor:
    masks = torch.zeros(count, 64, 80, dtype=torch.bool)
    masks[:, 8 * row : 8 * row + 8, 24:40] = True
    return masks


def test_it_finds_such_defects_elsewhere_and_only_such() -> None:
    torch.manual_seed(0)
    head = DefectHead(CHANNELS)
    fit_defect_head(head, vectors(32, 1), vectors(3, 2, mark=4, row=1), masks_of(3, 1))
    with torch.no_grad():
        same, other, good = (head(v) for v in (vectors(20, 3, 4, row=6), vectors(20, 3, 9, row=6), vectors(20, 3)))
    assert same.shape == (20, *GRID) and bool((good >= 0).all())
    assert bool((same[:, 6, 3:5].amax(dim=1) > good.flatten(1).amax(dim=1)).float().mean() > 0.9)
    assert float(same[:, 6, 3:5].mean()) > 3 * float(other[:, 6, 3:5].mean())


def test_a_defect_far_smaller_than_a_cell_is_learned_like_a_large_one() -> None:
    """One pixel of a cell of 64, beside a defect of 16 cells of another kind."""
    torch.manual_seed(0)
    defects = vectors(2, 2)
    defects[0, 4, 1, 3] += 6
    defects[1, 9, 2:6, 4:8] += 6
    masks = torch.zeros(2, 64, 80, dtype=torch.bool)
    masks[0, 12, 28] = True
    masks[1, 16:48, 32:64] = True
    head = DefectHead(CHANNELS)
    fit_defect_head(head, vectors(32, 1), defects, masks)
    with torch.no_grad():
        small, large, good = (head(v)[:, 6, 3:5] for v in (vectors(20, 3, 4, 6), vectors(20, 3, 9, 6), vectors(20, 3)))
    assert float(small.mean()) > 3 * float(good.mean()) < float(large.mean())
    assert 1 / 3 < float(small.mean() / large.mean()) < 3


def test_channels_that_never_change_do_no_harm() -> None:
    good, defects = vectors(16, 0), vectors(2, 1, mark=3)
    good[:, 0] = defects[:, 0] = 0.5
    head = DefectHead(CHANNELS)
    fit_defect_head(head, good, defects, masks_of(2, 0))
    with torch.no_grad():
        assert bool(head(vectors(2, 5)).isfinite().all())


def planes(count: int, seed: int) -> Tensor:
    """Even gray images."""
    noise = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 8
    return (130 + noise).clamp(0, 255)


def fitted(good: int = 36, noise: int = 1, weight: float = 0.1) -> AnomalyModel:
    """A model that has learned three dark squares."""
    config = Config(backbone="resnet18", weights="none", image_height=SIZE[0], image_width=SIZE[1],
                    branches=("level 2", "level 3"), calibration="cross")  # fmt: skip
    torch.manual_seed(0)
    model = AnomalyModel(ModelSpec.from_config(config)).eval()
    defects, masks = planes(3, 9), torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    defects[masks[:, None].expand_as(defects)] = 60
    torch.manual_seed(noise)  # what was drawn before must not matter
    settings = FitSettings("equal", weight, seed=0)
    fit_branches(model, 0, planes(good, 1), np.arange(good), settings, defects=(defects, masks))
    return model


def test_it_gets_its_part_of_the_map_and_finds_the_defect_where_it_is() -> None:
    model, alone = fitted(), fitted(weight=0.0)
    assert model.branches().defect_head is not None and alone.branches().defect_head is None
    shares = model.branches().weight[:2] / alone.branches().weight
    torch.testing.assert_close(shares, torch.full((2,), 0.9))
    with torch.no_grad():
        good = model.branches().maps(model.inputs(model.features(planes(40, 3))))
        dark = planes(1, 4)
        dark[:, :, 24:40, 24:40] = 60
        found = model.branches().maps(model.inputs(model.features(dark)))[DEFECT_HEAD][0]
    assert list(good) == ["level 2", "level 3", DEFECT_HEAD]
    assert found.shape == (6, 6)
    inside, learned = found[3:5, 3:5].mean(), found[:2, :2].mean()  # it was learned at 1..2, and is not there now
    assert float(inside) > 3 * float(learned)
    assert float(found.max()) > 3 * float(good[DEFECT_HEAD].amax())


def test_it_learns_synthetic_anomalies_where_nothing_is_labelled() -> None:
    config = Config(
        backbone="resnet18", weights="none", image_height=SIZE[0], image_width=SIZE[1],
        branches=("level 2", "level 3"), calibration="cross",
    )  # fmt: skip
    torch.manual_seed(0)
    model = AnomalyModel(ModelSpec.from_config(config)).eval()
    left_out = fit_branches(model, 0, planes(64, 1), np.arange(64), FitSettings("equal", 0.2, head_examples=6))
    dark = planes(6, 4)
    dark[:, :, 32:64, 32:64] = 60
    with torch.no_grad():
        good, bad = (model.branches().maps(model.inputs(model.features(p)))[DEFECT_HEAD] for p in (planes(40, 3), dark))
        scores = model.judge(dark)[1]
    assert bad.flatten(1).amax(dim=1).median() > good.flatten(1).amax(dim=1).max()
    assert float(scores.median()) > left_out.scores.max()


def test_labelled_defects_are_learned_beside_many_synthetic_anomalies() -> None:
    head, rare = DefectHead(4), torch.zeros(41, 4, 6, 6)
    rare[:40, 0, 2, 2] = 8.0  # what is drawn
    rare[40, 1, 4, 4] = 8.0  # what is labelled, once
    masks = torch.zeros(41, 6, 6, dtype=torch.bool)
    masks[:40, 2, 2] = masks[40, 4, 4] = True
    noise = torch.randn(41, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    fit_defect_head(head, noise[:30], rare + noise, masks, labelled=1)
    new = torch.zeros(2, 4, 6, 6)
    new[0, 0, 1, 1] = new[1, 1, 1, 1] = 8.0
    with torch.no_grad():
        found = head(new)
    assert float(found[0, 1, 1]) > 1 and float(found[1, 1, 1]) > 1 and float(found[:, 4, 4].max()) < 0.5


def test_it_follows_from_the_seed_alone() -> None:
    first, second = (fitted(noise=n).state_dict() for n in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_with_few_good_images_there_is_none() -> None:
    assert fitted(good=31).branches().defect_head is None


@pytest.mark.slow
def test_a_run_keeps_it_and_a_refit_leaves_it_out_and_brings_it_back(tmp_path: Path) -> None:
    data = make_mvtec(tmp_path / "data", train=36, good=3, defective=2)
    config = DENSE.replace(branches=("level 2", "level 3"))
    bundle = train(data, tmp_path / "run", config, device="cpu", defects=data)
    model = load_model(bundle)
    assert bundle.model.categories[0].defect_head and model.branches().defect_head is not None
    without = refit(bundle.path, tmp_path / "without", config.replace(defect_head_weight=0.0), device="cpu")
    assert load_model(without).branches().defect_head is None and without.data.defects == bundle.data.defects
    back = refit(without.path, tmp_path / "back", config.replace(defect_head_weight=0.3), device="cpu")
    part = load_model(back).branches().weight[:2] / load_model(without).branches().weight
    torch.testing.assert_close(part, torch.full((2,), 0.7), rtol=1e-4, atol=0)
    assert read_bundle(back.path).model.categories[0].defect_head
