"""Metrics of a detector on a labelled data set: ranking metrics, and rates at the calibrated thresholds.

`Evaluator` adds up what `cdo_ad.evaluation.judge` yields; evaluation and report share both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from cdo_ad.errors import DataError
from cdo_ad.evaluation.judge import Judged, judge
from cdo_ad.evaluation.metrics import PixelMetrics, decision_metrics, image_metrics, require_intervals
from cdo_ad.evaluation.pixel_counts import PixelCounter
from cdo_ad.evaluation.schema import CategoryMetrics, Count, Decisions, Metrics, PixelRanking, Ranking, TypeMetrics
from cdo_ad.inference.detector import Detector
from cdo_ad.inference.maps import resize_map
from cdo_ad.types import GOOD, MaskArray, Prediction, Sample

__all__ = ["Evaluation", "Evaluator", "Scored", "evaluate"]

MEMORY = 2 << 30
"""Bytes for the pixel metrics of one type of defect; several categories share it."""
LEAST_MEMORY = 64 << 20


@dataclass(frozen=True, slots=True)
class Scored:
    """One image of an evaluation."""

    sample: Sample
    category: str
    """The category that it was judged as."""
    score: float
    p_value: float
    anomalous: bool
    """The decision; `sample.anomalous` is the truth."""
    sentence: str = ""

    @classmethod
    def of(cls, sample: Sample, prediction: Prediction) -> Scored:
        """What a prediction says of a sample."""
        return cls(
            sample,
            prediction.category or sample.category,
            prediction.score,
            prediction.p_value,
            prediction.anomalous,
            prediction.sentence,
        )


@dataclass(frozen=True)
class Evaluation:
    """The metrics, and the images they were made from."""

    metrics: Metrics
    scored: tuple[Scored, ...]
    failures: tuple[str, ...]
    """One line for each image or mask that could not be read; those are in no metric."""
    learned: int
    """Defects that the run has learned from; they are in no metric."""
    thresholds: dict[str, float]
    """The image thresholds that decided, by the run's categories."""
    weights_sha256: str
    """Of the weights that were evaluated."""
    at_size: tuple[int, int] | None
    """(H, W) at which pixels were compared; None for the images' own size."""
    pixels: dict[str, PixelMetrics] = field(repr=False)
    """By category, for curves."""
    counts: PixelCounter = field(repr=False)
    """Pixels by score of each image, numbered as in `scored`."""


def evaluate(detector: Detector, samples: Sequence[Sample], *, at_size: tuple[int, int] | None = None) -> Evaluation:
    """Judge the test images and compare with the data set's labels and masks.

    The label of an image is the data set's; pixels are compared at the image's own size. A defect image without a
    mask counts in the image metrics only. Defects that the run has learned from are left out and counted.

    Args:
        detector: the calibrated model.
        samples: the data set; images of other splits than `test` are passed over.
        at_size: (H, W) in pixels to compare maps and masks at instead; a mask pixel there is a defect when any part
            of it is.

    Raises:
        DataError: there is no test image, or none can be read.
        MissingExtraError: the extra `evaluate` is not installed.
    """
    evaluator = Evaluator(detector, samples, at_size)
    for item in judge(detector, evaluator.test):
        evaluator.add(item)
    return evaluator.result()


