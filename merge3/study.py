"""Study: which extract method and estimator serve best on given answers, before anything is searched with them.

Takes a table of models answered in full, plays the search's part on it - item parameters from some models, a few
answers of others - and holds the estimates against the truth, over repeated draws. Three protocols: merges of one set
of parents (a family), merges with parents of their own each (triplets), models without parents (a quarter held out).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import spearmanr

from merge3 import lineage, surface
from merge3.estimate import (
    ANSWERED,
    ESTIMATORS,
    MIXED,
    PARENTLESS,
    RIDGED,
    SAMPLED,
    Z90,
    Estimator,
    Known,
    cross_calibrate,
    expected,
    fit_mixture,
    prior_of,
    weighted_mean,
)
from merge3.extract import METHODS, adaptive

COUNTS = (10, 20, 50)
STRANGERS = 2000  # at most, drawn anew each time
HELD_OUT = 0.25  # of models without parents
FEWEST = 4  # of them: one that is held out, and three to learn from
ADAPTIVE = "adaptive"
STUDIED = frozenset({ADAPTIVE, "ridge"})  # here alone: the pipeline does not offer them
POOLED = "pooled"  # lineage's estimates and the surface over the weights through all of them, as the search sees it


@dataclass(frozen=True)
class Case:
    """Candidates with the same parents, and who else is known. All answered all items.

    The cases of one draw have the same strangers.
    """

    strangers: Float[np.ndarray, "strangers items"]
    parents: Float[np.ndarray, "parents items"]
    relatives: Float[np.ndarray, "relatives items"]
    candidates: Float[np.ndarray, "candidates items"]
    weights: tuple[Float[np.ndarray, "relatives genes"], Float[np.ndarray, "candidates genes"]] | None = None
    """The relatives' and the candidates' coefficients in the unit cube, where they are known."""


@dataclass
class Tally:
    """The figures of one extract method and estimator at one count, an entry a draw."""

    error: list[float] = field(default_factory=list)
    spearman: list[float] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)


Draw = Callable[[int], list[Case]]


def family(
    table: pd.DataFrame,
    parents: Sequence[str],
    merges: str = "*",
    relatives: int = 0,
    weights: pd.DataFrame | None = None,
) -> Draw:
    """Draws of a family: `relatives` of its merges are answered in full, the others are the candidates.

    `merges` is a pattern of names; rows that are neither it nor parents are strangers. `weights` has a row a merge and
    a column a coefficient: with it, estimates may be pooled over the coefficients.

    Raises:
        ValueError: a parent is not in the table or named twice, fewer than three candidates are left, too few others
            are known, or the weights lack a merge, are no finite numbers or all the same.
    """
    _present(table, parents)
    if twice := [name for name in parents if list(parents).count(name) > 1]:
        raise ValueError(f"expected parents that differ, got {twice[0]!r} more than once: name each once")
    if relatives < 0:
        raise ValueError(f"expected 0 relatives or more, got {relatives}")
    rest = table.drop(index=list(parents))
    ours = np.array([fnmatch(name, merges) for name in rest.index])
    distinct = pd.concat([rest[ours], rest[~ours]]).drop_duplicates()  # a clone of a merge is no stranger
    mine = distinct.index.isin(rest.index[ours])
    members, others = distinct[mine].to_numpy(), distinct[~mine].to_numpy()
    if len(members) - relatives < 3:
        raise ValueError(f"expected three candidates or more, got {len(members)} merges of which {relatives} relatives")
    known = table.loc[list(parents)].to_numpy()
    if len(known) + relatives + len(others) < FEWEST - 1:
        raise ValueError(
            f"expected {FEWEST - 1} models or more to learn from, got {len(known)} parents, {relatives} relatives and "
            f"{len(others)} others: give more --relatives, or add rows of models that are no merges of these"
        )
    cube = None if weights is None else _cube(weights, distinct.index[mine])

    def draw(seed: int) -> list[Case]:
        rng = np.random.default_rng([seed, 1])
        order = rng.permutation(len(members))
        near, asked = order[:relatives], np.sort(order[relatives:])
        genes = None if cube is None else (cube[near], cube[asked])
        return [Case(_some(others, rng), known, members[near], members[asked], genes)]

    return draw


def triplets(table: pd.DataFrame, merges: pd.DataFrame) -> Draw:
    """Draws of merges that each have parents of their own: columns merge, parent_a, parent_b.

    Strangers are those that are in no triplet.

    Raises:
        ValueError: a model is not in the table, a column is missing, a merge is there twice or is its own parent, or
            both its parents are one.
    """
    columns = ["merge", "parent_a", "parent_b"]
    times = {name: list(merges.columns).count(name) for name in columns}
    if wrong := [name for name in columns if times[name] != 1]:
        raise ValueError(f"expected the columns {columns}, got {times[wrong[0]] or 'none'} called {wrong[0]!r}")
    if merges.empty:
        raise ValueError("expected one merge or more with its parents, got none")
    if (twice := merges["merge"][merges["merge"].duplicated()]).size:
        raise ValueError(f"expected a row a merge, got several of {twice.iloc[0]!r}: keep one")
    names = merges[columns].to_numpy()
    if alike := [row for row in names.tolist() if len(set(row)) < len(row)]:
        merge, a, b = alike[0]
        raise ValueError(f"expected a merge of two other models, got {merge!r} of {a!r} and {b!r}: name its parents")
    _present(table, names.ravel().tolist())
    others = table.drop(index=list(set(names.ravel()))).drop_duplicates().to_numpy()
    rows = [(table.loc[[a, b]].to_numpy(), table.loc[[merge]].to_numpy()) for merge, a, b in names]
    none = np.empty((0, table.shape[1]))

    def draw(seed: int) -> list[Case]:
        strangers = _some(others, np.random.default_rng([seed, 1]))
        return [Case(strangers, parents, none, merge) for parents, merge in rows]

    return draw


def leaderboard(table: pd.DataFrame) -> Draw:
    """Draws of models without parents: a quarter of the distinct ones are candidates, the others the population.

    Raises:
        ValueError: there are too few.
    """
    _present(table, [])
    distinct = table.drop_duplicates().to_numpy()
    if len(distinct) < FEWEST:
        raise ValueError(
            f"expected {FEWEST} models or more whose answers differ, got {len(distinct)}: have more answer the items"
        )
    none = np.empty((0, table.shape[1]))

    def draw(seed: int) -> list[Case]:
        rng = np.random.default_rng([seed, 1])
        order = rng.permutation(len(distinct))[: int(STRANGERS / (1 - HELD_OUT))]
        held = round(len(order) * HELD_OUT)
        return [Case(distinct[order[held:]], none, none, distinct[order[:held]])]

    return draw


def study(
    draw: Draw,
    groups: Sequence[str],
    counts: Sequence[int] | None = None,
    draws: int = 20,
    seed: int = 0,
    methods: Sequence[str] = (*METHODS, ADAPTIVE),
    estimators: Sequence[str] = (*ANSWERED, POOLED),
    advance: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """The figures of every extract method with every estimator it may be scored by, a row a pair and count.

    Errors and regrets are in points of accuracy. Columns: method, estimator, items, answers (what a candidate costs,
    relatives shared among the candidates), error with low and high (5 and 95 % of the draws), spearman, regret (true
    score of the best less that of the one with the highest estimate) and coverage (of 90 % intervals, as wide as those
    who are known teach: `rehearsals`, or of merges with parents of their own a random half the other). The pair
    "parents", items 0 is the mean of the parents' scores. Where no counts are given they are those of `COUNTS` that
    there are items for, else all items.

    Raises:
        ValueError: no draw, or a count that is not among the items.
    """
    total = draw(seed)[0].candidates.shape[1]
    if counts is None:
        counts = [count for count in COUNTS if count <= total] or [total]
    if draws < 1 or not all(1 <= count <= total for count in counts):
        raise ValueError(
            f"expected a draw or more, and counts between 1 and the {total} items, got {draws} draws of {list(counts)}"
        )
    tallies: dict[tuple[str, str, int], Tally] = {}
    cost = 0.0
    for number in range(draws):
        cases = draw(seed + number)
        cost = sum(c.relatives.size for c in cases) / sum(len(c.candidates) for c in cases)
        worlds = _fitted(cases)
        known_worlds = [  # a case without its one relative is not as uncertain as one that never had any
            (case, replace(known, shared_error=worlds[0][1].shared_error))
            for case, known in _fitted(rehearsals(cases[0], seed + number))
        ]
        truths = _truths(cases)
        if len(cases[0].parents):
            guess = np.concatenate([np.full(len(c.candidates), c.parents.mean()) for c in cases])
            _count(tallies.setdefault(("none", "parents", 0), Tally()), guess, truths)
        for method in methods:
            for count in counts:
                asked, tried = (
                    [(case, _knowns(case, known, method, count, groups, seed + number)) for case, known in some]
                    for some in (worlds, known_worlds)
                )
                for estimator in estimators:
                    if not _fits(method, estimator, cases[0]):
                        continue
                    made = _made(estimator, asked)
                    estimates, spreads = cross_calibrate(*made, truths)
                    if len(cases) > 1:
                        widening = _by_halves(*made, truths, seed + number)
                    else:
                        like = [one for one in tried if _fits(method, estimator, one[0])]
                        learnt = fit_mixture(*_made(estimator, like), _truths([case for case, _ in like]))[1]
                        widening = np.full(len(truths), learnt)
                    tally = tallies.setdefault((method, estimator, count), Tally())
                    _count(tally, estimates, truths)
                    held = np.abs(estimates - truths) <= Z90 * widening * spreads + 1e-9
                    tally.coverage.append(float(held.mean()))
        advance(1)
    return pd.DataFrame([_row(key, tally, cost) for key, tally in tallies.items()])


def rehearsals(case: Case, seed: int) -> list[Case]:
    """Cases whose candidates are known before any candidate is asked: on them, intervals learn their width.

    Each relative of a family is left out in turn; without parents a quarter of the strangers is held out, as the
    candidates were. None where only parents and strangers are known: neither is what a merge is.
    """
    if len(case.relatives):
        return [_without(case, k) for k in range(len(case.relatives))]
    if len(case.parents):
        return []
    order = np.random.default_rng([seed, 2]).permutation(len(case.strangers))
    held = round(len(order) * HELD_OUT)
    return [replace(case, strangers=case.strangers[order[held:]], candidates=case.strangers[order[:held]])]


def recommend(table: pd.DataFrame) -> pd.DataFrame:
    """For each count the pair that does best over all figures: the least sum of ranks of error, spearman and regret."""
    asked = table[table["items"] > 0]
    best = []
    for _, rows in asked.groupby("items"):
        ranks = rows["error"].rank() + (-rows["spearman"]).rank() + rows["regret"].rank()
        best.append(rows.iloc[int(ranks.to_numpy().argmin())])
    return pd.DataFrame(best)


def check_plot(path: Path) -> None:
    """Refuse a picture that `plot` cannot write, before a study is made for it.

    Raises:
        PermissionError: nothing can be written there.
        ValueError: it is a folder, is in none, or its ending is that of no picture.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"{path}: expected a picture's ending, one of {', '.join(kinds)}, got {path.suffix!r}")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{path}: expected a file in a folder that exists: make {path.parent}, or name another")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: name another place, --plot PICTURE")


