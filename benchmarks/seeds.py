"""A study by several seeds: how much what a search finds varies, and what leaders that join it bring.

    python benchmarks/seeds.py    # ten minutes a seed on two cores with bfloat16; goes on where it stopped

The study and its parameters are those of params.yaml in the working directory, whose stages up to estimate have been
run (`dvc repro estimate`), by their own seed. Every search is the stage evolve, by another seed, with and without
`evolve.join`, in a folder of its own in `.bench/seeds/`, which keeps its answers. Its winner answers the test items,
paired with the best of the standard merges.
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
from figures import RESULTS, Figure, command_line, publish
from jaxtyping import Float

from flows.asking import answer_all, open_asker
from flows.known import items_of, study_of
from flows.stage import DATA, STAGES, read_json, read_params, say
from merge3 import compare
from merge3.asker import Asker
from merge3.compare import EVOLVED
from merge3.recipe import Recipe, standard_merges

CODE, HERE = Path(__file__).parents[1], Path.cwd()
KEPT = HERE / ".bench" / "seeds"
TARGETS = {"transfer": 10.0}
BEFORE = STAGES[: STAGES.index("evolve")]


def searched(params: Mapping[str, Any], join: int, seed: int) -> Path:
    """What the stage evolve wrote, which asks nothing that it has asked before."""
    folder = KEPT / f"{params['study']}-join-{join}-seed-{seed}"
    data = folder / DATA
    (data / "evolve").mkdir(parents=True, exist_ok=True)
    (KEPT / "answers").mkdir(exist_ok=True)
    links = {data / stage: HERE / DATA / stage for stage in BEFORE} | {data / "evolve" / "answers": KEPT / "answers"}
    for link, target in links.items():
        if not link.exists():
            link.symlink_to(target)
    own = {**params, "seed": seed, "evolve": {**params["evolve"], "join": join}}
    (folder / "params.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    say(f"searching by seed {seed}, join {join}")
    python_path = os.pathsep.join([str(CODE), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "flows.evolve"], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": python_path}
    )
    return data / "evolve"


def measured(
    params: Mapping[str, Any], asker: Asker, join: int, seed: int
) -> tuple[dict[str, Any], Float[np.ndarray, " items"]]:
    """A search's winner on the test items: a row of the table, and by how much it is ahead on each item.

    Ahead of the best standard merge.
    """
    folder = searched(params, join, seed)
    winner, ledger = read_json(folder / "winner.json"), read_json(folder / "ledger.json")
    experts, groups = study_of(params["study"], params["studies"])
    tests, standard = items_of(groups, "test"), standard_merges(experts)
    recipes = {EVOLVED: Recipe.from_dict(winner["recipe"])} | standard
    table, _ = answer_all(f"join {join}, seed {seed}", asker, recipes, tests)
    scored = compare.scores(table, tests, EVOLVED, 0).set_index("model")
    rival = str(scored.loc[list(standard), "accuracy"].idxmax())
    row = {"join": join, "seed": seed, "accuracy": scored.loc[EVOLVED, "accuracy"], "estimate": winner["estimate"]}
    row |= {"over": rival} | {f"all {name}": scored.loc[rival, name] for name in ("lead", "lead_low", "lead_high")}
    for group, lead in compare.leads(table, tests, EVOLVED, rival, 0).items():
        row |= {f"{group} {name}": value for name, value in lead.items()}
    row["search_tokens"] = sum(ledger[f"{part}_tokens"] for part in ("start", "search", "relatives"))
    say(f"join {join}, seed {seed}: {row['accuracy']:.1%}, {row['all lead']:+.1%} over {rival}")
    return row, (table.loc[EVOLVED] - table.loc[rival]).to_numpy()


def figures(
    table: pd.DataFrame, ahead: Float[np.ndarray, "searches items"], labels: list[str], target: float | None
) -> list[Figure]:
    """Means over the seeds, with what they vary by, and how many leads exclude zero; `target` is of the mean lead.

    The interval of the mean lead is of these searches, over the items, whose groups are `labels`.
    """
    found, over = [], ", ".join(sorted(set(table["over"])))
    for join, rows in table.groupby("join", sort=False):
        name = f"join {join}" if join else "without"
        groups = [column.removesuffix(" lead") for column in rows if column.endswith(" lead") and "all" not in column]
        mean = ahead[rows.index].mean(axis=0)
        low, high = compare.interval(mean[~np.isnan(mean)], [labels[i] for i in np.flatnonzero(~np.isnan(mean))], 0)
        above = np.array([rows[f"{group} lead_low"] > 0 for group in groups])
        found += [
            Figure(f"{name}: winner, mean of {len(rows)} seeds", 100 * float(rows["accuracy"].mean()), "%"),
            Figure(f"{name}: winner, lowest", 100 * float(rows["accuracy"].min()), "%"),
            Figure(f"{name}: winner, highest", 100 * float(rows["accuracy"].max()), "%"),
            Figure(f"{name}: lead over the {over}, mean", 100 * float(rows["all lead"].mean()), "points", target),
            Figure(f"{name}: the same, lower end of the interval", 100 * low, "points"),
            Figure(f"{name}: the same, upper end of the interval", 100 * high, "points"),
            Figure(f"{name}: deviation of that over the seeds", 100 * float(rows["all lead"].std()), "points"),
            *(
                Figure(f"{name}: lead in {group}, mean", 100 * float(rows[f"{group} lead"].mean()), "points")
                for group in groups
            ),
            Figure(f"{name}: leads in a language that exclude zero", float(above.mean()), "share", target and 1.0),
            Figure(f"{name}: tokens of a search", float(rows["search_tokens"].mean()), "tokens"),
        ]
    return found


def main() -> None:
    """Search, measure, write the table."""
    params = read_params()
    parser = command_line(__doc__)
    parser.add_argument("--joins", type=int, nargs="+", default=(params["evolve"]["join"], 0))
    parser.add_argument("--seeds", type=int, default=4)
    chosen = parser.parse_args()
    asker = open_asker(params["runtime"], KEPT / "tests", study_of(params["study"], params["studies"])[0])
    found = [measured(params, asker, join, seed) for join in chosen.joins for seed in range(chosen.seeds)]
    rows, ahead = zip(*found, strict=True)
    table, variant = pd.DataFrame(rows), f"_{params['study']}"
    table.to_csv(RESULTS / f"seeds{variant}.csv", index=False, float_format="%.4f")
    labels = [item.group for item in items_of(study_of(params["study"], params["studies"])[1], "test")]
    publish("seeds", figures(table, np.stack(ahead), labels, TARGETS.get(params["study"])), variant)


if __name__ == "__main__":
    main()
