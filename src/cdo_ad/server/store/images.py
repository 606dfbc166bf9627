"""Images on disk under the hash of their content, and how long they stay.

`images/ab/abcd...` holds the bytes as they came. The name comes from the content, never from a client. A file is
written and synced before its inspection is acknowledged.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection, Engine, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from cdo_ad.files import write_bytes
from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.store import tables

__all__ = ["ImageStore"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
DAY = 86400.0
RECENT = 60.0


class ImageStore:
    """The files below a folder, and the table that lists them."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        """Use the folder `folder`, which is made at the first image."""
        self._engine = engine
        self._folder = folder

    def write(self, data: bytes) -> str:
        """Write the bytes of an image unless they are there; returns their hash. `note` lists them.

        Raises:
            OutputError: the disk is full, or the folder cannot be written to.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        try:
            os.utime(path)  # it was used now: `expire` lets it be until its row is there
        except OSError:
            write_bytes(path, data)
        return digest

    def path(self, digest: str) -> Path:
        """Where an image lies.

        Raises:
            NotFoundError: it is not a hash.
        """
        if not _DIGEST.fullmatch(digest):
            raise NotFoundError(f"{digest!r} is not the hash of an image: take it from the history")
        return self._folder / digest[:2] / digest

    def read(self, digest: str) -> bytes:
        """The bytes of an image; raises NotFoundError where it was never kept or is gone."""
        try:
            return self.path(digest).read_bytes()
        except OSError as error:
            raise NotFoundError(f"the image {digest[:12]} is not kept any more: see the retention settings") from error

    def note(self, connection: Connection, sizes: Iterable[tuple[str, int]], pinned: bool = False) -> None:
        """List images, or mark them as seen now, in the caller's transaction."""
        rows = [{"digest": d, "bytes": n, "at": time.time(), "pinned": pinned} for d, n in dict(sizes).items()]
        if not rows:
            return
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(tables.images)
        changes = {"at": statement.excluded.at} | ({"pinned": statement.excluded.pinned} if pinned else {})
        rows.sort(key=lambda row: str(row["digest"]))  # one order for all writers, so that none waits for another
        connection.execute(statement.on_conflict_do_update(index_elements=["digest"], set_=changes), rows)

    def add(self, data: bytes, pinned: bool = False) -> str:
        """Write and list an image; returns its hash. Raises OutputError."""
        digest = self.write(data)
        with self._engine.begin() as connection:
            self.note(connection, [(digest, len(data))], pinned)
        return digest

    def pin(self, digest: str, pinned: bool = True) -> None:
        """Keep an image whatever its age, or let it go with the others again."""
        with self._engine.begin() as connection:
            connection.execute(update(tables.images).where(tables.images.c.digest == digest).values(pinned=pinned))

    def usage(self) -> tuple[int, int]:
        """(number of images, their bytes)."""
        with self._engine.connect() as connection:
            count, size = connection.execute(select(func.count(), func.sum(tables.images.c.bytes))).one()
        return int(count), int(size or 0)

    def expire(self, days: float, gigabytes: float, now: float | None = None) -> int:
        """Remove images that are too old, then the oldest beyond the size; returns how many went.

        The row goes first: a file without a row is removed by the next `sweep`, a row never points to nothing.
        """
        table, count = tables.images, 0
        now = time.time() if now is None else now
        excess = self.usage()[1] - gigabytes * 1e9
        query = select(table.c.digest, table.c.bytes, table.c.at).where(~table.c.pinned).order_by(table.c.at)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        for digest, size, at in rows:
            if at >= now - days * DAY and excess <= 0:
                break
            with self._engine.begin() as connection:
                gone = connection.execute(delete(table).where(table.c.digest == digest, table.c.at == at))
            if gone.rowcount and not self._just_used(digest):
                self.path(digest).unlink(missing_ok=True)
            excess -= size
            count += 1
        return count

    def _just_used(self, digest: str) -> bool:
        """True where an inspection that is being recorded counts on the file; `sweep` finds those that do not."""
        try:
            return self.path(digest).stat().st_mtime > time.time() - RECENT
        except OSError:
            return False

    def sweep(self, older_than: float = 3600.0) -> int:
        """Remove files that no row lists, left by a process that was killed; returns how many."""
        count, limit = 0, time.time() - older_than
        for path in self._folder.glob("??/*"):
            with self._engine.connect() as connection:
                listed = connection.scalar(select(tables.images.c.digest).where(tables.images.c.digest == path.name))
            if listed is None and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
                count += 1
        return count
