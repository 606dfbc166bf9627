"""The protocol's messages, from `open_inference.binpb`, which protoc made of `open_inference.proto`.

Made at run time in a pool of their own, so that they fit every version of protobuf and no other module's messages.

    python -m grpc_tools.protoc -I. --descriptor_set_out=open_inference.binpb open_inference.proto
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from cdo_ad.errors import needs_extra

with needs_extra("grpc", "the gRPC side of the server"):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["DESCRIPTORS", "message"]

DESCRIPTORS = Path(__file__).with_name("open_inference.binpb")


@cache
def _pool() -> Any:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message, e.g. `ModelInferRequest`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"cdo_ad.oip.{name}"))
