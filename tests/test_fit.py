"""Fitting: scores of good images by branches that have not seen them, weights, units, and what decides all that."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cdo_ad.config import BranchName
from cdo_ad.errors import ConfigError
from cdo_ad.method.anomalies import KINDS
from cdo_ad.method.discrepancy import image_score
from cdo_ad.method.fit import FitSettings, LeftOut, fit_branches
from cdo_ad.method.folds import fold_count, make_folds
from cdo_ad.method.fusion import fit_baseline, position_statistics
from cdo_ad.method.model import AnomalyModel
from cdo_ad.region import pack_region
from cdo_ad.spec import CategorySpec, ModelSpec

SIZE = (48, 64)
JUDGED = 28
LEVELS: tuple[BranchName, ...] = ("level 3", "level 2", "bank", "intensity")


@pytest.fixture(autouse=True)
def few_anomalies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are learned on a tenth of the usual number of synthetic anomalies."""
    monkeypatch.setattr("cdo_ad.method.seen.JUDGED", JUDGED)


def make_model(
    branches: tuple[BranchName, ...], standardized: bool = True, baseline: bool = False, region: str = ""
) -> AnomalyModel:
    category = CategorySpec(
        branches=branches, standardized=standardized, components=2, intensity_components=1, centres=40,
        baseline=baseline, region=region,
    )  # fmt: skip
    spec = ModelSpec(
        backbone="resnet18", image_size=SIZE, normalize_brightness=False, blur_sigma=4.0, score_top=0.0,
        categories=(category,),
    )  # fmt: skip
    torch.manual_seed(0)
    return AnomalyModel(spec).eval()


def photographs(count: int, seed: int = 0) -> Tensor:
    """Gray images with soft stripes, each a little brighter or darker; (count, 3, H, W) float."""
    generator = torch.Generator().manual_seed(seed)
    light = 130 + 8 * torch.randn(count, 1, 1, 1, generator=generator)
    stripes = 20 * torch.sin(torch.arange(SIZE[1]) / 6)
    return (light + stripes + 4 * torch.randn(count, 3, *SIZE, generator=generator)).clamp(0, 255)


def fit(model: AnomalyModel, images: Tensor, units: npt.NDArray[np.int64] | None = None, **options: object) -> LeftOut:
    settings = FitSettings(**{"fusion_weights": "equal", "seed": 1, **options})  # type: ignore[arg-type]
    return fit_branches(model, 0, images, np.arange(len(images)) if units is None else units, settings)


# ---- folds


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 20), st.integers(0, 2**31))
def test_folds_hold_whole_units_and_are_nearly_equal(sizes: list[int], count: int, seed: int) -> None:
    units = np.repeat(np.arange(len(sizes)), sizes)
    folds = make_folds(units, count, seed)
    assert all(len(set(folds[units == unit].tolist())) == 1 for unit in range(len(sizes)))
    filled = np.bincount(folds)
    assert len(filled) == min(count, len(sizes)) and filled.min() > 0
    assert filled.max() - filled.min() <= max(sizes)


def test_the_draw_of_folds_is_frozen() -> None:
    """The same on every machine and with every numpy: another draw would change thresholds."""
    assert make_folds(np.arange(10), 3, seed=5).tolist() == make_folds(np.arange(10), 3, seed=5).tolist()
    assert make_folds(np.arange(10), 3, seed=5).tolist() != make_folds(np.arange(10), 3, seed=6).tolist()
    assert "".join(map(str, make_folds(np.arange(10), 3, seed=5))) == "1200212010"


@pytest.mark.parametrize(("images", "folds"), [(20, 100), (400, 100), (1000, 40), (3000, 13), (40_000, 10)])
def test_many_images_are_left_out_in_fewer_folds(images: int, folds: int) -> None:
    assert fold_count(images) == folds


# ---- left-out scores


