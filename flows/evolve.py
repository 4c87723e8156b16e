"""Stage evolve: search the merges of the study's experts for the best estimated score."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import numpy as np
import pandas as pd
from prefect import flow
from prefect.exceptions import TerminationSignal
from pydantic import Field

from flows.asking import MANIFEST, answer_all
from flows.known import (
    POPULATION,
    expert_answers,
    extracted_by,
    margins,
    merges,
    parameters,
    study_items,
    study_of,
    subset,
)
from flows.stage import (
    DATA,
    Count,
    Seed,
    bounds,
    do,
    main,
    progress,
    read_json,
    say,
    served,
    show_table,
    write_json,
    write_text,
)
from flows.team import open_team
from merge3 import mergefile
from merge3.asker import Asker
from merge3.estimate import CONTINUOUS, ESTIMATORS, Calibration, Known
from merge3.evolve import FRONTS, SEARCHES, Cma, Genes, Search, begin_after
from merge3.extract import MARGINS
from merge3.finalists import finals, fresh, halves, told_apart, whole
from merge3.fitness import Evaluation, Fitness
from merge3.front import hypervolume
from merge3.genome import Genome, live_groups
from merge3.grouped import Objective, weights_of
from merge3.history import EVOLVED, History, Joining, average, generation, joins
from merge3.items import Item
from merge3.ledger import Cost
from merge3.models import read_manifest
from merge3.recipe import AVERAGE, Merge, Recipe

ESTIMATE = DATA / "estimate"
OUT = DATA / "evolve"
SEARCH = ("history.csv", "recipes.json")  # what another search needs to begin after one
END = ("finalists.csv", "front.csv", "winner.json", "winner.yaml", "ledger.json")  # what a search that is stopped lacks


@flow
def evolve(
    seed: Seed,
    study: str,
    studies: dict[str, Any],
    runtime: dict[str, Any],
    method: str | list[str],
    knots: Count,
    weights: list[float],
    densities: list[float],
    strategy: str,
    objective: str | dict[str, float],
    population: Annotated[int, Field(ge=4)],
    generations: Count,
    tokens: Annotated[int | None, Field(ge=1)],
    hours: Annotated[float | None, Field(gt=0)],
    sigma: Annotated[float, Field(gt=0, le=1)],
    warm_start: str | None,
    join: Annotated[int, Field(ge=0)],
    finalists: Count,
    finalist_items: Count,
) -> None:
    """Write history.csv (a row a candidate), recipes.json, finalists.csv, winner.json and .yaml, ledger.json, answers.

    Where the objective is `pareto`, every group is one: front.csv has the leaders by group, the winner is the knee.

    Where it is `gain`, the uniform average answers all items before.

    The search begins with what the population's merges are worth (`Search.know`); where margins are read, leaders join
    them on the way (`History.join`). It is a function of its parameters and of the answers: started again after any
    interruption it finds its questions answered and goes the same way. It ends after `generations`, before the
    generation that may exceed `tokens`, after the one in which this run has taken `hours`, or where it has converged;
    best.yaml is the best so far at any time, by all candidates together. The winner is the leader that does best on
    what the search and fresh items say together, or on all items where leaders joined.

    Raises:
        ValueError: parameters do not go together, or one is out of its range.
        KeyboardInterrupt: the search was interrupted; says how far it is.
    """
    experts, groups = study_of(study, studies)
    validate(method, strategy, objective, groups, warm_start)
    found = study_items(groups)
    known, estimator = _known(experts, found)
    asker = open_team(runtime, OUT / "answers", experts)
    genome, search = opened(
        experts,
        live_groups(asker.merger.changed),
        seed,
        method,
        knots,
        weights,
        densities,
        strategy,
        population,
        sigma,
        warm_start,
        len(groups) if objective == "pareto" else 1,
    )
    start, start_cost = in_full(asker, average(genome), found) if objective == "gain" else (None, Cost())
    plan = planned(
        asker, found, known, estimator, objective, start, 0 if search.elitist else join, finalist_items, seed
    )
    count, relatives = generations * population, plan.relatives(generations)
    one, full = plan.fitness.cost, plan.everything.cost
    say(
        f"{len(genome.names)} genes, {generations} generations of {population}: at most {count * one.tokens:,} tokens, "
        f"{count * one.flops:.1e} operations (all items: {count * full.tokens:,}); "
        f"{relatives} leaders on all items on the way: at most {relatives * full.tokens:,} more; "
        f"{finalists} finalists: at most {plan.finalists(finalists, lambda part: part.cost.tokens):,} more"
    )
    history = History(plan.fitness, genome, partial(do, kept=was_kept))
    history.cost += start_cost
    start_tokens = history.charge(history.phenotype(history.average), found).tokens if start else 0
    tell_known(history, search, plan, found)
    for name in END:  # an earlier search's winner is none of what this one writes
        (OUT / name).unlink(missing_ok=True)
    begin = monotonic()
    try:
        with progress(
            "evolve: answers of candidates", count * len(plan.fitness.questions) + relatives * len(found)
        ) as advance:
            for number in range(generations):
                left = float(np.inf if tokens is None else tokens)
                left -= start_tokens + history.spent.tokens + history.relatives_tokens
                if not do(f"generation {number}", partial(generation, search, history, advance, plan.joining, left)):
                    break
                write(history)
                if hours is not None and monotonic() - begin > 3600 * hours:
                    say(f"stopped after {hours} h; raise evolve.hours, and it goes on where it is")
                    break
        answers = plan.finalists(finalists, lambda part: len(part.questions))
        with progress("evolve: answers of finalists", answers) as advance:
            if plan.front:
                winner = verified_front(history, finalists, plan.rounds[0], advance)
            else:
                leaders = history.leaders(finalists, search)
                winner = history.verify(leaders, plan.rounds, advance, plan.in_the_end)
    except (KeyboardInterrupt, TerminationSignal) as stop:  # the latter is Prefect's, of a run that it follows
        stop.args = (interrupted(history),)
        if served():
            say(stop.args[0])
        raise
    _write_csv(history.finalists, "finalists.csv")
    if winner["merge"] != EVOLVED:
        where = "on all search items" if plan.joining else "on search and fresh items together"
        say(f"no evolved merge does better than the {winner['merge']} {where}: it is the winner")
    best = history.recipes[winner["phenotype"]]
    write_json(OUT / "winner.json", {"study": study, "objective": objective, **winner, "recipe": best.to_dict()})
    write_text(OUT / "winner.yaml", mergefile.to_yaml(with_sources(best)))
    write_json(OUT / "ledger.json", ledger(history, start_tokens, full))
    show_table("evolve-history", history.rows, "every candidate of the search")
    show_table("evolve-finalists", history.finalists, "its leaders in the end")
    say(
        f"{len(history.seen)} distinct candidates of {len(history.rows)}; this run asked {history.cost.tokens:,} tokens"
    )


@dataclass(frozen=True)
class Plan:
    """What candidates, leaders on the way, and finalists are asked."""

    fitness: Fitness
    """Of candidates."""
    everything: Fitness
    """Asks all items."""
    rounds: list[Fitness]
    """Of the finalists, each within the next."""
    joining: Joining | None
    """How leaders join the population's merges; None where they do not."""
    front: bool
    """Whether every group is an objective."""
    begun: bool
    """Whether the uniform average has answered all items before."""

    @property
    def in_the_end(self) -> Fitness | None:
        """What the best finalists and the uniform average are asked: all items, where leaders joined."""
        return self.everything if self.joining and not self.front else None

    def relatives(self, generations: int) -> int:
        """How many leaders join in so many generations."""
        return self.joining.count * joins(self.joining.every, generations) if self.joining else 0

    def finalists(self, count: int, size: Callable[[Fitness], int]) -> int:
        """What so many finalists take at most, in what `size` counts; with them the uniform average."""
        most = size(self.everything) if self.in_the_end else 0
        return finals(count, [size(part) for part in self.rounds], most) + (0 if self.begun else most)


