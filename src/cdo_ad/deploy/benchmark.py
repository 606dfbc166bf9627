"""How fast a run is on this machine: every engine it can use, measured in turns, and where the time goes.

- The plain PyTorch form (NCHW memory, up-sampled features, a separate blur) is the yardstick of `ratio_to_plain`.
- Rounds go through all engines one after the other, so that what else the machine does hits all alike.
- Images have the run's input size unless another size is asked for, JPEG files 900 x 900; times are wall times.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.data.decode import decode_image, read_image
from cdo_ad.data.reading import ahead
from cdo_ad.errors import needs_extra
from cdo_ad.inference.artifact import FILES, INT8_FILE
from cdo_ad.inference.engines import load_export
from cdo_ad.inference.engines.base import UNKNOWN, Categories, Engine, Output, StreamingEngine, infer_stream
from cdo_ad.inference.engines.torch import TorchEngine, load_model
from cdo_ad.provenance import processors, versions

with needs_extra("train", "the benchmark, whose yardstick is torch"):
    import torch

    from cdo_ad.deploy.stages import PlainEngine, measure, stages

__all__ = ["BATCHES", "JPEG_SIZE", "Streamed", "benchmark", "best_batch"]

BATCHES = (1, 2, 4, 8, 16)
"""Batches that the best is looked for among."""
JPEG_SIZE = (900, 900)


def benchmark(
    run: Path | str, *, rounds: int = 30, batch: int | None = None, image_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Measure the plain form, torch, and the run's exported models.

    Args:
        run: a run folder; what `cdo-ad export` wrote there is measured too.
        rounds: measured rounds at batch 1; batches get a third as many.
        batch: images a batch, for the throughput; None looks for each engine's best among `BATCHES`.
        image_size: (H, W) of the images; None for the networks' input size (JPEG files: `JPEG_SIZE`).

    Returns:
        `rows` (runtime, precision, form, batch, latency_ms_median, latency_ms_p99, images_per_second,
        ratio_to_plain), `stages` (see `cdo_ad.deploy.stages.stages`) and `machine`. Rows come in three kinds, each
        with its own plain row, which `ratio_to_plain` refers to: batch 1, the best batch, and (forms that end in
        `-from-jpeg`) from a JPEG file's bytes to the decision; there the ratio of a batch is to the better plain one.

    Raises:
        BundleError: `run` is no complete run folder, or an exported model is damaged.
        ConfigError: a run that looks at depth.
    """
    bundle = read_bundle(run)
    bundle.require_images_alone("the benchmark")
    engines = _engines(bundle)
    image = _image(bundle, image_size or bundle.config.image_size)
    single = [measured for measured in engines if not measured.streamed]
    rows = _rows(single, [1] * len(single), image, rounds)
    counts = [batch or best_batch(measured.engine, image) for measured in engines]
    rows += _rows(engines, counts, image, max(3, rounds // 3))
    jpegs = _jpegs(bundle, image_size or JPEG_SIZE)
    rows += _path_rows(engines, jpegs, bundle.calibration, max(3, rounds // 3))
    return {"rows": rows, "stages": stages(bundle, jpegs[0]), "machine": machine(bundle)}


def _rows(
    engines: Sequence[Measured], counts: Sequence[int], image: npt.NDArray[np.uint8], rounds: int
) -> list[dict[str, Any]]:
    """A row an engine, the first being the plain form."""
    stacks = {count: np.repeat(image[None], count, axis=0) for count in set(counts)}
    calls = [partial(measured.engine.infer, stacks[count]) for measured, count in zip(engines, counts, strict=True)]
    seconds = measure(calls, rounds)
    rows = [_row(*each) for each in zip(engines, counts, seconds, strict=True)]
    for row in rows:
        row["ratio_to_plain"] = row["images_per_second"] / rows[0]["images_per_second"]
    return rows


def best_batch(engine: Engine, image: npt.NDArray[np.uint8]) -> int:
    """The batch of `BATCHES` with the most images a second, by the quicker of two calls."""
    speed = {}
    for count in BATCHES:
        stack = np.repeat(image[None], count, axis=0)
        engine.infer(stack)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            engine.infer(stack)
            times.append(time.perf_counter() - start)
        speed[count] = count / min(times)
    return max(speed, key=lambda count: speed[count])


def _path_rows(
    engines: Sequence[Measured], jpegs: Sequence[bytes], calibration: Calibration, rounds: int
) -> list[dict[str, Any]]:
    """From JPEG bytes to decisions, one image and all of them; only streams overlap decoding with inference."""
    names = list(calibration.categories)

    def decide(measured: Measured, data: Sequence[bytes]) -> list[bool]:
        if measured.streamed:
            images = ((image, UNKNOWN) for _, image in ahead(decode_image, data))
            outputs = list(infer_stream(measured.engine, images))
        else:
            outputs = [measured.engine.infer(np.stack([decode_image(d) for d in data]))]
        judged = [pair for output in outputs for pair in zip(output.scores, output.categories, strict=True)]
        return [calibration.decide(float(score), names[int(number)]) for score, number in judged]

    cases = [(each, count) for count in (1, len(jpegs)) for each in engines if not (each.streamed and count == 1)]
    seconds = measure([partial(decide, each, jpegs[:count]) for each, count in cases], rounds)
    rows = [_row(each, count, times) for (each, count), times in zip(cases, seconds, strict=True)]
    plain = {row["batch"]: row["images_per_second"] for row in rows if row["form"] == "plain"}
    for row in rows:
        row["ratio_to_plain"] = row["images_per_second"] / (
            plain[1] if row["batch"] == 1 or row["form"] == "plain" else max(plain.values())
        )
        row["form"] += "-from-jpeg"
    return rows


@dataclass(frozen=True)
class Measured:
    """What is measured."""

    form: str
    precision: str
    engine: Engine
    streamed: bool = False
    """It takes images one by one, with several in flight."""


def _engines(bundle: Bundle) -> list[Measured]:
    """All that this machine has, the plain one first."""
    found = [
        Measured("plain", "fp32", PlainEngine(load_model(bundle))),
        Measured("fused", "fp32", TorchEngine(load_model(bundle))),
    ]
    for file in exported_files(bundle):
        engine = load_export(file, device="cpu")
        found.append(Measured("fused", engine.metadata.precision, engine))
        if file.suffix == ".xml":
            wide = Streamed(load_export(file, device="cpu", mode="throughput"))
            found.append(Measured("fused-throughput", engine.metadata.precision, wide, streamed=True))
    return found


class Streamed:
    """An engine that is given the images of a batch one by one, several in flight."""

    def __init__(self, engine: Engine) -> None:
        """Take an engine that can have several images in flight."""
        assert isinstance(engine, StreamingEngine)
        self.infer_many = engine.infer_many
        self.name = engine.name

    def infer(self, images: npt.NDArray[np.uint8], categories: Categories | None = None) -> Output:
        """See `Engine.infer`."""
        given = np.full(len(images), UNKNOWN) if categories is None else categories
        found = list(self.infer_many(zip(images, given.tolist(), strict=True)))
        return Output(*(np.concatenate(each) for each in zip(*found, strict=True)))


def _row(measured: Measured, batch: int, seconds: list[float]) -> dict[str, Any]:
    median = float(np.median(seconds))
    return {
        "runtime": measured.engine.name,
        "precision": measured.precision,
        "form": measured.form,
        "batch": batch,
        "latency_ms_median": 1e3 * median,
        "latency_ms_p99": 1e3 * float(np.percentile(seconds, 99)),
        "images_per_second": batch / median,
    }


def _image(bundle: Bundle, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A good image at that size; noise where none is left on this machine."""
    return _some_images(bundle, size, 1)[0]


def _some_images(bundle: Bundle, size: tuple[int, int], count: int) -> list[npt.NDArray[np.uint8]]:
    there = [path for path in bundle.comparison_paths if path.is_file()]
    if not there:
        return list(np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8))
    images = [read_image(there[i % len(there)]) for i in range(count)]
    return [np.asarray(Image.fromarray(image).resize((size[1], size[0]))) for image in images]


def _jpegs(bundle: Bundle, size: tuple[int, int]) -> list[bytes]:
    """As many files' bytes as the largest batch, quality 95."""
    files = []
    for image in _some_images(bundle, size, max(BATCHES)):
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


def machine(bundle: Bundle) -> dict[str, Any]:
    """Processor, cores, load, versions, and the peak memory (MiB) of a process that judges with each engine alone."""
    return {
        "processor": _processor(),
        "cores": processors(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads_torch": torch.get_num_threads(),
        "peak_memory_mib": peak_memory(bundle),
        "versions": versions(),
    }


_CHILD = """
import pathlib, resource, sys
import numpy as np
import cdo_ad
detector = cdo_ad.load(sys.argv[1], backend=sys.argv[2], device="cpu")
for _ in range(3):
    detector.predict(np.zeros((int(sys.argv[3]), int(sys.argv[4]), 3), np.uint8))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
status = pathlib.Path("/proc/self/status")
if status.is_file():  # Linux: ru_maxrss begins with what the parent used
    peak = next(int(line.split()[1]) / 2**10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
print(peak)
"""


def peak_memory(bundle: Bundle) -> dict[str, float] | None:
    """MiB at the peak of a new process that loads the run, or one exported file alone, and judges three images.

    Returns:
        `torch` and the name of each exported file; None on Windows, which does not say.
    """
    if sys.platform == "win32":
        return None
    size = [str(side) for side in bundle.config.image_size]
    found = {}
    for source, backend in [(bundle.path, "torch"), *((file, "auto") for file in exported_files(bundle))]:
        words = [sys.executable, "-c", _CHILD, str(source), backend, *size]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found["torch" if backend == "torch" else source.name] = round(float(done.stdout.split()[-1]), 1)
    return found


def exported_files(bundle: Bundle) -> list[Path]:
    """The run's exported models whose engine is installed."""
    modules = {".xml": "openvino", ".onnx": "onnxruntime"}
    files = [bundle.path / "export" / name for name in (*FILES.values(), INT8_FILE)]
    return [file for file in files if file.is_file() and find_spec(modules[file.suffix]) is not None]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
