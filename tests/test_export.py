"""Exported models: the same answers as torch, in a process of their own, or no file."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from cdo_ad.method.network import CdoNetwork
from PIL import Image

import cdo_ad
import fakes
import runs
from cdo_ad.bundle import Bundle
from cdo_ad.calibration import Calibration
from cdo_ad.data.marks import write_png as write_png16
from cdo_ad.deploy import export as exporting
from cdo_ad.deploy.export import export, verify
from cdo_ad.deploy.graph import with_fixed_padding
from cdo_ad.errors import BundleError, ConfigError, ExportError, ImageError
from cdo_ad.inference.artifact import OpenVinoRuntime
from cdo_ad.inference.engines.torch import TorchRuntime, load_network
from cdo_ad.inference.predict import Failure, predict_files
from cdo_ad.types import Prediction

pytest.importorskip("openvino", reason="needs the extra runtime")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytestmark = pytest.mark.slow

KINDS = ("openvino", "onnx")
SIZES = [(64, 96), (65, 95), (401, 300), (9, 200), (8, 8), (30, 31), (64, 300)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("onnxscript", reason="needs the extra export")
    bundle = runs.make_run(tmp_path_factory.mktemp("export"))
    logging.disable(logging.INFO)  # pytest would keep each of the exporter's debug lines
    for kind in KINDS:
        _, agreement = export(bundle.path, kind)
        assert agreement.images == 14  # ten, an odd-sized one, an enlarged one and a batch of two
        assert agreement.score_difference < 5e-5
        assert agreement.map_difference < 5e-5
    logging.disable(logging.NOTSET)
    return bundle


def image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return fakes.make_image(seed, "spot", size)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_gives_torch_s_answer(bundle: Bundle, kind: str, size: tuple[int, int]) -> None:
    batch = np.stack([image(size, seed) for seed in range(3)])
    maps, scores = cdo_ad.load(bundle.path, backend="torch").runtime.infer(batch)
    other_maps, other_scores = cdo_ad.load(bundle.path, backend=kind).runtime.infer(batch)
    assert other_maps.shape == (3, 64, 96)
    np.testing.assert_allclose(other_maps, maps, atol=5e-5 * maps.max())
    np.testing.assert_allclose(other_scores, scores, rtol=5e-5)


def test_a_stream_comes_back_in_order(bundle: Bundle) -> None:
    runtime = OpenVinoRuntime(bundle.path / "export" / "model.xml", mode="throughput")
    images = [image(size, seed) for seed, size in enumerate(SIZES * 2)]
    found = list(runtime.infer_many(iter(images)))
    assert len(found) == len(images)
    for one, (anomaly_map, score) in zip(images, found, strict=True):
        maps, scores = runtime.infer(one[None])
        np.testing.assert_allclose(anomaly_map, maps[0], rtol=1e-5, atol=1e-6)
        assert score == pytest.approx(float(scores[0]), rel=1e-5)


def test_threads_share_a_runtime(bundle: Bundle) -> None:
    runtime = OpenVinoRuntime(bundle.path / "export" / "model.xml")
    images = [image((64, 96), seed)[None] for seed in range(8)]
    alone = [float(runtime.infer(one)[1][0]) for one in images]
    with ThreadPoolExecutor(4) as pool:
        together = [float(scores[0]) for _, scores in pool.map(runtime.infer, images * 5)]
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
            np.testing.assert_allclose(prediction.anomaly_map, alone.anomaly_map, rtol=1e-5, atol=1e-6)
            assert prediction.score == pytest.approx(alone.score, rel=1e-5)
            assert (prediction.anomalous, prediction.p_value) == (alone.anomalous, alone.p_value)
            assert [r.box for r in prediction.regions] == [r.box for r in alone.regions]
            assert prediction.seconds > 0
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
        detector.predict(gray), detector.predict(gray[:, :, None]), detector.predict((gray.astype(np.uint16) << 8) + 3),
        detector.predict_file(tmp_path / "wide.png"), detector.predict_file(tmp_path / "gray.png"),
    ]:  # fmt: skip
        assert found.score == expected.score
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)


def test_padding_of_known_size_is_the_same_convolution() -> None:
    torch.manual_seed(0)
    network = CdoNetwork("tf_efficientnet_lite0", (65, 98)).eval()
    fixed = with_fixed_padding(network, torch.zeros(1, 3, 65, 98))
    images = torch.rand(2, 3, 65, 98) * 255
    with torch.no_grad():
        for found, expected in zip(fixed(images), network(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    names = [[type(module).__name__ for module in each.modules()] for each in (network, fixed)]
    assert names[1].count("_PaddedConvolution") == names[0].count("Conv2dSame") == 2 * 4  # one a stride, two networks
    assert "_PaddedConvolution" not in names[0]


def test_nothing_is_sent_home() -> None:
    code = "import sys, cdo_ad.inference.artifact as e; e.import_openvino(); print(sys.modules['openvino_telemetry'])"
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
np.savez(sys.argv[3], *[p.anomaly_map for p in found])
foreign = sorted({"torch", "timm", "scipy"} & set(sys.modules))
print(json.dumps({"foreign": foreign, "found": [p.to_json() for p in found]}))
"""


