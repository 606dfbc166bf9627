"""Starting a server and ending it gracefully."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cdo_ad.errors import ConfigError, needs_extra
from cdo_ad.server.service import Service
from cdo_ad.server.web.app import make_app

with needs_extra("server", "the server"):
    import uvicorn

__all__ = ["serve", "serve_async"]

log = logging.getLogger("cdo_ad.server")
GRACE_SECONDS = 20


def serve(service: Service, ready: Callable[[str], None]) -> None:
    """Load what is active, listen, answer until SIGINT or SIGTERM; then finish what was begun.

    Args:
        service: the server's parts.
        ready: called with the address once requests are answered.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    asyncio.run(serve_async(service, ready))


async def serve_async(service: Service, ready: Callable[[str], None], stop: threading.Event | None = None) -> None:
    """The same inside an event loop; `stop` ends it too."""
    for failure in await asyncio.to_thread(service.models.load_active):
        log.error(failure)
    listener = _listen(service.settings.host, service.settings.port)
    config = uvicorn.Config(
        make_app(service), log_config=None, access_log=False, server_header=False,
        limit_concurrency=8 * service.settings.queue, timeout_keep_alive=15,
        timeout_graceful_shutdown=GRACE_SECONDS, backlog=512,
    )  # fmt: skip
    host = f"[{service.settings.host}]" if ":" in service.settings.host else service.settings.host
    grpc_server, grpc_port = await _start_grpc(service)
    also = f", gRPC at {host}:{grpc_port}" if grpc_server is not None else ""
    server = _Server(config, lambda: ready(f"http://{host}:{listener.getsockname()[1]}{also}"))
    watcher = asyncio.create_task(_end_with(server, stop)) if stop is not None else None
    try:
        await server.serve(sockets=[listener])
    finally:
        listener.close()
        if grpc_server is not None:
            await grpc_server.stop(GRACE_SECONDS)
        if watcher is not None:
            watcher.cancel()


async def _start_grpc(service: Service) -> tuple[Any, int]:
    if service.settings.grpc_port is None:
        return None, 0
    from cdo_ad.server.oip.grpc_server import start_grpc

    return await start_grpc(service, service.settings)


async def _end_with(server: uvicorn.Server, stop: threading.Event) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.05)
    server.should_exit = True


class _Server(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End gracefully at a signal; a second SIGINT ends at once. Afterwards the process goes on to its own end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn; afterwards requests are answered."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host} port {port} cannot be listened on: {error.strerror}; choose another  --port"
        ) from error
    return listener
