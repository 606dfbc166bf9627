"""The audit trail: who did what, only ever added to; a chain of hashes shows any later change.

Each entry's digest is the SHA-256 of the digest before it and of its own fields as JSON. Who keeps the last digest
elsewhere can prove later that nothing was changed, taken out or put in.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, text

from cdo_ad.server.store import tables

__all__ = ["FIRST", "AuditTrail", "begin_exclusive", "entry_digest"]

FIRST = "0" * 64
"""The digest before the first entry."""


def entry_digest(previous: str, at: float, by: str, action: str, detail: str) -> str:
    """The digest of an entry; `detail` is its JSON text as it is stored."""
    fields = json.dumps([previous, at, by, action, detail], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(fields.encode()).hexdigest()


class AuditTrail:
    """The entries of a database."""

    def __init__(self, engine: Engine) -> None:
        """Use the table `audit` of a database."""
        self._engine = engine

    def add(self, by: str, action: str, **detail: Any) -> str:
        """Add an entry in a transaction of its own; returns its digest."""
        with begin_exclusive(self._engine) as connection:
            return self.add_in(connection, by, action, **detail)

    def add_in(self, connection: Connection, by: str, action: str, **detail: Any) -> str:
        """Add an entry as a part of the caller's transaction, which `begin_exclusive` has begun."""
        last = select(tables.audit.c.digest).order_by(tables.audit.c.id.desc()).limit(1)
        previous = connection.execute(last).scalar() or FIRST
        at, words = time.time(), json.dumps(detail, sort_keys=True, ensure_ascii=False, default=str)
        digest = entry_digest(previous, at, by, action, words)
        connection.execute(
            insert(tables.audit).values(at=at, by=by, action=action, detail=words, previous=previous, digest=digest)
        )
        return digest

    def entries(self, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The entries, the newest `limit` of them or all, in the order in which they were made."""
        query = select(tables.audit).order_by(tables.audit.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        for row in reversed(rows):
            yield dict(row)

    def broken_at(self) -> int | None:
        """The id of the first entry that does not follow from the one before; None where all is as it was written."""
        previous = FIRST
        for entry in self.entries():
            fields = (entry["at"], entry["by"], entry["action"], entry["detail"])
            if entry["previous"] != previous or entry["digest"] != entry_digest(previous, *fields):
                return int(entry["id"])
            previous = entry["digest"]
        return None


@contextmanager
def begin_exclusive(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other writer of the audit trail shares: the chain has one end."""
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            # the driver would begin at the first change only, after the last digest was read
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT pg_advisory_xact_lock(7041988)"))
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
