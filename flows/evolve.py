"""Stage evolve: search the merges of the study's experts for the best estimated score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow

from flows.asking import MANIFEST, open_asker
from flows.known import expert_answers, parameters, relatives, study_items, study_of, subset
from flows.stage import DATA, bounds, main, progress, read_json, say, write_json
from merge3 import mergefile
from merge3.estimate import ESTIMATORS, Calibration, Known, calibrate
from merge3.evolve import Cma, Genes, Search
from merge3.extract import METHODS
from merge3.fitness import Evaluation, Fitness
from merge3.genome import Genome, live_groups
from merge3.items import Item
from merge3.ledger import Cost
from merge3.models import read_manifest
from merge3.recipe import Merge, Recipe

ESTIMATE = DATA / "estimate"
OUT = DATA / "evolve"


@flow
def evolve(
    seed: int,
    study: str,
    studies: dict[str, Any],
    runtime: dict[str, Any],
    method: str | list[str],
    knots: int,
    weights: list[float],
    densities: list[float],
    population: int,
    generations: int,
    sigma: float,
    finalists: int,
    finalist_items: int,
) -> None:
    """Write history.csv (a row a candidate), recipes.json, finalists.csv, winner.json and .yaml, ledger.json, answers.

    The search is a function of its parameters and of the answers: started again after any interruption it finds its
    questions answered and goes the same way. The winner is the leader that does best on items nobody searched.

    Raises:
        ValueError: a parameter is out of its range.
    """
    for name, value in (
        ("generations", generations),
        ("finalists", finalists),
        ("finalist_items", finalist_items),
    ):
        if value < 1:
            raise ValueError(f"evolve.{name} must be 1 or more, got {value}")
    experts, groups = study_of(study, studies)
    found = study_items(groups)
    known, estimator = _known(experts, found)
    asker = open_asker(runtime, OUT / "answers", experts)
    live = live_groups(asker.merger.changed)
    ranges = bounds("evolve.weights", weights), bounds("evolve.densities", densities)
    methods = (method,) if isinstance(method, str) else tuple(method)
    genome = Genome(methods, tuple(experts), live, knots, *ranges, seed)
    fitness = Fitness(asker, found, ESTIMATORS[estimator], known)
    one, everything = asker.cost(fitness.questions), asker.cost(found)
    count = generations * population
    say(
        f"{len(genome.names)} genes, {generations} generations of {population}: at most "
        f"{count * one.tokens:,} tokens, {count * one.flops:.1e} operations (all items: {count * everything.tokens:,})"
    )
    start = np.clip(genome.encode(dict.fromkeys(experts, 1 / len(experts)), 1.0), 0.05, 0.95)
    search = Cma(Genes(start.size), start, sigma, population, seed)
    log = Log(fitness, one.tokens)
    with progress("evolve: candidates", population * generations) as advance:
        for _ in range(generations):
            generation(search, genome, log, advance)
            log.write()
    leaders = dict(log.leaders(finalists))
    mean = genome.decode(search.mean)
    leaders.setdefault(log.phenotype(mean), mean)
    verifier = Fitness(asker, found, ESTIMATORS[estimator], fresh(study, known, estimator, found, finalist_items, seed))
    winner = log.verify(leaders, verifier)
    _write_csv(log.finalists, "finalists.csv")
    best = leaders[winner["phenotype"]]
    write_json(OUT / "winner.json", {"study": study, **winner, "recipe": best.to_dict()})
    (OUT / "winner.yaml").write_text(mergefile.to_yaml(with_sources(best)), encoding="utf-8")
    ledger = {
        "search_tokens": sum(row["tokens"] for row in log.rows),
        "search_flops": len(log.recipes) * one.flops,
        "finalists_tokens": len(leaders) * asker.cost(verifier.questions).tokens,
        "all_items_tokens": len(log.recipes) * everything.tokens,
        "all_items_flops": len(log.recipes) * everything.flops,
        "candidates": len(log.rows),
        "distinct": len(log.recipes),
        "this_run": log.cost.to_dict(),
    }
    write_json(OUT / "ledger.json", ledger)
    say(f"{len(log.recipes)} distinct candidates of {len(log.rows)}; this run asked {log.cost.tokens:,} tokens")


def with_sources(recipe: Recipe) -> Merge:
    """The recipe with the models of the manifest: what `merge3 merge` writes as a model."""
    base, found = read_manifest(MANIFEST)
    return Merge(recipe, base.source, {e.name: e.source for e in found if e.name in recipe.experts})


class Log:
    """The history: a row a candidate, and what this run spent."""

    def __init__(self, fitness: Fitness, tokens: int) -> None:
        """`tokens` is what a candidate costs that was not asked before in this search."""
        self.fitness = fitness
        self.tokens = tokens
        self.rows: list[dict[str, Any]] = []
        self.finalists: list[dict[str, Any]] = []
        self.recipes: dict[str, Recipe] = {}
        self.cost = Cost()

    def phenotype(self, recipe: Recipe) -> str:
        """What names the model that a recipe makes."""
        return recipe.phenotype(self.fitness.asker.merger.fingerprints)

    def evaluate(self, recipe: Recipe, place: dict[str, Any], genes: dict[str, float]) -> float:
        """The fitness of a candidate, after a row of the history was written for it."""
        evaluation = self.fitness(recipe)
        name = self.phenotype(recipe)
        tokens = 0 if name in self.recipes else self.tokens
        scores = {**_scores(evaluation), "margin": evaluation.margin}
        self.rows.append({**place, "phenotype": name, **scores, "tokens": tokens, **genes})
        self.recipes.setdefault(name, recipe)
        self.cost += evaluation.cost
        return evaluation.fitness

    def write(self) -> None:
        """Write what a person may look at while the search goes on."""
        _write_csv(self.rows, "history.csv")
        write_json(OUT / "recipes.json", {name: recipe.to_dict() for name, recipe in self.recipes.items()})

    def leaders(self, count: int) -> list[tuple[str, Recipe]]:
        """The `count` distinct candidates of the highest estimates, of equals those of the highest margins."""
        table = pd.DataFrame(self.rows).drop_duplicates("phenotype").dropna(subset="estimate")
        names = table.sort_values(["estimate", "margin"], ascending=False, kind="stable")["phenotype"].head(count)
        return [(name, self.recipes[name]) for name in names]

    def verify(self, leaders: dict[str, Recipe], verifier: Fitness) -> dict[str, Any]:
        """Ask the leaders items that the search did not see; the row of the best, the earlier of equals.

        Raises:
            ValueError: every leader is broken.
        """
        for name, recipe in leaders.items():
            evaluation = verifier(recipe)
            self.cost += evaluation.cost
            self.finalists.append({"phenotype": name, **_scores(evaluation)})
        whole = [row for row in self.finalists if not np.isnan(row["estimate"])]
        if not whole:
            raise ValueError("no candidate has finite likelihoods: narrow evolve.weights")
        return max(whole, key=lambda row: row["estimate"])


def generation(search: Search, genome: Genome, log: Log, advance: Callable[[int], None]) -> None:
    """Ask for a generation, evaluate it, tell it."""
    number, values = search.generation, []
    asked = [(genotype, genome.decode(genotype)) for genotype in search.ask()]
    log.fitness.expect([recipe for _, recipe in asked])
    for candidate, (genotype, recipe) in enumerate(asked):
        place = {"generation": number, "candidate": candidate}
        genes = dict(zip(genome.names, genotype.tolist(), strict=True))
        values.append(log.evaluate(recipe, place, genes))
        advance(1)
    search.tell(values)


def fresh(study: str, known: Known, estimator: str, found: list[Item], count: int, seed: int) -> Known:
    """What is known, with a subset of up to `count` other items, drawn uniformly within groups, and calibrated for it.

    Where the search asks every item there are no others: the subset stays.
    """
    rest = np.setdiff1d(np.arange(len(found)), known.subset)
    if len(rest) == 0:
        return known
    groups = [found[i].group for i in rest]
    picked, weights = METHODS["uniform"](
        known.items.take(rest), known.parent_abilities, min(count, len(rest)), groups, seed
    )
    other = replace(known, subset=rest[picked], weights=weights)
    return calibrate(estimator, relatives(study, found)[1], other)


def _known(experts: list[str], found: list[Item]) -> tuple[Known, str]:
    """What the stages before have found out, and the estimator they calibrated."""
    values = read_json(ESTIMATE / "calibration.json")
    calibration = Calibration(**(values | {"centre_shift": tuple(values["centre_shift"])}))
    chosen, weights = subset(found, values["estimator"])
    known = Known(parameters(found), chosen, weights, expert_answers(experts, found), calibration)
    return known, values["estimator"]


def _scores(evaluation: Evaluation) -> dict[str, float]:
    estimate = evaluation.estimate
    names = ("score", "low", "high")
    score, low, high = (getattr(estimate, name) if estimate else np.nan for name in names)
    return {"estimate": score, "low": low, "high": high}


def _write_csv(rows: list[dict[str, Any]], name: str) -> None:
    """Write a table through a temporary name."""
    OUT.mkdir(parents=True, exist_ok=True)
    temporary = OUT / f"{name}.tmp"
    pd.DataFrame(rows).to_csv(temporary, index=False)
    temporary.replace(OUT / name)


if __name__ == "__main__":
    main(evolve)
