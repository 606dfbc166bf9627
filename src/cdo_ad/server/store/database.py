"""Opening the database: SQLite by default, PostgreSQL by URL, the schema brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdo_ad.errors import needs_extra
from cdo_ad.server.errors import DatabaseError

with needs_extra("server", "the server"):
    import sqlalchemy
    from alembic import command
    from alembic.config import Config as AlembicConfig
    from sqlalchemy import Engine, event
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

__all__ = ["open_database"]


def open_database(url: str) -> Engine:
    """Connect and migrate.

    Args:
        url: of SQLAlchemy, `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`.

    Raises:
        DatabaseError: it cannot be reached, or its schema is newer than this program.
    """
    try:
        engine = _engine(url)
        _migrate(engine)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise DatabaseError(f"the database URL is not usable ({error}): write postgresql://USER@HOST/NAME") from error
    except OperationalError as error:
        raise DatabaseError(
            f"the database cannot be reached ({_first(error)}): check the URL and the server"
        ) from error
    except SQLAlchemyError as error:
        raise DatabaseError(f"the database cannot be used ({_first(error)}): check its rights") from error
    return engine


def _engine(url: str) -> Engine:
    if url.startswith("sqlite:"):
        engine = sqlalchemy.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
        event.listen(engine, "connect", _durable)
        return engine
    return sqlalchemy.create_engine(url, pool_size=10, pool_pre_ping=True, pool_timeout=30)


def _durable(connection: Any, _: object) -> None:
    """Write-ahead log, so that readers never wait; each commit is on the disk when it returns."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {setting}")


def _migrate(engine: Engine) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["configure_logger"] = False
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # two servers that start at once take turns
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(7041987)"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except Exception as error:
            if "Can't locate revision" in str(error):
                raise DatabaseError("the database was made by a newer version: update cdo-ad") from error
            raise


def _first(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
