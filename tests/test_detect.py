from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cdo_ad.calibration import Calibration
from cdo_ad.conformal import GoodScores
from cdo_ad.data import read_dataset, read_image
from cdo_ad.data.reading import read_ahead
from cdo_ad.errors import ConfigError, DataError, ImageError
from cdo_ad.evaluation.evaluate import evaluate
from cdo_ad.inference.detector import Detector, load, resize_map
from cdo_ad.inference.engines.base import Output
from cdo_ad.inference.overlay import heat, map16, overlay, side_by_side
from cdo_ad.inference.predict import Failure, predict_files
from cdo_ad.inference.regions import find_regions
from cdo_ad.types import Prediction, Sample
from fakes import make_mvtec, write


class Brightness:
    """An engine whose map is the image's red channel, at its own size, and whose score is the maximum."""

    name = "brightness"

    def infer(self, images, categories=None):
        maps = images[..., 0].astype(np.float32)
        return Output(maps, maps.reshape(len(maps), -1).max(axis=1), np.zeros(len(maps), np.int64))


@pytest.fixture
def bright() -> Detector:
    scores = [float(v) for v in range(91, 110)]
    return Detector(Brightness(), Calibration.fit({"": GoodScores(scores, scores)}, 0.05))


def gray(value: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_predict_gives_score_p_value_decision_map_and_regions(bright) -> None:
    image = gray(50)
    image[2:5, 3:9] = 200
    image[10, 20] = 150
    result = bright.predict(image)
    assert (result.score, result.p_value, result.anomalous, result.threshold) == (200.0, 1 / 20, True, 109.0)
    assert result.anomaly_map.shape == result.mask.shape == (20, 30)
    assert [r.box for r in result.regions] == [(3, 2, 6, 3), (20, 10, 1, 1)]
    assert [r.area for r in result.regions] == [18, 1] and [r.score for r in result.regions] == [200.0, 150.0]
    assert {tuple(p) for p in result.regions[0].contour} >= {(3, 2), (8, 2), (8, 4), (3, 4)}
    assert json.loads(json.dumps(result.to_json()))["regions"][1]["box"] == [20, 10, 1, 1]
    assert result.sentence == "anomalous: none of 19 good images scores as high"
    assert (result.category, result.category_given) == ("", True)
    good = bright.predict(gray(50))
    assert (good.anomalous, good.p_value, good.regions) == (False, 1.0, ())


@pytest.mark.parametrize(
    "image",
    [
        gray(60)[..., 0],
        gray(60)[..., :1],
        np.dstack([gray(60), np.full((20, 30), 255, np.uint8)]),
        gray(60).astype(np.uint16) * 257,
    ],
)
def test_predict_takes_the_kinds_of_images_that_cameras_give(bright, image) -> None:
    assert bright.predict(image).score == 60.0


@pytest.mark.parametrize(
    "image", [gray(1)[:, :1], gray(1)[:7], gray(1) / 255.0, gray(1)[None], np.zeros((0, 0), np.uint8)]
)
def test_predict_refuses_what_is_no_image(bright, image) -> None:
    with pytest.raises(ImageError):
        bright.predict(image)


def test_a_real_run_takes_every_size(tiny_run) -> None:
    detector = load(tiny_run, device="cpu")
    for shape in ((64, 64), (8, 200), (301, 33)):
        result = detector.predict(np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8))
        assert result.anomaly_map.shape == shape and result.anomaly_map.min() >= 0 and 0 < result.p_value <= 1


@pytest.mark.parametrize(
    ("options", "message"), [({"backend": "magic"}, "choose from"), ({"device": "tpu"}, "it has cpu")]
)
def test_unknown_backends_and_devices_are_refused(tiny_run, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tiny_run, **options)


