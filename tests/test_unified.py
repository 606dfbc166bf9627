"""One pair of networks for several categories: each image gets its own category's branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import cdo_ad
from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.conformal import conformal_threshold
from cdo_ad.errors import ConfigError
from cdo_ad.inference.calibrate import score_images
from cdo_ad.inference.engines.torch import TorchEngine, load_model
from cdo_ad.method.fit import FitSettings, fit_branches
from cdo_ad.method.model import UNKNOWN, AnomalyModel
from cdo_ad.spec import ModelSpec
from cdo_ad.training.adapt import adapt, refit
from cdo_ad.training.train import train
from conftest import DENSE
from fakes import make_mvtec, write

CONFIG = DENSE.replace(epochs=1, branches=("disagreement", "level 3", "intensity"), fusion_weights=(0.2, 0.5, 0.3))


def stripes(count: int, seed: int, across: bool) -> Tensor:
    """Good images of one of two categories, (count, 3, 64, 64) float."""
    generator = torch.Generator().manual_seed(seed)
    wave = 60 * torch.sin(torch.arange(64) / (3 if across else 1.5))
    pattern = wave[None, :] if across else wave[:, None]
    noise = 8 * torch.randn(count, 3, 64, 64, generator=generator)
    return (120 + pattern + noise).clamp(0, 255)


@pytest.fixture(scope="module")
def two() -> AnomalyModel:
    spec = ModelSpec.from_config(CONFIG)
    one = spec.categories[0].model_copy(update={"components": 3, "intensity_components": 1})
    spec = spec.model_copy(
        update={"categories": tuple(one.model_copy(update={"name": name}) for name in ("down", "across"))}
    )
    torch.manual_seed(0)
    model = AnomalyModel(spec).eval()
    good = [stripes(16, k, across=bool(k)) for k in range(2)]
    model.fit_categories([[images] for images in good])
    for k, images in enumerate(good):
        fit_branches(model, k, images, np.arange(16), FitSettings((0.2 + 0.3 * k, 0.5 - 0.3 * k, 0.3), 0.0, 1))
    return model


def test_each_image_gets_the_branches_of_its_own_category(two: AnomalyModel) -> None:
    mixed = torch.cat([stripes(3, 10, across=False), stripes(2, 11, across=True)])[[0, 3, 1, 4, 2]]
    with torch.no_grad():
        maps, scores, chosen = two.judge(mixed)
        assert chosen.tolist() == [0, 1, 0, 1, 0]
        for i, k in enumerate(chosen.tolist()):
            alone, score, _ = two.judge(mixed[i : i + 1], torch.tensor([k]))
            torch.testing.assert_close(maps[i], alone[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(scores[i], score[0], rtol=1e-4, atol=1e-5)
            other, _, told = two.judge(mixed[i : i + 1], torch.tensor([1 - k]))
            assert told.tolist() == [1 - k]  # what the caller knows counts
            assert float((maps[i] - other[0]).abs().max()) > 0.1
        _, _, part = two.judge(mixed, torch.tensor([1, UNKNOWN, UNKNOWN, 0, 0]))
        assert part.tolist() == [1, 1, 0, 0, 0]


def test_the_apprentice_starts_as_in_a_model_of_one_category() -> None:
    spec = ModelSpec.from_config(CONFIG)
    several = spec.model_copy(update={"categories": spec.categories * 2})
    states = []
    for given in (spec, several):
        torch.manual_seed(3)
        apprentice = AnomalyModel(given).apprentice
        assert apprentice is not None
        states.append(apprentice.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("products")
    for name, count in (("plate", 10), ("cloth", 34)):
        make_mvtec(data / name, train=count, good=2, defective=2)
    # the fakes look alike: another product is much darker on one side
    for path in (data / "cloth").rglob("*.png"):
        if "ground_truth" not in path.parts:
            image = cdo_ad.read_image(path).copy()
            image[:, : image.shape[1] // 2] //= 4
            write(path, image)
    return data


@pytest.fixture(scope="module")
def unified(products: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train(products, tmp_path_factory.mktemp("unified") / "run", CONFIG, unified=True, device="cpu")


@pytest.mark.slow
def test_each_category_has_scores_and_thresholds_of_its_own(products: Path, unified: Bundle) -> None:
    assert unified.data.category == "cloth, plate" and unified.model.names == ("cloth", "plate")
    calibration = unified.calibration
    for name, count in (("cloth", 34), ("plate", 10)):
        own = calibration.of(name)
        assert len(own.scores) == count and own.image_threshold == conformal_threshold(own.scores, 0.1)
        inside = [record for record in unified.data.images if record.category == name]
        assert len(inside) == count and all(record.name.startswith(f"{name}/") for record in inside)
    with pytest.raises(ConfigError, match="name the category: this run has 'cloth', 'plate'"):
        calibration.decide(1.0)


@pytest.mark.slow
def test_the_category_is_recognised_or_given_and_the_prediction_says_which(products: Path, unified: Bundle) -> None:
    detector = cdo_ad.load(unified.path, device="cpu")
    for name in ("cloth", "plate"):
        image = cdo_ad.read_image(products / name / "test" / "good" / "000.png")
        found, given = detector.predict(image), detector.predict(image, category=name)
        assert (found.category, found.category_given, given.category_given) == (name, False, True)
        assert found.score == given.score and found.threshold == unified.calibration.of(name).image_threshold
    with pytest.raises(ConfigError, match="there is no category 'nut'"):
        detector.predict(image, category="nut")


@pytest.mark.slow
def test_a_batch_of_both_gives_what_single_images_give(products: Path, unified: Bundle) -> None:
    engine = TorchEngine(load_model(unified))
    images = np.stack([np.asarray(Image.open(products / name / "test/good/000.png").resize((80, 64)))
                       for name in ("cloth", "plate", "cloth")])  # fmt: skip
    together = engine.infer(images)
    assert together.categories.tolist() == [0, 1, 0]
    for i in range(3):
        alone = engine.infer(images[i : i + 1])
        np.testing.assert_allclose(together.maps[i], alone.maps[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.scores[i], alone.scores[0], rtol=1e-4)


@pytest.mark.slow
def test_a_refit_gives_each_category_the_new_weights(unified: Bundle, tmp_path: Path) -> None:
    other = refit(unified.path, tmp_path / "equal", unified.config.replace(fusion_weights=(0, 1, 0)), device="cpu")
    assert [category.branches for category in other.model.categories] == [("level 3",)] * 2
    before, after = load_model(unified), load_model(other)
    for number in range(2):
        was, now = (model.branches(number).density("level 3").mean for model in (before, after))
        torch.testing.assert_close(was, now)  # the same images went to each category
    again = score_images(TorchEngine(after), [(path, -1) for path in read_bundle(other.path).good_paths[:3]])
    assert all(score > 0 for score, _ in again)


@pytest.mark.slow
def test_labelled_defects_teach_the_category_that_they_show(products: Path, unified: Bundle, tmp_path: Path) -> None:
    adapted, changes = adapt(unified.path, tmp_path / "adapted", bad=products / "cloth", epochs=0, device="cpu")
    assert [category.defect_head for category in adapted.model.categories] == [True, False]
    assert {change.group: change.images for change in changes} == {"new bad": 4, "good": 44}


@pytest.mark.slow
def test_good_images_of_a_named_category_join_that_one(products: Path, unified: Bundle, tmp_path: Path) -> None:
    good = products / "plate" / "test" / "good"
    adapted, _ = adapt(unified.path, tmp_path / "new", good=good, category="plate", epochs=0, device="cpu")
    assert {name: len(own.scores) for name, own in adapted.calibration.categories.items()} == {"cloth": 34, "plate": 12}
    with pytest.raises(ConfigError, match="there is no category 'nut': this run has cloth, plate"):
        adapt(unified.path, tmp_path / "never", good=good, category="nut", epochs=0, device="cpu")
