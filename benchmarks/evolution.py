"""Searches on equal tokens, in a world where the truth of every winner is affordable (`tiny.py`).

    python benchmarks/evolution.py            # all; what is measured is kept in .bench/tiny and not measured again
    python benchmarks/evolution.py pooled     # one search alone, as part of that
    python benchmarks/evolution.py --demonstration    # over the demonstration's candidates, answered in full beforehand

Every search is run to its largest budget, from the uniform average, over `SEEDS` seeds; at each budget its winner's
accuracy on 2,000 test items is its truth. Tokens are counted in answers: all items here have six tokens. What all
searches know before, and none is charged for: the experts' answers and those of 24 random merges, on which items are
fitted and estimators calibrated. Where margins are read, and where a search begins with what merges are worth (see
`History.know`), they are drawn as the pipeline's are, around what a search looks at; item response theory does better
with weights drawn one by one, as far apart as merges are. Regret is the truth of the best winner that any search found,
less the winner's.

The demonstration's merges (`demonstration.py`) are a world in four genes: by item, the margin of a merge is
interpolated between those of the candidates that were answered in full (cubic radial functions, exact at every
candidate), so every search is run as it is; how well a candidate is told by the others is measured, too. The first
`POPULATION` of them are what is known before. Each seed draws the items that a search may ask; a winner's truth is its
accuracy on the others, and told as its lead over where all searches begin, the uniform average, on the same items.

A way that is `verified` keeps up to half of its budget for its leaders on fresh items, as the pipeline does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import RESULTS, Figure, command_line, publish
from scipy.interpolate import RBFInterpolator
from tiny import KEPT, LANGUAGES, WEIGHTS, World

from merge3 import surface
from merge3.estimate import CONTINUOUS, ESTIMATORS, Known, calibrate, learn_inheritance, prior_of
from merge3.evolve import SEARCHES, Genes, Pooled, Search
from merge3.extract import MARGINS, METHODS, by_margins
from merge3.finalists import HALVES, combined, contenders, finals, fresh, halves, paired
from merge3.fitness import TIE
from merge3.genome import Genome
from merge3.irt import fit_items

RESPONSES = Path("data/respond/search.parquet")
SEEDS = 20
REPLAYS, SEARCHED = 120, 0.6  # seeds of the replay, and the share of its items that are searched
POPULATION, HELD_OUT, TOTALS = 24, 6, (0.6, 1.8)
GENERATION, SIGMA, ASKED = 12, 0.2, 20
LEADERS, FRESH = 9, 300  # the pipeline's finalists, and their items
BUDGETS = (480, 960, 1920, 3840)
FULL_BUDGETS = (24_000, 48_000, 96_000, 192_000)


@dataclass(frozen=True)
class Way:
    """A way to search: with what, on which items, scored by what; `margin` breaks ties by log-likelihoods."""

    search: str
    subset: str
    estimator: str
    margin: bool = False
    verified: bool = False


WAYS = {
    "paper": Way("cma", "uniform", "gmp_irt"),
    "random": Way("random", "uniform", "gmp_irt"),
    "cma": Way("cma", "fisher", "parent_aware", margin=True),
    "pooled": Way("pooled", MARGINS, "margin_irt"),
    "pooled, answers": Way("pooled", "fisher", "parent_aware", margin=True),
    "pooled, ascent": Way("pooled", "ascent", "parent_aware", margin=True),
    "pooled, verified": Way("pooled", MARGINS, "margin_irt", verified=True),
    "full": Way("cma", "all", "mean"),
    "pooled, full": Way("pooled", "all", "mean"),
}
REPLAYED = {
    "paper": WAYS["paper"],
    "paper, genetic": Way("genetic", "uniform", "gmp_irt"),
    "random": WAYS["random"],
    "cma": WAYS["cma"],
    "pooled": WAYS["pooled"],
    "pooled, verified": WAYS["pooled, verified"],
    "pooled, design, verified": Way("pooled", "design", "parent_aware", margin=True, verified=True),
    "full": WAYS["full"],
}
OURS = ("pooled", "pooled, verified", "pooled, design, verified")


Told = tuple[np.ndarray, float, float]  # genotype, fitness, its standard error


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

    @cached_property
    def drawn(self) -> np.ndarray:
        """The genotypes of as many merges, drawn as the pipeline draws them."""
        experts, generator = tuple(str(expert) for expert in range(LANGUAGES)), np.random.default_rng(0)
        genome = Genome(("task_arithmetic",), experts, ("attention", "mlp"), 1, WEIGHTS, (0.2, 1.0), 0)
        drawn = [genome.draw(TOTALS, generator).weights for _ in range(POPULATION)]
        merges = [[weights[expert][group][0] for group in genome.groups for expert in experts] for weights in drawn]
        return np.array(merges) / WEIGHTS[1]

    @cached_property
    def relatives(self) -> np.ndarray:
        """Their margins on all search items."""
        return np.stack([self.world.margins(x, self.every) for x in self.drawn])

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
        choose = None
        if way.subset == MARGINS:
            choose = partial(by_margins, count=ASKED, groups=self.languages, seed=seed)
            before, (subset, weights) = replace(before, relatives=self.relatives), choose(self.relatives)
        else:
            subset, weights = METHODS[way.subset](
                before.items, before.parent_abilities, ASKED, self.languages, seed, prior_of(before)
            )
        known = replace(before, subset=subset, weights=weights)
        return calibrate(way.estimator, self.answers[0][-HELD_OUT:], known, choose)

    def run(self, way: Way, seed: int) -> dict[int, float]:
        """The truth of the winner at each budget."""
        known = self.known(way, seed)
        start = np.clip(self.start, 0.05, 0.95)
        search = SEARCHES[way.search](Genes(self.genes), start, SIGMA, GENERATION, seed)
        before = list[Told]()
        if way.subset == "all" or ESTIMATORS[way.estimator] in CONTINUOUS:
            scores = (self.relatives > 0).mean(axis=1).tolist()
            before = [(x, score, 0.0) for x, score in zip(self.drawn, scores, strict=True)]
            search.know(self.drawn, scores)
        asked, told, truths = 0, list[Told](), dict[int, float]()
        for budget in self.budgets[way.subset == "all"]:
            count = fitting(budget, len(self.every) - len(known.subset)) if way.verified else 0
            while not told or asked + GENERATION * len(known.subset) <= budget - cost(count):
                candidates = search.ask()
                found = [self.told(way, x, known) for x in candidates]
                search.tell([fitness for _, fitness, _ in found], [error for _, _, error in found])
                asked, told = asked + len(candidates) * len(known.subset), told + found
            truths[budget] = self.truth(self.winner(search, before, told, known, count, seed))
        return truths

    def told(self, way: Way, x: np.ndarray, known: Known) -> Told:
        """What a search is told of a candidate."""
        given, estimator = self.margins(x, known.subset), ESTIMATORS[way.estimator]
        estimate = estimator(given if estimator in CONTINUOUS else (given > 0).astype(float), known)
        return x, estimate.score + way.margin * TIE * float(np.tanh(given).mean()), estimate.standard_error

    def winner(
        self, search: Search, before: Sequence[Told], told: Sequence[Told], known: Known, count: int, seed: int
    ) -> np.ndarray:
        """The best so far: of the leaders by `count` fresh items, else where the surface is highest or the fittest."""
        genes, scores, _ = (np.array(column) for column in zip(*told, strict=True))
        if not count:
            top: np.ndarray = search.mean if isinstance(search, Pooled) else genes[scores.argmax()]
            return top
        pooled = surface.fit(*(np.array(column) for column in zip(*before, *told, strict=True)))
        leaders = contenders(pooled, search, genes)
        leaders = leaders[np.sort(np.unique(leaders, axis=0, return_index=True)[1])][:LEADERS]
        for part in halves(fresh(known, self.languages, count, seed), self.languages):
            answers = np.stack([self.margins(x, part.subset) > 0 for x in leaders]).astype(float)
            own = paired(answers, len(known.items))
            means, deviations = pooled.predict(leaders)
            order = np.argsort(-combined(means, deviations, answers.mean(axis=1), own), kind="stable")
            leaders = leaders[order[: (len(order) + 1) // 2]]
        best: np.ndarray = leaders[0]
        return best


def cost(count: int) -> int:
    """The answers that the leaders give to `count` fresh items."""
    return finals(LEADERS, [-(-count // step) for step in HALVES])


def fitting(budget: int, rest: int) -> int:
    """How many of the `rest` are the leaders' fresh items: as the pipeline has, within half the budget."""
    return max(count for count in range(min(rest, FRESH) + 1) if 2 * cost(count) <= budget)


