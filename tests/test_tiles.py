"""Large images in tiles: they cover the image, their maps join without a seam, and the promise is for whole images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cdo_ad.bundle import read_bundle
from cdo_ad.config import Config
from cdo_ad.data import read_dataset, read_image
from cdo_ad.data.store import ImageStore
from cdo_ad.errors import ConfigError
from cdo_ad.evaluation.evaluate import evaluate
from cdo_ad.inference import maps
from cdo_ad.inference.detector import load
from cdo_ad.inference.engines.base import Categories, Output
from cdo_ad.inference.engines.tiled import TiledEngine
from cdo_ad.tiles import OVERLAP, cut, join, tile_boxes, tile_for
from cdo_ad.training.train import train
from conftest import DENSE

TILED = DENSE.replace(branches=("level 3", "intensity"), tile=64)


def _scene(rng: np.random.Generator, height: int = 100, width: int = 150) -> npt.NDArray[np.uint8]:
    return rng.normal(120, 12, (height, width, 3)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Line scans larger than a tile; defects are squares of 12 pixels."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for split, count in (("train/good", 12), ("test/good", 3), ("test/spot", 3)):
        folder = root / split
        folder.mkdir(parents=True)
        for k in range(count):
            image = _scene(rng)
            if "spot" in split:
                image[40:52, 100:112] = 255
                mask = np.zeros(image.shape[:2], np.uint8)
                mask[40:52, 100:112] = 255
                (root / "ground_truth" / "spot").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / "ground_truth" / "spot" / f"{k}_mask.png")
            Image.fromarray(image).save(folder / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiled") / "run"
    train(scenes, out, TILED, device="cpu")
    return out


@pytest.mark.parametrize("size", [(64, 64), (100, 150), (65, 1000), (30, 200), (2000, 333)])
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int]) -> None:
    boxes = tile_boxes(size, 64)
    seen = np.zeros(size, int)
    for box in boxes:
        assert (box.height, box.width) == (min(64, size[0]), min(64, size[1]))
        part = seen[box.top : box.top + box.height, box.left : box.left + box.width]
        assert part.shape == (box.height, box.width)
        part += 1
    assert seen.min() == 1
    lefts = sorted({box.left for box in boxes})
    assert all(b - a <= (1 - OVERLAP) * 64 + 1 for a, b in pairwise(lefts))


def test_without_tiles_the_whole_image_is_one() -> None:
    assert tile_boxes((33, 44), 0) == [(0, 0, 33, 44)]


@pytest.mark.parametrize("size", [(64, 64), (100, 150), (65, 333), (30, 200)])
def test_maps_of_one_map_join_to_it(size: tuple[int, int]) -> None:
    whole = np.random.default_rng(1).random(size, np.float32)
    boxes = tile_boxes(size, 64)
    joined = join([whole[b.top : b.top + b.height, b.left : b.left + b.width] for b in boxes], boxes, size)
    assert joined.dtype == np.float32 and np.abs(joined - whole).max() < 1e-5


def test_a_coarser_map_keeps_its_scale() -> None:
    boxes = tile_boxes((256, 512), 128)
    joined = join([np.full((32, 32), k, np.float32) for k in range(len(boxes))], boxes, (256, 512))
    assert joined.shape == (64, 128) and joined[0, 0] == 0 and joined[-1, -1] == len(boxes) - 1


def test_a_tile_shows_the_smallest_defect_as_a_cell() -> None:
    assert tile_for(12, 256, (2000, 8000)) == 384
    assert tile_for(1, 256, (2000, 8000)) == 128  # no finer than twice the image's own pixels
    assert tile_for(100, 256, (512, 512)) == 0


class _Brightness:
    """An engine whose map is the image's own red channel; it counts what it is given."""

    name = "fake"

    def __init__(self) -> None:
        self.most = 0

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        self.most = max(self.most, images.shape[1] * images.shape[2])
        maps = images[..., 0].astype(np.float32)
        number = np.full(len(images), 1) if categories is None else np.where(categories < 0, 1, categories)
        return Output(maps, maps.max(axis=(1, 2)), number.astype(np.int64))


