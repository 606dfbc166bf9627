"""The verbs that bring a run to the line: export, benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdo_ad.cli.options import AsJson, Run, parse_size, show, show_json
from cdo_ad.errors import ConfigError

__all__ = ["VERBS"]


def export(
    run: Run,
    to: Annotated[
        str, typer.Option(help="openvino or onnx; triton or ovms for a model repository of these servers.")
    ] = "openvino",
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise; refused where that costs quality. OpenVINO only.")
    ] = False,
    images: Annotated[Path | None, typer.Option(help="Good images to compare on; default: the run's.")] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="With --int8: data set whose labelled test images judge it too.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --to triton or ovms: the repository's folder.")] = None,
    name: Annotated[
        str | None, typer.Option(help="With --to triton or ovms: the model's name; default: the run's.")
    ] = None,
    version: Annotated[int, typer.Option(min=1, help="With --to triton or ovms: the model's version.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Write one model file that needs no torch, and prove that it gives the same answers."""
    if to in ("triton", "ovms"):
        _write_repository(run, out, to, name or run.resolve().name, version)
        return
    if int8:
        if images is not None:
            raise ConfigError("--int8 is fitted on the run's own images: leave --images out")
        _export_int8(run, to, labelled, as_json)
        return
    if labelled is not None:
        raise ConfigError("--labelled judges an int8 model: add  --int8")
    from cdo_ad.deploy.export import export as write

    file, agreement = write(run, to, images=images)
    if as_json:
        show_json({"file": str(file), **agreement.to_json()})
        return
    show(
        f"{file}: same decision on all of {agreement.images} images; scores differ by at most "
        f"{agreement.score_difference:.1e}, maps by {agreement.map_difference:.1e} (relative)"
    )


def _write_repository(run: Path, out: Path | None, to: str, name: str, version: int) -> None:
    from cdo_ad.deploy.repository import write_repository

    if out is None:
        raise ConfigError(f"--to {to} needs the folder of the repository: add  --out FOLDER")
    show(str(write_repository(run, out, to, name, version)))


def _export_int8(run: Path, to: str, labelled: Path | None, as_json: bool) -> None:
    if to != "openvino":
        raise ConfigError(f"--int8 is made for OpenVINO, not for {to!r}: use  --to openvino --int8")
    from cdo_ad.deploy.int8 import export_int8

    file, quality = export_int8(run, labelled=labelled)
    if as_json:
        show_json({"file": str(file), **quality.to_json()})
        return
    show(f"{file}: branches and thresholds were made anew from {quality.good} good images")
    fp32, int8 = quality.fp32, quality.int8
    show(
        f"{quality.anomalous} synthetic anomalies: AUROC {int8.image_auroc:.4f} (float32 {fp32.image_auroc:.4f}), "
        f"pixel AP {int8.ap:.4f} ({fp32.ap:.4f}), detected {int8.detected:.1%} ({fp32.detected:.1%})"
    )
    if quality.labelled is not None:
        fp32, int8 = quality.labelled
        show(
            f"labelled images: AUROC {int8.image_auroc:.4f} (float32 {fp32.image_auroc:.4f}), AP {int8.ap:.4f} "
            f"({fp32.ap:.4f}), detected {int8.detected:.1%} ({fp32.detected:.1%}), false alarms "
            f"{int8.false_alarms:.1%} ({fp32.false_alarms:.1%})"
        )


def benchmark(
    run: Run,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds at batch 1.")] = 30,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images a batch, for the throughput; default: each engine's best.")
    ] = None,
    image_size: Annotated[str | None, typer.Option(metavar="HxW", help="Size of the images.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure every engine this run can use, against the plain PyTorch form."""
    from cdo_ad.deploy.benchmark import benchmark as measure

    result = measure(run, rounds=rounds, batch=batch, image_size=parse_size(image_size, "--image-size"))
    if as_json:
        show_json(result)
        return
    show("runtime       precision                        form batch  median ms   p99 ms  images/s  x plain")
    for row in result["rows"]:
        show(
            f"{row['runtime']:14}{row['precision']:>9}{row['form']:>28}{row['batch']:6d}{row['latency_ms_median']:11.1f}"
            f"{row['latency_ms_p99']:9.1f}{row['images_per_second']:10.1f}{row['ratio_to_plain']:9.2f}"
        )
    _show_stages(result["stages"])
    for name, memory in (result["machine"]["peak_memory_mib"] or {}).items():
        show(f"peak memory of a process with {name} alone: {memory:.0f} MiB")
    show(f"{result['machine']['processor']}, {result['machine']['cores']} cores")


def _show_stages(stages: dict[str, dict[str, float]]) -> None:
    """A column an engine; milliseconds. `all` is what every engine does."""
    show("\nstage" + " " * 18 + "".join(f"{name:>15}" for name in stages))
    for name in dict.fromkeys(name for each in stages.values() for name in each):
        values = (f"{each[name]:15.2f}" if name in each else " " * 15 for each in stages.values())
        show(f"{name:23}" + "".join(values))
    show("")


VERBS = (export, benchmark)
