"""Depth: point clouds become surfaces, two branches look at them, and one path serves training and judging."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from cdo_ad import recipes
from cdo_ad.audit.check import check
from cdo_ad.cli.main import app
from cdo_ad.config import DEPTH, Config
from cdo_ad.data import read_dataset, read_image
from cdo_ad.data.split import fingerprint
from cdo_ad.data.store import ImageStore
from cdo_ad.data.surface import find_xyz, read_points, read_surface, to_surface
from cdo_ad.deploy.export import export
from cdo_ad.deploy.int8 import export_int8
from cdo_ad.errors import ConfigError, ImageError
from cdo_ad.evaluation.evaluate import Evaluation
from cdo_ad.evaluation.results import evaluate_run
from cdo_ad.inference.calibrate import calibrate
from cdo_ad.inference.detector import load
from cdo_ad.inference.predict import Failure, predict_files
from cdo_ad.method.anomalies import SURFACE_KINDS, add_surface_anomaly
from cdo_ad.method.gaussian import ConditionalGaussian
from cdo_ad.method.surface import normals, relief, shape_cells, surface_cells
from cdo_ad.reporting.build import report
from cdo_ad.scale.scoring import score
from cdo_ad.training.adapt import adapt, refit
from cdo_ad.training.train import train
from fakes import make_depth, make_mvtec3d, make_scene, write, write_points

Points = npt.NDArray[np.float32]
SIZE = (64, 64)
ALONE = r"looks at the point cloud of each image, and .* has images alone: use"


# ---- point clouds


def scene(seed: int = 0, kind: str = "good") -> Points:
    return make_scene(seed, kind)[1]


def turned(points: Points, angle: float) -> Points:
    """Seen by a camera that looks at the table at another angle."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return points.astype(np.float64) @ turn.T


def test_a_surface_is_the_height_above_the_table_in_pixels_of_the_result() -> None:
    y, x = np.mgrid[:96, :96].astype(float)
    height = np.where((abs(y - 48) < 20) & (abs(x - 48) < 20), 12.0, 0.0)
    points = np.stack([x, y, 500 - height], axis=2)
    surface = to_surface(points, (96, 96))
    assert surface.shape == (2, 96, 96) and surface.dtype == np.float32 and (surface[1] == 1).all()
    np.testing.assert_allclose(surface[0], height, atol=1e-4)
    assert to_surface(points, (48, 48))[0].max() == pytest.approx(6, abs=1e-3)
    np.testing.assert_allclose(to_surface(points * 0.001, (96, 96))[0], height, atol=1e-4)


def test_the_tilt_of_the_table_makes_no_difference() -> None:
    level = to_surface(scene(), SIZE)
    assert level[0].max() > 5
    for angle in (-0.4, 0.3):
        np.testing.assert_allclose(to_surface(turned(scene(), angle), SIZE), level, atol=1e-3)


def test_a_part_that_reaches_the_border_does_not_move_the_table() -> None:
    points = scene()
    points[:, 30:60, 2] -= 0.01  # a bar across the whole image: a third of the border
    surface = to_surface(points, (96, 96))
    assert abs(float(np.median(surface[0][:8, :20]))) < 0.2 and float(np.median(surface[0][:8, 35:55])) > 15


@pytest.mark.parametrize("missing", [0.0, np.nan, np.inf])
def test_missing_points_are_zero_or_not_a_number_and_never_mix_with_others(missing: float) -> None:
    whole, holes = scene(), np.zeros((96, 96), bool)
    holes[:6] = True
    holes[40:52, 40:64] = True
    holes[np.random.default_rng(0).random((96, 96)) < 0.1] = True
    points, zeros = whole.copy(), whole.copy()
    points[holes], zeros[holes] = missing, 0
    surface = to_surface(points, SIZE)
    assert (surface == to_surface(zeros, SIZE)).all() and np.isfinite(surface).all()
    away = np.abs(surface[0] - to_surface(whole, SIZE)[0])
    present = surface[1] == 1
    assert 0.02 < 1 - present.mean() < 0.2 and away[present].max() < 1 and away.max() < 3


