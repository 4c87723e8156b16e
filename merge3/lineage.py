"""Lineage: what a merge has from its parents and relatives, as priors of its answers.

Two sources tell about the items of a family of merges. Strangers are many and unlike it; parents and fully answered
relatives are like it and few. `fit` combines them in one item fit: strangers count the less the more their answers
differ from the family's, and how much is chosen by predicting the family's own members. `predictor` is the model of a
candidate's answers, given its parents'. Knows neither subsets nor scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from merge3.irt import ItemParameters, Predictor, fit_abilities, fit_items, loglikelihood, probability

LEAST = 0.01  # strangers that would count less than this share of the nearest are left out
CONTRAST = 0.7  # prior deviation of what a merge has from one parent rather than from the others
TAIL = 4.0  # degrees of freedom of the prior: heavy enough for candidates that collapsed


@dataclass(frozen=True)
class Trust:
    """How much strangers count in the item fit of a family."""

    share: float = 1.0
    """The count of the nearest stranger; a member of the family counts 1."""
    width: float = np.inf
    """Distance, in share of items, at which the count of a stranger falls by a factor e."""


TRUSTS = (
    Trust(),
    Trust(width=0.1),
    Trust(width=0.05),
    Trust(share=0.2),
    Trust(share=0.2, width=0.1),
    Trust(share=0.03),
    Trust(share=0.005),
)


def counts(
    strangers: Float[np.ndarray, "strangers items"], family: Float[np.ndarray, "family items"], trust: Trust
) -> Float[np.ndarray, " strangers"]:
    """How much each stranger counts: share exp(-(d - d_nearest) / width), d its distance to the nearest of the family.

    The distance of two models is the share of items, of those both answered, on which one is right and the other not.
    """
    if not len(strangers) or not len(family):
        return np.full(len(strangers), trust.share)
    distance = np.min([np.nanmean(np.abs(strangers - member), axis=1) for member in family], axis=0)
    return np.asarray(trust.share * np.exp(-(distance - distance.min()) / trust.width))


def fit(
    strangers: Float[np.ndarray, "strangers items"],
    family: Float[np.ndarray, "family items"],
    trust: Trust | None = None,
) -> tuple[ItemParameters, Trust]:
    """Item parameters of a family, and the trust in strangers that they are fitted with.

    Parents and relatives count once each. Where no trust is given, `choose_trust` finds one.

    Raises:
        ValueError: fewer than two distinct models in all.
    """
    trust = trust or choose_trust([(strangers, family)])
    weight = counts(strangers, family, trust)
    near = weight > LEAST * trust.share
    table = np.vstack([strangers[near], family])
    return fit_items(table, "em", 1, 0, np.concatenate([weight[near], np.ones(len(family))])), trust


def choose_trust(
    families: Sequence[tuple[Float[np.ndarray, "strangers items"], Float[np.ndarray, "members items"]]],
    choices: Sequence[Trust] = TRUSTS,
    folds: int = 4,
) -> Trust:
    """The trust in strangers that predicts the families' own members best: likelihood of answers left out.

    Each family is (strangers, its parents and relatives answered in full). A part of its members is left out of the
    fit; half of their answers give their abilities, the other half are predicted. Where a family has one member, or
    there are no strangers, nothing can be learnt of it: the first choice is the answer if that is so of all.
    """
    gained = np.zeros(len(choices))
    for strangers, family in families:
        if len(family) < 2 or not len(strangers):
            continue
        half = np.arange(family.shape[1]) % 2 == 0
        for part in np.array_split(np.arange(len(family)), min(folds, len(family))):
            for number, trust in enumerate(choices):
                items, _ = fit(strangers, np.delete(family, part, axis=0), trust)
                for shown in (half, ~half):
                    P = probability(items, fit_abilities(items, np.where(shown, family[part], np.nan))[0])
                    gained[number] += len(part) * loglikelihood(P[:, ~shown], family[part][:, ~shown])
    return choices[int(np.argmax(gained))]


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


def predictor(
    items: ItemParameters,
    parents: Float[np.ndarray, "parents items"],
    shift: Sequence[float] = (0.0,),
    spread: float = 0.4,
    inheritance: float = 1.5,
    inheritance_spread: float = 0.7,
) -> Predictor:
    """A candidate's answers given its parents': logit P_i = a_i · theta - b_i + g r_i + sum_k h_k q_ik.

    r_i is the sum of the parents' residuals on item i, q_ik their contrasts: theta says how much the candidate knows, g
    how much of its parents' particulars, h from which of them. Student t of `TAIL` degrees of freedom: theta around the
    parents' mean (+ `shift`), g around `inheritance`, h around 0.
    """
    abilities, residual = residuals(items, parents)
    apart = contrasts(residual)
    design = np.column_stack([items.discrimination, residual.sum(axis=0), apart])
    centre = np.concatenate([abilities.mean(axis=0) + np.asarray(shift), [inheritance], np.zeros(apart.shape[1])])
    scale = np.array([spread] * items.dimensions + [inheritance_spread] + [CONTRAST] * apart.shape[1])
    return Predictor(design, -items.difficulty, centre, np.diag(scale**-2), TAIL)
