"""The detector: NumPy images in, scores, p-values, decisions, maps and regions out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.data.decode import as_rgb, read_image
from cdo_ad.errors import BundleError, ConfigError, ImageError, needs_extra
from cdo_ad.inference.engines.torch import Runtime, TorchRuntime, infer_stream, load_network
from cdo_ad.inference.regions import find_regions
from cdo_ad.types import Float32Array, Prediction

__all__ = ["BACKENDS", "Detector", "ahead", "calibration_scores", "load", "read_ahead", "resize_map"]

Item = TypeVar("Item")
Result = TypeVar("Result")

BACKENDS = ("auto", "torch", "openvino", "openvino-int8", "onnx")
SMALLEST_SIDE = 8  # pixels; less is no image of a product but a mistake


class Detector:
    """A calibrated model. Make one with `cdo_ad.load(run)`."""

    def __init__(self, runtime: Runtime, calibration: Calibration, bundle: Bundle | None = None) -> None:
        """Join an engine and the calibration made with it; `bundle` is kept for its provenance."""
        self.runtime = runtime
        self.calibration = calibration
        self.bundle = bundle

    def predict(self, image: npt.NDArray[Any], *, path: str = "", regions: bool = True) -> Prediction:
        """Judge one image.

        Args:
            image: (H, W), (H, W, 1), (H, W, 2), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 or bool.
            path: copied into the prediction.
            regions: find the connected regions of the mask.

        Raises:
            ImageError: an array that is no image, or one with a side under 8 pixels.
        """
        rgb = checked(as_rgb(image, path or "the array"), path or "the array")
        start = time.perf_counter()
        maps, scores = self.runtime.infer(rgb[None])
        return self._prediction(maps[0], float(scores[0]), rgb.shape[:2], path, regions, start)

    def predict_file(self, path: Path | str, *, regions: bool = True) -> Prediction:
        """Read and judge one file; raises ImageError, which names it, if it cannot be read."""
        return self.predict(read_image(path), path=str(path), regions=regions)

    def predict_stream(
        self, images: Iterable[tuple[str, npt.NDArray[np.uint8] | ImageError]], *, regions: bool = True
    ) -> Iterator[tuple[npt.NDArray[np.uint8], Prediction] | ImageError]:
        """Judge a stream: where the engine can, several images at a time while the next ones are decoded.

        Args:
            images: name and image, (H, W, 3) uint8 as `read_image` gives it, or the error in its place.
            regions: as in `predict`.

        Yields:
            In order, the image and what `predict` says of it (`seconds` count from when it was handed over), or the
            error.
        """
        waiting: deque[tuple[str, npt.NDArray[np.uint8] | ImageError, float]] = deque()

        def good() -> Iterator[npt.NDArray[np.uint8]]:
            for name, image in images:
                waiting.append((name, image, time.perf_counter()))
                if not isinstance(image, ImageError):
                    yield checked(image, name)

        for small, score in infer_stream(self.runtime, good()):
            name, image, start = waiting.popleft()
            while isinstance(image, ImageError):
                yield image
                name, image, start = waiting.popleft()
            yield image, self._prediction(small, score, image.shape[:2], name, regions, start)
        for _, image, _ in waiting:
            if isinstance(image, ImageError):
                yield image

    def _prediction(
        self, small: Float32Array, score: float, size: tuple[int, ...], path: str, regions: bool, start: float
    ) -> Prediction:
        score = self.calibration.settle(score)
        anomaly_map = resize_map(small, (size[0], size[1]))
        mask = anomaly_map > self.calibration.pixel_threshold
        return Prediction(
            score=score,
            p_value=self.calibration.p_value(score),
            anomalous=score > self.calibration.image_threshold,
            threshold=self.calibration.image_threshold,
            anomaly_map=anomaly_map,
            mask=mask,
            regions=find_regions(mask, anomaly_map) if regions else (),
            seconds=time.perf_counter() - start,
            path=path,
        )


def load(run: Path | str, *, backend: str = "auto", device: str = "auto", mode: str = "latency") -> Detector:
    """The detector of a run folder or of an exported model.

    Args:
        run: a folder written by `cdo-ad train`, or an exported `.xml` or `.onnx` file, which needs nothing else: no
            run folder, no torch.
        backend: `torch`; `openvino`, `openvino-int8` or `onnx` (the run's exported model of that kind); `auto`: the
            run's OpenVINO model in float32 where there is one and a CPU is to be used, else torch. An int8 model
            judges by its own calibration, which is inside its file, never by the run's.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, `mps`; what the engine offers.
        mode: of OpenVINO: `latency` or `throughput`, see `cdo_ad.inference.artifact.OpenVinoRuntime`.

    Raises:
        BundleError: a folder that is no complete run, an export that is missing or damaged.
        ConfigError: an unknown backend or mode, or a device that is not there.
        MissingExtraError: the engine is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}: choose from {', '.join(BACKENDS)}")
    if Path(run).suffix in (".xml", ".onnx") and not Path(run).is_dir():
        kind = "openvino" if Path(run).suffix == ".xml" else "onnx"
        if backend not in ("auto", kind):
            raise ConfigError(f"{run} runs with {kind}, not with {backend}: leave backend out")
        return _load_exported(Path(run), device, mode)
    bundle = read_bundle(run)
    file = _exported_file(bundle, backend, device)
    if file is not None:
        from cdo_ad.inference.artifact import load_runtime

        exported = load_runtime(file, device=device, mode=mode)
        # of one run, a later `calibrate` counts; but scores of another precision are judged by their own calibration
        exact = exported.metadata.precision == "fp32"
        return Detector(exported, bundle.calibration if exact else exported.metadata.calibration, bundle)
    runtime = TorchRuntime(load_network(bundle.config, bundle.model_file), choose_device(device))
    return Detector(runtime, bundle.calibration, bundle)