def flat(points: Points) -> Points:
    points[..., 1:] = points[..., :1]
    return points


def emptied(points: Points) -> Points:
    points[5:] = 0
    points[:, 5:] = 0
    return points


@pytest.mark.parametrize(("change", "why"), [
    (lambda points: points[..., :2], r"must be \(H, W, 3\)"),
    (lambda points: points * 0, "0 points only"),
    (emptied, "25 points only"),
    (flat, "lie on one line"),
], ids=["two channels", "nothing", "too little", "a line"])  # fmt: skip
def test_points_that_make_no_surface_are_refused(change: Callable[[Points], Points], why: str) -> None:
    with pytest.raises(ImageError, match=f"shelf: .*{why}"):
        to_surface(change(scene()), SIZE, "shelf")


def test_xyz_files_are_read_as_written(tmp_path: Path) -> None:
    points = scene()
    plain = write_points(tmp_path / "plain.tiff", points)
    tifffile.imwrite(tmp_path / "packed.tiff", points, photometric="rgb", compression="zlib")
    planes = np.moveaxis(points, 2, 0)
    tifffile.imwrite(tmp_path / "planes.tiff", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "big.tiff", points, photometric="rgb", byteorder=">", bigtiff=True)
    assert all((read_points(tmp_path / f"{name}.tiff") == points).all() for name in ("packed", "planes", "big"))
    assert (read_points(plain) == points).all() and read_points(plain).dtype == np.float32


def truncated(path: Path) -> None:
    path.write_bytes(write_points(path, scene()).read_bytes()[:5000])


def of_gray(path: Path) -> None:
    tifffile.imwrite(path, scene()[..., 2])


def of_bytes(path: Path) -> None:
    tifffile.imwrite(path, make_scene(0)[0], photometric="rgb")


