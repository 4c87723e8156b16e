"""Stage prepare: the benchmark as items, split into those of the search and those of the test."""

from __future__ import annotations

from typing import Any

from prefect import flow

from demo.problems import LANGUAGES, PROMPT, Problem, generate
from flows.stage import DATA, Count, Seed, main, say, section
from merge3 import items
from merge3.benchmark import read
from merge3.items import Item

OUT = DATA / "prepare"
PROBLEMS = {"search": Count, "test": Count}


@flow
def prepare(seed: Seed, benchmark: dict[str, Any] | None, problems: dict[str, int] | None) -> None:
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
        splits = read(benchmark, seed, "prepare.benchmark")
    else:
        section("prepare.problems", problems or {}, PROBLEMS)
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


if __name__ == "__main__":
    main(prepare)