@pytest.mark.parametrize("name", ["model.xml", "model.onnx"])
def test_a_fresh_process_needs_only_the_file(bundle: Bundle, name: str, tmp_path: Path) -> None:
    alone = tmp_path / "line_pc"
    alone.mkdir()
    for file in (bundle.path / "export").glob("model.*"):
        if file.suffix in (".onnx",) if name.endswith("onnx") else file.suffix in (".xml", ".bin"):
            (alone / file.name).write_bytes(file.read_bytes())
    gray = image((70, 50))[:, :, 0]
    wide = (gray.astype(np.uint16) << 8) + 77
    images = {"0": image((300, 200)), "1": gray, "2": wide, "3": np.dstack([image((70, 50)), gray])}
    np.savez(tmp_path / "images.npz", **images)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, alone / name, tmp_path / "images.npz", tmp_path / "maps.npz"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["foreign"] == []
    detector = cdo_ad.load(bundle.path, backend="torch")
    with np.load(tmp_path / "maps.npz") as maps:
        for key, found, map_name in zip(images, answer["found"], maps, strict=True):
            expected = detector.predict(images[key])
            assert found["score"] == pytest.approx(expected.score, rel=1e-4)
            assert (found["anomalous"], found["p_value"]) == (expected.anomalous, expected.p_value)
            assert found["threshold"] == expected.threshold
            np.testing.assert_allclose(maps[map_name], expected.anomaly_map, atol=1e-4 * expected.anomaly_map.max())
    assert answer["found"][1]["score"] == answer["found"][2]["score"]  # 16 bit is its upper byte


def test_the_image_at_the_threshold_is_judged_alike_by_all(bundle: Bundle) -> None:
    detectors = [cdo_ad.load(bundle.path, backend=name) for name in ("torch", *KINDS)]
    for path in bundle.calibration_paths:
        found = [detector.predict_file(path) for detector in detectors]
        assert len({(p.score, p.p_value, p.anomalous) for p in found}) == 1


def test_it_carries_where_it_comes_from(bundle: Bundle) -> None:
    for name in ("model.xml", "model.onnx"):
        detector = cdo_ad.load(bundle.path / "export" / name)
        assert detector.calibration == bundle.calibration
        assert detector.bundle is not None
        assert detector.bundle.config == bundle.config
        assert detector.bundle.provenance["data"]["fingerprint"] == "f" * 64
        assert str(bundle.data_root) not in json.dumps(detector.bundle.provenance)


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "model.onnx"])
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
        cdo_ad.load(tmp_path / name.replace(".bin", ".xml"))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08" * 100)
    with pytest.raises(BundleError, match="not written by"):
        cdo_ad.load(tmp_path / "model.onnx")


def test_an_export_that_disagrees_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = runs.make_run(tmp_path, images=9)
    right = exporting.write_openvino

    def wrong(network, metadata, file):  # type: ignore[no-untyped-def]
        network.mean += 3.0
        right(network, metadata, file)
        network.mean -= 3.0

    monkeypatch.setattr(exporting, "write_openvino", wrong)
    with pytest.raises(ExportError, match=r"no file was written.*scores by up to \d"):
        export(bundle.path)
    assert not (bundle.path / "export").exists()


def test_verify_counts_changed_decisions(bundle: Bundle) -> None:
    class Shifted:
        name = "shifted"
        network = TorchRuntime(load_network(bundle.config, bundle.model_file))

        def infer(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            maps, scores = self.network.infer(images)
            return maps, scores * np.float32(1.05)

    agreement = verify(Shifted.network, Shifted(), bundle.calibration, bundle.calibration_paths)
    assert agreement.score_difference == pytest.approx(0.05, abs=1e-4)
    assert agreement.decisions_changed > 0
    assert not agreement.holds


def test_without_images_nothing_is_trusted(tmp_path: Path) -> None:
    bundle = runs.make_run(tmp_path, images=9)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(ExportError, match="--images"):
        export(bundle.path)
    file, agreement = export(bundle.path, images=tmp_path / "moved" / "test" / "good")
    assert agreement.images == 5
    assert file.is_file()


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
        exporting.load_runtime(tmp_path / "model.pt")


def test_settle_takes_the_nearest_calibration_score() -> None:
    calibration = Calibration.fit([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.5)
    assert calibration.image_threshold == 2.0
    assert calibration.settle(2.0001) == 2.0
    assert calibration.settle(1.9999) == 2.0
    assert calibration.settle(2.001) == 2.001
    assert calibration.settle(9.0) == 9.0
    assert not calibration.decide(2.0001)
    assert calibration.decide(2.001)
