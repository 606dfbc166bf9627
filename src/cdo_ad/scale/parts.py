"""The results: a folder of Parquet files, each written whole or not at all, and a manifest that says whose they are.

_cdo_ad_scores.json          the model and thresholds that judged; another model needs another folder
_cdo_ad_call                 which call writes now; processes that a killed one left behind must not write any more
files-ID.parquet             of image files
tar-ID.parquet, parquet-ID.parquet   of a shard, or of a group of rows

Readers of data sets pass over names that begin with an underscore, so the folder as a whole is one table.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cdo_ad.errors import BusyError, ConfigError, OutputError
from cdo_ad.files import Document, problem
from cdo_ad.scale.columns import printable, result_schema
from cdo_ad.scale.sources import MANIFEST, Fragment
from cdo_ad.scale.storage import Storage

__all__ = ["Judged", "Part", "Results", "to_part", "write_part"]

DIGEST = 16
"""Bytes that an image's address is remembered by."""
CALL = "_cdo_ad_call"
AT_ONCE = 1024
"""Rows that are written together."""


class Judged(Document):
    """What the manifest holds: results of other models do not mix."""

    kind: Literal["cdo-ad scores"] = "cdo-ad scores"
    format: Literal[1] = 1
    model: str
    """sha256 of the weights, or of the exported file."""
    thresholds: str
    """sha256 of the calibration."""
    category: str | None
    """What all images were said to show."""


class Known:
    """Addresses that are in the results, 16 bytes each."""

    def __init__(self) -> None:
        self._sorted: npt.NDArray[np.bytes_] = np.zeros(0, dtype=f"S{DIGEST}")

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, paths: Sequence[list[str]]) -> None:
        """Remember the addresses of several parts."""
        new = [np.array([_digest(path) for path in part], dtype=f"S{DIGEST}") for part in paths if part]
        self._sorted = np.unique(np.concatenate([self._sorted, *new]))

    def missing(self, paths: list[str]) -> list[str]:
        """Those that are not among them."""
        if not len(self._sorted) or not paths:
            return paths
        wanted = np.array([_digest(path) for path in paths], dtype=f"S{DIGEST}")
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return [path for path, there in zip(paths, self._sorted[at] == wanted, strict=True) if not there]


def _digest(path: str) -> bytes:
    return hashlib.blake2b(printable(path).encode(), digest_size=DIGEST).digest()


class Results:
    """A folder of results, new or to be gone on with."""

    def __init__(self, storage: Storage, judged: Judged) -> None:
        """Read what is there, and write the manifest.

        Raises:
            ConfigError: the folder holds results of another model, thresholds or category, or something else.
            OutputError: it cannot be written to, or a part is damaged.
            DataError: it cannot be read.
        """
        self._storage = storage
        self.folder = storage.root
        names = self._names()
        manifest = f"{self.folder}/{MANIFEST}"
        if MANIFEST in names:
            self._check(storage.read(manifest), judged)
        elif any(not name.startswith(".") for name in names):
            raise ConfigError(f"{self.folder} holds other files: choose another --out, or a new folder")
        else:
            storage.write(manifest, json.dumps(judged.to_json(), indent=2).encode())
        self.call = uuid.uuid4().hex
        """Tells this call from all others; written before the parts are listed."""
        storage.write(f"{self.folder}/{CALL}", self.call.encode())
        names = self._names()
        self.done = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
        """Parts that are there."""
        self.known = Known()
        """Image files that are in them."""
        self._remember()

    def _names(self) -> list[str]:
        return [uri.rpartition("/")[2] for uri in self._storage.names(self.folder)]

    def is_done(self, fragment: Fragment) -> bool:
        """Whether a fragment's part is there."""
        return part_name(fragment) in self.done

    def _remember(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        waiting: list[list[str]] = []
        for name in sorted(name for name in self.done if name.startswith("files-")):
            uri = f"{self.folder}/{name}.parquet"
            try:
                table = pq.read_table(io.BytesIO(self._storage.read(uri)), columns=["path"])
            except (pa.ArrowException, OSError) as error:
                raise OutputError(f"{uri} is damaged: delete it, and its images are judged again") from error
            waiting.append(table.column(0).to_pylist())
            if len(waiting) == 1000:
                self.known.add(waiting)
                waiting = []
        self.known.add(waiting)

    def _check(self, content: bytes, judged: Judged) -> None:
        try:
            before = Judged.from_json(json.loads(content))
        except (ValueError, ValidationError) as error:
            what = problem(error) if isinstance(error, ValidationError) else error
            raise OutputError(f"{self.folder}/{MANIFEST} is damaged ({what}): choose another --out") from error
        for field, name in (("model", "another model"), ("thresholds", "other thresholds"), ("category", "category")):
            had, now = getattr(before, field), getattr(judged, field)
            if had != now:
                detail = f"the category {had!r}" if field == "category" else name
                raise ConfigError(f"{self.folder} holds results of {detail}: choose another --out")


def write_part(storage: Storage, fragment: Fragment, data: bytes, call: str) -> None:
    """Write a fragment's part.

    Raises:
        BusyError: another call has begun to write there meanwhile.
        OutputError: it cannot be written.
    """
    if storage.read(f"{storage.root}/{CALL}") != call.encode():
        raise BusyError(f"{storage.root}: another call has begun to write there: wait for it, or choose another --out")
    storage.write(f"{storage.root}/{part_name(fragment)}.parquet", data)


def part_name(fragment: Fragment) -> str:
    """Name of a fragment's part, without its ending."""
    return f"{fragment.kind}-{fragment.id}"


@dataclass
class Part:
    """The content of a part: a Parquet file with the columns of `result_schema`."""

    data: bytes
    images: int
    anomalous: int
    failed: int
    """Images with an error."""


def to_part(rows: Iterable[Mapping[str, Any]]) -> Part:
    """Rows as a Parquet file; only `AT_ONCE` of them are held as objects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer, schema = io.BytesIO(), result_schema()
    images = anomalous = failed = 0
    waiting = iter(rows)
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        while some := [dict(row) for row in itertools.islice(waiting, AT_ONCE)]:
            for row in some:
                row["path"] = printable(row["path"])
                images += 1
                anomalous += row.get("anomalous") is True
                failed += row.get("error") is not None
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
    return Part(buffer.getvalue(), images, anomalous, failed)