def plot(table: pd.DataFrame, path: Path) -> None:
    """Error and Spearman's correlation over the number of items: the twelve best pairs, and the mean of the parents."""
    import matplotlib.pyplot as plt

    best = table[table["items"] > 0].groupby(["method", "estimator"])["error"].mean().nsmallest(12).index
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, column, label in zip(
        axes, ("error", "spearman"), ("mean absolute error, points", "Spearman"), strict=True
    ):
        for method, estimator in best:
            rows = table[(table["method"] == method) & (table["estimator"] == estimator)].sort_values("items")
            axis.plot(rows["items"], rows[column], marker="o", label=f"{method}, {estimator}")
        for value in table.loc[table["items"] == 0, column]:
            axis.axhline(value, color="black", linestyle=":", label="mean of the parents")
        axis.set(xlabel="items asked", ylabel=label)
    axes[1].legend(fontsize="x-small")
    figure.savefig(path)
    plt.close(figure)


def _knowns(
    case: Case, known: lineage.Family, method: str, count: int, groups: Sequence[str], seed: int
) -> list[Known]:
    """What is known of each candidate's questions."""
    items, N = known.items, len(known.items)
    near = np.vstack([case.strangers, case.parents, case.relatives])
    prior = expected(case.parents)
    everything = Known(
        items, np.arange(N), np.full(N, 1 / N), case.parents, prior, near, known.model, known.shared_error
    )
    if method == ADAPTIVE:
        tables = adaptive(known.interview or prior_of(everything), case.candidates, count, groups)
        subsets = [np.flatnonzero(~np.isnan(row)) for row in tables]
        return [replace(everything, subset=s, weights=np.full(count, 1 / count)) for s in subsets]
    abilities = everything.parent_abilities if len(case.parents) else np.empty((0, items.dimensions))
    subset, weights = METHODS[method](items, abilities, count, groups, seed, known.draft or prior_of(everything))
    return [replace(everything, subset=subset, weights=weights)] * len(case.candidates)


