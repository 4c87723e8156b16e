from __future__ import annotations

import copy
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as arrow
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from merge3 import benchmark, trees
from merge3 import items as files
from merge3.benchmark import Form, items_of, read, rows, settings_of, split, to_items
from merge3.items import FreeText

ARC: dict[str, Any] = {
    "id": "q1",
    "question": "Which is a fruit?",
    "choices": {"text": ["a stone", "an apple"], "label": ["1", "2"]},
    "answerKey": "2",
}
FORM = Form("Question: {{question}}\nAnswer:", "choices.text", "answerKey", labels="choices.label", id="id")


def test_a_row_of_arc() -> None:
    (item,) = to_items([ARC], FORM)
    assert (item.id, item.prompt) == ("q1", "Question: Which is a fruit?\nAnswer: ")
    assert (item.options, item.answer) == (("a stone", "an apple"), 1)


@pytest.mark.parametrize(("answer", "index"), [("C", 2), (2, 2), ("blue", 2), ("2", 2), (" A ", 0), (0.0, 0)])
def test_answers_are_indices_letters_or_texts(answer: object, index: int) -> None:
    row = {"q": "Sky?", "a": "red", "b": "green", "c": "blue", "key": answer}
    (item,) = to_items([row], Form("{{q}}", ["{{a}}", "{{b}}", "{{c}}"], "key"))
    assert (item.answer, item.id) == (index, "0")


def test_examples_stand_before_the_question_and_are_never_the_question() -> None:
    table = [{"q": f"{n}+1?", "o": [str(n + 1), "no"], "a": 0, "g": "odd" if n % 2 else "even"} for n in range(4)]
    found = to_items(table, Form("Q: {{q}}\nA:", "o", "a", shots=2, description="Add.\n", group="g"), table)
    assert found[3].prompt == "Add.\nQ: 0+1?\nA: 1\n\nQ: 1+1?\nA: 2\n\nQ: 3+1?\nA: "
    assert found[0].prompt == "Add.\nQ: 1+1?\nA: 2\n\nQ: 2+1?\nA: 3\n\nQ: 0+1?\nA: "
    assert [item.group for item in found] == ["even", "odd", "even", "odd"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet", "folder", "splits"])
def test_every_form_of_a_table_gives_the_same_items(ending: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"q": ["one?", "NA"], "a": ["x", "007"], "b": ["y", "é"], "key": ["A", "B"]})
    path, split = tmp_path / f"table.{ending}", None
    if ending == "csv":
        table.to_csv(path, index=False)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    elif ending == "json":
        table.to_json(path, orient="records")
    elif ending == "parquet":
        table.to_parquet(path)
    else:
        made = datasets.Dataset.from_pandas(table)
        path, split = tmp_path / "saved", "test" if ending == "splits" else None
        (datasets.DatasetDict({"test": made}) if split else made).save_to_disk(path)
    found = to_items(rows(str(path), split=split), Form("{{q}}", ["{{a}}", "{{b}}"], "key"))
    assert [(item.prompt, item.options, item.answer) for item in found] == [
        ("one? ", ("x", "y"), 0),
        ("NA ", ("007", "é"), 1),
    ]
    if split:
        with pytest.raises(ValueError, match=r"split must be one of \['test'\], got 'train'"):
            rows(str(path), split="train")


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_values_stand_as_in_the_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"table.{ending}"
    table: list[dict[str, Any]] = [{"n": 2**62, "x": 5, "of": [1, None]}, {"n": None, "x": 3, "of": [2, 3]}]
    if ending == "parquet":
        arrow.write_table(pyarrow.Table.from_pylist(table), path)
    else:
        table.append({"x": 2.5})
        text = json.dumps(table) if ending == "json" else "".join(json.dumps(row) + "\n" for row in table)
        path.write_text(f"\ufeff{text}", encoding="utf-8")
    assert repr(rows(str(path))) == repr(table)  # 5 is not 5.0


