"""What an evaluation leaves in a run folder, written and read.

metrics.json   the metrics, the thresholds, which images and weights they are of, checksums of the other two
images.csv     path, type, category, score, p-value and decision of each image
pixels.npz     counts of pixels by score of each image, for intervals (`cdo_ad.evaluation.pixel_counts`)
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cdo_ad.bundle import Bundle, locked, read_bundle, read_json, write_run
from cdo_ad.data.split import fingerprint
from cdo_ad.errors import BundleError
from cdo_ad.evaluation.evaluate import Evaluation, evaluate
from cdo_ad.evaluation.judge import read_samples
from cdo_ad.evaluation.pixel_counts import PixelCounts
from cdo_ad.evaluation.schema import EvaluatedData, MetricsFile
from cdo_ad.files import problem, relative_name, write_bytes, write_json
from cdo_ad.inference.detector import load
from cdo_ad.types import GOOD, Sample

__all__ = [
    "Results", "describe", "evaluate_run", "images_csv", "images_fingerprint", "measure_run", "read_metrics",
    "read_results", "write_results",
]  # fmt: skip

METRICS, IMAGES, PIXELS = "metrics.json", "images.csv", "pixels.npz"
COLUMNS = ("path", "defect_type", "category", "score", "p_value", "anomalous")


@dataclass(frozen=True)
class Results:
    """The evaluation of a run, as it lies in its folder."""

    bundle: Bundle
    metrics: MetricsFile
    paths: tuple[str, ...]
    """(N,) names of the images inside the data set."""
    types: tuple[str, ...]
    """(N,) `good` or the type of the defect."""
    categories: tuple[str, ...]
    """(N,) the category that each image was judged as."""
    scores: npt.NDArray[np.float64]
    """(N,) image scores."""
    p_values: npt.NDArray[np.float64]
    """(N,) in (0, 1]."""
    decisions: npt.NDArray[np.bool_]
    """(N,) True where the run called the image anomalous."""
    pixels: PixelCounts | None
    """None where no image has a mask."""

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """(N,) the truth."""
        return np.array([kind != GOOD for kind in self.types])

    @property
    def thresholds(self) -> npt.NDArray[np.float64]:
        """(N,) the image threshold that decided on each image."""
        known = self.metrics.thresholds
        only = next(iter(known.values()))
        return np.array([only if len(known) == 1 else known[name] for name in self.categories])

    def in_order(self, paths: tuple[str, ...]) -> Results:
        """The same results with the images in another order."""
        if self.paths == paths:
            return self
        place = {path: i for i, path in enumerate(self.paths)}
        order = np.array([place[path] for path in paths])
        return replace(
            self,
            paths=paths,
            types=tuple(self.types[i] for i in order),
            categories=tuple(self.categories[i] for i in order),
            scores=self.scores[order],
            p_values=self.p_values[order],
            decisions=self.decisions[order],
            pixels=None if self.pixels is None else self.pixels.chosen(order),
        )


def evaluate_run(
    run: Path | str,
    data: Path | str,
    *,
    layout: str = "auto",
    category: str | None = None,
    at_size: tuple[int, int] | None = None,
    false_alarm_rate: float | None = None,
    device: str = "auto",
) -> tuple[Evaluation, MetricsFile]:
    """Evaluate a run on a data set and write the results into its folder.

    Args:
        run: the run folder.
        data: the data set's folder.
        layout: see `cdo_ad.read_dataset`.
        category: only this one; None for all that the run and the data set have.
        at_size: see `cdo_ad.evaluation.evaluate.evaluate`.
        false_alarm_rate: another one than that of the run; the run's thresholds stay.
        device: see `cdo_ad.load`.

    Raises:
        BundleError, DataError, ConfigError, MissingExtraError, OutputError: as the functions that it calls.
    """
    found = measure_run(
        run, data, layout=layout, category=category, at_size=at_size, false_alarm_rate=false_alarm_rate, device=device
    )
    return found, write_results(run, found, data)


def measure_run(
    run: Path | str,
    data: Path | str,
    *,
    layout: str = "auto",
    category: str | None = None,
    at_size: tuple[int, int] | None = None,
    false_alarm_rate: float | None = None,
    device: str = "auto",
) -> Evaluation:
    """As `evaluate_run`, but nothing is written."""
    detector = load(run, device=device)
    if false_alarm_rate is not None:
        detector = detector.at_rate(false_alarm_rate)
    return evaluate(detector, read_samples(detector, data, layout, category), at_size=at_size)


def write_results(run: Path | str, evaluation: Evaluation, root: Path | str) -> MetricsFile:
    """Write the three files, all or none.

    Args:
        run: the run folder.
        evaluation: of its detector.
        root: the data set's folder.

    Raises:
        BundleError: the evaluation is of other weights. BusyError: another process is writing there.
        OutputError: the folder cannot be written to.
    """
    run = Path(run)
    document, files = describe(evaluation, root)
    if read_bundle(run).weights_sha256 != evaluation.weights_sha256:
        raise BundleError(f"{run}: the evaluation is of other weights than the run's: evaluate it again")
    with locked(run), write_run(run) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)
        write_json(folder / METRICS, document.to_json())
    return document


def describe(evaluation: Evaluation, root: Path | str) -> tuple[MetricsFile, dict[str, bytes]]:
    """What `write_results` writes: `metrics.json`, and the contents of the files beside it by name."""
    root = Path(root)
    images, pixels = images_csv(evaluation, root).encode(), evaluation.counts.to_bytes()
    files = {IMAGES: images, **({PIXELS: pixels} if len(evaluation.counts) else {})}
    document = MetricsFile(
        **dict(evaluation.metrics),
        weights_sha256=evaluation.weights_sha256,
        thresholds=evaluation.thresholds,
        data=EvaluatedData(
            root=str(root.resolve()), fingerprints=_fingerprints(evaluation), at_size=evaluation.at_size
        ),
        failed=len(evaluation.failures),
        learned=evaluation.learned,
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    return document, files


def _fingerprints(evaluation: Evaluation) -> dict[str, str]:
    """Of each category's images, wherever the data set lies."""
    by_category: dict[str, list[Sample]] = {}
    for item in evaluation.scored:
        by_category.setdefault(item.category, []).append(item.sample)
    return {name: images_fingerprint(samples) for name, samples in by_category.items()}


