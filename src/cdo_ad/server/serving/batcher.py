"""Dynamic batching: images of one size for one model that wait at the same time are judged together."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cdo_ad.inference.engines.base import Engine, Output
from cdo_ad.server.metrics import Metrics

__all__ = ["Batcher"]

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Work:
    engine: Engine
    image: Image
    category: int
    since: float
    future: Future[Output] = field(default_factory=Future)

    @property
    def key(self) -> tuple[int, Any]:
        return id(self.engine), self.image.shape


class Batcher:
    """One thread that calls engines; `Admission` bounds what waits here."""

    def __init__(self, largest: int, wait: float, metrics: Metrics) -> None:
        """Start the thread.

        Args:
            largest: images in a batch.
            wait: seconds that the first image of a batch waits for others.
            metrics: where batch sizes and times go.
        """
        self._largest, self._wait, self._metrics = largest, wait, metrics
        self._waiting: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, engine: Engine, image: Image, category: int) -> Future[Output]:
        """Judge an image in the next batch that it fits in; what it gives is that of a batch of one."""
        work = _Work(engine, image, category, time.perf_counter())
        with self._changed:
            if self._ended:
                raise RuntimeError("the server is stopping")
            self._waiting.append(work)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()
        return work.future

    def close(self) -> None:
        """Judge what waits, then stop."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            # a request that was given up meanwhile is left out
            live = [work for work in batch if work.future.set_running_or_notify_cancel()]
            if live:
                self._infer(live)

    def _next(self) -> list[_Work]:
        """The next batch; empty once all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return []
            first = self._waiting[0]
            until = first.since + self._wait
            while len(self._like(first)) < self._largest and (left := until - time.perf_counter()) > 0:
                if self._ended or not self._changed.wait(left):
                    break
            batch = self._like(first)[: self._largest]
            chosen = set(map(id, batch))
            self._waiting = deque(work for work in self._waiting if id(work) not in chosen)
            self._metrics.waiting.set(len(self._waiting))
            return batch

    def _like(self, first: _Work) -> list[_Work]:
        return [work for work in self._waiting if work.key == first.key]

    def _infer(self, batch: list[_Work]) -> None:
        self._metrics.batch.observe(len(batch))
        try:
            images = np.stack([work.image for work in batch])
            output = batch[0].engine.infer(images, np.array([work.category for work in batch], np.int64))
        except Exception as error:  # one bad batch must not end the service: each request gets the error
            for work in batch:
                work.future.set_exception(error)
            return
        for i, work in enumerate(batch):
            one = Output(output.maps[i : i + 1], output.scores[i : i + 1], output.categories[i : i + 1])
            work.future.set_result(one)
            self._metrics.seconds.labels("model").observe(time.perf_counter() - work.since)
