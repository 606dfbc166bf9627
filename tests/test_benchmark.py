"""The benchmark: its JSON, its yardstick, its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
import runs
from cdo_ad.bundle import Bundle
from cdo_ad.deploy import benchmark as benchmarking
from cdo_ad.deploy.benchmark import benchmark, best_batch
from cdo_ad.deploy.export import export
from cdo_ad.deploy.stages import PlainRuntime, measure
from cdo_ad.inference.engines.torch import TorchRuntime, load_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return runs.make_run(tmp_path_factory.mktemp("benchmark"), images=9)


@pytest.mark.parametrize("score_top", [0.0, 0.01])
def test_the_plain_form_gives_the_same_answers(score_top: float, tmp_path: Path) -> None:
    bundle = runs.make_run(tmp_path, images=9, score_top=score_top)
    plain, fused = (
        kind(load_network(bundle.config, bundle.model_file)) for kind in (PlainRuntime, TorchRuntime)
    )  # fmt: skip
    images = np.stack([fakes.make_image(seed, "spot", (90, 70))[0] for seed in range(2)])
    for found, expected in zip(plain.infer(images), fused.infer(images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_stages_machine(bundle: Bundle) -> None:
    result = benchmark(bundle.path, rounds=3, batch=2, image_size=(80, 90))
    json.dumps(result)
    keys = {
        "runtime", "precision", "form", "batch", "latency_ms_median", "latency_ms_p99", "images_per_second",
        "ratio_to_plain",
    }  # fmt: skip
    assert all(set(row) == keys for row in result["rows"])
    assert [(row["form"], row["batch"]) for row in result["rows"]] == [
        ("plain", 1), ("fused", 1), ("plain", 2), ("fused", 2),
        ("plain-from-jpeg", 1), ("fused-from-jpeg", 1), ("plain-from-jpeg", 16), ("fused-from-jpeg", 16),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["latency_ms_p99"] >= row["latency_ms_median"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["latency_ms_median"] * 1e3)
        assert row["form"] != "plain" or row["ratio_to_plain"] == 1
    check_stages(result["stages"])
    check_stages(result["stages"]["plain"])
    assert result["stages"]["decode_ms"] > 0
    assert result["stages"]["plain"]["blur_ms"] > 0
    assert 100 < result["machine"]["peak_memory_mib"]["torch"] < 5000
    assert result["machine"]["versions"]["torch"]


def check_stages(stages: dict[str, Any]) -> None:
    assert {"resize_ms", "networks_ms", "discrepancy_ms", "map_ms", "blur_ms", "score_ms"} <= set(stages)
    assert all(value >= 0 for value in stages.values() if isinstance(value, float))
    assert stages["networks_ms"] > 0
    assert 0 < stages["convolution_share"] < 1


def test_exported_models_are_measured_too(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra runtime")
    bundle = runs.make_run(tmp_path, images=9)
    export(bundle.path)
    result = benchmark(bundle.path, rounds=1, batch=2, image_size=(80, 90))
    rows = [row for row in result["rows"] if row["runtime"] == "openvino-cpu"]
    assert [(row["form"], row["batch"]) for row in rows] == [
        ("fused", 1), ("fused", 2), ("fused-throughput", 2),
        ("fused-from-jpeg", 1), ("fused-from-jpeg", 16), ("fused-throughput-from-jpeg", 16),
    ]  # fmt: skip
    stages = result["stages"]["openvino"]
    check_stages(stages)
    assert stages["networks_ms"] > stages["map_ms"] > 0
    assert stages["resize_ms"] > 0
    assert stages["score_ms"] > 0
    memory = result["machine"]["peak_memory_mib"]
    assert 30 < memory["model.xml"] < 0.8 * memory["torch"]  # it loads no torch


def test_the_best_batch_is_the_quickest_a_image() -> None:
    class Engine:
        name = "double"

        def infer(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            time.sleep({1: 0.01, 2: 0.01, 4: 0.01, 8: 0.04, 16: 0.08}[len(images)])
            return np.zeros((0, 0, 0), np.float32), np.zeros(0, np.float32)

    assert best_batch(Engine(), np.zeros((8, 8, 3), np.uint8)) == 4


def test_rounds_go_through_all_in_turns() -> None:
    order: list[int] = []
    times = measure([lambda: order.append(0), lambda: order.append(1)], rounds=3)
    assert order == [0, 0, 1, 1] * 3  # the first of two is not counted
    assert [len(t) for t in times] == [3, 3]


def test_images_that_are_gone_are_replaced_by_noise(tmp_path: Path) -> None:
    bundle = runs.make_run(tmp_path, images=9)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert benchmarking._image(bundle, (40, 50)).std() > 50


def test_the_command_prints_json(bundle: Bundle) -> None:
    words = ["benchmark", str(bundle.path), "--json", "--rounds", "1", "--batch", "2", "--image-size", "70x60"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as conftest does for this process
    done = subprocess.run(
        [sys.executable, "-m", "cdo_ad.cli.main", *words], capture_output=True, text=True, check=True, env=one_thread
    )
    assert set(json.loads(done.stdout)) == {"rows", "stages", "machine"}
