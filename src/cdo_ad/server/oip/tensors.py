"""Tensors of the protocol: names and types, as JSON or as raw bytes.

A BYTES element in raw form is a 4-byte little-endian length and the bytes. In JSON it is a text.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.errors import ConfigError

__all__ = ["Tensor", "from_json", "from_raw", "text_tensor"]

BYTES = "BYTES"
TYPES: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}
MOST_SIDES = 8


@dataclass(frozen=True)
class Tensor:
    """A named array."""

    name: str
    array: npt.NDArray[Any]
    """Of one of `TYPES`; of objects (`bytes`) for BYTES."""

    @property
    def datatype(self) -> str:
        """The protocol's name of the type."""
        return BYTES if self.array.dtype == object else NAMES[self.array.dtype]

    @property
    def shape(self) -> list[int]:
        """Its sides."""
        return list(self.array.shape)

    def raw(self) -> bytes:
        """Its elements in row-major order as bytes."""
        if self.array.dtype == object:
            return b"".join(struct.pack("<I", len(item)) + item for item in self.array.ravel())
        little = self.array.astype(self.array.dtype.newbyteorder("<"), copy=False)
        return np.ascontiguousarray(little).tobytes()

    def to_json(self) -> dict[str, Any]:
        """Its elements as a flat list."""
        if self.array.dtype == object:
            data: list[Any] = [item.decode("utf-8", "replace") for item in self.array.ravel()]
        else:
            data = self.array.ravel().tolist()
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape, "data": data}


def text_tensor(name: str, texts: Sequence[str]) -> Tensor:
    """A BYTES tensor of one side."""
    array = np.empty(len(texts), dtype=object)
    array[:] = [text.encode() for text in texts]
    return Tensor(name, array)


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """The shape itself; raises ConfigError unless it is a short list of whole numbers."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > MOST_SIDES:
        raise ConfigError(f"input {name!r}: the shape must be a list of at most {MOST_SIDES} numbers")
    if not all(isinstance(side, int) and not isinstance(side, bool) and 0 <= side < 2**40 for side in shape):
        raise ConfigError(f"input {name!r}: the shape {list(shape)} must consist of whole numbers from 0 on")
    return tuple(shape)


def from_raw(name: str, datatype: str, shape: object, data: bytes | memoryview) -> Tensor:
    """A tensor from raw bytes.

    Raises:
        ConfigError: an unknown type, or bytes that do not fit the shape.
    """
    sides = check_shape(name, shape)
    count = math.prod(sides)
    if datatype == BYTES:
        return Tensor(name, _split(name, bytes(data), count).reshape(sides))
    dtype = _type(name, datatype)
    if len(data) != count * dtype.itemsize:
        raise ConfigError(
            f"input {name!r}: {datatype} {list(sides)} needs {count * dtype.itemsize} bytes, got {len(data)}"
        )
    return Tensor(name, np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(sides))


def from_json(name: str, datatype: str, shape: object, data: object) -> Tensor:
    """A tensor from a list, flat or nested.

    Raises:
        ConfigError: an unknown type, or elements that do not fit it or the shape.
    """
    sides = check_shape(name, shape)
    try:
        if datatype == BYTES:
            return Tensor(name, _texts(data).reshape(sides))
        array = np.asarray(data)
        dtype = _type(name, datatype)
        fits = array.size == 0 or np.can_cast(array.dtype, dtype, "same_kind") or _in_range(array, dtype)
        if not fits or array.dtype == object:
            raise ConfigError(f"input {name!r}: the data does not fit the type {datatype}")
        return Tensor(name, array.astype(dtype).reshape(sides))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"input {name!r}: the data does not fit {datatype} {list(sides)}") from error


def _in_range(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    if array.dtype.kind not in "iu" or dtype.kind not in "iu":
        return False
    limits = np.iinfo(dtype)
    return bool(array.min() >= limits.min and array.max() <= limits.max)


def _texts(data: object) -> npt.NDArray[Any]:
    flat: list[bytes] = []
    waiting = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(reversed(item))
        elif isinstance(item, str):
            flat.append(item.encode())
        else:
            raise TypeError("no text")
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array


def _split(name: str, data: bytes, count: int) -> npt.NDArray[Any]:
    found: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(found) < count:
        (length,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(data) or len(found) != count:
        raise ConfigError(f"input {name!r}: the bytes do not hold {count} elements, each with its length before it")
    array = np.empty(count, dtype=object)
    array[:] = found
    return array


def _type(name: str, datatype: object) -> np.dtype[Any]:
    if not isinstance(datatype, str) or datatype not in TYPES:
        raise ConfigError(f"input {name!r}: unknown datatype {datatype!r}: use one of {', '.join((*TYPES, BYTES))}")
    dtype: np.dtype[Any] = np.dtype(TYPES[datatype])
    return dtype