def long_strip(path: Path) -> None:
    """Zipped data that are longer than the tags say."""
    tifffile.imwrite(path, np.zeros((4000, 96, 3), np.float32), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["ImageLength"].overwrite(8)


@pytest.mark.parametrize(("make", "why"), [
    (truncated, "cannot be read"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: path.write_bytes(b"not a point cloud"), "is no TIFF"),
    (of_gray, "holds 1 channel"),
    (of_bytes, "three floating-point channels"),
    (long_strip, "longer than its tags say"),
    (lambda path: None, "no such file"),
], ids=["truncated", "empty", "text", "depth alone", "colours", "a bomb", "missing"])  # fmt: skip
def test_xyz_files_that_cannot_be_used_are_named(tmp_path: Path, make: Callable[[Path], object], why: str) -> None:
    make(tmp_path / "000.tiff")
    with pytest.raises(ImageError, match=rf"000\.tiff: .*{why}"):
        read_surface(tmp_path / "000.png", SIZE, tmp_path / "000.tiff")


def test_the_point_cloud_of_an_image_lies_in_xyz_beside_rgb(tmp_path: Path) -> None:
    make_depth(tmp_path, train=2, good=1, defective=1)
    samples = read_dataset(tmp_path)
    assert all(s.xyz_path == s.path.parents[1] / "xyz" / f"{s.path.stem}.tiff" for s in samples)
    bare = [s.without_depth() for s in samples]
    assert all(s.xyz_path is None for s in bare) and fingerprint(bare, tmp_path) != fingerprint(samples, tmp_path)
    samples[0].xyz_path.unlink()
    assert find_xyz(samples[0].path) is None and read_dataset(tmp_path)[0].xyz_path is None
    assert find_xyz(tmp_path / "000.png") is None


# ---- what the branches look at


def test_normals_of_a_slope() -> None:
    heights = torch.arange(8.0).expand(1, 1, 8, 8)
    inside = normals(heights)[0, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside[0], torch.full((6, 6), -(0.5**0.5)))
    torch.testing.assert_close(inside[1], torch.zeros(6, 6))


def test_cells_hold_means_and_scatters_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    heights = 400 + 0.1 * torch.randn(1, 1, 16, 24, generator=generator)
    surface = torch.cat([heights, torch.ones(1, 1, 16, 24)], dim=1)
    surface[0, 1, :4, :4] = 0
    found = surface_cells(surface, (2, 3))
    assert found.shape == (1, 6, 2, 3)
    cell, slopes = surface[0, 0, :8, :8].double(), normals(surface[:, :1])[0, :, :8, :8].double()
    by_hand = [
        cell.mean(), cell.std(correction=0), slopes[0].mean(), slopes[1].mean(),
        (slopes[0].var(correction=0) + slopes[1].var(correction=0)).sqrt(), torch.tensor(0.25),
    ]  # fmt: skip
    torch.testing.assert_close(found[0, :, 0, 0], torch.stack(by_hand).float(), atol=1e-4, rtol=1e-4)
    assert relief(surface).shape == (1, 64)


def test_shapes_know_no_angle() -> None:
    surface = torch.from_numpy(to_surface(scene(), SIZE))[None]
    upright, turned_over = shape_cells(surface, (8, 8)), shape_cells(surface.rot90(1, (2, 3)), (8, 8))
    torch.testing.assert_close(turned_over, upright.rot90(1, (2, 3)), atol=1e-4, rtol=1e-4)


def test_shrinkage_of_channels_with_units_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, context = torch.randn(4, 50, 2, generator=generator), torch.zeros(50, 1)
    scale, one, other = torch.tensor([1.0, 1000.0]), ConditionalGaussian(4, 2, 1, 0), ConditionalGaussian(4, 2, 1, 0)
    one.fit(vectors, context, floor=1e-3)
    other.fit(vectors * scale, context, floor=1e-3)
    torch.testing.assert_close(other(vectors * scale, context), one(vectors, context), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SURFACE_KINDS)
def test_surface_anomalies_change_heights_near_their_mask(kind: str) -> None:
    surfaces = torch.from_numpy(np.stack([to_surface(scene(i), SIZE) for i in range(8)]))
    before = surfaces.clone()
    changed, masks = add_surface_anomaly(surfaces, kind, list(range(8)))
    again, _ = add_surface_anomaly(surfaces, kind, list(range(8)))
    assert (surfaces == before).all() and (changed == again).all() and (changed[:, 1] == surfaces[:, 1]).all()
    away = (changed - surfaces)[:, 0].abs()
    assert masks.any(dim=(1, 2)).all() and (away[masks].mean() > 20 * away[~masks].mean())


# ---- settings


def test_the_recipe_adds_two_branches() -> None:
    assert recipes.get("lite0_3d").branches == (*recipes.lite0().branches, *DEPTH)
    assert recipes.get("lite0_3d").depth and not recipes.lite0().depth


def test_tiles_and_depth_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiles show images alone"):
        recipes.lite0_3d().replace(tile=64)


# ---- runs

TINY = Config(
    recipe="tiny 3d", backbone="resnet10t", weights="none", image_height=64, image_width=64, seed=3,
    false_alarm_rate=0.1, keep_groups_together=False, branches=("level 3", *DEPTH), calibration="cross",
)  # fmt: skip
"""A random network, whose features hardly know stains, and learned weights."""


@pytest.fixture(scope="module", autouse=True)
def few_anomalies() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdo_ad.method.seen.JUDGED", 70)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_depth(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "depth"
    train(data, out, TINY, device="cpu")
    return out


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(run, tmp_path / "own"))


def measured(run: Path, data: Path) -> Evaluation:
    return evaluate_run(run, data, device="cpu")[0]