def by_hand(
    images: Tensor, units: npt.NDArray[np.int64], name: BranchName, baseline: bool = False
) -> npt.NDArray[np.float64]:
    """Scores of one branch alone, by a plain loop: fit without the fold, judge it, put it in units of the others."""
    model = make_model((name,))
    branches, folds = model.branches(), make_folds(units, fold_count(len(units)), seed=1)
    with torch.no_grad():
        seen = model.inputs(model.features(images))
        context = seen.context_of(name)
        raw = torch.zeros(len(images), *branches.grids[name])
        for fold in range(folds.max() + 1):
            others, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            density, vectors = branches.density(name), seen.vectors[name]
            if name == "bank":
                density.fit(vectors[:, others])
                found = density(vectors[:, own])
            else:
                density.fit(vectors[:, others], context[others])
                found = density(vectors[:, own], context[own])
            raw[own] = found.reshape(-1, *branches.grids[name])
        standard = torch.zeros_like(raw)
        for fold in range(folds.max() + 1):
            mean, deviation = position_statistics(raw[folds != fold])
            found = (raw[folds == fold] - mean) / deviation
            if baseline:
                slope, low, high = fit_baseline(((raw[folds != fold] - mean) / deviation).flatten(1))
                usual = found.flatten(1).sort(dim=1).values[:, int(0.25 * (found[0].numel() - 1))]
                found = found - 0.5 * slope * usual.clamp(low, high)[:, None, None]
            standard[folds == fold] = found
        peaks = model.enlarge(standard)[:, 2::4, 2::4].flatten(1).amax(dim=1)
        branches.offset.copy_(peaks.mean() / peaks.std())
        scores: npt.NDArray[np.float64] = image_score(model.finish(branches, [standard / peaks.std()])).double().numpy()
    return scores


@pytest.mark.parametrize("name", ["level 3", "bank", "intensity"])
def test_left_out_scores_are_those_of_a_plain_refit_without_the_fold(name: BranchName) -> None:
    images, units = photographs(12), np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8])  # some show the same part
    found = fit(make_model((name,)), images, units)
    np.testing.assert_allclose(found.scores, by_hand(images, units, name), rtol=1e-4)
    np.testing.assert_array_equal(found.scores, found.maxima)  # the score is the map's maximum here


def test_what_lies_in_the_image_as_a_whole_is_taken_off_by_what_other_folds_show() -> None:
    images, units = photographs(12), np.arange(12)
    found = fit(make_model(("level 3",), baseline=True), images, units, baseline_share=0.5)
    np.testing.assert_allclose(found.scores, by_hand(images, units, "level 3", baseline=True), rtol=1e-4)
    assert np.abs(found.scores / by_hand(images, units, "level 3") - 1).max() > 0.01


def test_new_good_images_score_like_the_left_out_ones_also_less_their_baseline() -> None:
    model = make_model(("level 3", "intensity"), baseline=True)
    left_out = fit(model, photographs(60), baseline_share=0.5).scores
    assert all(float(model.branches().get_buffer(f"baseline_{name}")[0]) > 0 for name in ("level_3", "intensity"))
    with torch.no_grad():
        new = model.judge(photographs(60, seed=7))[1].numpy()
    assert np.median(new) == pytest.approx(np.median(left_out), rel=0.15)


def test_a_baseline_is_that_of_the_region_of_interest() -> None:
    inside = np.zeros(SIZE, bool)
    inside[:, :32] = True
    branches = make_model(("intensity",), baseline=True, region=pack_region(inside)).branches()
    maps = torch.rand(4, *branches.grids["intensity"])
    outside = maps.clone()
    outside[:, :, 8:] += 5
    fitted = torch.tensor(1.0), torch.tensor(0.0), torch.tensor(9.0)
    found, other = (branches.less_baseline(each, *fitted) for each in (maps, outside))
    torch.testing.assert_close(other[:, :, :8], found[:, :, :8])
    assert not torch.allclose(found, maps)


