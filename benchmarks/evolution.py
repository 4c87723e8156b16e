"""Searches on equal tokens, in a world where the truth of every winner is affordable (`tiny.py`).

    python benchmarks/evolution.py            # all; what is measured is kept in .bench/tiny and not measured again
    python benchmarks/evolution.py pooled     # one search alone, as part of that
    python benchmarks/evolution.py --demonstration    # over the demonstration's candidates, answered in full beforehand

Every search is run to its largest budget, from the uniform average, over `SEEDS` seeds; at each budget its winner's
accuracy on 2,000 test items is its truth. Tokens are counted in answers: all items here have six tokens. What all
searches know before, and none is charged for: the experts' answers and those of 24 random merges, on which items are
fitted and estimators calibrated. Regret is the truth of the best winner that any search found, less the winner's.

The demonstration's merges (`demonstration.py`) are a world in four genes: by item, the margin of a merge is
interpolated between those of the candidates that were answered in full (cubic radial functions, exact at every
candidate), so every search is run as it is; how well a candidate is told by the others is measured, too. The first
`POPULATION` of them are what is known before, and a winner's truth is its accuracy on all items.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import RESULTS, Figure, publish
from scipy.interpolate import RBFInterpolator
from tiny import KEPT, LANGUAGES, World

from merge3.estimate import ESTIMATORS, Known, calibrate, learn_inheritance, prior_of
from merge3.evolve import SEARCHES, Genes
from merge3.extract import METHODS
from merge3.fitness import TIE
from merge3.irt import fit_items

RESPONSES = Path("data/respond/search.parquet")
SEEDS, FULL_SEEDS = 20, 20
POPULATION, HELD_OUT = 24, 6
GENERATION, SIGMA, ASKED = 12, 0.2, 20
BUDGETS = (480, 960, 1920, 3840)
FULL_BUDGETS = (24_000, 48_000, 96_000, 192_000)


@dataclass(frozen=True)
class Way:
    """A way to search: with what, on which items, scored by what; `margin` breaks ties by log-likelihoods."""

    search: str
    subset: str
    estimator: str
    margin: bool = False


WAYS = {
    "paper": Way("cma", "uniform", "gmp_irt"),
    "random": Way("random", "uniform", "gmp_irt"),
    "cma": Way("cma", "fisher", "parent_aware", margin=True),
    "pooled": Way("pooled", "fisher", "parent_aware", margin=True),
    "pooled, ascent": Way("pooled", "ascent", "parent_aware", margin=True),
    "full": Way("cma", "all", "mean"),
}
REPLAYED = {
    "paper": WAYS["paper"],
    "paper, genetic": Way("genetic", "uniform", "gmp_irt"),
    "random": WAYS["random"],
    "cma": WAYS["cma"],
    "pooled": WAYS["pooled"],
    "pooled, ascent": WAYS["pooled, ascent"],
    "pooled, design": Way("pooled", "design", "parent_aware", margin=True),
    "full": WAYS["full"],
}
OURS = ("pooled", "pooled, ascent", "pooled, design")


class Bench:
    """The world, and what is known in it before a search."""

    budgets = BUDGETS, FULL_BUDGETS  # answers after which a winner is looked at: of few items, of all

    def __init__(self) -> None:
        self.world = World()
        self.every = np.arange(len(self.world.search))
        self.languages = [str(language) for language in self.world.search.languages]
        self.start, self.genes = self.world.standard["uniform average"], self.world.genes

    @cached_property
    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """The population's, and the experts', to all search items."""
        merges = np.random.default_rng(0).random((POPULATION, self.world.genes))
        experts = [self.world.standard[f"expert {expert}"] for expert in range(LANGUAGES)]
        made = [np.stack([self.world.margins(x, self.every) > 0 for x in some]) for some in (merges, experts)]
        return made[0].astype(float), made[1].astype(float)

    def margins(self, x: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The margins of a candidate that a search proposes."""
        return self.world.margins(x, items)

    def truth(self, x: np.ndarray) -> float:
        """The accuracy of a winner."""
        return self.world.truth(x)

    @cached_property
    def unasked(self) -> Known:
        """What is known, with a subset that nobody is asked."""
        population, experts = self.answers
        items = fit_items(np.concatenate([population[:-HELD_OUT], experts]), "em", 1, 0)
        return learn_inheritance(population[:-HELD_OUT], Known(items, self.every[:1], np.ones(1), experts))

    def known(self, way: Way, seed: int) -> Known:
        """What is known about the items that a way asks."""
        before = self.unasked
        if way.subset == "all":
            count = len(self.every)
            return Known(before.items, self.every, np.full(count, 1 / count), before.parents)
        subset, weights = METHODS[way.subset](
            before.items, before.parent_abilities, ASKED, self.languages, seed, prior_of(before)
        )
        known = Known(before.items, subset, weights, before.parents, before.calibration)
        return calibrate(way.estimator, self.answers[0][-HELD_OUT:], known)

    def run(self, way: Way, seed: int) -> dict[int, float]:
        """The truth of the winner at each budget."""
        known = self.known(way, seed)
        start = np.clip(self.start, 0.05, 0.95)
        search = SEARCHES[way.search](Genes(self.genes), start, SIGMA, GENERATION, seed)
        best, winner, asked, truths = -np.inf, start, 0, dict[int, float]()
        for budget in self.budgets[way.subset == "all"]:
            while asked + GENERATION * len(known.subset) <= budget:
                fitness, errors, candidates = [], [], search.ask()
                for x in candidates:
                    margins = self.margins(x, known.subset)
                    estimate = ESTIMATORS[way.estimator]((margins > 0).astype(float), known)
                    fitness.append(estimate.score + way.margin * TIE * float(np.tanh(margins).mean()))
                    errors.append(estimate.standard_error)
                    asked += len(known.subset)
                search.tell(fitness, errors)
                if max(fitness) > best:
                    best, winner = max(fitness), candidates[int(np.argmax(fitness))]
            truths[budget] = self.truth(search.mean if way.search == "pooled" else winner)
        return truths


