"""How many requests a caller may send: a bucket of tokens for each, which fills up again at an even pace."""

from __future__ import annotations

import time
from collections import OrderedDict

__all__ = ["Pace"]

MOST_CALLERS = 10_000


class Pace:
    """The buckets of all callers; used from one event loop."""

    def __init__(self, per_minute: int) -> None:
        """Let each caller send so many requests a minute, and a tenth of them at once."""
        self._pace, self._most = per_minute / 60, max(10.0, per_minute / 10)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, caller: str) -> float:
        """Take a token; 0, or the seconds until there is one."""
        now = time.monotonic()
        tokens, since = self._buckets.pop(caller, (self._most, now))
        tokens = min(self._most, tokens + (now - since) * self._pace)
        short = tokens < 1
        self._buckets[caller] = tokens if short else tokens - 1, now
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        return (1 - tokens) / self._pace if short else 0.0
