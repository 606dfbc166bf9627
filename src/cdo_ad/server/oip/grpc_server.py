"""The protocol over gRPC: the service `inference.GRPCInferenceService`, beside the HTTP server in one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from cdo_ad.errors import CdoError, ConfigError, DataError, needs_extra
from cdo_ad.server.errors import ForbiddenError, NotFoundError, OverloadedError
from cdo_ad.server.oip.inference import EXTENSIONS, INPUTS, OUTPUTS, SERVER, infer, parse_version, versions_of
from cdo_ad.server.oip.messages import message
from cdo_ad.server.oip.tensors import Tensor, from_json, from_raw
from cdo_ad.server.service import Service
from cdo_ad.server.serving.models import ModelId
from cdo_ad.server.serving.pace import Pace
from cdo_ad.server.settings import ServerSettings

with needs_extra("grpc", "the gRPC side of the server"):
    import grpc
    from grpc import aio

__all__ = ["SERVICE", "start_grpc"]

log = logging.getLogger("cdo_ad.server")
SERVICE = "inference.GRPCInferenceService"
OPEN = ("ServerLive", "ServerReady", "ServerMetadata")
"""Methods that need no key."""
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
STATUS = (
    (NotFoundError, grpc.StatusCode.NOT_FOUND), (ForbiddenError, grpc.StatusCode.UNAUTHENTICATED),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED), (DataError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
)  # fmt: skip
Method = Callable[[Service, Any], Awaitable[Any]]


async def start_grpc(service: Service, settings: ServerSettings) -> tuple[Any, int]:
    """Listen on `settings.grpc_port`.

    Returns:
        The server, whose `stop(seconds)` ends it, and the port.

    Raises:
        ConfigError: the port cannot be listened on.
    """
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_upload),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=8 * settings.queue,
    )
    pace = Pace(settings.requests_per_minute)
    methods = {name: _handler(name, method, service, pace) for name, method in _METHODS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise ConfigError(f"port {settings.grpc_port} cannot be listened on: choose another  --grpc-port") from error
    await server.start()
    return server, port


def _handler(name: str, method: Method, service: Service, pace: Pace) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        try:
            if name not in OPEN:
                _admit(service, pace, dict(context.invocation_metadata() or ()), context.peer())
            return await method(service, request)
        except CdoError as error:
            code = next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
            await context.abort(code, str(error))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the answer took too long: try again later")
        except Exception:
            log.exception("unexpected error", extra={"method": name})
            await context.abort(grpc.StatusCode.INTERNAL, "an unexpected error: the server's log says more")

    request, response = message(f"{name}Request"), message(f"{name}Response")
    return grpc.unary_unary_rpc_method_handler(answer, request.FromString, response.SerializeToString)


def _admit(service: Service, pace: Pace, metadata: dict[str, Any], peer: str) -> None:
    name = peer.rpartition(":")[0]
    if service.settings.auth:
        scheme, _, key = str(metadata.get("authorization", "")).partition(" ")
        caller = service.keys.find(key) if scheme.lower() == "bearer" else None
        if caller is None:
            raise ForbiddenError("send a valid key as metadata  authorization: Bearer KEY;  an admin makes keys")
        name = caller.name
    if (seconds := pace.wait(name)) > 0:
        raise OverloadedError("too many requests: slow down", seconds)


async def _live(service: Service, request: Any) -> Any:
    return message("ServerLiveResponse")(live=True)


async def _ready(service: Service, request: Any) -> Any:
    products = await asyncio.to_thread(service.catalogue.products)
    ids = [ModelId(p.name, p.active) for p in products if p.active is not None]
    return message("ServerReadyResponse")(ready=all(service.models.ready(model) is not None for model in ids))


async def _model_ready(service: Service, request: Any) -> Any:
    model = service.models.id(request.name, parse_version(request.version))
    await asyncio.to_thread(service.models.get, model)
    return message("ModelReadyResponse")(ready=True)


async def _metadata(service: Service, request: Any) -> Any:
    return message("ServerMetadataResponse")(**SERVER, extensions=EXTENSIONS)


async def _model_metadata(service: Service, request: Any) -> Any:
    model = service.models.id(request.name, parse_version(request.version))
    await asyncio.to_thread(service.catalogue.version, *model)
    versions = await asyncio.to_thread(versions_of, service, request.name)
    about = {"name": request.name, "versions": versions, "platform": "cdo-ad"}
    return message("ModelMetadataResponse")(**about, inputs=INPUTS, outputs=OUTPUTS)


async def _infer(service: Service, request: Any) -> Any:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise ConfigError(f"{len(request.inputs)} inputs, but raw contents of {len(raw)}: send them for all or none")
    inputs = [_tensor(each, raw[i] if raw else None) for i, each in enumerate(request.inputs)]
    parameters = {
        name: getattr(p, p.WhichOneof("parameter_choice") or "int64_param") for name, p in request.parameters.items()
    }
    names = [each.name for each in request.outputs]
    version, outputs = await infer(service, request.model_name, request.model_version, inputs, names, parameters)
    return message("ModelInferResponse")(
        model_name=request.model_name,
        model_version=str(version),
        id=request.id,
        outputs=[{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in outputs],
        raw_output_contents=[each.raw() for each in outputs],
    )


def _tensor(given: Any, raw: bytes | None) -> Tensor:
    if raw is not None:
        return from_raw(given.name, given.datatype, list(given.shape), raw)
    field = CONTENTS.get(given.datatype)
    if field is None:
        raise ConfigError(f"input {given.name!r}: {given.datatype!r} can be sent as raw contents only")
    data = list(getattr(given.contents, field))
    if given.datatype == "BYTES":
        packed = b"".join(len(item).to_bytes(4, "little") + item for item in data)
        return from_raw(given.name, given.datatype, list(given.shape), packed)
    return from_json(given.name, given.datatype, list(given.shape), data)


_METHODS: dict[str, Method] = {
    "ServerLive": _live, "ServerReady": _ready, "ModelReady": _model_ready, "ServerMetadata": _metadata,
    "ModelMetadata": _model_metadata, "ModelInfer": _infer,
}  # fmt: skip
