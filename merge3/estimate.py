"""Estimate: from a candidate's answers to n items to its accuracy over all N.

Every estimator has one signature, `estimator(answers, known) -> Estimate`: the answers to the items of
`known.subset`, in its order (right 1, wrong 0; margins in nats for those of `CONTINUOUS`), and what is known before the
candidate is asked. With n = N each returns the exact accuracy. Formulas: MERGE3 (arXiv 2502.10436) and tinyBenchmarks
(arXiv 2402.14992); in neither are `ridge`, `bayes_mp_irt`, `post_stratified`, `parent_aware`, `lineage`, `margin_irt`.

With S the n items asked, U the rest, tau = n / N, P_i = sigmoid(a_i · theta - b_i), w the weights of the
subset:

    mean          mean_S(Y)
    weighted_mean sum_S w_i Y_i
    ridge         an affine function of the answers, learnt from models answered in full
    p_irt         tau mean_S(Y) + (1 - tau) mean_U(P),   theta ~ N(0, I)
    mp_irt        as p_irt with theta = sum_e lambda_e gamma_e,   lambda ~ N(0, I),   gamma_e of parent e
    bayes_mp_irt  as p_irt with theta ~ N(mean of the parents' abilities, spread²)
    post_stratified  sum_h (N_h / N) (tau_h mean_S(Y) + (1 - tau_h) q_h), q_h the share of stratum h that is right: the
                  items on which the same number of parents are right
    parent_aware  as p_irt with logit P_i = a_i · theta - b_i + g r_i,   r_i the parents' residuals on item i
    lineage       as parent_aware, and + sum_k h_k q_ik, the contrasts of the residuals
    margin_irt    tau mean_S(Y) + (1 - tau) mean_U(P(margin > 0)),   by the factors of relatives: `merge3.margins`
    gp_irt        c weighted_mean + (1 - c) p_irt
    gmp_irt       c weighted_mean + (1 - c) mp_irt

Knows the items' parameters and the parents' answers; knows neither models nor merges.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, stdtrit
from scipy.stats import spearmanr

from merge3 import lineage as descent
from merge3 import margins
from merge3.irt import (
    ItemParameters,
    Predictor,
    check_responses,
    fit_abilities,
    fit_logistic,
    fit_logistics,
    probability,
)

Z90 = 1.6448536269514722  # a normal variable lies within ± Z90 standard deviations with probability .9
RIDGED = 3  # models answered in full that ridge learns from, at least
CONFORMAL = 9  # models of which the largest error is a 90 % bound of the next one's
PARTS = 8  # sets of questions left unanswered, for each of which what is known without them is kept
PSEUDO = 2.0  # answers that post_stratified's prior is worth, in each stratum
INHERITED = (0.08, 0.97)  # shares that a merge has right of the items that no parent, and that all parents, have right

Choose = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # relatives' margins -> items to ask, weights


@dataclass(frozen=True)
class Estimate:
    """A candidate's accuracy over all items, in [0, 1], with its 90 % interval."""

    score: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class Calibration:
    """The numbers an estimator cannot know by itself, and how well it did with them.

    `dataclasses.asdict` of it is JSON. The figures of the second half are None until `calibrate` measured
    them; errors are in accuracy (1 = 100 points).
    """

    mixing: float = 0.5
    """c, the weight of the mean in gp_irt and gmp_irt: calibrate it, above all with fisher subsets."""
    centre_shift: tuple[float, ...] = (0.0,)
    """parent_aware's prior of theta: its centre minus the parents' mean ability; `lineage.raised` says in which way."""
    spread: float = 0.4
    """parent_aware's prior of theta: its scale. .25 to .6 serve about as well."""
    inheritance: float = 1.5
    """parent_aware's prior of g, how much of the parents' residuals a merge inherits: its centre."""
    inheritance_spread: float = 0.7
    """parent_aware's prior of g: its scale."""
    widening: float = 1.0
    """Factor on the standard error, so that 90 % intervals hold the truth in 90 % of cases."""

    estimator: str | None = None
    models: int | None = None
    mean_absolute_error: float | None = None
    bias: float | None = None
    deviation: float | None = None
    """Standard deviation of estimate - truth."""
    spearman: float | None = None
    coverage: float | None = None
    """Share of truths inside the intervals as they come, before they are widened."""