def planned(
    asker: Asker,
    found: Sequence[Item],
    known: Known,
    estimator: str,
    objective: str | Mapping[str, float],
    start: Mapping[str, float] | None,
    join: int,
    finalist_items: int,
    seed: int,
) -> Plan:
    """The plan of a search by what is known before it; `start` are the uniform average's scores by group, for gain."""
    labels = [item.group for item in found]

    def fitness_of(part: Known, estimator: str) -> Fitness:
        chosen = ESTIMATORS[estimator]
        wanted = None if objective == "mean" else Objective(objective, chosen, part, labels, start)
        return Fitness(asker, found, chosen, part, wanted)

    others = fresh(known, labels, finalist_items, seed)
    parts = [others] if objective == "pareto" else halves(others, labels)
    rounds = [fitness_of(part, "weighted_mean") for part in parts]  # a fair sample needs no model
    everything, joining = fitness_of(whole(known), "weighted_mean"), None
    if join and ESTIMATORS[estimator] in CONTINUOUS and len(known.unasked):
        again = told_apart(known, others, labels, seed) if extracted_by() == MARGINS else None
        joining = Joining(join, everything, partial(fitness_of, estimator=estimator), again)
    return Plan(fitness_of(known, estimator), everything, rounds, joining, objective == "pareto", start is not None)


