"""The console in real Chromium: every page, the playground, and a decision."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from remint.promotion.page.render import render
from remint.runtime.home import Home
from remint.runtime.retry import wait_until
from remint.serving.load import load_version
from remint.stores.open import open_ledger
from tests.conftest import Once
from tests.support import console_cases
from tests.support.browser import CHROMIUM, needs_chromium
from tests.support.calibrated_cases import calibrated_model
from tests.support.console_cases import HEADER, NAME, TOKEN
from tests.support.models_cases import CASES
from tests.support.promotion_cases import copy_home
from tests.unit.test_page import STORIES

pytestmark = [needs_chromium, pytest.mark.usefixtures("forked")]
AXE = Path(console_cases.__file__).with_name("axe-core") / "axe.min.js"
PAGES = ("/", f"/models/{NAME}?verify=1", f"/models/{NAME}/3?against=2", f"/models/{NAME}/1/report", f"/models/{NAME}/playground")
LOOKS = {"light": {"color_scheme": "light"}, "dark phone": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}}}


@pytest.fixture(scope="module")
def home(empty: Path, once: Once, tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = once("console", lambda folder: console_cases.make_home(empty, folder))
    return copy_home(Home(made, made), tmp_path_factory.mktemp("console"))


@pytest.fixture(scope="module")
def address(home: Home, forked: None) -> Iterator[str]:
    with console_cases.serving(home) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Tab:
    """A page, and what went wrong on it: errors of its console, requests to other hosts, answers that are errors."""

    def __init__(self, browser: Browser, address: str, **look: Any) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}", HEADER: "Ada"}
        self.address, self.faults = address, list[str]()
        self.page: Page = browser.new_context(extra_http_headers=headers, **look).new_page()
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda asked: self._check(asked.url))

    def _check(self, url: str) -> None:
        if not url.startswith((self.address, "data:")):
            self.faults.append(f"it asked {url}")

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.address}{path}", wait_until="networkidle")
        return self.page


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    made = Tab(browser, address)
    yield made
    made.page.context.close()
    assert not made.faults


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_opens_without_faults_and_is_accessible(browser: Browser, address: str, look: str) -> None:
    tab = Tab(browser, address, **LOOKS[look])
    for path in (*PAGES, "/login"):
        page = tab.open(path)
        if path.endswith("/report"):
            continue  # a page of the gate; it has no script, and may have none
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 10, "it has looked"
        assert not [each for each in found["violations"] if each["impact"] in ("serious", "critical")], (
            path,
            found["violations"],
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], path  # type: ignore[index]
    tab.page.context.close()
    assert not tab.faults


def test_the_report_of_a_decision_fits_a_phone(browser: Browser) -> None:
    page = browser.new_context(**LOOKS["dark phone"]).new_page()
    for name, story in STORIES.items():
        page.set_content(render(story()))
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), name
        assert page.evaluate("innerWidth") == 390
    page.context.close()


def test_the_page_of_the_openapi_document_opens_and_asks_a_method(tab: Tab) -> None:
    operation = tab.open("/docs").locator(".opblock").first
    assert ":sample" in operation.inner_text()
    operation.locator(".opblock-summary-control").click()
    operation.get_by_text("Try it out").click()
    operation.get_by_placeholder("name").fill(NAME)
    operation.locator("textarea").fill('{"count": 1}')
    operation.get_by_text("Execute").click()
    assert "weights_sha256" in operation.locator(".live-responses-table .microlight").first.inner_text()


def pixels(page: Page, canvas: str) -> np.ndarray:
    """Return the grey values that a canvas shows, as levels."""
    script = "e => [e.width, e.height, ...e.getContext('2d').getImageData(0, 0, e.width, e.height).data]"
    width, height, *data = page.locator(canvas).first.evaluate(script)
    return np.rint(np.array(data).reshape(height, width, 4)[..., 0] / 255 * 16).astype(int)


def test_samples_of_a_class_are_those_of_the_model_and_a_slider_morphs_two_of_them(home: Home, tab: Tab) -> None:
    served, page = load_version(home, NAME), tab.open(f"/models/{NAME}/playground")
    page.select_option("#sample [name=class]", "7")
    page.fill("#sample [name=seed]", "5")
    page.click("#sample button")
    page.wait_for_selector("#samples[aria-busy=false]")
    drawn = served.sample(24, 5, of_class="7")
    assert np.array_equal(pixels(page, "#samples .pick:nth-child(24) canvas"), drawn[23, 0])
    page.locator("#samples .pick").nth(1).click()  # B is given up
    page.locator("#samples .pick").nth(4).focus()
    page.keyboard.press("Enter")
    assert page.locator("#samples .pick").nth(4).get_attribute("aria-pressed") == "true"
    page.click("#morph")
    expected = served.interpolate(drawn[0], drawn[4], 17, of_class="7")
    for step in (8, 16, 3):
        page.locator("#step").evaluate("(e, step) => { e.value = step; e.dispatchEvent(new Event('input')); }", step)
        page.wait_for_selector(".frame:not([hidden])")
        assert np.array_equal(pixels(page, ".frame:not([hidden])"), expected[step, 0]), step
    assert not np.array_equal(expected[3], expected[16])


def test_temperature_latents_and_the_challenger_beside_the_champion(home: Home, tab: Tab) -> None:
    page = tab.open(f"/models/{NAME}/playground")
    page.check("#beside")
    page.wait_for_selector("#decoded figure:nth-child(2)")
    assert [each.strip() for each in page.locator("#decoded figcaption").all_text_contents()] == [
        f"champion {NAME}/1",
        f"challenger {NAME}/3",
    ]
    slide = "(e, value) => { e.value = value; e.dispatchEvent(new Event('input', { bubbles: true })); }"
    page.locator("[data-dimension='2']").evaluate(slide, "2.5")
    page.locator("#sample [name=temperature]").evaluate(slide, "0.5")
    for place in ("decoded", "samples"):
        page.wait_for_selector(f"#{place}[aria-busy=false]")
    for number, ref in enumerate((f"{NAME}/1", f"{NAME}/3"), 1):
        served = load_version(home, ref)
        decoded = served.decode(np.array([[0, 0, 2.5, 0]]), of_class="0")
        assert np.array_equal(pixels(page, f"#decoded figure:nth-child({number}) canvas"), decoded[0, 0])
        drawn = served.sample(24, 0, temperature=0.5)
        assert np.array_equal(pixels(page, f"#samples figure:nth-child({number}) .pick:nth-child(9) canvas"), drawn[8, 0])


def drop(page: Page, name: str, content: bytes) -> None:
    """Drop a file as a person does with the mouse."""
    script = """([name, content]) => {
        const carried = new DataTransfer(), bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
        carried.items.add(new File([bytes], name));
        document.getElementById('drop').dispatchEvent(new DragEvent('drop', { dataTransfer: carried, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, [name, base64.b64encode(content).decode()])


def test_a_dropped_file_is_scored_and_a_wrong_one_is_refused_in_a_line(home: Home, tab: Tab) -> None:
    x_NCHW = np.full((3, 1, 8, 8), 16, np.uint8)
    x_NCHW[1:] = load_version(home, NAME).sample(2, 1)
    stream = io.BytesIO()
    np.save(stream, x_NCHW)
    page = tab.open(f"/models/{NAME}/playground")
    drop(page, "three.npy", stream.getvalue())
    page.wait_for_selector("#scored img")
    expected = load_version(home, NAME).score(x_NCHW)
    cells = [row.locator("td").all_text_contents() for row in page.locator("#scored tbody tr").all()]
    assert [float(p) for _, _, p, _ in cells] == pytest.approx(expected.p_value, rel=1e-3)
    assert [unusual for *_, unusual in cells] == ["yes" if flag else "no" for flag in expected.flagged] and cells[0][3] == "yes"
    assert page.locator("#scored img").evaluate("e => e.naturalWidth") > 300
    drop(page, "notes.npy", b"not an array")
    page.wait_for_selector("#scored .problem")
    assert "\n" not in page.locator("#scored .problem").inner_text()
    tab.faults = [fault for fault in tab.faults if "422" not in fault]  # Chromium logs an answer that is an error


def test_what_is_painted_over_is_filled_and_the_rest_stays(home: Home, tab: Tab) -> None:
    page = tab.open(f"/models/{NAME}/playground")
    before = pixels(page, "#masked canvas")
    page.locator("#masked canvas").scroll_into_view_if_needed()
    box = page.locator("#masked canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=20)
    page.mouse.up()
    page.click("#fill")
    page.wait_for_selector("#filled canvas")
    filled, gone = pixels(page, "#filled canvas"), np.zeros((8, 8), bool)
    gone[4] = True
    served = load_version(home, NAME)
    (drawn,) = served.sample(1, 0)
    assert np.array_equal(before, drawn[0]) and np.array_equal(filled[~gone], drawn[0][~gone])
    _, y_N = served.draw([(0, 0)])
    assert np.array_equal(page.evaluate("missing"), gone)
    assert np.array_equal(filled, served.impute(drawn[None], missing=gone, draws=4, of_class=int(y_N[0])).filled[0, 0])


@pytest.mark.soak  # a chain draws the missing values
def test_rows_of_a_table_are_drawn_morphed_filled_and_scored(browser: Browser, home: Home) -> None:
    served = replace(calibrated_model(CASES["flow-table"]), ref=f"{NAME}/1")
    rows = served.sample(8, 0)
    first, *_ = names = list(rows.columns)
    with console_cases.serving(home, served) as address:
        tab = Tab(browser, address)
        page = tab.open(f"/models/{NAME}/playground")
        assert page.locator("#samples tbody tr").count() == 8
        page.click("#morph")
        page.wait_for_selector("#morphed[aria-busy=false]")
        page.locator("#step").evaluate("e => { e.value = 16; e.dispatchEvent(new Event('input')); }")
        assert not page.locator("#morphed .problem").count(), page.locator("#morphed").inner_text()
        row = page.locator(".frame:not([hidden]) td").all_text_contents()
        assert row == page.locator("#samples tbody tr").nth(1).locator("td").all_text_contents()[1:], "it ends at B"
        page.locator("#masked td button").first.click()
        assert page.locator("#masked td button").first.get_attribute("aria-label") == f"{first} is missing"
        page.click("#fill")
        page.wait_for_selector("#filled[aria-busy=false] td")
        kept = page.locator("#masked td").all_text_contents()
        filled = page.locator("#filled td").all_text_contents()
        assert filled[1:] == kept[1:] and filled[0] not in (kept[0], "missing") and len(filled) == len(names)
        drop(page, "rows.csv", rows.to_csv(index=False).encode())
        page.wait_for_selector("#scored img")
        shown = [float(each) for each in page.locator("#scored td:nth-child(3)").all_text_contents()]
        assert shown == pytest.approx(served.score(rows).p_value, rel=1e-2)
        tab.page.context.close()
    assert not tab.faults


def test_a_person_approves_a_version_and_an_open_playground_names_it(home: Home, tab: Tab) -> None:
    playground = tab.page.context.new_page()
    playground.goto(f"{tab.address}/models/{NAME}/playground", wait_until="networkidle")
    caption = playground.locator("#samples figcaption")
    assert caption.inner_text() == f"champion {NAME}/{open_ledger(home).champion(NAME)}"
    page = tab.open("/")
    page.click(f".concerns >> text={NAME}/3")
    page.fill("[name=reason]", "looked at the samples")
    page.click("text=Approve and promote")
    page.wait_for_url(f"**/models/{NAME}/3#decisions")
    row = open_ledger(home).last(NAME)
    assert row is not None and (row.action, row.version, row.who) == ("promoted", 3, "Ada via console")
    assert "by Ada via console" in page.locator(".rows li").first.inner_text() and "It is the champion" in page.content()
    tab.open("/")
    assert page.locator(".concerns li").count() == 1, "the failed run is left"

    def drawn_by_it() -> bool:
        playground.click("#sample button")
        playground.wait_for_selector("#samples[aria-busy=false]")
        return caption.inner_text() == f"champion {NAME}/3"

    assert wait_until(drawn_by_it, 30, every=0.5), "the server has switched, and says so in each answer"
