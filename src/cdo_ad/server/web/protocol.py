"""The protocol over HTTP, as `tritonclient[http]` really talks: raw bodies, binary tensors, `{"error": ...}`."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from cdo_ad.errors import ConfigError
from cdo_ad.server.oip.inference import EXTENSIONS, INPUTS, OUTPUTS, SERVER, infer, parse_version, versions_of
from cdo_ad.server.oip.tensors import Tensor, from_json, from_raw
from cdo_ad.server.service import Service
from cdo_ad.server.serving.models import ModelId
from cdo_ad.server.web.access import Engineer, Operator, Served
from cdo_ad.server.web.problems import ERRORS

__all__ = ["router"]

router = APIRouter(prefix="/v2", responses=ERRORS, tags=["open inference protocol"])
LENGTH = "Inference-Header-Content-Length"
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "array"}}}
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
Version = Annotated[str, Path(max_length=12)]


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """200 while the process answers."""
    return {"live": True}


@router.get("/health/ready")
def ready(service: Served) -> Response:
    """200 once every active version is in memory."""
    ids = [ModelId(p.name, p.active) for p in service.catalogue.products() if p.active is not None]
    missing = [model.product for model in ids if service.models.ready(model) is None]
    return _json({"ready": not missing, "loading": missing}, 503 if missing else 200)


@router.get("")
async def server() -> dict[str, Any]:
    """Name, version and extensions."""
    return {**SERVER, "extensions": EXTENSIONS}


@router.get("/models/{product}")
@router.get("/models/{product}/versions/{version}")
def metadata(service: Served, caller: Operator, product: str, version: str = "") -> dict[str, Any]:
    """What a model takes and gives."""
    _require(service, product, version)
    about = {"name": product, "versions": versions_of(service, product), "platform": "cdo-ad"}
    return {**about, "inputs": list(INPUTS), "outputs": list(OUTPUTS)}


@router.get("/models/{product}/ready")
@router.get("/models/{product}/versions/{version}/ready")
def model_ready(service: Served, caller: Operator, product: str, version: str = "") -> dict[str, Any]:
    """200 where the model can be asked; it is loaded if needed."""
    model = _require(service, product, version)
    service.models.get(model)
    return {"name": product, "ready": True}


@router.get("/models/{product}/config")
@router.get("/models/{product}/versions/{version}/config")
def config(service: Served, caller: Operator, product: str, version: str = "") -> dict[str, Any]:
    """The same in the form of Triton's configuration."""
    _require(service, product, version)

    def described(tensor: dict[str, Any]) -> dict[str, Any]:
        kind = "TYPE_STRING" if tensor["datatype"] == "BYTES" else f"TYPE_{tensor['datatype']}"
        return {"name": tensor["name"], "data_type": kind, "dims": tensor["shape"]}

    about: dict[str, Any] = {"name": product, "platform": "cdo-ad", "max_batch_size": 0}
    return {**about, "input": [*map(described, INPUTS)], "output": [*map(described, OUTPUTS)]}


@router.post("/models/{product}/infer", openapi_extra=_BODY)
@router.post("/models/{product}/versions/{version}/infer", openapi_extra=_BODY)
async def model_infer(service: Served, caller: Operator, request: Request, product: str, version: str = "") -> Response:
    """Judge images. Inputs and outputs are those of the model's metadata; all inspections are recorded."""
    body = _unpacked(await request.body(), request.headers.get("content-encoding", ""), service.settings.max_upload)
    header, inputs = _parse(body, request.headers.get(LENGTH))
    parameters = header.get("parameters") or {}
    wanted = header.get("outputs") or []
    if not isinstance(parameters, dict) or not isinstance(wanted, list):
        raise ConfigError("parameters must be an object and outputs a list")
    if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in wanted):
        raise ConfigError("each output must be an object with a name")
    names = [each["name"] for each in wanted]
    judged, outputs = await infer(service, product, version, inputs, names, parameters)
    about = {"model_name": product, "model_version": str(judged)}
    if isinstance(header.get("id"), str):
        about["id"] = header["id"]
    return _answer(about, outputs, _binary(wanted, parameters), request.headers.get("accept-encoding", ""))


