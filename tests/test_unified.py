"""One pair of networks for several products: each image gets its own product's branches, in every form."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from cdo_ad.method.categories import UnifiedNetwork, build
from cdo_ad.method.network import CdoNetwork
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import cdo_ad
from cdo_ad.bundle import Bundle
from cdo_ad.conformal import conformal_threshold
from cdo_ad.deploy.export import export
from cdo_ad.deploy.stages import PlainRuntime
from cdo_ad.errors import ConfigError
from cdo_ad.inference.detector import calibration_scores
from cdo_ad.inference.engines.torch import TorchRuntime, load_network
from cdo_ad.method.defect_head import DEFECT_HEAD
from cdo_ad.method.fit import fit_branches
from cdo_ad.training import job as training
from cdo_ad.training.adapt import adapt, refit
from conftest import TINY
from fakes import make_image, make_mvtec

CONFIG = TINY.replace(density=True, density_context=2, epochs=1, calibration_share=0.3, calibration_minimum=5)


def stripes(count: int, seed: int, across: bool) -> Tensor:
    """Good images of one of two products, (count, 3, 64, 64) uint8."""
    generator = torch.Generator().manual_seed(seed)
    wave = 60 * torch.sin(torch.arange(64) / (3 if across else 1.5))
    pattern = wave[None, :] if across else wave[:, None]
    noise = 8 * torch.randn(count, 3, 64, 64, generator=generator)
    return (120 + pattern + noise).round().clamp(0, 255).to(torch.uint8)


def two_products() -> UnifiedNetwork:
    torch.manual_seed(0)
    network = build(CONFIG, 2)
    assert isinstance(network, UnifiedNetwork)
    network.eval()
    with torch.no_grad():
        contexts = []
        for k, member in enumerate(network.members()):
            images = stripes(24, k, across=bool(k))
            contexts.append(network.expert(network.normalise(images))[-1].mean(dim=(2, 3)))
            fit_branches(member, [images], len(images), shares=(0.1 + 0.2 * k, 0.4 - 0.2 * k, 0.3, 0.2))
        network.fit_categories(contexts)
    return network.eval()


def test_each_image_gets_the_views_of_its_own_product() -> None:
    network = two_products()
    mixed = torch.cat([stripes(3, 10, across=False), stripes(2, 11, across=True)])[[0, 3, 1, 4, 2]]
    with torch.no_grad():
        assert network.which(network.expert(network.normalise(mixed))).tolist() == [0, 1, 0, 1, 0]
        maps, scores = network(mixed)
        for i, k in enumerate([0, 1, 0, 1, 0]):
            alone, score = network.members()[k](mixed[i : i + 1])
            torch.testing.assert_close(maps[i], alone[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(scores[i], score[0], rtol=1e-4, atol=1e-5)
            other = network.members()[1 - k](mixed[i : i + 1])[0]
            assert float((maps[i] - other[0]).abs().max()) > 0.1
        assert 0.5 < float(scores.mean()) < 2  # each in its own units


def test_networks_are_shared_and_one_product_is_no_union() -> None:
    network = two_products()
    for member in network.members():
        assert member.expert is network.expert and member.apprentice is network.apprentice
    single, plain = build(CONFIG, 1), build(CONFIG.replace(density=False), 3)
    assert type(single) is CdoNetwork and single.density is not None
    assert type(plain) is CdoNetwork and plain.density is None
    with pytest.raises(ConfigError, match="product by product"):
        network.add_defect_head()


def test_the_apprentice_starts_as_in_a_model_of_one_product() -> None:
    torch.manual_seed(3)
    one = build(CONFIG, 1).apprentice.state_dict()
    torch.manual_seed(3)
    two = build(CONFIG, 2).apprentice.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_view_of_one_product_alone_is_zero_for_the_others() -> None:
    network = two_products()
    network.members()[1].add_defect_head()
    network.members()[1].shares[-1] = 0.5
    with torch.no_grad():
        seen = network.branches(torch.cat([stripes(1, 20, across=False), stripes(1, 21, across=True)]))[DEFECT_HEAD]
        assert float(seen[0].abs().max()) == 0 and float(seen[1].abs().max()) > 0
        assert DEFECT_HEAD in network.branches(stripes(1, 20, across=False))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_exported_graphs_choose_the_product_too(kind: str, unified: Bundle) -> None:
    pytest.importorskip("openvino" if kind == "openvino" else "onnxruntime", reason="needs the extra of that engine")
    pytest.importorskip("onnxscript", reason="needs the extra export")
    file, agreement = export(unified.path, kind)
    assert agreement.score_difference < 1e-4 and agreement.map_difference < 1e-4
    if kind == "openvino":
        import openvino

        from cdo_ad.deploy.nodes import stage_of_nodes

        stage = stage_of_nodes(openvino.Core().read_model(file))
        kinds = Counter(stage.values())
        assert kinds["networks"] > 50
        assert {stage[n] for n in stage if n.startswith("__module.network.products")} == {"discrepancy"}


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("products")
    for name, count in (("plate", 12), ("cloth", 50)):
        make_mvtec(data / name, train=count, good=2, defective=2)
    # the fakes look alike: another product is much darker on one side
    for path in (data / "cloth").rglob("*.png"):
        if "ground_truth" not in path.parts:
            image = cdo_ad.read_image(path).copy()
            image[:, : image.shape[1] // 2] //= 4
            Image.fromarray(image).save(path)
    return data


@pytest.fixture(scope="module")
def unified(products: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return training.train(products, tmp_path_factory.mktemp("unified") / "run", CONFIG, unified=True, device="cpu")


def test_training_fits_each_product_and_the_bundle_reads_back(products: Path, unified: Bundle) -> None:
    about = unified.provenance["data"]
    assert about["category"] == "cloth, plate"
    network = load_network(unified.config, unified.model_file)
    assert isinstance(network, UnifiedNetwork)
    counts = Counter(name.partition("/")[0] for name in about["fit"])
    assert set(counts) == {"cloth", "plate"}
    images = {name: cdo_ad.read_image(next((products / name / "train/good").glob("*.png"))) for name in counts}
    shown = {}
    # each product's held-out images are judged in units of their own threshold
    rate = unified.config.false_alarm_rate
    scores = np.array(calibration_scores(TorchRuntime(network), unified.calibration_paths)[0])
    of = np.array([name.partition("/")[0] for name in about["calibration"]])
    assert conformal_threshold(scores[of == "cloth"], rate) == pytest.approx(1, rel=1e-4)
    assert (of == "plate").sum() < 9 and float(network.units[1]) != float(network.units[0])
    assert unified.calibration.image_threshold == pytest.approx(1) == unified.calibration.pixel_threshold
    assert not any(unified.calibration.decide(score) for score in scores[of == "cloth"])
    for name, image in images.items():
        planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        small = F.interpolate(planes, network.image_size, mode="bilinear", antialias=True)
        with torch.no_grad():
            shown[name] = int(network.which(network.expert(network.normalise(small))))
    assert shown == {"cloth": 0, "plate": 1}
    batch = np.stack([make_image(seed, "spot", (64, 96))[0] for seed in range(2)])
    maps, scores = TorchRuntime(network).infer(batch)
    plain = PlainRuntime(load_network(unified.config, unified.model_file)).infer(batch)
    np.testing.assert_allclose(maps, plain[0], atol=1e-4 * maps.max())
    np.testing.assert_allclose(scores, plain[1], rtol=1e-4)


def test_a_unified_run_is_refitted_and_adapted(products: Path, unified: Bundle, tmp_path: Path) -> None:
    other = refit(unified.path, tmp_path / "equal", unified.config.replace(fusion_weights="equal"), device="cpu")
    network = load_network(other.config, other.model_file)
    assert isinstance(network, UnifiedNetwork)
    assert [m.shares.tolist() for m in network.members()] == [[0.25] * 4] * 2
    before = load_network(unified.config, unified.model_file)
    assert isinstance(before, UnifiedNetwork)
    for was, now in zip(before.members(), network.members(), strict=True):
        for a, b in zip(was.density.gaussians, now.density.gaussians, strict=True):
            torch.testing.assert_close(a.mean, b.mean)  # the same images went to each product
    plain = refit(unified.path, tmp_path / "plain", unified.config.replace(density=False), device="cpu")
    assert type(load_network(plain.config, plain.model_file)) is CdoNetwork


def test_labelled_defects_teach_the_product_that_they_show(products: Path, unified: Bundle, tmp_path: Path) -> None:
    adapted, _ = adapt(unified.path, tmp_path / "adapted", bad=products / "cloth", epochs=0, device="cpu")
    network = load_network(adapted.config, adapted.model_file)
    assert isinstance(network, UnifiedNetwork)
    cloth, plate = network.members()
    assert cloth.density.defect_head is not None and plate.density.defect_head is None
    assert len(cloth.shares) == 5 and len(plate.shares) == 4
    image = cdo_ad.read_image(next((products / "cloth/test/spot").glob("*.png")))
    assert cdo_ad.load(adapted.path).predict(image).score > 0
