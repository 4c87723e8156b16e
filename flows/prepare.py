"""Stage prepare: the benchmark as items, split into those of the search and those of the test."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from prefect import flow

from demo.problems import LANGUAGES, PROMPT, Problem, generate
from flows.stage import DATA, main, say, section
from merge3 import items
from merge3.benchmark import Form, rows, split, to_items
from merge3.items import Item

OUT = DATA / "prepare"
TASK = "lm-eval:"  # a benchmark's source that is one of lm-eval's tasks of multiple choice, by name


@flow
def prepare(seed: int, benchmark: dict[str, Any] | None, problems: dict[str, int] | None) -> None:
    """Write data/prepare/search.parquet and test.parquet.

    `benchmark` says where the items come from, how a row becomes one (see `merge3.benchmark.Form`; without a `prompt`
    the file is of items), and what is held out: a split of its own, or a share of each group. `problems` has the
    demonstration write so many items of each language.

    Raises:
        ValueError: both or neither is given, or the benchmark is not one.
    """
    if (benchmark is None) == (problems is None):
        raise ValueError("give either prepare.benchmark or prepare.problems, the other as null")
    if benchmark is not None:
        splits = read(benchmark, seed)
    else:
        section("prepare.problems", problems or {}, ("search", "test"))
        splits = {
            part: [item_of(p) for language in LANGUAGES for p in generate(language, part, count, seed)]
            for part, count in (problems or {}).items()
        }
    OUT.mkdir(parents=True, exist_ok=True)
    for name, part in splits.items():
        items.write(OUT / f"{name}.parquet", part)
    say(f"{len(splits['search'])} search items, {len(splits['test'])} test items")


def item_of(problem: Problem) -> Item:
    """The item that asks a problem of the demonstration."""
    prompt = PROMPT.format(question=problem.question)
    return Item(problem.id, prompt, problem.options, problem.answer, problem.language, problem.form)


def read(benchmark: dict[str, Any], seed: int) -> dict[str, list[Item]]:
    """Search and test items of a benchmark.

    Raises:
        ValueError: a key is missing, unknown or without use, or both or neither of test_split and test_share is given.
    """
    where = ("name", "split", "test_split", "test_share", "shots_split")
    own = section("prepare.benchmark", benchmark, ("source",), (*where, *(field.name for field in fields(Form))))
    if ("test_split" in own) == ("test_share" in own):
        raise ValueError("prepare.benchmark needs either test_split or test_share")
    source, name = own["source"], own.get("name")
    if source.startswith(TASK):
        from merge3.harness import items_of  # an optional extra

        return split(items_of(source.removeprefix(TASK)), own["test_share"], seed)
    if "prompt" not in own:
        if more := sorted(set(own) - {"source", "test_share"}):
            raise ValueError(
                f"prepare.benchmark.{more[0]} needs a prompt template; without one {source} is a file of items, "
                "which takes test_share alone"
            )
        return split(items.read(Path(source)), own["test_share"], seed)
    form = Form(**{key: value for key, value in own.items() if key not in ("source", *where)})
    shown = rows(source, name, own["shots_split"]) if "shots_split" in own else []
    tables = {"search": rows(source, name, own.get("split"))}
    if "test_split" in own:
        tables["test"] = rows(source, name, own["test_split"])
    found = {part: to_items(table, form, shown or table, source) for part, table in tables.items()}
    if "test_split" in own:
        both = found["search"] + found["test"]
        if len({item.id for item in both}) < len(both):  # row numbers start again in every split
            found = {part: [replace(item, id=f"{part}:{item.id}") for item in of] for part, of in found.items()}
        return found
    return split(found["search"], own["test_share"], seed)


if __name__ == "__main__":
    main(prepare)
