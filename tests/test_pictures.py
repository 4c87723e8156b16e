"""The pictures of the documentation are those that its code draws from what is in git, and each is shown with words."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("extract", "estimate", "evolve")


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    spec = spec_from_file_location("docs_figures", ROOT / "docs" / "figures.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
