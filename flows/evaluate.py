"""Stage evaluate: the winner, the experts and the standard merges on held-out test items; estimates against truth."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pandas as pd
from prefect import flow
from pydantic import Field
from scipy.stats import spearmanr

from flows.asking import answer_all, open_asker
from flows.known import items_of, study_of
from flows.stage import DATA, Seed, main, present, read_json, say, show_table, write_json, write_text
from merge3 import compare, responses
from merge3.compare import EVOLVED
from merge3.recipe import AVERAGE, Recipe, standard_merges

RESPOND = DATA / "respond"
EVOLVE = DATA / "evolve"
OUT = DATA / "evaluate"


@flow
def evaluate(
    seed: Seed,
    study: str,
    studies: dict[str, Any],
    runtime: dict[str, Any],
    sample: Annotated[int, Field(ge=2)],
) -> None:
    """Write data/evaluate/metrics.json, scores.csv (a row a model), sample.csv and responses.parquet.

    `sample` candidates of the search, spread over the ranks of their estimates, are answered in full as well: the
    error and the rank correlation of the estimates are measured on them, the regret on them and the winner. Truth is
    the accuracy on test items, an estimate that on search items: the error holds their difference too. Where a standard
    merge won, the winner's row has its name.

    Raises:
        ValueError: the search was one of another study, or the winner, the uniform average or all experts cannot be
            scored.
    """
    experts, groups = study_of(study, studies)
    winner = read_json(EVOLVE / "winner.json")
    if winner["study"] != study:
        raise ValueError(f"data/evolve holds study {winner['study']!r}, asked for {study!r}: run evolve first")
    won = Recipe.from_dict(winner["recipe"])
    if unknown := [name for name in won.experts if name not in experts]:
        raise ValueError(f"data/evolve holds a merge of {unknown[0]!r}, the study has {experts}: run evolve first")
    tests = items_of(groups, "test")
    candidates = sampled(pd.read_csv(present(EVOLVE / "history.csv")), sample)
    made = read_json(EVOLVE / "recipes.json")
    standards = standard_merges(experts)
    name = winner["merge"] if winner["merge"] in standards else EVOLVED
    named = {name: won} | standards | {name: won}  # the winner first
    others = {f"candidate {name[:12]}": Recipe.from_dict(made[name]) for name in candidates["phenotype"]}
    recipes = named | others
    asker = open_asker(runtime, OUT / "answers", experts)
    answered, ledger = answer_all("evaluate", asker, recipes, tests)
    respond = read_json(RESPOND / "ledger.json")["test"]["runtime"]
    if respond != asker.identity:
        say(f"the experts answered the test items elsewhere ({respond}): differences of a few items mean nothing")
    asked_before = responses.columns(responses.read(present(RESPOND / "test.parquet")), list(answered.columns))
    table = pd.concat([answered.loc[list(named)], asked_before.loc[["base", *experts]]])
    table, left = compare.comparable(table, [name, AVERAGE])
    if not set(experts) & set(table.index):
        raise ValueError(f"no expert can be compared: {left[experts[0]]} of {experts[0]!r}")
    for model, said in left.items():
        say(f"{model} is left out of the comparison: {said}")
    OUT.mkdir(parents=True, exist_ok=True)
    responses.write(OUT / "responses.parquet", table)
    scored = compare.scores(table, tests, name, seed)
    kinds = dict.fromkeys(experts, "expert") | dict.fromkeys(standards, "standard merge")
    kinds |= {"base": "base", name: "winner"}
    scored.insert(1, "kind", [kinds[model] for model in scored["model"]])
    write_text(OUT / "scores.csv", scored.to_csv(index=False))
    found, _ = compare.comparable(answered.loc[list(others)], [])
    candidates = candidates[[other in found.index for other in others]].reset_index(drop=True)
    candidates["truth"] = found.mean(axis=1).to_numpy()
    write_text(OUT / "sample.csv", candidates.to_csv(index=False))
    figures = metrics(study, scored, candidates, winner) | {"one_runtime": respond == asker.identity}
    over = figures["over_best_standard"] = compare.over_best_standard(scored, table, tests, name, seed)
    write_json(OUT / "metrics.json", figures)
    write_json(OUT / "ledger.json", ledger | {"runtime": asker.identity})
    show_table("evaluate-scores", scored.to_dict("records"), "every model on the test items")
    for row in scored.to_dict("records"):
        say("{model:<24} {accuracy:6.1%}  [{low:.1%}, {high:.1%}]".format(**row))
    for group, lead in over["groups"].items() if over else ():
        low, high = lead["lead_low"], lead["lead_high"]
        say(f"{group}: over {over['name']} {lead['lead']:+.1%}  [{low:+.1%}, {high:+.1%}]")
    say(compare.verdict(scored, name))


def sampled(history: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` distinct candidates (or all) at evenly spaced ranks of the estimate, the best first.

    None that answered all items on the way: what is known of it is no estimate.
    """
    distinct = (
        history[history["items"] == history["items"].min()].drop_duplicates("phenotype").dropna(subset="estimate")
    )
    ranked = distinct.sort_values("estimate", ascending=False, kind="stable")
    places = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
    return ranked.iloc[places][["generation", "candidate", "phenotype", "estimate", "low", "high"]].reset_index(
        drop=True
    )


def metrics(study: str, scored: pd.DataFrame, candidates: pd.DataFrame, winner: dict[str, Any]) -> dict[str, Any]:
    """The figures of the study in short."""
    by_model = scored.set_index("model")
    name = str(by_model.index[by_model["kind"] == "winner"][0])
    expert = by_model[by_model["kind"] == "expert"]["accuracy"].idxmax()
    fields = ["lead", "lead_low", "lead_high", "mcnemar_p", "holm_p"]
    estimates, truths = candidates["estimate"].to_numpy(), candidates["truth"].to_numpy()
    varied = np.ptp(estimates) > 0 and np.ptp(truths) > 0
    return {
        "study": study,
        "winner": {
            **by_model.loc[name, ["accuracy", "low", "high"]].to_dict(),
            "estimate": winner["estimate"],
        },
        "best_expert": {"name": expert, "accuracy": by_model.loc[expert, "accuracy"]},
        "over_best_expert": by_model.loc[expert, fields].to_dict(),
        "no_better_than": compare.unbeaten(scored, name),
        "over_uniform_average": by_model.loc[AVERAGE, fields].to_dict(),
        "estimates": {
            "candidates": len(candidates),
            "mean_absolute_error": float(np.abs(estimates - truths).mean()),
            "spearman": float(spearmanr(estimates, truths).statistic) if varied else None,
            "regret": float(max(truths.max(), by_model.loc[name, "accuracy"]) - by_model.loc[name, "accuracy"]),
        },
    }


if __name__ == "__main__":
    main(evaluate)
