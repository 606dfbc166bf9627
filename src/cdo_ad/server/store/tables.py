"""The tables. `migrations/versions` makes them; a test holds that both say the same."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)  # fmt: skip

__all__ = [
    "activations", "audit", "corrections", "cursors", "golden", "images", "inspections", "jobs", "keys", "metadata",
    "products", "shadows", "versions",
]  # fmt: skip

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s",
                       "fk": "fk_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"}
)  # fmt: skip

_Id = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up by itself in INTEGER keys only."""


def _id() -> Column[int]:
    return Column("id", _Id, primary_key=True, autoincrement=True)


products = Table(
    "products", metadata,
    _id(),
    Column("name", String(100), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("active", Integer),
    Column("shadow", Integer),
    Column("rate", Float),
    Column("golden_rule", String(10), nullable=False, server_default="block"),
)  # fmt: skip
"""`active` and `shadow` are numbers of versions; `rate` replaces the run's false-alarm rate."""

versions = Table(
    "versions", metadata,
    _id(),
    Column("product", String(100), ForeignKey("products.name"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("run", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("by", String(100), nullable=False),
    Column("note", Text, nullable=False),
    Column("summary", JSON, nullable=False),
    UniqueConstraint("product", "number"),
)  # fmt: skip

activations = Table(
    "activations", metadata,
    _id(),
    Column("product", String(100), nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("by", String(100), nullable=False),
)  # fmt: skip

inspections = Table(
    "inspections", metadata,
    _id(),
    Column("uid", String(32), nullable=False, unique=True),
    Column("at", Float, nullable=False),
    Column("product", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("image", String(64)),
    Column("name", Text, nullable=False),
    Column("source", String(100), nullable=False),
    Column("score", Float, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("anomalous", Boolean, nullable=False),
    Column("threshold", Float, nullable=False),
    Column("rate", Float, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("category", String(100), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("regions", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Index("ix_inspections_at", "at"),
    Index("ix_inspections_product", "product", "at"),
)  # fmt: skip
"""`image` is the hash of the file where it was kept; `uid` is what clients see."""

shadows = Table(
    "shadows", metadata,
    _id(),
    Column("inspection", String(32), nullable=False, index=True),
    Column("product", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("score", Float, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("anomalous", Boolean, nullable=False),
    Column("differs", Boolean, nullable=False),
)  # fmt: skip

corrections = Table(
    "corrections", metadata,
    _id(),
    Column("inspection", String(32), nullable=False, unique=True),
    Column("product", String(100), nullable=False),
    Column("verdict", String(20), nullable=False),
    Column("boxes", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Column("by", String(100), nullable=False),
    Column("used_in", Integer),
)  # fmt: skip
"""`verdict` is `false alarm` or `missed`; a missed defect has boxes (x, y, width, height)."""

golden = Table(
    "golden", metadata,
    _id(),
    Column("product", String(100), nullable=False),
    Column("image", String(64), nullable=False),
    Column("anomalous", Boolean, nullable=False),
    Column("note", Text, nullable=False),
    UniqueConstraint("product", "image"),
)  # fmt: skip

images = Table(
    "images", metadata,
    Column("digest", String(64), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("pinned", Boolean, nullable=False),
)  # fmt: skip
"""Files on disk; `at` is when it was last seen; what is pinned stays."""

keys = Table(
    "keys", metadata,
    _id(),
    Column("name", String(100), nullable=False, unique=True),
    Column("role", String(20), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
)  # fmt: skip

audit = Table(
    "audit", metadata,
    _id(),
    Column("at", Float, nullable=False),
    Column("by", String(100), nullable=False),
    Column("action", String(50), nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
)  # fmt: skip
"""Only ever added to; each entry's digest covers that of the one before."""

cursors = Table(
    "cursors",
    metadata,
    Column("sink", String(200), primary_key=True),
    Column("number", _Id, nullable=False),
)
"""Of each sink, the last inspection that it took."""

jobs = Table(
    "jobs", metadata,
    Column("uid", String(32), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("product", String(100), nullable=False),
    Column("state", String(20), nullable=False),
    Column("created", Float, nullable=False),
    Column("ended", Float),
    Column("by", String(100), nullable=False),
    Column("message", Text, nullable=False),
    Column("result", JSON, nullable=False),
)  # fmt: skip