def test_a_csv_may_have_blank_lines_columns_without_a_name_and_long_cells(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\n,q,a,,\n0,"x\n,""y""",1,,\n \n\n1,' + "x" * 200_000 + ",2,,\n\n")
    assert rows(str(tmp_path / "t.csv")) == [{"q": 'x\n,"y"', "a": "1"}, {"q": "x" * 200_000, "a": "2"}]


def test_a_row_without_a_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 3, "b": 4, "r": 7}\n{"a": 3, "r": 7}\n')
    with pytest.raises(ValueError, match=r"row 1: 'b' is undefined; the row has \['a', 'r'\]"):
        items_of_form(tmp_path / "t.jsonl", Form("{{a}}+{{b}}=", None, "r"))


def items_of_form(path: Path, form: Form) -> list[files.Item]:
    return to_items(rows(str(path)), form)


@pytest.mark.parametrize(
    ("options", "answer", "labels", "index"),
    [
        (["3", "2", "1", "0"], "0", None, "0 or 3"),
        (["O", "A", "B", "AB"], "A", None, "0 or 1"),
        (["1", "2", "3"], "2", None, "1 or 2"),
        (["8", "7", "9", "6"], "2", None, 2),
        (["A", "B"], "A", None, 0),
        (["²", "³"], "³", None, 1),
        (["O", "A", "B", "AB"], "A", "o", 1),
        (["O", "A", "B", "AB"], "A", "['A', 'B', 'C', 'D']", 0),
    ],
)
def test_an_answer_is_one_option_or_refused(
    options: list[str], answer: str, labels: str | None, index: int | str
) -> None:
    table, form = [{"o": options, "a": answer}], Form("?", "o", "a", labels=labels)
    if isinstance(index, int):
        assert to_items(table, form)[0].answer == index
        return
    with pytest.raises(ValueError, match=f"row 0: the answer '{answer}' may be option {index} of"):
        to_items(table, form)


def test_questions_that_stand_answered_before_others_are_not_held_out(tmp_path: Path) -> None:
    settings = a_benchmark(tmp_path) | {"shots": 2, "test_share": 0.5}
    for seed in range(10):
        parts = read(settings, seed)
        assert len(parts["search"]) == len(parts["test"]) == 3
        assert [item.id for item in parts["search"]] == ["0", "1", "2"]
    by_split = {key: value for key, value in settings.items() if key != "test_share"} | {"test_split": "dev"}
    for item in read(by_split, 0)["test"]:
        assert item.prompt.startswith("0 + 1? 1\n\n1 + 1? 2\n\n")  # of the search's rows
    with pytest.raises(ValueError, match=r"6 distinct questions, 6 of them examples of others, .* shots_split"):
        read(settings | {"shots": 5}, 0)


def test_rows_that_ask_the_same_are_no_examples_of_each_other() -> None:
    table = [{"n": n, "q": f"x {n % 2}", "o": ["x", "y"], "a": 0} for n in range(4)]
    for item in to_items(table, Form("{{q}}", "o", "a", shots=1), table):
        assert item.prompt in ("x 1 x\n\nx 0 ", "x 0 x\n\nx 1 ")


