"""Which column of a Parquet file holds images, and the columns of the results."""

from __future__ import annotations

from typing import Any

__all__ = ["bytes_column", "printable", "result_schema"]

PREFERRED = ("image", "image.bytes", "bytes", "data", "content")
"""Of several columns of bytes, the first of these that is there."""


def bytes_column(schema: Any, wanted: str | None = None) -> str:
    """Name of the column of bytes; with a dot where it lies inside a struct, as in data sets of Hugging Face.

    Args:
        schema: of the file, `pyarrow.Schema`.
        wanted: the user's choice; None finds the only one.

    Raises:
        LookupError: there is none, or several and none is chosen.
    """
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    names = []
    for field in schema:
        if holds_bytes(field.type):
            names.append(field.name)
        elif pa.types.is_struct(field.type):
            names += [f"{field.name}.{inner.name}" for inner in field.type if holds_bytes(inner.type)]
    if wanted is not None:
        for name in (wanted, f"{wanted}.bytes"):
            if name in names:
                return name
        raise LookupError(f"it has no column {wanted!r} of bytes; those of bytes are: {', '.join(names) or 'none'}")
    if len(names) == 1:
        return str(names[0])
    for name in PREFERRED:
        if name in names:
            return name
    if not names:
        raise LookupError("no column holds bytes")
    raise LookupError(f"several columns hold bytes ({', '.join(names)}): choose one with --column")


def printable(path: str) -> str:
    """An address as text that Parquet can hold: bytes of a file's name that are no UTF-8 become escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def result_schema() -> Any:
    """Columns of the results; of an image that cannot be read only `path` and `error` are filled."""
    import pyarrow as pa

    box = [(name, pa.int32()) for name in ("x", "y", "width", "height")]
    return pa.schema(
        [
            ("path", pa.string()),
            ("score", pa.float64()),
            ("p_value", pa.float64()),
            ("anomalous", pa.bool_()),
            ("sentence", pa.string()),
            ("category", pa.string()),
            ("regions", pa.list_(pa.struct([*box, ("score", pa.float32())]))),
            ("error", pa.string()),
        ]
    )
