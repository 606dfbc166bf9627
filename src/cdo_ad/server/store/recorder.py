"""Writing inspections: one thread, many rows in a transaction, and nobody is told before the commit.

An insert costs a sync of the disk. While one transaction is being synced, the next inspections gather; they all go into
the next one. So the disk's latency bounds the answer's latency, not the number of images a second.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Engine, insert
from sqlalchemy.exc import SQLAlchemyError

from cdo_ad.errors import OutputError
from cdo_ad.server.store import tables
from cdo_ad.server.store.images import ImageStore

__all__ = ["Recorder"]

MOST_ROWS = 200
_END = None
log = logging.getLogger("cdo_ad.server")
Row = dict[str, Any]


class Recorder:
    """Adds rows to `inspections` and `shadows`; safe to call from any thread."""

    def __init__(self, engine: Engine, images: ImageStore, waiting: int = 1000) -> None:
        """Start the thread; `waiting` rows may wait at the most."""
        self._engine = engine
        self._images = images
        self._queue: queue.Queue[tuple[str, Row, int, Future[None]] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def inspection(self, row: Row, size: int) -> Future[None]:
        """Add an inspection; done when it is committed.

        Args:
            row: as in the table; `image` is a hash whose file is written, or None.
            size: bytes of that file.
        """
        return self._put("inspections", row, size)

    def shadow(self, row: Row) -> Future[None]:
        """Add what a shadow version said."""
        return self._put("shadows", row, 0)

    def close(self) -> None:
        """Write what waits and stop."""
        self._queue.put(_END)
        self._thread.join()

    def _put(self, table: str, row: Row, size: int) -> Future[None]:
        future: Future[None] = Future()
        try:
            self._queue.put_nowait((table, row, size, future))
        except queue.Full:
            future.set_exception(OutputError("the database is too slow: inspections cannot be recorded; try again"))
        return future

    def _run(self) -> None:
        going = True
        while going:
            found = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(found) < MOST_ROWS:
                    found.append(self._queue.get_nowait())
            going = _END not in found
            self._commit([item for item in found if item is not None])

    def _commit(self, items: list[tuple[str, Row, int, Future[None]]]) -> None:
        try:
            self._write(items)
        except (SQLAlchemyError, OSError) as error:
            log.error("inspections cannot be recorded", exc_info=error)
            _each(items, lambda f: f.set_exception(OutputError("the inspection could not be recorded: see the log")))
            return
        _each(items, lambda future: future.set_result(None))

    def _write(self, items: list[tuple[str, Row, int, Future[None]]]) -> None:
        if not items:
            return
        with self._engine.begin() as connection:
            for table in (tables.inspections, tables.shadows):
                if rows := [row for name, row, _, _ in items if name == table.name]:
                    connection.execute(insert(table), rows)
            kept = [(row["image"], size) for _, row, size, _ in items if row.get("image")]
            self._images.note(connection, kept)


def _each(items: list[tuple[str, Row, int, Future[None]]], tell: Callable[[Future[None]], None]) -> None:
    for _, _, _, future in items:
        if not future.cancelled():
            with contextlib.suppress(Exception):  # cancelled just now
                tell(future)
