"""An item is one question of a benchmark: with options and the right one, or with the texts that are right.

This module loads and names items.

Knows what an item is and how a table of them is read. Does not know models, answers or splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import ArrowException

from merge3 import parquet, reading

COLUMNS = ("id", "prompt", "options", "answer", "group", "form")
FREE = ("expected", "free")  # columns of a table that has free-text items, which have no options
BESIDE = ("stop", "max_tokens", "extract", "match")  # names of what belongs into `free`
NO_OPTION = -1  # their answer


@dataclass(frozen=True)
class FreeText:
    """How a free-text item is asked (`stop`, `max_tokens`) and graded (the rest, see `merge3.grading`).

    Attributes:
        stop: texts at whose first occurrence the reply ends; they are not part of it. The end-of-text token ends too.
        max_tokens: a reply that has not ended after so many is truncated, which is a failure and not a wrong answer.
        extract: the answer within the reply: `text`, `first_line`, `first_number`, `last_number`, or a regular
            expression whose first group (or whole match) of the first match it is.
        match: how the answer is compared with what is expected: `exact`, `numeric`, `contains`, or
            `package.module:function`, a function of yours of (answer, expected) that says whether it is right; its
            package has to be named in the environment, `MERGE3_MATCHES=package`.
        language: code of the language that the reply must be in to be right (ISO 639-1, `fr`); any where empty.
    """

    stop: tuple[str, ...] = ("\n",)
    max_tokens: int = 32
    extract: str = "first_line"
    match: str = "exact"
    language: str = ""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not all(self.stop):
            raise ValueError(f"expected max_tokens of 1 or more and stop texts that are not empty, got {self}")

    @property
    def marked(self) -> bool:
        """Whether a stop text may be a special token of some model."""
        return any(mark in stop for stop in self.stop for mark in "<[")


@dataclass(frozen=True)
class Item:
    """A question with options, or a free-text one.

    `answer` is the index of the right option, `group` what scores are reported by (a language), `form` a second
    label within the group (a kind of template); the empty string where there is none. A free-text item has `free`, no
    options, and the texts that are right in `expected`.
    """

    id: str
    prompt: str
    options: tuple[str, ...] = ()
    answer: int = NO_OPTION
    group: str = ""
    form: str = ""
    expected: tuple[str, ...] = ()
    free: FreeText | None = None

    def __post_init__(self) -> None:
        if self.free is not None:
            if self.options or self.answer != NO_OPTION or not self.expected:
                raise ValueError(f"item {self.id!r}: a free-text item has texts that are expected, and no options")
            return
        if len(self.options) < 2:
            raise ValueError(f"item {self.id!r}: expected two options or more, got {len(self.options)}")
        if not 0 <= self.answer < len(self.options):
            raise ValueError(
                f"item {self.id!r}: answer must be the index of an option, 0 to {len(self.options) - 1}, "
                f"got {self.answer}"
            )

    @property
    def content_hash(self) -> str:
        """SHA-256 of what a model is asked: prompt and options in order (or where a reply ends), not id or answer."""
        asked: Any = list(self.options)
        if self.free is not None:
            asked = {"stop": list(self.free.stop), "max_tokens": self.free.max_tokens}
            early = self.free.extract  # a reply ends where more of it cannot change what these find
            if early == "first_number" or (early == "first_line" and "\n" not in self.free.stop):
                asked["until"] = early
            if self.free.marked:
                asked["marks"] = True  # before, a special token ended no reply
        text = json.dumps([self.prompt, asked], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def to_frame(items: Sequence[Item]) -> pd.DataFrame:
    """A table with one row an item and the columns `COLUMNS`, and `FREE` where an item is free-text (as JSON)."""
    rows = [asdict(item) | {"options": list(item.options), "expected": list(item.expected)} for item in items]
    for row in rows:
        row["free"] = row["free"] and json.dumps(row["free"], ensure_ascii=False)
    more = FREE if any(item.free for item in items) else ()
    return pd.DataFrame(rows, columns=[*COLUMNS, *more])


def from_frame(table: pd.DataFrame, source: str = "table") -> list[Item]:
    """Items from a table with the columns `COLUMNS`; `group` and `form` may be absent.

    A row with `expected`, a text or a list, is a free-text item; its `free` is what differs from the defaults of
    `FreeText`, as a mapping or JSON, and it needs neither options nor answer.

    Raises:
        ValueError: a column is missing, an answer is absent or no index, an id occurs twice, or no row is left.
            `source` names the table in the message.
    """
    needed = COLUMNS[:2] if "expected" in table.columns else COLUMNS[:4]
    missing = [c for c in needed if c not in table.columns]
    if missing:
        raise ValueError(
            f"{source}: missing column(s) {missing}; expected {list(COLUMNS)}, found {list(table.columns)}"
        )
    if table.empty:
        raise ValueError(f"{source}: expected at least one item, found none")
    open_ended = [_given(value) for value in table.get("expected", [None] * len(table))]
    answers = table.get("answer", pd.Series(index=table.index, dtype=float))
    unanswered = table["id"][answers.isna() & ~np.array(open_ended)].tolist()
    if unanswered:
        raise ValueError(
            f"{source}: {len(unanswered)} item(s) have no answer (first: {unanswered[0]!r}); "
            "give each the index of its right option or remove it"
        )
    twice = table["id"][table["id"].duplicated()].tolist()
    if twice:
        raise ValueError(f"{source}: item ids must be unique, {twice[0]!r} occurs more than once")
    return [_item(row, source) for row in table.to_dict("records")]


def _item(row: Mapping[Hashable, Any], source: str) -> Item:
    if _given(row.get("expected")):
        return _free_item(row, source)
    answer, options = row.get("answer"), row.get("options")
    if isinstance(options, str | Mapping) or not isinstance(options, Iterable):
        raise ValueError(f"{source}: item {row['id']!r}: options must be a list of strings, got {options!r}")
    missing = [name for name in ("id", "prompt") if not isinstance(row[name], str | int)]
    if missing or not all(isinstance(option, str | int | float) for option in options):
        raise ValueError(
            f"{source}: item {row['id']!r}: {missing[0] if missing else 'an option'} is missing or no text"
        )
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not float(answer).is_integer():
        raise ValueError(f"{source}: item {row['id']!r}: answer must be the index of an option, got {answer!r}")
    _encodable(row, [row["prompt"], *options], source)
    return Item(
        id=str(row["id"]),
        prompt=str(row["prompt"]),
        options=tuple(str(option) for option in options),
        answer=int(answer),
        group=label(row.get("group")),
        form=label(row.get("form")),
    )


def _given(value: Any) -> bool:
    """Whether a cell holds something: a text, or a list that is not empty."""
    return len(list(value)) > 0 if isinstance(value, Iterable) else not (value is None or value != value)


def _free_item(row: Mapping[Hashable, Any], source: str) -> Item:
    expected, how = row["expected"], row.get("free")
    if beside := [name for name in BESIDE if _given(row.get(name))]:
        raise ValueError(
            f"{source}: item {row['id']!r}: {beside[0]} belongs into its free, with how it is asked and graded"
        )
    if _given(row.get("options")):
        raise ValueError(
            f"{source}: item {row['id']!r}: it has options and texts that are expected: give options with an answer, "
            "or the texts alone"
        )
    if not isinstance(row["prompt"], str | int) or not isinstance(row["id"], str | int):
        raise ValueError(f"{source}: item {row['id']!r}: prompt or id is missing or no text")
    if isinstance(how, str):
        try:
            how = json.loads(how)
        except json.JSONDecodeError:
            raise ValueError(f"{source}: item {row['id']!r}: free must be a mapping, or JSON of one: {how!r}") from None
    if _given(how) and not isinstance(how, Mapping):
        raise ValueError(f"{source}: item {row['id']!r}: free must be a mapping of its settings, got {how!r}")
    texts = [expected] if isinstance(expected, str) or not isinstance(expected, Iterable) else list(expected)
    _encodable(row, [row["prompt"], *texts], source)
    return Item(
        id=str(row["id"]),
        prompt=str(row["prompt"]),
        group=label(row.get("group")),
        form=label(row.get("form")),
        expected=tuple(str(text) for text in texts),
        free=free_text(how if isinstance(how, Mapping) else {}, f"{source}: item {row['id']!r}"),
    )


def _encodable(row: Mapping[Hashable, Any], texts: Iterable[Any], source: str) -> None:
    """Refuse texts with half a character, which no tokenizer takes."""
    for text in map(str, texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{source}: item {row['id']!r}: {text[:40]!r} has half a character (a lone surrogate): {error.reason}"
            ) from None


def free_text(settings: Mapping[str, Any], source: str = "free") -> FreeText:
    """`FreeText` from plain values.

    Raises:
        ValueError: a name is unknown, or a value out of its range. `source` is named in the message.
    """
    known = [field.name for field in fields(FreeText)]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{source}: a free-text item has no setting {unknown[0]!r}; it has {known}")
    values = dict(settings)
    if "stop" in values:
        given = values["stop"]
        values["stop"] = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    try:
        if type(values.get("max_tokens", 1)) is not int:
            raise ValueError(f"max_tokens must be a number of tokens, got {values['max_tokens']!r}")
        texts: dict[str, Any] = {name: [value] for name, value in values.items() if name != "max_tokens"}
        texts["stop"] = values.get("stop", ())
        if wrong := [name for name, given in texts.items() if not all(isinstance(text, str) for text in given)]:
            raise ValueError(f"{wrong[0]} must be text, got {settings[wrong[0]]!r}")
        return FreeText(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def label(value: Any) -> str:
    """A group or form as a text: empty where there is none."""
    return "" if value is None or value != value else str(value)  # NaN is not itself


def read(path: Path) -> list[Item]:
    """Items of a Parquet or JSON-lines file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the ending is neither .parquet nor .jsonl, it is a folder or cannot be read, a line is no JSON, or
            the table is not one of items.
    """
    if not path.exists():
        raise FileNotFoundError(f"no benchmark at {path}; write one with the columns {list(COLUMNS)}")
    if path.suffix == ".parquet":  # or a folder of such files
        try:
            table = pd.read_parquet(path)
        except (ValueError, ArrowException) as error:
            raise ValueError(f"{path} cannot be read as .parquet: {error}") from error
        return from_frame(table, str(path))
    if path.suffix == ".jsonl":
        if path.is_dir():
            raise ValueError(f"{path} is a folder: expected a file with a line an item")
        rows = [row | {"id": str(row["id"])} if isinstance(row.get("id"), int) else row for row in json_lines(path)]
        if not rows:
            raise ValueError(f"{path} has no line: write one an item, a JSON object with {list(COLUMNS)}")
        return from_frame(pd.DataFrame(rows, dtype=object), str(path))  # pandas would make numbers of texts
    raise ValueError(
        f"{path}: items are a .parquet or .jsonl file; a .yaml file with the keys source, prompt, options and answer "
        "makes items of any other table or dataset"
    )


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Raises:
        ValueError: it is not UTF-8, or a line is no JSON object or has a key twice; it is named.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = reading.from_json(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error.msg} at column {error.colno}") from error
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]}")
        rows.append(row)
    return rows


def write(path: Path, items: Sequence[Item]) -> None:
    """Write items as a Parquet file that `read` returns unchanged."""
    parquet.write(path, to_frame(items), index=False)
