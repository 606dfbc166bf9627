"""The command line: parse, call one function, print. Results go to stdout, all else to stderr.

Exit codes: 0 done; 1 an error that the user can mend (one line); 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Annotated, TextIO

import typer

from cdo_ad.cli import deployment, inspection, judging, making, scaling, serving
from cdo_ad.cli.options import say
from cdo_ad.errors import CdoError, CdoWarning, Interrupted

__all__ = ["app", "main"]

app = typer.Typer(
    help="Find defects in images of products, learned from good images only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for room in (making, judging, inspection, deployment, scaling, serving):
    for verb in room.VERBS:
        app.command()(verb)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Find defects in images of products, learned from good images only."""


def main() -> None:
    """Run the command line; the entry point of `cdo-ad`."""
    # torch's threads wait for each other at full load otherwise: beside another busy process that costs several times
    # (benchmarks/busy.py). The OpenMP library reads this when torch is imported, so it must be set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("stdout", "stderr"):  # Python has none where a caller has closed it, and printing would fail
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
    words = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(words) < len(sys.argv) - 1
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", CdoWarning)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)  # the parser would swallow a KeyboardInterrupt and its words
    try:
        app(args=words, prog_name="cdo-ad", standalone_mode=True)
    except BrokenPipeError:  # the reader of our output, such as head, went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (CdoError, OSError, MemoryError) as error:
        if debug:
            raise
        say(f"error: {_line(error)}")
        sys.exit(1)
    except Interrupted as interrupt:
        say(f"interrupted; {interrupt}" if str(interrupt) else "interrupted")
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise Interrupted


def _line(error: BaseException) -> str:
    """An error as one line: what, where, what to do."""
    if isinstance(error, MemoryError):
        return "out of memory: close other programs, or use smaller images or a smaller batch (--set batch_size=4)"
    if isinstance(error, OSError) and not isinstance(error, CdoError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}: check the path, its rights and the free space"
    return " ".join(str(error).split("\n"))


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    if issubclass(category, CdoWarning):
        say(f"note: {message}")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


if __name__ == "__main__":
    main()
