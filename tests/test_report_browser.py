"""The page in a real browser: it loads nothing, draws everything, can be read and used by everyone, at two widths."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import findings
import pytest

from merge3.report import page as written

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="so is axe-playwright-python")

NAMES = ("chromium", "chromium-browser", "google-chrome")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    FOUND is None, reason=f"no browser ({', '.join(NAMES)}) on the path: apt-get install chromium"
)
VIEWS = [(width, scheme) for width in (375, 1440) for scheme in ("light", "dark")]


FRONTS = {"no front": [], "front of two": ["fr", "es"], "front of three": findings.GROUPS}
with_and_without_fronts = pytest.mark.parametrize("address", FRONTS, indirect=True)


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path, groups = tmp_path_factory.mktemp("report") / "index.html", FRONTS[getattr(request, "param", "no front")]
    found = findings.results()
    path.write_text(written(findings.with_front(found, groups) if groups else found), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def opened(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The page at a width and in a theme, with what it said and asked for in `said`."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda asked: page.said.append(asked.url))
    page.goto(address)
    yield page
    context.close()


def test_it_opens_from_a_file_asks_for_nothing_and_complains_of_nothing(opened: Any, address: str) -> None:
    opened.wait_for_load_state("networkidle")
    assert opened.said == [address]


@with_and_without_fronts
def test_every_plot_is_drawn_and_nothing_scrolls_sideways(opened: Any, request: pytest.FixtureRequest) -> None:
    boxes = opened.locator("svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
    assert len(boxes) == (6 if "no front" in request.node.name else 7)
    width = opened.viewport_size["width"]
    assert all(box["width"] > 300 and box["height"] > 150 and box["right"] <= width for box in boxes)
    seen = "[...one.querySelectorAll('path, use')].filter(mark => mark.getBoundingClientRect().width).length"
    inside = opened.locator("svg").evaluate_all(f"all => all.map(one => {seen})")
    assert min(inside) > 10
    opened.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert opened.evaluate("document.documentElement.scrollWidth") == width


@with_and_without_fronts
def test_axe_finds_no_fault(opened: Any) -> None:
    opened.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    found = axe.Axe().run(opened)
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found.response["violations"]] == []
    assert "color-contrast" in {rule["id"] for rule in found.response["passes"]}


def test_the_theme_is_the_readers(browser: Any, address: str) -> None:
    papers, inks = [], []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(address)
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        inks.append(page.locator("svg.search text").first.evaluate("one => getComputedStyle(one).fill"))
        page.close()
    assert papers[0] == "rgb(255, 255, 255)"
    assert papers[0] != papers[1]
    assert inks[0] != inks[1]


def test_the_keyboard_reaches_everything_in_order_and_opens_it(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 800})
    page.goto(address)
    wanted = page.locator("a, summary, [tabindex='0']")
    places = wanted.evaluate_all(
        "all => all.filter(one => !one.closest('details:not([open])') || one.matches('summary'))"
        ".map(one => one.outerHTML.slice(0, 200))"
    )
    reached = []
    for _ in places:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
    assert reached == places
    page.locator("summary", has_text="Against").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open] .item").first.is_visible()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 0
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    page.close()


def test_what_is_folded_is_printed(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    item = page.locator("details .item").first
    assert not item.is_visible()
    page.emulate_media(media="print")
    assert item.bounding_box()["height"] > 0
    page.close()
