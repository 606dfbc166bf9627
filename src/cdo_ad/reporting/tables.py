"""Tables of runs: grouped by category and settings, mean and standard deviation over seeds.

The settings that differ between the runs become columns by themselves; the seed is what the mean is taken over. Metrics
that were published for the data set (`published.json`, with their sources) stand below the mean over the categories.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from cdo_ad.bundle import Bundle, read_bundle
from cdo_ad.errors import BundleError, ConfigError
from cdo_ad.evaluation.results import read_metrics
from cdo_ad.evaluation.schema import Rate, TypeMetrics
from cdo_ad.reporting.settings import different_settings, run_names

__all__ = ["METRICS_SHOWN", "Cell", "Measured", "Row", "Table", "metrics_of", "table", "tabulate"]

METRICS_SHOWN = {
    "image.auroc": "image AUROC",
    "image.ap": "image AP",
    "pixel.auroc": "pixel AUROC",
    "pixel.ap": "pixel AP",
    "pixel.aupro_30": "AU-PRO 0.3",
    "pixel.aupro_05": "AU-PRO 0.05",
    "decision.detection_rate": "defects found",
    "decision.false_alarm_rate": "false alarms",
}
NOTE = "± is the standard deviation over seeds. A number without it is of one seed, or categories have different seeds."


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric over seeds."""

    mean: float
    """In [0, 1]."""
    std: float | None
    """Standard deviation of the sample (n - 1); None for a single run."""


@dataclass(frozen=True)
class Row:
    """One category under one choice of settings; or a mean over categories; or what was published."""

    settings: tuple[str, ...]
    """Values of `Table.settings`; of a published row its name, then nothing."""
    category: str
    seeds: int | None
    """Runs that the means are taken over; None where a publication does not say."""
    cells: dict[str, Cell]
    """By the keys of `METRICS_SHOWN`; those that exist."""
    kind: str = "category"
    """`category`, `mean` or `published`."""


@dataclass(frozen=True)
class Table:
    """Rows in the order in which the runs were named, categories sorted."""

    settings: tuple[str, ...]
    """Names of the settings that differ; `("run",)` where none does and published rows stand beside."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics that any row has: key and name."""
        return {key: name for key, name in METRICS_SHOWN.items() if any(key in row.cells for row in self.rows)}

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "settings": list(self.settings),
            "rows": [
                {
                    "kind": row.kind,
                    "settings": dict(zip(self.settings, row.settings, strict=False)),
                    "category": row.category,
                    "seeds": row.seeds,
                    "metrics": {key: {"mean": cell.mean, "std": cell.std} for key, cell in row.cells.items()},
                }
                for row in self.rows
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Measured:
    """What a table needs of a run, or of another method that was measured the same way."""

    name: str
    """For messages."""
    choice: tuple[str, ...]
    """Values of the table's settings."""
    category: str
    seed: int
    metrics: dict[str, float]
    """By the keys of `METRICS_SHOWN`; those that exist."""
    fingerprint: str | None
    """Of the test images; None where it is not known."""


def table(runs: Sequence[Path | str]) -> Table:
    """Read evaluated runs and group them. A run of several categories gives a row for each.

    Args:
        runs: run folders.

    Raises:
        BundleError: a run that is incomplete or was not evaluated; two runs of the same settings, category and seed;
            two runs of one category that were evaluated on different test images.
        ConfigError: no run.
    """
    if not runs:
        raise ConfigError("a table needs a run at least: name run folders")
    bundles = [read_bundle(folder) for folder in runs]
    names = run_names([bundle.path for bundle in bundles])
    different = _columns(bundles)
    choices = list(zip(*different.values(), strict=True)) or [()] * len(bundles)
    each = zip(bundles, names, choices, strict=True)
    return tabulate(tuple(different), [measured for one in each for measured in _read(*one)])


def tabulate(settings: Sequence[str], runs: Sequence[Measured]) -> Table:
    """Group what was measured: means over seeds and categories, published rows below.

    Args:
        settings: names of the columns; each run's `choice` holds a value for each.
        runs: at least one.

    Raises:
        BundleError: two of one choice, category and seed; or two of one category measured on different test images.
    """
    _refuse_mixtures(runs)
    categories = sorted({run.category for run in runs})
    published, notes = _published(categories, max(1, len(settings)))
    if published and not settings:  # a column that tells these runs from published ones
        settings, runs = ("run",), [replace(run, choice=("these runs",)) for run in runs]
    rows: list[Row] = []
    for choice in dict.fromkeys(run.choice for run in runs):
        chosen = [run for run in runs if run.choice == choice]
        by_category = {c: [run for run in chosen if run.category == c] for c in categories}
        rows += [_row(choice, c, found) for c, found in by_category.items() if found]
        if sum(map(bool, by_category.values())) > 1:
            rows.append(_mean_row(choice, by_category))
    return Table(tuple(settings), (*rows, *published), (NOTE, *notes))


def _columns(bundles: Sequence[Bundle]) -> dict[str, list[str]]:
    """The settings that differ, as words; without the recipe's name where the others tell the runs apart as well."""
    different = different_settings([bundle.config for bundle in bundles], passed_over=("seed",))
    words = {key: [_word(value) for value in values] for key, values in different.items()}
    others = {key: values for key, values in words.items() if key != "recipe"}
    choices, without = (set(zip(*columns.values(), strict=True)) for columns in (words, others))
    return others if len(choices) == len(without) else words


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list | dict) or value is None else str(value)