class Evaluator:
    """Adds up what `judge` yields."""

    def __init__(self, detector: Detector, samples: Sequence[Sample], at_size: tuple[int, int] | None = None) -> None:
        """Start empty; arguments and errors as `evaluate`."""
        require_intervals()
        learned = set() if detector.bundle is None else {image for image, _ in detector.bundle.data.defects}
        there = [s for s in samples if s.split == "test"]
        self.test = [s for s in there if str(s.path.resolve()) not in learned]
        """The images to judge."""
        if not self.test:
            raise DataError("there is no test image: put images in test/good and test/<defect>, see the README")
        self._learned = len(there) - len(self.test)
        self._at_size = at_size
        self._detector = detector
        self._memory = max(LEAST_MEMORY, MEMORY // len(detector.categories))
        self._pixels: dict[tuple[str, str], PixelMetrics] = {}
        self._counts = PixelCounter()
        self._scored: list[Scored] = []
        self._failures: list[str] = []

    def add(self, item: Judged | str) -> None:
        """Count one image, or a failure."""
        if isinstance(item, str):
            self._failures.append(item)
            return
        found = Scored.of(item.sample, item.prediction)
        self._scored.append(found)
        if item.mask is None:
            return
        anomaly_map, mask = item.prediction.anomaly_map, item.mask
        if self._at_size is not None:
            anomaly_map, mask = resize_map(anomaly_map, self._at_size), _shrunk(mask, self._at_size)
        key = found.category, item.sample.defect_type
        inside = self._detector.region(found.category, (mask.shape[0], mask.shape[1]))
        self._pixels.setdefault(key, PixelMetrics(self._memory)).update(anomaly_map, mask, inside)
        self._counts.add(len(self._scored) - 1, anomaly_map, mask, inside)

    def result(self) -> Evaluation:
        """All metrics so far; raises DataError where no image was judged."""
        if not self._scored:
            raise DataError(f"none of the {len(self.test)} test images can be read; the first: {self._failures[0]}")
        pixels = {name: self._merged(name) for name in sorted({s.category for s in self._scored})}
        each = {name: self._of(name, pixels[name]) for name in pixels}
        metrics = Metrics(**dict(next(iter(each.values())))) if len(each) == 1 else self._overall(each)
        return Evaluation(
            metrics=metrics,
            scored=tuple(self._scored),
            failures=tuple(self._failures),
            learned=self._learned,
            thresholds={name: own.image_threshold for name, own in self._detector.calibration.categories.items()},
            weights_sha256=self._detector.calibration.weights_sha256,
            at_size=self._at_size,
            pixels=pixels,
            counts=self._counts,
        )

    def _of(self, category: str, pixels: PixelMetrics) -> CategoryMetrics:
        """The metrics of a category, and of each type of its defects against its good images."""
        own = [s for s in self._scored if s.category == category]
        kinds = sorted({s.sample.defect_type for s in own} - {GOOD})
        types = {
            kind: self._metrics([s for s in own if s.sample.defect_type in (GOOD, kind)], self._merged(category, kind))
            for kind in kinds
        }
        return CategoryMetrics(**dict(self._metrics(own, pixels)), types=types)

    def _overall(self, each: dict[str, CategoryMetrics]) -> Metrics:
        """Of several categories, which have scores on scales of their own: means over them."""
        return Metrics(
            image=Ranking(**_means([m.image for m in each.values()])),
            pixel=PixelRanking(**_means([m.pixel for m in each.values()])),
            decision=self._decisions(self._scored),
            n=_count(self._scored),
            categories=each,
        )

    def _metrics(self, scored: Sequence[Scored], pixels: PixelMetrics) -> TypeMetrics:
        scores = np.array([s.score for s in scored])
        return TypeMetrics(
            image=image_metrics(_truth(scored), scores),
            pixel=pixels.compute(),
            decision=self._decisions(scored),
            n=_count(scored),
        )

    def _decisions(self, scored: Sequence[Scored]) -> Decisions:
        return decision_metrics(
            _truth(scored), [s.anomalous for s in scored], self._detector.calibration.false_alarm_rate
        )

    def _merged(self, category: str, kind: str | None = None) -> PixelMetrics:
        """The pixels of a category; of one type of defect with those of the good images."""
        total = PixelMetrics(self._memory)
        for (name, own), part in self._pixels.items():
            if name == category and (kind is None or own in (GOOD, kind)):
                total.merge(part)
        return total


def _shrunk(mask: MaskArray, size: tuple[int, int]) -> MaskArray:
    """A mask at another size: a pixel counts when any part of it does."""
    share = Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(share) > 0


def _truth(scored: Iterable[Scored]) -> npt.NDArray[np.bool_]:
    return np.array([s.sample.anomalous for s in scored], dtype=np.bool_)


def _count(scored: Sequence[Scored]) -> Count:
    anomalous = int(_truth(scored).sum())
    return Count(good=len(scored) - anomalous, anomalous=anomalous)


def _means(rankings: Sequence[Ranking]) -> dict[str, float]:
    """Of each metric, the mean over those that have it."""
    found = {}
    for name in type(rankings[0]).model_fields:
        values = [value for ranking in rankings if (value := getattr(ranking, name)) == value]
        found[name] = float(np.mean(values)) if values else float("nan")
    return found
