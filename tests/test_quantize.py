"""int8: kept only with its quality, judged by its own calibration, run without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cdo_ad.method.network import CdoNetwork
from sklearn.metrics import average_precision_score, roc_auc_score

import cdo_ad
import fakes
import runs
from cdo_ad.bundle import Bundle
from cdo_ad.calibration import Calibration
from cdo_ad.deploy import int8 as quantize
from cdo_ad.deploy.export import describe
from cdo_ad.deploy.graph import openvino_model
from cdo_ad.deploy.int8 import Metrics, Quality, export_int8, layer_groups, search, synthetic_trial
from cdo_ad.deploy.nodes import LAYERS, NETWORKS, owner, stage_of_nodes
from cdo_ad.deploy.stages import PlainRuntime
from cdo_ad.errors import BundleError, ConfigError, ExportError
from cdo_ad.inference.artifact import OpenVinoGraph, openvino_core
from cdo_ad.inference.engines.torch import TorchRuntime, load_network

pytest.importorskip("nncf", reason="needs the extra export")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return runs.make_run(tmp_path_factory.mktemp("quantize"))


@pytest.fixture(scope="module")
def exported(bundle: Bundle) -> tuple[Path, Quality]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "ALLOWED_FALL", 0.1)  # random networks see no anomaly: their AUROC is an accident
        return export_int8(bundle.path)


def test_it_is_int8_and_recalibrated(bundle: Bundle, exported: tuple[Path, Quality]) -> None:
    file, quality = exported
    text = file.read_text(encoding="utf-8")
    assert 'element_type="i8"' in text
    assert file.with_suffix(".bin").stat().st_size < 0.4 * bundle.model_file.stat().st_size
    detector = cdo_ad.load(file)
    assert detector.calibration.image_threshold != bundle.calibration.image_threshold
    scores = [detector.predict_file(path).score for path in bundle.calibration_paths]
    assert tuple(sorted(scores)) == detector.calibration.scores
    assert detector.bundle is not None
    inside = detector.bundle.provenance["int8"]
    assert inside == {**json.loads(json.dumps(quality.to_json())), "allowed_fall": 0.1}
    assert inside["kept_fp32"][0] == "body"
    assert list(inside["int8"]["by_strength"]) == ["1.0", "0.25", "0.1"]
    assert 0 < quality.map_difference < 0.1


def test_its_calibration_stays_with_it(bundle: Bundle, exported: tuple[Path, Quality]) -> None:
    inside = cdo_ad.load(exported[0]).calibration
    assert cdo_ad.load(bundle.path, backend="openvino-int8").calibration == inside
    assert cdo_ad.load(bundle.path, backend="torch").calibration == bundle.calibration
    with pytest.raises(BundleError, match="--to openvino"):
        cdo_ad.load(bundle.path, backend="openvino")  # an int8 file is never taken for the exact one


CHILD = """
import json, sys
import numpy as np
import cdo_ad
detector = cdo_ad.load(sys.argv[1])
found = detector.predict(np.load(sys.argv[2]))
foreign = sorted({"torch", "timm", "nncf", "scipy"} & set(sys.modules))
print(json.dumps({"foreign": foreign, "found": found.to_json()}))
"""


def test_a_fresh_process_needs_only_the_file(exported: tuple[Path, Quality], tmp_path: Path) -> None:
    for file in (exported[0], exported[0].with_suffix(".bin")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    image = fakes.make_image(3, "spot", (121, 77))[0]
    np.save(tmp_path / "image.npy", image)
    words = [sys.executable, "-c", CHILD, tmp_path / exported[0].name, tmp_path / "image.npy"]
    answer = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    here = cdo_ad.load(exported[0]).predict(image)
    assert answer["foreign"] == []
    assert answer["found"]["score"] == pytest.approx(here.score, rel=1e-5)
    assert answer["found"]["anomalous"] == here.anomalous


def test_only_layers_of_the_networks_are_quantised(bundle: Bundle, exported: tuple[Path, Quality]) -> None:
    source = openvino_model(
        load_network(bundle.config, bundle.model_file), describe(bundle, "fp32", bundle.calibration)
    )  # fmt: skip
    outside = {
        str(node.get_friendly_name()) for node in source.get_ordered_ops()
        if node.get_type_name() in (*LAYERS, "Divide", "ReduceSum") and owner(node).partition(".")[0] not in NETWORKS
    }  # fmt: skip
    assert len(outside) > 10  # the matrix products, norms and sums behind the networks
    quantised = openvino_core().read_model(exported[0])
    after = {str(node.get_friendly_name()): node for node in quantised.get_ordered_ops()}
    for name in outside & set(after):
        inputs = [after[name].input_value(i).get_node().get_type_name() for i in range(after[name].get_input_size())]
        assert "FakeQuantize" not in inputs, name
    fakes_count = sum(node.get_type_name() == "FakeQuantize" for node in quantised.get_ordered_ops())
    assert fakes_count >= 2 * 9  # an activation for each layer of two small ResNets, some shared


def test_kept_layers_stay_in_float32(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    openvino_core()
    monkeypatch.setattr(openvino, "Core", lambda *_: pytest.fail("NNCF made a core of its own, see openvino_core"))
    model = openvino_model(
        load_network(bundle.config, bundle.model_file), describe(bundle, "fp32", bundle.calibration)
    )  # fmt: skip
    groups = layer_groups(model)
    assert groups[:2] == ["body", "body.layer1.0"]
    images = np.stack([fakes.make_image(seed, "spot", (64, 96))[0] for seed in range(4)])
    kept = groups[1:]
    quantised = quantize.quantise(model, images, kept)
    counts = {True: 0, False: 0}
    for node in quantised.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            inputs = [node.input_value(i).get_node().get_type_name() for i in range(2)]
            counts["FakeQuantize" in inputs] += 1
    assert counts[True] == 2  # the two stems


def test_the_stages_of_the_graph(bundle: Bundle) -> None:
    model = openvino_model(
        load_network(bundle.config, bundle.model_file), describe(bundle, "fp32", bundle.calibration)
    )  # fmt: skip
    stage = stage_of_nodes(model)
    by_type = {(node.get_type_name(), stage[str(node.get_friendly_name())]) for node in model.get_ordered_ops()}
    assert {s for kind, s in by_type if kind == "Convolution"} == {"networks"}
    assert {s for kind, s in by_type if kind == "Range"} == {"resize"}
    assert {s for kind, s in by_type if kind == "ReduceMax"} == {"score"}
    assert {s for kind, s in by_type if kind == "MatMul"} == {"resize", "discrepancy", "map"}
    assert sum(stage[str(n.get_friendly_name())] == "map" for n in model.get_ordered_ops()) == 2


class Doubles:
    """`quantise` and the engine, with damage that grows with the number of quantised groups."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, good_without: set[str]) -> None:
        self.tried: list[tuple[str, ...]] = []
        self.good_without = good_without
        monkeypatch.setattr(quantize, "quantise", self.quantise)
        monkeypatch.setattr(quantize, "layer_groups", lambda _: ["a", "b", "c", "d", "e"])
        monkeypatch.setattr(quantize, "OpenVinoGraph", lambda model: Engine(model if isinstance(model, float) else 0))

    def quantise(self, _model: object, _images: object, kept: list[str], rough: bool = False) -> float:
        if not rough:
            self.tried.append(tuple(kept))
        return float(sum(group not in kept for group in self.good_without))


