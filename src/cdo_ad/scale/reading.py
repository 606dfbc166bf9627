"""The images of a fragment, one after the other, as bytes: never more than a few of them in memory."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from cdo_ad.data.decode import decode_image
from cdo_ad.data.files import MAX_BYTES, reason
from cdo_ad.data.listing import UNREAD_SUFFIXES
from cdo_ad.data.reading import ahead, require_size
from cdo_ad.errors import ImageError
from cdo_ad.scale.sources import Fragment, is_image_name
from cdo_ad.scale.storage import Storage

__all__ = ["read_images"]

ROWS = 16
"""Rows of a Parquet file that are read at a time."""

Decoded = tuple[str, npt.NDArray[np.uint8] | ImageError]


def read_images(fragment: Fragment, storage: Storage, threads: int = 1) -> Iterator[Decoded]:
    """Decode the images of a fragment in threads, a few ahead of the consumer.

    Yields:
        Each image's address and its pixels or, in its place, the error. Of a damaged shard, the images before the
        damage, and an error under the shard's own address.
    """
    if fragment.kind == "files":
        found = ahead(lambda name: _of_file(name, storage), fragment.names, threads)
    else:
        items = _of_tar(fragment, storage) if fragment.kind == "tar" else _of_parquet(fragment, storage)
        found = ((name, image) for (name, _), image in ahead(_decoded, items, threads))
    yield from found


def _of_file(name: str, storage: Storage) -> npt.NDArray[np.uint8] | ImageError:
    kind = UNREAD_SUFFIXES.get(PurePosixPath(name).suffix.lower())
    if kind is not None:
        return ImageError(f"{name}: {kind} that is not read: save it as PNG or TIFF")
    try:
        return _decoded((name, storage.image(name)))
    except ImageError as error:
        return error


def _decoded(item: tuple[str, bytes | ImageError]) -> npt.NDArray[np.uint8] | ImageError:
    name, data = item
    if isinstance(data, ImageError):
        return data
    if not data:
        return ImageError(f"{name}: the image is empty: write it again from its source")
    if len(data) > MAX_BYTES:
        return ImageError(f"{name}: larger than {MAX_BYTES // 2**30} GiB: cut it into smaller images")
    try:
        return require_size(decode_image(data, name), name)
    except ImageError as error:
        return error


def _of_tar(fragment: Fragment, storage: Storage) -> Iterator[tuple[str, bytes | ImageError]]:
    """The members that are images; the shard is read once from its beginning, and nothing is unpacked."""
    uri = fragment.uri
    try:
        with storage.open(uri) as file, tarfile.open(fileobj=file, mode="r|*") as shard:
            for member in shard:
                shard.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if member.isfile() and is_image_name(member.name):
                    content = shard.extractfile(member)
                    if content is not None:  # the size that the shard states is not trusted
                        yield f"{uri}/{member.name}", content.read(MAX_BYTES + 1)
    except Exception as error:  # tarfile, its decompressors and each store have errors of their own
        yield uri, ImageError(f"{uri}: the shard cannot be read to its end ({reason(error)}): write it again")


def _of_parquet(fragment: Fragment, storage: Storage) -> Iterator[tuple[str, bytes | ImageError]]:
    """The rows of a group, named by the file and their number in it."""
    import pyarrow.parquet as pq

    uri = fragment.uri
    try:
        if fragment.group is None:
            raise ValueError(fragment.problem)
        with storage.open(uri) as file:
            opened = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            row = sum(opened.metadata.row_group(i).num_rows for i in range(fragment.group))
            batches = opened.iter_batches(ROWS, row_groups=[fragment.group], columns=[fragment.column])
            for value in _values(batches):
                name = f"{uri}#{row}"
                yield name, value if value is not None else ImageError(f"{name}: the row holds no image: fill it")
                row += 1
    except Exception as error:  # each store has errors of its own
        place = "" if fragment.group is None else f" from row group {fragment.group} on"
        yield uri, ImageError(f"{uri}: cannot be read{place} ({reason(error)}): write it again")


def _values(batches: Iterable[object]) -> Iterator[bytes | None]:
    for batch in batches:
        for value in batch.column(0):  # type: ignore[attr-defined]
            found = value.as_py()
            yield next(iter(found.values())) if isinstance(found, dict) else found