def _load_exported(file: Path, device: str, mode: str) -> Detector:
    from cdo_ad.inference.artifact import exported_bundle, load_runtime

    runtime = load_runtime(file, device=device, mode=mode)
    return Detector(runtime, runtime.metadata.calibration, exported_bundle(file, runtime.metadata))


def _exported_file(bundle: Bundle, backend: str, device: str) -> Path | None:
    """The run's exported model that is to be used; None for torch."""
    from cdo_ad.inference.artifact import FILES, INT8_FILE

    if backend == "torch":
        return None
    names = {**FILES, "auto": FILES["openvino"], "openvino-int8": INT8_FILE}
    file = bundle.path / "export" / names[backend]
    if backend == "auto":
        wanted = device in ("auto", "cpu") and file.is_file() and find_spec("openvino") is not None
        return file if wanted else None
    if not file.is_file():
        how = "openvino --int8" if backend == "openvino-int8" else backend
        raise BundleError(f"{file} is missing: make it with  cdo-ad export {bundle.path} --to {how}")
    return file


def choose_device(device: str) -> str:
    """Resolve `auto`; raises ConfigError for a device that this machine does not have."""
    with needs_extra("train", "the torch runtime"):
        import torch
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        have = ", ".join(name for name, is_there in there.items() if is_there)
        raise ConfigError(f"device {device!r} is not on this machine: it has {have}")
    return device


def resize_map(anomaly_map: Float32Array, size: tuple[int, int]) -> Float32Array:
    """Bring a map to an image's size: bilinear, half-pixel centres (antialiased where it shrinks).

    Args:
        anomaly_map: (h, w) float32.
        size: (H, W).
    """
    if anomaly_map.shape == size:
        return anomaly_map
    resized = Image.fromarray(anomaly_map).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


def checked(image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    """The image itself; raises ImageError if a side is shorter than 8 pixels."""
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels is too small: each side needs {SMALLEST_SIDE} or more")
    return image


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 2) -> Iterator[tuple[Item, Result]]:
    """Call a function of each item in threads, a few ahead of the consumer; yields (item, result) in order."""
    queue: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            queue.append((item, pool.submit(function, item)))
            if len(queue) > 2 * threads:
                first, future = queue.popleft()
                yield first, future.result()
        for first, future in queue:
            yield first, future.result()


def read_ahead(paths: Iterable[Path], threads: int = 2) -> Iterator[tuple[Path, npt.NDArray[np.uint8] | ImageError]]:
    """Decode files in threads, a few ahead of the consumer, in order; a file that fails yields its error."""
    return ahead(_read, paths, threads)


def _read(path: Path) -> npt.NDArray[np.uint8] | ImageError:
    try:
        return checked(read_image(path), str(path))
    except ImageError as error:
        return error


def calibration_scores(runtime: Runtime, paths: Sequence[Path]) -> tuple[list[float], list[float]]:
    """Image scores and largest map values of good images, one image at a time, as new images come.

    Raises:
        ImageError: an image that cannot be read.
    """
    scores, maxima = [], []
    for _, image in read_ahead(paths):
        if isinstance(image, ImageError):
            raise image
        maps, score = runtime.infer(image[None])
        scores.append(float(score[0]))
        maxima.append(float(maps.max()))
    return scores, maxima