def test_predictions_are_validated() -> None:
    with pytest.raises(DataError, match=r"\(H, W\)"):
        Prediction(1.0, 0.5, False, 1.0, np.zeros((2, 2), np.float32), np.zeros((3, 3), bool))
    with pytest.raises(DataError, match="p_value"):
        Prediction(1.0, 0.0, False, 1.0, np.zeros((2, 2), np.float32), np.zeros((2, 2), bool))
    with pytest.raises(DataError, match="must be good"):
        Sample(path="a.png", split="train", defect_type="crack")  # type: ignore[arg-type]


def test_regions_equal_scipys_8_connected_labels() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((60, 80)) > 0.75
    scores = rng.random(mask.shape).astype(np.float32)
    regions = find_regions(mask, scores, most=10_000)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert len(regions) == count and sum(r.area for r in regions) == mask.sum()
    boxes = {
        (s[1].start, s[0].start, s[1].stop - s[1].start, s[0].stop - s[0].start) for s in ndimage.find_objects(labels)
    }
    assert {r.box for r in regions} == boxes
    assert [r.score for r in regions] == sorted((r.score for r in regions), reverse=True)
    for region in regions:
        assert all(mask[y, x] for x, y in region.contour)
    assert len(find_regions(mask, scores, most=5)) == 5


def test_maps_grow_bilinearly_with_half_pixel_centres() -> None:
    small = np.array([[0.0, 4.0]], np.float32)
    assert resize_map(small, (1, 4)).tolist() == [[0.0, 1.0, 3.0, 4.0]]
    assert resize_map(small, (1, 2)) is small


# ---- drawing


def test_a_good_part_never_glows_red() -> None:
    level = np.linspace(0, 0.999, 200, dtype=np.float32)[None]
    colour, opacity = heat(level * 7.0, 7.0)
    assert (colour[..., 0] < colour[..., 2]).all() and opacity.max() < 0.4 and opacity[0, 0] == 0
    hot, _ = heat(np.array([[7.1, 14.0, 99.0]], np.float32), 7.0)
    assert (hot[..., 0] > 200).all() and (hot[..., 2] < 60).all() and np.array_equal(hot[0, 1], hot[0, 2])


def test_overlays_have_the_images_size_and_outline_the_regions(bright) -> None:
    image = gray(50, 40, 60)
    image[10:20, 10:30] = 255
    drawn = overlay(image, bright.predict(image), 109.0)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert drawn[10, 15].tolist() == [255, 255, 255]
    truth = np.zeros((40, 60), bool)
    assert side_by_side(image, bright.predict(image), 109.0, truth).shape == (40, 3 * 60 + 8, 3)


def test_16_bit_maps_share_the_fixed_scale() -> None:
    assert map16(np.array([[0.0, 5.0, 10.0, 99.0]], np.float32), 5.0).tolist() == [[0, 32768, 65535, 65535]]


# ---- files


