from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from merge3 import items
from merge3.items import Item

ITEM = Item("a", "1 + 1 = ", ("2", "3"), 0, "en", "known")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = [ITEM, Item("b", "Qué?", ("sí", "no", "é"), 2)]
    items.write(tmp_path / "x.parquet", found)
    assert items.read(tmp_path / "x.parquet") == found


def test_json_lines_without_group_are_read(tmp_path: Path) -> None:
    row = {"id": "7", "prompt": "p", "options": ["x", "y"], "answer": 1}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    assert items.read(tmp_path / "x.jsonl") == [Item("7", "p", ("x", "y"), 1)]


def test_content_hash_is_of_what_is_asked_alone() -> None:
    renamed = Item("z", ITEM.prompt, ITEM.options, 1, "fr", "own")
    assert renamed.content_hash == ITEM.content_hash
    assert Item("a", ITEM.prompt, ("3", "2"), 1).content_hash != ITEM.content_hash
    assert Item("a", ITEM.prompt + " ", ITEM.options, 0).content_hash != ITEM.content_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": [0, None]}, "1 item\\(s\\) have no answer \\(first: 'b'\\)"),
        ({"answer": [0, 5]}, "answer must be the index of an option, 0 to 1, got 5"),
        ({"answer": [0.0, 0.5]}, "answer must be the index of an option"),
        ({"answer": [0, True]}, "answer must be the index of an option, got True"),
        ({"prompt": ["p", None]}, "item 'b': prompt is missing or no text"),
        ({"options": [["x", None], ["x", "y"]]}, "item 'a': an option is missing or no text"),
        ({"id": ["a", "a"]}, "'a' occurs more than once"),
        ({"options": [["x"], ["x", "y"]]}, "two options or more"),
        ({"options": [["x", "x"], ["x", "y"]]}, "not distinct"),
        ({"options": ["xy", ["x", "y"]]}, "must be a list of strings"),
    ],
)
def test_wrong_tables_are_refused(change: dict[str, list[object]], message: str) -> None:
    good = {"id": ["a", "b"], "prompt": ["p", "q"], "options": [["x", "y"], ["x", "y"]], "answer": [0, 1]}
    with pytest.raises(ValueError, match=message):
        items.from_frame(pd.DataFrame(good | change), "t")


def test_missing_columns_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing column\(s\) \['answer'\]"):
        items.from_frame(pd.DataFrame({"id": ["a"], "prompt": ["p"], "options": [["x", "y"]]}))
    with pytest.raises(ValueError, match="at least one item"):
        items.from_frame(items.to_frame([]))
    with pytest.raises(FileNotFoundError, match=r"no benchmark at .*x\.parquet"):
        items.read(tmp_path / "x.parquet")
    (tmp_path / "x.csv").touch()
    with pytest.raises(ValueError, match=r"\.parquet or \.jsonl"):
        items.read(tmp_path / "x.csv")
