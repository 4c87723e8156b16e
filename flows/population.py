"""Stage population: the answers of many models, from which item parameters are fitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow

from flows.asking import answer_all, open_asker
from flows.known import items_of, study_of
from flows.stage import DATA, Count, Seed, bounds, main, say, write_json, write_text
from merge3 import imports, items, parquet, responses
from merge3.asker import Asker
from merge3.genome import Genome, live_groups
from merge3.ledger import Cost
from merge3.recipe import Recipe

OUT = DATA / "population"


@flow
def population(
    seed: Seed,
    study: str,
    studies: dict[str, Any],
    runtime: dict[str, Any],
    responses: str | None,
    method: str,
    weights: list[float],
    totals: list[float],
    size: Count,
    held_out: Count,
) -> None:
    """Write data/population/responses.parquet, margins.parquet, models.csv (model, study, held_out) and recipes.json.

    `responses` names an imported table (.csv or .parquet); where it is null, `size` random merges of the study's
    experts answer its search items (`Genome.draw`), margins.parquet has how far each right option leads, in nats, and
    recipes.json what each merge is. The last `held_out` are kept from the item fit.

    Raises:
        ValueError: the population is one model, or none is left to fit or to hold out.
    """
    _, labels = study_of(study, studies)
    found = items_of(labels, "search")
    if responses is not None:
        table, members, ledger = _imported(Path(responses), found, seed)
        margins, recipes = None, dict[str, Recipe]()
    else:
        ranges = bounds("population.weights", weights), bounds("population.totals", totals)
        asker, recipes = _drawn(seed, study, studies, runtime, method, *ranges, size)
        table, margins, members, ledger = _merged(study, asker, recipes, found)
    broken = table.isna().all(axis=1).to_numpy()
    table, members = table[~broken], members[~broken]
    if not 1 <= held_out < len(members) - 1:
        raise ValueError(
            f"population.held_out must be 1 or more and leave at least two models to fit; got {held_out} of "
            f"{len(members)} distinct models"
        )
    members["held_out"] = np.arange(len(members)) >= len(members) - held_out
    OUT.mkdir(parents=True, exist_ok=True)
    _write(table, margins, members)
    write_json(OUT / "recipes.json", {name: recipe.to_dict() for name, recipe in recipes.items()})
    write_json(OUT / "ledger.json", ledger)


def _write(table: pd.DataFrame, margins: pd.DataFrame | None, members: pd.DataFrame) -> None:
    responses.write(OUT / "responses.parquet", table)
    margins = pd.DataFrame(index=table.index) if margins is None else margins.loc[table.index]
    parquet.write(OUT / "margins.parquet", margins.astype(np.float32))
    write_text(OUT / "models.csv", members.to_csv(index=False))


def _imported(path: Path, found: list[items.Item], seed: int) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """The columns of a table that are search items, its distinct rows in random order."""
    table = responses.columns(imports.matrix(path), [item.id for item in found], str(path)).drop_duplicates()
    table = table.sample(frac=1, random_state=seed)  # the last are held out, and a leaderboard is sorted
    say(f"{path}: {len(table)} distinct models")
    return table, pd.DataFrame({"model": table.index, "study": ""}), {"tokens": 0, "this_run": Cost().to_dict()}


def _drawn(
    seed: int,
    study: str,
    studies: dict[str, Any],
    runtime: dict[str, Any],
    method: str,
    weights: tuple[float, float],
    totals: tuple[float, float],
    size: int,
) -> tuple[Asker, dict[str, Recipe]]:
    """Random merges of the study's experts, and who asks them."""
    experts, _ = study_of(study, studies)
    asker = open_asker(runtime, OUT / "answers", experts)
    genome = Genome((method,), tuple(experts), live_groups(asker.merger.changed), 1, weights, (0.2, 1.0), seed)
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    return asker, {f"{study}-{number:02d}": genome.draw(totals, generator) for number in range(size)}


def _merged(
    study: str, asker: Asker, recipes: Mapping[str, Recipe], found: list[items.Item]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Answers and margins of merges, and who they are."""
    table, ledger = answer_all("population", asker, recipes, found)
    kept = [asker.ask(recipe, found).answers for recipe in recipes.values()]
    nothing = np.full(len(found), np.nan)
    margins = np.stack([nothing if answers is None else asker.margins(found, answers) for answers in kept])
    names = pd.Index(list(recipes), name="model")
    members = pd.DataFrame({"model": names, "study": study})
    return table, pd.DataFrame(margins, names, [item.id for item in found]), members, ledger


if __name__ == "__main__":
    main(population)
