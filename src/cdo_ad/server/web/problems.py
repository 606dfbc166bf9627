"""How errors are told: `{"error": "what, where, what to do"}` and a status, everywhere, as the protocol wants it."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cdo_ad.errors import (
    BundleError,
    BusyError,
    CalibrationError,
    CdoError,
    ConfigError,
    DataError,
    ImageError,
    MissingExtraError,
    OutputError,
)  # fmt: skip
from cdo_ad.server.errors import ConflictError, ForbiddenError, LineError, NotFoundError, OverloadedError

__all__ = ["ERRORS", "handle_errors", "status_of"]

log = logging.getLogger("cdo_ad.server")

STATUS: tuple[tuple[type[CdoError], int], ...] = (
    (NotFoundError, 404), (ForbiddenError, 403), (ConflictError, 409), (OverloadedError, 503), (BusyError, 409),
    (ImageError, 422), (ConfigError, 400), (CalibrationError, 400), (LineError, 400), (DataError, 422),
    (BundleError, 503), (OutputError, 507), (MissingExtraError, 501),
)  # fmt: skip
"""The first that fits counts."""

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_WORDS = {
    400: "a value out of its range", 401: "no valid key", 403: "the key's role does not include this",
    404: "nothing of that name", 408: "the upload took too long", 409: "it cannot be done as things are",
    413: "the upload is too large", 422: "no image, or a damaged one", 429: "too many requests",
    503: "the queue is full, or the model is not there", 507: "the disk is full",
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"application/json": {"schema": _ERROR}}}
    for status, words in _WORDS.items()
}
"""For the OpenAPI document."""


def status_of(error: CdoError) -> int:
    """The HTTP status of an error; 500 for one that no client can mend."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def handle_errors(app: FastAPI) -> None:
    """Let the application tell all errors in one form."""
    app.add_exception_handler(CdoError, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(TimeoutError, _late)
    app.add_exception_handler(Exception, _unknown)


def problem(status: int, text: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """An answer that tells an error."""
    return JSONResponse({"error": text, **more}, status, headers)


async def _known(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CdoError)
    status = status_of(error)
    if status >= 500 and not isinstance(error, OverloadedError):
        log.error(str(error))
    headers = {"Retry-After": str(max(1, round(getattr(error, "retry_after", 1))))} if status == 503 else None
    return problem(status, str(error), headers, **getattr(error, "detail", {}))


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), dict(error.headers or {}))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return problem(400, f"{place}: {first['msg']}")


async def _late(_: Request, error: Exception) -> JSONResponse:
    return problem(503, "the answer took too long: try again when the server is less busy", {"Retry-After": "2"})


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error", exc_info=error, extra={"path": request.url.path})
    return problem(500, "an unexpected error: the server's log says more")