@dataclass(frozen=True)
class Known:
    """What is known before a candidate is asked.

    Args:
        items: the parameters of all N items.
        subset: the indices of the n items a candidate is asked.
        weights: of the items asked; none is negative, and they sum to 1.
        parents: the parents' answers to all N items, none missing. None of them is known of a model that is no
            merge: then estimators that need parents refuse.
        calibration: the numbers of the estimator in use.
        population: models answered in full, for ridge alone: the more like the candidates, the better.
        family: the model of a candidate's answers that relatives taught (`lineage.fit_each`), for `lineage`, in place
            of the one that the parents and the calibration tell.
        shared_error: deviation of the error that all candidates' scores by item response theory share, in accuracy
            (`lineage.Family.shared_error`).
        relatives: the margins of merges of the same parents answered in full, in nats, for `margin_irt` alone.
        counted: the items that the score is of, for `margin_irt` alone; all where None.

    Raises:
        ValueError: parts that do not fit together.
    """

    items: ItemParameters
    subset: Int[np.ndarray, " asked"]
    weights: Float[np.ndarray, " asked"]
    parents: Float[np.ndarray, "parents items"]
    calibration: Calibration = field(default_factory=Calibration)
    population: Float[np.ndarray, "models items"] | None = None
    family: Predictor | None = None
    shared_error: float = 0.0
    relatives: Float[np.ndarray, "relatives items"] | None = None
    counted: Int[np.ndarray, " counted"] | None = None

    def __post_init__(self) -> None:
        n, N = len(self.subset), len(self.items)
        if n == 0 or len(np.unique(self.subset)) < n or self.subset.min() < 0 or self.subset.max() >= N:
            raise ValueError(f"expected distinct items between 0 and {N - 1} in the subset, got {self.subset.tolist()}")
        if self.weights.shape != (n,) or not (self.weights >= 0).all() or not np.isclose(self.weights.sum(), 1.0):
            raise ValueError(
                f"expected {n} weights of 0 or more that sum to 1, got {len(self.weights)} from {self.weights.min():g} "
                f"with sum {self.weights.sum():g}"
            )
        if self.parents.ndim != 2 or self.parents.shape[1] != N:
            raise ValueError(f"expected the answers of the parents to {N} items, got shape {self.parents.shape}")
        if self.population is not None and (self.population.shape[1] != N or np.isnan(self.population).any()):
            raise ValueError(f"expected a population that answered all {N} items, got shape {self.population.shape}")
        if self.relatives is not None and self.relatives.shape[1:] != (N,):
            raise ValueError(f"expected the margins of relatives on all {N} items, got shape {self.relatives.shape}")
        check_responses(self.parents)
        if missing := int(np.isnan(self.parents).sum()):
            raise ValueError(f"{missing} answers of the parents are missing: let each parent answer all {N} items once")

    def answered(self, scored: Bool[np.ndarray, " asked"]) -> "Known":
        """The same, with the scored questions of the subset alone, whose weights are scaled to the sum they had.

        Candidates leave the same questions unanswered, and what is known without these is dear: the last `PARTS` stay.
        """
        return self if scored.all() else self._part(scored.tobytes())

    @cached_property
    def _part(self) -> Callable[[bytes], "Known"]:
        """`answered`, by the bytes of what is scored."""

        @lru_cache(PARTS)
        def part(scored: bytes) -> Known:
            kept = np.frombuffer(scored, dtype=bool)
            weights = self.weights[kept]
            return replace(self, subset=self.subset[kept], weights=weights * self.weights.sum() / weights.sum())

        return part

    def counting(self, items: Int[np.ndarray, " counted"]) -> "Known":
        """The same, the score being of these items alone; what relatives tell is found out once for all that is so."""
        part = replace(self, counted=items)
        if self.relatives is not None and len(self.unasked):
            vars(part)["factors"] = self.factors
        return part

    @cached_property
    def parent_abilities(self) -> Float[np.ndarray, "parents dimensions"]:
        """The parents' abilities, from their answers to all items.

        Raises:
            ValueError: there are no parents.
        """
        _need_parents(self)
        return fit_abilities(self.items, self.parents)[0]

    @cached_property
    def residuals(self) -> Float[np.ndarray, " items"]:
        """Sum over the parents of answer - P(right): what they know beyond what their ability tells."""
        return np.asarray((self.parents - probability(self.items, self.parent_abilities)).sum(axis=0))

    @cached_property
    def lineage(self) -> Predictor:
        """The model of a candidate's answers given its parents'.

        Raises:
            ValueError: there is no family's, and there are no parents.
        """
        if self.family is not None:
            return self.family
        _need_parents(self)
        c = self.calibration
        return descent.predictor(
            self.items, self.parents, c.centre_shift, c.spread, c.inheritance, c.inheritance_spread
        )

    @cached_property
    def factors(self) -> margins.Factors:
        """How the relatives' margins move together.

        Raises:
            ValueError: there are no relatives, or too few.
        """
        if self.relatives is None:
            raise ValueError("margin_irt needs the margins of merges of the same parents answered in full, got none")
        return margins.fit(self.relatives, self.subset)

    def predictor(
        self,
        design: Float[np.ndarray, "items unknowns"],
        centre: Float[np.ndarray, " unknowns"],
        precision: Float[np.ndarray, "unknowns unknowns"],
        tail: float = np.inf,
    ) -> Predictor:
        """A model of a candidate's answers by these items' difficulties."""
        return Predictor(design, -self.items.difficulty, centre, precision, tail)

    @cached_property
    def ridge(self) -> tuple[Float[np.ndarray, " asked"], float, float]:
        """Weights of the answers, intercept, and error of `ridge`, from the population.

        Raises:
            ValueError: there is no population of at least three models.
        """
        if self.population is None or len(self.population) < RIDGED:
            raise ValueError(f"ridge needs a population of {RIDGED} or more models answered in full: give Known one")
        return _fit_ridge(self.population[:, self.subset], self.population.mean(axis=1))

    @cached_property
    def unasked(self) -> Int[np.ndarray, " unasked"]:
        """The indices of the items a candidate is not asked."""
        return np.setdiff1d(np.arange(len(self.items)), self.subset)


