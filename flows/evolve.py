"""Stage evolve: search the merges of the study's experts for the best estimated score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow

from flows.asking import MANIFEST, open_asker
from flows.known import expert_answers, parameters, relatives, study_items, study_of, subset
from flows.stage import DATA, alone, bounds, do, main, progress, read_json, say, show_table, write_json, write_text
from merge3 import mergefile, surface
from merge3.estimate import ESTIMATORS, Calibration, Known, calibrate
from merge3.evolve import SEARCHES, Genes, Search
from merge3.extract import METHODS
from merge3.fitness import Evaluation, Fitness
from merge3.genome import Genome, live_groups
from merge3.grouped import objective as grouped_objective
from merge3.items import Item
from merge3.ledger import Cost
from merge3.models import read_manifest
from merge3.recipe import Merge, Recipe

ESTIMATE = DATA / "estimate"
OUT = DATA / "evolve"

Leader = tuple[Recipe, float, float]  # with the mean and deviation of its posterior

SINGLE = {name for name in SEARCHES if name not in ("pareto", "nsga2")}  # fronts are for who uses the library
UNSEEN = 0.02  # deviation of a leader's score that the few items of the search cannot say, whatever the surface says
HALVES = (4, 2, 1)  # finalists are asked a quarter of the fresh items, the better half of them a half, ...


@flow
@alone("evolve")
def evolve(
    seed: int,
    study: str,
    studies: dict[str, Any],
    runtime: dict[str, Any],
    method: str | list[str],
    knots: int,
    weights: list[float],
    densities: list[float],
    strategy: str,
    objective: str,
    population: int,
    generations: int,
    tokens: int | None,
    hours: float | None,
    sigma: float,
    finalists: int,
    finalist_items: int,
) -> None:
    """Write history.csv (a row a candidate), recipes.json, finalists.csv, winner.json and .yaml, ledger.json, answers.

    The search is a function of its parameters and of the answers: started again after any interruption it finds its
    questions answered and goes the same way. It ends after `generations`, before the generation that may exceed
    `tokens`, after the one in which this run has taken `hours`, or where it has converged; best.yaml is the best so
    far at any time. The winner is the leader that does best on what the search and fresh items say together.

    Raises:
        ValueError: a parameter is out of its range.
    """
    for name, value, choice in (
        ("strategy", strategy, sorted(SINGLE)),
        ("objective", objective, ["mean", "worst"]),
    ):
        if value not in choice:
            raise ValueError(f"evolve.{name} must be one of {choice}, got {value!r}")
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

    def fitness_of(part: Known) -> Fitness:
        chosen, labels = ESTIMATORS[estimator], [item.group for item in found]
        wanted = None if objective == "mean" else grouped_objective(objective, chosen, part, labels)
        return Fitness(asker, found, chosen, part, wanted)

    fitness = fitness_of(known)
    one, everything = asker.cost(fitness.questions), asker.cost(found)
    count = generations * population
    say(
        f"{len(genome.names)} genes, {generations} generations of {population}: at most "
        f"{count * one.tokens:,} tokens, {count * one.flops:.1e} operations (all items: {count * everything.tokens:,})"
    )
    start = np.clip(genome.encode(dict.fromkeys(experts, 1 / len(experts)), 1.0), 0.05, 0.95)
    genes = Genes(start.size, categories={0: len(methods)} if len(methods) > 1 else {})
    search = SEARCHES[strategy](genes, start, sigma, population, seed)
    log = Log(fitness, one.tokens, genome)
    begin = monotonic()
    with progress("evolve: candidates", population * generations) as advance:
        for _ in range(generations):
            left = None if tokens is None else tokens - log.tokens_spent
            if not do(f"generation {search.generation}", partial(generation, search, log, advance, left)):
                break
            log.write()
            if hours is not None and monotonic() - begin > 3600 * hours:
                say(f"stopped after {hours} h; started again, the search goes on where it is")
                break
    verified = fresh(study, known, estimator, found, finalist_items, seed)
    rounds = [fitness_of(part) for part in halves(verified)]
    winner = log.verify(log.leaders(finalists, search), rounds)
    _write_csv(log.finalists, "finalists.csv")
    best = log.recipes[winner["phenotype"]]
    write_json(OUT / "winner.json", {"study": study, **winner, "recipe": best.to_dict()})
    write_text(OUT / "winner.yaml", mergefile.to_yaml(with_sources(best)))
    ledger = {
        "search_tokens": log.tokens_spent,
        "search_flops": log.distinct * one.flops,
        "finalists_tokens": log.finalists_tokens,
        "all_items_tokens": log.distinct * everything.tokens,
        "all_items_flops": log.distinct * everything.flops,
        "candidates": len(log.rows),
        "distinct": log.distinct,
        "this_run": log.cost.to_dict(),
    }
    write_json(OUT / "ledger.json", ledger)
    show_table("evolve-history", log.rows, "every candidate of the search")
    show_table("evolve-finalists", log.finalists, "its leaders on fresh items")
    say(f"{log.distinct} distinct candidates of {len(log.rows)}; this run asked {log.cost.tokens:,} tokens")


def with_sources(recipe: Recipe) -> Merge:
    """The recipe with the models of the manifest: what `merge3 merge` writes as a model."""
    base, found = read_manifest(MANIFEST)
    return Merge(recipe, base.source, {e.name: e.source for e in found if e.name in recipe.experts})


class Log:
    """The history: a row a candidate, and what this run spent."""

    def __init__(self, fitness: Fitness, tokens: int, genome: Genome) -> None:
        """`tokens` is what a candidate costs that was not asked before in this search."""
        self.fitness = fitness
        self.tokens = tokens
        self.genome = genome
        self.rows: list[dict[str, Any]] = []
        self.told: list[tuple[np.ndarray, float, float]] = []  # genotype, score, its error: of distinct whole models
        self.finalists: list[dict[str, Any]] = []
        self.finalists_tokens = 0
        self.recipes: dict[str, Recipe] = {}
        self.distinct = 0  # of the search: finalists may be others
        self.tokens_spent = 0
        self.cost = Cost()

    def phenotype(self, recipe: Recipe) -> str:
        """What names the model that a recipe makes."""
        return recipe.phenotype(self.fitness.asker.merger.fingerprints)

    def evaluate(self, genotype: np.ndarray, recipe: Recipe, place: dict[str, int]) -> Evaluation:
        """Ask a candidate, and write a row of the history for it."""
        evaluation = self.fitness(recipe)
        name = self.phenotype(recipe)
        new = name not in self.recipes
        tokens = self.tokens if new else 0
        genes = dict(zip(self.genome.names, genotype.tolist(), strict=True))
        self.rows.append(
            {**place, "phenotype": name, **_scores(evaluation), "margin": evaluation.margin, "tokens": tokens, **genes}
        )
        self.recipes.setdefault(name, recipe)
        self.distinct = len(self.recipes)
        self.tokens_spent += tokens
        self.cost += evaluation.cost
        if evaluation.estimate and new:
            self.told.append((genotype, evaluation.fitness, evaluation.estimate.standard_error))
        return evaluation

    def surface(self) -> surface.Surface:
        """The surface through all that was told.

        Raises:
            ValueError: every candidate is broken.
        """
        if not self.told:
            raise ValueError("no candidate has finite likelihoods: narrow evolve.weights")
        genes, scores, errors = (np.array(column) for column in zip(*self.told, strict=True))
        return surface.fit(genes, scores, errors)

    def write(self) -> None:
        """Write what a person may look at while the search goes on, the best so far included."""
        _write_csv(self.rows, "history.csv")
        write_json(OUT / "recipes.json", {name: recipe.to_dict() for name, recipe in self.recipes.items()})
        if self.told:
            best = self.genome.decode(max(self.told, key=lambda row: row[1])[0])
            write_text(OUT / "best.yaml", mergefile.to_yaml(with_sources(best)))

    def leaders(self, count: int, search: Search) -> dict[str, Leader]:
        """Up to `count` candidates with the mean and deviation of their posterior, the highest first.

        First where the surface is highest and where the search would go on, asked before or not; then the distinct
        candidates of the highest posterior means.
        """
        pooled = self.surface()
        asked = pooled.genes[np.argsort(-pooled.predict(pooled.genes)[0], kind="stable")]
        genotypes = np.vstack([surface.best(pooled, search.seed), search.mean, asked])
        found: dict[str, Leader] = {}
        for genotype, mean, deviation in zip(genotypes, *pooled.predict(genotypes), strict=True):
            recipe = self.genome.decode(genotype)
            if len(found) < count:
                found.setdefault(self.phenotype(recipe), (recipe, float(mean), float(deviation)))
        return found

    def verify(self, leaders: dict[str, Leader], rounds: list[Fitness]) -> dict[str, Any]:
        """Ask the leaders fresh items, half of them twice as many, and so on; the row of the best.

        The best is so by both: the surface, which knows all candidates by the items of the search, and the fresh
        items. Each counts by the other's mean variance; what either says of all leaders alike counts for nothing.

        Raises:
            ValueError: every leader is broken.
        """
        alive, made, items = list(leaders), dict[str, Evaluation](), dict[str, int]()
        for fitness in rounds:
            fitness.expect([leaders[name][0] for name in alive])
            for name in alive:
                evaluation = do(f"finalist {name[:8]}", partial(fitness, leaders[name][0]), was_kept)
                self.cost += evaluation.cost
                made[name], items[name] = evaluation, len(fitness.questions)
            self.finalists_tokens += len(alive) * fitness.asker.cost(fitness.questions).tokens
            whole = [name for name in alive if made[name].estimate]
            if not whole:
                raise ValueError("no candidate has finite likelihoods: narrow evolve.weights")
            means, deviations = np.array([leaders[name][1:] for name in whole]).T
            found = np.array([made[name].value for name in whole])
            errors = np.array([e.standard_error for name in whole if (e := made[name].estimate)])
            searched, asked = (np.maximum(deviations, UNSEEN) ** 2).mean(), (errors**2).mean()
            share = searched / (searched + asked)
            together = (1 - share) * (means - means.mean()) + share * (found - found.mean())
            alive = [whole[i] for i in np.argsort(-together, kind="stable")]
            if fitness is not rounds[-1]:
                self.finalists_tokens -= (len(alive) + 1) // 2 * fitness.asker.cost(fitness.questions).tokens
                alive = alive[: (len(alive) + 1) // 2]
        self.finalists = [{"phenotype": name, **_scores(made[name]), "items": items[name]} for name in made]
        for name, (recipe, _, _) in leaders.items():
            self.recipes.setdefault(name, recipe)
        return next(row for row in self.finalists if row["phenotype"] == alive[0])


def generation(search: Search, log: Log, advance: Callable[[int], None], left: int | None) -> bool:
    """Ask for a generation, evaluate it, tell it; False where the search is at its end or `left` tokens may not do.

    The first generation is asked whatever it takes.
    """
    number = search.generation
    if search.converged or (left is not None and number and left < search.population * log.tokens):
        return False
    asked = [(genotype, log.genome.decode(genotype)) for genotype in search.ask()]
    if not asked:
        return False
    log.fitness.expect([recipe for _, recipe in asked])
    told = []
    for candidate, (genotype, recipe) in enumerate(asked):
        place = {"generation": number, "candidate": candidate}
        told.append(do(f"candidate {number}-{candidate}", partial(log.evaluate, genotype, recipe, place), was_kept))
        advance(1)
    search.tell(
        [evaluation.fitness for evaluation in told],
        [evaluation.estimate.standard_error if evaluation.estimate else np.nan for evaluation in told],
    )
    return True


def was_kept(evaluation: Evaluation) -> bool:
    """Whether an evaluation's answers were all in the store."""
    return evaluation.cost.tokens == 0


def halves(known: Known) -> list[Known]:
    """The subset by a quarter, a half, and whole: each within the next; the whole alone where it is all items."""
    if len(known.unasked) == 0:
        return [known]
    parts = []
    for step in HALVES:
        weights = known.weights[::step]
        parts.append(replace(known, subset=known.subset[::step], weights=weights / weights.sum()))
    return parts


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
    """Write a table, complete or not at all."""
    write_text(OUT / name, pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main(evolve)