def test_dents_are_found_with_depth_and_not_without(own: Path, data: Path, tmp_path: Path) -> None:
    bundle = train(data, tmp_path / "flat", TINY.replace(branches=("level 3", "level 2")), device="cpu")
    assert "--recipe lite0_3d" in bundle.data.split
    without, found = measured(tmp_path / "flat", data).metrics.types["dent"], measured(own, data).metrics.types["dent"]
    assert not without.image.auroc > 0.8 and without.decision.detection_rate.count <= 2
    assert found.image.auroc > 0.95 and found.decision.detection_rate.count >= 5 and found.pixel.auroc > 0.95
    assert measured(own, data).metrics.decision.false_alarm_rate.count <= 2


def test_dents_of_parts_at_any_angle_are_found_by_the_bank(tmp_path: Path) -> None:
    data, found = make_depth(tmp_path / "data", train=60, defective=8, anyhow=True), {}
    for branch in DEPTH:
        config = TINY.replace(branches=(branch,), image_height=96, image_width=96)
        train(data, tmp_path / branch, config, device="cpu")
        found[branch] = measured(tmp_path / branch, data).metrics.types["dent"].image.auroc
    assert found["depth bank"] > 0.95 and found["depth"] < 0.9


def test_every_way_to_a_score_gives_the_same(own: Path, data: Path) -> None:
    detector = load(own, device="cpu")
    file = data / "dome" / "test" / "dent" / "rgb" / "002.png"
    score = detector.predict_file(file).score
    points = read_points(file.parents[1] / "xyz" / "002.tiff")
    assert detector.predict(read_image(file), xyz=points).score == score
    points[points == 0] = np.nan
    assert detector.predict(read_image(file), xyz=points.astype(np.float64)).score == score
    assert {p.path: p.score for p in predict_files(detector, [data / "dome" / "test"])}[str(file)] == score
    judged = {s.sample.path: s.score for s in measured(own, data).scored}
    assert judged[file] == score
    good = sorted((data / "dome" / "train" / "good" / "rgb").glob("*.png"))
    assert detector.predict_file(good[0]).score < score


def test_only_images_of_a_folder_are_judged(run: Path, data: Path, tmp_path: Path) -> None:
    found = list(predict_files(load(run, device="cpu"), [data / "dome" / "test" / "dent"], tmp_path / "out"))
    assert len(found) == 6 and not any(isinstance(each, Failure) for each in found)
    assert (tmp_path / "out" / "rgb" / "000_overlay.png").is_file()


def test_a_missing_or_damaged_cloud_does_not_stop_a_batch(own: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    clouds = tmp_path / "data" / "dome" / "test" / "dent" / "xyz"
    (clouds / "001.tiff").unlink()
    (clouds / "003.tiff").write_bytes((clouds / "003.tiff").read_bytes()[:3000])
    found = list(predict_files(load(own, device="cpu"), [clouds.parent]))
    failed = [each.error for each in found if isinstance(each, Failure)]
    assert len(found) == 6 and len(failed) == 2
    assert "rgb/001.png: its point cloud is missing" in failed[0] and str(clouds / "001.tiff") in failed[0]
    assert "003.tiff: a TIFF that cannot be read" in failed[1]
    result = measured(own, tmp_path / "data")
    assert len(result.failures) == 2 and len(result.scored) == 16


def test_a_good_image_without_its_cloud_is_named_before_any_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path / "data")
    cloud = tmp_path / "data" / "dome" / "train" / "good" / "xyz" / "004.tiff"
    cloud.write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"xyz/004\.tiff: is no TIFF"):
        train(tmp_path / "data", tmp_path / "run", TINY, device="cpu")
    cloud.unlink()
    with (
        monkeypatch.context() as patch,
        pytest.raises(ImageError, match=r"rgb/004\.png: its point cloud is.*xyz/004\.t"),
    ):
        patch.setattr("cdo_ad.training.train.ImageStore", None)  # no image is decoded before
        train(tmp_path / "data", tmp_path / "run", TINY, device="cpu")
    assert not (tmp_path / "run").exists()
    plain = train(tmp_path / "data", tmp_path / "run", TINY.replace(branches=("level 3", "bank")), device="cpu")
    assert "point clouds" not in plain.data.split