class Engine:
    name = "double"

    def __init__(self, damage: float) -> None:
        self.damage = damage

    def infer(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = np.abs(images.astype(np.float32).mean(axis=3) - 128)
        pattern = np.random.default_rng(0).random(maps.shape[1:], dtype=np.float32)
        maps = maps + np.float32(100 * self.damage) * pattern
        return maps, maps.max(axis=(1, 2))


@pytest.fixture
def trial(bundle: Bundle) -> quantize.Trial:
    return synthetic_trial(bundle.calibration_paths, (64, 96), 0, "none")


def test_the_worst_groups_stay_in_float32(monkeypatch: pytest.MonkeyPatch, trial: quantize.Trial) -> None:
    doubles = Doubles(monkeypatch, {"d", "b"})
    _, quality = search(None, trial.images[:8], trial, Engine(0))
    assert doubles.tried == [("a",), ("a", "b"), ("a", "b", "d")]
    assert quality.kept_fp32 == ("a", "b", "d")
    assert quality.holds
    assert quality.map_difference == 0


def test_what_never_passes_is_refused(monkeypatch: pytest.MonkeyPatch, trial: quantize.Trial) -> None:
    doubles = Doubles(monkeypatch, {"b", "c", "d", "e"})
    with pytest.raises(ExportError, match=r"no file was written.*pixel AP 0\.\d+; with 1 of 5.*with 3 of 5"):
        search(None, trial.images[:8], trial, Engine(0))
    assert [len(kept) for kept in doubles.tried] == [1, 2, 3]


def test_a_refusal_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = runs.make_run(tmp_path)
    Doubles(monkeypatch, {"b", "c", "d", "e"})
    monkeypatch.setattr(quantize, "require", lambda *_: None)
    with pytest.raises(ExportError, match="int8 loses too much"):
        export_int8(bundle.path)
    assert not (bundle.path / "export").exists()


def test_a_file_that_scores_otherwise_when_read_is_refused(bundle: Bundle) -> None:
    path = bundle.calibration_paths
    scores, maxima = cdo_ad.inference.detector.calibration_scores(Engine(0), path)
    right = Calibration.fit(scores, maxima, 0.1)
    quantize._check_saved(Engine(0), right, path)
    with pytest.raises(ExportError, match="other scores for 10 of 10"):
        quantize._check_saved(Engine(0.1), right, path)


def test_the_limit_is_strict() -> None:
    quality = Quality(10, 10, Metrics(0.95, 0.5), Metrics(0.9451, 0.6), (), 3, 0.0)
    assert quality.holds
    assert quality.fall == pytest.approx(0.0049)
    assert not replace(quality, int8=Metrics(0.95, 0.4949)).holds
    assert not replace(quality, int8=Metrics(0.94, 0.9)).holds


def test_the_faintest_anomalies_count_by_themselves() -> None:
    fp32 = Metrics(0.95, 0.5, (Metrics(1.0, 0.9), Metrics(0.8, 0.2)))
    quality = Quality(10, 10, fp32, Metrics(0.95, 0.5, (Metrics(1.0, 0.91), Metrics(0.8, 0.194))), (), 3, 0.0)
    assert quality.fall == pytest.approx(0.006)
    assert not quality.holds
    assert replace(quality, int8=Metrics(0.95, 0.5, (Metrics(1.0, 0.9), Metrics(0.81, 0.196)))).holds


def test_each_strength_is_judged_against_the_good_images(trial: quantize.Trial) -> None:
    figures, maps = quantize.judge(Engine(0), trial)
    n = len(maps) // 4
    assert len(figures.by_strength) == len(quantize.STRENGTHS) == 3
    for k, alone in enumerate(figures.by_strength, start=1):
        chosen = [*range(n), *range(k * n, (k + 1) * n)]
        labels, scores = trial.labels[chosen], maps[chosen].max(axis=(1, 2))
        assert alone.image_auroc == pytest.approx(roc_auc_score(labels, scores))
        expected = average_precision_score(trial.masks[chosen].ravel(), maps[chosen].ravel())
        assert alone.pixel_ap == pytest.approx(expected, abs=1e-6)


def test_the_trial_knows_its_anomalies(bundle: Bundle, trial: quantize.Trial) -> None:
    n = len(bundle.calibration_paths)
    assert trial.images.shape == (n * (1 + len(quantize.STRENGTHS)), 64, 96, 3)
    assert not trial.labels[:n].any()
    assert 0 < trial.labels.sum() < len(trial.labels) - n  # some images have drawn no rectangle
    good, faint = trial.images[:n], trial.images[-n:]
    changed = (faint != good).any(axis=3)
    assert not (changed & ~trial.masks[-n:]).any()
    assert np.abs(faint.astype(int) - good).max() <= 0.1 * 255 + 1
    again = synthetic_trial(bundle.calibration_paths, (64, 96), 0, "none")
    assert (again.images == trial.images).all()


def test_the_command(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cdo_ad.cli.deploy import export

    quality = Quality(10, 20, Metrics(0.95, 0.5), Metrics(0.951, 0.498), ("body",), 3, 0.01)
    monkeypatch.setattr(quantize, "export_int8", lambda run, images: (run / "model_int8.xml", quality))
    export(bundle.path, int8=True)
    assert "pixel AP 0.4980 (fp32 0.5000)" in capsys.readouterr().out
    export(bundle.path, int8=True, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["kept_fp32"] == ["body"]
    assert document["int8"] == {"image_auroc": 0.951, "pixel_ap": 0.498}
    with pytest.raises(ConfigError, match="--to openvino --int8"):
        export(bundle.path, to="onnx", int8=True)


def test_a_density_stays_outside_and_agrees(bundle: Bundle) -> None:
    torch.manual_seed(0)
    network = CdoNetwork("resnet18", (64, 96), density_context=2, normalize_brightness=True).eval()
    model = openvino_model(network, describe(bundle, "fp32", bundle.calibration))
    images = np.stack([fakes.make_image(seed, "spot", (64, 96))[0] for seed in range(2)])
    maps, scores = OpenVinoGraph(model).infer(images)
    for expected in (TorchRuntime(network).infer(images), PlainRuntime(network).infer(images)):
        np.testing.assert_allclose(maps, expected[0], atol=1e-4 * maps.max())
        np.testing.assert_allclose(scores, expected[1], rtol=1e-4)
    stage = stage_of_nodes(model)
    assert {stage[n] for n in stage if n.startswith("__module.network.density")} == {"discrepancy"}
