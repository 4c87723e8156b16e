"""Estimates by group: what a candidate is worth in each language or subject, from the same answers.

Each group is a benchmark of its own: its items' parameters, the parents' answers to them, the items of the subset that
belong to it. An objective makes one value of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from merge3.estimate import Estimate, Estimator, Known
from merge3.front import OBJECTIVES


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
        self.shares = {str(group): float((labels == group).mean()) for group in sorted(set(groups))}
        self._parts = {}
        for group in self.shares:
            members = np.flatnonzero(labels == group)
            asked = np.flatnonzero(labels[known.subset] == group)
            if len(asked) == 0:
                raise ValueError(
                    f"none of the {len(known.subset)} items that are asked is of group {group!r}: ask more "
                    "(extract.items), or search for the mean"
                )
            part = replace(
                known,
                items=known.items.take(members),
                subset=np.searchsorted(members, known.subset[asked]),
                weights=known.weights[asked] / known.weights[asked].sum(),
                parents=known.parents[:, members],
            )
            self._parts[group] = (asked, part)

    def __call__(self, answers: Float[np.ndarray, " asked"]) -> dict[str, Estimate]:
        """The estimate of every group, from the answers to the whole subset, in its order.

        Answers that are not scored (NaN) are left out, and so is a group of which none is.
        """
        found = {}
        for group, (asked, part) in self._parts.items():
            scored = ~np.isnan(answers[asked])
            if scored.any():
                found[group] = self.estimator(answers[asked][scored], part.answered(scored))
        return found


def objective(
    name: str, estimator: Estimator, known: Known, groups: Sequence[str]
) -> Callable[[Float[np.ndarray, " asked"]], float | None]:
    """Takes a candidate's answers to the subset to one value of its groups' scores; a group weighs its share of items.

    The value is None where no answer of a group is scored.

    Args:
        name: a key of `front.OBJECTIVES` of one value.
        estimator: of each group's score.
        known: about all items.
        groups: of all N items of `known`.
    """
    grouped = Grouped(estimator, known, groups)

    def value(answers: Float[np.ndarray, " asked"]) -> float | None:
        scores = {group: estimate.score for group, estimate in grouped(answers).items()}
        if len(scores) < len(grouped.shares):
            return None
        found = OBJECTIVES[name](scores, grouped.shares)
        if isinstance(found, tuple):
            raise ValueError(f"the objective {name!r} has {len(found)} values: a search for one value needs one")
        return found

    return value
