"""Runs side by side on the same test images, with paired bootstrap intervals of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad.errors import BundleError, ConfigError
from cdo_ad.evaluation import curves
from cdo_ad.evaluation.metrics import rate_of
from cdo_ad.evaluation.results import Results, read_results
from cdo_ad.evaluation.schema import Rate
from cdo_ad.reporting.bootstrap import draw, interval, kinds_of, metrics_of
from cdo_ad.reporting.page import points, require_report, write_page
from cdo_ad.reporting.settings import different_settings, run_names

__all__ = ["compare", "comparison"]

RESAMPLES = 2000
MAIN = (
    ("decision.detection_rate", "defects found", "at each run's own threshold", True),
    ("decision.false_alarm_rate", "false alarms", "on good test images, at each run's own threshold", False),
    ("image.auroc", "image AUROC", "", True),
    ("image.ap", "image AP", "", True),
    ("pixel.auroc", "pixel AUROC", "", True),
    ("pixel.ap", "pixel AP", "", True),
    ("pixel.aupro_30", "AU-PRO 0.3", "", True),
    ("pixel.aupro_05", "AU-PRO 0.05", "", True),
)
"""(key, name, note, larger is better)."""


def compare(runs: Sequence[Path | str], out: Path | str, *, seed: int = 0, resamples: int = RESAMPLES) -> Path:
    """Compare evaluated runs and write one self-contained page; the numbers are in it as JSON.

    Args:
        runs: two or more run folders, each evaluated on the same test images; differences are to the first.
        out: the file.
        seed: of the resamples.
        resamples: their number, at least 100.

    Returns:
        The file that was written.

    Raises:
        BundleError: a run that is incomplete or was not evaluated, or runs that were evaluated on different images.
        ConfigError: fewer than two runs or too few resamples.
        MissingExtraError: the extra `report` is not installed.
        OutputError: the page cannot be written.
    """
    require_report("the comparison")
    document = comparison([read_results(run) for run in runs], seed=seed, resamples=resamples)
    return write_page(Path(out), "compare.html.j2", document)


def comparison(runs: Sequence[Results], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """All that the page shows; see `compare`.

    Returns:
        `runs` (name, thresholds, settings, curves), `rows` and `types` (metrics with `values`, and against the first
        run `differences` with `low` and `high` of 95 %), `images`, `notes`.
    """
    if len(runs) < 2:
        raise ConfigError("a comparison needs two runs or more: name their folders")
    if resamples < 100:
        raise ConfigError(f"{resamples} resamples are too few for an interval of 95 %: 2000 are usual")
    names = run_names([run.bundle.path for run in runs])
    _require_same_images(runs, names)
    ordered = [run.in_order(runs[0].paths) for run in runs]
    first = ordered[0]
    notes = _pixel_notes(ordered)
    times = draw(list(zip(first.categories, first.anomalous, strict=True)), resamples, seed)
    drawn = [metrics_of(run, times) for run in ordered]
    rows = [
        _row(key, name, note, better, ordered, drawn)
        for key, name, note, better in MAIN
        if not (notes and key.startswith("pixel."))
    ]
    types = [_row(f"{kind}.detection_rate", kind, "", True, ordered, drawn) for kind in kinds_of(first)]
    return {
        "title": " against ".join(names) if len(names) == 2 else f"{len(names)} runs",
        "runs": [_about(run, name) for run, name in zip(ordered, names, strict=True)],
        "settings": different_settings([run.bundle.config for run in ordered]),
        "rows": [row for row in rows if any(value is not None for value in row["values"])],
        "types": types,
        "sentences": [
            sentence
            for number in range(1, len(runs))
            for row in rows
            if (sentence := _sentence(row, row["differences"][number - 1], names, number))
        ],
        "images": [{"name": path, "type": kind} for path, kind in zip(first.paths, first.types, strict=True)],
        "n": {"good": int((~first.anomalous).sum()), "anomalous": int(first.anomalous.sum())},
        "bootstrap": {"resamples": resamples, "seed": seed, "interval": 0.95},
        "notes": notes,
    }


def _require_same_images(runs: Sequence[Results], names: Sequence[str]) -> None:
    """Raise BundleError where runs were evaluated on different images."""
    first = runs[0]
    for run, name in zip(runs[1:], names[1:], strict=True):
        mend = f"evaluate both on one data set:  cdo-ad evaluate {run.bundle.path} DATA"
        missing, extra = set(first.paths) - set(run.paths), set(run.paths) - set(first.paths)
        if missing or extra:
            example = min(missing or extra)
            where = f"only in {names[0] if missing else name}"
            raise BundleError(
                f"{names[0]} and {name} were evaluated on different test images ({len(missing)} and {len(extra)} "
                f"are in one only, such as {example}, {where}): {mend}"
            )
        if dict(zip(run.paths, run.types, strict=True)) != dict(zip(first.paths, first.types, strict=True)):
            raise BundleError(f"{names[0]} and {name} were evaluated with different labels: {mend}")
        if sorted(run.metrics.data.fingerprints.values()) != sorted(first.metrics.data.fingerprints.values()):
            raise BundleError(
                f"{names[0]} and {name} were evaluated on images or masks of the same names but other content: {mend}"
            )


def _pixel_notes(runs: Sequence[Results]) -> list[str]:
    """Why pixels are not compared; empty where they are."""
    if any(run.pixels is None or run.metrics.pixel.auroc != run.metrics.pixel.auroc for run in runs):
        return ["The test images have no masks, so there are no pixel metrics."]
    if len({run.metrics.data.at_size for run in runs}) > 1:
        return ["Pixels were compared at different sizes (--at-size), so pixel metrics are not compared."]
    return []


def _value(run: Results, key: str) -> float | None:
    """The exact metric; of a type of defect, what was counted."""
    group, _, name = key.rpartition(".")
    if group in ("image", "pixel", "decision"):
        found = getattr(getattr(run.metrics, group), name)
    else:
        found = rate_of(int(run.decisions[kinds_of(run)[group]].sum()), int(kinds_of(run)[group].sum()))
    value = found.value if isinstance(found, Rate) else float(found)
    return None if value != value else value


def _row(
    key: str, name: str, note: str, better: bool, runs: Sequence[Results], drawn: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A metric of every run with its interval, and the differences to the first with theirs."""
    values = [_value(run, key) for run in runs]
    own = [interval(resampled[key]) if key in resampled else (float("nan"),) * 2 for resampled in drawn]
    differences: list[dict[str, Any]] = []
    for value, resampled in zip(values[1:], drawn[1:], strict=True):
        if value is None or values[0] is None or key not in resampled:
            differences.append({"value": None, "low": None, "high": None, "verdict": "unknown"})
            continue
        low, high = interval(resampled[key] - drawn[0][key])
        verdict = "not told apart" if low <= 0 <= high else "better" if (low > 0) == better else "worse"
        differences.append({"value": value - values[0], "low": low, "high": high, "verdict": verdict})
    intervals = [{"low": low, "high": high} for low, high in own]
    return {
        "key": key, "name": name, "note": note, "values": values, "intervals": intervals, "differences": differences,
    }  # fmt: skip