def test_an_engine_sees_tiles_and_the_score_is_the_largest() -> None:
    engine, image = _Brightness(), _scene(np.random.default_rng(2))
    whole = TiledEngine(engine, 64).infer(image[None], np.array([0]))
    assert engine.most == 64 * 64
    assert np.abs(whole.maps[0] - image[..., 0]).max() < 1e-3
    assert whole.scores[0] == image[..., 0].max() and whole.categories[0] == 0


def test_the_whole_image_tells_an_unknown_category() -> None:
    engine, image = _Brightness(), _scene(np.random.default_rng(2))
    assert TiledEngine(engine, 64, categories=2).infer(image[None]).categories[0] == 1
    assert engine.most == image.shape[0] * image.shape[1]


def test_a_store_of_tiles_is_the_same_in_memory_and_read_each_time(scenes: Path) -> None:
    paths = [s.path for s in read_dataset(scenes) if s.split == "train"][:3]
    kept = ImageStore(paths, (64, 64), tile=64)
    read = ImageStore(paths, (64, 64), memory_budget=0, tile=64)
    assert kept.cached and not read.cached and len(kept) == len(read) == 3 * len(tile_boxes((100, 150), 64))
    for i in range(len(kept)):
        assert (kept[i] == read[i]).all()
    some = kept.some(kept.items([1]))
    assert set(some.source.tolist()) == {1} and (some[0] == kept[kept.items([1])[0]]).all()


def test_thresholds_are_of_whole_images(run: Path, scenes: Path) -> None:
    bundle = read_bundle(run)
    assert bundle.calibration.images == 12 and bundle.model.tile == 64


def test_a_small_defect_in_a_large_image_is_found_where_it_is(run: Path, scenes: Path) -> None:
    detector = load(run, device="cpu")
    found = detector.predict(read_image(scenes / "test" / "spot" / "0.png"))
    row, column = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
    assert found.anomaly_map.shape == (100, 150) and 32 <= row <= 60 and 92 <= column <= 120
    result = evaluate(detector, [s for s in read_dataset(scenes) if s.split == "test"]).metrics
    assert result.image is not None and result.image.auroc == 1.0


def test_the_score_of_an_image_is_that_of_its_worst_tile(run: Path, scenes: Path) -> None:
    engine = load(run, device="cpu").engine
    assert isinstance(engine, TiledEngine)
    image = read_image(scenes / "test" / "good" / "0.png")
    each = [engine.engine.infer(cut(image, box)[None]).scores[0] for box in tile_boxes((100, 150), 64)]
    assert engine.infer(image[None]).scores[0] == pytest.approx(max(each), rel=1e-5)


def test_tiles_are_chosen_from_the_smallest_defect(scenes: Path, tmp_path: Path) -> None:
    config = TILED.replace(tile=0, image_height=32, image_width=32)
    made = train(scenes, tmp_path / "run", config, smallest_defect=12, device="cpu")
    assert made.model.tile == 48 and "tiles of 48 pixels" in made.data.split
    made = train(scenes, tmp_path / "large", config, smallest_defect=100, device="cpu")
    assert made.model.tile == 0 and "no tiles" in made.data.split


@pytest.mark.parametrize("wrong", [{"smallest_defect": 0}, {"region": "0,0 1,0 0,1"}])
def test_what_does_not_go_with_tiles_is_said(scenes: Path, tmp_path: Path, wrong: dict[str, float | str]) -> None:
    with pytest.raises(ConfigError, match=r"smallest defect|exclude each other"):
        train(scenes, tmp_path / "run", TILED, device="cpu", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_tile_of_a_few_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match="tile must be 32 pixels or more"):
        Config(tile=8)


@pytest.mark.parametrize(("small", "size"), [((40, 60), (333, 470)), ((200, 90), (61, 77)), ((64, 64), (257, 64))])
def test_a_large_map_is_resized_in_strips_and_no_seam_shows(
    monkeypatch: pytest.MonkeyPatch, small: tuple[int, int], size: tuple[int, int]
) -> None:
    anomaly_map = np.random.default_rng(0).random(small, np.float32)
    whole = maps.resize_map(anomaly_map, size)
    monkeypatch.setattr(maps, "LARGE", 1)
    monkeypatch.setattr(maps, "STRIP", 50)
    np.testing.assert_allclose(maps.resize_map(anomaly_map, size), whole, atol=1e-5)