def mean(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """The plain mean of the answers: no model, no bias if the subset is random; never for chosen subsets.

    Standard error: that of `weighted_mean` with equal weights.
    """
    n = len(known.subset)
    return weighted_mean(answers, replace(known, weights=np.full(n, 1 / n)))


def weighted_mean(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """The weighted mean of the answers: for random subsets of unequal groups, strata and anchors; never for fisher.

    Standard error: sqrt(p (1 - p) sum w² (1 - tau)), p with two right and two wrong answers added (Agresti &
    Coull 1998), so that all right is not certainty.
    """
    _check(answers, known)
    n, N = len(answers), len(known.items)
    if n == N:
        return _interval(float(answers.mean()), 0.0)
    p = (answers.sum() + 2) / (n + 4)
    error = known.calibration.widening * np.sqrt(p * (1 - p) * (known.weights**2).sum() * (1 - n / N))
    return _interval(float(known.weights @ answers), float(error))


def p_irt(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """The unasked items by the ability the answers show: the candidate as one of the population."""
    D = known.items.dimensions
    return _predict(answers, known, known.predictor(known.items.discrimination, np.zeros(D), np.eye(D)))


def mp_irt(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """As `p_irt`, in the span of the parents' abilities: theta = sum_e lambda_e gamma_e, lambda ~ N(0, I).

    The same as theta ~ N(0, sum_e gamma_e gamma_e'). See `degenerate` for when the span is no restriction.
    """
    gamma = known.parent_abilities
    design = known.items.discrimination @ gamma.T
    return _predict(answers, known, known.predictor(design, np.zeros(len(gamma)), np.eye(len(gamma))))


def bayes_mp_irt(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """As `p_irt`, the parents' mean ability for the population's: theta ~ N(mean gamma + centre_shift, spread²)."""
    c, D = known.calibration, known.items.dimensions
    centre = known.parent_abilities.mean(axis=0) + descent.raised(known.items, c.centre_shift)
    return _predict(answers, known, known.predictor(known.items.discrimination, centre, np.eye(D) / c.spread**2))


def post_stratified(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """The answers by how many parents are right on the item: no item response theory, for subsets drawn at random.

    The share of each stratum that is right has a Beta prior worth `PSEUDO` answers, centred from `INHERITED[0]` where
    no parent is right to `INHERITED[1]` where all are (what real merges inherit). The variance is the posterior's, and
    the chance of the unasked answers.

    Raises:
        ValueError: there are no parents, or an answer is missing.
    """
    _check(answers, known)
    _need_parents(known)
    N = len(known.items)
    stratum = known.parents.sum(axis=0).astype(int)
    score = variance = 0.0
    for right in range(len(known.parents) + 1):
        asked = answers[stratum[known.subset] == right]
        unasked = int((stratum[known.unasked] == right).sum())
        prior = INHERITED[0] + (INHERITED[1] - INHERITED[0]) * right / len(known.parents)
        size = PSEUDO + len(asked)
        q = (PSEUDO * prior + asked.sum()) / size
        score += asked.sum() + unasked * q
        variance += q * (1 - q) * (unasked**2 / (size + 1) + unasked)
    return _interval(float(score / N), float(known.calibration.widening * np.sqrt(variance) / N))


def parent_aware(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """Ability near the parents', and their residuals inherited: logit P_i = a_i · theta - b_i + g sum_p r_pi.

    r_pi is parent p's answer minus its own P(right): a merge inherits not only how much its parents know but
    what. MAP in (theta, g) under one Student t prior of `TAIL` degrees of freedom, centred at the parents'
    mean ability (+ `centre_shift`) and at `inheritance`: a candidate unlike what was expected, collapsed or
    better than all parents, is let go from both.
    """
    design, centre, scale = _inherited(known)
    return _predict(answers, known, known.predictor(design, centre, np.diag(scale**-2), descent.TAIL))


def lineage(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """As `parent_aware`, and a candidate may have more from one parent than from others: see `merge3/lineage.py`."""
    return _predict(answers, known, known.lineage)


def margin_irt(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """From the margins of the answers: the unasked items by the factors that relatives' margins have in common.

    The variance is that of z through the score's gradient (delta method), and the chance of the unasked answers.

    Raises:
        ValueError: too few relatives, or a margin is missing.
    """
    _complete(answers, known)
    every = np.arange(len(known.items))
    asked = np.isin(every, known.subset)
    counted = np.isin(every, every if known.counted is None else known.counted)
    found = np.zeros(len(every))
    found[known.subset] = answers > 0
    unasked = counted & ~asked
    if not unasked.any():
        return _interval(float(found[counted].mean()), 0.0)
    P, slopes, covariance = known.factors.right(known.subset, answers)
    P = np.where(asked, found, P)
    gradient = slopes[unasked].sum(axis=0)
    variance = gradient @ covariance @ gradient + (P * (1 - P))[unasked].sum()
    error = known.calibration.widening * np.sqrt(variance) / counted.sum()
    return _interval(float(P[counted].mean()), float(error))


def ridge(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """The accuracy as a linear function of the answers, learnt by ridge regression from the population.

    The penalty is that of the least leave-one-out error, which is the standard error too.
    """
    _check(answers, known)
    if len(known.unasked) == 0:
        return _interval(float(answers.mean()), 0.0)
    weights, intercept, error = known.ridge
    least = answers.sum() / len(known.items)
    most = least + len(known.unasked) / len(known.items)
    return _interval(float(np.clip(intercept + weights @ answers, least, most)), known.calibration.widening * error)


def _fit_ridge(
    answers: Float[np.ndarray, "models asked"], scores: Float[np.ndarray, " models"]
) -> tuple[Float[np.ndarray, " asked"], float, float]:
    """Weights of the answers, intercept, and leave-one-out error of the best penalty.

    By one singular value decomposition for all penalties: the hat matrix U diag(S² / (S² + penalty)) U', and 1/n for
    the intercept, has on its diagonal each model's leverage, and its miss when left out is its residual over
    1 - leverage (Allen 1974).
    """
    centred = scores - scores.mean()
    U, S, Vt = np.linalg.svd(answers - answers.mean(axis=0), full_matrices=False)
    along = U.T @ centred
    least, coordinates = np.inf, np.zeros(len(S))
    for penalty in np.logspace(-1, 4, 21):
        shrunk = S**2 / (S**2 + penalty)
        leverage = 1 / len(scores) + (U**2) @ shrunk
        misses = (centred - U @ (shrunk * along)) / np.maximum(1 - leverage, 1e-3)
        if (error := float(np.sqrt((misses**2).mean()))) < least:
            least, coordinates = error, S / (S**2 + penalty) * along
    weights = Vt.T @ coordinates
    return weights, float(scores.mean() - weights @ answers.mean(axis=0)), least


def expected(parents: Float[np.ndarray, "parents items"]) -> Calibration:
    """The prior of merges of these parents before any merge of theirs was answered in full: `lineage.expected`.

    `learn_inheritance` and `update` learn it from merges.
    """
    shift, spread = descent.expected(parents)
    return Calibration(centre_shift=(shift,), spread=spread)


def published_mixing(error: float, variance: float, count: int) -> float:
    """The c of gp_irt as tinyBenchmarks publishes it: b² / (b² + v / 4n).

    b is the validation error of p_irt (`error`), v the mean variance of the answers to an item (`variance`), n the
    number asked (arXiv 2402.14992, and its code). `calibrate` finds a c that errs less where items are chosen.
    """
    return error**2 / (error**2 + variance / (4 * count))


def gp_irt(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """The weighted mean and p_irt mixed: c mean + (1 - c) p_irt, c from `calibrate`."""
    return _mix(weighted_mean(answers, known), p_irt(answers, known), known)


def gmp_irt(answers: Float[np.ndarray, " asked"], known: Known) -> Estimate:
    """The weighted mean and mp_irt mixed: c mean + (1 - c) mp_irt, c from `calibrate`."""
    return _mix(weighted_mean(answers, known), mp_irt(answers, known), known)


def degenerate(known: Known) -> bool:
    """Whether the parents' abilities span the whole space, so that mp_irt restricts nothing.

    True if dimensions <= linearly independent parent abilities. Then mp_irt without its prior on lambda is
    p_irt without its prior on theta, exactly; with the priors, mp_irt is p_irt under theta ~ N(0, sum_e
    gamma_e gamma_e').
    """
    return bool(np.linalg.matrix_rank(known.parent_abilities) == known.items.dimensions)


def calibrate(
    estimator: str,
    responses: Float[np.ndarray, "models items"],
    known: Known,
    choose: Choose | None = None,
) -> Known:
    """Choose an estimator's mixing c and widening on models answered in full, and measure it on them.

    c is the least-squares mixture of the mean and the model, clipped to [0, 1]: unlike tinyBenchmarks' b² /
    (b² + v / 4n) it sees that the mean of a fisher subset is biased. The widening is that of `fit_mixture`. The figures
    are leave-one-out: each model is estimated with what the others taught; coverage is that of the intervals before
    they are widened. They speak of models like the given ones: for parent_aware, give merges of the parents.

    Args:
        estimator: a key of `ESTIMATORS`.
        responses: the full answers of models that the items were not fitted on, nor `learn_inheritance`
            given.
        known: its centre, spread and inheritance are kept.
        choose: how the subset and its weights were chosen, where that was by relatives' margins.

    An estimator of margins is measured on the relatives instead, each left out in turn, and asked the items that the
    others choose.

    Raises:
        ValueError: no models, or missing answers.
    """
    parts = [weighted_mean, MIXED[estimator]] if estimator in MIXED else [ESTIMATORS[estimator]]
    if len(responses) == 0 or np.isnan(responses).any():
        raise ValueError(
            f"expected models answered in full, got {len(responses)} models, "
            f"{np.isnan(responses).sum()} answers missing: drop such models"
        )
    if responses.shape[1] != len(known.items):
        raise ValueError(
            f"expected answers to all {len(known.items)} items, got {responses.shape[1]}: align them by id"
        )
    plain = replace(known, calibration=replace(known.calibration, widening=1.0))
    if parts[0] in CONTINUOUS and known.relatives is not None:
        measured = _left_out(plain, known.relatives, choose)
    else:
        measured = [(row, plain) for row in responses]
    truths = np.array([(row > 0).mean() for row, _ in measured])
    made = [[part(row[before.subset], before) for row, before in measured] for part in parts]
    scores = np.array([[estimate.score for estimate in of_part] for of_part in made])
    errors = np.array([[estimate.standard_error for estimate in of_part] for of_part in made])
    estimates, spreads = cross_calibrate(scores, errors, truths)
    shares, widening = fit_mixture(scores, errors, truths)
    figures = replace(
        known.calibration,
        mixing=float(shares[0]) if estimator in MIXED else known.calibration.mixing,
        widening=widening,
        estimator=estimator,
        models=len(truths),
        mean_absolute_error=float(np.abs(estimates - truths).mean()),
        bias=float((estimates - truths).mean()),
        deviation=float((estimates - truths).std()),
        spearman=float(spearmanr(estimates, truths).statistic) if np.ptp(estimates) > 0 < np.ptp(truths) else None,
        coverage=float((np.abs(estimates - truths) <= Z90 * spreads + 1e-9).mean()),
    )
    return replace(known, calibration=figures)


def _left_out(
    known: Known, relatives: Float[np.ndarray, "relatives items"], choose: Choose | None
) -> list[tuple[Float[np.ndarray, " items"], Known]]:
    """Each relative, and what is known without it.

    Raises:
        ValueError: the others would be too few.
    """
    if len(relatives) <= margins.FEWEST:
        raise ValueError(
            f"expected {margins.FEWEST + 1} relatives or more, as each is left out in turn, got {len(relatives)}"
        )
    found = []
    for place, relative in enumerate(relatives):
        others = np.delete(relatives, place, axis=0)
        subset, weights = choose(others) if choose else (known.subset, known.weights)
        found.append((relative, replace(known, relatives=others, subset=subset, weights=weights)))
    return found


def cross_calibrate(
    scores: Float[np.ndarray, "parts models"],
    errors: Float[np.ndarray, "parts models"],
    truths: Float[np.ndarray, " models"],
) -> tuple[Float[np.ndarray, " models"], Float[np.ndarray, " models"]]:
    """Each model's estimate by the mixture that the others teach (`fit_mixture`), and its standard error.

    The error is as it comes: of one widened by what the others teach, how often its interval holds follows from their
    number alone.
    """
    count = len(truths)
    estimates, spreads = np.zeros(count), np.zeros(count)
    for i in range(count):
        others = np.delete(np.arange(count), i)
        shares, _ = fit_mixture(scores[:, others], errors[:, others], truths[others])
        estimates[i], spreads[i] = shares @ scores[:, i], shares @ errors[:, i]
    return estimates, spreads


def fit_mixture(
    scores: Float[np.ndarray, "parts models"],
    errors: Float[np.ndarray, "parts models"],
    truths: Float[np.ndarray, " models"],
) -> tuple[Float[np.ndarray, " parts"], float]:
    """The shares of the parts and the widening of their intervals that suit models of known score.

    Two parts are the weighted mean and a model, mixed by least squares (c, 1 - c), evenly where there are no models;
    one stands alone. With z the error of each of n models over its standard error, the widening is

        n >= `CONFORMAL`  the ceil(.9 (n + 1))-th of the n |z|, over 1.645: a next model's interval holds with
                          probability .9 whatever the distribution (split conformal; Vovk et al. 2005)
        fewer             t sqrt((1 + sum z²) / (n + 1)) / 1.645, t the 95 % point of Student's t of n + 1 degrees of
                          freedom: the prediction where z ~ N(0, w²), and w² counts as seen once, as 1 (Gelman et al.,
                          Bayesian Data Analysis, 3.2)
        0                 1: the intervals as they come
    """
    count = len(truths)
    shares = np.full(len(scores), 1 / len(scores))
    if not count:
        return shares, 1.0
    if len(scores) == 2:
        gap = scores[0] - scores[1]
        c = float(np.clip(gap @ (truths - scores[1]) / max(gap @ gap, 1e-12), 0.0, 1.0))
        shares = np.array([c, 1 - c])
    spread = shares @ errors
    if not spread.any():  # everything was asked
        return shares, 1.0
    z = np.abs(shares @ scores - truths) / np.maximum(spread, 1e-9)
    if count < CONFORMAL:
        return shares, float(stdtrit(count + 1, 0.95) / Z90 * np.sqrt((1 + z @ z) / (count + 1)))
    return shares, float(np.sort(z)[math.ceil(0.9 * (count + 1)) - 1] / Z90)


def prior_of(known: Known) -> Predictor:
    """The model of a candidate's answers before it is asked: by its lineage, or as one of the population without it."""
    D = known.items.dimensions
    if len(known.parents):
        return known.lineage
    return known.predictor(known.items.discrimination, np.zeros(D), np.eye(D))


def learn_inheritance(merges: Float[np.ndarray, "merges items"], known: Known) -> Known:
    """Centre and spread of parent_aware's prior from merges of the same parents, answered in full.

    Each merge's own (theta, g) is fitted on all its answers; the prior takes their mean and deviation, the
    values before counting as four merges more (no merges: nothing changes). Not for a leaderboard: strangers
    are weaker than the parents and inherit nothing.

    Raises:
        ValueError: missing answers.
    """
    if np.isnan(merges).any():
        raise ValueError(f"expected merges answered in full, got {np.isnan(merges).sum()} answers missing")
    design, centre, scale = _inherited(known)
    D = known.items.dimensions
    offset = -known.items.difficulty
    fits = [fit_logistic(design, offset, row, centre, np.eye(D + 1) / 9)[0] for row in merges]
    found = np.array(fits).reshape(-1, D + 1)
    return replace(known, calibration=_moved(known, *descent.learnt(centre, scale, found)))


def update(known: Known, answers: Float[np.ndarray, "candidates asked"]) -> Known:
    """Centre and spread of the prior from the candidates of a search, by their answers to the subset alone.

    Empirical Bayes over a generation: x_m ~ N(m, V), x_m = (theta, g) of candidate m, by expectation-maximisation over
    the candidates' posteriors; the values before count as `lineage.KEPT` candidates. Call it with all candidates so
    far, or with each generation on what the last call returned. Nobody need be answered in full.

    Raises:
        ValueError: missing answers, or another number than the subset's.
    """
    if answers.ndim != 2 or answers.shape[1] != len(known.subset) or np.isnan(answers).any():
        raise ValueError(
            f"expected the candidates' answers to the {len(known.subset)} items of the subset, none missing, got "
            f"shape {answers.shape} with {np.isnan(answers).sum()} missing"
        )
    if not len(answers):
        return known
    S = known.subset
    design, first, scale = _inherited(known)
    centre, spread = first, scale
    for _ in range(20):
        x, C = fit_logistics(design[S], -known.items.difficulty[S], answers, centre, np.diag(spread**-2), descent.TAIL)
        before, weight = centre, descent.KEPT + len(x)
        centre = (descent.KEPT * first + x.sum(axis=0)) / weight
        within = np.diagonal(C, axis1=1, axis2=2)
        spread = np.sqrt(
            (descent.KEPT * (scale**2 + (centre - first) ** 2) + ((x - centre) ** 2 + within).sum(axis=0)) / weight
        )
        if np.abs(centre - before).max() < 1e-4:
            break
    return replace(known, calibration=_moved(known, centre - first, spread))


def _moved(known: Known, shift: Float[np.ndarray, " unknowns"], spread: Float[np.ndarray, " unknowns"]) -> Calibration:
    """The calibration with its prior of (theta, g) moved by `shift`, and of scale `spread`."""
    c, D = known.calibration, known.items.dimensions
    return replace(
        c,
        centre_shift=tuple(float(s) for s in descent.raised(known.items, c.centre_shift) + shift[:D]),
        spread=float(np.sqrt((spread[:D] ** 2).mean())),
        inheritance=float(c.inheritance + shift[D]),
        inheritance_spread=float(spread[D]),
    )


def _inherited(known: Known) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The design of parent_aware's unknowns (theta, g), and the centre and scale of their prior."""
    c = known.calibration
    design = np.column_stack([known.items.discrimination, known.residuals])
    centre = np.append(known.parent_abilities.mean(axis=0) + descent.raised(known.items, c.centre_shift), c.inheritance)
    return design, centre, np.append(np.full(known.items.dimensions, c.spread), c.inheritance_spread)


def _predict(answers: Float[np.ndarray, " asked"], known: Known, model: Predictor) -> Estimate:
    """Score = tau mean_S(Y) + (1 - tau) mean_U sigmoid(design x + offset), x the MAP given the answers.

    Variance = (1 - tau)² (g' C g + sum_U P (1 - P) / |U|² + u²): the posterior covariance C of x through the
    gradient g of mean_U (delta method), plus the chance in the unasked answers themselves, plus the error u that all
    candidates share (`Known.shared_error`).
    """
    _check(answers, known)
    S, U, design, offset = known.subset, known.unasked, model.design, model.offset
    if len(U) == 0:
        return _interval(float(answers.mean()), 0.0)
    x, C = fit_logistic(design[S], offset[S], answers, model.centre, model.precision, model.tail)
    P = expit(design[U] @ x + offset[U])
    V = P * (1 - P)
    g = V @ design[U] / len(U)
    tau = len(S) / len(offset)
    score = tau * answers.mean() + (1 - tau) * P.mean()
    variance = g @ C @ g + V.sum() / len(U) ** 2 + known.shared_error**2
    error = known.calibration.widening * (1 - tau) * np.sqrt(variance)
    return _interval(float(score), float(error))


def _mix(plain: Estimate, model: Estimate, known: Known) -> Estimate:
    """Both scores mixed by c, and both standard errors, as if the two always erred together: a bound."""
    c = known.calibration.mixing
    error = c * plain.standard_error + (1 - c) * model.standard_error
    return _interval(c * plain.score + (1 - c) * model.score, error)


def _interval(score: float, error: float) -> Estimate:
    return Estimate(score, max(0.0, score - Z90 * error), min(1.0, score + Z90 * error), error)


def _need_parents(known: Known) -> None:
    """Refuse to estimate by parents where none is known."""
    if not len(known.parents):
        raise ValueError("this estimator needs the answers of one or more parents, got none: use p_irt or ridge")


def _complete(answers: Float[np.ndarray, " asked"], known: Known) -> None:
    if answers.shape != known.subset.shape:
        raise ValueError(f"expected answers to the {len(known.subset)} items of the subset, got shape {answers.shape}")
    if missing := int(np.isnan(answers).sum()):
        raise ValueError(f"{missing} of {len(answers)} answers are missing (NaN): ask the candidate again")


def _check(answers: Float[np.ndarray, " asked"], known: Known) -> None:
    _complete(answers, known)
    check_responses(answers)


Estimator = Callable[[np.ndarray, Known], Estimate]
MIXED: dict[str, Estimator] = {"gp_irt": p_irt, "gmp_irt": mp_irt}
SAMPLED = {  # estimators that are far off except with the items of these extract methods
    "mean": frozenset({"uniform"}),
    "weighted_mean": frozenset({"uniform", "stratified", "anchors"}),
    "post_stratified": frozenset({"uniform", "stratified"}),
}
ESTIMATORS: dict[str, Estimator] = {
    "mean": mean,
    "weighted_mean": weighted_mean,
    "ridge": ridge,
    "p_irt": p_irt,
    "gp_irt": gp_irt,
    "mp_irt": mp_irt,
    "gmp_irt": gmp_irt,
    "bayes_mp_irt": bayes_mp_irt,
    "post_stratified": post_stratified,
    "parent_aware": parent_aware,
    "lineage": lineage,
    "margin_irt": margin_irt,
}
CONTINUOUS = frozenset({margin_irt})  # are given margins in place of right and wrong
ANSWERED = tuple(name for name, estimator in ESTIMATORS.items() if estimator not in CONTINUOUS)  # serve without margins
PARENTLESS = frozenset({"mean", "weighted_mean", "ridge", "p_irt", "gp_irt"})  # need no parents
