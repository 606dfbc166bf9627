"""Logs as JSON: one object a line on stderr, with the request that a line belongs to."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

__all__ = ["JsonFormatter", "request_id", "set_up"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered."""
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Turns a record into a JSON object; what was given as `extra` becomes entries of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := request_id.get():
            entry["request"] = request
        entry |= {key: value for key, value in vars(record).items() if key not in _KNOWN}
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def set_up(level: str = "INFO") -> None:
    """Send the server's logs and those of its web server to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("cdo_ad", "uvicorn", "uvicorn.error", "grpc", "asyncua", "pymodbus"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name in ("cdo_ad", "uvicorn", "grpc", "asyncua", "pymodbus") else []
        logger.setLevel(level if name.startswith(("cdo_ad", "uvicorn")) else "WARNING")
        logger.propagate = name == "uvicorn.error"
    logging.getLogger("uvicorn.access").disabled = True  # the application logs requests itself