def _fitted(cases: Sequence[Case]) -> list[tuple[Case, lineage.Family]]:
    """Cases of the same strangers, and what is known of each family."""
    if not cases:
        return []
    families = lineage.fit_each(cases[0].strangers, [(case.parents, case.relatives) for case in cases])
    return list(zip(cases, families, strict=True))


def _without(case: Case, relative: int) -> Case:
    """The case whose one candidate is a relative, which is no relative then."""
    others, one = np.delete(np.arange(len(case.relatives)), relative), [relative]
    weights = None if case.weights is None else (case.weights[0][others], case.weights[0][one])
    return replace(case, relatives=case.relatives[others], candidates=case.relatives[one], weights=weights)


def _truths(cases: Sequence[Case]) -> Float[np.ndarray, " candidates"]:
    return np.concatenate([np.empty(0), *(case.candidates.mean(axis=1) for case in cases)])


def _made(
    estimator: str, asked: Sequence[tuple[Case, list[Known]]]
) -> tuple[Float[np.ndarray, "parts candidates"], Float[np.ndarray, "parts candidates"]]:
    """The scores of all candidates of all cases by each part of an estimator, and their standard errors."""
    if estimator == POOLED:
        pooled = [_pooled(*one, *(found[0] for found in _made("lineage", [one]))) for one in asked]
        flat = np.concatenate([np.empty((2, 0)), *pooled], axis=1)
        return flat[:1], flat[1:]
    parts: list[Estimator] = [weighted_mean, MIXED[estimator]] if estimator in MIXED else [ESTIMATORS[estimator]]
    pairs = [
        (row[known.subset], known) for case, knowns in asked for known, row in zip(knowns, case.candidates, strict=True)
    ]
    made = [[part(*pair) for pair in pairs] for part in parts]
    scores, errors = ([[getattr(e, name) for e in row] for row in made] for name in ("score", "standard_error"))
    shape = len(parts), len(pairs)
    return np.array(scores).reshape(shape), np.array(errors).reshape(shape)


