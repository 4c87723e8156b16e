"""Compare models on the same items: intervals by bootstrap, and a paired test.

Items are resampled within their groups, so that every group weighs what it weighs in the benchmark; small groups are
resampled as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import binomtest

from merge3.items import Item

RESAMPLES = 10_000
SMALL = 20  # items: within a group of fewer, of k, resampling has only (k - 1) / k of the variance
DRAWS = 1_000_000  # of items at once: 16 MB
LEAST = 0.5  # share of the items that a model has to have scored, to be compared
EVOLVED = "evolved merge"  # what the winner is called, where it is no standard merge
INSIDE = 0.95  # of the resamples, that an interval holds
LEVEL = 0.05  # of a claim that the winner beats a rival, for all rivals together


def interval(values: Float[np.ndarray, " items"], groups: Sequence[str], seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` (Efron 1979), resampled within groups.

    Groups of fewer than `SMALL` are resampled together, as one.

    `values` are scores in [0, 1] of one model, or differences of two models' scores: then the interval is paired.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    labels, sizes = np.asarray(groups), Counter(groups)
    strata = [values[labels == group] for group in sorted(sizes) if sizes[group] >= SMALL]
    small = values[np.array([sizes[group] < SMALL for group in groups])]
    totals = np.zeros(RESAMPLES)
    for members in [*strata, *([small] if len(small) else [])]:
        rows = max(1, DRAWS // len(members))
        for first in range(0, RESAMPLES, rows):
            block = min(rows, RESAMPLES - first), len(members)
            totals[first : first + rows] += members[generator.integers(0, len(members), block)].sum(1)
    low, high = np.quantile(totals / len(values), [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    return float(low), float(high)


def accuracy_interval(answers: Float[np.ndarray, " items"], groups: Sequence[str], seed: int) -> tuple[float, float]:
    """95 % interval of the mean of 0/1 answers: `interval`, but Wilson's (1927) where all are right, or all wrong.

    There is nothing to resample there.
    """
    if np.ptp(answers):
        return interval(answers, groups, seed)
    found = binomtest(int(answers.sum()), len(answers)).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def mcnemar(first: Float[np.ndarray, " items"], second: Float[np.ndarray, " items"]) -> float:
    """Two-sided p-value of the exact McNemar test (1947) on 0/1 answers to the same items; 1 where they agree."""
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values corrected for their number, so that the chance of one false claim among all is bounded (Holm 1979).

    The k-th smallest of m is multiplied by m - k + 1; none falls below a smaller one's, none exceeds 1.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def comparable(table: pd.DataFrame, needed: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """The models of which more than `LEAST` of the answers could be scored; of the others, how many.

    Raises:
        ValueError: one of the `needed` is among the others.
    """
    scored = zip(table.index, table.notna().sum(axis=1), strict=True)
    few = [(str(model), int(count)) for model, count in scored if count <= LEAST * table.shape[1]]
    left = {model: f"{count} of {table.shape[1]} held-out items scored" for model, count in few}
    if missing := [model for model in needed if model in left]:
        raise ValueError(
            f"{missing[0]!r} has {left[missing[0]]}, which is too few to compare with: give free-text items more "
            "max_tokens, or see the reasons above"
        )
    return table.drop(index=list(left)), left


def uneven(table: pd.DataFrame) -> str:
    """Of how many items each model's accuracy is, where that is not the same for all; else nothing."""
    counts = table.notna().sum(axis=1)
    if counts.min() == counts.max():
        return ""
    each = ", ".join(f"{model} {count}" for model, count in counts.items())
    return f"Accuracies are of the items that a model has a scored answer to ({each}), leads of those that both have"


