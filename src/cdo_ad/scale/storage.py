"""Files on disks and in object stores: one small door to fsspec, and every failure names the file.

A local path stays a path; `s3://`, `gs://`, `hdfs://` and all other addresses go through fsspec, which takes keys and
endpoints from the environment (for S3 those of the AWS tools).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from cdo_ad.data.files import MAX_BYTES, read_bytes, reason
from cdo_ad.errors import ConfigError, DataError, ImageError, MissingExtraError, OutputError, needs_extra
from cdo_ad.files import write_bytes

__all__ = ["Storage", "is_local"]

ATTEMPTS = 3
"""A file of an object store is asked for as often before it counts as unreadable."""
PAUSE = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""
WHOLE_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "r2"})
"""Stores in which a file appears when all of it is there."""


def is_local(uri: str) -> bool:
    """True for a path and for `file://`."""
    return "://" not in uri or uri.startswith("file://")


class Storage:
    """The file system that an address belongs to."""

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        """Connect.

        Args:
            uri: a path, or an address with a protocol of fsspec.
            options: of fsspec's file system; most people set the environment instead.

        Raises:
            ConfigError: an empty address or an unknown protocol.
            MissingExtraError: the protocol's package is not installed.
        """
        if not uri:
            raise ConfigError("an empty address names nothing: give a folder, a file or an address such as s3://...")
        self.local = is_local(uri)
        self.protocol, _, rest = uri.partition("://") if "://" in uri else ("file", "", uri)
        self.root = str(Path(rest).absolute()) if self.local else uri.rstrip("/")
        """The address that was given; a local path is full."""
        with needs_extra("scale", "reading and writing files of any storage"):
            import fsspec
        try:
            self.fs: Any = fsspec.filesystem(self.protocol, **(options or {}))
        except ImportError as error:
            raise MissingExtraError(f"{uri}: {reason(error)}: install the package that it names") from error
        except ValueError as error:
            raise ConfigError(f"{uri}: {reason(error)}: write a path or an address, e.g. s3://bucket/folder") from error

    def uri(self, path: str) -> str:
        """A path of fsspec as an address; a local one as it is."""
        return path if self.local else str(self.fs.unstrip_protocol(path))

    def image(self, uri: str) -> bytes:
        """The content of an image's file, up to `MAX_BYTES`.

        Raises:
            ImageError: missing, unreadable after several attempts, empty or too large.
        """
        if self.local:
            return read_bytes(uri)
        data = self._fetch(uri)
        if not data:
            raise ImageError(f"{uri}: the file is empty: copy it again from its source")
        if len(data) > MAX_BYTES:
            raise ImageError(f"{uri}: larger than {MAX_BYTES // 2**30} GiB: cut it into smaller images")
        return data

    def _fetch(self, uri: str) -> bytes:
        for attempt in range(ATTEMPTS):
            try:
                with self.open(uri) as file:
                    return file.read(MAX_BYTES + 1)
            except FileNotFoundError as error:
                raise ImageError(f"{uri}: there is no such file: check the address") from error
            except Exception as error:  # each store has errors of its own
                if attempt + 1 == ATTEMPTS or isinstance(error, PermissionError):
                    raise ImageError(
                        f"{uri}: cannot be read ({reason(error)}): check the address and rights"
                    ) from error
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError

    def open(self, uri: str) -> BinaryIO:
        """A file to be read; raises what the file system raises."""
        return cast(BinaryIO, self.fs.open(uri, "rb"))

    def names(self, folder: str) -> list[str]:
        """Addresses of the files in a folder, sorted; none where there is no folder yet.

        Raises:
            DataError: the folder cannot be listed.
        """
        try:
            self.fs.invalidate_cache()
            found = self.fs.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise DataError(f"{folder}: cannot be listed ({reason(error)}): check the address and rights") from error
        return sorted(self.uri(entry["name"]) for entry in found if entry["type"] == "file")

    def read(self, uri: str) -> bytes:
        """A file of our own; raises DataError."""
        try:
            return bytes(self.fs.cat_file(uri))
        except Exception as error:
            raise DataError(f"{uri}: cannot be read ({reason(error)}): check the address and rights") from error

    def write(self, uri: str, data: bytes) -> None:
        """Write a file whole or not at all, and make its folder; raises OutputError."""
        if self.local:
            write_bytes(Path(uri), data)
            return
        folder, _, name = uri.rpartition("/")
        target = uri if self.protocol in WHOLE_OBJECTS else f"{folder}/.{name}.tmp"
        try:
            if target != uri:
                self.fs.makedirs(folder, exist_ok=True)
            self.fs.pipe_file(target, data)
            if target != uri:
                self.fs.mv(target, uri)
        except Exception as error:
            raise OutputError(f"{uri} cannot be written: {reason(error)}; check address and rights") from error