def _sentence(row: dict[str, Any], found: dict[str, Any], names: Sequence[str], number: int) -> str:
    """One difference in words; empty where there is none to tell."""
    if found["verdict"] not in ("better", "worse"):
        return ""
    more = "higher" if found["value"] > 0 else "lower"
    low, high = sorted((abs(found["low"]), abs(found["high"])))
    return (
        f"{names[number]}: {row['name']} {100 * abs(found['value']):.1f} points {more} than {names[0]} "
        f"(95 %: {100 * low:.1f} to {100 * high:.1f}), which is {found['verdict']}."
    )


def _about(run: Results, name: str) -> dict[str, Any]:
    several = len(set(run.categories)) > 1
    return {
        "name": name,
        "folder": str(run.bundle.path.resolve()),
        "thresholds": [f"{f'{name}: ' if name else ''}{value:.4f}" for name, value in run.metrics.thresholds.items()],
        "rate": run.metrics.decision.rate,
        "calibration": run.bundle.calibration.images,
        "seed": run.bundle.config.seed,
        "recipe": run.bundle.config.recipe,
        "ratios": (run.scores / np.maximum(run.thresholds, np.finfo(np.float64).tiny)).tolist(),
        "decisions": run.decisions.tolist(),
        "curves": {} if several else _curves(run),
    }


def _curves(run: Results) -> dict[str, dict[str, list[float]]]:
    """Of one category: several have scores on scales of their own, which no curve can join."""
    images = curves.by_score(run.scores, ~run.anomalous, run.anomalous)
    found = {"image_roc": curves.roc(images), "image_pr": curves.pr(images)}
    if run.pixels is not None:
        pixels = run.pixels.drawn(np.ones(len(run.paths)))
        found |= {"pixel_roc": curves.roc(pixels), "pixel_pro": curves.pro(pixels, 0.3)}
    return {name: points(curve) for name, curve in found.items() if curve.x.size}
