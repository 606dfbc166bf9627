"""The detector: NumPy images in, scores, p-values, decisions, maps and regions out."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.calibration import Calibration
from cdo_ad.data.convert import as_rgb
from cdo_ad.data.decode import read_image
from cdo_ad.data.reading import require_size
from cdo_ad.data.surface import read_points, require_xyz, to_surface
from cdo_ad.errors import BundleError, CdoWarning, ConfigError, ImageError
from cdo_ad.inference.artifact import FILES, INT8_FILE, is_export
from cdo_ad.inference.engines import load_export
from cdo_ad.inference.engines.base import UNKNOWN, Engine, Given, Output, infer_with_depth, surface_size
from cdo_ad.inference.engines.tiled import tiled
from cdo_ad.inference.engines.torch import choose_device, gpu_present, load_model, torch_engine
from cdo_ad.inference.items import Item
from cdo_ad.inference.maps import resize_map
from cdo_ad.inference.regions import find_regions
from cdo_ad.region import resize_region, unpack_region
from cdo_ad.types import Float32Array, MaskArray, Prediction

__all__ = ["BACKENDS", "Detector", "load"]

BACKENDS = ("auto", "torch", "openvino", "openvino-int8", "onnx")


class Detector:
    """A calibrated model. Make one with `cdo_ad.load(run)`."""

    def __init__(self, engine: Engine, calibration: Calibration, bundle: Bundle | None = None) -> None:
        """Join an engine and the calibration that was made with its model; `bundle` is kept for its provenance."""
        self.engine = engine
        self.calibration = calibration
        self.bundle = bundle

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the model's categories; one of no name in most runs."""
        return tuple(self.calibration.categories)

    @property
    def surface_size(self) -> tuple[int, int] | None:
        """(H, W) of the surfaces that are judged with the images; None where the model looks at images alone."""
        return surface_size(self.engine)

    def at_rate(self, false_alarm_rate: float) -> Detector:
        """The same with the thresholds for another false-alarm rate; raises CalibrationError."""
        return Detector(self.engine, self.calibration.at_rate(false_alarm_rate), self.bundle)

    def predict(
        self,
        image: npt.NDArray[Any],
        *,
        category: str | None = None,
        path: str = "",
        regions: bool = True,
        xyz: npt.NDArray[np.floating] | None = None,
    ) -> Prediction:
        """Judge one image.

        Args:
            image: (H, W), (H, W, 1), (H, W, 2), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 or bool.
            category: what the image shows, in a run of several categories; None lets the model recognise it.
            path: copied into the prediction.
            regions: find the connected regions of the mask.
            xyz: (h, w, 3) float points of the same view, which a run with depth needs, see
                `cdo_ad.data.surface.to_surface`; None for a run without.

        Raises:
            ImageError: an array that is no image, or one with a side under 8 pixels; points that cannot be used.
            ConfigError: a category that the run does not have; points that are missing, or of no use to the run.
            ModelError: the model gives values that are not numbers.
        """
        name = path or "the array"
        rgb = require_size(as_rgb(image, name), name)
        number = self._number(category)
        start = time.perf_counter()
        if xyz is None:
            output = self.engine.infer(rgb[None], np.array([number], np.int64))
        else:
            output = next(infer_with_depth(self.engine, [(rgb, number, self._surface(xyz, name))]))
        return self.prediction(output, (rgb.shape[0], rgb.shape[1]), number, path=path, regions=regions, start=start)

    def predict_file(
        self,
        path: Path | str,
        *,
        category: str | None = None,
        regions: bool = True,
        xyz: Path | str | None = None,
    ) -> Prediction:
        """Read and judge one file.

        Args:
            path: the image.
            category: as in `predict`.
            regions: as in `predict`.
            xyz: its point cloud, for a run with depth; None for the one beside it, see
                `cdo_ad.data.surface.find_xyz`.

        Raises:
            ImageError: a file that cannot be read; names it.
            ConfigError, ModelError: as `predict`.
        """
        if xyz is None and self.surface_size is not None:
            xyz = require_xyz(Path(path))
        points = None if xyz is None else read_points(xyz)
        return self.predict(read_image(path), category=category, path=str(path), regions=regions, xyz=points)

    def predict_stream(
        self, items: Iterable[Item | tuple[str, npt.NDArray[Any] | ImageError]], *, regions: bool = True
    ) -> Iterator[tuple[npt.NDArray[np.uint8], Prediction] | ImageError]:
        """Judge a stream: where the engine can, several images at a time while the next ones are decoded.

        Args:
            items: images, or errors in their places; pairs of name and image where no category is known. A run with
                depth needs the surface of each, see `cdo_ad.inference.items.read_items`.
            regions: as in `predict`.

        Yields:
            In order, the image as RGB and what `predict` says of it (`seconds` count from when it was handed over), or
            the error. An array that is no image gives an error in its place and stops nothing.

        Raises:
            ConfigError, ModelError: as `predict`.
        """
        waiting: deque[tuple[str, npt.NDArray[np.uint8] | ImageError, int, float]] = deque()

        def good() -> Iterator[Given]:
            for name, image, category, surface in (Item(*item) for item in items):
                number, start = self._number(category), time.perf_counter()
                try:
                    rgb = image if isinstance(image, ImageError) else require_size(as_rgb(image, name), name)
                except ImageError as error:
                    rgb = error
                waiting.append((name, rgb, number, start))
                if not isinstance(rgb, ImageError):
                    yield rgb, number, surface

        for output in infer_with_depth(self.engine, good()):
            name, rgb, number, start = waiting.popleft()
            while isinstance(rgb, ImageError):
                yield rgb
                name, rgb, number, start = waiting.popleft()
            size = (rgb.shape[0], rgb.shape[1])
            yield rgb, self.prediction(output, size, number, path=name, regions=regions, start=start)
        for _, rgb, _, _ in waiting:
            if isinstance(rgb, ImageError):
                yield rgb

    def prediction(
        self,
        output: Output,
        size: tuple[int, int],
        given: int = UNKNOWN,
        *,
        path: str = "",
        regions: bool = True,
        start: float | None = None,
    ) -> Prediction:
        """What an engine's output for one image says.

        Args:
            output: of a batch of one.
            size: (H, W) of the image, to which the map is brought.
            given: the category's number that was handed to the engine.
            path: copied into the prediction.
            regions: find the connected regions of the mask.
            start: `time.perf_counter()` when the image was handed over; None gives 0 seconds.
        """
        category = self.categories[int(output.categories[0])]
        calibration = self.calibration
        score = calibration.settle(float(output.scores[0]), category)
        anomaly_map = resize_map(output.maps[0], size)
        mask = calibration.mark(anomaly_map, category)
        return Prediction(
            score=score,
            p_value=calibration.p_value(score, category),
            anomalous=calibration.decide(score, category),
            threshold=calibration.of(category).image_threshold,
            anomaly_map=anomaly_map,
            mask=mask,
            regions=find_regions(mask, anomaly_map) if regions else (),
            sentence=calibration.sentence(score, category),
            category=category,
            category_given=given != UNKNOWN or len(self.categories) == 1,
            seconds=0.0 if start is None else time.perf_counter() - start,
            path=path,
        )

    def region(self, category: str, size: tuple[int, int]) -> MaskArray | None:
        """(H, W) bool for an image of that size: where a category is inspected; None for everywhere."""
        if self.bundle is None:
            return None
        packed = self.bundle.model.categories[max(0, self._number(category or None))].region
        return resize_region(unpack_region(packed), size) if packed else None

    def _surface(self, xyz: npt.NDArray[np.floating], name: str) -> Float32Array:
        if self.surface_size is None:
            raise ConfigError("this run looks at images alone: leave the point cloud out, or train with depth")
        return to_surface(xyz, self.surface_size, name)

    def _number(self, category: str | None) -> int:
        if len(self.categories) == 1:
            return 0
        if category is None:
            return UNKNOWN
        if category not in self.categories:
            raise ConfigError(f"there is no category {category!r}: this run has {', '.join(self.categories)}")
        return self.categories.index(category)


