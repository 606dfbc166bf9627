"""Checks, trainings and adaptations: one at a time, each in a process of its own, with progress and cancel."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, select, update

from cdo_ad.files import write_json
from cdo_ad.server.errors import ConflictError, NotFoundError
from cdo_ad.server.store import tables

__all__ = ["Done", "Jobs"]

log = logging.getLogger("cdo_ad.server")
POLL_SECONDS = 0.2
KILL_SECONDS = 10.0
MOST_WAITING = 20
Done = Callable[[dict[str, Any]], dict[str, Any]]
"""Called with a job's result once it succeeded; what it returns is added to the result."""


class Jobs:
    """The jobs of a server; safe to call from any thread."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        """Start the thread that runs them; what ran when the server was killed is called interrupted."""
        self._engine, self._folder = engine, folder
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._done: dict[str, Done] = {}
        self._cancelled: set[str] = set()
        self._ended = threading.Event()
        table = tables.jobs
        with engine.begin() as connection:
            running = table.c.state.in_(("waiting", "running"))
            message = "the server was stopped: start the job again"
            connection.execute(update(table).where(running).values(state="interrupted", message=message))
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, kind: str, product: str, by: str, job: dict[str, Any], done: Done | None = None) -> dict[str, Any]:
        """Add a job to the queue.

        Args:
            kind: `check`, `train` or `adapt`.
            product: which it is about.
            by: who asks for it.
            job: see `cdo_ad.server.teaching.worker`; the folder `scratch` is removed unless the job makes a run.
            done: called once it succeeded.

        Raises:
            ConflictError: too many wait.
        """
        if self._queue.qsize() >= MOST_WAITING:
            raise ConflictError(f"{MOST_WAITING} jobs are waiting already: cancel some, or wait for them")
        uid = uuid.uuid4().hex
        write_json(self.folder(uid) / "job.json", {**job, "kind": kind})
        values = {"uid": uid, "kind": kind, "product": product, "by": by, "created": time.time()}
        with self._engine.begin() as connection:
            connection.execute(insert(tables.jobs).values(**values, state="waiting", message="", result={}))
        if done is not None:
            self._done[uid] = done
        self._queue.put(uid)
        return self.get(uid)

    def get(self, uid: str) -> dict[str, Any]:
        """A job with its progress; raises NotFoundError."""
        with self._engine.connect() as connection:
            row = connection.execute(select(tables.jobs).where(tables.jobs.c.uid == uid)).mappings().first()
        if row is None:
            raise NotFoundError(f"there is no job {uid!r}: the list of jobs names all")
        return {**dict(row), "progress": _read(self.folder(uid) / "progress.json")}

    def list(self, limit: int = 50) -> list[dict[str, Any]]:
        """The last jobs, the newest first, without their results."""
        query = select(tables.jobs).order_by(tables.jobs.c.created.desc()).limit(limit)
        with self._engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return [{key: value for key, value in row.items() if key != "result"} for row in rows]

    def cancel(self, uid: str) -> dict[str, Any]:
        """End a job; what it has written is removed.

        Raises:
            NotFoundError: there is none. ConflictError: it has ended already.
        """
        if self.get(uid)["state"] not in ("waiting", "running"):
            raise ConflictError(f"job {uid} has ended already")
        self._cancelled.add(uid)
        return self.get(uid)

    def folder(self, uid: str) -> Path:
        """Where a job keeps its files."""
        return self._folder / "jobs" / uid

    def close(self) -> None:
        """End the job that runs, and stop."""
        self._ended.set()
        self._queue.put(None)
        self._thread.join(KILL_SECONDS + 5)

    def _run(self) -> None:
        while (uid := self._queue.get()) is not None and not self._ended.is_set():
            try:
                self._do(uid)
            except Exception as error:  # the next job must run all the same
                log.exception("a job failed")
                self._set(uid, "failed", str(error))

    def _do(self, uid: str) -> None:
        if uid in self._cancelled:
            self._set(uid, "cancelled", "cancelled before it began")
            return
        self._set(uid, "running", "")
        folder = self.folder(uid)
        with (folder / "log.txt").open("wb") as file:
            words = [sys.executable, "-m", "cdo_ad.server.teaching.worker", str(folder)]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            stopped = self._wait(uid, process)
        result = _read(folder / "result.json") or {"error": "its process ended without a word: see its log"}
        job = _read(folder / "job.json") or {}
        if "scratch" in job and (stopped or "error" in result or job["kind"] == "check"):
            shutil.rmtree(job["scratch"], ignore_errors=True)
        if stopped:
            ended = "the server was stopped" if uid not in self._cancelled else "cancelled"
            self._set(uid, "cancelled" if uid in self._cancelled else "interrupted", ended)
        elif "error" in result:
            self._set(uid, "failed", str(result["error"]), result)
        else:
            done = self._done.pop(uid, None)
            self._set(uid, "done", "", {**result, **(done(result) if done is not None else {})})

    def _wait(self, uid: str, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end; True where it was stopped before."""
        while process.poll() is None:
            if uid in self._cancelled or self._ended.is_set():
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(KILL_SECONDS)
                process.kill()
                process.wait()
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _set(self, uid: str, state: str, message: str, result: dict[str, Any] | None = None) -> None:
        values: dict[str, Any] = {"state": state, "message": message}
        if state not in ("waiting", "running"):
            values["ended"] = time.time()
        if result is not None:
            values["result"] = result
        with self._engine.begin() as connection:
            connection.execute(update(tables.jobs).where(tables.jobs.c.uid == uid).values(**values))


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found