def _pooled(
    case: Case,
    knowns: list[Known],
    scores: Float[np.ndarray, " candidates"],
    errors: Float[np.ndarray, " candidates"],
) -> Float[np.ndarray, "2 candidates"]:
    """A family's estimates and standard errors by the surface through all of them, and through the relatives' scores.

    What is known exactly, all items asked, stays.
    """
    assert case.weights is not None
    near, genes = case.weights
    through = surface.fit(
        np.vstack([genes, near]),
        np.concatenate([scores, case.relatives.mean(axis=1)]),
        np.concatenate([errors, np.zeros(len(near))]),
    )
    heights, deviations = through.predict(genes)
    shared = knowns[0].shared_error * len(knowns[0].unasked) / len(knowns[0].items)
    together = np.sqrt(deviations**2 + surface.FLOOR**2 + shared**2)
    return np.where(errors == 0, [scores, errors], [heights, together])


def _by_halves(
    scores: Float[np.ndarray, "parts models"],
    errors: Float[np.ndarray, "parts models"],
    truths: Float[np.ndarray, " models"],
    seed: int,
) -> Float[np.ndarray, " models"]:
    """The widening of each model's interval that the other half of the models teaches; the halves are random."""
    order = np.random.default_rng([seed, 3]).permutation(len(truths))
    halves = np.array_split(order, 2)
    widening = np.empty(len(truths))
    for mine, others in (halves, halves[::-1]):
        widening[mine] = fit_mixture(scores[:, others], errors[:, others], truths[others])[1]
    return widening


