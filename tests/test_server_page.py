"""The page in a real browser: every view, the keyboard, a phone, light and dark, and a console without complaints."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import NO_BROWSER, REMEDY, find_chromium
from cdo_ad.data.decode import decode_image
from serving import Served, as_png, png, running

SHOTS = os.environ.get("CDO_AD_SCREENSHOTS")
"""A folder for pictures of the page, for people who want to look at it."""


@pytest.fixture(scope="module")
def served(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(tmp_path_factory.mktemp("server") / "state", tiny_run) as found:
        found.service.catalogue.add_version(
            "tiles", tiny_run, "test", "candidate", found.service.catalogue.version("tiles", 1).summary
        )
        for i in range(6):
            found.inspect(png(i, "spot" if i % 3 == 2 else "good"), rate=0.5)
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"{NO_BROWSER}: playwright is not installed")
    chromium = find_chromium()
    if chromium is None:
        pytest.skip(f"{NO_BROWSER}: {REMEDY}")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *camera])
        yield found
        found.close()


class Page:
    """A tab that is signed in, and what its console complained of."""

    def __init__(self, browser: Any, served: Served, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.complaints: list[str] = []
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(40_000)
        self.tab.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.key = served.service.keys.create(f"page {len(served.service.keys.list())}", "admin")
        self.tab.goto(served.address)
        self.tab.get_by_label("API key").fill(self.key)
        self.tab.keyboard.press("Enter")
        self.tab.get_by_role("heading", name="Inspect tiles").wait_for()
        self.complaints.clear()  # the 401 that asked for the key

    def view(self, name: str) -> None:
        self.tab.get_by_role("link", name=name, exact=True).click()

    def shot(self, name: str) -> None:
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.tab.screenshot(path=str(Path(SHOTS, f"{name}.png")), full_page=True)


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Page]:
    found = Page(browser, served, color_scheme="light", viewport={"width": 1280, "height": 900})
    yield found
    assert found.complaints == []
    found.context.close()


def choose(page: Page, data: bytes, name: str = "part.png", label: str = "Choose an image") -> None:
    page.tab.get_by_label(label).set_input_files([{"name": name, "mimeType": "image/png", "buffer": data}])


def test_an_image_is_inspected(page: Page, served: Served) -> None:
    choose(page, png(11, "spot", (300, 400)))
    decision = page.tab.locator("p.decision")
    decision.wait_for()
    assert re.fullmatch(r"✓ Good|✕ Anomalous", decision.inner_text())
    assert "good images" in page.tab.locator("section[aria-live]").inner_text()
    heat = page.tab.locator("img.heat")
    page.tab.get_by_label("Opacity of the heat map").fill("0.3")
    assert heat.evaluate("node => node.style.opacity") == "0.3"
    assert heat.evaluate("node => node.naturalWidth") == 400
    before = page.tab.locator("dl").first.inner_text()
    page.tab.get_by_label("Promised false-alarm rate").select_option("0.2")
    page.tab.wait_for_function("text => document.querySelector('dl').innerText !== text", arg=before)
    assert "at most 20 % of good images" in page.tab.locator("dl").first.inner_text()
    page.tab.get_by_label("Outlines").uncheck()
    assert page.tab.locator(".stage svg").evaluate("node => node.style.display") == "none"
    page.tab.locator(".cards li").first.wait_for()
    page.shot("inspect")


def test_what_is_no_image_is_told(page: Page) -> None:
    choose(page, b"no image")
    alert = page.tab.get_by_role("alert")
    alert.wait_for()
    assert "not a JPEG" in alert.inner_text()
    page.complaints[:] = [text for text in page.complaints if "422" not in text]


def test_an_image_is_dropped_and_pasted(page: Page) -> None:
    page.tab.evaluate("window.seen = []")
    for kind in ("drop", "paste"):
        page.tab.evaluate(
            """async ([kind, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], kind + ".png", { type: "image/png" }));
                const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
                    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
                document.querySelector(".drop").dispatchEvent(event);
            }""",
            [kind, list(png(12))],
        )
        page.tab.locator(f'.stage img[alt^="{kind}.png"]').wait_for()


def test_the_camera_is_used(page: Page) -> None:
    page.tab.get_by_role("button", name="Use camera").click()
    page.tab.get_by_role("button", name="Capture").click()
    page.tab.locator("p.decision").wait_for()
    page.tab.get_by_role("button", name="Inspect continuously").click()
    page.tab.get_by_role("button", name="Stop inspecting").click()
    page.shot("camera")
    page.tab.get_by_role("button", name="Close camera").click()
    page.tab.get_by_role("button", name="Use camera").wait_for()


def answer_late(route: Any) -> None:
    time.sleep(0.5)
    route.continue_()


def test_the_keyboard_is_enough(page: Page) -> None:
    page.tab.locator("body").press("Tab")
    assert page.tab.evaluate("document.activeElement.className") == "skip"
    page.tab.get_by_label("Choose an image").focus()
    assert page.tab.evaluate("getComputedStyle(document.activeElement.nextElementSibling).outlineStyle") == "solid"
    page.tab.route("**/corrections", answer_late)  # the view still loads when the first card is reached
    page.tab.get_by_role("link", name="Review", exact=True).focus()
    page.tab.keyboard.press("Enter")
    page.tab.get_by_role("heading", name="History of tiles").wait_for()
    assert page.tab.evaluate("document.activeElement.id") == "main"
    card = page.tab.locator(".card").first
    card.focus()
    page.tab.get_by_text("Learn from corrections").wait_for()
    assert card.evaluate("node => node === document.activeElement")
    page.tab.keyboard.press("Enter")
    page.tab.get_by_role("dialog").get_by_text("p-value").wait_for()
    page.tab.keyboard.press("Escape")
    page.tab.get_by_role("dialog").wait_for(state="hidden")


@pytest.mark.parametrize("view", ["Inspect", "Review", "Teach", "Versions", "Administer"])
def test_everything_has_a_name_and_fits_a_phone(browser: Any, served: Served, view: str) -> None:
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
    page = Page(browser, served, **options)
    page.view(view)
    page.tab.locator("main h2").first.wait_for()
    page.tab.wait_for_timeout(300)
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 390
    nameless = page.tab.evaluate(
        """() => [...document.querySelectorAll("main button, main input, main select, main a, header select, main img")]
            .filter((node) => !(node.innerText || node.getAttribute("aria-label") || node.labels?.length
                || node.alt !== undefined))
            .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.tab.evaluate("document.querySelectorAll('h1').length") == 1
    low = page.tab.evaluate(CONTRAST)
    assert low == []
    page.shot(f"phone-dark-{view.lower()}")
    assert page.complaints == []
    page.context.close()