@router.post("/repository/index")
def index(service: Served, caller: Operator) -> list[dict[str, str]]:
    """All versions of all models; the active ones are READY."""
    return [
        {
            "name": product.name,
            "version": number,
            "state": "READY" if int(number) == product.active else "AVAILABLE",
            "reason": "",
        }
        for product in service.catalogue.products()
        for number in versions_of(service, product.name)
    ]


@router.post("/repository/models/{product}/load")
def load(service: Served, caller: Engineer, product: str) -> dict[str, str]:
    """Bring the active version into memory."""
    service.models.get(service.models.id(product))
    return {}


@router.post("/repository/models/{product}/unload")
def unload(service: Served, caller: Engineer, product: str) -> dict[str, str]:
    """Take a model out of memory until it is asked for again."""
    service.catalogue.product(product)
    service.models.unload(product)
    return {}


def _require(service: Service, product: str, version: str) -> ModelId:
    model = service.models.id(product, parse_version(version))
    service.catalogue.version(*model)
    return model


def _parse(body: bytes, length: str | None) -> tuple[dict[str, Any], list[Tensor]]:
    if length is not None and not (length.isascii() and length.isdigit() and int(length) <= len(body)):
        raise ConfigError(f"the header {LENGTH} must be a number of bytes within the body, got {length!r}")
    split = len(body) if length is None else int(length)
    try:
        header = json.loads(body[:split])
    except (ValueError, RecursionError) as error:
        raise ConfigError("the request does not begin with a JSON object: see the Open Inference Protocol") from error
    inputs = header.get("inputs") if isinstance(header, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(each, dict) for each in inputs):
        raise ConfigError("the request must be a JSON object with a list of inputs")
    at, tensors, raw = split, [], memoryview(body)
    for each in inputs:
        name, datatype = each.get("name"), each.get("datatype")
        if not isinstance(name, str) or not isinstance(datatype, str):
            raise ConfigError("each input needs a name and a datatype")
        parameters = each.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            tensors.append(from_json(name, datatype, each.get("shape"), each.get("data")))
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(body) - at:
            raise ConfigError(f"input {name!r}: binary_data_size is {size!r}, but {len(body) - at} bytes are left")
        tensors.append(from_raw(name, datatype, each.get("shape"), raw[at : at + size]))
        at += size
    return header, tensors


def _binary(wanted: list[dict[str, Any]], parameters: dict[str, Any]) -> dict[str, bool]:
    """Which outputs go out as bytes; the entry of no name is for all others."""
    default = bool(parameters.get("binary_data_output", False))
    own = {each["name"]: each.get("parameters") for each in wanted}
    found = {name: bool(p["binary_data"]) for name, p in own.items() if isinstance(p, dict) and "binary_data" in p}
    return {"": default, **found}


def _answer(about: dict[str, str], outputs: list[Tensor], binary: dict[str, bool], accepts: str) -> Response:
    described, parts = [], []
    for tensor in outputs:
        if binary.get(tensor.name, binary[""]):
            parts.append(tensor.raw())
            entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
            described.append({**entry, "parameters": {"binary_data_size": len(parts[-1])}})
        else:
            described.append(tensor.to_json())
    head = json.dumps({**about, "outputs": described}).encode()
    headers = {LENGTH: str(len(head))} if parts else {}
    content = b"".join([head, *parts])
    pack = {"gzip": lambda data: gzip.compress(data, 1), "deflate": zlib.compress}.get(accepts.strip())
    if pack is not None:  # browsers name several; a client of the protocol names the one that it wants
        content, headers["Content-Encoding"] = pack(content), accepts.strip()
    kind = "application/octet-stream" if parts else "application/json"
    return Response(content, media_type=kind, headers=headers)


def _unpacked(body: bytes, encoding: str, most: int) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise ConfigError(f"the content encoding {encoding!r} is not read here: use gzip, deflate or none")
    unpack = zlib.decompressobj(31 if encoding == "gzip" else 15)
    try:
        plain = unpack.decompress(body, most)
    except zlib.error as error:
        raise ConfigError(f"the body is no {encoding} data") from error
    if unpack.unconsumed_tail or not unpack.eof:
        raise ConfigError(f"the unpacked body is truncated or larger than {most:,} bytes")
    return plain


def _json(document: dict[str, Any], status: int) -> Response:
    return Response(json.dumps(document), status, media_type="application/json")
