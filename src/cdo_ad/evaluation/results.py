"""What an evaluation leaves in a run folder, written and read: figures, one line an image, counts of pixels.

metrics.json   the figures, and which images they are of
images.csv   path, type, score, p-value and decision of each image
pixels.npz     counts of pixels by score of each image, for intervals (`cdo_ad.evaluation.pixel_histogram`)
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cdo_ad.bundle import Bundle, locked, read_bundle
from cdo_ad.data.split import fingerprint
from cdo_ad.errors import BundleError
from cdo_ad.evaluation.evaluate import Evaluation
from cdo_ad.evaluation.metrics import decision_metrics
from cdo_ad.evaluation.pixel_histogram import PixelHistograms, PixelTable
from cdo_ad.files import relative_name, write_json, write_text
from cdo_ad.types import GOOD, Sample

__all__ = ["Results", "images_csv", "read_results", "write_results"]

METRICS, IMAGES, PIXELS = "metrics.json", "images.csv", "pixels.npz"
RATES: tuple[Literal["detection_rate"], Literal["false_alarm_rate"]] = ("detection_rate", "false_alarm_rate")
COLUMNS = ("path", "defect_type", "score", "p_value", "anomalous")


@dataclass(frozen=True)
class Results:
    """The evaluation of a run, as it lies in its folder."""

    bundle: Bundle
    metrics: dict[str, Any]
    """The document of `metrics.json`."""
    paths: tuple[str, ...]
    """(N,) names of the images inside the data set."""
    types: tuple[str, ...]
    """(N,) `good` or the type of the defect."""
    scores: npt.NDArray[np.float64]
    """(N,) image scores."""
    p_values: npt.NDArray[np.float64]
    """(N,) in (0, 1]."""
    decisions: npt.NDArray[np.bool_]
    """(N,) True where the run called the image anomalous."""
    pixels: PixelTable | None
    """None where no image has a mask, or the run was evaluated by a version that did not count pixels."""

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """(N,) the truth."""
        return np.array([kind != GOOD for kind in self.types])


def write_results(
    run: Path, evaluation: Evaluation, samples: Sequence[Sample], root: Path, at_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Write the three files.

    Args:
        run: the run folder.
        evaluation: of its detector.
        samples: the data set that was evaluated; its test images are fingerprinted.
        root: the data set's folder.
        at_size: (H, W) at which pixels were compared; None for the images' own size.

    Returns:
        The document of `metrics.json`: the figures, and `data` with root, category, fingerprint and size.
    """
    test = [item.sample for item in evaluation.scored]
    document = {
        **evaluation.to_json(),
        "weights_sha256": read_bundle(run).weights_sha256,
        "data": {
            "root": str(root.resolve()),
            "category": next((sample.category for sample in samples), ""),
            "fingerprint": fingerprint(test, root),
            "at_size": None if at_size is None else list(at_size),
        },
    }
    with locked(run):
        write_json(run / METRICS, document)
        write_text(run / IMAGES, images_csv(evaluation, root))
        (run / PIXELS).unlink(missing_ok=True)
        if evaluation.counts is not None:
            evaluation.counts.save(run / PIXELS)
    return document


def images_csv(evaluation: Evaluation, root: Path) -> str:
    """One line an image: path, type, score, p-value, decision; for spreadsheets and reports."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in evaluation.scored:
        name = relative_name(item.sample.path, root)
        writer.writerow((name, item.sample.defect_type, repr(item.score), repr(item.p_value), int(item.anomalous)))
    return buffer.getvalue()


def read_results(run: Path | str) -> Results:
    """Read the evaluation of a run.

    Raises:
        BundleError: no complete run folder, or one that was not evaluated, or whose files are damaged.
    """
    bundle = read_bundle(run)
    metrics = read_metrics(bundle)
    try:
        with (bundle.path / IMAGES).open(newline="", encoding="utf-8") as lines:
            rows = [[row[name] for name in COLUMNS] for row in csv.DictReader(lines)]
        paths, types, scores, p_values, decisions = zip(*rows, strict=True)
        numbers = np.array([scores, p_values, decisions], dtype=np.float64)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path / IMAGES} cannot be read ({error}): {_again(bundle)}") from error
    file = bundle.path / PIXELS
    pixels = PixelHistograms.load(file, len(paths)) if file.is_file() else None
    results = Results(bundle, metrics, paths, types, numbers[0], numbers[1], numbers[2] > 0, pixels)
    again = decision_metrics(results.anomalous, results.decisions, metrics["decision"].get("rate", 0.0))
    if any(again[key]["count"] != metrics["decision"][key].get("count") for key in RATES):
        raise BundleError(f"{bundle.path}: metrics.json and images.csv are of two evaluations: {_again(bundle)}")
    return results


def read_metrics(bundle: Bundle) -> dict[str, Any]:
    """The document of a run's `metrics.json`; raises BundleError where the run was not evaluated."""
    file = bundle.path / METRICS
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        figures = {"image", "pixel", "decision", "per_type", "n"}
        if not isinstance(document, dict) or not figures <= document.keys():
            raise ValueError("it lacks figures")
    except FileNotFoundError as error:
        raise BundleError(f"{bundle.path} was not evaluated yet: {_again(bundle)}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}): {_again(bundle)}") from error
    return document


def _again(bundle: Bundle) -> str:
    return f"run  cdo-ad evaluate {bundle.path} DATA"
