"""The branch of labelled defects: what it learns from a handful, what it leaves alone, how it travels in a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cdo_ad.method.network import CdoNetwork
from cdo_ad.training.job import train
from torch import Tensor

from cdo_ad.bundle import read_bundle
from cdo_ad.config import Config
from cdo_ad.deploy.export import export
from cdo_ad.errors import ConfigError
from cdo_ad.inference.detector import load
from cdo_ad.inference.engines.torch import load_network
from cdo_ad.method.defect_head import DEFECT_HEAD, DefectHead, _cells, fit_defect_head
from cdo_ad.method.fit import fit_branches
from cdo_ad.training.adapt import refit
from conftest import TINY
from fakes import make_mvtec

CHANNELS, GRID = 12, (8, 10)


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
    defect_head = DefectHead(CHANNELS)
    fit_defect_head(defect_head, vectors(32, 1), vectors(3, 2, mark=4, row=1), masks_of(3, 1))
    with torch.no_grad():
        same, other, good = (
            defect_head(v) for v in (vectors(20, 3, 4, row=6), vectors(20, 3, 9, row=6), vectors(20, 3))
        )
    assert same.shape == (20, *GRID) and bool((good >= 0).all())
    assert bool((same[:, 6, 3:5].amax(dim=1) > good.flatten(1).amax(dim=1)).float().mean() > 0.9)
    assert float(same[:, 6, 3:5].mean()) > 3 * float(other[:, 6, 3:5].mean())


def test_small_and_large_defects_count_alike() -> None:
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, :32, :32] = True
    masks[1, 17, 17] = True  # a sixty-fourth of a cell
    covered, near = _cells(masks, (8, 8))
    assert covered.flatten(1).sum(dim=1).tolist() == [16, 1, 0]
    assert covered[1].nonzero().tolist() == [[2, 2]]
    assert near[1].nonzero().tolist() == [[r, c] for r in range(5) for c in range(5)]
    assert not near[2].any()


def test_channels_that_never_change_do_no_harm() -> None:
    good, defects = vectors(16, 0), vectors(2, 1, mark=3)
    good[:, 0] = defects[:, 0] = 0.5
    defect_head = DefectHead(CHANNELS)
    fit_defect_head(defect_head, good, defects, masks_of(2, 0))
    with torch.no_grad():
        assert bool(defect_head(vectors(2, 5)).isfinite().all())


SIZE = (64, 64)


def images(count: int, seed: int) -> Tensor:
    noise = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 8
    return (130 + noise).round().clamp(0, 255).to(torch.uint8)


def fitted(good: int = 80, **settings: object) -> CdoNetwork:
    """A network that has learned three dark squares."""
    torch.manual_seed(0)
    config = Config(backbone="resnet18", weights="none", density=True, density_context=2)
    network = CdoNetwork.from_config(config.replace(image_height=SIZE[0], image_width=SIZE[1])).eval()
    defects, masks = images(3, 9), torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    defects[masks[:, None].expand_as(defects)] = 60
    torch.manual_seed(int(settings.pop("noise", 1)))  # what was drawn before must not matter
    fit_branches(network, [images(good, 1)], good, defects=(defects, masks), defect_head_weight=0.1)
    return network


def test_it_gets_its_share_of_the_map_and_good_images_score_that() -> None:
    network = fitted()
    assert network.shares.tolist()[-1] == pytest.approx(0.1)
    assert float(network.shares.sum()) == pytest.approx(1)
    with torch.no_grad():
        branches = network.branches(images(40, 3))
        alone = network.finish([branches[DEFECT_HEAD]])[1]
        dark = images(1, 4)
        dark[:, :, 40:56, 40:56] = 60
        found = network.branches(dark)[DEFECT_HEAD][0]
    assert list(branches)[-1] == DEFECT_HEAD
    assert float(alone.mean()) == pytest.approx(0.1, rel=0.5)
    row, column = divmod(int(found.argmax()), found.shape[1])
    assert 40 <= row * 4 < 56 and 40 <= column * 4 < 56
    assert float(found.max()) > 3 * float(branches[DEFECT_HEAD].amax())


def test_it_follows_from_the_seed_alone() -> None:
    first, second = (fitted(noise=n).state_dict() for n in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_with_few_good_images_it_has_no_say() -> None:
    network = fitted(good=8)
    assert network.density.defect_head is None and network.shares.tolist() == [0.25] * 4


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recognised")
    data = make_mvtec(root / "data", train=42, good=3, defective=3)
    config = TINY.replace(density=True, density_context=2)
    train(data, root / "run", config, device="cpu", defects=data)
    return root / "run"


def test_a_run_keeps_it_and_exports_it(taught: Path) -> None:
    bundle = read_bundle(taught)
    network = load_network(bundle.config, bundle.model_file)
    assert network.density.defect_head is not None and float(network.shares[-1]) == pytest.approx(0.1)
    fresh = DefectHead(network.density.defect_head.scale.shape[1])
    assert not torch.equal(network.density.defect_head.layers[0].weight, fresh.layers[0].weight)
    batch = np.random.default_rng(0).integers(0, 255, (2, *SIZE, 3), dtype=np.uint8)
    expected = load(taught, backend="torch").runtime.infer(batch)
    for format_ in ("onnx", "openvino"):
        export(taught, format_)
        for value, reference in zip(load(taught, backend=format_).runtime.infer(batch), expected, strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-3, atol=1e-4)


def test_a_refit_can_leave_it_out_and_bring_it_back(taught: Path, tmp_path: Path) -> None:
    config = read_bundle(taught).config
    without = refit(taught, tmp_path / "without", config.replace(defect_head_weight=0.0), device="cpu")
    network = load_network(without.config, without.model_file)
    assert network.density.defect_head is None and len(network.shares) == 4
    back = refit(without.path, tmp_path / "back", config.replace(defect_head_weight=0.3), device="cpu")
    assert float(load_network(back.config, back.model_file).shares[-1]) == pytest.approx(0.3)


def test_what_it_needs_is_said() -> None:
    with pytest.raises(ConfigError, match="set density=true"):
        CdoNetwork("resnet18", SIZE).add_defect_head()
    with pytest.raises(ConfigError, match="defect_head_weight must lie in"):
        Config(defect_head_weight=1.0)
