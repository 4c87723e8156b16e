"""Stage respond: the base and every expert answer every item, once."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.asking import answer_all, open_asker
from flows.stage import DATA, main, present, write_json
from merge3 import items, responses
from merge3.recipe import parents

PREPARE = DATA / "prepare"
OUT = DATA / "respond"
SHOWN = 20  # ids of items that no model answered


@flow
def respond(runtime: dict[str, Any]) -> None:
    """Write data/respond/search.parquet and test.parquet (models x items), and what they cost.

    The test answers are read by the stage evaluate alone.

    Raises:
        ValueError: the base or an expert is broken, or no model's answer to an item could be scored.
    """
    asker = open_asker(runtime, OUT / "answers")
    recipes = parents(list(asker.merger.experts))
    ledger = {}
    for split in ("search", "test"):
        found = items.read(present(PREPARE / f"{split}.parquet"))
        table, ledger[split] = answer_all(f"respond {split}", asker, recipes, found)
        if broken := table.index[table.isna().all(axis=1)].tolist():
            raise ValueError(f"{broken[0]!r} has no answer that could be scored: it cannot be merged")
        if silent := table.columns[table.isna().all(axis=0)].tolist():
            raise ValueError(
                f"{len(silent)} items were answered by no model, for the reasons above: leave them out, or give them "
                f"more max_tokens: {', '.join(silent[:SHOWN])}{', ...' if len(silent) > SHOWN else ''}"
            )
        ledger[split]["runtime"] = asker.identity
        responses.write(OUT / f"{split}.parquet", table)
    write_json(OUT / "ledger.json", ledger)


if __name__ == "__main__":
    main(respond)
