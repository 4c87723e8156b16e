"""Extract: which few items a candidate is asked, drawn once and shared by all candidates.

Every method shares the budget between the groups of items (languages, subjects) in proportion to their number
of items, and returns the indices, sorted, with weights that sum to 1. Knows the items' parameters; sees no
candidate.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from merge3.irt import ItemParameters, probability

Subset = tuple[Int[np.ndarray, " asked"], Float[np.ndarray, " asked"]]


def uniform(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],  # noqa: ARG001 - the signature of a method
    count: int,
    groups: Sequence[str],
    seed: int,
) -> Subset:
    """Items drawn at random within each group: the one subset whose weighted mean has no bias.

    (A group too small for a seat is the exception: it goes unseen, by every method.)

    Raises:
        ValueError: a count outside 1..items, or groups that are not one an item.
    """
    return _best_of_each_group(np.zeros(len(items)), count, groups, seed)


def fisher(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],
    count: int,
    groups: Sequence[str],
    seed: int,
) -> Subset:
    """The items of each group that tell most about a model as able as the parents; ties are broken by `seed`.

    Fisher's information of an item, I(θ) = |a|² P(θ) (1 - P(θ)), is averaged over the parents' abilities and
    their mean. Never score such a subset by its plain mean: it is 10-20 points off by design.

    Raises:
        ValueError: a count outside 1..items, or groups that are not one an item.
    """
    points = np.vstack([parent_abilities, parent_abilities.mean(axis=0)])
    P = probability(items, points)
    information = (items.discrimination**2).sum(axis=1) * (P * (1 - P)).mean(axis=0)
    return _best_of_each_group(information, count, groups, seed)


def share(count: int, sizes: Int[np.ndarray, " groups"]) -> Int[np.ndarray, " groups"]:
    """Share `count` seats in proportion to `sizes`, by largest remainder; the earlier group wins a tie."""
    quotas = count * sizes  # in units of 1 / sizes.sum(): whole numbers, so that no rounding decides a tie
    seats, remainders = np.divmod(quotas, sizes.sum())
    seats[np.argsort(-remainders, kind="stable")[: count - seats.sum()]] += 1
    return np.asarray(seats)


def _best_of_each_group(merit: Float[np.ndarray, " items"], count: int, groups: Sequence[str], seed: int) -> Subset:
    """The items of most merit in each group, ties at random; weights as the groups' shares of all items."""
    if not 1 <= count <= len(merit):
        raise ValueError(f"expected a count between 1 and the number of items, {len(merit)}, got {count}")
    if len(groups) != len(merit):
        raise ValueError(f"expected one group an item, got {len(groups)} groups for {len(merit)} items")
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sizes = np.bincount(group)
    seats = share(count, sizes)
    shuffled = np.random.default_rng(seed).permutation(len(merit))
    ranked = shuffled[np.argsort(-merit[shuffled], kind="stable")]
    chosen = np.sort(np.concatenate([ranked[group[ranked] == g][:k] for g, k in enumerate(seats)]))
    weights = (sizes / np.maximum(seats, 1))[group[chosen]]
    return chosen, weights / weights.sum()


Method = Callable[[ItemParameters, np.ndarray, int, Sequence[str], int], Subset]
METHODS: dict[str, Method] = {"uniform": uniform, "fisher": fisher}
