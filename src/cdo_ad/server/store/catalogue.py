"""Products, their versions, which one is active, and golden samples. A version is a run folder that never changes."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from cdo_ad.errors import ConfigError
from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.store import tables

__all__ = ["Catalogue", "GoldenRule", "Product", "Version", "check_name"]

GoldenRule = Literal["block", "warn"]
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _.-]{0,62}[A-Za-z0-9])?")


def check_name(name: str) -> str:
    """The name itself; raises ConfigError unless it is one for a product."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"{name!r} is no name for a product: use 1 to 64 letters, digits, spaces, '_', '-' and '.', "
            "with a letter or digit at both ends"
        )
    return name


@dataclass(frozen=True)
class Product:
    """What is inspected, by the version that is active."""

    name: str
    created: float
    active: int | None
    shadow: int | None
    """A version that judges the same images without a say."""
    rate: float | None
    """False-alarm rate that replaces that of the run; None for the run's own."""
    golden_rule: GoldenRule
    """What happens where the version to activate judges a golden sample wrong."""


@dataclass(frozen=True)
class Version:
    """A run of a product."""

    product: str
    number: int
    run: str
    created: float
    by: str
    note: str
    summary: dict[str, Any]


class Catalogue:
    """The products of a database."""

    def __init__(self, engine: Engine) -> None:
        """Use the tables of a database."""
        self._engine = engine

    def products(self) -> list[Product]:
        """All, by name."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(tables.products).order_by(tables.products.c.name)).mappings().all()
        return [_product(dict(row)) for row in rows]

    def product(self, name: str) -> Product:
        """One; raises NotFoundError if there is none of that name."""
        with self._engine.connect() as connection:
            row = connection.execute(select(tables.products).where(tables.products.c.name == name)).mappings().first()
        if row is None:
            raise NotFoundError(f"there is no product {name!r}: the list of models names all")
        return _product(dict(row))

    def create(self, name: str) -> Product:
        """A new product, or the one that is there; raises ConfigError for a name that cannot be one."""
        check_name(name)
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(tables.products).values(name=name, created=time.time(), golden_rule="block"))
        except IntegrityError:
            pass  # another request was first
        return self.product(name)

    def change(self, name: str, **values: Any) -> Product:
        """Set `shadow`, `rate` or `golden_rule` of a product."""
        with self._engine.begin() as connection:
            connection.execute(update(tables.products).where(tables.products.c.name == name).values(**values))
        return self.product(name)

    def versions(self, product: str) -> list[Version]:
        """All versions of a product, the newest first."""
        table = tables.versions
        query = select(table).where(table.c.product == product).order_by(table.c.number.desc())
        with self._engine.connect() as connection:
            return [_version(dict(row)) for row in connection.execute(query).mappings()]

    def version(self, product: str, number: int) -> Version:
        """One version; raises NotFoundError if there is none."""
        for version in self.versions(product):
            if version.number == number:
                return version
        raise NotFoundError(f"{product} has no version {number}: the list of its versions names all")

    def add_version(self, product: str, run: Path, by: str, note: str, summary: dict[str, Any]) -> Version:
        """Register a run folder as the next version of a product, which is made if needed."""
        self.create(product)
        table = tables.versions
        for _ in range(10):
            with self._engine.connect() as connection:
                last = connection.scalar(select(func.max(table.c.number)).where(table.c.product == product)) or 0
            values = {"product": product, "number": last + 1, "run": str(run), "by": by, "note": note}
            try:
                with self._engine.begin() as connection:
                    connection.execute(insert(table).values(**values, created=time.time(), summary=summary))
            except IntegrityError:
                continue  # another request took the number
            return self.version(product, last + 1)
        raise NotFoundError(f"no version number of {product} could be had: try again")

    def activate(self, product: str, number: int, by: str) -> None:
        """Make a version the one that judges."""
        with self._engine.begin() as connection:
            table = tables.products
            connection.execute(update(table).where(table.c.name == product).values(active=number))
            values = {"product": product, "number": number, "at": time.time(), "by": by}
            connection.execute(insert(tables.activations).values(**values))

    def activations(self, product: str) -> list[dict[str, Any]]:
        """Which version was activated when and by whom, the newest first."""
        table = tables.activations
        query = select(table).where(table.c.product == product).order_by(table.c.id.desc())
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def before(self, product: str) -> int:
        """The version that was active before the present one; raises ConfigError where there was none."""
        active = self.product(product).active
        for entry in self.activations(product):
            if entry["number"] != active:
                return int(entry["number"])
        raise ConfigError(f"{product} has had one active version only: there is nothing to go back to")

    def golden(self, product: str) -> list[dict[str, Any]]:
        """Golden samples of a product: images whose decision is known."""
        query = select(tables.golden).where(tables.golden.c.product == product).order_by(tables.golden.c.id)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def add_golden(self, product: str, image: str, anomalous: bool, note: str) -> None:
        """Add a golden sample, or say anew what it must be."""
        table = tables.golden
        with self._engine.begin() as connection:
            connection.execute(delete(table).where(table.c.product == product, table.c.image == image))
            connection.execute(insert(table).values(product=product, image=image, anomalous=anomalous, note=note))

    def remove_golden(self, product: str, number: int) -> None:
        """Take a golden sample away."""
        table = tables.golden
        with self._engine.begin() as connection:
            connection.execute(delete(table).where(table.c.product == product, table.c.id == number))


def _product(row: dict[str, Any]) -> Product:
    return Product(**{key: value for key, value in row.items() if key != "id"})


def _version(row: dict[str, Any]) -> Version:
    return Version(**{key: value for key, value in row.items() if key != "id"})
