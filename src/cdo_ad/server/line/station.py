"""The line inside the server: a thread for each source, a delivery for each sink."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Engine

from cdo_ad.errors import CdoError, ImageError
from cdo_ad.server.errors import LineError, NotFoundError, OverloadedError
from cdo_ad.server.line.delivery import Delivery
from cdo_ad.server.line.frames import Frame, Source
from cdo_ad.server.line.sinks import open_sink, shown
from cdo_ad.server.line.triggers import Triggered
from cdo_ad.server.metrics import Metrics
from cdo_ad.server.serving.inspector import Inspected, Inspector, Wanted
from cdo_ad.server.store.feed import LINE, Feed

__all__ = ["Station"]

log = logging.getLogger("cdo_ad.server")
RETRY_SECONDS = 0.5
JUDGE_SECONDS = 60.0


@dataclass
class _Running:
    name: str
    product: str
    source: Source
    thread: threading.Thread | None = None
    error: str = ""
    judged: int = 0
    latency: float = 0.0
    paused: threading.Event = field(default_factory=threading.Event)


class Station:
    """Sources and sinks of a server."""

    def __init__(self, engine: Engine, inspector: Inspector, metrics: Metrics) -> None:
        """Have no source and no sink yet."""
        self._engine, self._inspector, self._metrics = engine, inspector, metrics
        self._sources: dict[str, _Running] = {}
        self._deliveries: list[Delivery] = []
        self._stop = threading.Event()
        inspector.listeners.append(self._wake)

    def add_source(self, name: str, product: str, source: Source) -> None:
        """Add a source, which starts with the server; raises LineError where the name is taken."""
        if name in self._sources:
            raise LineError(f"there are two sources of the name {name!r}: give each a name of its own")
        self._sources[name] = _Running(name, product, source)

    def add_sink(self, text: str) -> None:
        """Add a sink and deliver to it; raises as `open_sink`."""
        sink = open_sink(text)
        feed = Feed(self._engine, shown(text)[:200], line_only=sink.state)
        self._deliveries.append(Delivery(shown(text), sink, feed, self._metrics))

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start all sources; `loop` is where the inspector works."""
        for running in self._sources.values():
            running.thread = threading.Thread(
                target=self._run, args=(running, loop), name=f"source {running.name}", daemon=True
            )
            running.thread.start()

    def trigger(self, name: str) -> None:
        """Take the next image of a source now.

        Raises:
            NotFoundError: there is no such source. LineError: it does not wait for triggers.
        """
        source = self._find(name).source
        if not isinstance(source, Triggered):
            raise LineError(f"the source {name} does not wait for triggers: start it with  --trigger {name}=server")
        source.fire.set()

    def pause(self, name: str, paused: bool) -> None:
        """Let a source's images go by, or judge them again; raises NotFoundError."""
        event = self._find(name).paused
        event.set() if paused else event.clear()

    def status(self) -> dict[str, Any]:
        """All sources and sinks."""
        sources = [
            {
                "name": each.name,
                "product": each.product,
                "live": each.source.live,
                "paused": each.paused.is_set(),
                "triggered_by_server": isinstance(each.source, Triggered),
                "judged": each.judged,
                "latency": each.latency,
                **each.source.status(),
                "error": each.error or each.source.status().get("error", ""),
            }
            for each in self._sources.values()
        ]
        return {"sources": sources, "sinks": [delivery.status() for delivery in self._deliveries]}

    def stop(self) -> None:
        """Stop the sources; called from outside the event loop while that still runs."""
        self._stop.set()
        for running in self._sources.values():
            if running.thread is not None:
                running.thread.join(JUDGE_SECONDS)

    def close(self) -> None:
        """Stop the sinks."""
        self._stop.set()
        for delivery in self._deliveries:
            delivery.close()
        for running in self._sources.values():
            running.source.close()

    def _find(self, name: str) -> _Running:
        if name not in self._sources:
            raise NotFoundError(f"there is no source {name!r}: the line's status names all")
        return self._sources[name]

    def _wake(self, _: Inspected) -> None:
        for delivery in self._deliveries:
            delivery.wake()

    def _run(self, running: _Running, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            try:
                for frame in running.source.frames(self._stop):
                    if running.paused.is_set() and running.source.live:
                        continue
                    while running.paused.is_set() and not self._stop.wait(RETRY_SECONDS):
                        pass  # files wait
                    self._judge(running, frame, loop)
                return  # a video's end
            except (CdoError, OSError) as error:
                running.error = str(error)
                log.error("a source fails", extra={"source": running.name, "why": str(error)})
                self._stop.wait(10 * RETRY_SECONDS)

    def _judge(self, running: _Running, frame: Frame, loop: asyncio.AbstractEventLoop) -> None:
        wanted = Wanted(running.product, name=frame.name, source=LINE + running.name)
        count = self._metrics.source_frames.labels
        while not self._stop.is_set():
            try:
                self._inspect(frame, wanted, loop)
            except ImageError as error:
                running.error = str(error)
                frame.done(False)
                count(running.name, "failed").inc()
                return
            except (CdoError, TimeoutError, concurrent.futures.CancelledError) as error:
                running.error = "" if isinstance(error, OverloadedError) else str(error)
                if running.source.live:
                    count(running.name, "dropped").inc()
                    return
                self._stop.wait(RETRY_SECONDS)  # a file waits until there is room
                continue
            running.error, running.judged = "", running.judged + 1
            running.latency = time.time() - frame.at
            self._metrics.source_latency.labels(running.name).observe(running.latency)
            count(running.name, "judged").inc()
            frame.done(True)
            return

    def _inspect(self, frame: Frame, wanted: Wanted, loop: asyncio.AbstractEventLoop) -> None:
        content = frame.content
        work = (
            self._inspector.array(content, wanted)
            if isinstance(content, np.ndarray)
            else self._inspector.file(content, wanted)
        )
        asyncio.run_coroutine_threadsafe(work, loop).result(JUDGE_SECONDS)
