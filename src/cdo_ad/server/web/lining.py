"""Routes of the line: what its sources and sinks do, and the trigger."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from cdo_ad.server.web.access import Engineer, Operator, Served
from cdo_ad.server.web.problems import ERRORS

__all__ = ["router"]

router = APIRouter(responses=ERRORS, tags=["line"])


@router.get("/v1/line")
def line(service: Served, caller: Operator) -> dict[str, Any]:
    """All sources and sinks: connected or not, counts, what waits, the last error."""
    return service.station.status()


@router.post("/v1/line/{source}/trigger", status_code=202)
def trigger(service: Served, caller: Operator, source: str) -> dict[str, str]:
    """A part is in place: take the next image of this source."""
    service.station.trigger(source)
    return {"triggered": source}


@router.post("/v1/line/{source}/pause")
def pause(service: Served, caller: Engineer, source: str, paused: bool = True) -> dict[str, Any]:
    """Let images go by, or judge them again."""
    service.station.pause(source, paused)
    service.audit.add(caller.name, "pause" if paused else "go on", source=source)
    return service.station.status()