def _read(bundle: Bundle, name: str, choice: tuple[str, ...]) -> list[Measured]:
    """What was measured of a run, by category; a category without a name is called by its data set's folder."""
    metrics = read_metrics(bundle)
    prints = metrics.data.fingerprints
    each = metrics.categories or {next(iter(prints)): metrics}
    return [
        Measured(
            name,
            choice,
            category or Path(metrics.data.root).name,
            bundle.config.seed,
            metrics_of(own),
            prints[category],
        )
        for category, own in each.items()
    ]


def metrics_of(metrics: TypeMetrics) -> dict[str, float]:
    """The metrics of `METRICS_SHOWN` that exist, by key."""
    found = {}
    for key in METRICS_SHOWN:
        group, _, name = key.partition(".")
        value = getattr(getattr(metrics, group), name)
        number = value.value if isinstance(value, Rate) else float(value)
        if number == number:
            found[key] = number
    return found


def _refuse_mixtures(runs: Sequence[Measured]) -> None:
    seen: dict[Any, Measured] = {}
    images: dict[str, Measured] = {}
    for run in runs:
        twin = seen.setdefault((run.choice, run.category, run.seed), run)
        if twin is not run:
            raise BundleError(
                f"{twin.name} and {run.name} have the same settings, category and seed {run.seed}: together they would "
                "make the spread over seeds look smaller; name only one of them"
            )
        if run.fingerprint is not None:
            other = images.setdefault(run.category, run)
            if other.fingerprint != run.fingerprint:
                raise BundleError(
                    f"{other.name} and {run.name} are both of {run.category!r} but were evaluated on different test "
                    "images: evaluate both on one data set with  cdo-ad evaluate RUN DATA"
                )


def _row(choice: tuple[str, ...], category: str, runs: Sequence[Measured]) -> Row:
    keys = [key for key in METRICS_SHOWN if all(key in run.metrics for run in runs)]
    return Row(choice, category, len(runs), {key: _cell(run.metrics[key] for run in runs) for key in keys})


def _mean_row(choice: tuple[str, ...], by_category: dict[str, list[Measured]]) -> Row:
    """The mean over categories: of each seed first, so that its deviation is that over seeds.

    Where not every category has every seed, the mean of the categories' means, without a deviation.
    """
    there = [runs for runs in by_category.values() if runs]
    seeds = {run.seed for runs in there for run in runs}
    complete = all({run.seed for run in runs} == seeds for runs in there)
    cells = {}
    for key in METRICS_SHOWN:
        if not all(key in run.metrics for runs in there for run in runs):
            continue
        if complete:
            of = [[run.metrics[key] for runs in there for run in runs if run.seed == seed] for seed in seeds]
            cells[key] = _cell(map(statistics.fmean, of))
        else:
            of = [[run.metrics[key] for run in runs] for runs in there]
            cells[key] = Cell(statistics.fmean(map(statistics.fmean, of)), None)
    return Row(choice, f"mean of {len(there)}", len(seeds), cells, "mean")


def _cell(values: Iterable[float]) -> Cell:
    found = list(values)
    return Cell(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


def _published(categories: Sequence[str], columns: int) -> tuple[list[Row], list[str]]:
    """Rows of the data set that all categories belong to, and notes on where they come from."""
    text = resources.files("cdo_ad.reporting").joinpath("published.json").read_text(encoding="utf-8")
    for data_set in json.loads(text)["data_sets"]:
        if not set(categories) <= set(data_set["categories"]):
            continue
        total = len(data_set["categories"])
        rows = [
            Row(
                (item["name"], *[""] * (columns - 1)), f"mean of {total}", item["runs"],
                {key: Cell(*pair) for key, pair in item["metrics"].items()}, "published",
            )
            for item in data_set["rows"]
        ]  # fmt: skip
        notes = [f"{item['name']}: published, {data_set['name']}; {item['source']}." for item in data_set["rows"]]
        if len(categories) < total:
            notes.append(
                f"Published numbers are means over all {total} categories of {data_set['name']}; "
                f"{len(categories)} of them are here, so do not compare the means."
            )
        return rows, notes
    return [], []
