"""Routes that judge images, and that say what is served."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, File, Query, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from cdo_ad.server.service import Service
from cdo_ad.server.serving.decoding import clean_name
from cdo_ad.server.serving.inspector import Inspected, Wanted
from cdo_ad.server.web.access import Engineer, Operator, Served
from cdo_ad.server.web.drawing import heat_png, map_png, overlay_png
from cdo_ad.server.web.problems import ERRORS
from cdo_ad.version import __version__

__all__ = ["router"]

router = APIRouter(responses=ERRORS, tags=["inspect"])


NOT_DRAWN = {"overlay": None, "heat": None, "map": None}


class RegionOut(BaseModel):
    """A connected region of pixels above the pixel threshold."""

    box: list[int] = Field(description="x, y, width, height in pixels of the image")
    area: int
    score: float
    contour: list[list[int]]


class Verdict(BaseModel):
    """What the detector says of an image; it was recorded before this was sent."""

    uid: str = Field(description="Id of the inspection in the history")
    product: str
    version: int
    decision: str = Field(description="`good` or `anomalous`")
    anomalous: bool
    score: float
    p_value: float
    threshold: float
    rate: float = Field(description="The share of good images that may be called anomalous, on average")
    sentence: str
    category: str
    regions: list[RegionOut]
    width: int
    height: int
    seconds: float
    at: float
    name: str
    source: str
    image: str | None = Field(description="Hash of the file, where it was kept")
    overlay: str | None = Field(default=None, description="PNG, base64: the heat map over the image")
    heat: str | None = Field(default=None, description="PNG with transparency, base64: the heat map alone")
    map: str | None = Field(default=None, description="16-bit PNG, base64: 32768 is the pixel threshold")


@router.post("/v1/models/{product}/inspect", response_model=Verdict)
async def inspect(
    service: Served,
    caller: Operator,
    product: str,
    file: Annotated[UploadFile, File(description="An image file: JPEG, PNG, TIFF, BMP, WebP, ...")],
    version: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Default: the active one")] = None,
    category: Annotated[str | None, Query(max_length=100, description="Where the run has several")] = None,
    rate: Annotated[float | None, Query(gt=0, lt=1, description="False-alarm rate to decide with")] = None,
    overlay: Annotated[bool, Query(description="Add the overlay")] = False,
    heat: Annotated[bool, Query(description="Add the heat map alone")] = False,
    map: Annotated[bool, Query(description="Add the 16-bit map")] = False,
) -> Any:
    """Judge an image: score, p-value, decision, the reason in words, regions."""
    wanted = Wanted(product, version, category, rate, name=clean_name(file.filename))
    data = await file.read()
    async with asyncio.timeout(service.settings.timeout):
        inspected = await service.inspector.file(data, wanted)
    drawn = await _drawn(service, inspected, overlay=overlay, heat=heat, map=map)
    return JSONResponse({**NOT_DRAWN, **inspected.to_json(), **drawn})  # as it is: it needs no second check


async def _drawn(service: Service, inspected: Inspected, **asked: bool) -> dict[str, str]:
    draw = {"overlay": overlay_png, "heat": heat_png, "map": map_png}
    return {
        name: base64.b64encode(await service.inspector.run(draw[name], inspected)).decode()
        for name, yes in asked.items()
        if yes
    }


@router.get("/v1/models")
def models(service: Served, caller: Operator) -> list[dict[str, Any]]:
    """All products with what is active, the promise of the threshold, and the drift light."""
    return [_described(service, product.name) for product in service.catalogue.products()]


@router.get("/v1/models/{product}")
def model(service: Served, caller: Operator, product: str) -> dict[str, Any]:
    """One product."""
    return _described(service, product)


@router.post("/v1/models/{product}/drift/reset")
def reset_drift(service: Served, caller: Engineer, product: str) -> dict[str, Any]:
    """Set the drift light back to green, after a look at camera and light."""
    service.catalogue.product(product)
    service.inspector.lights.reset(product)
    service.audit.add(caller.name, "reset drift", product=product)
    return service.inspector.lights.light(product).to_json()


@router.get("/v1/me")
def me(service: Served, caller: Operator) -> dict[str, Any]:
    """Whose key this is, and what the server takes."""
    limits = {"max_upload": service.settings.max_upload, "max_pixels": service.settings.max_pixels}
    return {"name": caller.name, "role": caller.role, "auth": service.settings.auth, "version": __version__, **limits}


@router.get("/metrics", response_class=Response)
def metrics(service: Served, caller: Operator) -> Response:
    """Metrics for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _described(service: Service, name: str) -> dict[str, Any]:
    product = service.catalogue.product(name)
    found: dict[str, Any] = {
        "name": name, "active": product.active, "shadow": product.shadow, "golden_rule": product.golden_rule,
        "rate": product.rate, "light": service.inspector.lights.light(name).to_json(),
    }  # fmt: skip
    if product.active is not None:
        summary = service.catalogue.version(name, product.active).summary
        found |= {"summary": summary, "rate": product.rate or summary["rate"]}
    return found
