"""How fast a run is on this machine: every engine it can use, measured in turns, and where the time goes.

- The plain PyTorch form (up-sampled features, NCHW memory, separate blur) is the yardstick of `ratio_to_plain`.
- Rounds go through all engines one after the other, so that what else the machine does hits all alike.
- A picture is decoded at the run's input size unless another size is asked for; times are wall times.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.data.images import decode_image, read_image
from cdo_ad.detector import resize_map
from cdo_ad.errors import needs_extra
from cdo_ad.exported import FILES, load_runtime
from cdo_ad.progress import progress_bar
from cdo_ad.provenance import versions
from cdo_ad.runtime import Runtime, TorchRuntime, load_network
from cdo_ad.types import Float32Array

with needs_extra("train", "the benchmark, whose yardstick is torch"):
    import torch
    from scipy.ndimage import gaussian_filter
    from torch.nn import functional as F

    from cdo_ad.method.discrepancy import anomaly_map, discrepancies, discrepancies_plain, image_score
    from cdo_ad.method.network import CdoNetwork
    from cdo_ad.method.resize import resize

__all__ = ["benchmark", "measure"]


class PlainRuntime:
    """The straightforward PyTorch form of the method, which everything is compared with."""

    name = "torch-plain"

    def __init__(self, network: CdoNetwork) -> None:
        """Take a network of its own: it is put into NCHW memory."""
        self.network = network.to(memory_format=torch.contiguous_format).eval()

    def infer(self, pictures: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """See `Runtime.infer`."""
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().contiguous()
            images = resize(images, self.network.image_size)
            total = sum(
                F.interpolate(d[:, None], size=self.network.image_size, mode="bilinear", align_corners=False)
                for d in discrepancies_plain(*self.network.features(images))
            )
            maps = np.asarray(total)[:, 0]
            sigma = self.network.blur_sigma
            blurred = np.stack([gaussian_filter(m, sigma) for m in maps]) if sigma > 0 else maps
            return blurred, image_score(torch.from_numpy(blurred), self.network.score_top).numpy()


def benchmark(
    run: Path | str, *, rounds: int = 30, batch: int = 8, picture_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Measure the plain form, torch, and the run's exported models.

    Args:
        run: a run folder; what `cdo-ad export` wrote there is measured too.
        rounds: measured rounds at batch 1; batches get a third as many.
        batch: pictures a batch, for the throughput.
        picture_size: (H, W) of the pictures; None for the networks' input size.

    Returns:
        `rows` (runtime, precision, form, batch, latency_ms_median, latency_ms_p99, images_per_second,
        ratio_to_plain), `stages` (milliseconds of one picture, see `stages`) and `machine`.

    Raises:
        BundleError: `run` is no complete run folder, or an exported model is damaged.
    """
    bundle = read_bundle(run)
    engines = _engines(bundle)
    picture = _picture(bundle, picture_size or bundle.config.image_size)
    rows: list[dict[str, Any]] = []
    for count, repeats in ((1, rounds), (batch, max(3, rounds // 3))):
        stack = np.repeat(picture[None], count, axis=0)
        calls = [partial(engine.infer, stack) for _, _, engine in engines]
        for (form, precision, engine), seconds in zip(engines, measure(calls, repeats), strict=True):
            rows.append(_row(engine.name, precision, form, count, seconds))
        plain = rows[-len(engines)]["images_per_second"]
        for row in rows[-len(engines) :]:
            row["ratio_to_plain"] = row["images_per_second"] / plain
    return {"rows": rows, "stages": stages(bundle, picture), "machine": machine()}


def measure(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Wall seconds of each call in each round; two rounds of warm-up before are not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=rounds + 2, note="")
        for turn in range(rounds + 2):
            for call, times in zip(calls, seconds, strict=True):
                start = time.perf_counter()
                call()
                if turn >= 2:
                    times.append(time.perf_counter() - start)
            bar.update(task, advance=1)
    return seconds


def _engines(bundle: Bundle) -> list[tuple[str, str, Runtime]]:
    """(form, precision, engine), the plain one first."""
    found: list[tuple[str, str, Runtime]] = [
        ("plain", "fp32", PlainRuntime(load_network(bundle.config, bundle.model_file))),
        ("fused", "fp32", TorchRuntime(load_network(bundle.config, bundle.model_file))),
    ]
    modules = {".xml": "openvino", ".onnx": "onnxruntime"}
    for name in (*FILES.values(), "model_int8.xml"):
        file = bundle.path / "export" / name
        if file.is_file() and find_spec(modules[file.suffix]) is not None:
            engine = load_runtime(file, device="cpu")
            found.append(("fused", engine.metadata.precision, engine))
            if file.suffix == ".xml":
                wide = load_runtime(file, device="cpu", mode="throughput")
                found.append(("fused-throughput", engine.metadata.precision, _Streamed(wide)))
    return found


class _Streamed:
    """An engine that is given the pictures of a batch one by one, several in flight."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.name: str = engine.name

    def infer(self, pictures: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        results = list(self.engine.infer_many(pictures))
        return np.stack([m for m, _ in results]), np.array([s for _, s in results], np.float32)


def _row(name: str, precision: str, form: str, batch: int, seconds: list[float]) -> dict[str, Any]:
    median = float(np.median(seconds))
    return {
        "runtime": name,
        "precision": precision,
        "form": form,
        "batch": batch,
        "latency_ms_median": 1e3 * median,
        "latency_ms_p99": 1e3 * float(np.percentile(seconds, 99)),
        "images_per_second": batch / median,
    }


def _picture(bundle: Bundle, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A calibration picture at that size; noise where none is left on this machine."""
    for path in bundle.calibration_paths:
        if path.is_file():
            return np.asarray(Image.fromarray(read_image(path)).resize((size[1], size[0])))
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def stages(bundle: Bundle, picture: npt.NDArray[np.uint8], rounds: int = 10) -> dict[str, float]:
    """Median milliseconds of each stage of one picture in torch.

    Returns:
        `decode_ms` (JPEG at quality 95), `resize_ms`, `networks_ms`, `discrepancy_ms`, `map_ms` (up-sampling and blur,
        one matrix product), `score_ms`, `to_picture_size_ms`, and `networks_share` of their sum.
    """
    network = load_network(bundle.config, bundle.model_file).to(memory_format=torch.channels_last)
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    size = bundle.config.image_size
    with torch.inference_mode():
        images = torch.from_numpy(picture.copy())[None].permute(0, 3, 1, 2)
        small = resize(images.float(), size).contiguous(memory_format=torch.channels_last)
        features = network.features(small)
        levels = discrepancies(*features)
        maps = anomaly_map(levels, size, network.blur_sigma)
        steps: dict[str, Callable[[], object]] = {
            "decode_ms": lambda: decode_image(data),
            "resize_ms": lambda: resize(images.float(), size),
            "networks_ms": lambda: network.features(small),
            "discrepancy_ms": lambda: discrepancies(*features),
            "map_ms": lambda: anomaly_map(levels, size, network.blur_sigma),
            "score_ms": lambda: image_score(maps, network.score_top),
            "to_picture_size_ms": lambda: resize_map(maps[0].numpy(), (picture.shape[0], picture.shape[1])),
        }
        times = measure(list(steps.values()), rounds)
    result = {name: 1e3 * float(np.median(seconds)) for name, seconds in zip(steps, times, strict=True)}
    result["networks_share"] = result["networks_ms"] / sum(result.values())
    return result


def machine() -> dict[str, Any]:
    """Processor, cores, load, memory at its peak (MiB, of this process) and versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads_torch": torch.get_num_threads(),
        "peak_memory_mib": _peak_memory(),
        "versions": versions(),
    }


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
