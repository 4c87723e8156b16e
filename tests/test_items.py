from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from merge3 import items
from merge3.items import FreeText, Item

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


@pytest.mark.parametrize("mark", ["", "<", "["])
def test_content_hash_stays_what_it_was_as_answers_are_kept_by_it(mark: str) -> None:
    asked = {"stop": [f"{mark}é", "\n"], "max_tokens": 32} | ({"marks": True} if mark else {})
    for found, parts in (
        (Item("a", "é", ("x", "ü"), 0), ["é", ["x", "ü"]]),
        (Item("a", "é", expected=("x",), free=FreeText(stop=(f"{mark}é", "\n"))), ["é", asked]),
    ):
        assert found.content_hash == hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


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
    with pytest.raises(ValueError, match=r"\.parquet or \.jsonl file; a \.yaml file with the keys source"):
        items.read(tmp_path / "x.csv")
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"x\.jsonl is a folder: expected a file with a line an item"):
        items.read(tmp_path / "x.jsonl")
    (tmp_path / "x.parquet").write_text("id,prompt\n")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as \.parquet: "):
        items.read(tmp_path / "x.parquet")


def test_free_text_items_are_read_and_named(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "1 + 1 =", "expected": "2"},
        {"id": "b", "prompt": "p", "expected": ["x", "y"], "free": {"stop": ".", "max_tokens": 4, "match": "contains"}},
        {"id": "c", "prompt": "p", "options": ["x", "y"], "answer": 1},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = items.read(tmp_path / "x.jsonl")
    own = FreeText((".",), 4, match="contains")
    assert found == [
        Item("a", "1 + 1 =", expected=("2",), free=FreeText()),
        Item("b", "p", expected=("x", "y"), free=own),
        Item("c", "p", ("x", "y"), 1),
    ]
    items.write(tmp_path / "x.parquet", found)
    assert items.read(tmp_path / "x.parquet") == found
    hashes = {item.content_hash for item in found}
    assert len(hashes) == 3
    graded = replace(found[1], free=replace(own, match="exact", language="fr"), expected=("z",))
    assert graded.content_hash == found[1].content_hash  # it is asked the same
    until = {
        how: replace(found[1], free=replace(own, extract=how)).content_hash
        for how in ("text", "last_number", "first_number", "first_line")
    }
    assert until["text"] == until["last_number"]
    assert len(set(until.values())) == 3  # the others end a reply where they have found
    lines = [replace(found[0], free=FreeText(extract=how)).content_hash for how in ("text", "first_line")]
    assert lines[0] == lines[1]  # a line's end is where it stops anyway
    assert replace(found[1], free=replace(own, max_tokens=5)).content_hash not in hashes


def test_texts_that_look_like_numbers_or_dates_stay_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "prompt": "007", "expected": "17", "group": "01"},
        {"id": "b", "prompt": "2024-01-02", "expected": ["3.50", "0042"]},
        {"id": "c", "prompt": "12", "options": ["1.0", "2"], "answer": 1},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, three = items.read(tmp_path / "x.jsonl")
    assert (one.id, one.prompt, one.expected, one.group) == ("7", "007", ("17",), "01")
    assert (two.prompt, two.expected, two.group) == ("2024-01-02", ("3.50", "0042"), "")
    assert (three.prompt, three.options, three.answer) == ("12", ("1.0", "2"), 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expected": (), "free": FreeText()}, "has texts that are expected, and no options"),
        (
            {"expected": ("x",), "free": FreeText(), "options": ("x", "y")},
            "has texts that are expected, and no options",
        ),
        ({"expected": ("x",), "free": FreeText(), "answer": 0}, "has texts that are expected, and no options"),
        ({}, "two options or more"),
        ({"options": ("x", "y")}, "answer must be the index of an option, 0 to 1, got -1"),
    ],
)
def test_items_of_no_kind_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Item("a", "p", **values)
    with pytest.raises(ValueError, match="max_tokens of 1 or more"):
        FreeText(max_tokens=0)
    with pytest.raises(ValueError, match="stop texts that are not empty"):
        FreeText(stop=("\n", ""))
    with pytest.raises(ValueError, match="no setting 'ends'"):
        items.free_text({"ends": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"id": "1", "prompt": "p", "options": ["x", "y"], "answer": 0}\n\n{"id": "2", "prompt"}\n',
            "line 3 is no JSON",
        ),
        ("[1, 2]\n", r"line 1: expected a JSON object, got \[1, 2\]"),
        ('\n{"id": 7, "prompt": "p", "prompt": "q", "expected": "x"}\n', "line 2: 'prompt' stands twice in an object"),
        (9999 * "[", "line 1: its brackets are nested too deep"),
        ("\n", "has no line: write one an item"),
        (
            '{"id": 7, "prompt": "p", "expected": "x"}\n{"id": "7", "prompt": "q", "expected": "y"}\n',
            "'7' occurs more than once",
        ),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        items.read(tmp_path / "x.jsonl")


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    row = {"id": "7", "prompt": "p\u2028q", "options": ["x", "y"], "answer": 1}
    (tmp_path / "x.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert items.read(tmp_path / "x.jsonl") == [Item("7", "p\u2028q", ("x", "y"), 1)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": {"A": "yes", "B": "no"}, "answer": 0}, "options must be a list of strings, got {'A': 'yes'"),
        ({"options": ["a", "b"], "answer": float("inf")}, "answer must be the index of an option, got inf"),
        ({"prompt": "half \ud83d", "options": ["a", "b"], "answer": 0}, "half a character"),
        ({"options": ["a", "half \ud83d"], "answer": 0}, "half a character"),
        ({"expected": "half \ud83d"}, "half a character"),
        ({"expected": "x", "id": None}, "prompt or id is missing or no text"),
        ({"expected": "x", "free": "text"}, "free must be a mapping, or JSON of one: 'text'"),
        ({"expected": "x", "free": ["a"]}, r"free must be a mapping of its settings, got \['a'\]"),
        ({"expected": "x", "free": {"max_tokens": "8"}}, "max_tokens must be a number of tokens, got '8'"),
        ({"expected": "x", "free": {"max_tokens": True}}, "max_tokens must be a number of tokens, got True"),
        ({"expected": "x", "free": {"stop": 5}}, "stop must be text, got 5"),
        ({"expected": "x", "max_tokens": 5}, "max_tokens belongs into its free"),
        ({"expected": "x", "options": ["x", "y"], "answer": 0}, "it has options and texts that are expected: give"),
    ],
)
def test_what_a_field_cannot_be_is_said_with_its_item(tmp_path: Path, row: dict[str, object], message: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": "q", "prompt": "p"} | row) + "\n")
    with pytest.raises(ValueError, match=rf"x\.jsonl: item 'q'.*{message}|x\.jsonl.*{message}"):
        items.read(tmp_path / "x.jsonl")


def test_files_as_windows_writes_them(tmp_path: Path) -> None:
    row = json.dumps({"id": "q", "prompt": "é", "options": ["a", "b"], "answer": 1}, ensure_ascii=False)
    (tmp_path / "mark.jsonl").write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\r\n")
    assert items.read(tmp_path / "mark.jsonl") == [Item("q", "é", ("a", "b"), 1)]
    (tmp_path / "latin.jsonl").write_bytes(row.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl is not UTF-8 .*save it as UTF-8"):
        items.read(tmp_path / "latin.jsonl")
