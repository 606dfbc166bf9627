"""A real Ray on this machine, and its processes, to be killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def workers() -> dict[int, str]:
    """Processes below this one that Ray runs tasks or actors in, by number, with their titles."""
    parents, titles = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)], titles[int(folder.name)] = int(fields[1]), title

    def is_below(number: int) -> bool:
        while number in parents:
            if number == os.getpid():
                return True
            number = parents[number]
        return False

    return {n: title for n, title in titles.items() if title.startswith("ray::") and is_below(n)}


def kill(word: str, seconds: float = 60) -> list[int]:
    """Kill, by SIGKILL, the processes whose title holds a word; waits until there is one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = [number for number, title in workers().items() if word in title]
        for number in found:
            os.kill(number, signal.SIGKILL)
        if found:
            return found
        time.sleep(0.02)
    return []
