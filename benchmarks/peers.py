"""Speed next to anomalib's models: the same images, machine and run, in turns.

    python -m venv peers && peers/bin/pip install "anomalib==2.7.0" openvino onnx onnxscript
    python benchmarks/peers.py --peers-python peers/bin/python [--backbone resnet18] [--rounds 20] [--json FILE]

- Ours: the plain PyTorch form, the fused one, and what export makes of it (ONNX Runtime, OpenVINO, OpenVINO int8, both
  also with several images in flight), with random weights, or of a trained run with `--run`. Quality is not measured
  here: the int8 file is not held to its gate.
- Peers: PaDiM, PatchCore, STFPM, Reverse Distillation on the same backbone where they allow it, EfficientAD on its own,
  each in PyTorch and in anomalib's OpenVINO inferencer. Random weights: speed does not depend on them.
- anomalib lives in a Python environment of its own and is driven through pipes; each round calls everyone twice, and
  the second time counts.
- What is timed: one call with uint8 images (B, H, W, 3) in memory, to map and score, preprocessing included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cdo_ad.config import Config

BATCH = 8  # images a call, for the throughput
NOISE = 12  # images that branches are fitted on: speed does not depend on what they hold
BANK = 32_768  # PatchCore's vectors: its default of 10 % of the positions of 320 images
PEERS = ("PaDiM", "PatchCore", "STFPM", "EfficientAD", "Reverse Distillation")
LAYERS = {"tf_efficientnet_lite0": ["blocks.1", "blocks.2", "blocks.4"]}  # strides 4, 8, 16, as ours


def main() -> None:
    """Read the options, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers-python", type=Path, help="interpreter with anomalib; without it only ours are measured"
    )
    parser.add_argument("--backbone", default="resnet18", help="timm's name (default: %(default)s)")
    parser.add_argument("--run", type=Path, help="a trained run in place of random weights; its backbone counts")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the table there")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS, help="some of the peers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.only, options.backbone, options.size)
        return
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(options) if options.peers_python else None  # it builds while we do
        run = options.run or random_run(Path(folder) / "run", settings(options.backbone, options.size))
        calls, missing = ours(run, Path(folder))
        if peers is not None:
            peers.wait()
            calls.update(peers.calls)
            missing.update(peers.missing)
        else:
            missing["anomalib"] = "no --peers-python was given"
        rows = measure(calls, options.size, options.rounds)
        if peers is not None:
            peers.close()
    show(rows, missing, options)


