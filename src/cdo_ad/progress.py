"""Progress bars on stderr: shown on a terminal, silent elsewhere; other code may listen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["listen", "progress_bar"]

Listener = Callable[[str, float, float | None], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Have all bars of this process call `listener(description, completed, total)` when they move."""
    _listeners.append(listener)


class _Heard(Progress):
    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        task = self._tasks[task_id]
        for listener in _listeners:
            listener(task.description, task.completed, task.total)


def progress_bar() -> Progress:
    """A bar with a description, a free text (`fields[note]`), the count and the time left; use it in a `with`."""
    console = Console(stderr=True)
    return _Heard(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
