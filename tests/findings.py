"""A study as its stages would write it, of any size: the winner leads the best expert by 11.0 points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from flows.report import spent
from merge3.front import hypervolume, knee, nondominated
from merge3.irt import ItemParameters
from merge3.items import Item
from merge3.report_tables import Results


def ledger(tokens: int) -> dict[str, Any]:
    """What a stage that asks writes."""
    return {"tokens": tokens, "this_run": cost(tokens)}


def cost(tokens: int) -> dict[str, Any]:
    """What a run spent."""
    return {"tokens": tokens, "flops": tokens * 2 * 10**8, "merging_seconds": 41.5, "answering_seconds": 612.0}


EXPERTS = ["english_arithmetic", "french_language", "spanish_language", "italian_language"]
GROUPS = ["fr", "es", "it"]
GENES = [f"weight {expert} {part} 0" for part in ("attention", "mlp") for expert in EXPERTS]
LEDGERS: dict[str, dict[str, Any]] = {  # as the stages write them
    "population": ledger(2_600_000),
    "respond": {"search": ledger(430_000), "test": ledger(310_000)},
    "evolve": {
        "search_tokens": 311_040,
        "start_tokens": 13_824,
        "relatives_tokens": 110_592,
        "finalists_tokens": 48_600,
        "this_run": cost(359_640),
    },
    "evaluate": ledger(700_000),
}
NAMES = ["evolved merge", "uniform average", "task arithmetic", "TIES", "base", *EXPERTS]


def results(search: int = 320, tests: int = 240, generations: int = 16, population: int = 12) -> Results:
    """`search` and `tests` are items of each of three groups."""
    rng = np.random.default_rng(3)
    history = history_of(GENES, generations, population)
    made = recipes_of(history, GENES)
    sample = history.iloc[:: len(history) // 8][["generation", "candidate", "phenotype", "estimate", "low", "high"]]
    sample = sample.reset_index(drop=True)
    sample["truth"] = sample["estimate"] + rng.normal(0, 0.03, len(sample))
    scores = scores_of()
    finalists = history.sort_values("estimate", ascending=False)[
        ["phenotype", "items", "estimate", "low", "high"]
    ].head(5)
    finalists.insert(1, "merge", ["evolved", "evolved", "plain TIES", "evolved", "task arithmetic"])
    asked, tested = items_of("search", search), items_of("test", tests)
    count = len(asked)
    chosen = np.sort(rng.choice(count, 20, replace=False))
    answers = pd.DataFrame(
        (rng.random((len(NAMES), len(tested))) < scores["accuracy"].to_numpy()[:, None]).astype(float),
        index=pd.Index(NAMES, name="model"),
        columns=[item.id for item in tested],
    )
    return Results(
        study="transfer",
        experts=EXPERTS,
        search=asked,
        tests=tested,
        parameters=ItemParameters(rng.lognormal(0, 0.4, (count, 1)), rng.normal(0, 1.2, count)),
        abilities=pd.DataFrame({"expert": EXPERTS, "ability_1": [0.5, -0.3, -0.5, -0.7], "accuracy": 0.4}),
        parents=(np.random.default_rng(4).random((len(EXPERTS), count)) < [[0.5], [0.34], [0.3], [0.32]]).astype(float),
        subset=pd.DataFrame(
            {"id": [asked[i].id for i in chosen], "group": [asked[i].group for i in chosen], "weight": 0.05}
        ),
        estimates={"candidates": 8, "mean_absolute_error": 0.0231, "spearman": 0.8571, "regret": 0.004},
        by_group={
            "name": "uniform average",
            "groups": {
                group: {"lead": 0.01 * place + 0.0435, "lead_low": -0.0123, "lead_high": 0.1234}
                for place, group in enumerate(GROUPS)
            },
        },
        one_runtime=True,
        scores=scores,
        responses=answers,
        raw={model: raw_of(tested, answers.loc[model].to_numpy(), rng) for model in NAMES},
        scoring="sum",
        sample=sample,
        history=history,
        recipes=made,
        finalists=finalists,
        front=None,
        winner={"study": "transfer", **finalists.iloc[0].to_dict(), "recipe": made[finalists["phenotype"].iloc[0]]},
        estimator="parent_aware",
        estimators=pd.DataFrame(
            {
                "estimator": ["mean", "gp_irt", "parent_aware"],
                "models": 8,
                "mean_absolute_error": [0.071, 0.043, 0.026],
                "bias": [0.012, -0.034, 0.002],
                "deviation": [0.08, 0.05, 0.03],
                "spearman": [0.55, 0.7, np.nan],
                "coverage": [np.nan, 0.875, 1.0],
            }
        ),
        costs=spent(LEDGERS),
        full=14_929_920,
        identity={
            "the winner (phenotype)": finalists["phenotype"].iloc[0],
            "base (weights)": "b" * 64,
            "merges answered the test on": "cpu",
        },
        commands=["dvc repro", "python -m flows.evolve"],
    )


def with_front(results: Results, groups: Sequence[str] = GROUPS) -> Results:
    """The same study, searched for a front of `groups`: nine leaders, of which the knee has won."""
    rng = np.random.default_rng(5)
    leaders = results.history.sort_values("estimate", ascending=False).head(9)
    directions = np.abs(rng.normal(size=(9, len(groups)))) + 0.15
    scores = 0.4 + 0.25 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    scores[-3:] -= [[0.02], [0.05], [0.03]]
    bend, names = knee(scores), leaders["phenotype"].tolist()
    table = pd.DataFrame({"phenotype": names, "front": nondominated(scores), "knee": np.arange(9) == bend})
    for place, group in enumerate(groups):
        table[f"score {group}"] = scores[:, place]
        middle = scores[:, place] + rng.normal(0, 0.01, 9)
        table[f"low {group}"], table[f"high {group}"] = middle - 0.04, middle + 0.04
    finalists = leaders[["phenotype", "items", "estimate", "low", "high"]].assign(merge="evolved")
    winner = {"study": results.study, **finalists.iloc[bend].to_dict(), "hypervolume": hypervolume(scores)}
    winner["recipe"] = results.recipes[names[bend]]
    return replace(results, finalists=finalists, front=table, winner=winner)


def items_of(split: str, size: int) -> list[Item]:
    """Items of every group, each with four options of which the second is right."""
    return [
        Item(f"{g}-{split}-{i}", f"Question: {g} {i}?\nAnswer: ", ("one", "two", "three", "four"), 1, g, "ab"[i % 2])
        for g in GROUPS
        for i in range(size)
    ]


def raw_of(items: Sequence[Item], right: np.ndarray, rng: np.random.Generator) -> dict[str, tuple[float, ...]]:
    """Log-likelihoods of options that are graded as `right` says."""
    values = rng.normal(-20, 3, (len(items), 4))
    values[:, 1] = values[:, [0, 2, 3]].max(axis=1) + np.where(right > 0, 1.0, -1.0) * rng.lognormal(0, 1, len(items))
    return {item.id: tuple(row) for item, row in zip(items, values.tolist(), strict=True)}


def scores_of() -> pd.DataFrame:
    """A row a model, as evaluate writes it."""
    rng = np.random.default_rng(1)
    kinds = ["winner", *["standard merge"] * 3, "base", *["expert"] * 4]
    accuracy = np.array([0.613, 0.532, 0.547, 0.489, 0.121, 0.503, 0.341, 0.298, 0.317])
    table = pd.DataFrame({"model": NAMES, "kind": kinds, "accuracy": accuracy})
    table["low"], table["high"] = accuracy - 0.036, accuracy + 0.036
    table["lead"] = accuracy[0] - accuracy
    table["lead_low"], table["lead_high"] = table["lead"] - 0.031, table["lead"] + 0.031
    table["mcnemar_p"] = np.where(table["lead"] > 0.1, 1e-9, 0.0123)
    table["holm_p"] = np.where(table["lead"] > 0.1, 1e-8, 0.0246)
    table.loc[0, ["lead", "lead_low", "lead_high", "mcnemar_p", "holm_p"]] = [0, 0, 0, 1, 1]
    for group in [*(f"group {g}" for g in GROUPS), "form symbols", "form words"]:
        table[group] = np.clip(accuracy + rng.normal(0, 0.05, len(table)), 0, 1)
    return table


def history_of(genes: Sequence[str], generations: int = 16, population: int = 12) -> pd.DataFrame:
    """A row a candidate, as evolve writes it."""
    rng = np.random.default_rng(2)
    rows = []
    for generation in range(generations):
        for candidate in range(population):
            estimate = 0.3 + 0.28 * (1 - np.exp(-generation / 4)) + rng.normal(0, 0.05)
            row: dict[str, Any] = {"generation": generation, "candidate": candidate, "items": 20}
            row["phenotype"] = f"{generation:03d}{candidate:03d}".ljust(64, "e")
            row |= {"estimate": estimate, "low": estimate - 0.06, "high": estimate + 0.06, "margin": 0.5}
            rows.append(row | {"failed": 0, "tokens": 1620} | dict(zip(genes, rng.beta(2, 2, len(genes)), strict=True)))
    return pd.DataFrame(rows)


def recipes_of(history: pd.DataFrame, genes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The recipe of each candidate: a gene of 1 is a weight of 1.2."""
    found = {}
    for row in history.to_dict("records"):
        weights: dict[str, dict[str, list[float]]] = {}
        for gene in genes:
            _, expert, part, _ = gene.split(" ")
            weights.setdefault(expert, {})[part] = [round(1.2 * row[gene], 2)]
        recipe = {"method": "task_arithmetic", "experts": list(weights), "weights": weights, "densities": {}}
        found[row["phenotype"]] = recipe | {"options": {}, "mask_seed": 0}
    return found