def measure(calls: dict[str, Callable[[np.ndarray], float]], size: int, rounds: int) -> list[dict[str, Any]]:
    """Median and p99 of single images, images a second in batches; every round goes through all in turns."""
    generator = np.random.default_rng(0)
    times: dict[int, dict[str, list[float]]] = {1: {name: [] for name in calls}, BATCH: {name: [] for name in calls}}
    failed: dict[str, str] = {}
    for count, repeats in ((1, rounds), (BATCH, max(3, rounds // 3))):
        images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        for turn in range(repeats):
            for name, call in calls.items():
                try:
                    # not counted: the one before left its weights in the caches and its threads spinning
                    call(images)
                    times[count][name].append(call(images))
                except RuntimeError as error:
                    failed[f"{name}, batch {count}"] = str(error)
            print(f"\rbatch {count}: round {turn + 1} of {repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    rows = []
    for name in calls:
        single, many = times[1][name], times[BATCH][name]
        rows.append(
            {
                "name": name,
                "latency_ms_median": 1e3 * float(np.median(single)) if single else None,
                "latency_ms_p99": 1e3 * float(np.percentile(single, 99)) if single else None,
                "images_per_second": BATCH / float(np.median(many)) if many else None,
            }
        )
    return rows


def show(rows: list[dict[str, Any]], missing: dict[str, str], options: argparse.Namespace) -> None:
    """Print the table, who is missing and why; write the JSON file."""
    plain = rows[0]
    print(f"{'':44}{'median ms':>11}{'p99 ms':>9}{'x plain':>9}{f'images/s at {BATCH}':>16}{'x plain':>9}")
    for row in rows:
        row["ratio_latency"] = _ratio(plain["latency_ms_median"], row["latency_ms_median"])
        row["ratio_throughput"] = _ratio(row["images_per_second"], plain["images_per_second"])
        cells = (
            (row["latency_ms_median"], 11, 1), (row["latency_ms_p99"], 9, 1), (row["ratio_latency"], 9, 2),
            (row["images_per_second"], 16, 1), (row["ratio_throughput"], 9, 2),
        )  # fmt: skip
        print(f"{row['name']:44}" + "".join(f"{'-':>{w}}" if v is None else f"{v:{w}.{d}f}" for v, w, d in cells))
    for name, reason in missing.items():
        print(f"{name:44} not run: {reason}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(f"{options.size} x {options.size}, {options.rounds} rounds, {os.cpu_count()} processors, load average {load}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "not_run": missing, "load_average": load}, indent=2) + "\n")


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


# ---- ours


def settings(backbone: str, size: int) -> Config:
    """The paper's form of that backbone and size."""
    from cdo_ad.config import Config

    return Config(backbone=backbone, image_height=size, image_width=size)


def random_run(folder: Path, config: Config) -> Path:
    """A run with random weights; branches are fitted on noise."""
    import torch

    from cdo_ad.calibration import Calibration, GoodScores
    from cdo_ad.config import CategorySpec, ModelSpec
    from cdo_ad.method.fit import FitSettings, fit_branches
    from cdo_ad.method.model import AnomalyModel
    from cdo_ad.provenance import DataRecord
    from cdo_ad.training.postfit import write_model

    torch.manual_seed(0)
    size = config.image_size if config.image_height else (256, 256)
    config = config.replace(weights="none", image_height=size[0], image_width=size[1])
    category = CategorySpec.from_config(config, components=NOISE // 3, intensity_components=NOISE // 10)
    model = AnomalyModel(ModelSpec.from_config(config, [category])).eval()
    if category.standardized:
        noise = torch.randint(0, 256, (NOISE, 3, *size)).float()
        fit_branches(model, 0, noise, np.arange(NOISE), FitSettings("equal"))
    scores = [float(i) for i in range(1, 40)]
    calibration = Calibration.fit({"": GoodScores(scores, scores)}, 0.05)
    record = DataRecord(root="", category="", fingerprint="0" * 64, images=(), split="noise", units={"": "image"})
    write_model(folder, model, config, record, calibration)
    return folder


def ours(run: Path, folder: Path) -> tuple[dict[str, Callable[[np.ndarray], float]], dict[str, str]]:
    """Each of our forms as a call that returns its seconds, and why some are missing."""
    from cdo_ad.bundle import read_bundle
    from cdo_ad.deploy.benchmark import Streamed
    from cdo_ad.deploy.export import describe
    from cdo_ad.deploy.graph_onnx import write_onnx
    from cdo_ad.deploy.graph_openvino import openvino_model, openvino_networks, save_openvino
    from cdo_ad.deploy.int8 import quantise
    from cdo_ad.deploy.stages import PlainEngine
    from cdo_ad.errors import CdoError
    from cdo_ad.inference.engines import load_export
    from cdo_ad.inference.engines.torch import TorchEngine, load_model

    bundle = read_bundle(run)
    metadata = describe(bundle, "fp32", bundle.model, bundle.calibration)

    def openvino(quantised: bool, streamed: bool = False) -> Any:
        file = folder / ("int8.xml" if quantised else "fp32.xml")
        if not file.is_file():
            model = load_model(bundle)
            networks = openvino_networks(model)
            if quantised:
                noise = np.random.default_rng(1).normal(size=(8, 1, 3, *bundle.config.image_size)).astype(np.float32)
                networks, _ = quantise(networks, list(noise))
            save_openvino(openvino_model(model, metadata, networks), file)
        if streamed:
            return Streamed(load_export(file, device="cpu", mode="throughput"))
        return load_export(file, device="cpu")

    def onnx() -> Any:
        write_onnx(load_model(bundle), metadata, folder / "fp32.onnx")
        return load_export(folder / "fp32.onnx", device="cpu")

    makers: dict[str, Callable[[], Any]] = {
        "cdo-ad, plain PyTorch": lambda: PlainEngine(load_model(bundle)),
        "cdo-ad, PyTorch": lambda: TorchEngine(load_model(bundle)),
        "cdo-ad, ONNX Runtime": onnx,
        "cdo-ad, OpenVINO": lambda: openvino(False),
        "cdo-ad, OpenVINO, streamed": lambda: openvino(False, streamed=True),
        "cdo-ad, OpenVINO int8": lambda: openvino(True),
        "cdo-ad, OpenVINO int8, streamed": lambda: openvino(True, streamed=True),
    }
    calls, missing = {}, {}
    for name, make in makers.items():
        try:
            calls[name] = _timed(make().infer)
        except CdoError as error:
            missing[name] = str(error)
    return calls, missing


def _timed(function: Callable[[np.ndarray], object]) -> Callable[[np.ndarray], float]:
    def call(images: np.ndarray) -> float:
        start = time.perf_counter()
        function(images)
        return time.perf_counter() - start

    return call


# ---- the peers, seen from here


class Peers:
    """A process with anomalib that answers one request a line: a peer's name and the images' file, to seconds."""

    def __init__(self, options: argparse.Namespace) -> None:
        words = [
            str(options.peers_python.absolute()),
            str(Path(__file__).resolve()),
            "--worker",
            "--backbone",
            options.backbone,
        ]
        words += ["--size", str(options.size), "--only", *options.only]
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.folder.name
        )
        self.missing: dict[str, str] = {}
        self.calls: dict[str, Callable[[np.ndarray], float]] = {}

    def wait(self) -> None:
        """Until it has built its models."""
        ready = self._read()
        self.missing = ready["missing"]
        self.calls = {name: self._caller(name) for name in ready["names"]}

    def _caller(self, name: str) -> Callable[[np.ndarray], float]:
        def call(images: np.ndarray) -> float:
            file = Path(self.folder.name) / f"images{len(images)}.npy"
            if not file.is_file():
                np.save(file, images)
            self._write({"name": name, "images": str(file)})
            answer = self._read()
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return float(answer["seconds"])

        return call

    def _write(self, document: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(document) + "\n")
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peers' process ended with status {self.process.wait()}: see its messages above")
        document: dict[str, Any] = json.loads(line)
        return document

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.folder.cleanup()


# ---- the peers, inside their own process: nothing of cdo-ad is imported here


def work(only: Sequence[str], backbone: str, size: int) -> None:
    """Build the peers, say which there are, then answer requests until the pipe closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    calls: dict[str, Callable[[np.ndarray], object]] = {}
    missing: dict[str, str] = {}
    for peer in only:
        try:
            own = peer == "EfficientAD"
            title = f"{peer} ({'its own PDN' if own else backbone})"
            model = build(peer, backbone, size)
        except Exception as error:
            missing[title] = _reason(error)
            continue
        calls[f"{title}, PyTorch"] = _torch_call(model)
        try:
            calls[f"{title}, OpenVINO"] = _openvino_call(model, size, Path.cwd() / peer.replace(" ", "_"))
        except Exception as error:
            missing[f"{title}, OpenVINO"] = _reason(error)
    image = np.zeros((1, size, size, 3), np.uint8)
    for name in list(calls):
        try:
            calls[name](image)
        except Exception as error:
            missing[name] = _reason(error)
            del calls[name]
    print(json.dumps({"names": list(calls), "missing": missing}), file=answers, flush=True)
    loaded: dict[str, np.ndarray] = {}
    for line in sys.stdin:
        request = json.loads(line)
        images = loaded.setdefault(request["images"], np.load(request["images"]))
        try:
            document: dict[str, Any] = {"seconds": _timed(calls[request["name"]])(images)}
        except Exception as error:
            document = {"error": _reason(error)}
        print(json.dumps(document), file=answers, flush=True)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200] if lines else ''}"


def build(peer: str, backbone: str, size: int) -> Any:
    """A model of anomalib, in eval mode, fitted as far as its speed depends on it."""
    import timm
    import torch
    from anomalib import models

    create = timm.create_model

    def without_weights(*args: Any, **kwargs: Any) -> Any:
        return create(*args, **{**kwargs, "pretrained": False})

    timm.create_model = without_weights  # no hub here
    torch.manual_seed(0)
    quiet = {"evaluator": False, "visualizer": False}
    layers = LAYERS.get(backbone, ["layer1", "layer2", "layer3"])
    if peer == "PaDiM":
        model: Any = models.Padim(backbone=backbone, layers=layers, n_features=100, **quiet)
    elif peer == "PatchCore":
        model = models.Patchcore(backbone=backbone, layers=layers[1:], **quiet)
    elif peer == "STFPM":
        model = models.Stfpm(backbone=backbone, layers=layers, **quiet)
    elif peer == "EfficientAD":
        model = models.EfficientAd(**quiet)
    else:
        model = models.ReverseDistillation(backbone=backbone, layers=layers, **quiet)
    if peer in ("PaDiM", "PatchCore"):
        _fit(model.model, size)
    return model.eval()


def _fit(model: Any, size: int) -> None:
    """A Gaussian, or a memory bank of `BANK` vectors, from a few random images."""
    import torch

    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.rand(4, 3, size, size))
    if hasattr(model, "gaussian"):
        model.fit()
    else:
        channels = model.memory_bank[-1].shape[-1] if len(model.memory_bank) else model.embedding_store[-1].shape[-1]
        model.memory_bank = torch.randn(BANK, channels)
    model.eval()


def _torch_call(model: Any) -> Callable[[np.ndarray], object]:
    import torch

    def call(images: np.ndarray) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)

    return call


def _openvino_call(model: Any, size: int, folder: Path) -> Callable[[np.ndarray], object]:
    """The inferencer of an export; image by image where the export takes one batch size only (PatchCore's does)."""
    from anomalib.deploy import OpenVINOInferencer

    inferencer = OpenVINOInferencer(model.to_openvino(folder, input_size=(size, size)), device="CPU")
    one = np.zeros((1, size, size, 3), np.uint8)
    try:
        inferencer.predict(one)
        return inferencer.predict
    except RuntimeError:
        fixed = {"dynamic_axes": {}, "dynamic_shapes": None}
        file = model.to_openvino(folder / "fixed", input_size=(size, size), onnx_kwargs=fixed)
    inferencer = OpenVINOInferencer(file, device="CPU")
    inferencer.predict(one)
    return lambda images: [inferencer.predict(image[None]) for image in images]


if __name__ == "__main__":
    main()
