"""Write `requirements/linux-py311.txt`: every package that `pip install .[dev]` would take, each with its hash.

    python requirements/lock.py

Resolves anew, so run it to move to newer versions. CI installs with  pip install --require-hashes -r  and that file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "requirements" / f"linux-py{sys.version_info.major}{sys.version_info.minor}.txt"


def main() -> None:
    """Resolve and write."""
    words = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    found = subprocess.run([*words, ".[dev]"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    OUT.write_text("".join(lines(json.loads(found.stdout))))


def lines(report: dict[str, list[dict[str, dict[str, object]]]]) -> list[str]:
    """A line for each package of pip's installation report, but for this one."""
    locked = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        archive = item["download_info"].get("archive_info")
        if isinstance(archive, dict):  # this package itself is a folder
            locked.append(f"{name}=={version} --hash=sha256:{archive['hashes']['sha256']}\n")
    return sorted(locked, key=str.lower)


if __name__ == "__main__":
    main()