def test_images_that_are_read_each_time_are_the_same(data: Path) -> None:
    paths = sorted((data / "dome" / "train" / "good" / "rgb").glob("*.png"))[:3]
    kept, read = (ImageStore(paths, SIZE, memory_budget=budget, depth=True) for budget in (2**30, 0))
    assert kept[1].shape == (5, 64, 64) and kept.cached and not read.cached
    assert all(bool((kept[i] == read[i]).all()) for i in range(3))


def test_thresholds_are_set_anew_with_depth(own: Path, data: Path, tmp_path: Path) -> None:
    make_depth(tmp_path / "more", train=12, good=1, defective=1)
    for i in range(12):  # others than those that the run learned from
        image, points, _ = make_scene(500 + i)
        write(tmp_path / "more" / "dome" / "train" / "good" / "rgb" / f"{i:03d}.png", image)
        write_points(tmp_path / "more" / "dome" / "train" / "good" / "xyz" / f"{i:03d}.tiff", points)
    made = calibrate(own, tmp_path / "more", false_alarm_rate=0.1, device="cpu")
    assert made.images == 12
    detector = load(own, device="cpu")
    paths = sorted((tmp_path / "more" / "dome" / "train" / "good" / "rgb").glob("*.png"))
    expected = sorted(detector.predict_file(path).score for path in paths)
    assert sorted(made.of().scores) == pytest.approx(expected)


def test_held_out_images_and_an_apprentice_come_with_depth(data: Path, tmp_path: Path) -> None:
    config = TINY.replace(
        branches=("disagreement", "depth"), fusion_weights="equal", calibration="held-out", epochs=1,
        held_out_share=0.5, anomalies=("perlin",),
    )  # fmt: skip
    bundle = train(data, tmp_path / "run", config, device="cpu", defects=None)
    assert bundle.calibration.images == len(bundle.data.held_out) >= 9 and bundle.model.depth
    again = refit(tmp_path / "run", tmp_path / "again", config.replace(score_top=0.01), device="cpu")
    assert again.model.depth


def test_labelled_defects_bring_their_clouds(data: Path, tmp_path: Path) -> None:
    bundle = train(data, tmp_path / "run", TINY, device="cpu", defects=data / "dome")
    assert len(bundle.data.defects) == 12 and bundle.model.depth


def test_several_categories_and_a_region_come_with_depth(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "dome", tmp_path / "data" / "dome")
    shutil.copytree(data / "dome", tmp_path / "data" / "mirrored")
    for file in (tmp_path / "data" / "mirrored").rglob("rgb/*.png"):
        write(file, np.ascontiguousarray(255 - read_image(file)))
    bundle = train(tmp_path / "data", tmp_path / "run", TINY, device="cpu", unified=True, region="0,0 1,0 1,1 0,1")
    assert bundle.model.names == ("dome", "mirrored") and bundle.model.depth
    found = measured(tmp_path / "run", tmp_path / "data").metrics.categories
    assert all(own.types["dent"].image.auroc > 0.95 for own in found.values())
    engine = load(tmp_path / "run", device="cpu").engine
    images, points, _ = map(np.stack, zip(*(make_scene(seed, "dent") for seed in (1, 2)), strict=True))
    surfaces, numbers = np.stack([to_surface(each, SIZE) for each in points]), np.array([1, 0])
    together = engine.infer_depth(images, surfaces, numbers)
    alone = [engine.infer_depth(images[[i]], surfaces[[i]], numbers[[i]]).scores[0] for i in range(2)]
    np.testing.assert_allclose(together.scores, alone, rtol=1e-4)


def test_a_report_shows_the_branches_of_depth(own: Path, data: Path) -> None:
    page = report(own, data, device="cpu").read_text()
    assert "depth" in page and "dent" in page


