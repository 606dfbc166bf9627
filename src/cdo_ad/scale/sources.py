"""What is to be judged, in fragments that one process judges at a time: image files, tar shards, Parquet rows.

Images are known by their addresses, shards and groups of rows by theirs: what is judged once is not judged again, even
where the file has changed since.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdo_ad.data.files import reason
from cdo_ad.data.listing import IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_folder, list_folder, require_folder, subfolders
from cdo_ad.data.reading import ahead
from cdo_ad.errors import CdoWarning, ConfigError, DataError
from cdo_ad.scale.columns import bytes_column
from cdo_ad.scale.storage import Storage

__all__ = ["LARGEST", "Fragment", "Kind", "fragments", "is_image_name"]

Kind = Literal["files", "tar", "parquet"]
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MANIFEST = "_cdo_ad_scores.json"
"""Marks a folder of results, which is never judged."""
LARGEST = 1024
"""Image files of a fragment."""
SMALLEST = 16
ROUNDS = 8
"""Fragments of one size before it doubles: few images are shared among all processes, many make few parts."""
LOOKING_AHEAD = 8
"""Footers of Parquet files that are read at a time."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Images that one process judges and writes as one part."""

    kind: Kind
    uri: str
    """Of the shard or the Parquet file; of image files the folder that was named."""
    names: tuple[str, ...] = ()
    """Addresses of image files."""
    group: int | None = None
    """Row group of a Parquet file; None where the file cannot be opened."""
    column: str = ""
    """Of a Parquet file: what holds the bytes of the images."""
    problem: str = ""
    """Why a Parquet file cannot be opened; empty where it can."""

    @property
    def id(self) -> str:
        """Tells it from all others: hexadecimal digits."""
        text = "\0".join([self.kind, self.uri, "" if self.group is None else str(self.group), *self.names])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def is_image_name(name: str) -> bool:
    """Whether a name ends as those of images do, even of kinds that are not read."""
    hidden = name.rpartition("/")[2].startswith(".")
    return not hidden and Path(name).suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES.keys()


def fragments(
    source: Storage, missing: Callable[[list[str]], list[str]], column: str | None = None
) -> Iterator[Fragment]:
    """List a source while it is being judged.

    Args:
        source: a folder with all below it, a file, or a pattern with `*`.
        missing: of addresses of image files those that are to be judged.
        column: of Parquet files, see `cdo_ad.scale.columns.bytes_column`.

    Raises:
        DataError: there is nothing at the address, or it cannot be listed.

    Warns:
        CdoWarning: of Parquet files in a folder that hold no images.
    """
    images: list[str] = []
    size, made = SMALLEST, 0
    for kind, uris in _kinds(_found(source)):
        if kind == "files":
            images += missing(uris)
            while len(images) >= size:
                yield Fragment("files", source.root, tuple(images[:size]))
                del images[:size]
                made += 1
                size = min(LARGEST, size * 2) if made % ROUNDS == 0 else size
        elif kind == "tar":
            yield from (Fragment("tar", uri) for uri in uris)
        else:
            for uri, (groups, own, error) in ahead(lambda u: _footer(source, u, column), uris, LOOKING_AHEAD):
                if isinstance(error, LookupError) and (uri == source.root or column is not None):
                    raise DataError(f"{uri}: {error}") from error
                if isinstance(error, LookupError):
                    warnings.warn(f"{uri}: is left out: {error}", CdoWarning, stacklevel=2)
                elif error is not None:
                    yield Fragment("parquet", uri, problem=reason(error))
                else:
                    yield from (Fragment("parquet", uri, group=group, column=own) for group in range(groups))
    if images:
        yield Fragment("files", source.root, tuple(images))


def _kinds(found: Iterable[list[str]]) -> Iterator[tuple[Kind, list[str]]]:
    """The addresses of each folder by kind; what is no image is left out."""
    nothing = True
    for uris in found:
        of: dict[Kind, list[str]] = {"files": [], "tar": [], "parquet": []}
        for uri in uris:
            low = uri.lower()
            if low.endswith(TAR_ENDINGS):
                of["tar"].append(uri)
            elif low.endswith((".parquet", ".pq")):
                of["parquet"].append(uri)
            else:
                of["files"].append(uri)
        for kind, some in of.items():
            nothing = nothing and not some
            if some:
                yield kind, some
    if nothing:
        raise DataError("no image, tar shard or Parquet file is there: check the address")


def _is_wanted(uri: str) -> bool:
    return is_image_name(uri) or uri.lower().endswith((*TAR_ENDINGS, ".parquet", ".pq"))


def _found(source: Storage) -> Iterator[list[str]]:
    """Addresses of files, folder by folder."""
    root = source.root
    try:
        if source.local and is_folder(Path(root)):
            yield from _local(Path(root))
        elif source.fs.isfile(root):
            yield [root]
        elif source.fs.isdir(root):
            yield from _remote(source)
        elif any(sign in root for sign in "*?["):
            yield sorted(source.uri(path) for path in source.fs.glob(root))
        else:
            raise DataError(f"{root}: there is nothing at this address: check it")
    except (DataError, ConfigError):
        raise
    except Exception as error:  # each store has errors of its own
        raise DataError(f"{root}: cannot be listed ({reason(error)}): check the address and rights") from error


def _local(root: Path) -> Iterator[list[str]]:
    """As `cdo_ad.data.list_folder`: without hidden files and what this package drew; links in a circle end."""
    waiting, seen = [root], set()
    while waiting:
        here = waiting.pop()
        identity = require_folder(here)
        if identity in seen or (here / MANIFEST).exists():
            continue
        seen.add(identity)
        listing = list_folder(here)
        shards = [path for path in here.iterdir() if not is_image_name(path.name) and _is_wanted(path.name)]
        yield sorted(map(str, [*listing.images, *listing.unread, *(p for p in shards if p.name[0] != ".")]))
        waiting += reversed(subfolders(here))


def _remote(source: Storage) -> Iterator[list[str]]:
    for _folder, _, files in source.fs.walk(source.root, detail=True):
        names = {str(info["name"]) for info in files.values()}
        source.fs.invalidate_cache()
        if not any(name.endswith("/" + MANIFEST) for name in names):
            base = str(source.fs._strip_protocol(source.root))
            shown = (n for n in names if not any(p.startswith(".") for p in n.removeprefix(base).split("/")))
            yield sorted(source.uri(name) for name in shown if _is_wanted(name))


def _footer(source: Storage, uri: str, column: str | None) -> tuple[int, str, Exception | None]:
    """Number of row groups and the column of images of a Parquet file; LookupError where it has none."""
    import pyarrow.parquet as pq

    try:
        with source.open(uri) as file:
            opened: Any = pq.ParquetFile(file)
            return opened.num_row_groups, bytes_column(opened.schema_arrow, column), None
    except Exception as error:
        return 0, "", error
