"""Stage evaluate: the winner, the experts and the standard merges on held-out test items; estimates against truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from prefect import flow
from scipy.stats import spearmanr

from flows.asking import answer_all, open_asker
from flows.known import items_of, study_of
from flows.stage import DATA, main, read_json, say, show_table, write_json
from merge3 import compare, responses
from merge3.items import Item
from merge3.recipe import AVERAGE, Recipe, standard_merges

RESPOND = DATA / "respond"
EVOLVE = DATA / "evolve"
OUT = DATA / "evaluate"

EVOLVED = "evolved merge"
LEVEL = 0.05  # of a claim that the winner beats a rival, for all rivals together


@flow
def evaluate(seed: int, study: str, studies: dict[str, Any], runtime: dict[str, Any], sample: int) -> None:
    """Write data/evaluate/metrics.json, scores.csv (a row a model), sample.csv and responses.parquet.

    `sample` candidates of the search, spread over the ranks of their estimates, are answered in full as well: the
    error and the rank correlation of the estimates are measured on them, the regret on them and the winner. Truth is
    the accuracy on test items, an estimate that on search items: the error holds their difference too.

    Raises:
        ValueError: `sample` is below 2, or the search was one of another study.
    """
    if sample < 2:
        raise ValueError(f"evaluate.sample must be 2 or more, got {sample}")
    experts, groups = study_of(study, studies)
    winner = read_json(EVOLVE / "winner.json")
    if winner["study"] != study:
        raise ValueError(f"data/evolve holds study {winner['study']!r}, asked for {study!r}: run evolve first")
    tests = items_of(groups, "test")
    candidates = sampled(pd.read_csv(EVOLVE / "history.csv"), sample)
    made = read_json(EVOLVE / "recipes.json")
    named = {EVOLVED: Recipe.from_dict(winner["recipe"])} | standard_merges(experts)
    recipes = named | {name: Recipe.from_dict(made[name]) for name in candidates["phenotype"]}
    asker = open_asker(runtime, OUT / "answers", experts)
    answered, ledger = answer_all("evaluate", asker, recipes, tests)
    if broken := answered.index[answered.isna().all(axis=1)].tolist():
        raise ValueError(f"{broken[0]!r} has no answer on the test items that could be scored")
    respond = read_json(RESPOND / "ledger.json")["test"]["runtime"]
    if respond != asker.identity:
        say(f"the experts answered the test items elsewhere ({respond}): differences of a few items mean nothing")
    asked_before = responses.columns(responses.read(RESPOND / "test.parquet"), list(answered.columns))
    table = pd.concat([answered.loc[list(named)], asked_before.loc[["base", *experts]]])
    whole = (table.notna().all(axis=0) & answered.notna().all(axis=0)).to_numpy()
    if not whole.all():
        say(f"{(~whole).sum()} of {len(tests)} test items are left out: not every model's answer could be scored")
        if not whole.any():
            raise ValueError("no test item was answered by every model: see the reasons above")
        table, answered = table.loc[:, whole], answered.loc[:, whole]
        tests = [item for item, kept in zip(tests, whole, strict=True) if kept]
    OUT.mkdir(parents=True, exist_ok=True)
    responses.write(OUT / "responses.parquet", table)
    scored = scores(table, tests, seed)
    kinds = dict.fromkeys(experts, "expert") | dict.fromkeys(standard_merges(experts), "standard merge")
    scored.insert(1, "kind", [kinds.get(name, name if name == "base" else "winner") for name in scored["model"]])
    scored.to_csv(OUT / "scores.csv", index=False)
    candidates["truth"] = answered.loc[list(candidates["phenotype"])].mean(axis=1).to_numpy()
    candidates.to_csv(OUT / "sample.csv", index=False)
    figures = metrics(study, scored, candidates, winner) | {"one_runtime": respond == asker.identity}
    write_json(OUT / "metrics.json", figures)
    write_json(OUT / "ledger.json", ledger)
    show_table("evaluate-scores", scored.to_dict("records"), "every model on the test items")
    for row in scored.to_dict("records"):
        say("{model:<24} {accuracy:6.1%}  [{low:.1%}, {high:.1%}]".format(**row))
    say(verdict(figures["no_better_than"]))


def sampled(history: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` distinct candidates (or all) at evenly spaced ranks of the estimate, the best first."""
    distinct = history.drop_duplicates("phenotype").dropna(subset="estimate")
    ranked = distinct.sort_values("estimate", ascending=False, kind="stable")
    places = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
    return ranked.iloc[places][["generation", "candidate", "phenotype", "estimate", "low", "high"]].reset_index(
        drop=True
    )


