"""The application: routes, guards, error forms, the page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

from cdo_ad.errors import needs_extra
from cdo_ad.version import __version__

with needs_extra("server", "the server"):
    from fastapi import FastAPI
    from fastapi.responses import RedirectResponse
    from starlette.staticfiles import StaticFiles

from cdo_ad.server.service import Service
from cdo_ad.server.serving.pace import Pace
from cdo_ad.server.web import administering, inspecting, lining, protocol, reviewing, teaching, versioning
from cdo_ad.server.web.guard import Guard
from cdo_ad.server.web.problems import handle_errors

__all__ = ["make_app"]

ROUTERS = tuple(
    module.router for module in (inspecting, reviewing, teaching, versioning, lining, administering, protocol)
)


def make_app(service: Service) -> FastAPI:
    """The ASGI application of a service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tidy = asyncio.create_task(service.tidy())
        service.station.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await asyncio.to_thread(service.station.stop)
            tidy.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await tidy

    app = FastAPI(
        title="cdo-ad inspection server",
        version=__version__,
        description='Judges images of products. Errors are `{"error": "..."}`.',
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.pace = Pace(service.settings.requests_per_minute)
    app.add_middleware(Guard, settings=service.settings)
    handle_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/", lambda: RedirectResponse("/page/"), include_in_schema=False)
    page = Path(str(resources.files("cdo_ad.server") / "page"))
    app.mount("/page", StaticFiles(directory=page, html=True), name="page")
    return app
