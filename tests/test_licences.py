from __future__ import annotations

from pathlib import Path

import pytest

from merge3.licences import consequences, front, licence


def card(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("---\nlicense: MIT\n---\n# It", "mit"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\ntags: [merge]\n---\n", None),
        ("---\na: [\n---\n", None),
        ("---\n- a\n---\n", None),
        ("# license: mit", None),
    ],
)
def test_a_card_states_a_licence_or_none(text: str, stated: str | None, tmp_path: Path) -> None:
    assert licence(card(tmp_path / "it", text)) == stated


def test_where_there_is_no_card_nothing_is_stated(tmp_path: Path) -> None:
    assert front(tmp_path) == {}
    assert licence("nobody/nothing") is None  # no hub here


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"a": "mit", "b": "mit"}, []),
        ({"a": "mit", "b": None}, ["No licence is known of b"]),
        ({"a": "mit", "b": "apache-2.0"}, ["The licences differ (apache-2.0, mit)"]),
        ({"a": "cc-by-nc-4.0"}, ["forbids commercial use"]),
        ({"a": "cc-by-nd-4.0"}, ["forbids to share derivatives"]),
        ({"a": "cc-by-sa-4.0"}, ["under the same licence"]),
        ({"a": "llama3"}, ["has terms of its own"]),
        ({"a": "cc-by-4.0"}, []),
    ],
)
def test_what_follows_is_said(stated: dict[str, str | None], said: list[str]) -> None:
    found = consequences(stated)
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))
