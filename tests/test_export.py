"""Exported models: the same answers as torch, in a process of their own, or no file."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdo_ad
import fakes
import runs
from cdo_ad.bundle import Bundle
from cdo_ad.calibration import Calibration
from cdo_ad.conformal import GoodScores
from cdo_ad.data.marks import write_png as write_png16
from cdo_ad.deploy import export as exporting
from cdo_ad.deploy.export import export, spread, verify
from cdo_ad.errors import BundleError, ConfigError, ExportError, ImageError
from cdo_ad.inference.engines import load_export
from cdo_ad.inference.engines.base import Output, infer_stream
from cdo_ad.inference.engines.openvino import OpenVinoEngine
from cdo_ad.inference.engines.torch import TorchEngine, load_model
from cdo_ad.inference.predict import Failure, predict_files
from cdo_ad.method.branches import DEFECT_HEAD
from cdo_ad.types import Prediction

pytest.importorskip("openvino", reason="needs the extra runtime")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra export")
pytestmark = pytest.mark.slow

KINDS = ("openvino", "onnx")
SIZES = [(64, 96), (65, 95), (401, 300), (9, 200), (8, 8), (30, 31), (64, 300)]
OTHERS = ("bank", "disagreement")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Bundle]:
    """Runs by name, each made and exported to an engine when a test first asks for it."""
    bundles: dict[str, Bundle] = {}
    logging.disable(logging.INFO)  # pytest would keep each of the exporter's debug lines

    def make(name: str, *kinds: str) -> Bundle:
        if name not in bundles:
            folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
            bundles[name] = {
                "default": lambda: runs.make_run(folder, categories=[runs.category(*runs.DEFAULT)]),
                "paper": lambda: runs.make_run(folder),
                "defect head": lambda: runs.make_run(
                    folder, images=34, categories=[runs.category("level 3", "level 2")], defects=2
                ),
                "unified": lambda: runs.make_run(
                    folder,
                    categories=[
                        runs.category("level 3", "intensity", name="cloth"), runs.category(*OTHERS, name="plate")
                    ],
                ),
            }[name]()  # fmt: skip
        for kind in kinds:
            if not (bundles[name].path / "export" / exporting.FILES[kind]).is_file():
                export(bundles[name].path, kind)
        return bundles[name]

    return make


@pytest.fixture(scope="module")
def bundle(made: Callable[..., Bundle]) -> Bundle:
    return made("default", *KINDS)


def image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return fakes.make_image(seed, "spot", size)[0]


def agree(found: Output, expected: Output) -> None:
    np.testing.assert_allclose(found.maps, expected.maps, atol=5e-5 * expected.maps.max())
    np.testing.assert_allclose(found.scores, expected.scores, rtol=5e-5)
    np.testing.assert_array_equal(found.categories, expected.categories)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_gives_torch_s_answer(bundle: Bundle, kind: str, size: tuple[int, int]) -> None:
    batch = np.stack([image(size, seed) for seed in range(3)])
    expected = cdo_ad.load(bundle.path, backend="torch").engine.infer(batch)
    assert expected.maps.shape == (3, 64, 96)
    agree(cdo_ad.load(bundle.path, backend=kind).engine.infer(batch), expected)


@pytest.mark.parametrize(("name", "kind"), [("paper", "openvino"), ("defect head", "openvino")])
def test_every_recipe_gives_torch_s_answer(made: Callable[..., Bundle], name: str, kind: str) -> None:
    bundle = made(name, kind)
    batch = np.stack([image((90, 70), seed) for seed in range(2)])
    model = load_model(bundle)
    assert (model.branches().defect_head is not None) == (name == DEFECT_HEAD)
    agree(cdo_ad.load(bundle.path, backend=kind).engine.infer(batch), TorchEngine(model).infer(batch))


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_judged_by_the_branches_of_its_category(made: Callable[..., Bundle], kind: str) -> None:
    bundle = made("unified", kind)
    torch, exported = (cdo_ad.load(bundle.path, backend=backend).engine for backend in ("torch", kind))
    good = cdo_ad.read_image(bundle.good_paths[0])
    batch = np.stack([runs.tinted(good, number) for number in (0, 1, 0, 1)])
    recognised = torch.infer(batch)
    assert recognised.categories.tolist() == [0, 1, 0, 1]
    agree(exported.infer(batch), recognised)
    given = np.array([1, 1, -1, 0])
    expected = torch.infer(batch, given)
    assert expected.categories.tolist() == [1, 1, 0, 0]
    agree(exported.infer(batch, given), expected)
    for i, number in enumerate(given):  # alone as in a batch, though no image shows the other category then
        alone = exported.infer(batch[i : i + 1], np.array([number]))
        agree(alone, Output(*(each[i : i + 1] for each in expected)))
    streamed = list(infer_stream(exported, zip(batch, given.tolist(), strict=True)))
    agree(Output(*(np.concatenate(each) for each in zip(*streamed, strict=True))), expected)


def test_the_exporter_says_how_well_it_agrees(bundle: Bundle, made: Callable[..., Bundle]) -> None:
    paths = bundle.comparison_paths
    engine = OpenVinoEngine(bundle.path / "export" / "model.xml")
    agreement = verify(TorchEngine(load_model(bundle)), engine, bundle.calibration, paths)
    assert agreement.images == 14  # ten, an odd-sized one, an enlarged one and a batch of two
    assert 0 < agreement.score_difference < 5e-5
    assert 0 < agreement.map_difference < 5e-5
    assert agreement.holds
    json.dumps(agreement.to_json())
    several = made("unified", "openvino")
    engine = OpenVinoEngine(several.path / "export" / "model.xml")
    agreement = verify(TorchEngine(load_model(several)), engine, several.calibration, several.comparison_paths[:1])
    assert agreement.images == 5 + 3  # and one as each category and as none


def test_verify_counts_changed_decisions(made: Callable[..., Bundle]) -> None:
    bundle = made("paper")  # its threshold is the score of one of the images

    class Shifted:
        name = "shifted"
        source = TorchEngine(load_model(bundle))

        def infer(self, images: np.ndarray, categories: np.ndarray | None = None) -> Output:
            maps, scores, chosen = self.source.infer(images)
            return Output(maps, scores * np.float32(1.05), chosen)

    agreement = verify(Shifted.source, Shifted(), bundle.calibration, bundle.comparison_paths)
    assert agreement.score_difference == pytest.approx(0.05, abs=1e-4)
    assert agreement.decisions_changed > 0
    assert not agreement.holds


def test_a_stream_comes_back_in_order(bundle: Bundle) -> None:
    engine = OpenVinoEngine(bundle.path / "export" / "model.xml", mode="throughput")
    images = [image(size, seed) for seed, size in enumerate(SIZES * 2)]
    found = list(engine.infer_many((one, 0) for one in images))
    assert len(found) == len(images)
    for one, output in zip(images, found, strict=True):
        agree(output, engine.infer(one[None]))


def test_threads_share_an_engine(bundle: Bundle) -> None:
    engine = OpenVinoEngine(bundle.path / "export" / "model.xml")
    images = [image((64, 96), seed)[None] for seed in range(8)]
    alone = [float(engine.infer(one).scores[0]) for one in images]
    with ThreadPoolExecutor(4) as pool:
        together = [float(output.scores[0]) for output in pool.map(engine.infer, images * 5)]
    np.testing.assert_allclose(together, alone * 5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_files_are_judged_in_a_stream_as_one_by_one(bundle: Bundle, mode: str, tmp_path: Path) -> None:
    for number, size in enumerate([(64, 96), (90, 41), (200, 300), (64, 96), (33, 48), (70, 70)]):
        Image.fromarray(image(size, number)).save(tmp_path / f"{number}.png")
    (tmp_path / "0_broken.png").write_bytes(b"no image")
    (tmp_path / "5_broken.png").write_bytes(b"nor this")
    Image.fromarray(image((64, 96))[:, :1]).save(tmp_path / "3_thin.png")
    detector = cdo_ad.load(bundle.path, backend="openvino", mode=mode)
    found = list(predict_files(detector, [tmp_path], tmp_path / "out", maps=True))
    assert [Path(f.path).name for f in found] == sorted(p.name for p in tmp_path.glob("*.png"))
    assert [isinstance(f, Failure) for f in found] == [p.path[-5].isalpha() for p in found]
    thin = next(f for f in found if f.path.endswith("3_thin.png"))
    assert isinstance(thin, Failure)
    assert "1 x 64 pixels is too small" in thin.error
    for prediction in found:
        if isinstance(prediction, Prediction):
            alone = detector.predict_file(prediction.path)
            np.testing.assert_allclose(prediction.anomaly_map, alone.anomaly_map, rtol=1e-4, atol=1e-6)
            assert prediction.score == pytest.approx(alone.score, rel=1e-5)
            assert (prediction.anomalous, prediction.p_value) == (alone.anomalous, alone.p_value)
    assert len(list((tmp_path / "out").glob("*_map.png"))) == 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 1), (1, 64), (7, 300)], ids=str)
def test_a_sliver_is_refused_clearly(bundle: Bundle, kind: str, size: tuple[int, int]) -> None:
    detector = cdo_ad.load(bundle.path, backend=kind)
    with pytest.raises(ImageError, match=f"{size[1]} x {size[0]} pixels is too small: each side needs 8"):
        detector.predict(np.zeros((*size, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_gray_and_16_bit_take_the_same_path(bundle: Bundle, kind: str, tmp_path: Path) -> None:
    gray = image((75, 130))[:, :, 1]
    detector = cdo_ad.load(bundle.path, backend=kind)
    expected = detector.predict(np.dstack([gray] * 3))
    write_png16(tmp_path / "wide.png", (gray.astype(np.uint16) << 8) + 199)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    for found in [
        detector.predict(gray), detector.predict((gray.astype(np.uint16) << 8) + 3),
        detector.predict_file(tmp_path / "wide.png"), detector.predict_file(tmp_path / "gray.png"),
    ]:  # fmt: skip
        assert found.score == expected.score
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)


def test_nothing_is_sent_home() -> None:
    code = "import sys; from cdo_ad.inference.engines import openvino as e; e.import_openvino()"
    code += "; print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


DROPPED = """
import os, signal, sys
import cdo_ad
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first, second = cdo_ad.load(sys.argv[1]), cdo_ad.load(sys.argv[1])
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is POSIX's")
def test_signals_are_survived_after_detectors_have_gone(bundle: Bundle) -> None:
    code = [sys.executable, "-c", DROPPED, bundle.path / "export" / "model.xml"]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "handled"