def test_check_scores_good_images_with_their_clouds(own: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "dome" / "train" / "good" / "xyz" / "001.tiff").write_bytes(b"damaged")
    image, points, _ = make_scene(2000, "dent")  # among the good ones
    write(tmp_path / "data" / "dome" / "train" / "good" / "rgb" / "002.png", image)
    write_points(tmp_path / "data" / "dome" / "train" / "good" / "xyz" / "002.tiff", points)
    findings = check(tmp_path / "data", run=own, device="cpu").findings
    (found,) = (each for each in findings if each.kind == "mislabelled")
    assert found.files[0].endswith("train/good/rgb/002.png")


def test_depth_without_weight_leaves_a_run_of_images_alone(data: Path, tmp_path: Path) -> None:
    config = TINY.replace(fusion_weights=(1.0, 0.0, 0.0))
    bundle = train(data, tmp_path / "run", config, device="cpu")
    assert bundle.config.depth and not bundle.model.depth
    detector = load(tmp_path / "run", device="cpu")
    assert detector.surface_size is None
    assert detector.predict(make_scene(0)[0]).score > 0
    with pytest.raises(ConfigError, match="looks at images alone"):
        detector.predict(make_scene(0)[0], xyz=scene())


def test_where_images_come_alone_a_run_with_depth_is_refused(
    own: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdo_ad.deploy.benchmark import benchmark
    from cdo_ad.server.line.watch import watch
    from cdo_ad.server.service import opened
    from cdo_ad.server.serving.models import ModelId
    from cdo_ad.server.settings import ServerSettings

    calls: dict[str, Callable[[], object]] = {
        "export": lambda: export(own),
        "int8": lambda: export_int8(own),
        "benchmark": lambda: benchmark(own),
        "score": lambda: score(own, data, out=tmp_path / "scores"),
        "watch": lambda: next(watch(load(own, device="cpu"), None, [], tmp_path, None, name="dome", category=None)),
        "adapt": lambda: adapt(own, tmp_path / "new", good=data / "dome" / "test" / "good" / "rgb", device="cpu"),
    }
    for name, call in calls.items():
        with pytest.raises(ConfigError, match=ALONE):
            call()
        assert not (own / "export").exists(), name
    with opened(ServerSettings(folder=tmp_path / "server")) as service, pytest.raises(ConfigError, match=ALONE):
        service.serve_run(own, "dome")
    with opened(ServerSettings(folder=tmp_path / "server")) as service:
        version = service.catalogue.add_version("dome", own, "a test", "", {})
        with pytest.raises(ConfigError, match=ALONE):
            service.models.get(ModelId("dome", version.number))
        monkeypatch.setattr(service.school, "_require_images", lambda product: None)
        with pytest.raises(ConfigError, match="'lite0_3d' needs point clouds"):
            service.school.train("dome", "lite0_3d", {}, "a test", "")
    with pytest.raises(ConfigError, match="no point cloud was given"):
        load(own, device="cpu").predict(make_scene(0)[0])


# ---- the command line


def cli(*words: object) -> tuple[int, str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, str(result.exception or "") + result.stderr


def test_predict_takes_the_point_cloud_of_one_image(own: Path, data: Path, tmp_path: Path) -> None:
    image, points, _ = make_scene(2001, "dent")
    file, cloud = write(tmp_path / "part.png", image), write_points(tmp_path / "part.tiff", points)
    code, out, _ = cli("predict", own, file, "--depth", cloud, "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["anomalous"]
    code, _, error = cli("predict", own, file, "--device", "cpu")
    assert code == 1 and "part.png: its point cloud is missing" in error and "--depth" in error
    code, _, error = cli("predict", own, file, data / "dome" / "test" / "good" / "rgb", "--depth", cloud)
    assert code == 1 and "belongs to one image" in error


def test_data_without_clouds_is_refused_by_the_recipe(tmp_path: Path) -> None:
    make_mvtec3d(tmp_path / "data", train=24)
    for file in tmp_path.rglob("xyz/*"):
        file.unlink()
    with pytest.raises(ImageError, match="its point cloud is missing"):
        train(tmp_path / "data", tmp_path / "run", TINY, device="cpu")
