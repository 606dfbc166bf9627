"""Metrics of a detector on a labelled data set: ranking metrics, and rates at the calibrated threshold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from cdo_ad.data.decode import read_mask
from cdo_ad.data.reading import read_ahead
from cdo_ad.errors import DataError, ImageError
from cdo_ad.evaluation.metrics import PixelMetrics, decision_metrics, image_metrics
from cdo_ad.evaluation.pixel_histogram import PixelHistograms
from cdo_ad.files import finite
from cdo_ad.inference.detector import Detector, resize_map
from cdo_ad.progress import progress_bar
from cdo_ad.types import GOOD, MaskArray, Sample

__all__ = ["Evaluation", "Scored", "evaluate"]

PIXEL_NAMES = ("auroc", "ap", "f1max", "aupro_0.3", "aupro_0.05")


@dataclass(frozen=True, slots=True)
class Scored:
    """One image of an evaluation."""

    sample: Sample
    score: float
    p_value: float
    anomalous: bool
    """The decision; `sample.anomalous` is the truth."""


@dataclass(frozen=True)
class Evaluation:
    """The figures, and the images they were made from."""

    metrics: dict[str, Any]
    """`image`, `pixel`, `decision`, `per_type`, `n`; a figure that is undefined is NaN (null in JSON)."""
    scored: tuple[Scored, ...]
    failures: tuple[str, ...] = ()
    """One line for each image or mask that could not be read; those are in no figure."""
    pixel: PixelMetrics | None = field(default=None, repr=False)
    """The pixel metrics' state, for curves; None where no image has a mask."""
    counts: PixelHistograms | None = field(default=None, repr=False)
    """Pixels by score of each image, numbered as in `scored`; only those with a mask, and good ones."""

    def to_json(self) -> dict[str, Any]:
        """The figures as a plain dictionary; NaN becomes None."""
        return {key: finite(value) for key, value in self.metrics.items()}


def evaluate(detector: Detector, samples: Sequence[Sample], *, at_size: tuple[int, int] | None = None) -> Evaluation:
    """Judge the test images and compare with the data set's labels and masks.

    The label of an image is the data set's; pixels are compared at the image's own size. A defect image without a
    mask counts in the image metrics only. Defects that the run has learned from are left out and counted in
    `metrics["n"]["learned"]`.

    Args:
        detector: the calibrated model.
        samples: the data set; images of other splits than `test` are passed over.
        at_size: (H, W) in pixels to compare maps and masks at instead; a mask pixel there is a defect when any part
            of it is.

    Raises:
        DataError: when there is no test image, or none can be read.
    """
    learned = _learned(detector)
    there = [s for s in samples if s.split == "test"]
    test = [s for s in there if str(s.path.resolve()) not in learned]
    if not test:
        raise DataError("there is no test image: put images in test/good and test/<defect>, see the README")
    pixel = {name: PixelMetrics() for name in sorted({s.defect_type for s in test})}
    counts = PixelHistograms()
    scored: list[Scored] = []
    failures: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=len(test), note="")
        for sample, (path, image) in zip(test, read_ahead(s.path for s in test), strict=True):
            bar.update(task, advance=1)
            try:
                if isinstance(image, ImageError):
                    raise image
                mask = _mask(sample, (image.shape[0], image.shape[1]), at_size)
            except DataError as error:
                failures.append(str(error))
                continue
            category = sample.category if sample.category in detector.categories else None
            prediction = detector.predict(image, category=category, path=str(path), regions=False)
            scored.append(Scored(sample, prediction.score, prediction.p_value, prediction.anomalous))
            if mask is not None:
                anomaly_map = prediction.anomaly_map if at_size is None else resize_map(prediction.anomaly_map, at_size)
                pixel[sample.defect_type].update(anomaly_map, mask)
                counts.add(len(scored) - 1, anomaly_map, mask)
    if not scored:
        raise DataError(f"none of the {len(test)} test images can be read; the first: {failures[0]}")
    metrics, overall = _all_metrics(scored, pixel, detector.calibration.false_alarm_rate)
    metrics["n"]["failed"] = len(failures)
    metrics["n"]["learned"] = len(there) - len(test)
    return Evaluation(metrics, tuple(scored), tuple(failures), overall, counts)


def _learned(detector: Detector) -> set[str]:
    """The defects that the run learned from (`train --defects`), by their full paths."""
    return set() if detector.bundle is None else {image for image, _ in detector.bundle.data.defects}


def _all_metrics(
    scored: Sequence[Scored], pixel: dict[str, PixelMetrics], rate: float
) -> tuple[dict[str, Any], PixelMetrics]:
    """The metrics of all images, `per_type` those of each type against the good ones; and the pixels of all."""
    overall = _merged(pixel.values())
    metrics = _metrics(scored, overall, rate)
    metrics["per_type"] = {
        name: _metrics(
            [s for s in scored if s.sample.defect_type in (GOOD, name)],
            _merged(pixel[key] for key in (GOOD, name) if key in pixel),
            rate,
        )
        for name in pixel
        if name != GOOD
    }
    return metrics, overall


def _merged(parts: Iterable[PixelMetrics]) -> PixelMetrics:
    total = PixelMetrics()
    for part in parts:
        total.merge(part)
    return total


def _mask(sample: Sample, size: tuple[int, int], at_size: tuple[int, int] | None) -> MaskArray | None:
    """The pixels of the defect; all False for a good image, None for a defect without a mask."""
    if sample.mask_path is not None:
        mask = read_mask(sample.mask_path, size)
    elif sample.anomalous:
        return None
    else:
        mask = np.zeros(size, dtype=np.bool_)
    if at_size is None or mask.shape == at_size:
        return mask
    share = Image.fromarray(mask.astype(np.float32)).resize((at_size[1], at_size[0]), Image.Resampling.BOX)
    return np.asarray(share) > 0


def _metrics(scored: Sequence[Scored], pixel: PixelMetrics, rate: float) -> dict[str, Any]:
    labels = np.array([s.sample.anomalous for s in scored])
    scores = np.array([s.score for s in scored])
    return {
        "image": image_metrics(labels, scores),
        "pixel": pixel.compute(),
        "decision": decision_metrics(labels, np.array([s.anomalous for s in scored]), rate),
        "n": {"good": int((~labels).sum()), "anomalous": int(labels.sum())},
    }
