"""Compare models on the same items: intervals by bootstrap, and a paired test.

Items are resampled within their groups, so that every group weighs what it weighs in the benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

RESAMPLES = 10_000


def interval(
    values: Float[np.ndarray, " items"], groups: Sequence[str], seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron 1979), resampled within groups.

    `values` are scores in [0, 1] of one model, or differences of two models' scores: then the interval is paired.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    labels = np.asarray(groups)
    totals = np.zeros(RESAMPLES)
    for group in sorted(set(groups)):
        members = values[labels == group]
        totals += members[generator.integers(0, len(members), (RESAMPLES, len(members)))].sum(1)
    low, high = np.quantile(totals / len(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
