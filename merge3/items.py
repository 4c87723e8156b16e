"""An item is one question of a benchmark with its options and the right one; this module loads and names them.

Knows what an item is and how a table of them is read. Does not know models, answers or splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

COLUMNS = ("id", "prompt", "options", "answer", "group", "form")


@dataclass(frozen=True)
class Item:
    """A multiple-choice question.

    `answer` is the index of the right option, `group` what scores are reported by (a language), `form` a second
    label within the group (a kind of template); the empty string where there is none.
    """

    id: str
    prompt: str
    options: tuple[str, ...]
    answer: int
    group: str = ""
    form: str = ""

    def __post_init__(self) -> None:
        if len(self.options) < 2:
            raise ValueError(f"item {self.id!r}: expected two options or more, got {len(self.options)}")
        if len(set(self.options)) < len(self.options):
            raise ValueError(f"item {self.id!r}: its options are not distinct: {list(self.options)}")
        if not 0 <= self.answer < len(self.options):
            raise ValueError(
                f"item {self.id!r}: answer must be the index of an option, 0 to {len(self.options) - 1}, "
                f"got {self.answer}"
            )

    @property
    def content_hash(self) -> str:
        """SHA-256 of what a model is asked: the prompt and the options in order, not the id or the answer."""
        text = json.dumps([self.prompt, list(self.options)], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def to_frame(items: Sequence[Item]) -> pd.DataFrame:
    """A table with one row an item and the columns `COLUMNS`."""
    rows = [asdict(item) | {"options": list(item.options)} for item in items]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def from_frame(table: pd.DataFrame, source: str = "table") -> list[Item]:
    """Items from a table with the columns `COLUMNS`; `group` and `form` may be absent.

    Raises:
        ValueError: a column is missing, an answer is absent or no index, an id occurs twice, or no row is left.
            `source` names the table in the message.
    """
    missing = [c for c in COLUMNS[:4] if c not in table.columns]
    if missing:
        raise ValueError(
            f"{source}: missing column(s) {missing}; expected {list(COLUMNS)}, found {list(table.columns)}"
        )
    if table.empty:
        raise ValueError(f"{source}: expected at least one item, found none")
    unanswered = table["id"][table["answer"].isna()].tolist()
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
    answer, options = row["answer"], row["options"]
    if isinstance(options, str) or not isinstance(options, Iterable):
        raise ValueError(f"{source}: item {row['id']!r}: options must be a list of strings, got {options!r}")
    missing = [name for name in ("id", "prompt") if not isinstance(row[name], str | int)]
    if missing or not all(isinstance(option, str | int | float) for option in options):
        raise ValueError(
            f"{source}: item {row['id']!r}: {missing[0] if missing else 'an option'} is missing or no text"
        )
    if isinstance(answer, bool) or not isinstance(answer, int | float) or answer != int(answer):
        raise ValueError(f"{source}: item {row['id']!r}: answer must be the index of an option, got {answer!r}")
    return Item(
        id=str(row["id"]),
        prompt=str(row["prompt"]),
        options=tuple(str(option) for option in options),
        answer=int(answer),
        group=_label(row.get("group")),
        form=_label(row.get("form")),
    )


def _label(value: Any) -> str:
    return "" if value is None or value != value else str(value)  # NaN is not itself


def read(path: Path) -> list[Item]:
    """Items of a Parquet or JSON-lines file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the ending is neither .parquet nor .jsonl, or the table is not one of items.
    """
    if not path.exists():
        raise FileNotFoundError(f"no benchmark at {path}; write one with the columns {list(COLUMNS)}")
    if path.suffix == ".parquet":
        return from_frame(pd.read_parquet(path), str(path))
    if path.suffix == ".jsonl":
        return from_frame(pd.read_json(path, lines=True, dtype={"id": str}), str(path))
    raise ValueError(f"{path}: expected a .parquet or .jsonl file")


def write(path: Path, items: Sequence[Item]) -> None:
    """Write items as a Parquet file that `read` returns unchanged."""
    to_frame(items).to_parquet(path, index=False)
