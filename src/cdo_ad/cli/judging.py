"""The verbs that judge images with a run: predict, evaluate, drift."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdo_ad.cli.options import AsJson, Category, Data, Device, Layout, Rate, Run, parse_size, say, show, show_json
from cdo_ad.errors import ConfigError

if TYPE_CHECKING:
    from cdo_ad.evaluation.evaluate import Evaluation
    from cdo_ad.evaluation.schema import TypeMetrics
    from cdo_ad.inference.detector import Detector

__all__ = ["VERBS", "show_evaluation"]


def predict(
    run: Run,
    paths: Annotated[list[str], typer.Argument(help="Files, folders, quoted globs.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the overlays and predictions.jsonl.")] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Also write 16-bit maps (32768 is the threshold).")] = False,
    category: Category = None,
    depth: Annotated[
        Path | None, typer.Option(help="Point cloud of the one image, for a run with depth; else xyz/ beside rgb/.")
    ] = None,
    false_alarm_rate: Rate = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Judge images: a line for each, and a heat map over the image."""
    import json

    from cdo_ad.inference.predict import Failure, predict_files

    if maps and out is None:
        raise ConfigError("--maps needs a folder to write to: give --out DIR")
    if "" in paths:
        raise typer.BadParameter("an empty argument names no image", param_hint="PATHS")
    detector = _load(run, device, false_alarm_rate, mode="throughput")
    failed = count = 0
    for result in predict_files(detector, paths, out, maps=maps, category=category, xyz=depth):
        count += 1
        if isinstance(result, Failure):
            failed += 1
            say(f"error: {result.error}")
        if as_json:
            show(json.dumps(result.to_json()))
        elif not isinstance(result, Failure):
            of = f"  [{result.category}]" if result.category else ""
            show(f"{result.path}{of}  score {result.score:.4f}  p {result.p_value:.4f}  {result.sentence}")
    if out is not None:
        say(f"{count - failed} images judged; overlays and predictions.jsonl in {out}")
    if failed:
        say(f"{failed} of {count} files could not be judged or drawn")
        raise typer.Exit(1)


def evaluate(
    run: Run,
    data: Data,
    layout: Layout = "auto",
    category: Category = None,
    at_size: Annotated[str | None, typer.Option(metavar="HxW", help="Compare pixels at this size.")] = None,
    false_alarm_rate: Rate = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a run on labelled test images."""
    from cdo_ad.evaluation.results import describe, measure_run, write_results

    result = measure_run(
        run, data, layout=layout, category=category, at_size=parse_size(at_size, "--at-size"),
        false_alarm_rate=false_alarm_rate, device=device,
    )  # fmt: skip
    for failure in result.failures:
        say(f"error: {failure}")
    if as_json:
        show_json(describe(result, data)[0].to_json())
    else:
        show_evaluation(result)
    write_results(run, result, data)  # at the end: where it cannot be written, the results are seen all the same
    if result.failures:
        raise typer.Exit(1)


def drift(
    run: Run,
    paths: Annotated[list[str], typer.Argument(help="Files, folders, quoted globs, in the order of production.")],
    category: Category = None,
    alpha: Annotated[float, typer.Option(help="Share of good streams that may raise a false alarm.")] = 0.01,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say whether new good images still look like those of the calibration; exit code 1 when they do not."""
    from cdo_ad.inference.drift import drift as test
    from cdo_ad.inference.predict import Failure, predict_files

    detector = _load(run, device, None)
    scores: list[float] = []
    failed = 0
    for result in predict_files(detector, paths, category=category):
        if isinstance(result, Failure):
            failed += 1
            say(f"error: {result.error}")
        else:
            scores.append(result.score)
    found = test(detector.calibration.of(category), scores, alpha)
    if as_json:
        show_json(found.to_json())
    else:
        show(found.sentence)
    if found.drifted or failed:
        raise typer.Exit(1)


def _load(run: Path, device: str, false_alarm_rate: float | None, mode: str = "latency") -> Detector:
    from cdo_ad.inference.detector import load

    detector = load(run, device=device, mode=mode)
    return detector if false_alarm_rate is None else detector.at_rate(false_alarm_rate)


def show_evaluation(result: Evaluation) -> None:
    """Metrics of all images, of each category where there are several, and of each type of defect, in columns."""
    metrics = result.metrics
    rows: list[tuple[str, TypeMetrics]] = [("all", metrics), *metrics.types.items()]
    for category, own in metrics.categories.items():
        rows += [(category, own), *((f"  {kind}", measured) for kind, measured in own.types.items())]
    width = max(len(name) for name, _ in rows)
    show(f"{'':{width}}    n  image: AUROC     AP  F1max   pixel: AUROC     AP  F1max  PRO.3 PRO.05   found (95 %)")
    for name, row in rows:
        image, pixel, found = row.image, row.pixel, row.decision.detection_rate
        show(
            f"{name:{width}} {row.n.anomalous:4d}         {_f(image.auroc)}  {_f(image.ap)}  {_f(image.f1max)}"
            f"          {_f(pixel.auroc)}  {_f(pixel.ap)}  {_f(pixel.f1max)}  {_f(pixel.aupro_30)}  "
            f"{_f(pixel.aupro_05)}   {_f(found.value)} ({_f(found.low)}-{_f(found.high)})"
        )
    if metrics.categories:
        show("the rankings in the row `all` are means over the categories")
    for category, measured in metrics.categories.items() or [("", metrics)]:
        alarms = measured.decision.false_alarm_rate
        show(
            f"{f'{category}: ' if category else ''}false alarms: {alarms.count} of {alarms.n} good images, "
            f"{_f(alarms.value)} (95 %: {_f(alarms.low)}-{_f(alarms.high)}), at a rate of {measured.decision.rate:.2%}"
        )


def _f(value: float) -> str:
    return f"{value:5.3f}" if value == value else "  -  "


VERBS = (predict, evaluate, drift)