def tell_known(history: History, search: Search, plan: Plan, found: list[Item]) -> None:
    """Tell the search what the population's merges are worth, and that the uniform average answered all items."""
    if plan.begun and plan.joining:
        history.exact[history.phenotype(history.average)] = plan.everything(history.average)
    names, *answers = merges(found)
    made = read_json(POPULATION / "recipes.json")
    recipes = [Recipe.from_dict(made[name]) for name in names]
    history.know(search, recipes, [plan.everything.judge(*row) for row in zip(*answers, strict=True)])


def ledger(history: History, start_tokens: int, full: Cost) -> dict[str, Any]:
    """What the search cost, no question counted twice, and what every candidate would have, asked all items: `full`."""
    return {
        "search_tokens": history.spent.tokens,
        "search_flops": history.spent.flops,
        "start_tokens": start_tokens,
        "relatives_tokens": history.relatives_tokens,
        "finalists_tokens": history.finalists_tokens,
        "all_items_tokens": len(history.seen) * full.tokens,
        "all_items_flops": len(history.seen) * full.flops,
        "candidates": len(history.rows),
        "distinct": len(history.seen),
        "this_run": history.cost.to_dict(),
    }


def in_full(asker: Asker, recipe: Recipe, found: Sequence[Item]) -> tuple[dict[str, float], Cost]:
    """The scores by group of the uniform average, from its answers to all items, and what they cost now.

    Raises:
        ValueError: no answer of a group could be scored.
    """
    table, ledger = answer_all("evolve", asker, {AVERAGE: recipe}, found)
    right = table.iloc[0].groupby([item.group for item in found]).mean()
    if right.isna().any():
        raise ValueError(f"no answer of group {right.index[right.isna()][0]!r} could be scored: gain needs one")
    return {str(group): float(score) for group, score in right.items()}, Cost(**ledger["this_run"])


