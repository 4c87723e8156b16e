"""Verify: the guarantees of the method, checked on answers or by simulation.

Each check returns what was found and whether the guarantee held. Two hold by arithmetic (eps-stability; all items
asked) and are checked where they could be broken, on the estimators as they are; two rest on assumptions, and come with
a negative control that breaks the assumption and must fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from merge3.estimate import ANSWERED, ESTIMATORS, PARENTLESS, RIDGED, Known
from merge3.extract import METHODS
from merge3.irt import ItemParameters, fit_logistic, probability

EXACT = 1e-9
FEW = 5  # candidates of a case, and cases, on which exactness is checked


@dataclass(frozen=True)
class Check:
    """A guarantee, whether it held, and the figures."""

    name: str
    holds: bool
    figures: dict[str, float]


def stability(
    estimates: Float[np.ndarray, " candidates"], truths: Float[np.ndarray, " candidates"], name: str = "eps-stability"
) -> Check:
    """If |estimate - truth| <= eps for every candidate, the one of the highest estimate is within 2 eps of the best.

    Figures, in accuracy: eps, the bound 2 eps, the regret there was (of equal estimates, the worst), by how much the
    bound exceeds it, and the distance of the highest estimate from the best truth, which is at most eps.
    """
    eps = float(np.abs(estimates - truths).max())
    chosen = np.flatnonzero(estimates == estimates.max())
    regret = float(truths.max() - truths[chosen].min())
    away = float(abs(estimates.max() - truths.max()))
    holds = regret <= 2 * eps + EXACT and away <= eps + EXACT
    figures = {"eps": eps, "bound": 2 * eps, "regret": regret, "slack": 2 * eps - regret, "optimum_error": away}
    return Check(name, holds, figures)


def exactness(known: Known, models: Float[np.ndarray, "models items"], estimators: Sequence[str]) -> Check:
    """With all N items asked, every estimator is the accuracy, and its interval a point. Figure: the largest miss."""
    N = len(known.items)
    everything = replace(known, subset=np.arange(N), weights=np.full(N, 1 / N))
    miss = 0.0
    for name in estimators:
        for row in models:
            found = ESTIMATORS[name](row, everything)
            miss = max(miss, abs(found.score - float(row.mean())), found.high - found.low)
    figures = {"largest_miss": miss, "estimators": len(estimators)}
    return Check("with all items asked every estimate is the accuracy", miss <= EXACT, figures)


def unbiasedness(
    seed: int = 0, repeats: int = 30, counts: Sequence[int] = (50, 200, 1000, 4000)
) -> tuple[Check, Check]:
    """mp-IRT's error vanishes as n grows, with known items and endpoints and linear inheritance; and the control.

    Simulated in three dimensions with two endpoints, 8,000 items of which those unasked weigh the third dimension more.
    A merge whose ability lies in the endpoints' span must show a bias that falls below half a point; one outside must
    not. Figures, in accuracy: the bias over the unasked items at each n, and its standard error at the last.
    """
    N = 8000
    rng = np.random.default_rng(seed)
    a = np.column_stack([rng.lognormal(0, 0.3, N), rng.normal(0, 1, N), np.where(np.arange(N) < N // 2, 0.3, 1.5)])
    items = ItemParameters(a, rng.normal(0, 1, N))
    gamma = np.array([[1.0, 0.8, 0.0], [0.5, -1.0, 0.0]])
    checks = []
    vanishes = "mp_irt's bias vanishes with more items for a merge inside its parents' span"
    stays = "control: mp_irt's bias stays for a merge outside its parents' span"
    for name, outside in ((vanishes, 0.0), (stays, 1.5)):
        theta = np.array([[0.6, 0.4]]) @ gamma + np.array([[0.0, 0.0, outside]])
        P = probability(items, theta)[0]
        figures: dict[str, float] = {}
        for n in counts:
            errors = []
            for _ in range(repeats):
                answers = (rng.random(n) < P[:n]).astype(float)
                weights, _ = fit_logistic(a[:n] @ gamma.T, -items.difficulty[:n], answers, np.zeros(2), np.eye(2))
                errors.append(
                    float((expit(a[N // 2 :] @ (weights @ gamma) - items.difficulty[N // 2 :]) - P[N // 2 :]).mean())
                )
            figures[f"bias_at_{n}"] = float(np.mean(errors))
        small = abs(figures[f"bias_at_{counts[-1]}"]) < 0.005
        figures["standard_error"] = float(np.std(errors) / np.sqrt(repeats))
        checks.append(Check(name, small == (outside == 0.0), figures))
    return checks[0], checks[1]


def degeneracy(seed: int = 0) -> tuple[Check, Check]:
    """With no more dimensions than independent endpoints, mp-IRT without priors is p-IRT; with more it is not.

    Simulated; the priors are made so weak that they say nothing. Figures: the largest difference of the two estimates.
    """
    checks = []
    for dimensions, same in ((2, True), (3, False)):
        rng = np.random.default_rng(seed)
        a = rng.normal(0, 0.7, (300, dimensions)) + np.eye(dimensions)[0]
        b = rng.normal(0, 1, 300)
        gamma = rng.normal(0, 1, (2, dimensions))
        worst = 0.0
        for _ in range(10):
            answers = (rng.random(200) < expit(a[:200] @ rng.normal(0, 1, dimensions) - b[:200])).astype(float)
            free, _ = fit_logistic(a[:200], -b[:200], answers, np.zeros(dimensions), 1e-9 * np.eye(dimensions))
            weights, _ = fit_logistic(a[:200] @ gamma.T, -b[:200], answers, np.zeros(2), 1e-9 * np.eye(2))
            difference = expit(a[200:] @ free - b[200:]) - expit(a[200:] @ (weights @ gamma) - b[200:])
            worst = max(worst, float(np.abs(difference).max()))
        told = "mp_irt of 2 parents is p_irt in 2 dimensions"
        name = told if same else "control: mp_irt of 2 parents is not p_irt in 3 dimensions"
        checks.append(Check(name, (worst < 1e-4) == same, {"largest_difference": worst}))
    return checks[0], checks[1]


def simulated(seed: int = 0) -> list[Check]:
    """The checks that need no data."""
    return [*unbiasedness(seed), *degeneracy(seed)]


def on_answers(
    cases: Sequence[tuple[Known, Float[np.ndarray, "candidates items"]]], groups: Sequence[str], seed: int = 0
) -> list[Check]:
    """The checks on a table: exactness, and eps-stability of every estimator on a random subset of a known's size.

    `cases` are candidates and what is known of them. Exactness is that of the first five candidates of the first five
    cases, the worst; stability of all candidates together.
    """
    exact, found = list[Check](), dict[str, list[float]]()
    for number, (known, candidates) in enumerate(cases):
        names, asked = _asked(known, groups, seed)
        if number < FEW:
            exact.append(exactness(known, candidates[:FEW], names))
        for name in names:
            rows = candidates[:, asked.subset]
            found.setdefault(name, []).extend(ESTIMATORS[name](row, asked).score for row in rows)
    truths = np.concatenate([candidates.mean(axis=1) for _, candidates in cases])
    worst = max(exact, key=lambda check: check.figures["largest_miss"])
    return [worst, *(stability(np.array(made), truths, f"eps-stability of {name}") for name, made in found.items())]


def _asked(known: Known, groups: Sequence[str], seed: int) -> tuple[list[str], Known]:
    """The estimators that can be tried, and what is known with a random subset."""
    names = sorted(ANSWERED) if len(known.parents) else sorted(PARENTLESS)
    if known.population is None or len(known.population) < RIDGED:
        names = [name for name in names if name != "ridge"]
    abilities = known.parent_abilities if len(known.parents) else np.empty((0, known.items.dimensions))
    subset, weights = METHODS["uniform"](known.items, abilities, len(known.subset), groups, seed)
    return names, replace(known, subset=subset, weights=weights)
