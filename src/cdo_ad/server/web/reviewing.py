"""Routes of the history: what was inspected, and what people say of it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from cdo_ad.data.kinds import kind_of
from cdo_ad.server.errors import NotFoundError
from cdo_ad.server.service import Service
from cdo_ad.server.serving.decoding import decode
from cdo_ad.server.serving.inspector import Inspected, Wanted
from cdo_ad.server.store.history import Filters
from cdo_ad.server.web.access import Engineer, Operator, Served
from cdo_ad.server.web.drawing import heat_png, map_png, overlay_png, thumbnail
from cdo_ad.server.web.problems import ERRORS

__all__ = ["router"]

router = APIRouter(responses=ERRORS, tags=["review"])
Number = Annotated[int | None, Query(ge=1, le=2**31 - 1)]
Seconds = Annotated[float | None, Query(ge=0, le=1e11, description="Seconds since 1970")]
_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp", "GIF": "image/gif",
          "AVIF": "image/avif"}  # fmt: skip
"""What browsers show; other formats are sent as bytes."""


class Correction(BaseModel):
    """What a person says of a decision."""

    verdict: Literal["false alarm", "missed"]
    boxes: list[tuple[int, int, int, int]] = Field(
        default=[], max_length=100, description="x, y, width, height around each missed defect"
    )


def _filters(
    product: Annotated[str | None, Query(max_length=100)] = None,
    version: Number = None,
    decision: Literal["good", "anomalous"] | None = None,
    verdict: Literal["false alarm", "missed", "any", "none"] | None = None,
    source: Annotated[str | None, Query(max_length=100)] = None,
    since: Seconds = None,
    until: Seconds = None,
) -> Filters:
    anomalous = None if decision is None else decision == "anomalous"
    return Filters(product, version, anomalous, verdict, source, since, until)


Wished = Annotated[Filters, Depends(_filters)]


@router.get("/v1/history")
def history(
    service: Served,
    caller: Operator,
    filters: Wished,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[int | None, Query(ge=0, le=2**53, description="`number` of the last one known")] = None,
    after: Annotated[int | None, Query(ge=0, le=2**53, description="Only what is newer than this `number`")] = None,
) -> dict[str, Any]:
    """Inspections, the newest first, and how many there are."""
    counts = service.history.counts(filters) if after is None else {}
    return {"inspections": service.history.page(filters, limit, before, after), **counts}


@router.get("/v1/history.csv", response_class=StreamingResponse)
def history_csv(
    service: Served,
    caller: Operator,
    filters: Wished,
) -> StreamingResponse:
    """The same as CSV, all of it."""
    lines = service.history.csv(filters)
    headers = {"Content-Disposition": 'attachment; filename="inspections.csv"'}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/v1/inspections/{uid}")
def inspection(service: Served, caller: Operator, uid: str) -> dict[str, Any]:
    """One inspection, with what shadow versions said."""
    return service.history.get(uid)


@router.get("/v1/inspections/{uid}/image", response_class=Response)
def image(service: Served, caller: Operator, uid: str) -> Response:
    """The image as it came."""
    data = _kept(service, service.history.get(uid))
    kind = _TYPES.get(kind_of(data, uid).format, "application/octet-stream")
    return Response(data, media_type=kind)


@router.get("/v1/inspections/{uid}/thumbnail", response_class=Response)
def small(service: Served, caller: Operator, uid: str) -> Response:
    """The image as a small JPEG."""
    return Response(thumbnail(decode(_kept(service, service.history.get(uid)), uid)), media_type="image/jpeg")


@router.get("/v1/inspections/{uid}/{drawing}.png", response_class=Response)
async def drawing(service: Served, caller: Operator, uid: str, drawing: Literal["overlay", "heat", "map"]) -> Response:
    """The overlay, the heat map alone or the 16-bit map, drawn anew by the version that judged."""
    row = service.history.get(uid)
    wanted = Wanted(row["product"], row["version"], row["category"] or None, row["rate"], record=False)
    inspected: Inspected = await service.inspector.file(_kept(service, row), wanted)
    draw = {"overlay": overlay_png, "heat": heat_png, "map": map_png}[drawing]
    return Response(await service.inspector.run(draw, inspected), media_type="image/png")


@router.put("/v1/inspections/{uid}/correction")
def correct(service: Served, caller: Operator, uid: str, correction: Correction) -> dict[str, Any]:
    """Say that a decision was a false alarm, or that it missed a defect, which needs a box."""
    found = service.history.correct(uid, correction.verdict, correction.boxes, caller.name)
    service.images.pin(found["image"])
    service.audit.add(caller.name, "correct", inspection=uid, verdict=correction.verdict)
    return found


@router.delete("/v1/inspections/{uid}/correction")
def withdraw(service: Served, caller: Operator, uid: str) -> dict[str, Any]:
    """Take a correction back."""
    service.history.get(uid)
    service.history.withdraw(uid)
    service.audit.add(caller.name, "withdraw correction", inspection=uid)
    return service.history.get(uid)


@router.get("/v1/models/{product}/corrections")
def corrections(service: Served, caller: Engineer, product: str, all: bool = False) -> list[dict[str, Any]]:
    """Corrections that no version has learned from yet, or all."""
    service.catalogue.product(product)
    return json.loads(json.dumps(service.history.corrections(product, unused_only=not all)))  # type: ignore[no-any-return]


def _kept(service: Service, row: dict[str, Any]) -> bytes:
    if row["image"] is None:
        raise NotFoundError(f"the image of inspection {row['uid']} was not kept: see the setting  --keep")
    return service.images.read(row["image"])
