"""Extract: which few items a candidate is asked.

Every method of `METHODS` draws them once, shared by all candidates: it shares the budget between the groups of items
(languages, subjects) in proportion to their number of items, and returns the indices, sorted, with weights that sum
to 1. `by_margins` does the same for estimators that read margins. `Interview` chooses each candidate's next items by
its answers so far. Knows the items' parameters, and the model of a candidate's answers where a method needs one; sees
no candidate.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm, qmc

from merge3.irt import ItemParameters, Predictor, probability
from merge3.margins import design as design_of
from merge3.margins import fit

DRAWS = 32  # of candidates from their prior, over which `design` averages
CLIMB = 2.0  # deviations of a candidate's ability that a search may end above the most able parent, for `ascent`
STEPS = 9  # abilities on that way

Subset = tuple[Int[np.ndarray, " asked"], Float[np.ndarray, " asked"]]


def uniform(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],
    count: int,
    groups: Sequence[str],
    seed: int,
    model: Predictor | None = None,
) -> Subset:
    """Items drawn at random within each group: the one subset whose weighted mean has no bias.

    (A group too small for a seat is the exception: it goes unseen, by every method.)

    Raises:
        ValueError: a count outside 1..items, or groups that are not one an item.
    """
    return _best_of_each_group(np.zeros(len(items)), count, groups, seed)


def stratified(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],
    count: int,
    groups: Sequence[str],
    seed: int,
    model: Predictor | None = None,
) -> Subset:
    """One item at random from each of as many strata of difficulty as a group has seats; weights as strata's sizes.

    The difficulty is that of a model as able as the parents on average, or as the population where there are none.

    Raises:
        ValueError: a count outside 1..items, or groups that are not one an item.
    """
    rng = np.random.default_rng(seed)
    at = parent_abilities.mean(axis=0) if len(parent_abilities) else np.zeros(items.dimensions)
    easy = items.discrimination @ at - items.difficulty
    chosen, weights = [], []
    for members, seats in _seats(count, groups, len(items)):
        for stratum in np.array_split(members[np.argsort(easy[members], kind="stable")], max(seats, 1))[:seats]:
            chosen.append(int(rng.choice(stratum)))
            weights.append(float(len(stratum)))
    return _sorted(chosen, weights)


def anchors(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],
    count: int,
    groups: Sequence[str],
    seed: int,
    model: Predictor | None = None,
) -> Subset:
    """The items nearest to the centres of k-means on (discrimination, difficulty); weights as the clusters' sizes.

    The anchors of tinyBenchmarks (arXiv 2402.14992), a clustering for each group. Anchors of the same parameters share
    their cluster's weight.

    Raises:
        ValueError: a count outside 1..items, or groups that are not one an item.
    """
    rng = np.random.default_rng(seed)
    points = np.column_stack([items.discrimination, items.difficulty])
    chosen, weights = [], []
    for members, seats in _seats(count, groups, len(items)):
        if not seats:
            continue
        mine = points[members]
        centres = _kmeans(mine, seats, rng)
        distance = ((mine[:, None, :] - centres[None]) ** 2).sum(axis=2)
        taken: list[int] = []
        for centre in range(len(centres)):
            order = np.argsort(distance[:, centre], kind="stable")
            taken.append(int(next(i for i in order if i not in taken)))
        away = ((mine[:, None, :] - mine[taken][None]) ** 2).sum(axis=2)
        nearest = away == away.min(axis=1, keepdims=True)  # several, where anchors have the same parameters
        chosen += [int(i) for i in members[taken]]
        weights += (nearest / nearest.sum(axis=1, keepdims=True)).sum(axis=0).tolist()
    return _sorted(chosen, weights)


def fisher(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],
    count: int,
    groups: Sequence[str],
    seed: int,
    model: Predictor | None = None,
) -> Subset:
    """The items of each group that tell most about a model as able as the parents; ties are broken by `seed`.

    Fisher's information of an item, I(θ) = |a|² P(θ) (1 - P(θ)), is averaged over the parents' abilities and
    their mean; over the population's where there are no parents. Never score such a subset by its plain mean: it is
    10-20 points off by design.

    Raises:
        ValueError: a count outside 1..items, or groups that are not one an item.
    """
    population = norm.ppf((np.arange(9) + 0.5) / 9)[:, None] * np.ones(items.dimensions)
    points = np.vstack([parent_abilities, parent_abilities.mean(axis=0)]) if len(parent_abilities) else population
    P = probability(items, points)
    information = (items.discrimination**2).sum(axis=1) * (P * (1 - P)).mean(axis=0)
    return _best_of_each_group(information, count, groups, seed)


def ascent(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],
    count: int,
    groups: Sequence[str],
    seed: int,
    model: Predictor | None = None,
) -> Subset:
    """Items that tell candidates apart all the way up: from the parents' mean ability to beyond the best's.

    The way ends `CLIMB` prior deviations above the most able parent, or above the candidate that is expected.
    `fisher` asks what the parents are unsure of, and good merges know all of that: their estimates are one. Here each
    next item is the one that raises the mean over the abilities on that way of log(1 + information so far) most, a
    D-optimal design: where much is known already, more counts little. Ties are broken by `seed`.

    Raises:
        ValueError: no model, a count outside 1..items, or groups that are not one an item.
    """
    model = _needed(model, "ascent")
    D = items.dimensions
    expected, spread = model.centre[:D], np.sqrt(np.diag(np.linalg.inv(model.precision))[:D])
    low = parent_abilities.mean(axis=0) if len(parent_abilities) else expected
    high = np.vstack([parent_abilities, expected]).max(axis=0)
    way = np.linspace(low, high + CLIMB * spread, STEPS)
    P = probability(items, way)
    information = (items.discrimination**2).sum(axis=1) * P * (1 - P)
    group, seats = _budget(count, groups, len(items))
    left = seats.copy()
    shuffled = np.random.default_rng(seed).permutation(len(items))
    chosen: list[int] = []
    told = np.ones(len(way))
    for _ in range(count):
        gain = np.log1p(information / told[:, None]).mean(axis=0)
        gain[chosen] = -1.0
        item = int(shuffled[np.where(left[group] > 0, gain, -1.0)[shuffled].argmax()])
        chosen.append(item)
        left[group[item]] -= 1
        told += information[:, item]
    return _as_groups_weigh(np.array(chosen), group, seats)


def disagreement(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],
    count: int,
    groups: Sequence[str],
    seed: int,
    model: Predictor | None = None,
) -> Subset:
    """The items on which candidates of these parents agree least: P (1 - P), averaged over the model's prior.

    Where one parent is right and another wrong, merges differ; where all are right, hardly any is wrong.

    Raises:
        ValueError: no model, a count outside 1..items, or groups that are not one an item.
    """
    model = _needed(model, "disagreement")
    P = model.probability(_draws(model))
    return _best_of_each_group((P * (1 - P)).mean(axis=0), count, groups, seed)


def design(
    items: ItemParameters,
    parent_abilities: Float[np.ndarray, "parents dimensions"],
    count: int,
    groups: Sequence[str],
    seed: int,
    model: Predictor | None = None,
) -> Subset:
    """The items after which the candidates' scores are known best: a Bayesian c-optimal design, taken greedily.

    Each next item is the one that lowers the posterior variance of the score most, relative to what it is, averaged
    over `DRAWS` candidates of the model's prior. Unlike fisher it does not ask twice what one answer tells, and looks
    beyond the parents' ability.

    Raises:
        ValueError: no model, a count outside 1..items, or groups that are not one an item.
    """
    model = _needed(model, "design")
    group, seats = _budget(count, groups, len(items))
    left = seats.copy()
    x = _draws(model)
    P = model.probability(x)
    V = P * (1 - P)
    covariance = np.tile(np.linalg.inv(model.precision), (len(x), 1, 1))
    unasked = np.ones((len(x), len(items)), dtype=bool)
    chosen: list[int] = []
    for _ in range(count):
        gradient = np.where(unasked, V, 0.0) @ model.design / len(items)
        variance = np.einsum("qi,qij,qj->q", gradient, covariance, gradient)
        gain = (model.gains(x, covariance, unasked) / np.maximum(variance, 1e-300)[:, None]).mean(axis=0)
        item = int(np.where(unasked[0] & (left[group] > 0), gain, -1.0).argmax())
        chosen.append(item)
        left[group[item]] -= 1
        unasked[:, item] = False
        toward = covariance @ model.design[item]
        shrink = V[:, item] / (1 + V[:, item] * (toward @ model.design[item]))
        covariance = covariance - toward[:, :, None] * toward[:, None, :] * shrink[:, None, None]
    return _as_groups_weigh(np.array(chosen), group, seats)


def by_margins(relatives: Float[np.ndarray, "relatives items"], count: int, groups: Sequence[str], seed: int) -> Subset:
    """The items whose margins tell the candidates' scores best: a c-optimal design, see `merge3.margins.design`.

    How the margins of relatives move together is learnt as for items that `seed` draws.

    Raises:
        ValueError: too few relatives, a count outside 1..items, or groups that are not one an item.
    """
    group, seats = _budget(count, groups, relatives.shape[1])
    drawn, _ = _best_of_each_group(np.zeros(relatives.shape[1]), count, groups, seed)
    return _as_groups_weigh(design_of(fit(relatives, drawn), count, group, seats), group, seats)


class Interview:
    """Adaptive testing: one candidate, asked a few items at a time, each chosen by its answers so far.

    `ask` names the next items, `tell` takes the answers, as with an optimiser; `answers` holds them all, NaN where not
    asked, and `subset` their indices. The groups share the budget as they do for the methods: no group gets more than
    its seats.

    Raises:
        ValueError: a count outside 1..items, or groups that are not one an item.
    """

    def __init__(self, model: Predictor, count: int, groups: Sequence[str]) -> None:
        """`count` items in all."""
        self.model = model
        self.group, self.left = _budget(count, groups, len(model.offset))
        self.answers = np.full(len(model.offset), np.nan)
        self.asked: list[int] = []  # and not yet told
        self.x = model.centre[None]
        self.covariance = np.linalg.inv(model.precision)[None]

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return not self.left.any()

    @property
    def subset(self) -> Int[np.ndarray, " answered"]:
        """The indices of the items answered so far, sorted."""
        return np.flatnonzero(~np.isnan(self.answers))

    def ask(self, count: int = 1) -> Int[np.ndarray, " next"]:
        """The next items, at most `count`: those that would lower the variance of the score most.

        Raises:
            RuntimeError: the items asked before were not answered.
        """
        if self.asked:
            raise RuntimeError(f"tell the answers to {self.asked} before asking for more")
        free = np.isnan(self.answers)
        gain = self.model.gains(self.x, self.covariance, free[None])[0]
        for item in np.argsort(-np.where(free, gain, -1.0), kind="stable"):
            if len(self.asked) == count:
                break
            if self.left[self.group[item]] > 0:
                self.left[self.group[item]] -= 1
                self.asked.append(int(item))
        return np.array(self.asked, dtype=int)

    def tell(self, answers: Float[np.ndarray, " next"]) -> None:
        """The answers to the items asked last, in their order.

        Raises:
            ValueError: another number of answers, or one that is not 0 or 1.
        """
        if answers.shape != (len(self.asked),) or not np.isin(answers, (0.0, 1.0)).all():
            raise ValueError(f"expected {len(self.asked)} answers, 1 (right) or 0 (wrong), got {answers.tolist()}")
        self.answers[self.asked] = answers
        self.asked = []
        self.x, self.covariance = self.model.fit(self.answers[None])


def adaptive(
    model: Predictor, answers: Float[np.ndarray, "models items"], count: int, groups: Sequence[str]
) -> Float[np.ndarray, "models items"]:
    """The answers that models give to the items an `Interview` of one at a time asks each; the others are NaN."""
    found = []
    for row in answers:
        interview = Interview(model, count, groups)
        while not interview.done:
            interview.tell(row[interview.ask()])
        found.append(interview.answers)
    return np.array(found)


def share(count: int, sizes: Int[np.ndarray, " groups"]) -> Int[np.ndarray, " groups"]:
    """Share `count` seats in proportion to `sizes`, by largest remainder; the earlier group wins a tie."""
    quotas = count * sizes  # in units of 1 / sizes.sum(): whole numbers, so that no rounding decides a tie
    seats, remainders = np.divmod(quotas, sizes.sum())
    seats[np.argsort(-remainders, kind="stable")[: count - seats.sum()]] += 1
    return np.asarray(seats)


def _needed(model: Predictor | None, method: str) -> Predictor:
    """The model of a candidate's answers, for a method that cannot do without.

    Raises:
        ValueError: there is none.
    """
    if model is None:
        raise ValueError(f"{method} needs the model of a candidate's answers: give it merge3.lineage.predictor(...)")
    return model


def _best_of_each_group(merit: Float[np.ndarray, " items"], count: int, groups: Sequence[str], seed: int) -> Subset:
    """The items of most merit in each group, ties at random; weights as the groups' shares of all items."""
    group, seats = _budget(count, groups, len(merit))
    shuffled = np.random.default_rng(seed).permutation(len(merit))
    ranked = shuffled[np.argsort(-merit[shuffled], kind="stable")]
    chosen = np.concatenate([ranked[group[ranked] == g][:k] for g, k in enumerate(seats)])
    return _as_groups_weigh(chosen, group, seats)


