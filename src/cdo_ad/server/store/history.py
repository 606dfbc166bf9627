"""Reading inspections: one, a page of them, all as CSV; and what people said of them."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Engine, Select, and_, delete, func, insert, select, update

from cdo_ad.errors import ConfigError
from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.store import tables

__all__ = ["Box", "Filters", "History", "Verdict"]

Verdict = Literal["false alarm", "missed"]
Box = tuple[int, int, int, int]
"""(x, y, width, height) in pixels of the image."""
COLUMNS = (
    "uid", "time", "product", "version", "name", "source", "decision", "score", "p_value", "threshold", "rate",
    "sentence", "category", "regions", "width", "height", "seconds", "image", "verdict",
)  # fmt: skip
PAGE = 500


@dataclass(frozen=True)
class Filters:
    """Which inspections; all that are given must hold."""

    product: str | None = None
    version: int | None = None
    anomalous: bool | None = None
    verdict: Verdict | Literal["any", "none"] | None = None
    source: str | None = None
    since: float | None = None
    """Seconds since 1970."""
    until: float | None = None

    def condition(self) -> ColumnElement[bool]:
        """As SQL."""
        i, said = tables.inspections.c, tables.corrections.c.verdict
        parts = [i.id > 0]
        for column, value in (
            (i.product, self.product), (i.version, self.version), (i.anomalous, self.anomalous), (i.source, self.source)
        ):  # fmt: skip
            if value is not None:
                parts.append(column == value)
        if self.since is not None:
            parts.append(i.at >= self.since)
        if self.until is not None:
            parts.append(i.at <= self.until)
        if self.verdict in ("any", "none"):
            parts.append(said.is_not(None) if self.verdict == "any" else said.is_(None))
        elif self.verdict is not None:
            parts.append(said == self.verdict)
        return and_(*parts)


class History:
    """The inspections of a database."""

    def __init__(self, engine: Engine) -> None:
        """Read and correct the inspections of a database."""
        self._engine = engine

    def get(self, uid: str) -> dict[str, Any]:
        """One inspection; raises NotFoundError if there is none."""
        with self._engine.connect() as connection:
            row = connection.execute(_joined().where(tables.inspections.c.uid == uid)).mappings().first()
            if row is None:
                raise NotFoundError(f"there is no inspection {uid!r}: take the id from the history")
            found = _plain(dict(row))
            shadow = select(tables.shadows).where(tables.shadows.c.inspection == uid)
            found["shadows"] = [
                {key: value for key, value in dict(each).items() if key not in ("id", "inspection")}
                for each in connection.execute(shadow).mappings()
            ]
        return found

    def page(
        self, filters: Filters, limit: int = 50, before: int | None = None, after: int | None = None
    ) -> list[dict[str, Any]]:
        """Inspections, the newest first.

        Args:
            filters: which ones.
            limit: how many at the most.
            before: the `number` of the last one of the page before.
            after: only those with a larger `number`: what is new.
        """
        number = tables.inspections.c.id
        query = _joined().where(filters.condition()).order_by(number.desc()).limit(limit)
        if before is not None:
            query = query.where(number < before)
        if after is not None:
            query = query.where(number > after)
        with self._engine.connect() as connection:
            return [_plain(dict(row)) for row in connection.execute(query).mappings()]

    def counts(self, filters: Filters) -> dict[str, int]:
        """Number of inspections, of anomalous ones, and of corrections among them."""
        i = tables.inspections.c
        query = (
            select(func.count(), func.sum(i.anomalous.cast(_Integer)), func.count(tables.corrections.c.id))
            .select_from(_join())
            .where(filters.condition())
        )
        with self._engine.connect() as connection:
            total, anomalous, corrected = connection.execute(query).one()
        return {"total": int(total), "anomalous": int(anomalous or 0), "corrected": int(corrected)}

    def csv(self, filters: Filters) -> Iterator[str]:
        """All that the filters let through as CSV, the newest first, a page at a time."""
        yield _line(COLUMNS)
        before: int | None = None
        while rows := self.page(filters, PAGE, before):
            yield "".join(_line([_cell(row[name]) for name in COLUMNS]) for row in rows)
            before = int(rows[-1]["number"])

    def correct(self, uid: str, verdict: Verdict, boxes: Sequence[Box], by: str) -> dict[str, Any]:
        """Say that a decision was wrong; a later word replaces an earlier one.

        Raises:
            NotFoundError: there is no such inspection, or its image was not kept.
            ConfigError: the verdict does not fit the decision, or a missed defect has no box inside the image.
        """
        found = self.get(uid)
        if found["image"] is None:
            raise NotFoundError(f"the image of inspection {uid} was not kept, so nothing can be learned from it")
        if (verdict == "false alarm") != found["anomalous"]:
            word = "anomalous" if found["anomalous"] else "good"
            raise ConfigError(f"inspection {uid} was called {word}, which cannot be a {verdict!r} decision")
        if verdict == "missed":
            _check_boxes(boxes, found["width"], found["height"])
        self.withdraw(uid)
        with self._engine.begin() as connection:
            connection.execute(
                insert(tables.corrections).values(
                    inspection=uid, product=found["product"], verdict=verdict,
                    boxes=[list(box) for box in boxes] if verdict == "missed" else [], at=time.time(), by=by,
                )
            )  # fmt: skip
        return self.get(uid)

    def withdraw(self, uid: str) -> None:
        """Take back what was said of an inspection."""
        with self._engine.begin() as connection:
            connection.execute(delete(tables.corrections).where(tables.corrections.c.inspection == uid))

    def corrections(self, product: str, unused_only: bool = True) -> list[dict[str, Any]]:
        """Corrections of a product, the oldest first, with the inspection's image."""
        c = tables.corrections.c
        query = select(tables.corrections, tables.inspections.c.image, tables.inspections.c.category).join(
            tables.inspections, tables.inspections.c.uid == c.inspection
        )
        query = query.where(c.product == product).order_by(c.id)
        if unused_only:
            query = query.where(c.used_in.is_(None))
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def mark_used(self, ids: Sequence[int], version: int) -> None:
        """Note the version that learned from corrections."""
        with self._engine.begin() as connection:
            table = tables.corrections
            connection.execute(update(table).where(table.c.id.in_(ids)).values(used_in=version))

    def shadow_summary(self, product: str, version: int) -> dict[str, int]:
        """Of a shadow version: images judged, its alarms, and how often it decided otherwise."""
        s = tables.shadows.c
        query = select(func.count(), func.sum(s.anomalous.cast(_Integer)), func.sum(s.differs.cast(_Integer))).where(
            s.product == product, s.version == version
        )
        with self._engine.connect() as connection:
            images, alarms, differs = connection.execute(query).one()
        return {"images": int(images), "alarms": int(alarms or 0), "differs": int(differs or 0)}


_Integer = tables.inspections.c.width.type


def _join() -> Any:
    on = tables.corrections.c.inspection == tables.inspections.c.uid
    return tables.inspections.outerjoin(tables.corrections, on)


def _joined() -> Select[Any]:
    c = tables.corrections.c
    return select(tables.inspections, c.verdict, c.boxes.label("verdict_boxes"), c.by.label("verdict_by")).select_from(
        _join()
    )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    row["number"] = row.pop("id")
    row["time"] = datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="milliseconds")
    row["decision"] = "anomalous" if row["anomalous"] else "good"
    return row


def _check_boxes(boxes: Sequence[Box], width: int, height: int) -> None:
    if not boxes:
        raise ConfigError("a missed defect needs a box: draw one around it")
    for x, y, w, h in boxes:
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
            raise ConfigError(f"the box {x}, {y}, {w}, {h} does not lie inside the image of {width} x {height} pixels")


def _cell(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    text = str(len(value)) if isinstance(value, list) else str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()