def verified_front(
    history: History, finalists: int, fitness: Fitness, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Ask the front's leaders fresh items and write front.csv; the row of its knee, and the front's hypervolume."""
    rows = history.verify_front(history.front(finalists), fitness, advance)
    _write_csv(rows, "front.csv")
    volume = hypervolume(np.array([[row[f"score {group}"] for group in history.groups] for row in rows]))
    say(f"the front: {sum(row['front'] for row in rows)} of {len(rows)} leaders, hypervolume {volume:.3f}")
    bend = next(row["phenotype"] for row in rows if row["knee"])
    return next(row for row in history.finalists if row["phenotype"] == bend) | {"hypervolume": volume}


def validate(
    method: str | Sequence[str],
    strategy: str,
    objective: str | Mapping[str, float],
    groups: Sequence[str],
    warm_start: str | None,
) -> None:
    """Refuse parameters that do not go together.

    Raises:
        ValueError: some do not.
    """
    if isinstance(objective, Mapping):
        weights_of(objective, groups)
    elif objective not in ("mean", "worst", "gain", "pareto"):
        raise ValueError(
            f"evolve.objective must be one of mean, worst, gain, pareto, or weights of groups: {objective!r}"
        )
    if objective == "pareto" and len(groups) < 2:
        raise ValueError(f"evolve.objective pareto needs two groups or more, and the study has {list(groups)}")
    choice = sorted(FRONTS if objective == "pareto" else SEARCHES)
    if strategy not in choice:
        raise ValueError(f"evolve.strategy must be one of {choice} where the objective is {objective}: {strategy!r}")
    if warm_start is not None and (strategy != "cma" or not isinstance(method, str)):
        raise ValueError(
            f"evolve.warm_start is for the strategy cma and one method, evolve has {strategy!r} and {method!r}"
        )


def opened(
    experts: Sequence[str],
    live: Sequence[str],
    seed: int,
    method: str | list[str],
    knots: int,
    weights: list[float],
    densities: list[float],
    strategy: str,
    population: int,
    sigma: float,
    warm_start: str | None,
    objectives: int = 1,
) -> tuple[Genome, Search]:
    """The genome of `experts`, for the groups that are `live`, and the search of it, from the uniform average.

    With `warm_start` it begins where the earlier search in that folder was good, as wide as its best tenth; `sigma` is
    then without effect. Of several `objectives` the search is for their front.

    Raises:
        ValueError: the method is unknown, another parameter is out of its range, or that folder has no such search.
    """
    ranges = bounds("evolve.weights", weights), bounds("evolve.densities", densities)
    methods = (method,) if isinstance(method, str) else tuple(method)
    genome = Genome(methods, tuple(experts), tuple(live), knots, *ranges, seed)
    genes = Genes(genome.start.size, categories={0: len(methods)} if len(methods) > 1 else {})
    if objectives > 1:
        return genome, FRONTS[strategy](genes, genome.start, sigma, population, seed, objectives)
    if warm_start is not None:
        start, sigma, covariance = begin_after(*earlier_search(Path(warm_start), genome))
        return genome, Cma(genes, start, sigma, population, seed, covariance)
    return genome, SEARCHES[strategy](genes, genome.start, sigma, population, seed)


def earlier_search(folder: Path, genome: Genome) -> tuple[np.ndarray, np.ndarray]:
    """The genes of an earlier search's distinct candidates, candidates x genes, and their estimates.

    Broken ones, and those that the genome has no place for, are left out.

    Raises:
        ValueError: the folder has no search, or none of its candidates is a merge of the genome.
    """
    history, made = (folder / name for name in SEARCH)
    try:
        recipes = json.loads(made.read_text(encoding="utf-8"))
        rows = pd.read_csv(history).dropna(subset="estimate")
        estimates = rows.groupby("phenotype", sort=False)["estimate"].last()
        placed = {name: genome.place(Recipe.from_dict(recipes[name])) for name in estimates.index}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"evolve.warm_start: expected {' and '.join(SEARCH)} of a search in {folder} ({error})"
        ) from error
    mine = [name for name, genes in placed.items() if genes is not None]
    if not mine:
        raise ValueError(
            f"evolve.warm_start: none of the {len(placed)} candidates in {folder} is a merge by {genome.methods[0]} of "
            f"{list(genome.experts)} with weights within {list(genome.weight_range)}: it is a search of other merges"
        )
    return np.array([placed[name] for name in mine]), estimates[mine].to_numpy()


def with_sources(recipe: Recipe) -> Merge:
    """The recipe with the models of the manifest: what `merge3 merge` writes as a model."""
    base, found = read_manifest(MANIFEST)
    return Merge(recipe, base.source, {e.name: e.source for e in found if e.name in recipe.experts})


def write(history: History) -> None:
    """Write what a person may look at while the search goes on, the best so far included."""
    _write_csv(history.rows, "history.csv")
    write_json(OUT / "recipes.json", {name: recipe.to_dict() for name, recipe in history.recipes.items()})
    if history.told:
        best = history.recipes[history.best["phenotype"]]
        write_text(OUT / "best.yaml", mergefile.to_yaml(with_sources(best)))


def interrupted(history: History) -> str:
    """Write what was asked, and say how far it is."""
    if not history.rows:
        return "stopped before a candidate was asked"
    write(history)
    best = ""
    if history.told:
        row = history.best
        best = f"; the best so far is {OUT / 'best.yaml'}, estimated {row['estimate']:.3f}"
        best += f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"stopped after {len(history.rows)} candidates{best}; started again, the search goes on where it is"


def was_kept(evaluation: Evaluation) -> bool:
    """Whether an evaluation's answers were all in the store."""
    return evaluation.cost.tokens == 0


def _known(experts: list[str], found: list[Item]) -> tuple[Known, str]:
    """What the stages before have found out, and the estimator they calibrated."""
    values = read_json(ESTIMATE / "calibration.json")
    calibration = Calibration(**(values | {"centre_shift": tuple(values["centre_shift"])}))
    chosen, weights = subset(found, values["estimator"])
    answers = expert_answers(experts, found)
    known = Known(parameters(found), chosen, weights, answers, calibration, relatives=margins(found))
    return known, values["estimator"]


def _write_csv(rows: list[dict[str, Any]], name: str) -> None:
    """Write a table, complete or not at all."""
    write_text(OUT / name, pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    main(evolve)
