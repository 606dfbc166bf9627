"""The settings of a server, checked once when it starts."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from cdo_ad.errors import ConfigError
from cdo_ad.files import Document, problem

__all__ = ["Keep", "ServerSettings", "is_loopback"]

Keep = Literal["all", "anomalous", "none"]


class ServerSettings(Document):
    """What `cdo-ad serve` was asked for. Make one with `ServerSettings.checked`."""

    folder: Path
    """Everything that the server keeps lies here: database, images, runs, outboxes."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the protocol's gRPC side; None for none."""
    database: str = ""
    """URL of a PostgreSQL database; empty for SQLite in `folder`."""
    auth: bool = True
    """API keys. False is refused unless `host` is a loopback address."""
    hosts: tuple[str, ...] = ()
    """Names that requests may give as their host; empty for any, and for loopback names where `auth` is False."""

    max_upload: int = Field(default=32 * 2**20, ge=1024)
    """Bytes of one request."""
    max_pixels: int = Field(default=50_000_000, ge=64)
    """Of one image; the header is looked at before anything is decoded."""
    queue: int = Field(default=64, ge=1)
    """Images that may wait; more are refused with 503."""
    batch: int = Field(default=8, ge=1)
    """Images of one size that are judged together at the most."""
    wait_ms: float = Field(default=2.0, ge=0)
    """How long the first image of a batch waits for others."""
    decoders: int = Field(default=2, ge=1)
    """Threads that decode, and draw overlays."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds until a request is given up."""
    requests_per_minute: int = Field(default=6000, ge=1)
    """Of one key, or of one address where keys are off."""
    device: str = "auto"
    backend: str = "auto"
    """See `cdo_ad.load`."""

    keep: Keep = "all"
    """Which images of inspections are kept."""
    keep_days: float = Field(default=30.0, gt=0)
    keep_gigabytes: float = Field(default=20.0, gt=0)
    """Beyond either, the oldest images go. Images of golden samples, corrections and teaching stay."""
    drift_alpha: float = Field(default=0.01, gt=0, lt=1)
    """Share of good streams that the drift light may accuse falsely."""

    @model_validator(mode="after")
    def _open_on_loopback_only(self) -> Self:
        if not self.auth and not is_loopback(self.host):
            raise ValueError(f"without keys the server listens on 127.0.0.1 only, not on {self.host}")
        return self

    @classmethod
    def checked(cls, **values: object) -> ServerSettings:
        """Settings from plain values.

        Raises:
            ConfigError: a value out of its range, or open access from outside.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"server setting {problem(error)}") from error

    @property
    def database_url(self) -> str:
        """The URL for SQLAlchemy; PostgreSQL is spoken to by psycopg 3."""
        if not self.database:
            return f"sqlite:///{(self.folder / 'server.sqlite').resolve()}"
        scheme, separator, rest = self.database.partition("://")
        if scheme in ("postgresql", "postgres"):
            scheme = "postgresql+psycopg"
        return scheme + separator + rest


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
