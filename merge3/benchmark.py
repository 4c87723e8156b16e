"""A benchmark in any form becomes items: rows of a file or of a `datasets` dataset, through Jinja templates.

Templates see the fields of a row, as in lm-eval. Options are a template each, or one expression that gives a list; the
answer is an index, a letter or the text of an option. Few-shot examples are rows answered rightly, before the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from merge3.items import Item

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FILES: Mapping[str, Any] = {
    ".csv": pd.read_csv,
    ".jsonl": pd.read_json,
    ".json": pd.read_json,
    ".parquet": pd.read_parquet,
}


@dataclass(frozen=True)
class Form:
    """How a row becomes an item.

    Attributes:
        prompt: template of the question, up to where an option follows.
        options: templates of the options, or one expression whose value is their list (`choices.text`).
        answer: expression of the right option: its index, its letter (or what `labels` holds) or its text.
        delimiter: what stands between prompt and option.
        labels: expression of the list that the answer is looked up in, where that is not A, B, C ...
        id: expression of the item's id; the row's number where None.
        group: expression of the group that scores are reported by, or None.
        description: text before everything.
        shots: how many of the example rows stand before the question.
    """

    prompt: str
    options: str | Sequence[str]
    answer: str
    delimiter: str = " "
    labels: str | None = None
    id: str | None = None
    group: str | None = None
    description: str = ""
    shots: int = 0


def rows(source: str, name: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a benchmark.

    Args:
        source: a .csv, .json, .jsonl or .parquet file, a folder that `datasets` saved, or a hub id.
        name: the configuration, of a hub id.
        split: the split, of a folder or hub id.

    Raises:
        FileNotFoundError: there is no such file, folder or dataset.
        ValueError: the file has another ending or is not whole, or there is no such split, or no row.
    """
    path = Path(source)
    if path.suffix in FILES:
        if not path.is_file():
            raise FileNotFoundError(f"no benchmark at {source}")
        options: dict[str, Any] = {"lines": True} if path.suffix == ".jsonl" else {}
        if path.suffix == ".csv":
            options = {"dtype": str, "keep_default_na": False}
        try:
            found: list[dict[str, Any]] = FILES[path.suffix](path, **options).to_dict("records")
        except ValueError as error:
            raise ValueError(f"{source} cannot be read as {path.suffix}: {error}") from error
    else:
        found = _dataset(source, name, split)
    if not found:
        raise ValueError(f"{source}: expected at least one row, found none")
    return found


def _dataset(source: str, name: str | None, split: str | None) -> list[dict[str, Any]]:
    """The rows of a saved dataset or of one of the hub."""
    try:
        found = datasets.load_from_disk(source) if Path(source).is_dir() else datasets.load_dataset(source, name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no benchmark at {source!r}: expected one of {sorted(FILES)}, a folder saved by datasets, or a hub id "
            f"that can be reached from here ({str(error).splitlines()[0]})"
        ) from error
    if isinstance(found, dict):
        if split not in found:
            raise ValueError(f"{source}: split must be one of {sorted(map(str, found))}, got {split!r}")
        found = found[split]
    return [dict(row) for row in found]


def to_items(
    table: Sequence[Mapping[str, Any]],
    form: Form,
    examples: Sequence[Mapping[str, Any]] = (),
    source: str = "benchmark",
) -> list[Item]:
    """The items of rows.

    `examples` are rows of which the first `form.shots` that are not the asked one stand before it.

    Raises:
        ValueError: a template fails, options are no list of two or more, an answer is none of them, an id occurs
            twice, or there are too few examples. `source` and the row are named.
    """
    writer = _Writer(form)
    if form.shots and len(examples) <= form.shots:
        raise ValueError(f"{source}: {form.shots} shots need more than {form.shots} example rows, got {len(examples)}")
    found, seen = [], set[str]()
    for number, row in enumerate(table):
        try:
            item = writer.item(row, number, [example for example in examples if example != row][: form.shots])
        except (TemplateError, ValueError) as error:
            raise ValueError(f"{source}, row {number}: {error}") from error
        if item.id in seen:
            raise ValueError(f"{source}, row {number}: item ids must be unique, {item.id!r} occurs more than once")
        seen.add(item.id)
        found.append(item)
    return found


class _Writer:
    """The templates of a form, compiled once."""

    def __init__(self, form: Form) -> None:
        self.form = form
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        listed = not isinstance(form.options, str)
        try:
            self._prompt = environment.from_string(form.prompt)
            self._options = [environment.from_string(text) for text in form.options] if listed else []
            expressions = {"answer": form.answer, "labels": form.labels, "id": form.id, "group": form.group}
            if not listed:
                expressions["options"] = str(form.options)
            self._expressions = {
                key: environment.compile_expression(text, undefined_to_none=False)
                for key, text in expressions.items()
                if text is not None
            }
        except TemplateError as error:
            raise ValueError(f"a template of the benchmark is wrong: {error}") from error

    def item(self, row: Mapping[str, Any], number: int, examples: Sequence[Mapping[str, Any]]) -> Item:
        """The item of a row."""
        shots = "".join(f"{prompt}{options[answer]}\n\n" for prompt, options, answer in map(self._parts, examples))
        prompt, options, answer = self._parts(row)
        identity = self._value("id", row)
        return Item(
            id=str(number if identity is None else identity),
            prompt=f"{self.form.description}{shots}{prompt}",
            options=tuple(options),
            answer=answer,
            group=str(self._value("group", row) or ""),
        )

    def _parts(self, row: Mapping[str, Any]) -> tuple[str, list[str], int]:
        """Prompt with its delimiter, options, and the index of the right one."""
        if self._options:
            options: Any = [template.render(row) for template in self._options]
        else:
            options = self._value("options", row)
        if isinstance(options, str) or not isinstance(options, Sequence) or len(options) < 2:
            raise ValueError(f"options must be a list of two or more, got {options!r}")
        texts = [str(option) for option in options]
        answer = _index(self._value("answer", row), texts, self._value("labels", row))
        return self._prompt.render(row) + self.form.delimiter, texts, answer

    def _value(self, key: str, row: Mapping[str, Any]) -> Any:
        if key not in self._expressions:
            return None
        value = self._expressions[key](**row)
        if isinstance(value, StrictUndefined):
            raise ValueError(f"{key}: {value._undefined_message}")
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _index(answer: Any, options: Sequence[str], labels: Sequence[Any] | None) -> int:
    """The index of the right option, from an index, a label or a text.

    Raises:
        ValueError: it is none of them, or more than one.
    """
    if answer is None or answer != answer or answer == "":
        raise ValueError("it has no answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool) and answer == int(answer) and labels is None:
        place = int(answer)
        if not 0 <= place < len(options):
            raise ValueError(f"the answer is option {place}, of {len(options)}")
        return place
    text = str(answer).strip()
    names = [str(label) for label in (LETTERS[: len(options)] if labels is None else labels)]
    for candidates in (names, [option.strip() for option in options]):
        places = [place for place, candidate in enumerate(candidates) if candidate == text]
        if len(places) == 1:
            return places[0]
    if labels is None and text.isdigit() and int(text) < len(options):
        return int(text)
    raise ValueError(f"the answer {answer!r} is neither one of {names} nor an option: {list(options)}")