def _budget(
    count: int, groups: Sequence[str], items: int
) -> tuple[Int[np.ndarray, " items"], Int[np.ndarray, " groups"]]:
    """Each item's group, and each group's seats."""
    if not 1 <= count <= items:
        raise ValueError(f"expected a count between 1 and the number of items, {items}, got {count}")
    if len(groups) != items:
        raise ValueError(f"expected one group an item, got {len(groups)} groups for {items} items")
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return group, share(count, np.bincount(group))


def _seats(count: int, groups: Sequence[str], items: int) -> list[tuple[Int[np.ndarray, " members"], int]]:
    """The items of each group, and its seats."""
    group, seats = _budget(count, groups, items)
    return [(np.flatnonzero(group == g), int(k)) for g, k in enumerate(seats)]


def _as_groups_weigh(
    chosen: Int[np.ndarray, " asked"], group: Int[np.ndarray, " items"], seats: Int[np.ndarray, " groups"]
) -> Subset:
    """The chosen items, sorted; a group's have the weight of all its items, in equal parts."""
    chosen = np.sort(chosen)
    weights = (np.bincount(group) / np.maximum(seats, 1))[group[chosen]]
    return chosen, weights / weights.sum()


def _sorted(chosen: list[int], weights: list[float]) -> Subset:
    order = np.argsort(chosen)
    w = np.array(weights)[order]
    return np.array(chosen)[order], w / w.sum()


