"""The verbs for many categories and very many images: sweep, score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdo_ad.cli.options import AsJson, Category, Data, Device, Layout, Run, say, show, show_json

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


def score(
    run: Run,
    source: Annotated[str, typer.Argument(metavar="URI", help="Folder, file or pattern: a path, s3://..., ...")],
    out: Annotated[str, typer.Option(metavar="URI", help="Folder for the results; the same one goes on.")],
    category: Category = None,
    column: Annotated[str | None, typer.Option(help="Of Parquet files: the column of images.")] = None,
    backend: Annotated[str, typer.Option(help="auto, torch, openvino, openvino-int8 or onnx.")] = "auto",
    device: Device = "auto",
    processes: Annotated[int | None, typer.Option(help="Processes that judge. Default: all there is room for.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs for each process.")] = None,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Judge very many images, wherever they are stored, into Parquet; a second call does what is missing."""
    import dataclasses

    from cdo_ad.progress import progress_bar
    from cdo_ad.scale.scoring import score as judge_all

    with progress_bar() as bar:
        task = bar.add_task("judging images", total=None, note="")
        done = judge_all(
            run, source, out=out, category=category, column=column, backend=backend, device=device,
            processes=processes, cpus=cpus, ray=ray, tell=lambda so_far: bar.update(task, completed=so_far.images),
        )  # fmt: skip
    for problem in done.missing:
        say(f"error: {problem}")
    if as_json:
        show_json(dataclasses.asdict(done))
    else:
        show(f"{out}: {done.images} images judged, {done.anomalous} anomalous, {done.failed} could not be read")
        if done.known_images or done.known_parts:
            show(f"judged before: {done.known_images} image files, {done.known_parts} shards or groups of rows")
    if done.missing:
        say(f"{len(done.missing)} parts are missing; the same command tries only these again")
    if done.missing or done.failed:
        raise typer.Exit(1)


VERBS = (sweep, score)
