"""The branches together: what each scores on good images, what it sees of synthetic anomalies, and its share."""

from __future__ import annotations

import pytest
import torch
from cdo_ad.method.density import BRANCHES
from cdo_ad.method.network import LEVEL_NAMES, CdoNetwork
from torch import Tensor

from cdo_ad.config import Config
from cdo_ad.errors import ConfigError
from cdo_ad.method import fitting
from cdo_ad.method.discrepancy import anomaly_map
from cdo_ad.method.fit import fit_branches, scores_without
from cdo_ad.method.fusion import FUSED, informed_weights, separation

SIZE = (64, 96)


def make_network(**settings: object) -> CdoNetwork:
    torch.manual_seed(0)
    config = Config(backbone="resnet18", weights="none", density=True, density_context=2)
    return CdoNetwork.from_config(config.replace(image_height=SIZE[0], image_width=SIZE[1], **settings)).eval()


def photographs(count: int, seed: int = 0, light: float = 0.0) -> Tensor:
    """Even gray images; each as a whole brighter or darker by up to `light`."""
    generator = torch.Generator().manual_seed(seed)
    intensities = 130 + light * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    noise = torch.randn(count, 3, *SIZE, generator=generator) * 4
    return (intensities + noise).round().clamp(0, 255).to(torch.uint8)


def peak(maps: Tensor) -> Tensor:
    return maps.flatten(1).amax(dim=1)


def test_separation_is_the_image_auroc() -> None:
    from sklearn.metrics import roc_auc_score

    good, bad = torch.randn(3, 40).round(decimals=1), torch.randn(3, 25).round(decimals=1) + 0.5
    expected = [roc_auc_score([0] * 40 + [1] * 25, torch.cat([g, b])) for g, b in zip(good, bad, strict=True)]
    assert separation(good, bad).tolist() == pytest.approx(expected)


def test_shares_grow_with_what_a_view_sees_and_blind_views_get_none() -> None:
    shares = informed_weights(torch.tensor([[1.0, 0.9, 0.5, 0.2], [1.0, 0.7, 0.5, 0.4]]))
    assert shares.tolist() == pytest.approx([1 / (1 + 0.6**4), 0.6**4 / (1 + 0.6**4), 0, 0])
    assert informed_weights(torch.tensor([[1.0, 0.9, 0.8, 0.7]]), power=0).tolist() == [0.25] * 4
    assert informed_weights(torch.full((2, 4), 0.3)).tolist() == [0.25] * 4


def test_views_add_up_to_the_map_and_a_good_image_scores_each_share() -> None:
    network = make_network()
    fit_branches(network, [photographs(12, seed) for seed in range(3)], 36, shares=(0.1, 0.2, 0.3, 0.4))
    images = photographs(24, 9)
    with torch.no_grad():
        branches = network.branches(images)
        maps, scores = network(images)
    assert list(branches) == [*LEVEL_NAMES, *BRANCHES]
    torch.testing.assert_close(anomaly_map(list(branches.values()), SIZE, 4.0), maps)
    parts = [
        anomaly_map([branches[name] for name in names], SIZE, 4.0) for names in (LEVEL_NAMES, *((v,) for v in BRANCHES))
    ]
    assert [float(peak(part).mean()) for part in parts] == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=0.2)
    assert 0.5 < float(scores.mean()) < 1.1