def test_questions_of_one_prompt_are_examples_of_each_other(tmp_path: Path) -> None:
    table = [{"o": [f"He is {n}.", f"He are {n}."], "g": n % 2} for n in range(20)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    settings = {"source": str(tmp_path / "t.jsonl"), "prompt": "Which is right?", "options": "o", "answer": "0"}
    for group in ({}, {"group": "g"}):
        parts = read(settings | group | {"shots": 2, "test_share": 0.4}, 0)
        assert (len(parts["search"]), len(parts["test"])) == (12, 8)
        for item in parts["test"]:
            assert item.prompt == "Which is right? He is 0.\n\nWhich is right? He is 1.\n\nWhich is right? "
            assert int(item.id) > 2


@pytest.mark.parametrize(
    ("wrong", "message"), [({"q": "v", "a": None}, "it has no answer"), ({"a": 0}, "'q' is undefined")]
)
def test_an_example_that_is_none_is_named(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = [{"q": "x", "o": ["y", "z"], "a": 0}, {"o": ["y", "z"], **wrong}]
    form = Form("{{q}}", "o", "a", shots=1)
    with pytest.raises(ValueError, match=f"it, row 0: example row 1: {message}"):
        to_items(table[:1], form, table, "it")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    settings = {"source": str(tmp_path / "t.jsonl"), "prompt": "{{q}}", "options": "o", "answer": "a", "shots": 1}
    with pytest.raises(ValueError, match=f"t.jsonl, row 1: {message}"):
        read(settings | {"test_share": 0.5}, 0)


def test_as_many_examples_as_shots_are_enough_where_others_are_asked(tmp_path: Path) -> None:
    found = read(a_benchmark(tmp_path) | {"shots": 4, "shots_split": "dev", "test_share": 0.5}, 0)
    assert {item.prompt.count(" + 1?") for part in found.values() for item in part} == {5}


def test_groups_that_share_questions_hold_out_no_more_than_asked() -> None:
    made = [files.Item(f"{g}{n}", f"Question {n}?", ("x", "y"), 0, group=g) for g in ("a", "b", "c") for n in range(40)]
    assert {name: len(part) for name, part in split(made, 0.4, 0).items()} == {"search": 72, "test": 48}
    crossed = [
        files.Item(f"{g}{n}", f"Question {n}?", ("x", "y"), 0, group=g)
        for g, numbers in (("a", (0, 1)), ("b", (1, 2)), ("c", (0, 2)))
        for n in numbers
    ]
    with pytest.raises(ValueError, match="too few to hold out"):
        split(crossed, 0.5, 0)


def test_items_of_one_prompt_are_told_apart_by_their_options() -> None:
    made = [files.Item(str(n), "", (f"This is {n}.", f"This are {n}."), 0) for n in range(40)]
    parts = split([*made, replace(made[0], id="again")], 0.4, 0)
    assert (len(parts["search"]) + len(parts["test"]), len({i.options for i in parts["test"]})) == (41, 16)
    assert not {item.options for item in parts["search"]} & {item.options for item in parts["test"]}


def test_a_group_may_be_zero() -> None:
    (item,) = to_items([ARC | {"level": 0}], replace(FORM, group="level"))
    assert item.group == "0"


def test_options_may_be_an_array() -> None:
    (item,) = to_items([{"q": "?", "o": np.array(["x", "y"]), "a": np.int64(1)}], Form("{{q}}", "o", "a"))
    assert (item.options, item.answer) == (("x", "y"), 1)


@pytest.mark.parametrize(
    ("change", "form", "message"),
    [
        ({"answerKey": "3"}, FORM, r"row 0: the answer '3' is neither one of \['1', '2'\] nor an option"),
        ({"answerKey": ""}, FORM, "row 0: it has no answer"),
        ({"choices": {"text": ["x", None], "label": ["A", "B"]}}, FORM, "an option is null: .*reject"),
        ({}, replace(FORM, labels=None), "the answer '2' is neither one of .*; say by `labels` what list"),
        ({"question": None}, FORM, "row 0: a template writes a value that is null"),
        ({"answerKey": None}, FORM, "row 0: it has no answer"),
        ({"answerKey": float("inf")}, replace(FORM, labels=None), "row 0: the answer inf is neither"),
        ({}, Form("{{text}}", "choices.text", "answerKey", labels="choices.label"), "row 0: 'text' is undefined"),
        ({}, Form("{{question}}", "choices.text", "key"), "row 0: answer: 'key' is undefined; the row has"),
        ({}, Form("{{question}}", "question", "answerKey"), "row 0: options must be a list of two or more"),
        ({}, Form("{{question}}", ["{{question}}"], "answerKey"), "row 0: options must be a list of two or more"),
        ({}, Form("{{question", "choices.text", "answerKey"), "a template of the benchmark is wrong"),
        ({"answerKey": 5}, Form("{{question}}", "choices.text", "answerKey"), "row 0: the answer is option 5, of 2"),
        (
            {},
            replace(FORM, shots=1),
            "row 0: 1 shots need as many example rows that ask something else; there are 0",
        ),
        (
            {},
            Form("{{''.__class__.__mro__}}", "choices.text", "answerKey", labels="choices.label"),
            "access to attribute",
        ),
    ],
)
def test_rows_that_are_no_items_are_named(change: dict[str, Any], form: Form, message: str) -> None:
    table = [ARC | change]
    with pytest.raises(ValueError, match=message):
        to_items(table, form, table)


def test_an_id_occurs_once() -> None:
    with pytest.raises(ValueError, match="row 1: item ids must be unique, 'q1' occurs"):
        to_items([ARC, ARC], FORM)


def test_files_that_are_not_there_or_not_whole_are_said_so(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "x.csv"), str(tmp_path / "x"), "nobody/nothing"):
        with pytest.raises(FileNotFoundError, match="no benchmark at"):
            rows(missing)
    for name, text, message in (
        ("half.jsonl", '{"q": ', "line 1 is no JSON"),
        ("twice.json", '[{"q": 1, "a": 2, "q": 3}]', "cannot be read as .json: 'q' stands twice in an object"),
        ("one.json", '{"q": 1}', "expected a list of objects"),
        ("short.csv", "q,a\n1\n", "row 0 has 1 cells, the first line 2"),
        ("twice.csv", "q,q\n1,2\n", "two columns are called 'q'"),
        ("quote.csv", 'q,a\n1,2\n"so "x" y",3\n', "line 3: ',' expected after"),
        ("none.parquet", "q", "cannot be read as .parquet"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            rows(str(tmp_path / name))
    (tmp_path / "latin.csv").write_bytes("q,a\né,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv is not UTF-8 .*: save it as UTF-8"):
        rows(str(tmp_path / "latin.csv"))
    (tmp_path / "empty.csv").write_text("q,a\n")
    with pytest.raises(ValueError, match="expected at least one row"):
        rows(str(tmp_path / "empty.csv"))


@given(
    st.text(),
    st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True),
)
def test_texts_come_through_as_they_are(question: str, options: list[str]) -> None:
    (item,) = to_items([{"q": question, "o": options, "a": 1}], Form("{{q}}", "o", "a", delimiter=""))
    assert (item.prompt, item.options) == (question, tuple(options))


# --- free text


def test_without_options_items_are_free_text() -> None:
    table = [{"q": "2+2?", "a": "4"}, {"q": "1+1?", "a": ["2", "two"]}, {"q": "0+0?", "a": 0}]
    form = Form("Q: {{q}}\nA:", None, "a", shots=1, free={"stop": "\n", "max_tokens": 8, "extract": "last_number"})
    found = to_items(table, form, table)
    assert [item.expected for item in found] == [("4",), ("2", "two"), ("0",)]
    assert found[0].prompt == "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA:"
    assert found[0].free == FreeText(("\n",), 8, "last_number")
    with pytest.raises(ValueError, match="row 0: it has no answer"):
        to_items([{"q": "?", "a": ""}], Form("{{q}}", None, "a"))
    with pytest.raises(ValueError, match="has no setting 'end'"):
        to_items([{"q": "?", "a": "1"}], Form("{{q}}", None, "a", free={"end": "."}))
    with pytest.raises(ValueError, match="either options or free"):
        to_items([{"q": "?", "a": "1"}], Form("{{q}}", ["x", "y"], "a", free={}))


# --- chat templates


@pytest.fixture
def chatty(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A folder with a tokenizer that has a chat template, which begins with the beginning-of-text token."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    own.save_pretrained(tmp_path / "chat")
    return str(tmp_path / "chat")


def test_a_chat_template_is_applied_exactly_once(chatty: str, tokenizer: PreTrainedTokenizerBase) -> None:
    table = [{"q": f"{n}+1?", "o": [str(n + 1), "no"], "a": 0} for n in range(3)]
    form = Form("{{q}}", "o", "a", chat=chatty, system="Be brief.", description="Add. ", shots=1)
    (item, *_) = to_items(table, form, table)
    expected = "[system]Be brief.</s>[user]Add. 1+1?</s>[assistant]2</s>[user]0+1?</s>[assistant]"
    assert item.prompt == f"<s>{expected}"
    tree = trees.tokenize(item, tokenizer)
    assert isinstance(tree, trees.Tree)
    assert tree.tokens.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(tree.tokens[: tree.prompt]) == item.prompt
    again = [{"q": item.prompt, "o": ["x", "y"], "a": 0}]
    with pytest.raises(ValueError, match="row 0: a text holds '<s>' already: a chat template is applied once"):
        to_items(again, Form("{{q}}", "o", "a", chat=chatty))


@pytest.mark.parametrize("adds", [False, True])
def test_a_beginning_of_text_that_is_there_is_not_put_again(adds: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    own = copy.deepcopy(tokenizer)
    if adds:
        own.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    assert trees.encode("<s>x", own) == [0, *tokenizer.encode("x")]
    assert trees.encode("x", own) == [0] * adds + tokenizer.encode("x")


def test_a_tokenizer_without_a_chat_template_is_refused(saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        to_items([{"q": "?", "o": ["x", "y"], "a": 0}], Form("{{q}}", "o", "a", chat=str(saved["base"])))


def a_benchmark(folder: Path) -> dict[str, Any]:
    """Rows in two files of a dataset, and the settings that make items of them."""
    table = pd.DataFrame({"q": [f"{n} + 1?" for n in range(10)], "a": [str(n + 1) for n in range(10)], "b": "no"})
    parts = {"train": table[:6], "dev": table[6:]}
    made = {name: datasets.Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder / "data"))
    return {
        "source": str(folder / "data"),
        "split": "train",
        "prompt": "{{q}}",
        "options": ["{{a}}", "{{b}}"],
        "answer": "0",
    }


def test_a_benchmark_is_read_by_its_settings_or_by_the_name_of_the_file_that_holds_them(tmp_path: Path) -> None:
    settings = a_benchmark(tmp_path)
    (tmp_path / "it.yaml").write_text(yaml.safe_dump(settings | {"test_split": "dev"}))
    parts = read(settings_of(str(tmp_path / "it.yaml")), 0)
    assert [item.prompt for item in parts["search"]] == [f"{n} + 1? " for n in range(6)]
    assert [item.id for item in parts["test"]] == [f"test:{n}" for n in range(4)]  # rows are counted anew in each split
    assert items_of(str(tmp_path / "it.yaml")) == parts["search"] + parts["test"]
    shared = read(settings | {"test_share": 0.5}, 3)
    everything = to_items(rows(settings["source"], None, "train"), Form("{{q}}", ["{{a}}", "{{b}}"], "0"))
    assert shared == split(everything, 0.5, 3)


def test_a_file_of_items_is_a_benchmark_by_its_name(tmp_path: Path) -> None:
    made = to_items([ARC, ARC | {"id": "q2", "question": "Which is none?", "answerKey": "1"}], FORM)
    files.write(tmp_path / "items.parquet", made)
    source = str(tmp_path / "items.parquet")
    assert settings_of(source) == {"source": source}
    assert items_of(source) == made
    assert read({"source": source, "test_share": 0.5}, 0) == split(made, 0.5, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promt": "x"}, "it must have the key source and may have .*'prompt'.*, got .*'promt'"),
        ({"test_split": "dev", "test_share": 0.5}, "it needs either test_split or test_share"),
        (
            {"test_split": "train", "test_share": None},
            "split and test_split are the same, 'train': nothing is held out",
        ),
        ({True: "x"}, "got .*'True'"),
        ({"options": None}, "it has a prompt and needs options, too"),
        ({"answer": None}, "it has a prompt and needs answer, too"),
        ({"answer": 1}, r"it\.answer must be a text, got 1"),
        ({"test_share": "0.4"}, r"it\.test_share must be a number, got '0.4'"),
        ({"shots": "2"}, r"it\.shots must be a whole number, got '2'"),
        ({"shots": True}, r"it\.shots must be a whole number, got True"),
        ({"shots": -1}, r"it\.shots must be 0 or more, got -1"),
        ({"options": [1, 2]}, r"it\.options must be an expression, a list of templates, or null, got \[1, 2\]"),
        ({"chat": 3}, r"it\.chat must be a text or null, got 3"),
        ({"free": "numeric"}, r"it\.free must be keys and values, got 'numeric'"),
        ({"source": 5}, r"it\.source must be a text, got 5"),
        ({"test_split": "none", "test_share": None}, "split must be one of"),
        ({"prompt": None}, r"it\.answer needs a prompt template; without one .* is a file of items"),
        ({"source": "lm-eval:arc_easy"}, r"it\.answer has no use: lm-eval writes the items of lm-eval:arc_easy"),
    ],
)
def test_settings_that_make_no_benchmark_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = a_benchmark(tmp_path) | {"test_share": 0.4} | change
    settings = {key: value for key, value in settings.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read(settings, 0, "it")


def test_every_setting_has_a_kind() -> None:
    assert set(benchmark.KINDS) == {"source", *benchmark.WHERE, *(field.name for field in fields(Form))}


@pytest.mark.parametrize("key", ["system", "description", "delimiter", "prompt", "test_split"])
def test_what_is_left_empty_is_not_taken_as_a_text(key: str, tmp_path: Path) -> None:
    settings = a_benchmark(tmp_path) | ({} if key == "test_split" else {"test_share": 0.4}) | {key: None}
    with pytest.raises(ValueError, match=rf"it\.{key} must be a text, got None"):
        read(settings, 0, "it")


def test_splits_are_of_datasets_that_have_them(tmp_path: Path) -> None:
    settings = a_benchmark(tmp_path)
    table = pd.DataFrame(rows(settings["source"], None, "train"))
    table.to_csv(tmp_path / "table.csv", index=False)
    datasets.Dataset.from_pandas(table).save_to_disk(str(tmp_path / "one"))
    for source, split_of, message in (
        (tmp_path / "table.csv", "train", "is a file: it has no split 'train'"),
        (tmp_path / "one", "train", "is a dataset without splits: it has none called 'train'"),
    ):
        with pytest.raises(ValueError, match=message):
            read(settings | {"source": str(source), "split": split_of, "test_share": 0.4}, 0)
        with pytest.raises(ValueError, match=message.replace("train", "dev")):
            read({**settings, "source": str(source), "split": None, "test_split": "dev"}, 0)
    with pytest.raises(ValueError, match="is a file: it has no name 'it'"):
        rows(str(tmp_path / "table.csv"), "it")


def test_a_path_that_is_not_there_is_said_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "it.csv").write_text("q,a\nx,1\n")
    (tmp_path / "deep" / "it.yaml").write_text("source: it.csv\nprompt: '{{q}}'\noptions: null\nanswer: a\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no benchmark at it.csv in {tmp_path}$"):
        items_of("deep/it.yaml")
    (tmp_path / "it.csv").mkdir()
    with pytest.raises(ValueError, match=r"it\.csv is a folder: expected a \.csv file"):
        items_of("deep/it.yaml")


def test_a_file_of_settings_that_is_none_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no benchmark at"):
        settings_of(str(tmp_path / "none.yaml"))
    (tmp_path / "deep.yaml").mkdir()
    with pytest.raises(ValueError, match=r"deep\.yaml is a folder: expected a \.yaml file"):
        settings_of(str(tmp_path / "deep.yaml"))
    for text, message in (
        ("- a\n", "expected the keys of a benchmark"),
        ("a: [\nb: c", "it.yaml cannot be read as YAML: line 2, column 5: "),
        ("source: a\nsource: b", "it.yaml cannot be read as YAML: line 2, column 1: 'source' stands twice"),
        ("a: " + 9999 * "[", "it.yaml cannot be read as YAML: its brackets are nested too deep"),
        ("a: \a", "it.yaml cannot be read as YAML: unacceptable character"),
    ):
        (tmp_path / "it.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            settings_of(str(tmp_path / "it.yaml"))
    monkeypatch.setitem(sys.modules, "merge3.harness", None)  # as where lm-eval is not installed
    with pytest.raises(ValueError, match="lm-eval:arc_easy: "):
        items_of("lm-eval:arc_easy")
