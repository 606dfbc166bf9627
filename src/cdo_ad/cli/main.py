"""The command line: parse, call one function, print. Results go to stdout, all else to stderr.

Exit codes: 0 done; 1 an error that the user can mend (one line); 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdo_ad.cli import deploy as cli_deploy
from cdo_ad.cli import look as cli_look
from cdo_ad.cli.options import (
    AsJson,
    Category,
    Data,
    Device,
    Layout,
    Rate,
    Run,
    parse_size,
    say,
    show,
    show_json,
)
from cdo_ad.errors import CdoError, ConfigError

if TYPE_CHECKING:
    from cdo_ad.bundle import Bundle
    from cdo_ad.evaluation.evaluate import Evaluation
    from cdo_ad.inference.detector import Detector

__all__ = ["app", "main"]

app = typer.Typer(
    help="Find defects in images of products, learned from good images only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; the entry point of `cdo-ad`."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(words) < len(sys.argv) - 1
    try:
        app(args=words, prog_name="cdo-ad", standalone_mode=True)
    except CdoError as error:
        if debug:
            raise
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        if debug:
            raise
        say("interrupted; an interrupted training goes on with  --resume")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as head, went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Find defects in images of products, learned from good images only."""


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    layout: Layout = "auto",
    category: Category = None,
    recipe: Annotated[str, typer.Option(help="lite0, paper_<backbone> or cdo2025_<backbone>.")] = "lite0",
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    false_alarm_rate: Rate = None,
    defects: Annotated[
        Path | None, typer.Option(help="Folder with a few labelled defects (images and masks) to learn from too.")
    ] = None,
    unified: Annotated[bool, typer.Option("--unified", help="One model for all products in DATA.")] = False,
    few: Annotated[
        bool, typer.Option("--few", help="For a handful of good images: hold none out, promise no rate.")
    ] = False,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(help="Number of devices.")] = 1,
    workers: Annotated[int, typer.Option(help="Threads or processes that read images.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train on good images, calibrate on held-out ones, write a run folder."""
    from cdo_ad import recipes

    config = recipes.get(recipe).with_settings(setting or [])
    if few:
        config = config.replace(few=True)
    if seed is not None:
        config = config.replace(seed=seed)
    if false_alarm_rate is not None:
        config = config.replace(false_alarm_rate=false_alarm_rate)
    from cdo_ad.training.job import train as make_run

    bundle = make_run(
        data, out, config, layout=layout, category=category, unified=unified, device=device, devices=devices,
        defects=defects, resume=resume, workers=workers,
    )  # fmt: skip
    calibration = bundle.calibration
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one process of several speaks
        return
    if as_json:
        show_json({"run": str(out), "calibration": calibration.to_json(), "settings": config.to_json()})
        return
    fit = len(bundle.provenance["data"]["fit"])
    others = "others" if calibration.guaranteed else "altered copies"
    show(f"{out}: trained on {fit} good images, calibrated on {len(calibration.scores)} {others}")
    show(_threshold_line(calibration))


@app.command()
def adapt(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="New run folder; default: replace RUN when all is done.")] = None,
    good: Annotated[Path | None, typer.Option(help="Folder of good images that were called anomalous.")] = None,
    bad: Annotated[Path | None, typer.Option(help="Folder of missed defects, with masks.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over all images; 0: keep the networks, which is quick.")] = 2,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Learn from an operator's corrections: false alarms and misses; old images stay in."""
    from cdo_ad.training.adapt import adapt as make_run

    bundle, changes = make_run(run, out or run, good=good, bad=bad, epochs=epochs, device=device)
    if as_json:
        show_json({"run": str(bundle.path), "changes": [change.to_json() for change in changes]})
        return
    show(f"{bundle.path}: adapted; alarms and median score (1 is the threshold) before and after")
    for c in changes:
        show(
            f"  {c.group:14} {c.images:4} images   alarms {c.alarms_before} -> {c.alarms_after}   "
            f"score {c.score_before:.2f} -> {c.score_after:.2f}"
        )
    show(_threshold_line(bundle.calibration))


@app.command()
def calibrate(
    run: Run,
    data: Annotated[Path | None, typer.Argument(help="Folder with other good images; default: those held out.")] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of good images that may be called anomalous.")] = 0.05,
    layout: Layout = "auto",
    category: Category = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Set the thresholds for another false-alarm rate, or with other good images."""
    from cdo_ad import bundle as bundles
    from cdo_ad.calibration import Calibration

    bundle = bundles.read_bundle(run)
    if data is None:
        calibration = bundle.calibration.at_rate(false_alarm_rate)
    else:
        from cdo_ad.data import read_dataset
        from cdo_ad.inference.detector import calibration_scores, load

        detector = load(run, device=device)
        good = [s.path for s in read_dataset(data, layout, category) if s.split != "test"]
        _refuse_trained_on(bundle, good)
        calibration = Calibration.fit(*calibration_scores(detector.runtime, good), false_alarm_rate)
    bundles.write_json(run / bundles.CALIBRATION, calibration.to_json())
    if as_json:
        show_json(calibration.to_json())
    else:
        show(_threshold_line(calibration))


def _refuse_trained_on(bundle: Bundle, good: list[Path]) -> None:
    from cdo_ad.errors import CalibrationError

    trained = {bundle.data_root / name for name in bundle.provenance["data"]["fit"]}
    seen = [path for path in good if path.resolve() in trained]
    if seen:
        raise CalibrationError(
            f"{seen[0]} was trained on ({len(seen)} of {len(good)} images were): its score promises nothing; "
            "give other good images, or leave DATA out to use those held out"
        )


@app.command()
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
    from cdo_ad.data import read_dataset
    from cdo_ad.evaluation.evaluate import evaluate as measure
    from cdo_ad.evaluation.results import write_results

    size = parse_size(at_size, "--at-size")
    detector = _load(run, device, false_alarm_rate)
    samples = read_dataset(data, layout, category)
    result = measure(detector, samples, at_size=size)
    document = write_results(run, result, samples, data, size)
    for failure in result.failures:
        say(f"error: {failure}")
    if as_json:
        show_json(document)
    else:
        _evaluation_table(result)
    if result.failures:
        raise typer.Exit(1)


@app.command()
def predict(
    run: Run,
    paths: Annotated[list[str], typer.Argument(help="Files, folders, quoted globs.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the overlays and predictions.jsonl.")] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Also write 16-bit maps (32768 is the threshold).")] = False,
    false_alarm_rate: Rate = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Judge images: a line for each, and a heat map over the image."""
    from cdo_ad.inference.predict import Failure, predict_files
    from cdo_ad.sentence import sentence

    if maps and out is None:
        raise ConfigError("--maps needs a folder to write to: give --out DIR")
    detector = _load(run, device, false_alarm_rate, mode="throughput")
    failed = count = 0
    lines: list[str] = []
    for result in predict_files(detector, paths, out, maps=maps):
        count += 1
        document = result.to_json()
        if not isinstance(result, Failure):
            document["sentence"] = sentence(result.score, detector.calibration)
        line = json.dumps(document)
        lines.append(line)
        if isinstance(result, Failure):
            failed += 1
            say(f"error: {result.error}")
        elif not as_json:
            show(f"{result.path}  score {result.score:.4f}  p {result.p_value:.4f}  {document['sentence']}")
        if as_json:
            show(line)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        say(f"{count - failed} images judged; overlays and predictions.jsonl in {out}")
    if failed:
        say(f"{failed} of {count} files could not be read")
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data and the runs.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images and epochs: a smoke test.")] = False,
    device: Device = "auto",
) -> None:
    """The whole job on a built-in data set: draw, train, calibrate, evaluate, show."""
    from cdo_ad.demo.run import run_demo

    for outcome in run_demo(out, quick=quick, device=device):
        show(f"\n{outcome.product}: {outcome.sentence}")
        _evaluation_table(outcome.evaluation)
        show(f"examples: {outcome.sheet}\noverlays: {outcome.overlays}\nrun:      {outcome.run}")


def _load(run: Path, device: str, false_alarm_rate: float | None, mode: str = "latency") -> Detector:
    from cdo_ad.inference.detector import Detector, load

    detector = load(run, device=device, mode=mode)
    if false_alarm_rate is None:
        return detector
    return Detector(detector.runtime, detector.calibration.at_rate(false_alarm_rate), detector.bundle)


def _threshold_line(calibration: Any) -> str:
    if not calibration.guaranteed:
        return (
            f"threshold {calibration.image_threshold:.4f}: no false-alarm rate is promised, as altered copies of the "
            "training images gave it; set it with 20 or more other good images:  cdo-ad calibrate RUN FOLDER"
        )
    return (
        f"threshold {calibration.image_threshold:.4f}: at most {calibration.false_alarm_rate:.2%} of good images are "
        f"called anomalous, on average (from {len(calibration.scores)} good images)"
    )


def _evaluation_table(result: Evaluation) -> None:
    """Overall and per defect type, in plain aligned columns."""
    figures = result.metrics
    rows = {"all": figures, **figures["per_type"]}
    width = max(map(len, rows))
    show(f"{'':{width}}    n  image: AUROC     AP  F1max   pixel: AUROC     AP  F1max  PRO.3 PRO.05   detected (95 %)")
    for name, row in rows.items():
        image, pixel, found = row["image"], row["pixel"], row["decision"]["detection_rate"]
        show(
            f"{name:{width}} {row['n']['anomalous']:4d}         "
            f"{_f(image['auroc'])}  {_f(image['ap'])}  {_f(image['f1max'])}"
            f"          {_f(pixel['auroc'])}  {_f(pixel['ap'])}  {_f(pixel['f1max'])}  {_f(pixel['aupro_0.3'])}  "
            f"{_f(pixel['aupro_0.05'])}   {_f(found['value'])} ({_f(found['low'])}-{_f(found['high'])})"
        )
    alarms = figures["decision"]["false_alarm_rate"]
    show(
        f"false alarms on {figures['n']['good']} good images: {_f(alarms['value'])} "
        f"(95 %: {_f(alarms['low'])}-{_f(alarms['high'])}) at threshold {figures['decision']['threshold']:.4f}"
    )


def _f(value: float) -> str:
    return f"{value:5.3f}" if value == value else "  -  "


cli_deploy.join(app)
cli_look.join(app)

if __name__ == "__main__":
    main()
