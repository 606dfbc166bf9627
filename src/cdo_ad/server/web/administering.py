"""Routes for admins: keys, the audit trail, what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from cdo_ad.server.web.access import Admin, Engineer, Served
from cdo_ad.server.web.problems import ERRORS

__all__ = ["router"]

router = APIRouter(responses=ERRORS, tags=["administer"])


class NewKey(BaseModel):
    """A key to be made."""

    name: str = Field(min_length=1, max_length=100)
    role: Literal["operator", "engineer", "admin"]


@router.get("/v1/keys")
def keys(service: Served, caller: Admin) -> list[dict[str, Any]]:
    """Names and roles of all keys; the keys themselves are not kept."""
    return service.keys.list()


@router.post("/v1/keys", status_code=201)
def make_key(service: Served, caller: Admin, new: NewKey) -> dict[str, str]:
    """Make a key, which is shown this once."""
    key = service.keys.create(new.name, new.role)
    service.audit.add(caller.name, "make key", name=new.name, role=new.role)
    return {"key": key, "name": new.name, "role": new.role}


@router.delete("/v1/keys/{name}")
def revoke_key(service: Served, caller: Admin, name: str) -> list[dict[str, Any]]:
    """Make a key useless at once."""
    service.keys.revoke(name)
    service.audit.add(caller.name, "revoke key", name=name)
    return service.keys.list()


@router.get("/v1/audit")
def audit(service: Served, caller: Engineer) -> dict[str, Any]:
    """The last 200 entries of the audit trail, and whether the chain is whole."""
    broken = service.audit.broken_at()
    return {"whole": broken is None, "broken_at": broken, "entries": list(service.audit.entries(200))}


@router.get("/v1/audit.jsonl", response_class=StreamingResponse)
def audit_export(service: Served, caller: Admin) -> StreamingResponse:
    """The whole audit trail, a JSON object a line."""

    def lines() -> Iterator[str]:
        for entry in service.audit.entries():
            yield json.dumps(entry, ensure_ascii=False) + "\n"

    headers = {"Content-Disposition": 'attachment; filename="audit.jsonl"'}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


@router.get("/v1/storage")
def storage(service: Served, caller: Engineer) -> dict[str, Any]:
    """Images kept, their bytes, and the bounds."""
    count, size = service.images.usage()
    bounds = {"days": service.settings.keep_days, "gigabytes": service.settings.keep_gigabytes}
    return {"images": count, "bytes": size, "keep": service.settings.keep, **bounds}
