"""Pages in headless Chromium, and the numbers inside them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NO_BROWSER = "no Chromium"
"""Begins the reason of each test that was skipped for want of a browser."""
REMEDY = "install one with  apt-get install chromium  or  playwright install chromium,  or name one in CHROMIUM"


def find_chromium() -> str | None:
    """A browser of the system, the one that playwright installed, or the one that CHROMIUM names."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"):
        if found := shutil.which(name):
            return found
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


def numbers(page: Path) -> dict[str, Any]:
    """The numbers inside a page."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    document: dict[str, Any] = json.loads(found[1])
    return document


@contextmanager
def browser_page(file: Path) -> Iterator[tuple[Any, list[str]]]:
    """A page in headless Chromium without a network, and what it complained about; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"{NO_BROWSER}: playwright is not installed")
    chromium = find_chromium()
    if chromium is None:
        pytest.skip(f"{NO_BROWSER}: {REMEDY}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(offline=True, color_scheme="light").new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(file.resolve().as_uri())
        yield page, complaints
        browser.close()
