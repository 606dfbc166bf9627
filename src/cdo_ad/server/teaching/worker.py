"""The process that checks, trains or adapts: `python -m cdo_ad.server.teaching.worker FOLDER`.

It reads `job.json` in the folder, writes how far it is to `progress.json` and what came out to `result.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from cdo_ad.errors import CdoError, MissingExtraError
from cdo_ad.files import finite, write_json
from cdo_ad.progress import listen

__all__ = ["main", "work"]

TELL_SECONDS = 0.3


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job.

    Args:
        job: `kind` and the paths and settings that it needs.

    Returns:
        What came out, ready for JSON.

    Raises:
        CdoError: as `check`, `train` and `adapt`.
    """
    kinds = {"check": _check, "train": _train, "adapt": _adapt}
    return kinds[job["kind"]](job)


def _check(job: dict[str, Any]) -> dict[str, Any]:
    from cdo_ad.audit.check import check

    return check(job["data"], _config(job), device=job["device"]).to_json()


def _train(job: dict[str, Any]) -> dict[str, Any]:
    from cdo_ad.training.train import train

    bundle = train(
        job["data"], job["out"], _config(job), device=job["device"], region=job.get("region"), interrupted="discard"
    )
    return {"promise": bundle.calibration.summary(), "report": _report(job)}


def _adapt(job: dict[str, Any]) -> dict[str, Any]:
    from cdo_ad.training.adapt import adapt

    bundle, changes = adapt(
        job["run"], job["out"], good=job["good"], bad=job["bad"], epochs=job["epochs"], device=job["device"]
    )
    found = {"promise": bundle.calibration.summary(), "changes": [change.to_json() for change in changes]}
    return {**found, "report": _report(job)}


def _report(job: dict[str, Any]) -> bool:
    from cdo_ad.reporting.build import report

    try:
        report(job["out"], device=job["device"])
    except MissingExtraError:
        return False
    return True


def _config(job: dict[str, Any]) -> Any:
    from cdo_ad import recipes

    return recipes.get(job["recipe"]).replace(**job["settings"])


class _Teller:
    """Writes the progress, a few times a second."""

    def __init__(self, file: Path) -> None:
        self._file, self._last, self._stage = file, 0.0, ""

    def __call__(self, stage: str, done: float, total: float | None) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._last < TELL_SECONDS and done != total:
            return
        self._stage, self._last = stage, now
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps({"stage": stage, "done": done, "total": total}), encoding="utf-8")
        part.replace(self._file)


def main(folder: Path) -> int:
    """Do the job of a folder; returns the exit code."""
    with contextlib.suppress(AttributeError, OSError):
        os.nice(5)  # inspection comes first
    job = json.loads((folder / "job.json").read_text("utf-8"))
    listen(_Teller(folder / "progress.json"))
    notes: list[str] = []
    warnings.showwarning = lambda message, *_, **__: notes.append(str(message))
    try:
        result = work(job)
    except CdoError as error:
        write_json(folder / "result.json", {"error": str(error)})
        return 1
    except Exception as error:  # the server must hear of it
        traceback.print_exc()
        write_json(folder / "result.json", {"error": f"an unexpected error: {error}"})
        return 1
    write_json(folder / "result.json", finite({**result, "notes": notes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
