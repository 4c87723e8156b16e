"""The transfer study by several seeds: how much what a search finds varies, and what leaders that join it bring.

    python benchmarks/transfer.py    # ten minutes a seed on two cores with bfloat16; goes on where it stopped

Needs the demonstration's stages up to estimate (`dvc repro estimate`), whose seed stays. Every search is the stage
evolve, by another seed, with and without `evolve.join`, in a folder of its own in `.bench/transfer/`, which keeps its
answers. Its winner answers the test items, paired with the uniform average.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from figures import RESULTS, Figure, publish

from flows.asking import answer_all, open_asker
from flows.evaluate import EVOLVED
from flows.known import items_of, study_of
from flows.stage import DATA, STAGES, read_json, read_params, say
from merge3 import compare
from merge3.asker import Asker
from merge3.recipe import AVERAGE, Recipe, standard_merges

ROOT = Path.cwd()
KEPT = ROOT / ".bench" / "transfer"
SEEDS = 4
BEFORE = STAGES[: STAGES.index("evolve")]


def searched(params: Mapping[str, Any], join: int, seed: int) -> Path:
    """What the stage evolve wrote, which asks nothing that it has asked before."""
    folder = KEPT / f"join-{join}-seed-{seed}"
    data = folder / DATA
    (data / "evolve").mkdir(parents=True, exist_ok=True)
    (KEPT / "answers").mkdir(exist_ok=True)
    links = {data / stage: ROOT / DATA / stage for stage in BEFORE} | {data / "evolve" / "answers": KEPT / "answers"}
    for link, target in links.items():
        if not link.exists():
            link.symlink_to(target)
    own = {**params, "study": "transfer", "seed": seed, "evolve": {**params["evolve"], "join": join}}
    (folder / "params.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    say(f"searching by seed {seed}, join {join}")
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "flows.evolve"], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": python_path}
    )
    return data / "evolve"


def measured(params: Mapping[str, Any], asker: Asker, join: int, seed: int) -> dict[str, Any]:
    """A row of the table: a search's winner on the test items, its lead over the uniform average, and its tokens."""
    folder = searched(params, join, seed)
    winner, ledger = read_json(folder / "winner.json"), read_json(folder / "ledger.json")
    experts, groups = study_of("transfer", params["studies"])
    tests = items_of(groups, "test")
    recipes = {EVOLVED: Recipe.from_dict(winner["recipe"]), AVERAGE: standard_merges(experts)[AVERAGE]}
    table, _ = answer_all(f"join {join}, seed {seed}", asker, recipes, tests)
    scored = compare.scores(table, tests, EVOLVED, 0).set_index("model")
    row = {"join": join, "seed": seed, "accuracy": scored.loc[EVOLVED, "accuracy"], "estimate": winner["estimate"]}
    row |= {f"all {name}": scored.loc[AVERAGE, name] for name in ("lead", "lead_low", "lead_high")}
    for group, lead in compare.leads(table, tests, EVOLVED, AVERAGE, 0).items():
        row |= {f"{group} {name}": value for name, value in lead.items()}
    row["search_tokens"] = sum(ledger[f"{part}_tokens"] for part in ("start", "search", "relatives"))
    say(f"join {join}, seed {seed}: {row['accuracy']:.1%}, {row['all lead']:+.1%} over the {AVERAGE}")
    return row


def figures(table: pd.DataFrame) -> list[Figure]:
    """Means over the seeds, with what they vary by, and how many leads exclude zero."""
    found = []
    for join, rows in table.groupby("join", sort=False):
        name = f"join {join}" if join else "without"
        groups = [column.removesuffix(" lead") for column in rows if column.endswith(" lead") and "all" not in column]
        above = np.array([rows[f"{group} lead_low"] > 0 for group in groups])
        found += [
            Figure(f"{name}: winner, mean of {len(rows)} seeds", 100 * float(rows["accuracy"].mean()), "%"),
            Figure(f"{name}: winner, lowest", 100 * float(rows["accuracy"].min()), "%"),
            Figure(f"{name}: winner, highest", 100 * float(rows["accuracy"].max()), "%"),
            Figure(f"{name}: lead over the {AVERAGE}, mean", 100 * float(rows["all lead"].mean()), "points", 10.0),
            Figure(f"{name}: deviation of that over the seeds", 100 * float(rows["all lead"].std()), "points"),
            *(
                Figure(f"{name}: lead in {group}, mean", 100 * float(rows[f"{group} lead"].mean()), "points")
                for group in groups
            ),
            Figure(f"{name}: leads in a language that exclude zero", float(above.mean()), "share", 1.0),
            Figure(f"{name}: tokens of a search", float(rows["search_tokens"].mean()), "tokens"),
        ]
    return found


def main() -> None:
    """Search, measure, write the table."""
    params = read_params()
    joins = (params["evolve"]["join"], 0)
    asker = open_asker(params["runtime"], KEPT / "tests", study_of("transfer", params["studies"])[0])
    rows = [measured(params, asker, join, seed) for join in joins for seed in range(SEEDS)]
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS / "transfer.csv", index=False, float_format="%.4f")
    publish("transfer", figures(table))


if __name__ == "__main__":
    main()
