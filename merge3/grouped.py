"""Estimates by group: what a candidate is worth in each language or subject, from the same answers.

Each group is a benchmark of its own: its items' parameters, the parents' answers to them, the items of the subset that
belong to it; but where margins are read, those of all items tell about each group. An objective makes one value of
them, or looks for a front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from merge3.estimate import CONTINUOUS, Estimate, Estimator, Known
from merge3.front import OBJECTIVES, worst

Weights = Mapping[str, int | float]


class Grouped:
    """Takes a candidate's answers to the subset to an estimate a group."""

    def __init__(self, estimator: Estimator, known: Known, groups: Sequence[str]) -> None:
        """`groups` are those of all N items of `known`.

        Raises:
            ValueError: a group has no item in the subset, or there is not one group an item.
        """
        if len(groups) != len(known.items):
            raise ValueError(f"expected one group an item, got {len(groups)} groups for {len(known.items)} items")
        labels = np.asarray(groups, dtype=str)
        self.estimator = estimator
        self.known = known
        self.shares = {str(group): float((labels == group).mean()) for group in sorted(set(groups))}
        self._members = {group: np.flatnonzero(labels == group) for group in self.shares}
        self._parts = {}
        for group, members in self._members.items():
            asked = np.flatnonzero(labels[known.subset] == group)
            if len(asked) == 0:
                raise ValueError(
                    f"none of the {len(known.subset)} items that are asked is of group {group!r}: ask more "
                    "(extract.items; for finalists evolve.finalist_items), or search for the mean"
                )
            if estimator in CONTINUOUS:  # which heeds the answers to all items, see `_by_margins`
                continue
            part = replace(
                known,
                items=known.items.take(members),
                subset=np.searchsorted(members, known.subset[asked]),
                weights=known.weights[asked] / known.weights[asked].sum(),
                parents=known.parents[:, members],
                population=None if known.population is None else known.population[:, members],
                family=None if known.family is None else known.family.take(members),
                relatives=None,
            )
            self._parts[group] = (asked, part)

    def __call__(self, answers: Float[np.ndarray, " asked"]) -> dict[str, Estimate]:
        """The estimate of every group, from the answers to the whole subset, in its order.

        Answers that are not scored (NaN) are left out, and so is a group of which none is.
        """
        if self.estimator in CONTINUOUS:
            return self._by_margins(answers)
        found = {}
        for group, (asked, part) in self._parts.items():
            scored = ~np.isnan(answers[asked])
            if scored.any():
                found[group] = self.estimator(answers[asked][scored], part.answered(scored))
        return found

    def _by_margins(self, margins: Float[np.ndarray, " asked"]) -> dict[str, Estimate]:
        """The estimate of every group, by the margins of all items."""
        scored = ~np.isnan(margins)
        if not scored.any():
            return {}
        known = self.known.answered(scored)
        return {
            group: self.estimator(margins[scored], known.counting(members)) for group, members in self._members.items()
        }


class Objective:
    """What is searched for, out of a candidate's answers to the subset: its groups' estimates, one value of them."""

    def __init__(
        self,
        wanted: str | Weights,
        estimator: Estimator,
        known: Known,
        groups: Sequence[str],
        start: Mapping[str, float] | None = None,
    ) -> None:
        """`groups` are those of all N items of `known`.

        Args:
            wanted: `worst`, the worst group; `gain`, the least gain of a group over `start`; weights of groups, for a
                weighted mean; or `pareto` or `mean`, whose value is the mean, in which a group weighs its share of the
                items.
            estimator: of each group's score.
            known: about all items.
            groups: of every item.
            start: for `gain`, the scores by group of where the search begins.

        Raises:
            ValueError: a group has no item in the subset; weights name another group, are negative, or are all 0; or
                what is gained on is not known of every group.
        """
        self.grouped = Grouped(estimator, known, groups)
        self.front = wanted == "pareto"
        self.weights = self.grouped.shares
        self.combine = OBJECTIVES["worst" if wanted in ("worst", "gain") else "mean"]
        self.start = dict.fromkeys(self.weights, 0.0)
        if isinstance(wanted, Mapping):
            self.weights = dict.fromkeys(self.weights, 0.0) | weights_of(wanted, list(self.grouped.shares))
        if wanted == "gain":
            if start is None or set(start) != set(self.weights):
                raise ValueError(f"a gain needs scores to gain on by group, {sorted(self.weights)}; got {start}")
            self.start = dict(start)

    def __call__(self, answers: Float[np.ndarray, " asked"]) -> dict[str, Estimate] | None:
        """The estimate of every group; None where no answer of a group is scored."""
        found = self.grouped(answers)
        return found if len(found) == len(self.weights) else None

    def value(self, estimates: Mapping[str, Estimate]) -> float:
        """One value of the groups' estimates."""
        gains = {group: estimate.score - self.start[group] for group, estimate in estimates.items()}
        return self.combine(gains, self.weights)

    def variance(self, groups: Mapping[str, float]) -> float:
        """That of the value, from the groups' own: of the one that decides, whichever it is, their mean."""
        if self.combine is worst:
            return float(np.mean(list(groups.values())))
        whole = math.fsum(self.weights.values())
        return math.fsum((self.weights[group] / whole) ** 2 * own for group, own in groups.items())


def weights_of(wanted: Weights, groups: Sequence[str]) -> dict[str, float]:
    """The weights of groups, if they can be those of a mean.

    Raises:
        ValueError: they name another group, are negative, or are all 0.
    """
    if unknown := [group for group in wanted if group not in groups]:
        raise ValueError(f"the objective weighs group {unknown[0]!r}; there are {list(groups)}")
    weights = {group: float(weight) for group, weight in wanted.items()}
    if min(weights.values(), default=0.0) < 0 or not 0 < math.fsum(weights.values()) < math.inf:
        raise ValueError(f"the objective's weights must be 0 or more, and one above 0, got {dict(wanted)}")
    return weights
