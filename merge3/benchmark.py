"""A benchmark in any form becomes items: rows of a file or of a `datasets` dataset, through Jinja templates.

Templates see the fields of a row, as in lm-eval. Options are a template each, or one expression that gives a list; the
answer is an index, a letter or the text of an option. Without options the answer is the text, or a list of texts, that
is right, and items are free-text. Few-shot examples are rows answered rightly, before the question; with a chat
template they are turns of the conversation. A template is applied here, once, to whole texts, and never again after.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from jinja2 import StrictUndefined, TemplateError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment
from pyarrow import ArrowException
from pyarrow import parquet as arrow

from merge3 import items, reading
from merge3.items import Item, free_text
from merge3.models import load_tokenizer, weights_folder

TEST_SHARE = 0.4  # of the items, held out of the search, where nobody says
TASK = "lm-eval:"  # a source that is one of lm-eval's tasks of multiple choice, by name
WHERE = ("name", "split", "test_split", "test_share", "shots_split")  # beside the source
TEXT, MAYBE = ((str,), "a text"), ((str, type(None)), "a text or null")
KINDS: Mapping[str, tuple[tuple[Any, ...], str]] = {  # of the settings of a benchmark
    **dict.fromkeys(("source", "test_split", "shots_split", "prompt", "answer"), TEXT),
    **dict.fromkeys(("delimiter", "description", "system"), TEXT),
    **dict.fromkeys(("name", "split", "labels", "id", "group", "chat"), MAYBE),
    "options": ((str, list, tuple, type(None)), "an expression, a list of templates, or null"),
    "shots": ((int,), "a whole number"),
    "test_share": ((int, float), "a number"),
    "free": ((Mapping, type(None)), "keys and values"),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST = 2**31 - 1  # characters of a cell of a CSV, the most that every system takes


@dataclass(frozen=True)
class Form:
    """How a row becomes an item.

    Attributes:
        prompt: template of the question, up to where an option follows.
        options: templates of the options, or one expression whose value is their list (`choices.text`); None for
            free-text items.
        answer: expression of the right option: its index, its letter (or what `labels` holds) or its text; of
            free-text items, the text that is right, or a list of such.
        delimiter: what stands between prompt and option.
        labels: expression of the list that the answer is looked up in, where that is not A, B, C ...
        id: expression of the item's id; the row's number where None.
        group: expression of the group that scores are reported by, or None.
        description: text before everything.
        shots: how many of the example rows stand before the question.
        free: of free-text items, how they are asked and graded, see `items.FreeText`.
        chat: a model folder or hub id whose tokenizer's chat template puts the question as a user's turn, and the
            examples as turns before it; the delimiter is left out, as by lm-eval.
        system: the system's turn (with `chat`), else text before everything.
    """

    prompt: str
    options: str | Sequence[str] | None
    answer: str
    delimiter: str = " "
    labels: str | None = None
    id: str | None = None
    group: str | None = None
    description: str = ""
    shots: int = 0
    free: Mapping[str, Any] | None = None
    chat: str | None = None
    system: str = ""


def rows(source: str, name: str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a benchmark.

    Args:
        source: a .csv, .json, .jsonl or .parquet file, a folder that `datasets` saved, or a hub id.
        name: the configuration, of a hub id.
        split: the split, of a folder or hub id.

    Raises:
        FileNotFoundError: there is no such file, folder or dataset.
        ValueError: the file is a folder, has another ending or is not whole, or there is no such split, or no row.
    """
    path = Path(source)
    if path.suffix in FILES:
        if path.is_dir():
            raise ValueError(f"{source} is a folder: expected a {path.suffix} file")
        if not path.is_file():
            raise FileNotFoundError(f"no benchmark at {source}{'' if path.is_absolute() else f' in {Path.cwd()}'}")
        if name or split:
            raise ValueError(
                f"{source} is a file: it has no {'split ' + repr(split) if split else 'name ' + repr(name)}"
            )
        try:
            found = FILES[path.suffix](path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is not UTF-8 ({error.reason}): save it as UTF-8") from error
        except (ValueError, ArrowException) as error:
            raise ValueError(f"{source} cannot be read as {path.suffix}: {error}") from error
    else:
        found = _dataset(source, name, split)
    if not found:
        raise ValueError(f"{source}: expected at least one row, found none")
    return found


def _csv(path: Path) -> list[dict[str, Any]]:
    """Rows whose cells are all text, as they stand there; no blank lines, and no columns without a name."""
    csv.field_size_limit(LONGEST)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            head, *lines = [line for line in reader if len(line) > 1 or "".join(line).strip()] or [[]]
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    if twice := {name for name in head if name and head.count(name) > 1}:
        raise ValueError(f"two columns are called {min(twice)!r}")
    for number, line in enumerate(lines):
        if len(line) != len(head):
            raise ValueError(f"row {number} has {len(line)} cells, the first line {len(head)}")
    return [{name: cell for name, cell in zip(head, line, strict=True) if name} for line in lines]


def _json(path: Path) -> list[dict[str, Any]]:
    found = reading.from_json(path.read_text(encoding="utf-8-sig"))
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("expected a list of objects, a row each")
    return found


FILES: Mapping[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".csv": _csv,
    ".jsonl": items.json_lines,
    ".json": _json,
    ".parquet": lambda path: arrow.read_table(path).to_pylist(),
}


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
    elif split:
        raise ValueError(f"{source} is a dataset without splits: it has none called {split!r}")
    return [dict(row) for row in found]


def to_items(
    table: Sequence[Mapping[str, Any]],
    form: Form,
    examples: Iterable[Mapping[str, Any]] = (),
    source: str = "benchmark",
) -> list[Item]:
    """The items of rows.

    `examples` are rows of which the first `form.shots` that ask something else stand before a question.

    Raises:
        ValueError: a template fails, options are no list of two or more, an answer is none of them or may be several,
            an id occurs twice, or there are too few examples. `source` and the row are named.
    """
    writer, rest = _Writer(form), enumerate(examples)
    shown: list[tuple[str, str]] = []  # the examples that were needed so far

    def before(asked: tuple[str, str]) -> list[tuple[str, str]]:
        others, place = list[tuple[str, str]](), 0
        while len(others) < form.shots:
            if place == len(shown):
                if (example := next(rest, None)) is None:
                    raise ValueError(
                        f"{form.shots} shots need as many example rows that ask something else; there are {len(others)}"
                    )
                shown.append(writer.example(example[1], f"example row {example[0]}"))
            if writer.asked(shown[place]) != writer.asked(asked):
                others.append(shown[place])
            place += 1
        return others

    found, seen = [], set[str]()
    for number, row in enumerate(table):
        try:
            item = writer.item(row, number, before)
        except (TemplateError, ValueError) as error:
            raise ValueError(f"{source}, row {number}: {_told(error, row)}") from error
        if item.id in seen:
            raise ValueError(f"{source}, row {number}: item ids must be unique, {item.id!r} occurs more than once")
        seen.add(item.id)
        found.append(item)
    return found


def _first(table: Sequence[Mapping[str, Any]], form: Form, count: int, source: str) -> list[int]:
    """The first so many rows that ask different things.

    Raises:
        ValueError: one of them is no example.
    """
    writer, found = _Writer(form), dict[tuple[str, ...], int]()
    for number, row in enumerate(table):
        if len(found) == count:
            break
        found.setdefault(writer.asked(writer.example(row, f"{source}, row {number}")), number)
    return list(found.values())


class Chat:
    """A tokenizer's chat template, applied to a conversation that has none yet."""

    def __init__(self, source: str) -> None:
        """`source` is a model folder or hub id.

        Raises:
            ValueError: its tokenizer has no chat template.
        """
        self.tokenizer = load_tokenizer(weights_folder(source))
        if not self.tokenizer.chat_template:
            raise ValueError(f"{source}: its tokenizer has no chat template; leave `chat` out, or name another model")
        self.marks = [str(token) for token in self.tokenizer.all_special_tokens]

    def __call__(self, system: str, questions: Sequence[str], answers: Sequence[str]) -> str:
        """The conversation up to where the last question's answer begins.

        Raises:
            ValueError: a text holds one of the template's special tokens: it is wrapped already.
        """
        for text in (system, *questions, *answers):
            if found := [mark for mark in self.marks if mark in text]:
                raise ValueError(f"a text holds {found[0]!r} already: a chat template is applied once")
        turns = [{"role": "system", "content": system}] if system else []
        for question, answer in zip(questions, answers, strict=False):
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns.append({"role": "user", "content": questions[-1]})
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


class _Writer:
    """The templates of a form, compiled once."""

    def __init__(self, form: Form) -> None:
        self.form = form
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_written)
        if form.options is not None and form.free is not None:
            raise ValueError("a benchmark has either options or free: what is free has no options")
        self._free = free_text(form.free or {}, "free") if form.options is None else None
        self._chat = None if form.chat is None else Chat(form.chat)
        texts = None if isinstance(form.options, str) else form.options
        try:
            self._prompt = environment.from_string(form.prompt)
            self._options = [environment.from_string(text) for text in texts or ()]
            expressions = {"answer": form.answer, "labels": form.labels, "id": form.id, "group": form.group}
            if isinstance(form.options, str):
                expressions["options"] = form.options
            self._expressions = {
                key: environment.compile_expression(text, undefined_to_none=False)
                for key, text in expressions.items()
                if text is not None
            }
        except TemplateError as error:
            raise ValueError(f"a template of the benchmark is wrong: {error}") from error

    def item(
        self, row: Mapping[str, Any], number: int, before: Callable[[tuple[str, str]], Sequence[tuple[str, str]]]
    ) -> Item:
        """The item of a row, after the examples, questions and answers, that stand `before` its own."""
        question, right = self._question(row)
        examples = before((question, right[0]))
        questions, answers = [*(q for q, _ in examples), question], [a for _, a in examples]
        if self._chat is None:
            shots = "".join(f"{q}{self.form.delimiter}{a}\n\n" for q, a in zip(questions, answers, strict=False))
            prompt = f"{self.form.system}{self.form.description}{shots}{questions[-1]}{self.form.delimiter}"
        else:
            questions[0] = self.form.description + questions[0]
            prompt = self._chat(self.form.system, questions, answers)
        identity = self._value("id", row)
        name, group = str(number if identity is None else identity), items.label(self._value("group", row))
        if self._free is not None:
            return Item(name, prompt.rstrip(" "), group=group, expected=tuple(right), free=self._free)
        options, answer = self._choices(row)
        return Item(name, prompt, tuple(options), answer, group)

    def example(self, row: Mapping[str, Any], called: str) -> tuple[str, str]:
        """The question and the answer of a row.

        Raises:
            ValueError: it has none. The row is called as is said.
        """
        try:
            question, right = self._question(row)
        except (TemplateError, ValueError) as error:
            raise ValueError(f"{called}: {_told(error, row)}") from error
        return question, right[0]

    def asked(self, example: tuple[str, str]) -> tuple[str, ...]:
        """What two examples have in common that ask the same: with options the answer, too, as prompts may be alike."""
        return example if self._free is None else example[:1]

    def _question(self, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The question, and the texts that are right."""
        question = self._prompt.render(row)
        if self._free is None:
            options, answer = self._choices(row)
            return question, [options[answer]]
        found = self._value("answer", row)
        texts = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        if not texts or any(text is None or text != text or text == "" for text in texts):
            raise ValueError("it has no answer")
        return question, [str(text) for text in texts]

    def _choices(self, row: Mapping[str, Any]) -> tuple[list[str], int]:
        """The options, and the index of the right one."""
        if self._options:
            options: Any = [template.render(row) for template in self._options]
        else:
            options = self._value("options", row)
        if isinstance(options, str) or not isinstance(options, Sequence) or len(options) < 2:
            raise ValueError(f"options must be a list of two or more, got {options!r}")
        if any(option is None or option != option for option in options):
            raise ValueError(f"an option is null: {list(options)}; `| reject('none') | list` leaves such out")
        texts = [str(option) for option in options]
        return texts, _index(self._value("answer", row), texts, self._value("labels", row))

    def _value(self, key: str, row: Mapping[str, Any]) -> Any:
        if key not in self._expressions:
            return None
        value = self._expressions[key](**row)
        if isinstance(value, StrictUndefined):
            raise UndefinedError(f"{key}: {value._undefined_message}")
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _told(error: Exception, row: Mapping[str, Any]) -> str:
    """An error, and what there is where a row lacks what a template names."""
    return f"{error}; the row has {list(row)}" if isinstance(error, UndefinedError) else str(error)


def _written(value: Any) -> Any:
    """What a template writes, if it is there.

    Raises:
        ValueError: it is null.
    """
    if value is None or (isinstance(value, float) and value != value):
        raise ValueError("a template writes a value that is null: write {{ it or '' }} where it may be")
    return value


def _index(answer: Any, options: Sequence[str], labels: Sequence[Any] | None) -> int:
    """The index of the right option, from an index, a label or a text.

    Raises:
        ValueError: it is none of them, or more than one.
    """
    if answer is None or answer != answer or answer == "":
        raise ValueError("it has no answer")
    if (
        isinstance(answer, int | float)
        and not isinstance(answer, bool)
        and float(answer).is_integer()
        and labels is None
    ):
        place = int(answer)
        if not 0 <= place < len(options):
            raise ValueError(f"the answer is option {place}, of {len(options)}")
        return place
    text = str(answer).strip()
    names = [str(label) for label in (LETTERS[: len(options)] if labels is None else labels)]
    readings = []
    for candidates in (names, [option.strip() for option in options]):
        places = [place for place, candidate in enumerate(candidates) if candidate == text]
        readings += places if len(places) == 1 else []
    if labels is not None and readings:
        return readings[0]
    if text.isdecimal() and int(text) < len(options) and labels is None:
        readings.append(int(text))
    if len(set(readings)) > 1:
        several = " or ".join(map(str, sorted(set(readings))))
        raise ValueError(
            f"the answer {answer!r} may be option {several} of {list(options)}, by its letter, text or number: give "
            "`labels`, the list that it is looked up in (the options, or ['A', 'B', ...]), or write `answer | int`"
        )
    if readings:
        return readings[0]
    remedy = "" if labels is not None else "; say by `labels` what list it is looked up in, or make an index of it"
    raise ValueError(f"the answer {answer!r} is neither one of {names} nor an option: {list(options)}{remedy}")


def settings_of(source: str) -> dict[str, Any]:
    """A benchmark by one name: a file of items, `lm-eval:<task>`, or a .yaml file with the keys that `read` takes.

    Raises:
        FileNotFoundError: there is no such .yaml file.
        ValueError: it is a folder or no YAML, a key stands twice in it, or it holds no mapping.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        return {"source": source}
    if path.is_dir():
        raise ValueError(f"{source} is a folder: expected a .yaml file with the keys of a benchmark")
    if not path.is_file():
        raise FileNotFoundError(f"no benchmark at {source}")
    found = reading.from_yaml(path)
    if not isinstance(found, dict):
        raise ValueError(
            f"{source}: expected the keys of a benchmark (source, prompt, options, answer, ...), got {found!r}"
        )
    return found


def with_share(settings: Mapping[str, Any], test_share: float | None, called: str) -> dict[str, Any]:
    """The settings, with what is held out: the given share, else what they say, else `TEST_SHARE`.

    Raises:
        ValueError: a share is given, and the settings have a split of their own for the test.
    """
    if test_share is not None and "test_split" in settings:
        raise ValueError(f"{called} has its own test_split: leave out the test share, {test_share}")
    own = {} if {"test_split", "test_share"} & set(settings) else {"test_share": TEST_SHARE}
    return {**settings, **own} if test_share is None else {**settings, "test_share": test_share}


def read(settings: Mapping[str, Any], seed: int, called: str = "benchmark") -> dict[str, list[Item]]:
    """Search and test items of a benchmark.

    Args:
        settings: `source`, see `rows`, or `lm-eval:<task>`; its `name` and `split`; what is held out, a `test_split` of
            its own or a `test_share` of each group; the `shots_split` whose rows are examples; the fields of `Form`.
            Without a `prompt` the source is a file of items.
        seed: of what is held out.
        called: what errors call the settings.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: a key is missing, unknown, of the wrong kind or without use, or both or neither of test_split and
            test_share is given.
    """
    if isinstance(settings, Mapping) and ("test_split" in settings) == ("test_share" in settings):
        raise ValueError(f"{called} needs either test_split or test_share")
    parts, shown = _gathered(settings, called)
    return parts if "test" in parts else split(parts["search"], settings["test_share"], seed, shown)


def _gathered(settings: Mapping[str, Any], called: str) -> tuple[dict[str, list[Item]], set[str]]:
    """All items of a benchmark, as "search"; those of its test_split, if it has one, as "test".

    And the ids of those among them that stand, answered, before others.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: a key is missing, unknown, of the wrong kind or without use.
    """
    own = _checked(settings, called)
    source, name = own.pop("source"), own.get("name")
    if source.startswith(TASK):
        _only_share(called, own, f"has no use: lm-eval writes the items of {source}, which takes")
        try:
            from merge3 import harness  # an optional extra
        except ImportError as error:
            raise ValueError(f"{called}: {error}") from error
        return {"search": harness.items_of(source.removeprefix(TASK))}, set()
    if "prompt" not in own:
        _only_share(called, own, f"needs a prompt template; without one {source} is a file of items, which takes")
        return {"search": items.read(Path(source))}, set()
    if lacking := [key for key in ("options", "answer") if key not in own]:
        raise ValueError(f"{called} has a prompt and needs {lacking[0]}, too (options are null of free-text items)")
    if "test_split" in own and own["test_split"] == own.get("split"):
        raise ValueError(f"{called}: split and test_split are the same, {own['test_split']!r}: nothing is held out")
    form = Form(**{key: value for key, value in own.items() if key not in WHERE})
    tables = {"search": rows(source, name, own.get("split"))}
    if "test_split" in own:
        tables["test"] = rows(source, name, own["test_split"])
    first = list[int]()
    if "shots_split" in own:
        examples = rows(source, name, own["shots_split"])
    else:
        first = _first(tables["search"], form, form.shots + 1, source) if form.shots else []
        examples = [tables["search"][number] for number in first]
    found = {part: to_items(table, form, examples, source) for part, table in tables.items()}
    shown = {found["search"][number].id for number in first}
    both = [item.id for part in found.values() for item in part]
    if len(set(both)) < len(both):  # row numbers start again in every split
        found = {part: [replace(item, id=f"{part}:{item.id}") for item in of] for part, of in found.items()}
    return found, shown


def items_of(source: str) -> list[Item]:
    """All items of a benchmark by one name, see `settings_of`.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it is no benchmark.
    """
    parts, _ = _gathered(settings_of(source), source)
    return [item for part in parts.values() for item in part]


def _checked(settings: Mapping[str, Any], called: str) -> dict[str, Any]:
    """The settings, if their keys are known and their values of the right kind.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(settings, Mapping) or not {"source"} <= set(settings) <= set(KINDS):
        given = sorted(map(str, settings)) if isinstance(settings, Mapping) else settings
        more = sorted(set(KINDS) - {"source"})
        raise ValueError(f"{called} must have the key source and may have {more}, got {given}")
    for key, value in settings.items():
        kinds, said = KINDS[key]
        texts = all(isinstance(one, str) for one in value) if isinstance(value, list | tuple) else True
        if not isinstance(value, kinds) or isinstance(value, bool) or not texts:
            raise ValueError(f"{called}.{key} must be {said}, got {value!r}")
    if settings.get("shots", 0) < 0:
        raise ValueError(f"{called}.shots must be 0 or more, got {settings['shots']}")
    return dict(settings)


def _only_share(called: str, own: Mapping[str, Any], why: str) -> None:
    """Refuse settings that a source has no use for."""
    if unused := sorted(set(own) - {"test_share"}):
        raise ValueError(f"{called}.{unused[0]} {why} test_share alone")


def split(found: list[Item], test_share: float, seed: int, shown: Collection[str] = ()) -> dict[str, list[Item]]:
    """Search and test items: `test_share` of each group, rounded, is held out; items of one question stay together.

    A question is a prompt, or, in a group of one prompt (but for examples), a prompt and its options. None is held out
    that stands, answered, before others: `shown` are the ids of such items.

    Raises:
        ValueError: the share is not inside (0, 1), or leaves a group without search or test items.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be inside (0, 1), got {test_share}")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    prompts: dict[str, set[str]] = {}
    for item in found:  # what is shown has other examples before it
        prompts.setdefault(item.group, set()).update(() if item.id in shown else (item.prompt,))

    def question(item: Item) -> tuple[str, tuple[str, ...]]:
        return item.prompt, item.options if len(prompts[item.group]) == 1 else ()

    open_ones = {question(item) for item in found if item.id in shown}
    held: set[tuple[str, tuple[str, ...]]] = set()
    for group in sorted(prompts):
        texts = sorted({question(item) for item in found if item.group == group})
        hidden = [text for text in texts if text not in open_ones | held]
        count = round(test_share * len(texts)) - len(held & set(texts))  # other groups may have held some already
        held |= {hidden[i] for i in generator.permutation(len(hidden))[: max(0, count)]}
    for group in sorted(prompts):
        texts = sorted({question(item) for item in found if item.group == group})
        if not 0 < len(held & set(texts)) < len(texts):
            examples = len(open_ones.intersection(texts))
            raise ValueError(
                f"{f'group {group!r} has' if group else 'there are'} {len(texts)} distinct questions, "
                f"{f'{examples} of them examples of others, ' if examples else ''}too few to hold out {test_share} of "
                "them: give more, leave the group out, or choose another test_share"
                f"{', fewer shots, or a shots_split' if examples else ''}"
            )
    return {
        "search": [item for item in found if question(item) not in held],
        "test": [item for item in found if question(item) in held],
    }