def test_a_copy_in_another_fold_would_make_scores_too_small() -> None:
    images = photographs(12).repeat_interleave(2, dim=0)
    together = fit(make_model(("bank",)), images, np.arange(12).repeat(2)).scores
    apart = fit(make_model(("bank",)), images, np.arange(24)).scores
    assert np.corrcoef(together[::2], together[1::2])[0, 1] > 0.99
    raw_apart, raw_together = (make_model(("bank",)) for _ in range(2))
    fit(raw_apart, images, np.arange(24))
    fit(raw_together, images, np.arange(12).repeat(2))
    assert float(raw_apart.branches().get_buffer("mean_bank").mean()) < 0.6 * float(
        raw_together.branches().get_buffer("mean_bank").mean()
    )
    assert np.isfinite(apart).all()


def test_new_good_images_score_like_the_left_out_ones() -> None:
    model = make_model(("level 3", "intensity"))
    left_out = fit(model, photographs(60)).scores
    with torch.no_grad():
        new = model.judge(photographs(60, seed=7))[1].numpy()
        seen = model.judge(photographs(60))[1].numpy()
    assert np.median(new) == pytest.approx(np.median(left_out), rel=0.15)
    assert np.median(seen) < np.median(left_out)


def test_the_final_densities_are_fitted_on_all_images() -> None:
    images, model = photographs(12), make_model(("level 3",))
    fit(model, images)
    again = make_model(("level 3",))
    with torch.no_grad():
        seen = again.inputs(again.features(images))
    again.branches().density("level 3").fit(seen.vectors["level 3"], seen.context)
    for name, value in again.branches().density("level 3").state_dict().items():
        torch.testing.assert_close(model.branches().density("level 3").state_dict()[name], value, rtol=1e-4, atol=1e-4)


def test_a_disagreement_that_was_trained_on_is_raised_by_what_it_is_too_small() -> None:
    images = photographs(20)
    model = make_model(("disagreement", "intensity"))
    assert model.apprentice is not None
    learned = np.arange(20) < 15
    with torch.no_grad():
        levels = model.features(images).levels
    peaks = model.enlarge(torch.stack(levels).sum(dim=0)).flatten(1).amax(dim=1)
    ratio = max(1.0, float(peaks[15:].median() / peaks[:15].median()))
    settings = FitSettings((1.0, 0.0), 0.0, 1)
    fit_branches(model, 0, images, np.arange(20), settings, trained=learned)
    raised = torch.stack(levels).sum(dim=0) * torch.where(torch.from_numpy(learned), ratio, 1.0)[:, None, None]
    mean, _ = position_statistics(raised)
    torch.testing.assert_close(model.branches().get_buffer("mean_disagreement"), mean)
    assert model.branches().names == ("disagreement",)


