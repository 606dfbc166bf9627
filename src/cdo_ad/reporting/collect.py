"""What a report shows of images: each is judged once, and its thumbnails and branch maps are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cdo_ad.data.surface import read_points, read_surface, require_xyz, to_surface
from cdo_ad.errors import DataError
from cdo_ad.evaluation.evaluate import Evaluator, Scored
from cdo_ad.evaluation.judge import judge
from cdo_ad.evaluation.metrics import rate_of
from cdo_ad.evaluation.schema import Rate
from cdo_ad.inference.detector import Detector
from cdo_ad.inference.engines.torch import TorchEngine
from cdo_ad.inference.maps import resize_map
from cdo_ad.inference.overlay import overlay
from cdo_ad.reporting.distributions import Distributions
from cdo_ad.reporting.thumbnails import thumbnails
from cdo_ad.types import Float32Array, MaskArray, Prediction, Sample

__all__ = ["FUSED", "Collected", "SyntheticPower", "branch_maps", "collect", "synthetic_power", "with_noise"]

FUSED = "anomaly map"
"""Name of the map that decides, beside those of the branches."""


@dataclass
class Collected:
    """What is kept of a data set's images."""

    scored: list[Scored] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    thumbnails: dict[Path, dict[str, str]] = field(default_factory=dict)
    """By the image's file."""
    distributions: dict[str, Distributions] = field(default_factory=dict)
    """Values of normal and anomalous pixels, by category."""


def collect(detector: Detector, samples: Sequence[Sample], budget: int, evaluator: Evaluator | None) -> Collected:
    """Judge images and keep what the page shows of them.

    Args:
        detector: the calibrated model.
        samples: the images.
        budget: bytes that the thumbnails of one image may take.
        evaluator: adds up the metrics of the same images; None where they have no labels.
    """
    found = Collected()
    for item in judge(detector, samples, regions=True):
        if evaluator is not None:
            evaluator.add(item)
        if isinstance(item, str):
            found.failures.append(item)
            continue
        scored = Scored.of(item.sample, item.prediction)
        found.scored.append(scored)
        pixel_threshold = detector.calibration.of(item.prediction.category).pixel_threshold
        drawn = overlay(item.image, item.prediction, pixel_threshold)
        shown = item.mask if item.sample.mask_path is not None else None
        found.thumbnails[item.sample.path] = thumbnails(item.image, drawn, shown, budget)
        if item.mask is not None:
            size = detector.surface_size
            surface = None if size is None else read_surface(item.sample.path, size, item.sample.xyz_path)
            maps = branch_maps(detector, item.image, item.prediction, surface)
            found.distributions.setdefault(scored.category, Distributions()).add(maps, item.mask)
    return found


def branch_maps(
    detector: Detector, image: npt.NDArray[np.uint8], prediction: Prediction, surface: Float32Array | None = None
) -> dict[str, Float32Array]:
    """The weighted map of each branch, on its own grid, and the anomaly map at the size of the finest.

    Engines other than torch give the anomaly map alone.

    Args:
        detector: the calibrated model.
        image: (H, W, 3) uint8 RGB.
        prediction: of this image.
        surface: of this image, see `cdo_ad.data.surface`, where the model looks at depth.
    """
    if not isinstance(detector.engine, TorchEngine):
        return {FUSED: prediction.anomaly_map}
    maps = detector.engine.explain(image, detector.categories.index(prediction.category), surface)
    height, width = max((values.shape for values in maps.values()), key=lambda shape: shape[0] * shape[1])
    return {**maps, FUSED: resize_map(prediction.anomaly_map, (height, width))}


@dataclass(frozen=True)
class SyntheticPower:
    """What the detector does with synthetic anomalies on good images."""

    rate: Rate
    """Share of the images with noise that are called anomalous, with its 95 % interval."""
    distributions: Distributions = field(repr=False)


def synthetic_power(
    detector: Detector, category: str, size: tuple[int, int], paths: Iterable[Path], seed: int = 0
) -> SyntheticPower | None:
    """Put white noise, the training's synthetic anomaly, on good images and judge them.

    Args:
        detector: the calibrated model.
        category: of the images.
        size: (H, W) of the model's input.
        paths: the good images; those that cannot be read are passed over.
        seed: of the noise.

    Returns:
        None where no image can be read, or the engine is not torch, which draws the noise.
    """
    if not isinstance(detector.engine, TorchEngine):
        return None
    distributions, depth = Distributions(), detector.surface_size
    found = total = 0
    for index, path in enumerate(paths):
        try:
            image, mask = with_noise(path, size, seed, index)
            points = None if depth is None else read_points(require_xyz(path))
            surface = None if depth is None or points is None else to_surface(points, depth)
        except DataError:
            continue
        prediction = detector.predict(image, category=category, regions=False, xyz=points)
        distributions.add(branch_maps(detector, image, prediction, surface), mask)
        found += prediction.anomalous
        total += 1
    return SyntheticPower(rate_of(found, total), distributions) if total else None


def with_noise(path: Path, size: tuple[int, int], seed: int, index: int) -> tuple[npt.NDArray[np.uint8], MaskArray]:
    """A good image with one to four rectangles of white noise (a draw without any is drawn again).

    Args:
        path: its file.
        size: (H, W) to bring it to.
        seed: of the noise.
        index: of the image; each has noise of its own.

    Returns:
        The image (H, W, 3) uint8 and the mask of the noise (H, W) bool.
    """
    from cdo_ad.data.store import load_image
    from cdo_ad.method.white_noise import image_seed, white_noise

    planes = load_image(path, size)[None].round().clamp(0, 255).byte()
    for attempt in range(100):
        noisy, mask = white_noise(planes, [image_seed(seed, attempt, index)])
        if bool(mask.any()):
            break
    return np.ascontiguousarray(noisy[0].permute(1, 2, 0).numpy()), mask[0].numpy()
