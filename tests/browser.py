"""Pages in headless Chromium, and the numbers inside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


def numbers(page: Path) -> dict[str, Any]:
    """The numbers inside a page."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    document: dict[str, Any] = json.loads(found[1])
    return document


class browser_page:
    """A page in headless Chromium without a network, and what it complained about."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> tuple[Any, list[str]]:
        sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
        self.playwright = sync_api.sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = self.browser.new_context(offline=True, color_scheme="light")
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(self.file.resolve().as_uri())
        return page, complaints

    def __exit__(self, *_: object) -> None:
        self.browser.close()
        self.playwright.stop()