CHILD = """
import json, sys
import numpy as np
import cdo_ad
detector = cdo_ad.load(sys.argv[1])
with np.load(sys.argv[2]) as file:
    found = [detector.predict(file[name]) for name in sorted(file)]
foreign = sorted({"torch", "timm", "scipy"} & set(sys.modules))
print(json.dumps({"foreign": foreign, "found": [p.to_json() for p in found]}))
"""


@pytest.mark.parametrize("name", ["model.xml", "model.onnx"])
def test_a_fresh_process_needs_only_the_file_and_what_lies_beside_it(bundle: Bundle, name: str, tmp_path: Path) -> None:
    for file in (bundle.path / "export").glob("model.bin" if name == "model.xml" else "no more"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in (bundle.path / "export").glob(f"{name}*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    gray = image((70, 50))[:, :, 0]
    images = {"0": image((300, 200)), "1": gray, "2": (gray.astype(np.uint16) << 8) + 77}
    np.savez(tmp_path / "images.npz", **images)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / name, tmp_path / "images.npz"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["foreign"] == []
    detector = cdo_ad.load(bundle.path, backend="torch")
    for key, found in zip(images, answer["found"], strict=True):
        expected = detector.predict(images[key])
        assert found["score"] == pytest.approx(expected.score, rel=1e-4)
        assert (found["anomalous"], found["p_value"]) == (expected.anomalous, expected.p_value)
        assert found["threshold"] == expected.threshold
    assert answer["found"][1]["score"] == answer["found"][2]["score"]  # 16 bit is its upper byte


def test_the_image_at_the_threshold_is_judged_alike_by_all(made: Callable[..., Bundle]) -> None:
    bundle = made("paper", *KINDS)
    detectors = [cdo_ad.load(bundle.path, backend=name) for name in ("torch", *KINDS)]
    for path in bundle.comparison_paths:
        found = [detector.predict_file(path) for detector in detectors]
        assert len({(p.score, p.p_value, p.anomalous) for p in found}) == 1


def test_it_carries_where_it_comes_from(bundle: Bundle) -> None:
    for name in ("model.xml", "model.onnx"):
        detector = cdo_ad.load(bundle.path / "export" / name)
        assert detector.calibration == bundle.calibration
        assert detector.bundle is not None
        assert (detector.bundle.config, detector.bundle.model) == (bundle.config, bundle.model)
        assert detector.bundle.data.fingerprint == "f" * 64
        assert detector.bundle.provenance.exported_with is not None
        assert str(bundle.data_root) not in detector.bundle.provenance.model_dump_json()


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "model.onnx", "model.xml.sha256"])
@pytest.mark.parametrize("place", [0.5, -3, "cut", "gone"])
def test_a_damaged_export_is_refused(bundle: Bundle, name: str, place: float | str, tmp_path: Path) -> None:
    for file in (bundle.path / "export").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / name
    data = bytearray(broken.read_bytes())
    if place == "gone":
        broken.unlink()
    elif place == "cut":
        broken.write_bytes(data[: len(data) // 2])
    else:
        data[int(place * len(data)) if 0 < place < 1 else int(place)] ^= 1
        broken.write_bytes(data)
    with pytest.raises(BundleError, match=r"damaged|missing"):
        cdo_ad.load(tmp_path / (name if name == "model.onnx" else "model.xml"))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08" * 100)
    with pytest.raises(BundleError, match=r"model\.onnx\.sha256 is missing"):
        cdo_ad.load(tmp_path / "model.onnx")
    (tmp_path / "model.onnx.sha256").write_text(f"{'0' * 64}  model.onnx\n")
    with pytest.raises(BundleError, match="not written by"):
        cdo_ad.load(tmp_path / "model.onnx")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".writing.killed"}


def test_an_export_that_disagrees_or_is_interrupted_leaves_all_as_it_was(
    made: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made("paper", "openvino")
    folder = bundle.path / "export"
    (folder / "notes.txt").write_text("of the user")
    (folder / ".writing.killed").mkdir()  # of a process that was killed
    before = contents(folder)
    right = exporting.openvino_model

    def wrong(model, metadata):  # type: ignore[no-untyped-def]
        model.mean += 3.0
        graph = right(model, metadata)
        model.mean -= 3.0
        return graph

    monkeypatch.setattr(exporting, "openvino_model", wrong)
    with pytest.raises(ExportError, match=r"no file was written.*scores by up to \d"):
        export(bundle.path)
    assert contents(folder) == before

    def interrupted(graph: object, file: Path) -> None:
        file.write_text("half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "openvino_model", lambda *_: None)
    monkeypatch.setattr(exporting, "save_openvino", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(bundle.path)
    assert contents(folder) == before


def test_without_images_nothing_is_trusted(tmp_path: Path) -> None:
    bundle = runs.make_run(tmp_path, images=9)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(ExportError, match="--images"):
        export(bundle.path)
    assert not (bundle.path / "export").exists()
    file, agreement = export(bundle.path, images=tmp_path / "moved" / "test" / "good")
    assert agreement.images == 5
    assert file.is_file()


def test_images_to_compare_on_are_spread_evenly() -> None:
    paths = [Path(str(i)) for i in range(10)]
    assert spread(paths, 20) == paths
    assert [p.name for p in spread(paths, 4)] == ["0", "2", "5", "7"]


def test_wrong_words_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="openvino, onnx"):
        export(bundle.path, "tflite")
    with pytest.raises(ConfigError, match="runs with onnx"):
        cdo_ad.load(bundle.path / "export" / "model.onnx", backend="openvino")
    with pytest.raises(ConfigError, match="latency or throughput"):
        cdo_ad.load(bundle.path, backend="openvino", mode="fast")
    with pytest.raises(ConfigError, match="no device 'npu9'"):
        cdo_ad.load(bundle.path, backend="openvino", device="npu9")
    with pytest.raises(BundleError, match="no exported model"):
        load_export(tmp_path / "model.pt")


def test_settle_takes_the_nearest_calibration_score() -> None:
    calibration = Calibration.fit({"": GoodScores([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])}, 0.5)
    assert calibration.of().image_threshold == 2.0
    assert calibration.settle(2.0001) == 2.0
    assert calibration.settle(1.9999) == 2.0
    assert calibration.settle(2.001) == 2.001
    assert calibration.settle(9.0) == 9.0
    assert not calibration.decide(2.0001)
    assert calibration.decide(2.001)
