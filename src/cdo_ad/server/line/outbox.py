"""What a sink has still to be told: kept on disk until it took it, so that a message is sent at least once.

An outbox is bounded: beyond that the oldest messages go, which is counted. Inspection never waits for a sink.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any, Protocol

from cdo_ad.files import writing

__all__ = ["Backlog", "Message", "Outbox"]

Message = dict[str, Any]


class Backlog(Protocol):
    """Messages in their order, each with a number that grows."""

    def waiting(self, limit: int) -> list[tuple[int, Message]]:
        """The oldest messages that were not taken."""
        ...

    def newest(self) -> tuple[int, Message] | None:
        """The newest message that was not taken."""
        ...

    def taken(self, number: int) -> None:
        """Forget all messages up to this one."""
        ...

    def count(self) -> int:
        """How many wait."""
        ...

    def lost(self) -> int:
        """How many went because too many waited."""
        ...


class Outbox:
    """A backlog in a file of its own; safe to call from any thread."""

    def __init__(self, file: Path, most: int = 100_000) -> None:
        """Open or make the file; raises OutputError."""
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        for setting in ("journal_mode=WAL", "synchronous=FULL"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT)")
        self._lock, self._most, self._lost = threading.Lock(), most, 0
        self._count = int(self._database.execute("SELECT count(*) FROM messages").fetchone()[0])

    def put(self, message: Message) -> None:
        """Add a message; it is on the disk when this returns."""
        with self._lock:
            self._database.execute("INSERT INTO messages (body) VALUES (?)", (json.dumps(message),))
            self._count += 1
            if self._count > self._most:
                self._database.execute("DELETE FROM messages WHERE id = (SELECT min(id) FROM messages)")
                self._count -= 1
                self._lost += 1

    def waiting(self, limit: int) -> list[tuple[int, Message]]:
        """See `Backlog.waiting`."""
        return self._read("SELECT id, body FROM messages ORDER BY id LIMIT ?", limit)

    def newest(self) -> tuple[int, Message] | None:
        """See `Backlog.newest`."""
        found = self._read("SELECT id, body FROM messages ORDER BY id DESC LIMIT ?", 1)
        return found[0] if found else None

    def taken(self, number: int) -> None:
        """See `Backlog.taken`."""
        with self._lock:
            self._count -= self._database.execute("DELETE FROM messages WHERE id <= ?", (number,)).rowcount

    def count(self) -> int:
        """See `Backlog.count`."""
        return self._count

    def lost(self) -> int:
        """See `Backlog.lost`."""
        return self._lost

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _read(self, query: str, limit: int) -> list[tuple[int, Message]]:
        with self._lock:
            rows = self._database.execute(query, (limit,)).fetchall()
        return [(number, json.loads(body)) for number, body in rows]
