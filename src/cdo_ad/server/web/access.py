"""Who may call what: the key of a request, its role, and how many requests it may send."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cdo_ad.server.errors import ForbiddenError
from cdo_ad.server.service import Service
from cdo_ad.server.serving.pace import Pace
from cdo_ad.server.store.keys import Caller, Role

__all__ = ["Admin", "Engineer", "Operator", "Served", "service_of"]

OPEN = Caller("anybody on this machine", "admin")
"""Who calls where keys are off, which is so on loopback only."""


def service_of(request: Request) -> Service:
    """The parts of the server."""
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]
_bearer = HTTPBearer(auto_error=False, description="An API key, as `Authorization: Bearer cdo_...`")


async def _caller(
    request: Request, service: Served, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Caller:
    limit: Pace = request.app.state.pace
    address = request.client.host if request.client else "unknown"
    if not service.settings.auth:
        _slow_down(limit.wait(address))
        return OPEN
    caller = service.keys.find(given.credentials) if given is not None else None
    if caller is None:
        _slow_down(limit.wait(f"unknown {address}"))
        raise HTTPException(
            401, "send a valid key as  Authorization: Bearer KEY;  an admin makes keys", {"WWW-Authenticate": "Bearer"}
        )
    _slow_down(limit.wait(f"key {caller.name}"))
    return caller


def _slow_down(seconds: float) -> None:
    if seconds > 0:
        raise HTTPException(429, "too many requests: slow down", {"Retry-After": str(max(1, round(seconds)))})


class _Needs:
    def __init__(self, role: Role) -> None:
        self._role = role

    async def __call__(self, caller: Annotated[Caller, Depends(_caller)]) -> Caller:
        if not caller.may(self._role):
            raise ForbiddenError(f"the role {caller.role} may not do this: it needs a key of the role {self._role}")
        return caller


Operator = Annotated[Caller, Depends(_Needs("operator"))]
Engineer = Annotated[Caller, Depends(_Needs("engineer"))]
Admin = Annotated[Caller, Depends(_Needs("admin"))]