CONTRAST = """() => {
    const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const color = getComputedStyle(node).backgroundColor;
            if (!/rgba\\(0, 0, 0, 0\\)|transparent/.test(color)) return color;
        }
        return "rgb(255, 255, 255)";
    };
    return [...document.querySelectorAll("main *, header *")]
        .filter((node) => node.checkVisibility() && !node.disabled)
        .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
        .filter((node) => {
            const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05) < 4.5;
        })
        .map((node) => node.textContent.slice(0, 40));
}"""
"""Texts whose contrast is below 4.5, as WCAG 2 wants it at least."""


def test_the_light_page_has_contrast_too(page: Page) -> None:
    for view in ("Review", "Teach", "Versions", "Administer", "Inspect"):
        page.view(view)
        page.tab.locator("main h2").first.wait_for()
        page.tab.wait_for_timeout(200)
        assert page.tab.evaluate(CONTRAST) == [], view


def test_review_takes_corrections(page: Page, served: Served) -> None:
    made: dict[str, Any] = {}
    for i in range(40):
        for rate in (0.9, 0.08):
            row = served.inspect(png(100 + i), rate=rate).json()
            made.setdefault(row["decision"], row)
        if len(made) == 2:
            break
    page.view("Review")
    page.tab.get_by_label("Decision").select_option("anomalous")
    page.tab.locator(".card:not(.bad)").first.wait_for(state="hidden")  # the filter is at work
    page.tab.locator(".card.bad").first.click()
    page.tab.get_by_role("button", name="False alarm: the part is good").click()
    page.tab.get_by_role("button", name="Take the correction back").wait_for()
    page.tab.get_by_role("button", name="Close").click()
    page.tab.get_by_text("1 false alarm and 0 missed").wait_for()
    page.tab.get_by_label("Decision").select_option("good")
    page.tab.get_by_text("0 corrected").wait_for()
    page.tab.locator(".card:not(.bad)").first.click()
    stage = page.tab.get_by_role("dialog").locator(".stage")
    stage.wait_for()
    page.tab.wait_for_function("document.querySelector('dialog .stage img').naturalWidth > 0")
    box = stage.bounding_box()
    page.tab.mouse.move(box["x"] + 20, box["y"] + 20)
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + 60, box["y"] + 50, steps=4)
    page.tab.mouse.up()
    for name, value in {"x": 1, "y": 2, "width": 5, "height": 6}.items():
        page.tab.get_by_label(f"Box {name}", exact=True).fill(str(value))
    page.tab.get_by_role("button", name="Add box").click()
    page.shot("missed")
    page.tab.get_by_role("button", name="Missed: this is a defect").click()
    page.tab.get_by_text("missed, by page").wait_for()
    page.tab.get_by_role("button", name="Close").click()
    page.tab.get_by_text("1 false alarm and 1 missed").wait_for()
    (missed,) = [c for c in served.service.history.corrections("tiles") if c["verdict"] == "missed"]
    assert missed["boxes"][1] == [1, 2, 5, 6] and missed["boxes"][0][2] > 3
    with page.tab.expect_download() as download:
        page.tab.get_by_role("button", name="Export as CSV").click()
    assert "good" in Path(download.value.path()).read_text()
    page.tab.get_by_label("Decision").select_option("")
    page.tab.wait_for_timeout(400)
    page.shot("review")
    before = [version.number for version in served.service.catalogue.versions("tiles")]
    page.tab.get_by_role("button", name="Make a new version").click()
    table = page.tab.get_by_role("table", name="Before and after")
    table.wait_for(timeout=240_000)
    assert "corrected false alarms" in table.inner_text() and "corrected misses" in table.inner_text()
    page.shot("adapted")
    new = max(version.number for version in served.service.catalogue.versions("tiles"))
    assert new == max(before) + 1
    page.tab.get_by_role("button", name=f"Activate version {new}").click()
    page.tab.get_by_text(f"Version {new} judges now.").wait_for()
    assert served.inspect(png(1)).json()["version"] == new
    served.service.catalogue.activate("tiles", min(before), "test")


