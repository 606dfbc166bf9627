"""Runs side by side on the same test images, with paired bootstrap intervals of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdo_ad.errors import BundleError, ConfigError, needs_extra
from cdo_ad.evaluation.results import Results, read_results
from cdo_ad.reporting.bootstrap import draw, interval, metrics_of
from cdo_ad.reporting.page import curve, image_curves, render
from cdo_ad.reporting.settings import different_settings, run_names
from cdo_ad.types import GOOD

__all__ = ["compare", "write_comparison"]

RESAMPLES = 2000
MAIN = (
    ("decision.detection_rate", "defects found", "at each run's own threshold", True),
    ("decision.false_alarm_rate", "false alarms", "on good test images, at each run's own threshold", False),
    ("image.auroc", "image AUROC", "", True),
    ("image.ap", "image AP", "", True),
    ("pixel.auroc", "pixel AUROC", "", True),
    ("pixel.ap", "pixel AP", "", True),
    ("pixel.aupro_0.3", "AU-PRO 0.3", "", True),
    ("pixel.aupro_0.05", "AU-PRO 0.05", "", True),
)
"""(key, name, note, larger is better)."""


def write_comparison(runs: Sequence[Path | str], out: Path | str, *, seed: int = 0, resamples: int = RESAMPLES) -> Path:
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
        MissingExtraError: if the extra `report` is not installed.
    """
    with needs_extra("report", "the comparison"):
        import jinja2  # noqa: F401
        import plotly.offline  # noqa: F401
    document = compare([read_results(run) for run in runs], seed=seed, resamples=resamples)
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render("compare.html.j2", document), encoding="utf-8")
    return target


def compare(runs: Sequence[Results], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """All that the page shows; see `write_comparison`.

    Returns:
        `runs` (name, threshold, settings, curves), `rows` and `types` (figures with `values`, and against the first
        run `differences` with `low` and `high` of 95 %), `disagreements`, `images`, `notes`.
    """
    if len(runs) < 2:
        raise ConfigError("a comparison needs two runs or more: name their folders")
    if resamples < 100:
        raise ConfigError(f"{resamples} resamples are too few for an interval of 95 %: 2000 are usual")
    names = run_names([run.bundle.path for run in runs])
    notes = [*_same_images(runs, names)]
    ordered = [_in_order(run, runs[0].paths) for run in runs]
    pixels = _pixel_note(ordered, names)
    notes += pixels
    times = draw(ordered[0].anomalous, resamples, seed)
    drawn = [metrics_of(run, times) for run in ordered]
    kinds = sorted(set(ordered[0].types) - {GOOD})
    rows = [
        _row(key, name, note, better, ordered, drawn)
        for key, name, note, better in MAIN
        if not (pixels and key.startswith("pixel."))
    ]
    types = [_row(f"{kind}.detection_rate", kind, "", True, ordered, drawn) for kind in kinds]
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
        "images": _images(ordered),
        "n": {"good": int((~ordered[0].anomalous).sum()), "anomalous": int(ordered[0].anomalous.sum())},
        "bootstrap": {"resamples": resamples, "seed": seed, "interval": 0.95},
        "notes": notes,
    }


def _same_images(runs: Sequence[Results], names: Sequence[str]) -> list[str]:
    """Notes on what could not be checked; raises BundleError where runs were evaluated on different images."""
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
        prints = [_data(r).get("fingerprint") for r in (first, run)]
        if None not in prints and prints[0] != prints[1]:
            raise BundleError(
                f"{names[0]} and {name} were evaluated on images or masks of the same names but other content: {mend}"
            )
    unknown = [name for run, name in zip(runs, names, strict=True) if "fingerprint" not in _data(run)]
    if not unknown:
        return []
    return [
        f"{', '.join(unknown)}: evaluated by an older version, so the test images were compared by name only; "
        "evaluate again to compare their content."
    ]


def _pixel_note(runs: Sequence[Results], names: Sequence[str]) -> list[str]:
    """Why pixel figures are not compared; empty where they are."""
    if all(run.metrics["pixel"]["auroc"] is None for run in runs):
        return ["The test images have no masks, so there are no pixel figures."]
    without = [name for run, name in zip(runs, names, strict=True) if run.pixels is None]
    if without:
        return [
            f"{', '.join(without)}: evaluated by an older version that kept no counts of pixels, so pixel figures are "
            "not compared; evaluate again to have them."
        ]
    sizes = {str(_data(run).get("at_size")) for run in runs}
    if len(sizes) > 1:
        return ["Pixels were compared at different sizes (--at-size), so pixel figures are not compared."]
    return []


def _data(run: Results) -> dict[str, Any]:
    return dict(run.metrics.get("data", {}))


def _in_order(run: Results, paths: Sequence[str]) -> Results:
    """The same results with the images in another order."""
    if run.paths == tuple(paths):
        return run
    place = {path: i for i, path in enumerate(run.paths)}
    order = np.array([place[path] for path in paths])
    pixels = run.pixels
    return Results(
        run.bundle, run.metrics, tuple(paths), tuple(run.types[i] for i in order), run.scores[order],
        run.p_values[order], run.decisions[order],
        None if pixels is None else type(pixels)(pixels.good[order], pixels.anomalous[order], pixels.weight[order]),
    )  # fmt: skip


def _value(run: Results, key: str) -> float | None:
    """The exact figure from `metrics.json`."""
    group, _, name = key.rpartition(".") if not key.startswith("pixel.") else key.partition(".")
    if group == "decision":
        found = run.metrics["decision"][name]["value"]
    elif group in ("image", "pixel"):
        found = run.metrics[group][name]
    else:
        found = run.metrics["per_type"][group]["decision"][name]["value"]
    return None if found is None else float(found)


def _row(
    key: str, name: str, note: str, better: bool, runs: Sequence[Results], drawn: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A figure of every run with its interval, and the differences to the first with theirs."""
    values = [_value(run, key) for run in runs]
    own = [interval(figures[key]) if key in figures else (float("nan"),) * 2 for figures in drawn]
    differences: list[dict[str, Any]] = []
    for value, figures in zip(values[1:], drawn[1:], strict=True):
        if value is None or values[0] is None or key not in figures:
            differences.append({"value": None, "low": None, "high": None, "verdict": "unknown"})
            continue
        low, high = interval(figures[key] - drawn[0][key])
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
    curves = image_curves(run.scores, run.anomalous)
    if run.pixels is not None:
        good, bad, weight = (
            counts.sum(axis=0, dtype=np.float64)[::-1]
            for counts in (run.pixels.good, run.pixels.anomalous, run.pixels.weight)
        )
        if good.sum() and bad.sum():
            false = np.append(0, np.cumsum(good)) / good.sum()
            inside = int(np.searchsorted(false, 0.3, side="right")) + 1
            curves["pixel_roc"] = curve(false, np.append(0, np.cumsum(bad)) / bad.sum())
            curves["pixel_pro"] = curve(false[:inside], np.append(0, np.cumsum(weight))[:inside] / weight.sum())
    return {
        "name": name,
        "folder": str(run.bundle.path.resolve()),
        "threshold": run.threshold,
        "rate": run.bundle.calibration.false_alarm_rate,
        "calibration": len(run.bundle.calibration.scores),
        "seed": run.bundle.config.seed,
        "recipe": run.bundle.config.recipe,
        "scores": run.scores.tolist(),
        "decisions": run.decisions.tolist(),
        "curves": curves,
    }


def _images(runs: Sequence[Results]) -> list[dict[str, Any]]:
    return [{"name": path, "type": kind} for path, kind in zip(runs[0].paths, runs[0].types, strict=True)]
