"""The finalists of a search: which items they are asked, and who of them is ahead.

The search's own items flatter the leader that it found by them. So finalists are asked `fresh` ones, in rounds of which
only the better half of them goes on (`halves`), and a leader counts by what surface and fresh items say together
(`combined`). All of them answer the same questions, so that a hard one is hard for all (`paired`), and one that a
finalist left unanswered counts for none (`on_common`). Knows estimates and surfaces; knows no search's history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from merge3 import surface
from merge3.estimate import Z90, Calibration, Choose, Known
from merge3.evolve import Search
from merge3.extract import METHODS, by_margins
from merge3.fitness import Evaluation, Fitness
from merge3.recipe import Recipe

Leader = tuple[Recipe, float, float]  # with the mean and deviation of its posterior; NaN where the search knows none

JOINING = 2  # of the leaders that are ahead, so many answer all items at once
HALVES = (4, 2, 1)  # finalists are asked a quarter of the fresh items, the better half of them a half, ...


def fresh(known: Known, groups: Sequence[str], count: int, seed: int) -> Known:
    """What is known, with a subset of up to `count` other items, drawn uniformly within groups.

    Where the search asks every item there are no others: the subset stays.
    """
    rest = np.setdiff1d(np.arange(len(known.items)), known.subset)
    if len(rest) == 0:
        return known
    picked, weights = METHODS["uniform"](
        known.items.take(rest), known.parent_abilities, min(count, len(rest)), [groups[i] for i in rest], seed
    )
    return replace(known, subset=rest[picked], weights=weights, calibration=Calibration())


def halves(known: Known, groups: Sequence[str]) -> list[Known]:
    """The subset by a quarter, a half, and whole of each group, its first item always: each part within the next.

    The whole alone where it is all items.
    """
    if len(known.unasked) == 0:
        return [known]
    labels = np.array([groups[i] for i in known.subset])
    place = np.array([(labels[:n] == label).sum() for n, label in enumerate(labels)])  # within its group
    parts = []
    for step in HALVES:
        kept = place % step == 0
        weights = known.weights.copy()
        for label in set(groups):  # a group weighs what it weighs in all
            mine = labels == label
            weights[mine] *= known.weights[mine].sum() / max(known.weights[mine & kept].sum(), 1e-300)
        parts.append(replace(known, subset=known.subset[kept], weights=weights[kept] / weights[kept].sum()))
    return parts


def whole(known: Known) -> Known:
    """What is known, with all items as the subset."""
    count = len(known.items)
    return replace(known, subset=np.arange(count), weights=np.full(count, 1 / count), calibration=Calibration())


def told_apart(known: Known, others: Known, groups: Sequence[str], seed: int) -> Choose:
    """Chooses as many items as `known` asks by the relatives' margins, none of those that `others` asks.

    Where none would be left of a group, its last seats lost to the others', the items of `known` stay.
    """
    rest = np.setdiff1d(np.arange(len(known.items)), others.subset)
    labels = [groups[i] for i in rest]

    def choose(relatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen, weights = by_margins(relatives[:, rest], len(known.subset), labels, seed)
        if {groups[i] for i in known.subset} - {labels[i] for i in chosen}:
            return known.subset, known.weights
        return rest[chosen], weights

    return choose


def finals(leaders: int, rounds: Sequence[int], everything: int = 0) -> int:
    """What leaders take at most, in answers or tokens: all of them the first round's, the better half the second's, ...

    In the end the `JOINING` best take `everything`.
    """
    total = before = 0
    for number, size in enumerate(rounds):
        leaders = (leaders + 1) // 2 if number else leaders
        total, before = total + leaders * (size - before), size
    return total + min(JOINING, leaders) * max(0, everything - before)


def contenders(
    pooled: surface.Surface, search: Search, asked: Float[np.ndarray, "candidates genes"]
) -> Float[np.ndarray, "some genes"]:
    """The surface's highest point and its highest that was asked, where the search would go on, where it began; others.

    The others are all that were asked, the highest first.
    """
    first = surface.best(pooled, search.seed)
    if not len(asked):
        return np.vstack([first, search.mean, search.start])
    order = np.argsort(-pooled.predict(asked)[0], kind="stable")
    return np.vstack([first, asked[order[0]], search.mean, search.start, asked[order[1:]]])


def on_common(fitness: Fitness, made: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """The whole ones' evaluations by those questions alone that all of them had scored.

    By questions of its own, who leaves hard ones unfinished is ahead. While these in common are too few, who left most
    is out.
    """
    found = {name: evaluation for name, evaluation in made.items() if evaluation.estimate}
    while found:
        correct = np.array([one.correct for one in found.values() if one.correct is not None])
        scored = ~np.isnan(correct).any(axis=0)
        if scored.all():
            return found
        anew = {name: fitness.anew(one, scored) for name, one in found.items()}
        if all(evaluation.estimate for evaluation in anew.values()):
            return anew
        del found[max(found, key=lambda name: found[name].failed)]
    return {}


def ranked(leaders: Mapping[str, Leader], fair: Mapping[str, Evaluation], fitness: Fitness) -> list[str]:
    """The leaders that answered alike, the best first by surface and fresh items together, see `combined`."""
    means, deviations = np.array([leaders[name][1:] for name in fair]).T
    found = np.array([evaluation.value for evaluation in fair.values()])
    names, own = list(fair), own_variance(list(fair.values()), fitness)
    return [names[place] for place in np.argsort(-combined(means, deviations, found, own), kind="stable")]


def combined(
    means: Float[np.ndarray, " leaders"],
    deviations: Float[np.ndarray, " leaders"],
    found: Float[np.ndarray, " leaders"],
    variance: float,
) -> Float[np.ndarray, " leaders"]:
    """Leaders' scores by the surface and by fresh items together, on the level of the fresh ones.

    Args:
        means: by the surface; NaN where it knows nothing of a leader, which then stands by what was found.
        deviations: of the means.
        found: by the fresh items.
        variance: of what was found, see `own_variance`.
    """
    known = ~np.isnan(means)
    if not known.any():
        return found
    searched = (np.maximum(deviations[known], surface.UNSEEN) ** 2).mean()
    share = searched / (searched + variance)
    level = (found - means)[known].mean()
    scores: np.ndarray = np.where(known, (1 - share) * (means + level) + share * found, found)
    return scores


def combined_by_group(
    means: Float[np.ndarray, "leaders groups"],
    deviations: Float[np.ndarray, "leaders groups"],
    found: Float[np.ndarray, "leaders groups"],
    errors: Float[np.ndarray, "leaders groups"],
) -> tuple[Float[np.ndarray, "leaders groups"], Float[np.ndarray, " groups"]]:
    """As `combined`, each group by itself, in [0, 1], and half of each 90 % interval; `errors` are those of `found`."""
    own = (errors**2).mean(axis=0)
    searched = (np.maximum(deviations, surface.UNSEEN) ** 2).mean(axis=0)
    share = searched / (searched + own)
    scores = np.clip((1 - share) * (means + (found - means).mean(axis=0)) + share * found, 0.0, 1.0)
    return scores, Z90 * np.sqrt(share * own + own / len(found))


def own_variance(evaluations: Sequence[Evaluation], fitness: Fitness) -> float:
    """The variance of what models that answered the same questions were found to be worth; see `paired`."""
    correct = np.array([one.correct for one in evaluations if one.correct is not None])
    if fitness.objective is None:
        return paired(correct, len(fitness.known.items))
    groups = np.array([question.group for question in fitness.questions])
    sizes = {
        group: round(share * len(fitness.known.items)) for group, share in fitness.objective.grouped.shares.items()
    }
    return fitness.objective.variance({group: paired(correct[:, groups == group], sizes[group]) for group in sizes})


def paired(correct: Float[np.ndarray, "models asked"], items: int) -> float:
    """The variance of a model's mean answer, but for what all models' answers to an item have in common.

    All answered the same questions, out of `items` in all: a hard item is hard for all of them, and says nothing of
    which is better.
    """
    answers = correct[:, ~np.isnan(correct).any(axis=0)]
    models, n = answers.shape
    if models < 2 or n < 2:
        return 0.25
    own = answers - answers.mean(axis=0)
    own -= own.mean(axis=1, keepdims=True)
    return float((own**2).sum() / ((models - 1) * (n - 1)) / n * (1 - n / items))
