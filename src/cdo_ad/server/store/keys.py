"""API keys: random, shown once, kept as hashes, each with a role.

A key has 256 random bits, so a plain SHA-256 of it cannot be turned back; a slow hash is for passwords.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Engine, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from cdo_ad.errors import ConfigError
from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.store import tables

__all__ = ["ROLES", "Caller", "KeyStore", "Role"]

Role = Literal["operator", "engineer", "admin"]
ROLES: tuple[Role, ...] = ("operator", "engineer", "admin")
"""Each may do all that those before it may: inspect and correct; teach and activate; keys, audit trail and settings."""
PREFIX = "cdo_"
REMEMBERED = 5.0
"""Seconds until a key is looked up again: another process may have revoked it."""


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """True where the caller's role includes another."""
        return ROLES.index(self.role) >= ROLES.index(role)


class KeyStore:
    """The keys of a database."""

    def __init__(self, engine: Engine) -> None:
        """Use the table `keys` of a database."""
        self._engine = engine
        self._known: dict[bytes, tuple[Caller, float]] = {}

    def create(self, name: str, role: Role) -> str:
        """A new key, which is shown this once.

        Raises:
            ConfigError: an unknown role, or a name that is taken or empty.
        """
        if role not in ROLES:
            raise ConfigError(f"unknown role {role!r}: choose from {', '.join(ROLES)}")
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise ConfigError("a key needs a name of 1 to 100 printable characters: say who uses it")
        key = PREFIX + secrets.token_urlsafe(32)
        values = {"name": name, "role": role, "digest": _digest(key), "created": time.time()}
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(tables.keys).values(**values))
        except IntegrityError as error:
            raise ConfigError(f"there is a key of the name {name!r} already: choose another name") from error
        return key

    def find(self, key: str) -> Caller | None:
        """Whose key it is; None for one that is unknown or revoked."""
        digest, now = _digest(key), time.monotonic()
        if digest not in self._known or self._known[digest][1] < now - REMEMBERED:
            table = tables.keys
            query = select(table.c.name, table.c.role).where(table.c.digest == digest, table.c.revoked.is_(None))
            with self._engine.connect() as connection:
                row = connection.execute(query).first()
            if row is None:
                self._known.pop(digest, None)
                return None
            self._known[digest] = Caller(row.name, row.role), now
        return self._known[digest][0]

    def revoke(self, name: str) -> None:
        """Make a key useless; raises NotFoundError if there is none of that name."""
        table = tables.keys
        with self._engine.begin() as connection:
            statement = update(table).where(table.c.name == name, table.c.revoked.is_(None))
            if not connection.execute(statement.values(revoked=time.time())).rowcount:
                raise NotFoundError(f"there is no valid key of the name {name!r}: the list of keys names all")
        self._known.clear()

    def list(self) -> list[dict[str, Any]]:
        """Names, roles and times, never the keys."""
        table = tables.keys
        query = select(table.c.name, table.c.role, table.c.created, table.c.revoked).order_by(table.c.id)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    @property
    def empty(self) -> bool:
        """True where there is no valid key."""
        query = select(func.count()).select_from(tables.keys).where(tables.keys.c.revoked.is_(None))
        with self._engine.connect() as connection:
            return not connection.scalar(query)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