def scores(table: pd.DataFrame, tests: list[Item], seed: int) -> pd.DataFrame:
    """Accuracy of every model with its 95 % interval, by group and form, and the winner's lead over it."""
    groups = [item.group for item in tests]
    best = table.loc[EVOLVED].to_numpy()
    rows = []
    for model, answers in zip(table.index, table.to_numpy(), strict=True):
        low, high = compare.interval(answers, groups, seed)
        lead_low, lead_high = compare.interval(best - answers, groups, seed)
        row = {"model": model, "accuracy": answers.mean(), "low": low, "high": high}
        row |= {"lead": (best - answers).mean(), "lead_low": lead_low, "lead_high": lead_high}
        row["mcnemar_p"] = 1.0 if model == EVOLVED else compare.mcnemar(best, answers)
        for label in ("group", "form"):
            of = np.array([getattr(item, label) for item in tests])
            row |= {f"{label} {value}": answers[of == value].mean() for value in sorted(set(of))}
        rows.append(row)
    scored = pd.DataFrame(rows)
    rivals = (scored["model"] != EVOLVED).to_numpy()
    scored["holm_p"] = 1.0  # the winner is compared with every rival: one claim among many is soon true by chance
    scored.loc[rivals, "holm_p"] = compare.holm(scored.loc[rivals, "mcnemar_p"].to_numpy())
    return scored


def unbeaten(scored: pd.DataFrame) -> list[str]:
    """The rivals that the winner is not shown to beat, by a paired test corrected for their number (Holm, .05)."""
    beaten = (scored["lead"] > 0) & (scored["holm_p"] <= LEVEL)
    return [str(model) for model in scored.loc[~beaten & (scored["model"] != EVOLVED), "model"]]


def verdict(rivals: list[str]) -> str:
    """The result in a sentence."""
    if not rivals:
        return f"the {EVOLVED} beats every expert and standard merge (McNemar, corrected for their number)"
    return f"the {EVOLVED} is not shown to be better than {', '.join(rivals)} (McNemar, corrected for their number)"


def metrics(study: str, scored: pd.DataFrame, candidates: pd.DataFrame, winner: dict[str, Any]) -> dict[str, Any]:
    """The figures of the study in short."""
    by_model = scored.set_index("model")
    expert = by_model[by_model["kind"] == "expert"]["accuracy"].idxmax()
    fields = ["lead", "lead_low", "lead_high", "mcnemar_p", "holm_p"]
    estimates, truths = candidates["estimate"].to_numpy(), candidates["truth"].to_numpy()
    varied = np.ptp(estimates) > 0 and np.ptp(truths) > 0
    return {
        "study": study,
        "winner": {
            **by_model.loc[EVOLVED, ["accuracy", "low", "high"]].to_dict(),
            "estimate": winner["estimate"],
        },
        "best_expert": {"name": expert, "accuracy": by_model.loc[expert, "accuracy"]},
        "over_best_expert": by_model.loc[expert, fields].to_dict(),
        "no_better_than": unbeaten(scored),
        "over_uniform_average": by_model.loc[AVERAGE, fields].to_dict(),
        "estimates": {
            "candidates": len(candidates),
            "mean_absolute_error": float(np.abs(estimates - truths).mean()),
            "spearman": float(spearmanr(estimates, truths).statistic) if varied else None,
            "regret": float(max(truths.max(), by_model.loc[EVOLVED, "accuracy"]) - by_model.loc[EVOLVED, "accuracy"]),
        },
    }


if __name__ == "__main__":
    main(evaluate)