def _cube(weights: pd.DataFrame, names: pd.Index) -> Float[np.ndarray, "merges genes"]:
    """The merges' coefficients, each from 0 at its least to 1 at its greatest; what never changes is left out."""
    if missing := [name for name in names if name not in weights.index]:
        raise ValueError(f"expected the weights of all {len(names)} merges, got none of {missing[0]!r}")
    if twice := weights.index[weights.index.duplicated()].tolist():
        raise ValueError(f"expected one row of weights a merge, got two of {twice[0]!r}")
    numbers = weights.loc[names].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(numbers).all():
        row, column = (int(found[0]) for found in np.nonzero(~np.isfinite(numbers)))
        given = weights.loc[names].iloc[row, column]
        raise ValueError(f"expected finite weights, got {given!r} as {weights.columns[column]!r} of {names[row]!r}")
    low, span = numbers.min(axis=0), np.ptp(numbers, axis=0)
    if not span.any():
        raise ValueError(f"expected weights that differ between the {len(names)} merges, got {len(span)} columns alike")
    return np.asarray((numbers - low)[:, span > 0] / span[span > 0])


def _fits(method: str, estimator: str, case: Case) -> bool:
    """Whether a method's items may be scored by an estimator, and it has what it needs."""
    if not len(case.parents) and estimator not in PARENTLESS:
        return False
    if estimator == POOLED:
        return case.weights is not None
    if estimator == "ridge":  # not a regression for each candidate's own items
        return method != ADAPTIVE and len(case.strangers) + len(case.parents) + len(case.relatives) >= RIDGED
    sample = "weighted_mean" if estimator in MIXED else estimator  # which a mixture holds
    return method in SAMPLED.get(sample, {method})


def _count(tally: Tally, estimates: Float[np.ndarray, " models"], truths: Float[np.ndarray, " models"]) -> None:
    tally.error.append(100 * float(np.abs(estimates - truths).mean()))
    ties = np.ptp(estimates) == 0 or np.ptp(truths) == 0
    tally.spearman.append(0.0 if ties else float(spearmanr(estimates, truths).statistic))
    best = truths[estimates == estimates.max()].mean()
    tally.regret.append(100 * float(truths.max() - best))


def _row(key: tuple[str, str, int], tally: Tally, cost: float) -> dict[str, object]:
    method, estimator, count = key
    low, high = np.percentile(tally.error, [5, 95])
    return {
        "method": method,
        "estimator": estimator,
        "items": count,
        "answers": count + cost,
        "error": float(np.mean(tally.error)),
        "low": float(low),
        "high": float(high),
        "spearman": float(np.mean(tally.spearman)),
        "regret": float(np.mean(tally.regret)),
        "coverage": float(np.mean(tally.coverage)) if tally.coverage else None,
    }


def _some(rows: Float[np.ndarray, "rows items"], rng: np.random.Generator) -> Float[np.ndarray, "some items"]:
    return rows[np.sort(rng.permutation(len(rows))[:STRANGERS])]


def _present(table: pd.DataFrame, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in table.index]:
        raise ValueError(f"{missing[0]!r} is not in the table of {len(table)} models, as {len(missing)} of the names")
    lacking = table.index[table.isna().any(axis=1)]
    if len(lacking):
        raise ValueError(
            f"expected models answered in full, got {len(lacking)} of {len(table)} with missing answers (the first: "
            f"{lacking[0]!r}): leave out these models, or the items"
        )
