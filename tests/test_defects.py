"""A few labelled defects: where they are found, how they are drawn, that they are learned."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cdo_ad.bundle import read_bundle
from cdo_ad.data import read_dataset
from cdo_ad.data.defects import load_defects, read_defects
from cdo_ad.errors import DataError
from cdo_ad.evaluation.evaluate import evaluate
from cdo_ad.inference.detector import load
from cdo_ad.inference.engines.torch import load_model
from cdo_ad.training.loop import draw_defects
from cdo_ad.training.train import train
from conftest import TINY
from fakes import make_mvtec, write


def striped(seed: int) -> np.ndarray:
    """A gray image with a defect that white noise does not resemble: a faint even square."""
    image = np.random.default_rng(seed).normal(120, 6, (64, 64))
    image[20:40, 20:40] = image[20:40, 20:40] * 0 + 120
    return image.astype(np.uint8)


def square() -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        write(tmp_path / "defects" / f"{i}.png", striped(i))
        write(tmp_path / "defects" / "masks" / f"{i}_mask.png", square())
    return tmp_path / "defects"


def test_masks_in_a_folder_beside_or_in_a_data_set(folder: Path, tiny_data: Path) -> None:
    assert [s.path.name for s in read_defects(folder)] == ["0.png", "1.png", "2.png"]
    for mask in (folder / "masks").iterdir():
        shutil.move(str(mask), folder / mask.name)
    (folder / "masks").rmdir()
    beside = read_defects(folder)
    assert [s.mask_path.name for s in beside] == ["0_mask.png", "1_mask.png", "2_mask.png"]
    assert all(s.anomalous and s.mask_path is not None for s in read_defects(tiny_data))


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_defects(tmp_path / "nowhere")
    (folder / "masks" / "1_mask.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: no mask belongs to this image"):
        read_defects(folder)
    write(folder / "masks" / "1_mask.png", np.zeros((64, 64), np.uint8))
    with pytest.raises(DataError, match=r"1_mask\.png: the mask is empty"):
        load_defects(read_defects(folder), (32, 32))
    shutil.rmtree(folder / "masks")
    with pytest.raises(DataError, match=r"0\.png: has no mask: put 0_mask\.png beside it"):
        read_defects(folder)


def test_a_defect_of_one_pixel_survives_shrinking(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.full((512, 384), 99, np.uint8))
    mask = np.zeros((512, 384), np.uint8)
    mask[301, 77] = 255
    write(tmp_path / "a_mask.png", mask)
    defects = load_defects(read_defects(tmp_path), (64, 48))
    assert defects.images.shape == (1, 3, 64, 48) and defects.masks.shape == (1, 64, 48)
    assert defects.masks.nonzero().tolist() == [[0, 37, 9]]


def test_each_defect_is_drawn_as_often_and_the_same_for_the_same_seed(folder: Path) -> None:
    defects = load_defects(read_defects(folder), (64, 64))
    images, masks = draw_defects(defects, 12, TINY, 0, 0)
    assert len(images) == len(masks) == 4  # a quarter of sixteen
    assert torch.equal(draw_defects(defects, 12, TINY, 0, 0)[0], images)
    assert not torch.equal(draw_defects(defects, 12, TINY, 0, 1)[0], images)
    counts = np.zeros(3)
    for turn in range(200):
        for image in draw_defects(defects, 12, TINY, 1, turn)[0]:
            same = [any(torch.equal(image, d.flip(axes)) for axes in ((), (1,), (2,), (1, 2))) for d in defects.images]
            counts += same
    assert counts.min() > 0.8 * counts.max()


@pytest.mark.slow
def test_a_run_with_defects_disagrees_more_on_them(folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    config = TINY.replace(epochs=8, lr=2e-3)
    plain = train(tiny_data, tmp_path / "plain", config, device="cpu")
    taught = train(tiny_data, tmp_path / "taught", config, device="cpu", defects=folder)
    assert [Path(image).name for image, _ in taught.data.defects] == ["0.png", "1.png", "2.png"]
    assert taught.data.fingerprint != plain.data.fingerprint and plain.data.defects == ()
    defects = load_defects(read_defects(folder), (64, 64))
    contrast = {}
    for bundle in (plain, taught):
        with torch.no_grad():
            level = load_model(bundle).features(defects.images).levels[0]  # 16 x 16: the square covers 5..10
        contrast[bundle.path.name] = float(level[:, 6:9, 6:9].mean() / level.mean())
    assert contrast["taught"] > 1.5 * contrast["plain"]


@pytest.mark.slow
def test_evaluate_leaves_out_the_defects_that_were_learned(tmp_path: Path) -> None:
    data = make_mvtec(tmp_path / "data", train=24, good=3, defective=4)
    taught = tmp_path / "taught"
    for sample in [s for s in read_dataset(data) if s.anomalous][:3]:
        folder = sample.path.parent
        (taught / "test" / folder.name).mkdir(parents=True, exist_ok=True)
        (taught / "ground_truth" / folder.name).mkdir(parents=True, exist_ok=True)
        (taught / "test" / folder.name / sample.path.name).symlink_to(sample.path)
        (taught / "ground_truth" / folder.name / sample.mask_path.name).symlink_to(sample.mask_path)
    train(data, tmp_path / "run", TINY.replace(epochs=1), device="cpu", defects=taught)
    assert len(read_bundle(tmp_path / "run").data.defects) == 3
    found = evaluate(load(tmp_path / "run", backend="torch", device="cpu"), read_dataset(data))
    total = len([s for s in read_dataset(data) if s.anomalous])
    assert found.learned == 3 and found.metrics.n.anomalous == total - 3