def test_a_wrong_file_never_stops_a_batch(bright, tmp_path) -> None:
    for name, value in (("a.png", 30), ("c.png", 220)):
        write(tmp_path / "in" / "sub" / name, gray(value))
    (tmp_path / "in" / "sub" / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    write(tmp_path / "in" / "thin.png", gray(9, 40, 1))
    out = tmp_path / "out"
    results = list(predict_files(bright, [tmp_path / "in"], out, maps=True))
    failures = [r for r in results if isinstance(r, Failure)]
    assert len(results) == 4 and {f.path.rsplit("/", 1)[1] for f in failures} == {"b.jpg", "thin.png"}
    assert [r.score for r in results if isinstance(r, Prediction)] == [30.0, 220.0]
    files = {p.relative_to(out).as_posix() for p in out.rglob("*.png")}
    assert files == {f"sub/{n}_{k}.png" for n in "ac" for k in ("overlay", "map")}
    with Image.open(out / "sub" / "c_map.png") as image:
        assert np.asarray(image).max() == 65535


def test_files_of_one_name_do_not_overwrite_each_other(bright, tmp_path) -> None:
    write(tmp_path / "one" / "a.png", gray(10))
    write(tmp_path / "one" / "a.bmp", gray(10))
    write(tmp_path / "two" / "a.png", gray(10))
    results = list(predict_files(bright, [tmp_path / "one", tmp_path / "two"], tmp_path / "out"))
    assert len(results) == len(list((tmp_path / "out").rglob("*_overlay.png"))) == 3


def test_reading_ahead_keeps_the_order(tmp_path) -> None:
    paths = [write(tmp_path / f"{i}.png", gray(i)) for i in range(20)]
    assert [int(p[0, 0, 0]) for _, p in read_ahead(paths, threads=3)] == list(range(20))


# ---- evaluation


def test_evaluation_uses_the_data_sets_labels_and_the_original_resolution(bright, tmp_path) -> None:
    for i in range(3):
        write(tmp_path / "test" / "good" / f"{i}.png", gray(40, 1024, 1024))
        write(tmp_path / "train" / "good" / f"{i}.png", gray(40 + i))
    image, mask = gray(40, 1024, 1024), np.zeros((1024, 1024), np.uint8)
    image[500, 700], mask[500, 700] = 180, 255
    write(tmp_path / "test" / "dot" / "0.png", image)
    write(tmp_path / "ground_truth" / "dot" / "0_mask.png", mask)
    result = evaluate(bright, read_dataset(tmp_path)).metrics.to_json()
    assert result["image"] == {"auroc": 1.0, "ap": 1.0, "f1max": 1.0}
    assert result["pixel"] == pytest.approx({"auroc": 1.0, "ap": 1.0, "f1max": 1.0, "aupro_30": 1.0, "aupro_05": 1.0})
    assert result["n"] == {"good": 3, "anomalous": 1}
    assert result["decision"]["detection_rate"]["value"] == 1.0
    assert (
        result["decision"]["false_alarm_rate"]["value"] == 0.0 and result["decision"]["false_alarm_rate"]["low"] == 0.0
    )
    assert result["types"]["dot"]["pixel"]["auroc"] == 1.0
    small = evaluate(bright, read_dataset(tmp_path), at_size=(64, 64)).metrics.to_json()
    assert small["n"]["anomalous"] == 1 and small["pixel"]["auroc"] == pytest.approx(1.0)


def test_evaluation_goes_on_after_a_wrong_image_or_mask(tiny_run, tmp_path) -> None:
    root = make_mvtec(tmp_path / "data", train=2)
    broken = sorted((root / "test" / "good").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    mask = sorted((root / "ground_truth" / "scratch").iterdir())[0]
    write(mask, np.zeros((7, 9), np.uint8))
    result = evaluate(load(tiny_run, device="cpu"), read_dataset(root))
    assert len(result.failures) == 2 and len(result.scored) == 7
    assert any(broken.name in f for f in result.failures) and any(mask.name in f for f in result.failures)


def test_evaluation_without_defects_is_undefined_not_zero(bright, tmp_path) -> None:
    write(tmp_path / "train" / "good" / "0.png", gray(1))
    write(tmp_path / "test" / "good" / "0.png", gray(1))
    result = evaluate(bright, read_dataset(tmp_path)).metrics.to_json()
    assert result["image"]["auroc"] is None and result["pixel"]["auroc"] is None
    assert result["decision"]["detection_rate"]["value"] is None and result["types"] == {}
    with pytest.raises(DataError, match="no test image"):
        evaluate(bright, [s for s in read_dataset(tmp_path) if s.split == "train"])
    (tmp_path / "test" / "good" / "0.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 test images"):
        evaluate(bright, read_dataset(tmp_path))


def test_evaluation_of_defects_without_masks_counts_images_only(bright, tmp_path) -> None:
    write(tmp_path / "good" / "0.png", gray(1))
    for kind, value in (("good", 20), ("dent", 200)):
        write(tmp_path / "test" / kind / "0.png", gray(value))
    samples = [Sample(p, "test", p.parent.name) for p in sorted((tmp_path / "test").rglob("*.png"))]
    result = evaluate(bright, samples).metrics.to_json()
    assert result["image"]["auroc"] == 1.0 and result["pixel"]["auroc"] is None
    assert read_image(samples[0].path).shape == (20, 30, 3)
