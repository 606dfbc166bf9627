"""The verbs that make runs: train, adapt, refit, calibrate, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdo_ad.cli.options import AsJson, Category, Data, Device, Layout, Rate, Run, show, show_json
from cdo_ad.errors import ConfigError

if TYPE_CHECKING:
    from cdo_ad.config import Config

__all__ = ["VERBS"]

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
]


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    layout: Layout = "auto",
    category: Category = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="lite0, lite0_3d (with depth), paper_<backbone>, cdo2025_<backbone>, or with a stronger expert lite2, "
            "wide_resnet50, convnext, dinov2, dinov3."
        ),
    ] = "lite0",
    setting: Settings = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    false_alarm_rate: Rate = None,
    defects: Annotated[
        Path | None, typer.Option(help="Folder with a few labelled defects (images and masks) to learn from too.")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(help='Where to inspect: a mask file, a polygon such as "0.1,0.1 0.9,0.1 0.5,0.9", or auto.'),
    ] = None,
    tile: Annotated[
        str | None, typer.Option(help="Judge large images in tiles of so many pixels, or auto with --smallest-defect.")
    ] = None,
    smallest_defect: Annotated[
        float | None, typer.Option(help="Size in pixels of the smallest defect to be found; chooses the tiles.")
    ] = None,
    unified: Annotated[bool, typer.Option("--unified", help="One model for all categories in DATA.")] = False,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(help="Number of devices.")] = 1,
    workers: Annotated[int, typer.Option(help="Threads or processes that read images.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an interrupted training and start anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn from good images, calibrate on them too, write a run folder."""
    from cdo_ad.training.train import train as make_run

    if resume and restart:
        raise ConfigError("--resume and --restart exclude each other: give one of them")
    config = _config(recipe, setting, seed, false_alarm_rate)
    if tile == "auto" and smallest_defect is None:
        raise ConfigError("--tile auto needs the size of the smallest defect to be found: --smallest-defect PIXELS")
    if tile not in (None, "auto"):
        config = config.with_settings([f"tile={tile}"])
    bundle = make_run(
        data, out, config, layout=layout, category=category, unified=unified, device=device, devices=devices,
        defects=defects, region=region, smallest_defect=smallest_defect, workers=workers,
        interrupted="resume" if resume else "discard" if restart else "refuse",
    )  # fmt: skip
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one process of several speaks
        return
    if as_json:
        show_json({"run": str(out), "calibration": bundle.calibration.to_json(), "settings": config.to_json()})
        return
    held_out = f", calibrated on {len(bundle.data.held_out)} others" if bundle.data.held_out else ""
    show(f"{out}: trained on {len(bundle.data.images)} good images{held_out}")
    show(bundle.data.split)
    if config.depth and not bundle.model.depth:
        show("depth told synthetic anomalies no better, so it has no weight: this run looks at images alone")
    for line in bundle.calibration.summary():
        show(line)


def adapt(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="New run folder; default: replace RUN when all is done.")] = None,
    good: Annotated[Path | None, typer.Option(help="Folder of good images that were called anomalous.")] = None,
    bad: Annotated[Path | None, typer.Option(help="Folder of missed defects, with masks.")] = None,
    category: Category = None,
    epochs: Annotated[int, typer.Option(help="Passes over all images; 0: keep the networks, which is quick.")] = 2,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Learn from an operator's corrections: false alarms and misses; the run's own images stay in."""
    from cdo_ad.training.adapt import adapt as make_run

    bundle, changes = make_run(run, out or run, good=good, bad=bad, category=category, epochs=epochs, device=device)
    if as_json:
        show_json({"run": str(bundle.path), "changes": [change.to_json() for change in changes]})
        return
    show(f"{bundle.path}: adapted; alarms and median score (1 is the threshold) before and after")
    for c in changes:
        show(
            f"  {c.group:14} {c.images:4} images   alarms {c.alarms_before} -> {c.alarms_after}   "
            f"score {c.score_before:.2f} -> {c.score_after:.2f}"
        )
    for line in bundle.calibration.summary():
        show(line)


def refit(
    run: Run,
    out: Annotated[Path, typer.Option(help="New run folder.")],
    setting: Settings = None,
    device: Device = "auto",
) -> None:
    """Make a run with other settings on the same apprentice: branches and thresholds are fitted anew, in minutes."""
    from cdo_ad.bundle import read_bundle
    from cdo_ad.training.adapt import refit as make_run

    bundle = make_run(run, out, read_bundle(run).config.with_settings(setting or []), device=device)
    for line in bundle.calibration.summary():
        show(line)


def calibrate(
    run: Run,
    data: Annotated[
        Path | None, typer.Argument(help="Folder with other good images; default: the scores that the run holds.")
    ] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of good images that may be called anomalous.")] = 0.05,
    layout: Layout = "auto",
    category: Category = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Set the thresholds for another false-alarm rate, or with other good images."""
    from cdo_ad.inference.calibrate import calibrate as set_thresholds

    calibration = set_thresholds(
        run, data, false_alarm_rate=false_alarm_rate, layout=layout, category=category, device=device
    )
    if as_json:
        show_json(calibration.to_json())
        return
    for line in calibration.summary():
        show(line)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data and the runs.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller images: a smoke test.")] = False,
    device: Device = "auto",
) -> None:
    """The whole job on a built-in data set: draw, train, calibrate, evaluate, show."""
    from cdo_ad.cli.judging import show_evaluation
    from cdo_ad.demo.run import run_demo

    for outcome in run_demo(out, quick=quick, device=device):
        show(f"\n{outcome.product}: {outcome.sentence}")
        show_evaluation(outcome.evaluation)
        show(f"examples: {outcome.sheet}\noverlays: {outcome.overlays}\nrun:      {outcome.run}")


def _config(recipe: str, settings: list[str] | None, seed: int | None, false_alarm_rate: float | None) -> Config:
    from cdo_ad import recipes

    changes: dict[str, float] = {}
    if seed is not None:
        changes["seed"] = seed
    if false_alarm_rate is not None:
        changes["false_alarm_rate"] = false_alarm_rate
    return recipes.get(recipe).with_settings(settings or []).replace(**changes)


VERBS = (demo, train, calibrate, adapt, refit)
