"""What every request passes first: its host and origin, its size and pace; and the headers that every answer carries.

Plain ASGI, so that nothing is buffered. Cross-origin requests are refused rather than answered without CORS headers: a
page of somebody else must not make a browser on the line PC post anything, even where keys are off.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdo_ad.server.logs import request_id
from cdo_ad.server.settings import ServerSettings, is_loopback

__all__ = ["Guard"]

log = logging.getLogger("cdo_ad.server.request")
BODY_SECONDS = 30.0
"""Between two parts of an upload."""
DRAINED, DRAIN_SECONDS = 64 * 2**20, 5.0
"""Of a refused upload, what is read before the answer."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class TooLarge(Exception):
    """The body is longer than what is taken."""


class TooSlow(Exception):
    """The body stopped coming."""


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        """Guard `app`."""
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = request_id.set(uuid.uuid4().hex[:16])
        start, status, begun = time.perf_counter(), 500, False

        async def sending(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                _add_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            if refusal := self._refusal(Headers(scope=scope)):
                await _drain(receive)
                await refusal(scope, receive, sending)
            else:
                await self._answer(scope, receive, sending, lambda: begun)
        finally:
            words = {"method": scope["method"], "path": scope["path"], "status": status}
            log.info("request", extra={**words, "ms": round((time.perf_counter() - start) * 1e3, 1)})
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, begun: Any) -> None:
        try:
            await self._app(scope, _Body(receive, self._settings.max_upload), send)
        except TooLarge:
            if not begun():
                await _drain(receive)
                await _refuse(413, self._too_large())(scope, receive, send)
        except TooSlow:
            if not begun():
                await _refuse(408, "the upload stopped coming: send it again")(scope, receive, send)

    def _too_large(self) -> str:
        return f"the upload is larger than {self._settings.max_upload:,} bytes: send a smaller file"

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._settings.max_upload:
            return _refuse(413, self._too_large())
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        allowed = self._settings.hosts
        if (allowed and name not in allowed) or (not allowed and not self._settings.auth and not is_loopback(name)):
            return _refuse(421, f"this server does not answer for the host {name!r}: name it with  --allow-host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refuse(403, "requests from pages of other origins are refused")
        return None


class _Body:
    """Counts the bytes of a body while it comes, and the seconds between its parts."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left, self._done = receive, most, False

    async def __call__(self) -> Message:
        if self._done:
            return await self._receive()  # waits for the client to go
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except TimeoutError as error:
            raise TooSlow from error
        self._left -= len(message.get("body", b""))
        self._done = not message.get("more_body", False)
        if self._left < 0:
            raise TooLarge
        return message


async def _drain(receive: Receive) -> None:
    """Let a client that is still sending finish, within bounds: else it would never read why it is refused."""
    left = DRAINED
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _add_headers(headers: MutableHeaders) -> None:
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    headers["X-Request-Id"] = request_id.get()


def _refuse(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status, {"Connection": "close"} if status in (408, 413) else None)