def test_learned_weights_take_from_the_view_that_good_images_confuse() -> None:
    """Where light differs from image to image *and* place, intensity tells little; where it is even, much."""

    def patchy(count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        cells = torch.randn(count, 1, 8, 8, generator=generator) * 25
        light = torch.nn.functional.interpolate(cells, size=SIZE, mode="bilinear")
        return (photographs(count, seed).float() + light).clamp(0, 255).to(torch.uint8)

    shares = {}
    for name, make in {"even": photographs, "patchy": patchy}.items():
        network = make_network()
        fit_branches(network, [make(40, seed) for seed in range(2)], 80)
        shares[name] = network.shares
        assert float(network.shares.sum()) == pytest.approx(1)
    assert shares["even"][3] > 2 * shares["patchy"][3]


def test_labelled_defects_have_a_say_in_the_shares(monkeypatch) -> None:
    """Each counts like a kind of synthetic anomaly; of the disagreement, trained on them, they tell nothing."""
    rows = []
    real = fitting.informed_weights
    monkeypatch.setattr(fitting, "informed_weights", lambda separations: rows.append(separations) or real(separations))
    dark = photographs(5, 7)
    dark[:, :, :24, :24] = (dark[:, :, :24, :24].float() * 0.7).to(torch.uint8)  # nothing but intensity
    shares = []
    for defects in (None, dark):
        network = make_network()
        labelled = None if defects is None else (defects, torch.ones(len(defects), *SIZE, dtype=torch.bool))
        fit_branches(network, [photographs(40, seed) for seed in range(2)], 80, defects=labelled)
        shares.append(network.shares.clone())
    without, found = rows
    torch.testing.assert_close(found[: len(without)], without)
    assert len(found) == len(without) + 5
    torch.testing.assert_close(found[len(without) :, 0], without.mean(dim=0)[0].expand(5))
    assert (found[len(without) :, 3] > 0.9).all()
    torch.testing.assert_close(shares[1], real(found))
    assert not torch.allclose(shares[0], shares[1], atol=0.01)


def test_shares_are_learned_on_images_that_the_judged_gaussians_have_not_seen(monkeypatch) -> None:
    network = make_network()
    counts = []
    real = type(network.density).fit

    def counting(density, moments) -> None:
        counts.append(moments[0].count)
        real(density, moments)

    monkeypatch.setattr(type(network.density), "fit", counting)
    fit_branches(network, [photographs(16, seed) for seed in range(4)], 64)
    assert counts == [48, 64]


def test_the_same_seed_gives_the_same_and_another_seed_other_anomalies(monkeypatch) -> None:
    seen: list[list[int]] = []
    real = fitting.add_anomaly
    monkeypatch.setattr(fitting, "add_anomaly", lambda *a: seen.append(a[2]) or real(*a))
    states = []
    for seed in (3, 3, 4):
        network = make_network()
        fit_branches(network, [photographs(40)], 40, seed=seed)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert seen[0] == seen[7] != seen[14]


def test_with_few_images_shares_are_equal() -> None:
    network = make_network()
    fit_branches(network, [photographs(6)], 6)
    assert network.shares.tolist() == [0.25] * 4
    with torch.no_grad():
        assert bool(network(photographs(2, 5))[0].isfinite().all())


@pytest.mark.parametrize("shares", [None, [0.25] * 4])
@pytest.mark.parametrize("labelled", [False, True])
def test_progress_reaches_its_total_at_the_end(labelled: bool, shares: list[float] | None) -> None:
    told = []
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    images = [photographs(16, s) for s in range(2)]
    fit_branches(make_network(), images, 32, shares, progress=lambda *a: told.append(a),
              defects=(photographs(2, 7), masks) if labelled else None, defect_head_weight=0.1)  # fmt: skip
    assert told[-1][0] == told[-1][1] and [a[0] for a in told] == sorted(a[0] for a in told)
    assert [a[0] for a in told].index(told[-1][1]) == len(told) - 1


def test_without_a_density_it_is_the_papers_sum() -> None:
    torch.manual_seed(0)
    network = CdoNetwork("resnet18", SIZE).eval()
    with pytest.raises(ConfigError, match="set density=true"):
        fit_branches(network, [], 0)
    with torch.no_grad():
        images = photographs(2)
        expected = anomaly_map(network.discrepancies(images), SIZE, 4.0)
        assert list(network.branches(images)) == list(LEVEL_NAMES)
        assert torch.equal(network(images)[0], expected)


def test_settings_of_shares() -> None:
    assert Config().shares() is None
    assert Config(fusion_weights="equal").shares() == (0.25,) * len(FUSED)
    assert Config(fusion_weights="0.5,0.5,0,0").shares() == (0.5, 0.5, 0, 0)
    for text in ("0.5,0.5", "1,1,0,0", "-0.5,0.5,0.5,0.5", "much"):
        with pytest.raises(ConfigError, match="auto, equal or four numbers"):
            Config(fusion_weights=text)


def test_scores_without_are_those_of_a_density_that_has_not_seen_the_group() -> None:
    network = make_network()
    groups = [photographs(12, seed, light=15) for seed in range(3)]
    fit_branches(network, groups, 36, shares=(0.1, 0.3, 0.3, 0.3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    results = scores_without(network, groups)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-4, msg=name)
    apart = make_network()
    apart.load_state_dict(before)
    moments = apart.density.moments()
    with torch.no_grad():
        for images in groups[1:]:
            apart.density.add(moments, images, apart.features(images)[0])
        usual = apart.density.usual.clone()
        apart.density.fit(moments)
        apart.density.usual.copy_(usual)
        maps, scores = apart(groups[0])
        seen = network(groups[0])[1]
    assert [score for score, _ in results[:12]] == pytest.approx(scores.tolist(), rel=1e-3)
    assert [value for _, value in results[:12]] == pytest.approx(maps.flatten(1).amax(1).tolist(), rel=1e-3)
    assert float(scores.mean()) > float(seen.mean())
