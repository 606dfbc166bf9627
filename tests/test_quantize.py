"""int8: kept only with its quality, judged by its own calibration, run without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import cdo_ad
import fakes
import runs
from cdo_ad.bundle import Bundle
from cdo_ad.calibration import Calibration
from cdo_ad.conformal import GoodScores
from cdo_ad.data.store import ImageStore
from cdo_ad.deploy import int8 as quantizing
from cdo_ad.deploy import quality as gate
from cdo_ad.deploy.int8 import export_int8
from cdo_ad.deploy.quality import Metrics, Quality, labelled_metrics, synthetic_trial, trial_metrics
from cdo_ad.errors import BundleError, ConfigError, DataError, ExportError
from cdo_ad.inference.artifact import INT8_FILE
from cdo_ad.inference.engines.base import Output
from cdo_ad.inference.engines.openvino import openvino_core
from cdo_ad.types import Sample

pytest.importorskip("nncf", reason="needs the extra export")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return runs.make_run(
        tmp_path_factory.mktemp("quantize"), images=24, categories=[runs.category("level 3", "level 2", "intensity")]
    )


@pytest.fixture(scope="module")
def exported(bundle: Bundle) -> tuple[Path, Quality]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "ALLOWED_FALL", 0.3)  # random networks see few anomalies: their AUROC is an accident
        return export_int8(bundle.path, labelled=bundle.data_root)


def test_its_layers_are_int8_and_what_lies_behind_them_is_not(exported: tuple[Path, Quality]) -> None:
    nodes = openvino_core().read_model(exported[0]).get_ordered_ops()
    quantised = {str(node.get_friendly_name()) for node in nodes if node.get_type_name() == "FakeQuantize"}
    assert len(quantised) > 10
    assert all(name.startswith("networks/") for name in quantised)
    products = [node for node in nodes if str(node.get_friendly_name()).startswith("branches/")]
    assert {"FakeQuantize", "Convert"}.isdisjoint(
        node.input_value(i).get_node().get_type_name()
        for node in products if node.get_type_name() == "MatMul" for i in range(2)
    )  # fmt: skip


def test_the_promise_rests_on_scores_of_images_that_were_left_out(
    bundle: Bundle, exported: tuple[Path, Quality]
) -> None:
    detector = cdo_ad.load(exported[0])
    own = detector.calibration.of()
    assert len(own.scores) == 24
    assert own.scores != bundle.calibration.of().scores
    assert detector.calibration.method == "cross"
    assert detector.calibration.weights_sha256 == bundle.weights_sha256
    # the finished model knows these images, so it scores them lower: a threshold of such scores would promise nothing
    known = [detector.predict_file(path).score for path in bundle.good_paths]
    assert np.median(known) < np.median(own.scores)
    assert own.image_threshold > np.sort(known)[-3]


def test_its_calibration_stays_with_it(bundle: Bundle, exported: tuple[Path, Quality]) -> None:
    inside = cdo_ad.load(exported[0]).calibration
    assert cdo_ad.load(bundle.path, backend="openvino-int8").calibration == inside
    assert cdo_ad.load(bundle.path, backend="torch").calibration == bundle.calibration
    with pytest.raises(BundleError, match="--to openvino"):
        cdo_ad.load(bundle.path, backend="openvino")  # an int8 file is never taken for the exact one


def test_what_it_costs_is_measured_and_kept_in_the_file(exported: tuple[Path, Quality]) -> None:
    file, quality = exported
    assert quality.good == 24
    assert 100 < quality.anomalous <= 140
    assert 0.9 <= quality.variance_kept < 1
    assert quality.labelled is not None and quality.labelled[1].false_alarms is not None
    loaded = cdo_ad.load(file).bundle
    assert loaded is not None
    inside = json.loads(json.dumps(loaded.provenance.int8))
    assert inside == json.loads(json.dumps({**quality.to_json(), "allowed_fall": 0.3}))
    assert inside["labelled"]["int8"]["image_auroc"] == quality.labelled[1].image_auroc


def test_it_answers_as_the_float32_model_does_but_for_rounding(bundle: Bundle, exported: tuple[Path, Quality]) -> None:
    exact, int8 = (cdo_ad.load(bundle.path, backend=name) for name in ("torch", "openvino-int8"))
    images = [fakes.make_image(seed, kind, (64, 96))[0] for seed in range(6) for kind in ("good", "spot")]
    maps = [[detector.predict(image).anomaly_map for image in images] for detector in (exact, int8)]
    correlation = np.corrcoef(np.ravel(maps[0]), np.ravel(maps[1]))[0, 1]
    assert correlation > 0.9
    assert not np.allclose(maps[0], maps[1], rtol=1e-4)


CHILD = """
import json, sys
import numpy as np
import cdo_ad
found = cdo_ad.load(sys.argv[1]).predict(np.load(sys.argv[2]))
foreign = sorted({"torch", "timm", "nncf", "scipy"} & set(sys.modules))
print(json.dumps({"foreign": foreign, "found": found.to_json()}))
"""


def test_a_fresh_process_needs_only_the_file(exported: tuple[Path, Quality], tmp_path: Path) -> None:
    for file in exported[0].parent.glob("model_int8.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    image = fakes.make_image(3, "spot", (121, 77))[0]
    np.save(tmp_path / "image.npy", image)
    words = [sys.executable, "-c", CHILD, tmp_path / INT8_FILE, tmp_path / "image.npy"]
    answer = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    here = cdo_ad.load(exported[0]).predict(image)
    assert answer["foreign"] == []
    assert answer["found"]["score"] == pytest.approx(here.score, rel=1e-5)
    assert answer["found"]["anomalous"] == here.anomalous


def test_a_model_that_loses_too_much_is_refused_and_leaves_no_file(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = runs.make_run(tmp_path, images=9, categories=[runs.category("level 3")])
    worse = iter([Metrics(0.95, 0.5, 0.4), Metrics(0.93, 0.5, 0.4)])
    monkeypatch.setattr(quantizing, "trial_metrics", lambda *_: next(worse))
    with pytest.raises(ExportError, match=r"no file was written.*AUROC 0\.9500.*int8 image AUROC 0\.93"):
        export_int8(other.path)
    assert not (other.path / "export").exists()


def test_images_that_are_gone_or_of_one_kind_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = runs.make_run(tmp_path, images=9, categories=[runs.category("level 3")])
    with pytest.raises(DataError, match="good and anomalous"):
        export_int8(other.path, labelled=fakes.make_folder(tmp_path / "good only", defective=0))
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(BundleError, match="is gone"):
        export_int8(other.path)


def test_the_limit_is_of_the_largest_fall() -> None:
    quality = Quality(10, 10, Metrics(0.95, 0.5, 0.4), Metrics(0.941, 0.6, 0.4), None, 0.95)
    assert quality.holds
    assert quality.fall == pytest.approx(0.009)
    assert not replace(quality, int8=Metrics(0.95, 0.489, 0.4)).holds
    assert not replace(quality, int8=Metrics(0.939, 0.9, 0.4)).holds
    assert not replace(quality, labelled=(Metrics(0.9, 0.9, 0.5), Metrics(0.88, 0.9, 0.5))).holds
    assert replace(quality, labelled=(Metrics(0.9, 0.9, 0.5), Metrics(0.9, 0.9, 0.1))).holds


class Brightness:
    """An engine that finds bright pixels."""

    name = "double"

    def infer(self, images: np.ndarray, categories: np.ndarray | None = None) -> Output:
        maps = np.abs(images.astype(np.float32).mean(axis=3) - 128)
        return Output(maps, maps.max(axis=(1, 2)), np.zeros(len(images), np.int64))


CALIBRATION = Calibration.fit({"": GoodScores([60.0, 80.0, 100.0, 110.0], [60.0, 80.0, 100.0, 110.0])}, 0.2)


def test_the_trial_is_judged_against_left_out_scores(bundle: Bundle) -> None:
    trial = synthetic_trial(ImageStore(bundle.good_paths, (64, 96)), np.zeros(24, np.int64), 0)
    assert trial.masks.any(axis=(1, 2)).all()
    again = synthetic_trial(ImageStore(bundle.good_paths, (64, 96)), np.zeros(24, np.int64), 0)
    assert (again.images == trial.images).all()
    found = trial_metrics(Brightness(), CALIBRATION, trial)
    maps = np.stack([Brightness().infer(image[None]).maps[0] for image in trial.images])
    scores = np.concatenate([CALIBRATION.of().scores, maps.max(axis=(1, 2))])
    assert found.image_auroc == pytest.approx(roc_auc_score(np.arange(len(scores)) >= 4, scores))
    assert found.ap == pytest.approx(average_precision_score(trial.masks.ravel(), maps.ravel()), abs=1e-6)
    assert found.detected == pytest.approx((scores[4:] > CALIBRATION.of().image_threshold).mean())


def test_labelled_images_count_detections_and_false_alarms(tmp_path: Path) -> None:
    levels = [(100, False), (250, False), (250, True), (255, True), (120, True)]
    samples = []
    for i, (level, anomalous) in enumerate(levels):
        path = fakes.write(tmp_path / f"{i}.png", np.full((16, 16, 3), level, np.uint8))
        samples.append(Sample(path, "test", "spot" if anomalous else "good"))
    found = labelled_metrics(Brightness(), CALIBRATION, samples)
    assert (found.detected, found.false_alarms) == (pytest.approx(2 / 3), 0.5)
    assert found.image_auroc == pytest.approx(roc_auc_score([a for _, a in levels], [28, 122, 122, 127, 8]))


def test_the_command(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cdo_ad.cli.deployment import export

    labelled = (Metrics(0.9, 0.8, 0.5, 0.03), Metrics(0.89, 0.79, 0.48, 0.04))
    quality = Quality(10, 20, Metrics(0.95, 0.5, 0.4), Metrics(0.951, 0.498, 0.41), labelled, 0.95)
    monkeypatch.setattr(quantizing, "export_int8", lambda run, labelled: (run / INT8_FILE, quality))
    export(bundle.path, int8=True)
    printed = capsys.readouterr().out
    assert "pixel AP 0.4980 (0.5000)" in printed and "false alarms 4.0% (3.0%)" in printed
    export(bundle.path, int8=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["int8"]["image_auroc"] == 0.951
    for words, message in [
        ({"to": "onnx", "int8": True}, "--to openvino --int8"),
        ({"int8": True, "images": Path("x")}, "leave --images out"),
        ({"labelled": Path("x")}, "add  --int8"),
    ]:
        with pytest.raises(ConfigError, match=message):
            export(bundle.path, **words)