def test_the_papers_form_has_nothing_to_fit() -> None:
    model = make_model(("disagreement",), standardized=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = fit(model, photographs(5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        np.testing.assert_allclose(found.scores, model.judge(photographs(5))[1].numpy(), rtol=1e-5)


# ---- weights


def test_given_weights_are_of_maps_in_units_of_their_scatter_and_zeros_are_dropped() -> None:
    model = make_model(LEVELS)
    fit(model, photographs(24), fusion_weights=(0.25, 0.0, 0.75, 0.0))
    branches = model.branches()
    assert branches.names == ("level 3", "bank")
    with torch.no_grad():
        new = photographs(80, seed=3)
        maps = branches.maps(model.inputs(model.features(new)))
        for name, share in (("level 3", 0.25), ("bank", 0.75)):
            peaks = model.enlarge(maps[name]).flatten(1).amax(dim=1)
            assert float(peaks.std()) == pytest.approx(share, rel=0.5)


@pytest.mark.parametrize(("count", "start"), [(12, [1 / 3, 1 / 3, 1 / 3, 0]), (64, [1, 0, 0, 0])])
def test_few_images_begin_with_equal_thirds_and_many_with_level_3(
    monkeypatch: pytest.MonkeyPatch, count: int, start: list[float]
) -> None:
    begun: list[tuple[Tensor, npt.NDArray[np.int64]]] = []

    def keep(good: object, bad: object, kinds: npt.NDArray[np.int64], given: Tensor) -> Tensor:
        begun.append((given, kinds))
        return given

    monkeypatch.setattr("cdo_ad.method.fit.learned_weights", keep)
    model = make_model(LEVELS)
    fit(model, photographs(count), fusion_weights="learned")
    [(given, kinds)] = begun
    assert given.tolist() == pytest.approx(start)
    assert model.branches().names == tuple(name for name, weight in zip(LEVELS, start, strict=True) if weight > 0)
    assert set(kinds.tolist()) == set(range(len(KINDS)))
    counts = np.bincount(kinds)[1:]  # white noise draws nothing now and then
    assert counts.min() == counts.max() == min(JUDGED // len(KINDS), 4 * count)


def test_fewer_than_eight_images_give_equal_weights_without_looking_at_anomalies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("cdo_ad.method.fit.learned_weights")
    model = make_model(LEVELS)
    fit(model, photographs(7), fusion_weights="learned")
    assert model.branches().names == LEVELS


def test_learned_weights_leave_out_a_branch_that_good_images_confuse() -> None:
    """Light that differs from image to image *and* from place to place: intensities tell nothing."""

    def patchy(count: int) -> Tensor:
        cells = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 30
        light = torch.nn.functional.interpolate(cells, size=SIZE, mode="bilinear")
        return (photographs(count) + light).clamp(0, 255)

    model = make_model(("level 3", "intensity"))
    fit(model, patchy(64), fusion_weights="learned")
    assert model.branches().names == ("level 3",)


def test_each_labelled_defect_counts_like_a_kind_of_anomalies(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[npt.NDArray[np.int64]] = []
    monkeypatch.setattr(
        "cdo_ad.method.fit.learned_weights", lambda good, bad, kinds, start: seen.append(kinds) or start
    )
    defects = photographs(3, seed=5), torch.ones(3, *SIZE, dtype=torch.bool)
    settings = FitSettings("learned", 0.0, 1)
    fit_branches(make_model(("level 3", "intensity")), 0, photographs(10), np.arange(10), settings, defects=defects)
    assert [int((seen[0] == kind).sum()) for kind in range(len(KINDS), len(KINDS) + 3)] == [1, 1, 1]
    assert seen[0].max() == len(KINDS) + 2


# ---- what decides


def test_the_seed_alone_decides_whatever_was_drawn_before() -> None:
    states = []
    for noise in (1, 2):
        model = make_model(LEVELS)
        torch.manual_seed(noise)
        fit(model, photographs(10), fusion_weights="learned")
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    settings = FitSettings("learned", 0.0, 1)
    fit_branches(make_model(("level 3", "intensity")), 0, photographs(20), np.arange(20), settings,
                 progress=lambda done, total: told.append((done, total)))  # fmt: skip
    done = [d for d, _ in told]
    assert done == sorted(done) and len({total for _, total in told}) == 1 and done[-1] <= told[0][1]


@pytest.mark.parametrize(("units", "parts"), [([0], 1), ([0, 0, 0], 1), ([0, 1], 2), ([0, 0, 0, 1], 2)])
def test_without_two_images_of_other_parts_nothing_can_be_calibrated(units: list[int], parts: int) -> None:
    with pytest.raises(ConfigError, match=rf"good images of {parts} part\(s\) cannot calibrate a detector"):
        fit(make_model(("level 3",)), photographs(len(units)), np.array(units))


@pytest.mark.parametrize("count", [3, 5])
def test_a_handful_of_images_gives_finite_maps(count: int) -> None:
    model = make_model(LEVELS)
    assert np.isfinite(fit(model, photographs(count)).scores).all()
    with torch.no_grad():
        assert bool(model.judge(photographs(2, seed=3))[0].isfinite().all())
