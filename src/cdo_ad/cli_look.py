"""The verbs that look at data and runs instead of making them: `check`, `report`, `drift`. Joined to `cdo_ad.cli`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdo_ad.errors import ConfigError

if TYPE_CHECKING:
    from cdo_ad.check import CheckReport

__all__ = ["join"]

Data = Annotated[Path, typer.Argument(help="Folder of the data set.")]
Layout = Annotated[str, typer.Option(help="auto, folder, mvtec, mvtec3d or visa.")]
Category = Annotated[str | None, typer.Option(help="Product, where the data set holds several.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output on stdout.")]
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
FILES_SHOWN = 2


def join(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    app.command()(check)
    app.command()(report)
    app.command()(drift)


def check(
    data: Data,
    layout: Layout = "auto",
    category: Category = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Input size of the training, default 256x256.")
    ] = None,
    false_alarm_rate: Annotated[float | None, typer.Option(help="Rate that is wished for.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run folder: its detector looks for mislabelled good pictures.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a data set, before any training; exit code 1 when a training or its figures would be."""
    from cdo_ad import recipes
    from cdo_ad.bundle import read_bundle
    from cdo_ad.check import check as look

    config = recipes.lite0() if run is None else read_bundle(run).config
    if size is not None:
        height, cross, width = size.lower().partition("x")
        if not (cross and height.isdigit() and width.isdigit()):
            raise ConfigError(f"--size {size}: write it as HEIGHTxWIDTH, e.g. 256x256")
        config = config.replace(image_height=int(height), image_width=int(width))
    if false_alarm_rate is not None:
        config = config.replace(false_alarm_rate=false_alarm_rate)
    report = look(data, config, layout=layout, category=category, run=run, device=device)
    if as_json:
        _print(json.dumps(report.to_json(), indent=2))
    else:
        _findings_table(report)
    if not report.ok:
        raise typer.Exit(1)


def report(
    run: Annotated[Path, typer.Argument(help="Run folder written by train.")],
    data: Annotated[Path | None, typer.Argument(help="Folder of the data set; default: that of the training.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: RUN/report.html.")] = None,
    layout: Layout = "auto",
    category: Category = None,
    device: Device = "auto",
) -> None:
    """Write one self-contained HTML page about a run."""
    from cdo_ad.report import write_report

    _print(str(write_report(run, data, out, layout=layout, category=category, device=device)))


def drift(
    run: Annotated[Path, typer.Argument(help="Run folder written by train.")],
    paths: Annotated[list[str], typer.Argument(help="Files, folders, quoted globs, in the order of production.")],
    alpha: Annotated[float, typer.Option(help="Share of good streams that may be accused falsely.")] = 0.01,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say whether new good pictures still look like those of the calibration; exit code 1 when they do not."""
    from cdo_ad.detector import load
    from cdo_ad.drift import drift as test
    from cdo_ad.predict import Failure, predict_files

    detector = load(run, device=device)
    scores: list[float] = []
    for result in predict_files(detector, paths):
        if isinstance(result, Failure):
            sys.stderr.write(f"passed over: {result.error}\n")
        else:
            scores.append(result.score)
    found = test(detector.calibration, scores, alpha)
    _print(json.dumps(found.to_json(), indent=2) if as_json else found.sentence)
    if found.drifted:
        raise typer.Exit(1)


def _findings_table(report: CheckReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = report.counts
    console = Console(highlight=False, markup=False)
    console.print(
        f"{counts['fit']} good pictures to train on, {counts['calibration']} held out for calibration, "
        f"{counts['test_good']} good and {counts['test_defect']} defective to test with"
    )
    if not report.findings:
        console.print("nothing is wrong")
        return
    table = Table("", "finding", "for example", show_lines=True, expand=True)
    table.columns[1].ratio, table.columns[2].ratio, table.columns[2].overflow = 3, 2, "fold"
    for finding in report.findings:
        shown = list(finding.files[:FILES_SHOWN])
        if len(finding.files) > FILES_SHOWN:
            shown.append(f"and {len(finding.files) - FILES_SHOWN} more (--json lists all)")
        table.add_row(Text(finding.level, STYLES[finding.level]), Text(finding.text), Text("\n".join(shown)))
    console.print(table)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
