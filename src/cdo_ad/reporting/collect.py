"""Judge the images of a data set once and keep what a page shows of each: thumbnails, scores, discrepancies."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.data.decode import read_image, read_mask
from cdo_ad.errors import DataError
from cdo_ad.evaluation.evaluate import Scored
from cdo_ad.evaluation.metrics import Rate, rate_interval
from cdo_ad.inference.detector import Detector, read_ahead, resize_map
from cdo_ad.inference.engines.torch import TorchRuntime
from cdo_ad.inference.overlay import overlay
from cdo_ad.progress import progress_bar
from cdo_ad.reporting.distributions import Distributions
from cdo_ad.types import Float32Array, MaskArray, Prediction, Sample

__all__ = ["LevelRuntime", "Recorder", "SyntheticPower", "score_good", "synthetic_power", "thumbnails"]

LARGEST_SIDE, SMALLEST_SIDE = 512, 96
QUALITY = 80


class LevelRuntime(TorchRuntime):
    """The torch engine; keeps the maps that the anomaly map of its last image is the sum of."""

    levels: dict[str, Float32Array]
    """By name (h, w), on the first level's grid; see `CdoNetwork.branches`."""

    def __init__(self, runtime: TorchRuntime) -> None:
        """Share an engine's networks."""
        super().__init__(runtime.network, runtime.device)
        self.levels = {}

    def infer(self, images: npt.NDArray[np.uint8]) -> tuple[Float32Array, Float32Array]:
        """See `Runtime.infer`."""
        import torch

        from cdo_ad.method.resize import resize

        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            small = resize(batch.permute(0, 3, 1, 2).float(), self.network.image_size)
            branches = self.network.branches(small.contiguous(memory_format=torch.channels_last))
            maps, scores = self.network.finish(list(branches.values()))
            self.levels = {name: branch[0].cpu().numpy() for name, branch in branches.items()}
            return maps.cpu().numpy(), scores.cpu().numpy()

    def maps(self, prediction: Prediction) -> dict[str, Float32Array]:
        """The levels of the last image by name, and its anomaly map at their size as `fused`."""
        height, width = next(iter(self.levels.values())).shape
        return {**self.levels, "fused": resize_map(prediction.anomaly_map, (height, width))}


class Recorder(Detector):
    """A detector that keeps, of each image that it judges, thumbnails and discrepancies."""

    def __init__(self, detector: Detector, samples: Sequence[Sample], budget: int) -> None:
        """Wrap a detector.

        Args:
            detector: the calibrated model.
            samples: the images that will be judged, for their masks.
            budget: bytes that the thumbnails of one image may take.
        """
        runtime = detector.runtime
        super().__init__(
            LevelRuntime(runtime) if isinstance(runtime, TorchRuntime) else runtime,
            detector.calibration,
            detector.bundle,
        )
        self.samples = {str(sample.path): sample for sample in samples}
        self.budget = budget
        self.thumbnails: dict[str, dict[str, str]] = {}
        self.distributions = Distributions()

    def predict(self, image: npt.NDArray[Any], *, path: str = "", regions: bool = True) -> Prediction:
        """See `Detector.predict`; the regions are always found, since the thumbnails outline them."""
        prediction = super().predict(image, path=path)
        sample = self.samples.get(path)
        mask = _mask(sample, prediction.mask.shape)
        drawn = overlay(image, prediction, self.calibration.pixel_threshold)
        self.thumbnails[path] = thumbnails(image, drawn, mask, self.budget)
        if mask is not None or (sample is not None and not sample.anomalous):
            # engines other than torch give the anomaly map alone
            fused = {"fused": prediction.anomaly_map}
            maps = self.runtime.maps(prediction) if isinstance(self.runtime, LevelRuntime) else fused
            self.distributions.add(maps, np.zeros((1, 1), np.bool_) if mask is None else mask)
        return prediction