def test_versions_are_activated_compared_and_rolled_back(page: Page, served: Served) -> None:
    page.view("Versions")
    page.tab.get_by_role("button", name="Activate version 2").click()
    page.tab.get_by_text("2 ● active").wait_for()
    page.tab.get_by_role("button", name="Roll back").click()
    page.tab.get_by_text("1 ● active").wait_for()
    page.tab.get_by_label("Shadow").select_option("2")
    page.tab.get_by_role("button", name="Set shadow").click()
    page.tab.get_by_text("2 ○ shadow").wait_for()
    wrong = served.inspect(png(50)).json()["decision"] == "good"
    page.tab.get_by_label("Add an image that must be").select_option("true" if wrong else "false")
    choose(page, png(50), "gold.png")
    page.tab.get_by_text("gold.png", exact=True).scroll_into_view_if_needed()
    page.tab.get_by_role("img", name="gold.png").wait_for()
    page.tab.get_by_role("button", name="Compare", exact=True).click()
    page.tab.get_by_text("0 of 1 right").first.wait_for()
    page.shot("versions")
    page.tab.get_by_role("button", name="Activate version 2").click()
    alert = page.tab.get_by_role("alert")
    alert.wait_for()
    assert "1 of 1 golden samples wrong: gold.png" in alert.inner_text()
    page.complaints[:] = [text for text in page.complaints if "409" not in text]
    page.tab.get_by_role("button", name="Remove golden sample gold.png").click()
    page.tab.get_by_role("img", name="gold.png").wait_for(state="hidden")
    page.tab.get_by_label("False alarms among good images").fill("20")
    page.tab.get_by_role("button", name="Set promise").click()
    page.tab.wait_for_timeout(300)
    assert served.service.catalogue.product("tiles").rate == pytest.approx(0.2)


