"""Figures of a detector on a labelled data set: ranking metrics, and rates at the calibrated threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdo_ad.data.images import read_mask
from cdo_ad.detector import Detector, read_ahead, resize_map
from cdo_ad.errors import DataError, ImageError
from cdo_ad.metrics import PixelMetrics, decision_metrics, image_metrics
from cdo_ad.progress import progress_bar
from cdo_ad.types import GOOD, MaskArray, Sample

__all__ = ["Evaluation", "Scored", "evaluate"]

PIXEL_NAMES = ("auroc", "ap", "f1max", "aupro_0.3", "aupro_0.05")


@dataclass(frozen=True, slots=True)
class Scored:
    """One picture of an evaluation."""

    sample: Sample
    score: float
    p_value: float
    anomalous: bool
    """The decision; `sample.anomalous` is the truth."""


@dataclass(frozen=True)
class Evaluation:
    """The figures, and the pictures they were made from."""

    figures: dict[str, Any]
    """`image`, `pixel`, `decision`, `per_type`, `n`; a figure that is undefined is NaN (null in JSON)."""
    scored: tuple[Scored, ...]
    failures: tuple[str, ...] = ()
    """One line for each picture or mask that could not be read; those are in no figure."""
    pixel: PixelMetrics | None = field(default=None, repr=False)
    """The pixel metrics' state, for curves; None where no picture has a mask."""

    def to_json(self) -> dict[str, Any]:
        """The figures as a plain dictionary; NaN becomes None."""
        cleaned = _without_nan(self.figures)
        assert isinstance(cleaned, dict)
        return cleaned


def evaluate(detector: Detector, samples: Sequence[Sample], *, at_size: tuple[int, int] | None = None) -> Evaluation:
    """Judge the test pictures and compare with the data set's labels and masks.

    The label of a picture is the data set's; pixels are compared at the picture's own size. A defect picture without a
    mask counts in the image figures only.

    Args:
        detector: the calibrated model.
        samples: the data set; pictures of other splits than `test` are passed over.
        at_size: (H, W) in pixels to compare maps and masks at instead; a mask pixel there is a defect when any part
            of it is.

    Raises:
        DataError: when there is no test picture, or none can be read.
    """
    test = [s for s in samples if s.split == "test"]
    if not test:
        raise DataError("there is no test picture: put pictures in test/good and test/<defect>, see the README")
    types = sorted({s.defect_type for s in test if s.anomalous})
    overall = PixelMetrics()
    per_type = {name: PixelMetrics() for name in types}
    scored: list[Scored] = []
    failures: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=len(test), note="")
        for sample, (path, picture) in zip(test, read_ahead(s.path for s in test), strict=True):
            bar.update(task, advance=1)
            try:
                if isinstance(picture, ImageError):
                    raise picture
                mask = _mask(sample, (picture.shape[0], picture.shape[1]), at_size)
            except DataError as error:
                failures.append(str(error))
                continue
            prediction = detector.predict(picture, path=str(path), regions=False)
            scored.append(Scored(sample, prediction.score, prediction.p_value, prediction.anomalous))
            if mask is not None:
                anomaly_map = prediction.anomaly_map if at_size is None else resize_map(prediction.anomaly_map, at_size)
                overall.update(anomaly_map, mask)
                for name in types if not sample.anomalous else [sample.defect_type]:
                    per_type[name].update(anomaly_map, mask)
    if not scored:
        raise DataError(f"none of the {len(test)} test pictures can be read; the first: {failures[0]}")
    figures = _figures(scored, overall, detector.calibration.image_threshold)
    figures["per_type"] = {
        name: _figures(
            [s for s in scored if s.sample.defect_type in (GOOD, name)], pixel, detector.calibration.image_threshold
        )
        for name, pixel in per_type.items()
    }
    figures["n"]["failed"] = len(failures)
    return Evaluation(figures, tuple(scored), tuple(failures), overall)


def _mask(sample: Sample, size: tuple[int, int], at_size: tuple[int, int] | None) -> MaskArray | None:
    """The pixels of the defect; all False for a good picture, None for a defect without a mask."""
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


def _figures(scored: Sequence[Scored], pixel: PixelMetrics, threshold: float) -> dict[str, Any]:
    labels = np.array([s.sample.anomalous for s in scored])
    scores = np.array([s.score for s in scored])
    return {
        "image": image_metrics(labels, scores),
        "pixel": pixel.compute(),
        "decision": decision_metrics(labels, scores, threshold),
        "n": {"good": int((~labels).sum()), "anomalous": int(labels.sum())},
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pictures_csv(evaluation: Evaluation, root: Path) -> str:
    """One line a picture: path, type, score, p-value, decision; for spreadsheets and reports."""
    lines = ["path,defect_type,score,p_value,anomalous"]
    for item in evaluation.scored:
        try:
            name = item.sample.path.resolve().relative_to(root.resolve()).as_posix()
        except ValueError:
            name = item.sample.path.as_posix()
        quoted = '"' + name.replace('"', '""') + '"' if set(name) & set(',"\n') else name
        lines.append(f"{quoted},{item.sample.defect_type},{item.score!r},{item.p_value!r},{int(item.anomalous)}")
    return "\n".join(lines) + "\n"
