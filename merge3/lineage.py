"""Lineage: what a merge has from its parents and relatives, as priors of its answers.

Two sources tell about the items of a family of merges. Strangers are many and unlike it; parents and fully answered
relatives are like it and few. `fit` combines them: the strangers' item fit is the prior, from which the relatives'
answers move each item. `predictor` is the model of a candidate's answers, given its parents' and relatives'. Knows
neither subsets nor scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from merge3.irt import ItemParameters, Predictor, adapt_items, fit_abilities, fit_items, probability

CONTRAST = 1.5  # prior deviation of what a merge has from one parent rather than from the others
LIKENESS = 3.0  # prior deviation of what a merge shares with one relative rather than with the others
TAIL = 4.0  # degrees of freedom of the prior: heavy enough for candidates that collapsed
COMPLEMENT = 0.7  # abilities that a merge is expected above its parents' mean, where they disagree on every item
DIVERSITY = 0.7  # deviation of a merge's ability from that, where they disagree on every item; by its square root
LEAST_SPREAD = 0.1  # deviation of the ability of a merge of parents that agree on all
KEPT = 4  # candidates that a prior counts as when it learns from others
SHARED_ERROR = 0.045  # of a score, where few strangers and no relatives tell
MANY = 200  # strangers, that tell several dimensions apart
PLANE, SPACE = 2, 5  # dimensions, to choose items by and to read answers by


@dataclass(frozen=True)
class Family:
    """What is known of a family before a candidate is asked."""

    items: ItemParameters
    """As the family sees them."""
    model: Predictor | None
    """Of a merge's answers; None without parents."""
    draft: Predictor | None
    """The same in as many dimensions as the items have, by which items are chosen before any is asked."""
    interview: Predictor | None
    """That by which each next item is chosen for one candidate. Without relatives it is of ability alone: from which
    parent a merge has it would use up the answers."""
    shared_error: float = 0.0
    """Deviation of the error that the scores of all its merges share: `SHARED_ERROR` where neither relatives nor `MANY`
    strangers tell how hard the items are for a merge of these parents, else 0. By merges of benchmarks/estimation.py
    without relatives it is .046 in the tiny world, .044 in the demonstration."""


def fit(
    strangers: Float[np.ndarray, "strangers items"],
    parents: Float[np.ndarray, "parents items"],
    relatives: Float[np.ndarray, "relatives items"],
) -> ItemParameters:
    """Item parameters of a family, from the answers of strangers and of its own: `fit_each` of one family."""
    return fit_each(strangers, [(parents, relatives)])[0].items


def fit_each(
    strangers: Float[np.ndarray, "strangers items"],
    families: Sequence[tuple[Float[np.ndarray, "_parents items"], Float[np.ndarray, "_relatives items"]]],
) -> list[Family]:
    """What is known of each family of (parents, relatives): the strangers' fit, moved by the relatives' answers.

    The strangers say how steep an item is, and relatives hardly move that; how hard it is they may say anew
    (`irt.adapt_items`). The parents' answers are left to `predictor`, which knows what each has of its own; but with
    fewer than two distinct strangers, all who are known are fitted alike. `MANY` strangers are fitted in several
    dimensions where there are no relatives: items are chosen in `PLANE`, answers are read in `SPACE` where there are
    parents, near whose place a candidate's is, else in `PLANE`, too.

    Raises:
        ValueError: fewer than two distinct models in all.
    """
    distinct = len(np.unique(np.nan_to_num(strangers, nan=-1.0), axis=0))
    if distinct < 2:
        alike = [fit_items(np.vstack([strangers, *family]), "em", 1, 0) for family in families]
        return [
            _family(items, predictor(items, parents) if len(parents) else None, relatives, distinct)
            for items, (parents, relatives) in zip(alike, families, strict=True)
        ]
    if distinct >= MANY and not any(len(relatives) for _, relatives in families):
        plane = fit_items(strangers, "mirt", PLANE, 0)
        space = fit_items(strangers, "mirt", SPACE, 0) if any(len(parents) for parents, _ in families) else plane
        return [_placed(plane, space, parents) for parents, _ in families]
    line = fit_items(strangers, "em", 1, 0)
    return [
        _family(
            adapt_items(line, relatives) if len(relatives) else line,
            predictor(line, parents, relatives=relatives) if len(parents) else None,
            relatives,
            distinct,
        )
        for parents, relatives in families
    ]


def _placed(plane: ItemParameters, space: ItemParameters, parents: Float[np.ndarray, "parents items"]) -> Family:
    """A family without relatives, of many strangers."""
    if not len(parents):
        return Family(plane, None, None, None)
    model = predictor(space, parents)
    return Family(plane, model, predictor(plane, parents), model.first(SPACE))


def _family(
    items: ItemParameters, model: Predictor | None, relatives: Float[np.ndarray, "relatives items"], strangers: int
) -> Family:
    """A family that is read by the dimensions of its items, of so many distinct strangers."""
    if model is None or len(relatives):
        return Family(items, model, model, model)
    return Family(items, model, model, model.first(items.dimensions), SHARED_ERROR if strangers < MANY else 0.0)


