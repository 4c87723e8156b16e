"""The pictures of the documentation are those that its code draws from what is in git, and each is shown with words."""

from __future__ import annotations

import re
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import findings
import numpy as np
import pytest
from PIL import Image

from merge3.report import page

ROOT = Path(__file__).parents[1]
NAMES = ("extract", "estimate", "evolve")


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    return script("figures")


def test_every_picture_is_drawn_by_the_code(drawing: ModuleType) -> None:
    assert set(drawing.PICTURES) == set(NAMES) == {path.stem for path in (ROOT / "docs" / "pictures").glob("*.svg")}


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_not_stale(drawing: ModuleType, name: str) -> None:
    kept = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    drawn = drawing.svg(name, drawing.PICTURES[name])
    assert kept == drawn, f"docs/pictures/{name}.svg is not what its data give: python docs/figures.py"
    assert drawn == drawing.svg(name, drawing.PICTURES[name])


def test_every_picture_is_shown_and_has_words() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    shown = dict(re.findall(r"!\[([^\]]*)\]\(pictures/(\w+)\.svg\)", pages))
    assert set(shown.values()) == set(NAMES)
    assert all(len(words) > 60 for words in shown)


def test_the_reports_first_screen_is_taken_down_to_the_end_of_its_table(tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    taking = script("screenshot")
    if not any(map(shutil.which, taking.BROWSERS)):
        pytest.skip("no browser on the path: apt-get install chromium")
    with pytest.raises(FileNotFoundError, match=r"index\.html is missing: make run"):
        taking.take(tmp_path / "index.html", tmp_path / "report.png")
    (tmp_path / "index.html").write_text(page(findings.results()), encoding="utf-8")
    taking.take(tmp_path / "index.html", tmp_path / "report.png")
    pixels = np.asarray(Image.open(tmp_path / "report.png").convert("RGB"))
    height, width, _ = pixels.shape
    assert width == taking.WIDTH
    assert 600 < height < 1000
    assert (pixels[:30] == 255).all()
    line = (pixels[-3:, 60:-60] != 255).any(axis=2)  # under the table's last row
    assert line.all(axis=1).any()