def test_teaching_shows_findings_and_can_be_cancelled(page: Page, served: Served) -> None:
    page.view("Teach")
    page.tab.get_by_label("Product", exact=True).last.fill("washers")
    page.tab.get_by_label("Product", exact=True).last.press("Tab")
    page.tab.get_by_text("0 good images").wait_for()
    images = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": png(i)} for i in range(6)]
    bad = {"name": "bad.png", "mimeType": "image/png", "buffer": b"no image"}
    page.tab.get_by_label("Choose images").set_input_files([*images, bad])
    page.tab.get_by_text("6 good images").wait_for()
    assert "1 image cannot be used" in page.tab.get_by_role("alert").inner_text()
    page.tab.get_by_role("button", name="Remove image 1").click()
    page.tab.get_by_text("5 good images").wait_for()
    canvas = page.tab.locator("canvas.paint")
    box = canvas.bounding_box()
    page.tab.mouse.move(box["x"] + 5, box["y"] + 5)
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5, steps=5)
    page.tab.mouse.up()
    page.tab.get_by_label("Rectangle, right in percent").fill("30")
    page.tab.get_by_role("button", name="Add rectangle").click()
    page.tab.get_by_role("button", name="Save the region").click()
    page.tab.get_by_text("trainings from now on respect it").wait_for()
    region = decode_image(served.service.uploads.region("washers"))[..., 0] > 127
    assert region[:, :10].all() and region[-4, -4] and not region[3, -4]
    page.tab.get_by_role("button", name="Check the images").click()
    page.tab.get_by_role("table").wait_for(timeout=60_000)
    assert "good images" in page.tab.get_by_role("table").inner_text()
    page.shot("teach")
    page.tab.get_by_role("button", name="Train").click()
    page.tab.get_by_role("button", name="Cancel").click()
    page.tab.get_by_text("The training ended").wait_for(timeout=60_000)


def test_keys_are_made_and_the_trail_is_whole(page: Page) -> None:
    page.view("Administer")
    page.tab.get_by_label("Name", exact=True).fill("line 7")
    page.tab.get_by_role("button", name="Make a key").click()
    assert page.tab.locator(".key").inner_text().startswith("cdo_")
    page.tab.get_by_text("The chain is whole").wait_for()
    with page.tab.expect_download() as download:
        page.tab.get_by_role("button", name="Export").click()
    assert "make key" in Path(download.value.path()).read_text()
    page.shot("admin")
    page.view("Inspect")
    page.view("Administer")
    page.tab.get_by_role("button", name="Revoke the key line 7").click()
    page.tab.get_by_text("revoked").first.wait_for()


def test_an_operator_sees_what_an_operator_may(browser: Any, served: Served) -> None:
    page = Page(browser, served)
    key = served.service.keys.create("an operator", "operator")
    page.tab.evaluate("key => sessionStorage.setItem('cdo-ad key', key)", key)
    page.tab.reload()
    page.tab.get_by_text("an operator (operator)").wait_for()
    links = page.tab.get_by_role("navigation").get_by_role("link")
    assert links.all_inner_texts() == ["Inspect", "Review"]
    page.view("Review")
    page.tab.locator(".card").first.wait_for()
    assert page.tab.get_by_text("Learn from corrections").count() == 0
    assert page.complaints == []
    page.context.close()


def test_large_images_are_shown_small(page: Page) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 1500, 3), dtype=np.uint8)
    choose(page, as_png(noise))
    page.tab.locator("p.decision").wait_for()
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 1280