class Replay(Bench):
    """Merges between candidates that were answered in full before."""

    budgets = BUDGETS, (12_000, 24_000, 48_000, 96_000)

    def __init__(self, table: pd.DataFrame, experts: pd.DataFrame, start: np.ndarray) -> None:
        """Take a table of `demonstration.py`, and the answers of experts (models x items) to its items.

        `start` is the genotype where searches begin.
        """
        self.genes = len(start)
        values = table.to_numpy(dtype=float)
        self.points, self.table = values[:, : self.genes], values[:, self.genes :]
        self.between = RBFInterpolator(self.points, self.table, kernel="cubic")
        experts = experts[table.columns[self.genes :]]
        self.answers = (self.table[:POPULATION] > 0).astype(float), experts.to_numpy(dtype=float)
        self.every = np.arange(self.table.shape[1])
        self.languages = ["all"] * len(self.every)
        self.start = start

    def margins(self, x: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The margins of a candidate by those of all that were answered."""
        found: np.ndarray = self.between(x[None])[0, items]
        return found

    def truth(self, x: np.ndarray) -> float:
        """The share of all items that a candidate has right."""
        return float((self.margins(x, self.every) > 0).mean())

    def left_out(self) -> tuple[float, float]:
        """Of every candidate by the others: share of its items told right, and error of its accuracy."""
        told = np.stack(
            [
                RBFInterpolator(np.delete(self.points, i, 0), np.delete(self.table, i, 0), kernel="cubic")(x[None])[0]
                for i, x in enumerate(self.points)
            ]
        )
        errors = (told > 0).mean(axis=1) - (self.table > 0).mean(axis=1)
        return float(((told > 0) == (self.table > 0)).mean()), float(np.abs(errors).mean())


def replayed() -> None:
    """Measure over the demonstration's candidates."""
    import demonstration

    table = pd.read_parquet(RESULTS / "demonstration.parquet")
    experts = pd.read_parquet(RESPONSES).loc[list(demonstration.EXPERTS)]
    count = len(table.columns) - len(experts.columns.intersection(table.columns))
    bench = Replay(table, experts, np.full(count, 1 / len(experts) / demonstration.WEIGHTS[1]))
    found = {
        name: 100 * np.array([list(bench.run(way, seed).values()) for seed in range(SEEDS)])
        for name, way in REPLAYED.items()
    }
    top = max(values.max() for values in found.values())
    agree, error = bench.left_out()
    accuracies = 100 * (bench.table > 0).mean(axis=1)
    figures = [
        Figure("a candidate by the others: items told right", 100 * agree, "%"),
        Figure("a candidate by the others: error of its accuracy", 100 * error, "points"),
        Figure("the candidates' mean", float(accuracies.mean()), "%"),
        Figure("the best candidate", float(accuracies.max()), "%"),
        Figure("where searches begin", 100 * bench.truth(bench.start), "%"),
        Figure("the best winner of all searches", float(top), "%"),
    ]
    for name, values in found.items():
        for budget, column in zip(bench.budgets[REPLAYED[name].subset == "all"], values.T, strict=True):
            low, high = interval(top - column)
            text = f"regret, {name}, {budget:,} answers [{low:.1f}, {high:.1f}]"
            figures.append(Figure(text, float((top - column).mean()), "points"))
    few, every = bench.budgets
    for name in OURS:
        at = dict(zip(few, found[name].T, strict=True))
        short = interval(found["full"][:, -1] - at[1920])[1]
        ratio = every[-1] / 1920
        text = f"full evaluation less {name}, upper end of the interval, at 1/{ratio:.0f} of its answers"
        figures.append(Figure(text, short, "points", 1.0, below=True))
        half = interval(at[1920] - found["paper"][:, -1])[0]
        figures.append(Figure(f"{name} at half the paper's answers less the paper", half, "points, lower end", 0.0))
        worst = min(interval(o - p)[0] for o, p in zip(found[name].T, found["paper"].T, strict=True))
        text = f"{name} less the paper at the worst of four budgets"
        figures.append(Figure(text, worst, "points, lower end", 0.0))
    publish("evolution", figures, "_demonstration", "--demonstration")


def truths(bench: Bench, name: str) -> np.ndarray:
    """Seeds x budgets; measured now where it was not before."""
    rows = []
    for seed in range(FULL_SEEDS if name == "full" else SEEDS):
        path = KEPT / f"{name}-{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(list(bench.run(WAYS[name], seed).values())))
            print(name, seed, path.read_text(), flush=True)
        rows.append(json.loads(path.read_text()))
    return np.array(rows)


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of a mean over seeds."""
    picked = np.random.default_rng(seed).integers(0, len(values), (5000, len(values)))
    low, high = np.quantile(values[picked].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure, print a table, write the results."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--demonstration"]:
        replayed()
        return
    bench = Bench()
    if sys.argv[1:]:
        for name in sys.argv[1:]:
            truths(bench, name)
        return
    found = {name: 100 * truths(bench, name) for name in WAYS}
    top = max(values.max() for values in found.values())
    figures = []
    for name, values in found.items():
        for budget, column in zip(bench.budgets[WAYS[name].subset == "all"], values.T, strict=True):
            low, high = interval(top - column)
            figures.append(
                Figure(
                    f"regret, {name}, {budget:,} answers [{low:.1f}, {high:.1f}]",
                    float((top - column).mean()),
                    "points",
                )
            )
    last = found["full"][:, -1]
    count = min(len(last), SEEDS)
    ours = dict(zip(BUDGETS, found["pooled"].T, strict=True))
    for budget in (1920, 3840):
        short = last[:count] - ours[budget][:count]
        ratio = FULL_BUDGETS[-1] / budget
        figures.append(
            Figure(
                f"full evaluation less pooled, upper end of the interval, at 1/{ratio:.0f} of its answers",
                interval(short)[1],
                "points",
                1.0,
                below=True,
            )
        )
    figures.append(
        Figure(
            "pooled at half the paper's answers less the paper",
            interval(ours[1920] - found["paper"][:, -1])[0],
            "points, lower end",
            0.0,
        )
    )
    worst = min(interval(o - p)[0] for o, p in zip(found["pooled"].T, found["paper"].T, strict=True))
    figures.append(Figure("pooled less the paper at the worst of four budgets", worst, "points, lower end", 0.0))
    worst = min(interval(o - p)[0] for o, p in zip(found["pooled"].T, found["cma"].T, strict=True))
    figures.append(
        Figure("pooled less cma on the same items at the worst of four budgets", worst, "points, lower end", 0.0)
    )
    publish("evolution", figures)


if __name__ == "__main__":
    main()
