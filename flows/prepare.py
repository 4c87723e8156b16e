"""Stage prepare: the benchmark as items, split into those of the search and those of the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow

from demo.problems import LANGUAGES, PROMPT, Problem, generate
from flows.stage import DATA, main, say, section
from merge3 import items
from merge3.items import Item

OUT = DATA / "prepare"


@flow
def prepare(seed: int, benchmark: dict[str, Any] | None, problems: dict[str, int] | None) -> None:
    """Write data/prepare/search.parquet and test.parquet.

    `benchmark` names a file of items and the share of each group that is held out; `problems` has the
    demonstration write so many items of each language.

    Raises:
        ValueError: both or neither is given, or the benchmark is not one.
    """
    if (benchmark is None) == (problems is None):
        raise ValueError("give either prepare.benchmark or prepare.problems, the other as null")
    if benchmark is not None:
        section("prepare.benchmark", benchmark, ("file", "test_share"))
        splits = split(items.read(Path(benchmark["file"])), benchmark["test_share"], seed)
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


def split(found: list[Item], test_share: float, seed: int) -> dict[str, list[Item]]:
    """Search and test items: `test_share` of each group, rounded, is held out; items of one prompt stay together.

    Raises:
        ValueError: the share is not inside (0, 1), or leaves a group without search or test items.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"prepare.benchmark.test_share must be inside (0, 1), got {test_share}")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    held: set[str] = set()
    for group in sorted({item.group for item in found}):
        texts = sorted({item.prompt for item in found if item.group == group})
        count = round(test_share * len(texts))
        if not 0 < count < len(texts):
            raise ValueError(f"group {group!r} has {len(texts)} distinct prompts: too few to split by {test_share}")
        held |= {texts[i] for i in generator.permutation(len(texts))[:count]}
    return {
        "search": [item for item in found if item.prompt not in held],
        "test": [item for item in found if item.prompt in held],
    }


if __name__ == "__main__":
    main(prepare)