def scores(table: pd.DataFrame, tests: Sequence[Item], winner: str, seed: int) -> pd.DataFrame:
    """A row a model: accuracy with its 95 % interval, by group and form, and the winner's lead over it.

    `table` holds the models' answers to `tests`, NaN where one could not be scored: accuracies are of a model's own
    scored answers, leads of those items that both have, so that no model moves another's figures. `lead_low` and
    `lead_high` are the paired interval, `mcnemar_p` is the paired test's, `holm_p` the same corrected for the number of
    rivals.
    """
    groups = np.array([item.group for item in tests])
    best = table.loc[winner].to_numpy()
    rows = []
    for model, answers in zip(table.index, table.to_numpy(), strict=True):
        own, both = ~np.isnan(answers), ~np.isnan(answers - best)
        low, high = accuracy_interval(answers[own], groups[own].tolist(), seed)
        lead_low, lead_high = interval((best - answers)[both], groups[both].tolist(), seed)
        row = {"model": model, "accuracy": answers[own].mean(), "low": low, "high": high}
        row |= {"lead": (best - answers)[both].mean(), "lead_low": lead_low, "lead_high": lead_high}
        row["mcnemar_p"] = 1.0 if model == winner else mcnemar(best[both], answers[both])
        for label in ("group", "form"):
            of = np.array([getattr(item, label) for item in tests])
            parts = {f"{label} {value}": answers[own & (of == value)] for value in sorted(set(of))}
            row |= {name: part.mean() if len(part) else np.nan for name, part in parts.items()}
        rows.append(row)
    scored = pd.DataFrame(rows)
    rivals = (scored["model"] != winner).to_numpy()
    scored["holm_p"] = 1.0  # the winner is compared with every rival: one claim among many is soon true by chance
    scored.loc[rivals, "holm_p"] = holm(scored.loc[rivals, "mcnemar_p"].to_numpy())
    return scored


def leads(
    table: pd.DataFrame, tests: Sequence[Item], winner: str, rival: str, seed: int
) -> dict[str, dict[str, float]]:
    """The winner's lead over a rival in every group of items, with its paired 95 % interval, for that group alone.

    Of the items that both have scored.
    """
    difference = (table.loc[winner] - table.loc[rival]).to_numpy()
    groups = np.array([item.group for item in tests])[~np.isnan(difference)]
    difference = difference[~np.isnan(difference)]
    found = {}
    for group in sorted(set(groups)):
        own = difference[groups == group]
        low, high = interval(own, [group] * len(own), seed)
        found[str(group)] = {"lead": float(own.mean()), "lead_low": low, "lead_high": high}
    return found


def over_best_standard(
    scored: pd.DataFrame, table: pd.DataFrame, tests: Sequence[Item], winner: str, seed: int
) -> dict[str, Any] | None:
    """The best standard merge beside the winner, and the winner's `leads` over it; None where there is none.

    `scored` is what `scores` gives of `table`, with the `kind` of each model; that of the winner is its own.
    """
    others = scored[scored["kind"] == "standard merge"].set_index("model")["accuracy"]
    if others.empty:
        return None
    best = str(others.idxmax())
    return {"name": best, "groups": leads(table, tests, winner, best, seed)}


def unbeaten(scored: pd.DataFrame, winner: str) -> list[str]:
    """The rivals that the winner is not shown to beat, by a paired test corrected for their number (Holm, .05)."""
    beaten = (scored["lead"] > 0) & (scored["holm_p"] <= LEVEL)
    return [str(model) for model in scored.loc[~beaten & (scored["model"] != winner), "model"]]


def verdict(scored: pd.DataFrame, winner: str) -> str:
    """The result of `scores` in a sentence: whom the winner beats, or whom not, and who beats it."""
    rivals = scored[scored["model"] != winner].set_index("model")
    worse = [str(name) for name in rivals.index[(rivals["lead"] < 0) & (rivals["holm_p"] <= LEVEL)]]
    undecided = [name for name in unbeaten(scored, winner) if name not in worse]
    other = "" if winner == EVOLVED else "other "
    who = f"{winner}, which the search found nothing better than," if other else f"the {winner}"
    said = [f"worse than {', '.join(worse)}"] * bool(worse)
    said += [f"not shown to be better than {', '.join(undecided)}"] * bool(undecided)
    found = f"is {' and '.join(said)}" if said else f"beats every {other}expert and standard merge"
    return f"{who} {found} (McNemar, corrected for their number)"
