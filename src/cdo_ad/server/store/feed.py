"""Inspections in the order in which they were made, for sinks: each remembers how far it came."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, func, insert, select, update

from cdo_ad.server.store import tables

__all__ = ["LINE", "Feed", "message_of"]

LINE = "line:"
"""Begins the source of inspections that the line's sources gave."""
Row = dict[str, Any]


class Feed:
    """A backlog (`cdo_ad.server.line.outbox.Backlog`) that is a view of the history: nothing is stored twice."""

    def __init__(self, engine: Engine, name: str, *, line_only: bool = False, most: int = 100_000) -> None:
        """Begin where the sink of this name left off; a new one begins with what comes now.

        Args:
            engine: of the database.
            name: of the sink.
            line_only: leave out what people and programs uploaded: a PLC must reject parts, not trials.
            most: inspections that may wait; beyond that the oldest are left out.
        """
        self._engine, self._name, self._line_only, self._most = engine, name, line_only, most
        self._lost = 0
        with engine.begin() as connection:
            query = select(tables.cursors.c.number).where(tables.cursors.c.sink == name)
            number = connection.scalar(query)
            if number is None:
                number = connection.scalar(select(func.max(tables.inspections.c.id))) or 0
                connection.execute(insert(tables.cursors).values(sink=name, number=number))
        self._number = int(number)

    def waiting(self, limit: int) -> list[tuple[int, Row]]:
        """See `Backlog.waiting`."""
        if (excess := self.count() - self._most) > 0:
            self._skip(excess)
        return self._read(limit, newest=False)

    def newest(self) -> tuple[int, Row] | None:
        """See `Backlog.newest`."""
        found = self._read(1, newest=True)
        return found[0] if found else None

    def taken(self, number: int) -> None:
        """See `Backlog.taken`."""
        table = tables.cursors
        with self._engine.begin() as connection:
            connection.execute(update(table).where(table.c.sink == self._name).values(number=number))
        self._number = number

    def count(self) -> int:
        """See `Backlog.count`."""
        with self._engine.connect() as connection:
            return int(connection.scalar(select(func.count()).where(self._condition())) or 0)

    def lost(self) -> int:
        """See `Backlog.lost`."""
        return self._lost

    def _condition(self) -> ColumnElement[bool]:
        c = tables.inspections.c
        later = c.id > self._number
        return and_(later, c.source.startswith(LINE)) if self._line_only else later

    def _read(self, limit: int, newest: bool) -> list[tuple[int, Row]]:
        number = tables.inspections.c.id
        query = select(tables.inspections).where(self._condition()).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(number.desc() if newest else number)).mappings().all()
        return [(int(row["id"]), message_of(dict(row))) for row in rows]

    def _skip(self, count: int) -> None:
        numbers = self._read(count, newest=False)
        self._lost += len(numbers)
        self.taken(numbers[-1][0])


def message_of(row: Row) -> Row:
    """What a sink is told of an inspection: all but the outlines of regions."""
    message = {key: value for key, value in row.items() if key not in ("id", "number")}
    message["decision"] = "anomalous" if row["anomalous"] else "good"
    message["regions"] = [{k: v for k, v in region.items() if k != "contour"} for region in row["regions"]]
    return message