def _kmeans(
    points: Float[np.ndarray, "items features"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "centres features"]:
    """The centres of Lloyd's k-means, from the best of five random starts; a centre that loses all items stays."""
    best: tuple[float, np.ndarray] = (np.inf, points[:count])
    for _ in range(5):
        centres = points[rng.choice(len(points), count, replace=False)]
        for _ in range(50):
            nearest = ((points[:, None, :] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
            moved = np.array(
                [points[nearest == c].mean(axis=0) if (nearest == c).any() else centres[c] for c in range(count)]
            )
            if np.allclose(moved, centres):
                break
            centres = moved
        inertia = float(((points[:, None, :] - centres[None]) ** 2).sum(axis=2).min(axis=1).sum())
        if inertia < best[0]:
            best = inertia, centres
    return best[1]


def _draws(model: Predictor) -> Float[np.ndarray, "draws unknowns"]:
    """Candidates from the Gaussian of the model's prior, evenly: a Sobol sequence, the same each time."""
    u = qmc.Sobol(len(model.centre), scramble=False).random(DRAWS)
    z = norm.ppf(u + 0.5 / DRAWS)  # the middle of each of as many equal parts
    return np.asarray(model.centre + z @ np.linalg.cholesky(np.linalg.inv(model.precision)).T)


Method = Callable[..., Subset]  # (items, parent_abilities, count, groups, seed, model=None)
METHODS: dict[str, Method] = {
    "uniform": uniform,
    "stratified": stratified,
    "anchors": anchors,
    "fisher": fisher,
    "ascent": ascent,
    "disagreement": disagreement,
    "design": design,
}
MARGINS = "margins"  # the method for estimators that read margins
