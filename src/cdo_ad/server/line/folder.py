"""A folder that a camera or a person puts images into: finished files only, each once.

A file is finished when its size and time have not changed between two looks. Files that were judged are remembered in a
small database, or moved to `done` (`failed` where they are no images).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cdo_ad.data.files import read_bytes
from cdo_ad.data.listing import IMAGE_SUFFIXES
from cdo_ad.data.marks import is_own_output
from cdo_ad.errors import ImageError
from cdo_ad.files import writing
from cdo_ad.server.errors import LineError
from cdo_ad.server.line.frames import Frame

__all__ = ["After", "FolderSource"]

After = Literal["keep", "move"]
DONE, FAILED = "done", "failed"
Stamp = tuple[int, int]
"""(bytes, time of change in nanoseconds)."""


class FolderSource:
    """All images below a folder, in the order of their names, and then those that come."""

    live = False

    def __init__(
        self, folder: Path, memory: Path, after: After = "keep", *, settle: float = 0.5, once: bool = False
    ) -> None:
        """Watch a folder.

        Args:
            folder: hidden files and folders in it are left out.
            memory: a file for the names of those that were judged.
            after: leave files where they are, or move them.
            settle: seconds between two looks.
            once: end when all files that are there are judged.

        Raises:
            LineError: there is no such folder.
        """
        if not folder.is_dir():
            raise LineError(f"{folder}: there is no such folder: make it, or name another source")
        self._folder, self._after, self._settle, self._once = folder, after, settle, once
        self._memory = _Memory(memory)
        self._waiting: dict[Path, Stamp] = {}
        self._judged = self._failed = 0

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`."""
        while not stop.is_set():
            finished = self._finished()
            for path, stamp in finished:
                if stop.is_set():
                    return
                if (frame := self._frame(path, stamp)) is not None:
                    yield frame
            if self._once and not finished and not self._waiting:
                return
            stop.wait(self._settle)

    def close(self) -> None:
        """Close the memory of names."""
        self._memory.close()

    def status(self) -> dict[str, Any]:
        """See `Source.status`."""
        return {"connected": self._folder.is_dir(), "judged": self._judged, "failed": self._failed}

    def _finished(self) -> list[tuple[Path, Stamp]]:
        """Files that have not changed since the last look and were not judged."""
        now = {path: stamp for path, stamp in self._listed() if not self._memory.knows(path, stamp)}
        finished = [(path, stamp) for path, stamp in now.items() if self._waiting.get(path) == stamp]
        self._waiting = {path: stamp for path, stamp in now.items() if self._waiting.get(path) != stamp}
        for path, stamp in finished:
            self._waiting[path] = stamp  # until it is done with
        return sorted(finished)

    def _listed(self) -> Iterator[tuple[Path, Stamp]]:
        for root, folders, files in os.walk(self._folder):
            top = Path(root) == self._folder
            folders[:] = [f for f in folders if not f.startswith(".") and not (top and f in (DONE, FAILED))]
            for name in files:
                path = Path(root, name)
                if name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                try:
                    found = path.stat()
                except OSError:
                    continue  # it went away
                if found.st_size and not is_own_output(path):
                    yield path, (found.st_size, found.st_mtime_ns)

    def _frame(self, path: Path, stamp: Stamp) -> Frame | None:
        def done(judged: bool) -> None:
            self._waiting.pop(path, None)
            self._judged += judged
            self._failed += not judged
            if self._after == "move":
                self._move(path, DONE if judged else FAILED)
            else:
                self._memory.add(path, stamp)

        name = path.relative_to(self._folder).as_posix()
        try:
            return Frame(name, read_bytes(path), time.time(), done)
        except ImageError:
            if path.exists():
                done(False)
            return None

    def _move(self, path: Path, kind: str) -> None:
        target = self._folder / kind / path.relative_to(self._folder)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while target.exists():
                target = target.with_name(f"{path.stem}_{number}{path.suffix}")
                number += 1
            path.replace(target)


class _Memory:
    """Which files were judged; a file that changed is a new one."""

    def __init__(self, file: Path) -> None:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, bytes INTEGER, changed INTEGER)"
        )
        self._lock = threading.Lock()

    def knows(self, path: Path, stamp: Stamp) -> bool:
        with self._lock:
            query = "SELECT bytes, changed FROM seen WHERE path = ?"
            found: object = self._database.execute(query, (str(path.absolute()),)).fetchone()
        return found == stamp

    def add(self, path: Path, stamp: Stamp) -> None:
        with self._lock:
            self._database.execute("REPLACE INTO seen VALUES (?, ?, ?)", (str(path.absolute()), *stamp))

    def close(self) -> None:
        with self._lock:
            self._database.close()