def expected(parents: Float[np.ndarray, "parents items"]) -> tuple[float, float]:
    """How much abler than its parents' mean a merge is expected to be, and the deviation of that, in abilities.

    Parents that know different things make merges that know more than they do, and that differ; merges of parents that
    answer alike answer like them. With d the share of items on which two parents differ, averaged over the pairs:
    `COMPLEMENT` d, and sqrt(`LEAST_SPREAD`² + `DIVERSITY`² d). Chosen by hand on merges of
    benchmarks/estimation.py.
    """
    pairs = [np.abs(a - b).mean() for i, a in enumerate(parents) for b in parents[:i]]
    differ = float(np.mean(pairs)) if pairs else 0.0
    return COMPLEMENT * differ, float(np.hypot(LEAST_SPREAD, DIVERSITY * np.sqrt(differ)))


def residuals(
    items: ItemParameters, parents: Float[np.ndarray, "parents items"]
) -> tuple[Float[np.ndarray, "parents dimensions"], Float[np.ndarray, "parents items"]]:
    """The parents' abilities, and answer - P(right): what each knows beyond what its ability tells."""
    abilities = fit_abilities(items, parents)[0]
    return abilities, parents - probability(items, abilities)


def contrasts(residual: Float[np.ndarray, "parents items"]) -> Float[np.ndarray, "items contrasts"]:
    """The directions, one fewer than parents, in which the parents' residuals differ; their order does not matter."""
    centred = residual - residual.mean(axis=0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    keep = values > 1e-9
    return np.asarray(centred.T @ vectors[:, keep])


def raised(items: ItemParameters, shift: Sequence[float]) -> Float[np.ndarray, " dimensions"]:
    """A shift of ability in each dimension: one number is along the items' mean discrimination."""
    if len(shift) == items.dimensions:
        return np.asarray(shift)
    way = items.discrimination.mean(axis=0)
    return np.asarray(shift[0] * way / np.linalg.norm(way))


def learnt(
    centre: Float[np.ndarray, " unknowns"],
    scale: Float[np.ndarray, " unknowns"],
    found: Float[np.ndarray, "models unknowns"],
) -> tuple[Float[np.ndarray, " unknowns"], Float[np.ndarray, " unknowns"]]:
    """The shift of a prior's centre, and its scale, after models were found at `found`; the prior counts as `KEPT`.

    As if `KEPT` models of the prior's mean and variance were there, too.
    """
    away = found - centre
    shift = away.sum(axis=0) / (KEPT + len(found))
    variance = (KEPT * (scale**2 + shift**2) + ((away - shift) ** 2).sum(axis=0)) / (KEPT + len(found))
    return shift, np.sqrt(variance)


def predictor(
    items: ItemParameters,
    parents: Float[np.ndarray, "parents items"],
    shift: Sequence[float] | None = None,
    spread: float | None = None,
    inheritance: float = 1.5,
    inheritance_spread: float = 0.7,
    relatives: Float[np.ndarray, "relatives items"] | None = None,
) -> Predictor:
    """A candidate's answers given its parents': logit P_i = a_i · theta - b_i + g r_i + sum_k h_k q_ik.

    r_i is the sum of the parents' residuals on item i, q_ik their contrasts: theta says how much the candidate knows, g
    how much of its parents' particulars, h from which of them. Student t of `TAIL` degrees of freedom: theta around the
    parents' mean (+ `shift`, of scale `spread`: what is `expected` where None), g around `inheritance`, h around 0.

    Relatives answered in full move each item from where the parents' residuals expect it, -b_i + `inheritance` r_i
    (`irt.adapt_items`: items of one dimension), so that what they share with the parents counts once: g is then around
    0. Their abilities move the centre and the scale of theta's (`learnt`). What each has beyond all this, relatives do
    not share: its contrasts are further directions, as the parents' are, of deviation `LIKENESS` around 0.
    """
    if shift is None or spread is None:
        usual = expected(parents)
        shift, spread = usual[:1] if shift is None else shift, usual[1] if spread is None else spread
    abilities, residual = residuals(items, parents)
    common, apart, D = residual.sum(axis=0), contrasts(residual), items.dimensions
    centre = np.concatenate([abilities.mean(axis=0) + raised(items, shift), [inheritance], np.zeros(apart.shape[1])])
    scale = np.array([spread] * D + [inheritance_spread] + [CONTRAST] * apart.shape[1])
    moved, family = items, np.empty((0, len(items))) if relatives is None else relatives
    if len(family):
        moved = adapt_items(ItemParameters(items.discrimination, items.difficulty - inheritance * common), family)
        centre[D] = 0.0
    design = np.column_stack([moved.discrimination, common, apart])
    if len(family):
        found, _ = Predictor(design, -moved.difficulty, centre, np.eye(len(centre)) / 9).fit(family)
        away, scale[:D] = learnt(centre[:D], scale[:D], found[:, :D])
        centre[:D] += away
        alike = Predictor(design, -moved.difficulty, centre, np.diag(scale**-2))
        beyond = contrasts(np.nan_to_num(family - alike.probability(alike.fit(family)[0])))
        design = np.column_stack([design, beyond])
        centre = np.append(centre, np.zeros(beyond.shape[1]))
        scale = np.append(scale, np.full(beyond.shape[1], LIKENESS))
    return Predictor(design, -moved.difficulty, centre, np.diag(scale**-2), TAIL)
