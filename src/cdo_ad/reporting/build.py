"""From a run and a data set to one HTML file that needs nothing else: all numbers first, then the page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad import bundle as bundles
from cdo_ad.calibration import Calibration, conformal_threshold, images_needed
from cdo_ad.data.readers.layout import read_dataset
from cdo_ad.errors import BundleError, needs_extra
from cdo_ad.evaluation.evaluate import Evaluation, Scored, evaluate
from cdo_ad.evaluation.metrics import decision_metrics
from cdo_ad.files import relative_name
from cdo_ad.inference.detector import Detector, load
from cdo_ad.reporting.collect import Recorder, score_good, synthetic_power
from cdo_ad.reporting.page import curve, image_curves, render
from cdo_ad.sentence import sentence
from cdo_ad.types import Sample

__all__ = ["write_report"]

MOST_IMAGES = 300
"""Images in the gallery; the rest are in the figures only."""
GALLERY_BYTES = 13 * 10**6
"""Of the thumbnails together, as written; with the plotting library (4.8 MB) the page stays under 20 MB."""
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
MOST_SYNTHETIC = 100


def write_report(
    run: Path | str,
    data: Path | str | None = None,
    out: Path | str | None = None,
    *,
    layout: str = "auto",
    category: str | None = None,
    device: str = "auto",
) -> Path:
    """Judge a data set with a run's detector and write the page.

    With test images the figures are those of `cdo_ad.evaluation.evaluate`. Without, the page shows the good images' scores,
    the most unusual ones, and what the detector does with synthetic anomalies.

    Args:
        run: the run folder.
        data: the data set; default: the one that the run was trained on.
        out: the file; default `report.html` in the run folder.
        layout: see `cdo_ad.data.read_dataset`.
        category: the product; default: that of the training, if `data` is left out.
        device: see `cdo_ad.load`.

    Returns:
        The file that was written.

    Raises:
        BundleError: `run` is no complete run folder, or its data set is gone and `data` is not given.
        DataError: a data set that cannot be used.
        MissingExtraError: if the extra `report` is not installed.
    """
    with needs_extra("report", "the report"):
        import jinja2  # noqa: F401
        import plotly.offline  # noqa: F401
    detector = load(run, device=device)
    bundle = _bundle(detector)
    if data is None:
        data, category = bundle.data_root, category or bundle.provenance["data"]["category"] or None
        if not Path(data).is_dir():
            raise BundleError(f"{run}: its data set {data} is not there any more: name the data set after the run")
    samples = read_dataset(data, layout, category)
    document = collect(detector, samples, Path(data))
    target = Path(run) / "report.html" if out is None else Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render("report.html.j2", document), encoding="utf-8")
    return target


def collect(detector: Detector, samples: Sequence[Sample], root: Path) -> dict[str, Any]:
    """All that the page shows, ready for `json.dumps`."""
    bundle = _bundle(detector)
    test = [sample for sample in samples if sample.split == "test"]
    good = [sample for sample in samples if sample.split != "test"]
    shown = min(MOST_IMAGES, len(test) or len(good))
    recorder = Recorder(detector, samples, GALLERY_BYTES // max(1, shown))
    evaluation = evaluate(recorder, samples) if test else None
    if evaluation is not None:
        scored, failures = list(evaluation.scored), list(evaluation.failures)
    else:
        scored, failures = score_good(recorder, good)
    synthetic = synthetic_power(detector, bundle.calibration_paths[:MOST_SYNTHETIC])
    calibration = detector.calibration
    return {
        "title": bundle.path.resolve().name,
        "labelled": evaluation is not None,
        "threshold": calibration.image_threshold,
        "rate": calibration.false_alarm_rate,
        "calibration": list(calibration.scores),
        "metrics": None if evaluation is None else evaluation.to_json(),
        "costs": costs(calibration, scored),
        "images": gallery(scored, recorder, root),
        "curves": {} if evaluation is None else curves(evaluation),
        "distributions": {
            "real": recorder.distributions.summary(),
            "synthetic": {} if synthetic is None else synthetic.distributions.summary(),
        },
        "power": None if synthetic is None else synthetic.rate,
        "training": training(bundle.path),
        "provenance": provenance(bundle, root, samples),
        "failures": failures,
    }


def costs(calibration: Calibration, scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """What each promised false-alarm rate would cost: its threshold and the rates measured at it."""
    labels = np.array([item.sample.anomalous for item in scored])
    scores = np.array([item.score for item in scored])
    rows = []
    n = len(calibration.scores)
    for rate in sorted({*RATES, calibration.false_alarm_rate}):
        missing = images_needed(rate) - n
        row: dict[str, Any] = {"rate": rate, "missing": max(0, missing)}
        if missing <= 0:
            row.update(decision_metrics(labels, scores, conformal_threshold(calibration.scores, rate)))
        rows.append(row)
    return rows


def gallery(scored: Sequence[Scored], recorder: Recorder, root: Path) -> list[dict[str, Any]]:
    """One entry an image, largest score first; thumbnails for the most telling `MOST_IMAGES`."""
    ordered = sorted(scored, key=lambda item: -item.score)
    wrong = [item for item in ordered if item.sample.anomalous != item.anomalous]
    right = [item for item in ordered if item.sample.anomalous == item.anomalous]
    # every mistake first, then the largest and the smallest scores in turn
    telling = wrong + [right[i // 2 if i % 2 == 0 else -1 - i // 2] for i in range(len(right))]
    shown = {id(item) for item in telling[:MOST_IMAGES]}
    return [
        {
            "name": relative_name(item.sample.path, root),
            "type": item.sample.defect_type,
            "split": item.sample.split,
            "anomalous": item.sample.anomalous,
            "score": item.score,
            "p": item.p_value,
            "line": sentence(item.score, recorder.calibration),
            **(recorder.thumbnails.get(str(item.sample.path), {}) if id(item) in shown else {}),
        }
        for item in ordered
    ]


def curves(evaluation: Evaluation) -> dict[str, dict[str, list[float]]]:
    """ROC and precision-recall of images; ROC, precision-recall and PRO of pixels; those that exist."""
    labels = np.array([item.sample.anomalous for item in evaluation.scored])
    scores = np.array([item.score for item in evaluation.scored])
    found = image_curves(scores, labels)
    pixel = evaluation.pixel
    if pixel is not None:
        for name, points in (
            ("pixel_roc", pixel.roc_curve(400)),
            ("pixel_pr", pixel.pr_curve(400)),
            ("pixel_pro", pixel.pro_curve(0.3, 400)),
        ):
            if points[0].size:
                found[name] = curve(*points)
    return found


def training(run: Path) -> list[dict[str, float]]:
    """The rows of `train_log.csv`; none where it is missing."""
    file = run / bundles.LOG
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def provenance(bundle: bundles.Bundle, root: Path, samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """What was trained with what, as (name, value)."""
    about = bundle.provenance
    settings = bundle.config.to_json()
    return [
        ("run", str(bundle.path.resolve())),
        ("images judged", str(root.resolve())),
        ("images in that data set", str(len(samples))),
        ("trained on", f"{about['data']['root']} {about['data']['category']}".strip()),
        ("good images trained on", str(len(about["data"]["fit"]))),
        ("good images held out for calibration", str(len(about["data"]["calibration"]))),
        ("how they were held out", about["data"].get("split", "drawn image by image")),
        ("fingerprint of the training data", about["data"]["fingerprint"]),
        ("recipe", settings.pop("recipe")),
        ("seed", str(about["seed"])),
        ("settings", ", ".join(f"{key}={value}" for key, value in settings.items())),
        ("device", f"{about['device']} x {about['devices']}"),
        ("source revision", str(about["revision"] or "unknown")),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
    ]


def _bundle(detector: Detector) -> bundles.Bundle:
    if detector.bundle is None:
        raise BundleError("the report needs a detector that was loaded from a run: cdo_ad.load(run)")
    return detector.bundle
