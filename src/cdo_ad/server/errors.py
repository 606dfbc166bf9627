"""Errors of the server, beside those of the package; `web.problems` gives each its HTTP status.

CdoError
|-- DatabaseError       the database cannot be reached or is of a newer version
|-- NotFoundError       nothing of that name, number or id
|-- ForbiddenError      the caller's role does not include it
|-- ConflictError       it cannot be done now: another job runs, a golden sample is judged wrong
|-- OverloadedError     the queue is full: try again in a moment
`-- LineError           a source or sink that cannot be used
"""

from __future__ import annotations

from typing import Any

from cdo_ad.errors import CdoError

__all__ = ["ConflictError", "DatabaseError", "ForbiddenError", "LineError", "NotFoundError", "OverloadedError"]


class DatabaseError(CdoError):
    """A database that cannot be reached or is of a newer version."""


class NotFoundError(CdoError):
    """Nothing of that name, number or id."""


class ForbiddenError(CdoError):
    """Something that the caller's role does not include."""


class ConflictError(CdoError):
    """Something that cannot be done as things are."""

    def __init__(self, message: str, **detail: Any) -> None:
        """Say why; `detail` is told to the client beside the message."""
        super().__init__(message)
        self.detail = detail


class OverloadedError(CdoError):
    """The queue is full; the same request may be sent again in a moment."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        """Say what is full, and in how many seconds it is worth trying again."""
        super().__init__(message)
        self.retry_after = retry_after


class LineError(CdoError):
    """A source or a sink that cannot be used as it was described."""
