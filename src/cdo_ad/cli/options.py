"""What the verbs of the command line share: their options, how they print, how they read a size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cdo_ad.errors import ConfigError

__all__ = ["AsJson", "Category", "Data", "Device", "Layout", "Rate", "Run", "parse_size", "say", "show", "show_json"]

Data = Annotated[Path, typer.Argument(help="Folder of the data set.")]
Run = Annotated[Path, typer.Argument(help="Run folder written by train.")]
Layout = Annotated[str, typer.Option(help="auto, folder, mvtec, mvtec3d or visa.")]
Category = Annotated[str | None, typer.Option(help="Category, where the data set or the run has several.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output on stdout.")]
Rate = Annotated[float | None, typer.Option(help="Share of good images that may be called anomalous.")]


def show(text: str) -> None:
    """Print a result on stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_json(document: dict[str, Any]) -> None:
    """Print a result for machines on stdout."""
    show(json.dumps(document, indent=2))


def say(text: str) -> None:
    """Print what is no result, on stderr."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


def parse_size(text: str | None, option: str) -> tuple[int, int] | None:
    """(height, width) of ``"256x320"``, None for None; raises ConfigError, naming the option, for anything else."""
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0):
        raise ConfigError(f"{option} {text}: write it as HEIGHTxWIDTH, e.g. 256x256")
    return int(height), int(width)