def load(
    run: Path | str, *, backend: str = "auto", device: str = "auto", mode: str = "latency", threads: int | None = None
) -> Detector:
    """The detector of a run folder or of an exported model.

    Args:
        run: a folder written by `cdo-ad train`, or an exported `.xml` or `.onnx` file, which needs neither the run
            folder nor torch.
        backend: `torch`; `openvino`, `openvino-int8` or `onnx` (the run's exported model of that kind); `auto`: a GPU
            with torch where there is one, else the run's OpenVINO model in float32 where it was exported, else torch.
            An int8 model judges by its own calibration, which is inside its file, never by the run's.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, `mps`; what the engine offers.
        mode: of OpenVINO: `latency` or `throughput`, see `cdo_ad.inference.engines.openvino.OpenVinoEngine`.
        threads: of the CPU, for an exported model; None for as many as there are cores. Torch has one number of threads
            for the whole process: `torch.set_num_threads`.

    Raises:
        BundleError: a folder that is no complete run, an export that is missing, damaged or of other weights.
        ConfigError: an unknown backend or mode, or a device that is not there.
        MissingExtraError: the engine is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}: choose from {', '.join(BACKENDS)}")
    path = Path(run)
    if is_export(path):
        kind = "onnx" if path.suffix == ".onnx" else "openvino"
        if backend not in ("auto", kind):
            raise ConfigError(f"{run} runs with {kind}, not with {backend}: leave backend out")
        engine = load_export(path, device=device, mode=mode, threads=threads)
        whole = tiled(engine, engine.metadata.model)
        return Detector(whole, engine.metadata.calibration, engine.metadata.bundle(path))
    bundle = read_bundle(path)
    file = _export_to_use(bundle, backend, device)
    if file is not None:
        exported = load_export(file, device=device, mode=mode, threads=threads)
        if exported.metadata.weights_sha256 == bundle.weights_sha256:
            # a later `calibrate` of the run counts; but scores of another precision have a calibration of their own
            exact = exported.metadata.precision == "fp32"
            calibration = bundle.calibration if exact else exported.metadata.calibration
            return Detector(tiled(exported, bundle.model), calibration, bundle)
        stale = f"{file} was made from other weights than those of {path}: export the run again"
        if backend != "auto" or find_spec("torch") is None:
            raise BundleError(stale)
        warnings.warn(f"{stale}; torch judges meanwhile", CdoWarning, stacklevel=2)
    own = torch_engine(load_model(bundle), choose_device(device))
    return Detector(tiled(own, bundle.model), bundle.calibration, bundle)


def _export_to_use(bundle: Bundle, backend: str, device: str) -> Path | None:
    """The run's exported model that is to be used; None for torch."""
    if backend == "torch":
        return None
    names = {**FILES, "auto": FILES["openvino"], "openvino-int8": INT8_FILE}
    file = bundle.path / "export" / names[backend]
    if backend == "auto":
        usable = file.is_file() and find_spec("openvino") is not None
        return file if usable and (device == "cpu" or (device == "auto" and not gpu_present())) else None
    if not file.is_file():
        how = "openvino --int8" if backend == "openvino-int8" else backend
        raise BundleError(f"{file} is missing: make it with  cdo-ad export {bundle.path} --to {how}")
    return file
