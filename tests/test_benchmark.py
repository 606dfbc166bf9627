"""The benchmark: its JSON, its yardstick, its command."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import fakes
import runs
from cdo_ad.bundle import Bundle
from cdo_ad.cli.deployment import benchmark as command
from cdo_ad.deploy import benchmark as benchmarking
from cdo_ad.deploy.benchmark import Streamed, benchmark, best_batch
from cdo_ad.deploy.export import export
from cdo_ad.deploy.stages import PlainEngine, measure
from cdo_ad.inference.engines.base import Output
from cdo_ad.inference.engines.torch import TorchEngine, load_model

pytest.importorskip("openvino", reason="needs the extra runtime")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = runs.make_run(tmp_path_factory.mktemp("benchmark"), categories=[runs.category("level 3", "intensity")])
    export(bundle.path)
    return bundle


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> dict:
    return benchmark(bundle.path, rounds=3, batch=2, image_size=(80, 90))


@pytest.mark.parametrize(("branches", "score_top"), [(runs.DEFAULT, 0.0), (("disagreement",), 0.01)])
def test_the_plain_form_gives_the_same_answers(branches: tuple[str, ...], score_top: float, tmp_path: Path) -> None:
    bundle = runs.make_run(tmp_path, score_top=score_top, categories=[runs.category(*branches)])
    plain, fused = (kind(load_model(bundle)) for kind in (PlainEngine, TorchEngine))
    images = np.stack([fakes.make_image(seed, "spot", (90, 70))[0] for seed in range(2)])
    for found, expected in zip(plain.infer(images), fused.infer(images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_plain_form_knows_categories(tmp_path: Path) -> None:
    categories = [runs.category("level 3", name="cloth"), runs.category("bank", "disagreement", name="plate")]
    bundle = runs.make_run(tmp_path, categories=categories)
    plain, fused = (kind(load_model(bundle)) for kind in (PlainEngine, TorchEngine))
    images = np.stack([fakes.make_image(seed, "spot", (90, 70))[0] for seed in range(3)])
    given = np.array([1, -1, 0])
    for found, expected in zip(plain.infer(images, given), fused.infer(images, given), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_every_engine_has_rows_beside_its_plain_one(result: dict) -> None:
    json.dumps(result)
    assert [(row["runtime"], row["form"], row["batch"]) for row in result["rows"]] == [
        ("torch-plain", "plain", 1), ("torch-cpu", "fused", 1), ("openvino-cpu", "fused", 1),
        ("torch-plain", "plain", 2), ("torch-cpu", "fused", 2), ("openvino-cpu", "fused", 2),
        ("openvino-cpu", "fused-throughput", 2),
        ("torch-plain", "plain-from-jpeg", 1), ("torch-cpu", "fused-from-jpeg", 1),
        ("openvino-cpu", "fused-from-jpeg", 1),
        ("torch-plain", "plain-from-jpeg", 16), ("torch-cpu", "fused-from-jpeg", 16),
        ("openvino-cpu", "fused-from-jpeg", 16), ("openvino-cpu", "fused-throughput-from-jpeg", 16),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["latency_ms_p99"] >= row["latency_ms_median"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["latency_ms_median"] * 1e3)
        assert row["form"] != "plain" or row["ratio_to_plain"] == 1


def test_every_engine_s_time_is_split_into_stages(result: dict) -> None:
    stages = result["stages"]
    assert set(stages) == {"all", "plain", "torch", "openvino"}
    assert set(stages["all"]) == {"decode_ms", "to_image_size_ms"}
    for name in ("plain", "torch", "openvino"):
        assert {"resize_ms", "networks_ms", "branches_ms", "score_ms"} <= set(stages[name])
        assert min(stages[name][f"{stage}_ms"] for stage in ("resize", "networks", "branches")) > 0
    # hardly a node of the graph is without a stage: what is left is time between nodes
    assert set(stages["openvino"]) - set(stages["torch"]) == {"other_ms"}


def test_an_exported_file_needs_less_memory_than_torch(result: dict) -> None:
    memory = result["machine"]["peak_memory_mib"]
    assert 30 < memory["model.xml"] < 0.8 * memory["torch"] < 5000  # it loads no torch
    assert result["machine"]["versions"]["torch"]


def test_a_streamed_engine_gives_its_images_in_order(bundle: Bundle) -> None:
    engine = benchmarking.load_export(bundle.path / "export" / "model.xml", mode="throughput")
    images = np.stack([fakes.make_image(seed, "spot", (64, 96))[0] for seed in range(5)])
    for found, expected in zip(Streamed(engine).infer(images), engine.infer(images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_best_batch_is_the_quickest_per_image() -> None:
    class Engine:
        name = "double"

        def infer(self, images: np.ndarray, categories: np.ndarray | None = None) -> Output:
            time.sleep({1: 0.03, 2: 0.03, 4: 0.03, 8: 0.2, 16: 0.4}[len(images)])
            return Output(np.zeros((0, 0, 0), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

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


def test_the_command_prints_a_table_or_json(
    bundle: Bundle, result: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(benchmarking, "benchmark", lambda run, **options: asked.append(options) or result)
    command(bundle.path, rounds=1, batch=2, image_size="70x60", as_json=True)
    assert json.loads(capsys.readouterr().out) == result
    assert asked == [{"rounds": 1, "batch": 2, "image_size": (70, 60)}]
    command(bundle.path, rounds=1)
    table = capsys.readouterr().out
    assert "openvino-cpu" in table and "branches_ms" in table and "model.xml alone" in table
