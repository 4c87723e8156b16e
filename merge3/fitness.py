"""The inner loop: recipe -> merge -> answers -> estimate. The one place where extract, estimate and merging meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from merge3.asker import Asker
from merge3.estimate import CONTINUOUS, Estimate, Estimator, Known
from merge3.grouped import Objective
from merge3.items import Item
from merge3.ledger import Cost
from merge3.recipe import Recipe

TIE = 0.02  # accuracy that the margins of all questions are worth: less than one more right answer
NOTHING = Cost()
MOST_FAILED = 0.5  # share of questions without an answer beyond which a candidate has no estimate


@dataclass(frozen=True)
class Evaluation:
    """A candidate's estimated score; None where its model is broken, or left too many questions without an answer.

    `cost` is what was spent now, `failed` how many questions were not scored (truncated replies, for instance): of a
    broken model, all.

    `margin` is in [-1, 1]: how far the right options lead, over all questions. Among candidates that give the same
    answers the one that is surer of them is fitter: twenty questions alone cannot tell good merges apart. The fitness
    is raised by `tie` for it; not where the estimator reads the margins itself.
    """

    estimate: Estimate | None
    cost: Cost
    margin: float = 0.0
    tie: float = 0.0
    failed: int = 0
    objective: float | None = None  # where it is another than the score on all items
    groups: Mapping[str, Estimate] = field(default_factory=dict)  # where the objective is made of groups
    correct: Float[np.ndarray, " asked"] | None = field(default=None, compare=False)
    """Right 1, wrong 0, not scored NaN; None for a broken model. The estimate follows from it, or from `margins`."""
    margins: Float[np.ndarray, " asked"] | None = field(default=None, compare=False)
    """How far each right option leads, in nats, NaN where not scored; None for a broken model."""

    @property
    def value(self) -> float:
        """What is searched for: the objective, or the estimated score; -inf for a broken model."""
        if self.estimate is None:
            return -np.inf
        return self.estimate.score if self.objective is None else self.objective

    @property
    def fitness(self) -> float:
        """The value, and a little for the margin; -inf for a broken model."""
        return self.value + self.tie

    def front(self, groups: Sequence[str]) -> tuple[float, ...]:
        """The fitness in every group, where a front is searched for; -inf for a broken model."""
        if self.estimate is None:
            return (-np.inf,) * len(groups)
        return tuple(self.groups[group].score + self.tie for group in groups)

    def errors(self, groups: Sequence[str]) -> tuple[float, ...]:
        """Their standard errors; NaN for a broken model."""
        if self.estimate is None:
            return (np.nan,) * len(groups)
        return tuple(self.groups[group].standard_error for group in groups)


class Fitness:
    """The estimated accuracy of a recipe on all items, from its answers to the subset that `known` names."""

    def __init__(
        self,
        asker: Asker,
        items: Sequence[Item],
        estimator: Estimator,
        known: Known,
        objective: Objective | None = None,
    ) -> None:
        """`items` are all N items, in the order of `known`.

        `objective` is what is searched for where that is not the estimated score: a candidate that leaves one of its
        groups without an answer has no estimate.
        """
        self.asker = asker
        self.questions = [items[i] for i in known.subset]
        self.estimator = estimator
        self.known = known
        self.objective = objective

    @cached_property
    def cost(self) -> Cost:
        """What a model's answers to the questions take, if none is kept."""
        return self.asker.cost(self.questions)

    def expect(self, recipes: Sequence[Recipe]) -> None:
        """Say which recipes come next: they are merged together, see `Asker.expect`."""
        self.asker.expect(recipes, self.questions)

    def __call__(self, recipe: Recipe) -> Evaluation:
        """Ask and estimate; the same recipe gives the same estimate however often."""
        asked = self.asker.ask(recipe, self.questions)
        if asked.answers is None:
            return Evaluation(None, asked.cost, failed=len(self.questions))
        correct = self.asker.correct(self.questions, asked.answers)
        return self.judge(correct, self.asker.margins(self.questions, asked.answers), asked.cost)

    def judge(
        self, correct: Float[np.ndarray, " asked"], margins: Float[np.ndarray, " asked"], cost: Cost = NOTHING
    ) -> Evaluation:
        """Estimate from answers to the questions, right 1, wrong 0, not scored NaN, and their margins, in nats."""
        scored = ~np.isnan(correct)
        failed = int((~scored).sum())
        continuous = self.estimator in CONTINUOUS
        given = margins if continuous else correct
        groups = self.objective(given) if self.objective else {}
        if failed > MOST_FAILED * len(correct) or groups is None:
            return Evaluation(None, cost, failed=failed, correct=correct, margins=margins)
        value = self.objective.value(groups) if self.objective else None
        estimate = self.estimator(given[scored], self.known.answered(scored))
        margin = float(np.tanh(margins[scored]).mean())
        tie = 0.0 if continuous else TIE * margin
        return Evaluation(estimate, cost, margin, tie, failed, value, groups, correct, margins)

    def anew(self, evaluation: Evaluation, counted: Bool[np.ndarray, " asked"]) -> Evaluation:
        """The evaluation of a whole model by those answers alone that are `counted`."""
        assert evaluation.correct is not None
        assert evaluation.margins is not None
        correct, margins = (np.where(counted, given, np.nan) for given in (evaluation.correct, evaluation.margins))
        return self.judge(correct, margins, evaluation.cost)
