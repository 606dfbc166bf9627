"""Bringing messages to a sink from a thread of its own: again and again until it takes them."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol

from cdo_ad.server.line.outbox import Backlog, Message
from cdo_ad.server.metrics import Metrics

__all__ = ["Delivery", "Sink"]

log = logging.getLogger("cdo_ad.server")
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
BATCH = 50
STALE_SECONDS = 10.0
"""A state that is older says nothing of the part that is in place now."""


class Sink(Protocol):
    """Where decisions go."""

    state: bool
    """True where only the newest decision counts, as in the registers of a PLC: older ones are never sent late."""

    def open(self) -> None:
        """Begin to listen, where others come to the sink; raises any error where it cannot."""
        ...

    def send(self, message: Message) -> None:
        """Hand a message over; returns once it was taken, raises any error where it was not."""
        ...

    def close(self) -> None:
        """Let go of connections; `send` connects again."""
        ...


class Delivery:
    """A sink with its backlog."""

    def __init__(self, name: str, sink: Sink, backlog: Backlog, metrics: Metrics | None = None) -> None:
        """Start to deliver."""
        self.name, self._sink, self._backlog, self._metrics = name, sink, backlog, metrics
        self._news, self._ended = threading.Event(), threading.Event()
        self._sent = self._failures = self._stale = 0
        self._error = ""
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is a new message."""
        self._news.set()

    def status(self) -> dict[str, Any]:
        """What people want to know of it."""
        counts = {"sent": self._sent, "failures": self._failures, "stale": self._stale, "lost": self._backlog.lost()}
        return {"name": self.name, "waiting": self._backlog.count(), "error": self._error, **counts}

    def close(self, seconds: float = 2.0) -> None:
        """Try for a while to deliver what waits, then stop; the rest is for the next start."""
        end = time.monotonic() + seconds
        while self._backlog.count() and not self._error and time.monotonic() < end:
            time.sleep(0.02)
        self._ended.set()
        self._news.set()
        self._thread.join(seconds + 10)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._ended.is_set():
            self._news.clear()
            if not self._deliver_waiting():
                self._ended.wait(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)
                continue
            pause = FIRST_PAUSE
            if not self._backlog.count():
                self._news.wait(1.0)
        self._sink.close()

    def _deliver_waiting(self) -> bool:
        try:
            self._sink.open()
            messages = self._newest() if self._sink.state else self._backlog.waiting(BATCH)
        except Exception as error:  # of the protocol, or of the database
            self._failed(error)
            return False
        return self._deliver(messages)

    def _newest(self) -> list[tuple[int, Message]]:
        """Of a state the newest message, where it is not too old."""
        count, found = self._backlog.count(), self._backlog.newest()
        if found is None:
            return []
        fresh = found[1].get("at", 0) >= time.time() - STALE_SECONDS
        self._stale += count - fresh
        if not fresh:
            self._backlog.taken(found[0])
        return [found] if fresh else []

    def _deliver(self, messages: list[tuple[int, Message]]) -> bool:
        for number, message in messages:
            try:
                self._sink.send(message)
            except Exception as error:  # every protocol has errors of its own; none may end the delivery
                self._failed(error)
                return False
            self._error = ""
            self._sent += 1
            self._backlog.taken(number)
            self._count("sent")
            if self._ended.is_set():
                break
        return True

    def _failed(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self._error:
            log.warning("a sink does not take messages", extra={"sink": self.name, "why": text})
        self._error = text
        self._failures += 1
        self._count("failed")
        self._sink.close()

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.sink.labels(self.name, outcome).inc()
            self._metrics.sink_waiting.labels(self.name).set(self._backlog.count())
