"""The verbs that look at data and runs: check, report, table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdo_ad.cli.options import AsJson, Category, Data, Device, Layout, Rate, Run, parse_size, say, show, show_json
from cdo_ad.errors import ConfigError

if TYPE_CHECKING:
    from cdo_ad.audit.check import CheckReport

__all__ = ["VERBS"]

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
FILES_SHOWN = 2


def check(
    data: Data,
    layout: Layout = "auto",
    category: Category = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Input size of the training; default: chosen from the images.")
    ] = None,
    false_alarm_rate: Rate = None,
    run: Annotated[
        Path | None, typer.Option(help="A run folder: its detector looks for mislabelled good images.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with a data set, before any training; exit code 1 when a training or its metrics would be."""
    from cdo_ad import recipes
    from cdo_ad.audit.check import check as look
    from cdo_ad.bundle import read_bundle

    config = recipes.lite0() if run is None else read_bundle(run).config
    wanted = parse_size(size, "--size")
    if wanted is not None:
        config = config.replace(image_height=wanted[0], image_width=wanted[1])
    if false_alarm_rate is not None:
        config = config.replace(false_alarm_rate=false_alarm_rate)
    report = look(data, config, layout=layout, category=category, run=run, device=device)
    if as_json:
        show_json(report.to_json())
    else:
        _findings_table(report)
    if not report.ok:
        raise typer.Exit(1)


def report(
    run: Run,
    others: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DATA | RUN...]",
            help="The data set; default: that of the training. Or more runs, to compare them.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: RUN/report.html, or comparison.html.")
    ] = None,
    layout: Layout = "auto",
    category: Category = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the resamples of a comparison.")] = 0,
) -> None:
    """Write one self-contained HTML page about a run, or one that compares runs on the same test images."""
    from cdo_ad.bundle import is_run
    from cdo_ad.reporting.build import report as write_page
    from cdo_ad.reporting.compare import compare

    others = others or []
    runs = [path for path in others if is_run(path)]
    if len(others) > 1 or runs:
        if strange := [path for path in others if path not in runs]:
            raise ConfigError(f"{strange[0]} is not a run folder: to compare, name run folders only")
        show(str(compare([run, *runs], out or Path("comparison.html"), seed=seed)))
        return
    data = others[0] if others else None
    show(str(write_page(run, data, out, layout=layout, category=category, device=device)))


def table(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, evaluated.")],
    out: Annotated[
        list[Path] | None,
        typer.Option(help="File to write: .html, .csv or .tex; may be repeated. Default: print the table."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put evaluated runs in a table: means over seeds, by category and by the settings that differ."""
    from cdo_ad.reporting.table_files import to_text, write_table
    from cdo_ad.reporting.tables import table as make_table

    made = make_table(runs)
    for file in out or []:
        write_table(made, file)
        say(str(file))
    if as_json:
        show_json(made.to_json())
    elif not out:
        show(to_text(made))


def _findings_table(report: CheckReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = report.counts
    console = Console(highlight=False, markup=False)
    console.print(
        f"{counts['train']} good images to train on, {counts['test_good']} good and {counts['test_defect']} defective "
        "to test with"
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


VERBS = (check, report, table)