def _mask(sample: Sample | None, shape: tuple[int, ...]) -> MaskArray | None:
    if sample is None or sample.mask_path is None:
        return None
    return read_mask(sample.mask_path, (shape[0], shape[1]))


def thumbnails(
    image: npt.NDArray[np.uint8], drawn: npt.NDArray[np.uint8], mask: MaskArray | None, budget: int
) -> dict[str, str]:
    """Data URIs of an image, its overlay and, where known, its true mask, as large as a budget allows.

    Args:
        image: (H, W, 3) uint8.
        drawn: (H, W, 3) uint8, the overlay.
        mask: (H, W) bool or None.
        budget: bytes for all of them, as written into the page; sides are never below 96 pixels.
    """
    side = min(LARGEST_SIDE, max(image.shape[:2]))
    while True:
        uris = {"image": _jpeg(image, side), "heat": _jpeg(drawn, side)}
        if mask is not None:
            uris["mask"] = _png(mask, side)
        if sum(map(len, uris.values())) <= budget or side <= SMALLEST_SIDE:
            return uris
        side = max(SMALLEST_SIDE, int(side * 0.8))


def _jpeg(image: npt.NDArray[np.uint8], side: int) -> str:
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _png(mask: MaskArray, side: int) -> str:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    image.thumbnail((side, side), Image.Resampling.BOX)
    image = image.point(lambda value: 255 if value else 0).convert("1")  # whatever is partly defect stays visible
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def score_good(recorder: Recorder, samples: Sequence[Sample]) -> tuple[list[Scored], list[str]]:
    """Judge the good images of a data set without test images; a line for each file that cannot be read."""
    found, failures = [], []
    with progress_bar() as bar:
        task = bar.add_task("judging good images", total=len(samples), note="")
        for sample, (path, image) in zip(samples, read_ahead(s.path for s in samples), strict=True):
            bar.update(task, advance=1)
            if isinstance(image, DataError):
                failures.append(str(image))
                continue
            prediction = recorder.predict(image, path=str(path))
            found.append(Scored(sample, prediction.score, prediction.p_value, prediction.anomalous))
    return found, failures


@dataclass(frozen=True)
class SyntheticPower:
    """What the detector does with synthetic anomalies on images it was not trained on."""

    rate: Rate
    """Share of the perturbed images that are called anomalous, with its 95 % interval."""
    distributions: Distributions = field(repr=False)


def synthetic_power(detector: Detector, paths: Sequence[Path], seed: int = 0) -> SyntheticPower | None:
    """Put MOM's white noise on held-out good images and judge them.

    Every image gets one to four rectangles (a draw without any is drawn again). None where no image can be read
    or the runtime has no torch networks.

    Args:
        detector: the calibrated model.
        paths: the held-out good images; missing ones are passed over.
        seed: of the noise.
    """
    if not isinstance(detector.runtime, TorchRuntime):
        return None
    runtime = LevelRuntime(detector.runtime)
    judge = Detector(runtime, detector.calibration)
    import torch

    from cdo_ad.method.resize import resize
    from cdo_ad.method.white_noise import image_seed, white_noise

    distributions = Distributions()
    found = total = 0
    for index, path in enumerate(paths):
        try:
            image = read_image(path)
        except DataError:
            continue
        batch = torch.from_numpy(image[None]).permute(0, 3, 1, 2).float()
        small = resize(batch, runtime.network.image_size).round().clamp(0, 255).to(torch.uint8)
        for attempt in range(100):
            noisy, mask = white_noise(small, [image_seed(seed, attempt, index)])
            if bool(mask.any()):
                break
        array = np.ascontiguousarray(noisy[0].permute(1, 2, 0).numpy())
        prediction = judge.predict(array, regions=False)
        distributions.add(runtime.maps(prediction), mask[0].numpy())
        found += prediction.anomalous
        total += 1
    if not total:
        return None
    low, high = rate_interval(found, total)
    rate = Rate(value=found / total, low=low, high=high, count=found, n=total)
    return SyntheticPower(rate, distributions)
