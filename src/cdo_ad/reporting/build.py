"""From a run and a data set to one HTML file that needs nothing else: all numbers first, then the page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cdo_ad import bundle as bundles
from cdo_ad.bundle import Bundle
from cdo_ad.calibration import Calibration
from cdo_ad.conformal import units_needed
from cdo_ad.errors import BundleError, DataError
from cdo_ad.evaluation import curves
from cdo_ad.evaluation.evaluate import Evaluation, Evaluator, Scored
from cdo_ad.evaluation.judge import read_samples
from cdo_ad.evaluation.metrics import decision_metrics, image_bins
from cdo_ad.evaluation.schema import CategoryMetrics
from cdo_ad.files import relative_name
from cdo_ad.inference.detector import Detector, load
from cdo_ad.reporting.collect import Collected, collect, synthetic_power
from cdo_ad.reporting.page import points, require_report, write_page
from cdo_ad.types import Sample

__all__ = ["report"]

MOST_IMAGES = 300
"""Images in the gallery; the rest are in the metrics only."""
GALLERY_BYTES = 13 * 10**6
"""Of the thumbnails together, as written; with the plotting library (4.8 MB) the page stays under 20 MB."""
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
MOST_SYNTHETIC = 100
"""Good images that get synthetic anomalies; several categories share them."""


def report(
    run: Path | str,
    data: Path | str | None = None,
    out: Path | str | None = None,
    *,
    layout: str = "auto",
    category: str | None = None,
    device: str = "auto",
) -> Path:
    """Judge a data set with a run's detector and write one self-contained page.

    With test images the metrics are those of `cdo_ad.evaluate`. Without, the page shows the good images' scores, the
    most unusual ones, and what the detector does with synthetic anomalies.

    Args:
        run: the run folder.
        data: the data set; None for the one that the run was trained on.
        out: the file; None for `report.html` in the run folder.
        layout: see `cdo_ad.read_dataset`.
        category: only this one; None for all that the run and the data set have.
        device: see `cdo_ad.load`. Where torch is installed it judges, since other engines give no branch maps.

    Returns:
        The file that was written.

    Raises:
        BundleError: `run` is no complete run folder, or its data set is gone and `data` is not given.
        DataError: a data set that cannot be used.
        MissingExtraError: the extra `report` is not installed.
        OutputError: the page cannot be written.
    """
    require_report("the report")
    detector = load(run, backend="torch" if find_spec("torch") else "auto", device=device)
    bundle = detector.bundle
    assert bundle is not None  # every run folder has one
    if data is None:
        data = bundle.data_root
        if len(detector.categories) == 1:
            category = category or bundle.data.category or None
        if not Path(data).is_dir():
            raise BundleError(f"{run}: its data set {data} is not there any more: name the data set after the run")
    samples = read_samples(detector, data, layout, category)
    target = Path(run) / "report.html" if out is None else Path(out)
    return write_page(target, "report.html.j2", document_of(detector, bundle, samples, Path(data)))


def document_of(detector: Detector, bundle: Bundle, samples: Sequence[Sample], root: Path) -> dict[str, Any]:
    """All that the page shows, ready for `json.dumps`."""
    evaluator = Evaluator(detector, samples) if any(s.split == "test" for s in samples) else None
    shown = samples if evaluator is None else evaluator.test
    found = collect(detector, shown, GALLERY_BYTES // max(1, min(MOST_IMAGES, len(shown))), evaluator)
    if not found.scored:
        raise DataError(f"none of the {len(shown)} images can be read; the first: {found.failures[0]}")
    evaluation = None if evaluator is None else evaluator.result()
    names = list(dict.fromkeys(item.category for item in found.scored))
    return {
        "title": bundle.path.resolve().name,
        "labelled": evaluation is not None,
        "rate": detector.calibration.false_alarm_rate,
        "held_out": detector.calibration.method == "held-out",
        "noise_on": "held-out good images" if bundle.data.held_out else "good images that the run has learned from",
        "metrics": None if evaluation is None else evaluation.metrics.to_json(),
        "categories": [_category(name, len(names), detector, bundle, found, evaluation) for name in names],
        "images": _gallery(found, root),
        "training": _training(bundle.path),
        "provenance": _provenance(bundle, root, samples),
        "failures": found.failures,
    }


def _category(
    name: str, count: int, detector: Detector, bundle: Bundle, found: Collected, evaluation: Evaluation | None
) -> dict[str, Any]:
    """What the page shows of one of `count` categories."""
    known = name if name in detector.categories else detector.categories[0]  # data sets may name what a run does not
    own = detector.calibration.of(known)
    records = [r for r in bundle.data.held_out or bundle.data.images if count == 1 or r.category == name]
    paths = [bundle.data.path(record) for record in records[: max(1, MOST_SYNTHETIC // count)]]
    synthetic = synthetic_power(detector, known, bundle.model.image_size, paths)
    scored = [item for item in found.scored if item.category == name]
    real = found.distributions.get(name)
    return {
        "name": name,
        "threshold": own.image_threshold,
        "guaranteed": own.guaranteed,
        "calibration": list(own.scores),
        "metrics": None if evaluation is None else _metrics_of(evaluation, name).to_json(),
        "costs": _costs(detector.calibration, known, scored),
        "curves": {} if evaluation is None else _curves(evaluation, name, scored),
        "distributions": {
            "real": {} if real is None else real.summary(),
            "synthetic": {} if synthetic is None else synthetic.distributions.summary(),
        },
        "power": None if synthetic is None else synthetic.rate.to_json(),
    }


def _metrics_of(evaluation: Evaluation, category: str) -> CategoryMetrics:
    return evaluation.metrics.categories.get(category, evaluation.metrics)


def _costs(calibration: Calibration, category: str, scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """What other guaranteed false-alarm rates would cost: their thresholds and the rates measured with them."""
    own = calibration.of(category)
    rows: list[dict[str, Any]] = []
    for rate in sorted({*RATES, calibration.false_alarm_rate}):
        missing = units_needed(rate) - own.units
        if missing > 0:
            rows.append({"rate": rate, "missing": missing})
            continue
        other = Calibration.fit({category: own}, rate)
        measured = decision_metrics(
            [item.sample.anomalous for item in scored], [other.decide(item.score, category) for item in scored], rate
        )
        rows.append({"missing": 0, "threshold": other.of(category).image_threshold, **measured.to_json()})
    return rows


def _gallery(found: Collected, root: Path) -> list[dict[str, Any]]:
    """One entry for each image, largest score first; thumbnails for the most telling `MOST_IMAGES`."""
    ordered = sorted(found.scored, key=lambda item: -item.score)
    wrong = [item for item in ordered if item.sample.anomalous != item.anomalous]
    right = [item for item in ordered if item.sample.anomalous == item.anomalous]
    # every mistake first, then the largest and the smallest scores in turn
    telling = wrong + [right[i // 2 if i % 2 == 0 else -1 - i // 2] for i in range(len(right))]
    shown = {id(item) for item in telling[:MOST_IMAGES]}
    return [
        {
            "name": relative_name(item.sample.path, root),
            "category": item.category,
            "type": item.sample.defect_type,
            "split": item.sample.split,
            "anomalous": item.sample.anomalous,
            "called": item.anomalous,
            "score": item.score,
            "p": item.p_value,
            "line": item.sentence,
            **(found.thumbnails[item.sample.path] if id(item) in shown else {}),
        }
        for item in ordered
    ]


def _curves(evaluation: Evaluation, category: str, scored: Sequence[Scored]) -> dict[str, dict[str, list[float]]]:
    """ROC and precision-recall of images; ROC, precision-recall and PRO of pixels; those that exist."""
    images = image_bins([item.sample.anomalous for item in scored], [item.score for item in scored])
    pixels = evaluation.pixels[category].histogram.bins()
    found = {
        "image_roc": curves.roc(images),
        "image_pr": curves.pr(images),
        "pixel_roc": curves.roc(pixels),
        "pixel_pr": curves.pr(pixels),
        "pixel_pro": curves.pro(pixels, 0.3),
    }
    return {name: points(curve) for name, curve in found.items() if curve.x.size}


def _training(run: Path) -> list[dict[str, float]]:
    """The rows of `train_log.csv`; none where it is missing."""
    file = run / bundles.LOG
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def _provenance(bundle: Bundle, root: Path, samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """What was trained with what, as (name, value)."""
    about, data, settings = bundle.provenance, bundle.data, bundle.config.to_json()
    return [
        ("run", str(bundle.path.resolve())),
        ("images judged", str(root.resolve())),
        ("images in that data set", str(len(samples))),
        ("trained on", f"{data.root} {data.category}".strip()),
        ("good images to learn from", str(len(data.images))),
        ("good images held out for calibration", str(len(data.held_out))),
        ("groups and folds", data.split),
        ("fingerprint of the training data", data.fingerprint),
        ("recipe", settings.pop("recipe")),
        ("seed", str(about.seed)),
        ("settings", ", ".join(f"{key}={value}" for key, value in settings.items())),
        ("device", f"{about.device} x {about.devices}"),
        ("source revision", about.revision or "unknown"),
        ("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items())),
    ]
