"""What int8 costs: the quantised model beside the exact one, on synthetic anomalies and on labelled images.

The good side are the scores that thresholds are made of: each by branches that have not seen the image. The anomalous
side are the run's good images with anomalies of all kinds drawn in, at contrasts as those that the branches' weights
are learned on. Both models are asked the same, each with its own thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.calibration import Calibration
from cdo_ad.data.reading import read_ahead
from cdo_ad.errors import ImageError, needs_extra
from cdo_ad.evaluation.metrics import PixelMetrics, image_metrics
from cdo_ad.inference.engines.base import UNKNOWN, Engine, Output
from cdo_ad.types import MaskArray, Sample

with needs_extra("train", "quantising a run"):
    import torch

    from cdo_ad.method.anomalies import KINDS, add_anomaly
    from cdo_ad.method.seen import CONTRAST, ImageSource
    from cdo_ad.method.white_noise import image_seed

__all__ = ["ALLOWED_FALL", "Metrics", "Quality", "Trial", "labelled_metrics", "synthetic_trial", "trial_metrics"]

ALLOWED_FALL = 0.01
"""Image AUROC and average precision of the int8 model lie at most this much below those of float32."""
TRIAL_IMAGES = 140
"""With anomalies, of all kinds and categories together."""
TURN = 2**33
"""Of the seeds: other anomalies than those that branches are fitted with."""


@dataclass(frozen=True)
class Metrics:
    """How well a model tells good and anomalous images apart; the mean over categories."""

    image_auroc: float
    ap: float
    """Average precision: of pixels on synthetic anomalies, of images on labelled ones."""
    detected: float
    """Share of the anomalous images above the threshold."""
    false_alarms: float | None = None
    """Share of the labelled good images above it."""

    def fall(self, other: Metrics) -> float:
        """How far another's AUROC or average precision lies below, at the most; negative where both are higher."""
        return max(self.image_auroc - other.image_auroc, self.ap - other.ap)


@dataclass(frozen=True)
class Quality:
    """The quantised model beside its source."""

    good: int
    """Good images, with left-out scores."""
    anomalous: int
    """Of these images with a synthetic anomaly."""
    fp32: Metrics
    int8: Metrics
    labelled: tuple[Metrics, Metrics] | None
    """Of float32 and int8, on labelled images where some were given."""
    variance_kept: float
    """Share of the features' variance that the quantised networks keep, at the level where it is least."""

    @property
    def fall(self) -> float:
        """The largest fall of AUROC or average precision; negative where int8 is better in all."""
        falls = [self.fp32.fall(self.int8)]
        return max(falls if self.labelled is None else [*falls, self.labelled[0].fall(self.labelled[1])])

    @property
    def holds(self) -> bool:
        """True when the quantised model may be offered."""
        return self.fall <= ALLOWED_FALL

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        labelled = None
        if self.labelled is not None:
            labelled = {"fp32": asdict(self.labelled[0]), "int8": asdict(self.labelled[1])}
        return {**asdict(self), "labelled": labelled, "fall": self.fall, "allowed_fall": ALLOWED_FALL}


@dataclass(frozen=True)
class Trial:
    """Images with synthetic anomalies, at the networks' size."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3) RGB."""
    masks: MaskArray
    """(N, H, W), True on the anomalies; each image has one."""
    numbers: npt.NDArray[np.int64]
    """(N,) of the images' categories."""


def synthetic_trial(images: ImageSource, numbers: npt.NDArray[np.int64], seed: int) -> Trial:
    """Good images with one anomaly each, all kinds alike; the same arguments give the same bytes.

    Args:
        images: good ones.
        numbers: (N,) of their categories.
        seed: of the anomalies.
    """
    categories = np.unique(numbers)
    count = max(1, TRIAL_IMAGES // (len(KINDS) * len(categories)))
    made, masks, shown = [], [], []
    for number in categories:
        own = np.flatnonzero(numbers == number)
        for k, kind in enumerate(KINDS):
            places = np.resize(np.roll(own, -k * count), count)  # other images for each kind, where there are enough
            planes = torch.stack([images[int(place)] for place in places])
            seeds = [image_seed(seed, TURN + k, i) for i in range(count)]
            changed, where = add_anomaly(planes, kind, seeds)
            low, high = CONTRAST
            random = torch.Generator().manual_seed(seeds[0])
            contrast = low + (high - low) * torch.rand(count, 1, 1, 1, generator=random)
            drawn = where.flatten(1).any(dim=1)
            made.append(torch.lerp(planes, changed, contrast)[drawn].round().clamp(0, 255).to(torch.uint8))
            masks.append(where[drawn])
            shown += [int(number)] * int(drawn.sum())
    pixels = torch.cat(made).permute(0, 2, 3, 1).contiguous().numpy()
    return Trial(pixels, torch.cat(masks).numpy(), np.array(shown, np.int64))


def trial_metrics(engine: Engine, calibration: Calibration, trial: Trial) -> Metrics:
    """What a model makes of a trial, against the good scores of its own calibration."""
    found = [
        engine.infer(image[None], np.array([number])) for image, number in zip(trial.images, trial.numbers, strict=True)
    ]
    histogram = PixelMetrics()
    for output, mask in zip(found, trial.masks, strict=True):
        histogram.update(output.maps[0], mask)
    scores = np.array([float(output.scores[0]) for output in found])
    aurocs, detected = [], []
    for number in np.unique(trial.numbers):
        name = list(calibration.categories)[number]
        good, bad = np.array(calibration.of(name).scores), scores[trial.numbers == number]
        aurocs.append(image_metrics(np.arange(len(good) + len(bad)) >= len(good), np.concatenate([good, bad])).auroc)
        detected.append(np.mean([calibration.decide(float(score), name) for score in bad]))
    return Metrics(float(np.mean(aurocs)), float(histogram.compute().ap), float(np.mean(detected)))


def labelled_metrics(engine: Engine, calibration: Calibration, samples: Sequence[Sample]) -> Metrics:
    """What a model makes of labelled images, good and anomalous ones; raises ImageError for one that is unreadable."""
    names = list(calibration.categories)
    found: list[Output] = []
    for sample, (_, image) in zip(samples, read_ahead(sample.path for sample in samples), strict=True):
        if isinstance(image, ImageError):
            raise image
        number = names.index(sample.category) if sample.category in names else UNKNOWN
        found.append(engine.infer(image[None], np.array([number])))
    scores = np.array([float(output.scores[0]) for output in found])
    bad = np.array([sample.anomalous for sample in samples])
    alarms = np.array(
        [calibration.decide(s, names[int(o.categories[0])]) for s, o in zip(scores.tolist(), found, strict=True)]
    )
    ranking = image_metrics(bad, scores)
    return Metrics(ranking.auroc, ranking.ap, float(alarms[bad].mean()), float(alarms[~bad].mean()))
