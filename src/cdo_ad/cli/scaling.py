"""The verbs for many categories and very many images: sweep, score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdo_ad.cli.options import AsJson, Data, Device, Layout, say, show, show_json

if TYPE_CHECKING:
    from cdo_ad.scale.sweeps import Outcome

__all__ = ["VERBS"]

Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Ray cluster: auto or HOST:PORT. Default: a Ray of its own."),
]


def sweep(
    data: Data,
    seeds: Annotated[int, typer.Option(help="Number of seeds, counted from the recipe's own.")] = 3,
    recipe: Annotated[list[str] | None, typer.Option(help="As in train; may be repeated. Default: lite0.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
    ] = None,
    category: Annotated[list[str] | None, typer.Option(help="Only this category; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("sweep"),
    layout: Layout = "auto",
    device: Device = "auto",
    cpus: Annotated[int | None, typer.Option(help="CPUs for each job; more CPUs, fewer jobs at a time.")] = None,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Train and evaluate a run for each category, recipe and seed, side by side; one table at the end."""
    from cdo_ad.reporting.table_files import to_text
    from cdo_ad.scale.sweeps import sweep as run_all

    done = run_all(
        data, recipes=recipe or ["lite0"], seeds=seeds, settings=setting or [], categories=category or None, out=out,
        layout=layout, device=device, cpus=cpus, ray=ray, tell=_tell,
    )  # fmt: skip
    if as_json:
        runs = [{"run": str(o.run), "name": o.job.name, "found": o.found, "error": o.error} for o in done.outcomes]
        show_json({"runs": runs, "table": None if done.table is None else done.table.to_json()})
    elif done.table is not None:
        show("\n" + to_text(done.table))
    if done.failed:
        say(f"{len(done.failed)} of {len(done.outcomes)} jobs failed; the same command tries only these again")
        raise typer.Exit(1)


def _tell(outcome: Outcome) -> None:
    for note in outcome.notes:
        say(f"note: {outcome.job.name}: {note}")
    if outcome.error:
        say(f"error: {outcome.job.name}: {outcome.error}")
        return
    how = "finished before" if outcome.found else f"{outcome.seconds:.0f} s"
    say(f"{outcome.job.name}: image AUROC {100 * outcome.image_auroc:.2f} ({how}), {outcome.run}")


VERBS = (sweep,)