def images_fingerprint(samples: Sequence[Sample]) -> str:
    """Of images that were evaluated, as `metrics.json` holds it: named relative to their common folder.

    Raises:
        DataError: a file cannot be read.
    """
    return fingerprint(samples, os.path.commonpath([sample.path.parent.absolute() for sample in samples]))


def images_csv(evaluation: Evaluation, root: Path) -> str:
    """A line for each image: path, type, category, score, p-value, decision; for spreadsheets and reports."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in evaluation.scored:
        name = relative_name(item.sample.path, root)
        numbers = repr(item.score), repr(item.p_value), int(item.anomalous)
        writer.writerow((name, item.sample.defect_type, item.category, *numbers))
    return buffer.getvalue()


def read_results(run: Path | str) -> Results:
    """Read the evaluation of a run.

    Raises:
        BundleError: no complete run folder, one that was not evaluated, or files that are damaged or do not belong
            together.
    """
    bundle = read_bundle(run)
    metrics = read_metrics(bundle)
    for name, digest in metrics.files.items():
        try:
            content = (bundle.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{bundle.path / name} cannot be read: {error.strerror}; {_again(bundle)}") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise BundleError(f"{bundle.path / name} has changed since the evaluation: {_again(bundle)}")
    rows = list(csv.DictReader(io.StringIO((bundle.path / IMAGES).read_text(encoding="utf-8"), newline="")))
    paths, types, categories = (tuple(row[name] for row in rows) for name in COLUMNS[:3])
    scores, p_values, decisions = (np.array([float(row[name]) for row in rows]) for name in COLUMNS[3:])
    pixels = PixelCounts.load(bundle.path / PIXELS, len(rows)) if PIXELS in metrics.files else None
    return Results(bundle, metrics, paths, types, categories, scores, p_values, decisions > 0, pixels)


def read_metrics(bundle: Bundle) -> MetricsFile:
    """What a run's `metrics.json` holds.

    Raises:
        BundleError: the run was not evaluated, or with other weights, or the file is damaged.
    """
    file = bundle.path / METRICS
    if not file.is_file():
        raise BundleError(f"{bundle.path} was not evaluated yet: {_again(bundle)}")
    try:
        metrics = MetricsFile.from_json(read_json(file))
    except ValidationError as error:
        raise BundleError(f"{file} is damaged ({problem(error)}): {_again(bundle)}") from error
    if metrics.weights_sha256 != bundle.weights_sha256:
        raise BundleError(f"{bundle.path} was evaluated with other weights: {_again(bundle)}")
    return metrics


def _again(bundle: Bundle) -> str:
    return f"run  cdo-ad evaluate {bundle.path} DATA"
