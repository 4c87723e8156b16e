"""The picture of the report's first screen: after `make run`, `python docs/screenshot.py` writes pictures/report.png.

Needs Chromium. Letters differ a little from machine to machine, so the picture is not held against its data by a test.
"""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "data" / "report" / "index.html"
OUT = ROOT / "docs" / "pictures" / "report.png"
WIDTH = 1240
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def take(page: Path, out: Path) -> None:
    """Write what the page shows down to the end of its table of models, in the light theme.

    Raises:
        FileNotFoundError: there is no page, or no browser.
    """
    if not page.exists():
        raise FileNotFoundError(f"{page} is missing: make run")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError(f"no browser ({', '.join(BROWSERS)}) on the path: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        opened.goto(page.resolve().as_uri())
        end = opened.locator(".standings").evaluate("one => Math.ceil(one.getBoundingClientRect().bottom)")
        taken = opened.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": end})
        browser.close()
    Image.open(BytesIO(taken)).convert("RGB").quantize(256).save(out, optimize=True)


if __name__ == "__main__":
    take(REPORT, OUT)
