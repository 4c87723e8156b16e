"""Many objectives: scores by group made into fitness, and the front of what no candidate betters.

An objective takes a candidate's scores by group (a language) to one fitness, or to a tuple where a front is sought.
Higher is better everywhere. Knows scores; knows neither models nor searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float

Scores = Mapping[str, float]  # by group, in [0, 1]


def mean(scores: Scores, weights: Mapping[str, float]) -> float:
    """The weighted mean of the groups; `weights` are shares of each group, any scale."""
    return math.fsum(weights[group] * scores[group] for group in scores) / math.fsum(weights[g] for g in scores)


def worst(scores: Scores, weights: Mapping[str, float]) -> float:  # noqa: ARG001 - the signature of an objective
    """The score of the worst group."""
    return min(scores.values())


def mean_and_worst(scores: Scores, weights: Mapping[str, float]) -> tuple[float, float]:
    """The weighted mean and the worst group: what a front of two objectives is made of, however many groups."""
    return mean(scores, weights), worst(scores, weights)


def pair(scores: Scores, weights: Mapping[str, float]) -> tuple[float, float]:
    """Two groups against one another.

    Raises:
        ValueError: there are not two groups.
    """
    if len(scores) != 2:
        raise ValueError(f"the objective pair needs two groups, got {list(scores)}: use mean_and_worst")
    first, second = (scores[group] for group in weights)
    return first, second


OBJECTIVES: dict[str, Callable[[Scores, Mapping[str, float]], float | tuple[float, float]]] = {
    "mean": mean,
    "worst": worst,
    "mean_and_worst": mean_and_worst,
    "pair": pair,
}


def nondominated(values: Float[np.ndarray, "candidates objectives"]) -> Bool[np.ndarray, " candidates"]:
    """Whether no other candidate is as good in all objectives and better in one; of equals all stay."""
    at_least = (values[:, None] >= values[None]).all(axis=2)
    better = (values[:, None] > values[None]).any(axis=2)
    return np.asarray(~(at_least & better).any(axis=0))


def hypervolume(values: Float[np.ndarray, "candidates 2"], reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """The area that two objectives' candidates dominate above the reference point (Zitzler & Thiele 1999).

    0 where none is above it in both. A sweep from the best of the first objective down.
    """
    inside = values[(values > reference).all(axis=1)]
    area, height = 0.0, reference[1]
    for first, second in sorted(inside.tolist(), reverse=True):
        if second > height:
            area += (first - reference[0]) * (second - height)
            height = second
    return area


def knee(values: Float[np.ndarray, "candidates 2"]) -> int:
    """The candidate of the front that lies furthest beyond the line through the front's two ends (Das 1999).

    Objectives are scaled to the front's own ranges. Of a front without inside, or one that bends nowhere outward, the
    candidate of the best sum.

    Raises:
        ValueError: no candidate.
    """
    if len(values) == 0:
        raise ValueError("a front needs one candidate, got none")
    front = np.flatnonzero(nondominated(values))
    points = values[front]
    span = np.ptp(points, axis=0)
    # on the scaled front the ends are (1, 0) and (0, 1): beyond their line the sum exceeds 1
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
    beyond = scaled.sum(axis=1)
    if beyond.max() <= 1 + 1e-12:
        beyond = points.sum(axis=1)
    return int(front[beyond.argmax()])