class Replay(Bench):
    """Merges between candidates that were answered in full before, as the search of one seed meets them."""

    budgets = BUDGETS, (12_000, 24_000, 48_000, 96_000)

    def __init__(self, table: pd.DataFrame, experts: pd.DataFrame, start: np.ndarray, seed: int) -> None:
        """Take a table of `demonstration.py`, and the answers of experts (models x items) to its items.

        `start` is the genotype where searches begin; `seed` draws the items that are searched, the rest test.
        """
        self.genes, self.start = len(start), start
        values = table.to_numpy(dtype=float)
        self.points, self.table = values[:, : self.genes], values[:, self.genes :]
        self.between = RBFInterpolator(self.points, self.table, kernel="cubic")
        order = np.random.default_rng(seed).permutation(self.table.shape[1])
        count = round(SEARCHED * len(order))
        self.searched, self.tested = np.sort(order[:count]), np.sort(order[count:])
        known = experts[table.columns[self.genes :]].to_numpy(dtype=float)
        self.drawn = self.points[:POPULATION]
        self.relatives = self.table[:POPULATION, self.searched]
        self.answers = (self.relatives > 0).astype(float), known[:, self.searched]
        self.every = np.arange(count)
        self.languages = ["all"] * count

    def margins(self, x: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The margins of a candidate by those of all that were answered."""
        found: np.ndarray = self.between(x[None])[0, self.searched[items]]
        return found

    def truth(self, x: np.ndarray) -> float:
        """The share that a candidate has right of the items that are not searched."""
        return float((self.between(x[None])[0, self.tested] > 0).mean())

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
    start = np.full(count, 1 / len(experts) / demonstration.WEIGHTS[1])
    benches = [Replay(table, experts, start, seed) for seed in range(REPLAYS)]
    begin = 100 * np.array([bench.truth(start) for bench in benches])
    found = {
        name: 100 * np.array([list(bench.run(way, seed).values()) for seed, bench in enumerate(benches)])
        for name, way in REPLAYED.items()
    }
    agree, error = benches[0].left_out()
    accuracies = 100 * (benches[0].table > 0).mean(axis=1)
    figures = [
        Figure("a candidate by the others: items told right", 100 * agree, "%"),
        Figure("a candidate by the others: error of its accuracy", 100 * error, "points"),
        Figure("the candidates' mean", float(accuracies.mean()), "%"),
        Figure("the best candidate", float(accuracies.max()), "%"),
        Figure("where searches begin", float(begin.mean()), "%"),
    ]
    for name, values in found.items():
        for budget, column in zip(benches[0].budgets[REPLAYED[name].subset == "all"], values.T, strict=True):
            low, high = interval(column - begin)
            text = f"lead, {name}, {budget:,} answers [{low:.1f}, {high:.1f}]"
            figures.append(Figure(text, float((column - begin).mean()), "points"))
    for name in OURS:
        figures += targets(found, name, benches[0].budgets, (1920,))
    publish("evolution", figures, "_demonstration", "--demonstration")


def truths(bench: Bench, name: str) -> np.ndarray:
    """Seeds x budgets; measured now where it was not before."""
    rows = []
    for seed in range(SEEDS):
        path = KEPT / f"{name}-{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(list(bench.run(WAYS[name], seed).values())))
            print(name, seed, path.read_text(), flush=True)
        rows.append(json.loads(path.read_text()))
    return np.array(rows)


def targets(
    found: Mapping[str, np.ndarray], name: str, budgets: tuple[Sequence[int], Sequence[int]], at: Sequence[int]
) -> list[Figure]:
    """How a way stands to full evaluation at the budgets `at`, and to the paper's search; in points, seed by seed.

    Full evaluation is the search on all items that found most.
    """
    few, every = budgets
    full = max(
        (found[way][:, -1] for way in ("full", "pooled, full") if way in found), key=lambda values: values.mean()
    )
    ours, paper = dict(zip(few, found[name].T, strict=True)), found["paper"]
    figures = []
    for budget in at:
        text = f"full evaluation less {name}, upper end of the interval, at 1/{every[-1] / budget:.0f} of its answers"
        figures.append(Figure(text, interval(full - ours[budget])[1], "points", 1.0, below=True))
    half = interval(ours[1920] - paper[:, -1])[0]
    figures.append(Figure(f"{name} at half the paper's answers less the paper", half, "points, lower end", 0.0))
    worst = min(interval(column - theirs)[0] for column, theirs in zip(found[name].T, paper.T, strict=True))
    text = f"{name} less the paper at the worst of four budgets"
    return [*figures, Figure(text, worst, "points, lower end", 0.0)]


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of a mean over seeds."""
    picked = np.random.default_rng(seed).integers(0, len(values), (5000, len(values)))
    low, high = np.quantile(values[picked].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure, print a table, write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--demonstration", action="store_true", help="search the demonstration's kept merges instead")
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"find the truths of these alone: {'; '.join(WAYS)}")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.ways if name not in WAYS]:
        parser.error(f"{unknown[0]!r} is none of {list(WAYS)}")
    torch.set_num_threads(1)
    if chosen.demonstration:
        replayed()
        return
    bench = Bench()
    if chosen.ways:
        for name in chosen.ways:
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
    for name in ("pooled", "pooled, verified"):
        figures += targets(found, name, bench.budgets, (1920, 3840))
    worst = min(interval(o - p)[0] for o, p in zip(found["pooled, answers"].T, found["cma"].T, strict=True))
    figures.append(
        Figure(
            "pooled, answers, less cma on the same items at the worst of four budgets", worst, "points, lower end", 0.0
        )
    )
    publish("evolution", figures)


if __name__ == "__main__":
    main()
