"""Stage population: the answers of many models, from which item parameters are fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow

from flows.asking import answer_all, open_asker
from flows.known import study_of
from flows.stage import DATA, bounds, main, say, write_json
from merge3 import imports, items, responses
from merge3.genome import Genome, live_groups
from merge3.ledger import Cost
from merge3.recipe import Recipe

PREPARE = DATA / "prepare"
OUT = DATA / "population"


@flow
def population(
    seed: int,
    studies: dict[str, Any],
    runtime: dict[str, Any],
    responses: str | None,
    method: str,
    weights: list[float],
    size: int,
    held_out: int,
) -> None:
    """Write data/population/responses.parquet and models.csv (model, study, held_out).

    `responses` names an imported table (.csv or .parquet); where it is null, `size` random merges of each study's
    experts answer all search items. The last `held_out` of each study (of the table) are kept from the item fit.

    Raises:
        ValueError: the population is one model, or none is left to fit or to hold out.
    """
    found = items.read(PREPARE / "search.parquet")
    table, members, ledger = (
        _imported(Path(responses), found)
        if responses is not None
        else _merged(seed, studies, runtime, method, bounds("population.weights", weights), size, found)
    )
    broken = table.isna().all(axis=1).to_numpy()
    table, members = table[~broken], members[~broken]
    fewest = int(members.groupby("study").size().min()) if len(members) else 0
    if not 1 <= held_out < fewest - 1:
        raise ValueError(
            f"population.held_out must be 1 or more and leave at least two models to fit; got {held_out} of {fewest} "
            "distinct models"
        )
    members["held_out"] = members.groupby("study").cumcount(ascending=False) < held_out
    OUT.mkdir(parents=True, exist_ok=True)
    _write(table, members)
    write_json(OUT / "ledger.json", ledger)


def _write(table: pd.DataFrame, members: pd.DataFrame) -> None:
    responses.write(OUT / "responses.parquet", table)
    members.to_csv(OUT / "models.csv", index=False)


def _imported(path: Path, found: list[items.Item]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """The columns of a table that are search items, without duplicated rows."""
    table = responses.columns(imports.matrix(path), [item.id for item in found], str(path)).drop_duplicates()
    say(f"{path}: {len(table)} distinct models")
    return table, pd.DataFrame({"model": table.index, "study": ""}), {"tokens": 0, "this_run": Cost().to_dict()}


def _merged(
    seed: int,
    studies: dict[str, Any],
    runtime: dict[str, Any],
    method: str,
    weights: tuple[float, float],
    size: int,
    found: list[items.Item],
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Merges of each study with weights drawn uniformly, for each expert and group of parameters."""
    asker = open_asker(runtime, OUT / "answers")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    recipes: dict[str, Recipe] = {}
    for study in studies:
        experts, _ = study_of(study, studies)
        if unknown := [expert for expert in experts if expert not in asker.merger.experts]:
            raise ValueError(f"studies.{study}: no expert {unknown[0]!r}; there are {sorted(asker.merger.experts)}")
        groups = live_groups(asker.merger.changed)
        genome = Genome((method,), tuple(experts), groups, 1, weights, (0.2, 1.0), seed)
        for number in range(size):
            recipes[f"{study}-{number:02d}"] = genome.decode(generator.random(len(genome.names)))
    table, ledger = answer_all("population", asker, recipes, found)
    return (
        table,
        pd.DataFrame({"model": list(recipes), "study": [n.rsplit("-", 1)[0] for n in recipes]}),
        ledger,
    )


if __name__ == "__main__":
    main(population)
