"""Many objectives: scores by group made into fitness, and the front of what no candidate betters.

An objective takes a candidate's scores by group (a language) to one fitness; for a front each group is one. Higher is
better everywhere. Knows scores; knows neither models nor searches.
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


OBJECTIVES: dict[str, Callable[[Scores, Mapping[str, float]], float]] = {"mean": mean, "worst": worst}


def nondominated(values: Float[np.ndarray, "candidates objectives"]) -> Bool[np.ndarray, " candidates"]:
    """Whether no other candidate is as good in all objectives and better in one; of equals all stay."""
    at_least = (values[:, None] >= values[None]).all(axis=2)
    better = (values[:, None] > values[None]).any(axis=2)
    return np.asarray(~(at_least & better).any(axis=0))


def hypervolume(values: Float[np.ndarray, "candidates objectives"], reference: float = 0.0) -> float:
    """The volume that candidates dominate above the reference point (Zitzler & Thiele 1999).

    0 where none is above it in all objectives. By slices along the last objective: meant for fronts of some tens.
    """
    inside = values[(values > reference).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    if inside.shape[1] == 1:
        return float(inside.max() - reference)
    heights = np.unique(inside[:, -1])
    below = np.concatenate([[reference], heights[:-1]])
    slices = (
        hypervolume(inside[inside[:, -1] >= top, :-1], reference) * (top - low)
        for low, top in zip(below, heights, strict=True)
    )
    return math.fsum(slices)


def knee(values: Float[np.ndarray, "candidates objectives"]) -> int:
    """The candidate of the front that lies furthest beyond the line through the front's ends (Das 1999).

    Objectives are scaled to the front's own ranges; of three or more the plane is that on which they add up to 1. Of a
    front without inside, or one that bends nowhere outward, the candidate of the best sum.

    Raises:
        ValueError: no candidate.
    """
    if len(values) == 0:
        raise ValueError("a front needs one candidate, got none")
    front = np.flatnonzero(nondominated(values))
    points = values[front]
    span = np.ptp(points, axis=0)
    # on the scaled front the ends of two objectives are (1, 0) and (0, 1): beyond their line the sum exceeds 1
    beyond = ((points - points.min(axis=0)) / np.where(span > 0, span, 1.0)).sum(axis=1)
    if beyond.max() <= 1 + 1e-12:
        beyond = points.sum(axis=1)
    return int(front[beyond.argmax()])


def spread(values: Float[np.ndarray, "candidates objectives"], count: int) -> list[int]:
    """Up to `count` candidates of the front, the knee first, then each the furthest from those before."""
    front = np.flatnonzero(nondominated(values))
    chosen = [knee(values)]
    away = np.full(len(values), -1.0)
    away[front] = np.inf
    while len(chosen) < min(count, len(front)):
        away = np.minimum(away, np.abs(values - values[chosen[-1]]).max(axis=1))
        away[chosen] = -1.0
        chosen.append(int(away.argmax()))
    return chosen
