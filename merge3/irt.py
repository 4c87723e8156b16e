"""Item response theory: what each item asks, and what each model can do.

Owns the sign convention, used everywhere else in the project:

    P(right) = sigmoid(discrimination · ability - difficulty)

so a higher difficulty is harder, and abilities are N(0, I) over the population the items were fitted on. Owns
girth, whose convention is another one: items x people, whole numbers only, a (theta - b). Knows nothing of
subsets, parents or merges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import girth
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit

NODES = 41  # of ability, on which em integrates
EM_STEPS = 200  # at most; each is three evaluations
LOG_A = (0.4, 0.8)  # em's prior of the logarithm of a discrimination: its mean and deviation
INTERCEPT = 3.5  # em's prior of the log-odds of a model of ability 0: its deviation
STEEPER, HARDER = 0.3, 2.0  # deviations of an item of a family from the population's: of log a, and of the difficulty
CHUNK = 50  # items girth fits at once: its cost grows with the square of their number


@dataclass(frozen=True)
class ItemParameters:
    """The parameters of items, in P(right) = sigmoid(discrimination · ability - difficulty)."""

    discrimination: Float[np.ndarray, "items dimensions"]
    difficulty: Float[np.ndarray, " items"]

    def __len__(self) -> int:
        return len(self.difficulty)

    @property
    def dimensions(self) -> int:
        """The number of abilities a model has."""
        return int(self.discrimination.shape[1])

    def take(self, indices: Int[np.ndarray, " some"]) -> "ItemParameters":
        """The items at `indices`, in that order."""
        return ItemParameters(self.discrimination[indices], self.difficulty[indices])


def probability(
    items: ItemParameters, abilities: Float[np.ndarray, "models dimensions"]
) -> Float[np.ndarray, "models items"]:
    """The probability that each model is right on each item."""
    return np.asarray(expit(abilities @ items.discrimination.T - items.difficulty))


def fit_items(
    responses: Float[np.ndarray, "models items"],
    engine: str,
    dimensions: int | None,
    seed: int,
) -> ItemParameters:
    """Fit the items on the answers of a population, whitened: its abilities have mean 0 and covariance I.

    Identical rows (clones of one model) count once; the order of the models changes nothing.

    Args:
        responses: 1 right, 0 wrong, NaN not scored.
        engine: a key of `ENGINES`: "girth" and "em" (marginal maximum likelihood, one dimension; em takes all
            items at once) or "mirt" (joint MAP, any number of dimensions).
        dimensions: the number of abilities a model has; None: what `choose_dimensions` finds.
        seed: of the starting point of "mirt"; the others have no chance in them.

    Raises:
        ValueError: no items, an item nobody answered, a population of one model or whose models answer all items alike,
            a value other than 0, 1 and NaN, or an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}: choose one of {sorted(ENGINES)}")
    if dimensions is not None and dimensions < 1:
        raise ValueError(f"expected at least 1 dimension, got {dimensions}")
    check_responses(responses)
    if responses.shape[1] == 0:
        raise ValueError("expected at least one item, got none: nothing can be fitted")
    if (silent := np.flatnonzero(np.isnan(responses).all(axis=0))).size:
        raise ValueError(f"no model answered the items at {silent[:10].tolist()}: score them or drop them")
    tagged = np.unique(np.nan_to_num(responses, nan=-1.0), axis=0)
    if len(responses) < 2:
        raise ValueError(
            "a population of one model: items are fitted on how models differ, so add the answers of other models"
        )
    if len(tagged) < 2:
        raise ValueError(
            f"all {len(responses)} models answer these {responses.shape[1]} items alike "
            f"({np.nanmean(responses):.0%} right), so nothing can be learned from them: take other items, harder ones "
            "where all are right, easier ones where none is"
        )
    distinct = np.where(tagged < 0, np.nan, tagged)
    if dimensions is None:
        dimensions = choose_dimensions(distinct, seed)[0] if engine == "mirt" else 1
    return _whiten(*ENGINES[engine](distinct, dimensions, seed))


def adapt_items(items: ItemParameters, responses: Float[np.ndarray, "models items"]) -> ItemParameters:
    """The items as a few models of one family see them: joint MAP of items and abilities around a population's fit.

    log a ~ N(population's, `STEEPER`²), difficulty ~ N(population's, `HARDER`²), abilities ~ N(m, 1), m the models'
    mean by the population's items. The scale stays the population's. No models: nothing changes. An item whose
    discrimination is below .001 counts as one of .001.

    Args:
        items: the population's, of one dimension.
        responses: 1 right, 0 wrong, NaN not scored.

    Raises:
        ValueError: more than one dimension, or another number of items.
    """
    if items.dimensions != 1 or responses.shape[1] != len(items):
        raise ValueError(
            f"expected answers to {len(items)} items of one dimension, got {responses.shape[1]} answers a model and "
            f"{items.dimensions} dimensions: fit the population by 'em'"
        )
    check_responses(responses)
    M, N = responses.shape
    if not M:
        return items
    asked = ~np.isnan(responses)
    Y = np.where(asked, responses, 0.0)
    log_a, easy = np.log(np.maximum(items.discrimination[:, 0], 1e-3)), -items.difficulty
    first = fit_abilities(items, responses)[0][:, 0]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta, steep, d = np.split(x, [M, M + N])
        a = np.exp(steep)
        z = theta[:, None] * a + d
        away = (theta - first.mean(), (steep - log_a) / STEEPER, (d - easy) / HARDER)
        R = np.where(asked, expit(z) - Y, 0.0)
        gradient = [R @ a + away[0], (R.T @ theta) * a + away[1] / STEEPER, R.sum(axis=0) + away[2] / HARDER]
        height = (np.logaddexp(0.0, z) - Y * z)[asked].sum() + sum((part**2).sum() for part in away) / 2
        return float(height), np.concatenate(gradient)

    start = np.concatenate([first, log_a, easy])
    x = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return ItemParameters(np.exp(x[M : M + N])[:, None], -x[M + N :])


def choose_dimensions(
    responses: Float[np.ndarray, "models items"],
    seed: int,
    candidates: Sequence[int] = (1, 2, 3, 5, 8),
    share: float = 0.1,
) -> tuple[int, dict[int, float]]:
    """The number of dimensions whose mirt fit predicts held-out answers best, and each one's log-likelihood an answer.

    A `share` of the answers is hidden at random. More dimensions are tried until one is no better than the one before.
    Where there are so few answers that none is hidden, the first of the candidates, and no log-likelihood.
    """
    rng = np.random.default_rng(seed)
    asked = ~np.isnan(responses)
    hidden = asked & (rng.random(responses.shape) < share)
    hidden[:, (asked & ~hidden).sum(axis=0) == 0] = False
    if not hidden.any():
        return candidates[0], {}
    shown = np.where(hidden, np.nan, responses)
    found: dict[int, float] = {}
    for D in candidates:
        items = _whiten(*fit_mirt(shown, D, seed))
        P = probability(items, fit_abilities(items, shown)[0])
        found[D] = loglikelihood(P[hidden], responses[hidden])
        if found[D] < max(found.values()):
            break
    return max(found, key=lambda D: found[D]), found


def loglikelihood(probabilities: Float[np.ndarray, "*shape"], answers: Float[np.ndarray, "*shape"]) -> float:
    """The mean log-likelihood of answers, in nats; those not scored are left out."""
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return float(np.nanmean(answers * np.log(p) + (1 - answers) * np.log1p(-p)))


def fit_abilities(
    items: ItemParameters, responses: Float[np.ndarray, "models items"]
) -> tuple[Float[np.ndarray, "models dimensions"], Float[np.ndarray, "models dimensions"]]:
    """The abilities of models and their standard errors: MAP under the prior N(0, I).

    Finite for every pattern of answers, all right and all wrong included; a model without answers gets 0 ± 1.

    Raises:
        ValueError: a value other than 0, 1 and NaN, or another number of items.
    """
    if responses.shape[1:] != (len(items),):
        raise ValueError(f"expected answers of models x {len(items)} items, got shape {responses.shape}")
    check_responses(responses)
    D = items.dimensions
    abilities, covariance = fit_logistics(items.discrimination, -items.difficulty, responses, np.zeros(D), np.eye(D))
    return abilities, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


def fit_logistics(
    design: Float[np.ndarray, "items unknowns"],
    offset: Float[np.ndarray, " items"],
    answers: Float[np.ndarray, "models items"],
    centre: Float[np.ndarray, " unknowns"],
    precision: Float[np.ndarray, "unknowns unknowns"],
    tail: float = np.inf,
) -> tuple[Float[np.ndarray, "models unknowns"], Float[np.ndarray, "models unknowns unknowns"]]:
    """`fit_logistic` of many models at once; an answer that is NaN was not asked."""
    models, k = len(answers), len(centre)
    asked = ~np.isnan(answers)
    Y = np.where(asked, answers, 0.0)
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), k * k)

    def state(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z = x @ design.T + offset
        away = x - centre
        distance = np.einsum("mi,ij,mj->m", away, precision, away)
        prior = distance / 2 if np.isinf(tail) else (tail + k) / 2 * np.log1p(distance / tail)
        return z, distance, ((np.logaddexp(0.0, z) - Y[rows] * z) * asked[rows]).sum(axis=1) + prior

    x, H = np.tile(centre, (models, 1)), np.tile(precision, (models, 1, 1))
    active = np.arange(models)
    for _ in range(100):
        z, distance, current = state(x[active], active)
        p = expit(z)
        Q = np.multiply.outer(np.ones(len(active)) if np.isinf(tail) else (tail + k) / (tail + distance), precision)
        H[active] = ((p * (1 - p) * asked[active]) @ squares).reshape(-1, k, k) + Q
        gradient = ((Y[active] - p) * asked[active]) @ design - np.einsum("mij,mj->mi", Q, x[active] - centre)
        step = np.linalg.solve(H[active], gradient[:, :, None])[:, :, 0]
        moving = np.abs(step).max(axis=1) > 1e-7
        active, step, current = active[moving], step[moving], current[moving]
        if not len(active):
            break
        uphill = np.arange(len(active))
        for _ in range(40):
            worse = state(x[active[uphill]] + step[uphill], active[uphill])[2] > current[uphill]
            uphill = uphill[worse]
            if not len(uphill):
                break
            step[uphill] /= 2
        step[uphill] = 0.0
        x[active] += step
        active = np.delete(active, uphill)
    return x, np.linalg.inv(H)


def fit_logistic(
    design: Float[np.ndarray, "items unknowns"],
    offset: Float[np.ndarray, " items"],
    answers: Float[np.ndarray, " items"],
    centre: Float[np.ndarray, " unknowns"],
    precision: Float[np.ndarray, "unknowns unknowns"],
    tail: float = np.inf,
) -> tuple[Float[np.ndarray, " unknowns"], Float[np.ndarray, "unknowns unknowns"]]:
    """The most probable x, and its covariance, where P(right) = sigmoid(design x + offset).

    Every fit of abilities is of this form. The prior of x is N(centre, precision⁻¹), or, with a finite
    `tail`, Student's t of that many degrees of freedom, which lets x go far where the answers insist. Newton
    with halved steps; the t enters as a Gaussian whose precision is reweighted at each step (Lange, Little &
    Taylor 1989), so that every step is downhill. The covariance is the inverse of the last curvature. Finite
    whenever `precision` is positive definite, all right and all wrong included.
    """
    k = len(centre)

    def loss(z: np.ndarray, distance: float) -> float:
        prior = distance / 2 if np.isinf(tail) else (tail + k) / 2 * np.log1p(distance / tail)
        return float(np.logaddexp(0.0, z).sum() - answers @ z + prior)

    x, z, distance = centre, design @ centre + offset, 0.0
    current = loss(z, distance)
    for _ in range(100):
        p = expit(z)
        Q = precision * (1.0 if np.isinf(tail) else (tail + k) / (tail + distance))
        H = (design.T * (p * (1 - p))) @ design + Q
        step = np.linalg.solve(H, design.T @ (answers - p) - Q @ (x - centre))
        while np.abs(step).max() > 1e-7:
            away = x + step - centre
            z_next, distance_next = design @ (x + step) + offset, float(away @ precision @ away)
            if (following := loss(z_next, distance_next)) <= current:
                break
            step = step / 2
        else:
            break
        x, z, distance, current = x + step, z_next, distance_next, following
    return x, np.linalg.inv(H)


@dataclass(frozen=True)
class Predictor:
    """Models whose answers are logit P(right on item i) = design_i · x + offset_i, with a prior of x.

    The prior is N(centre, precision⁻¹), or Student's t of `tail` degrees of freedom.
    """

    design: Float[np.ndarray, "items unknowns"]
    offset: Float[np.ndarray, " items"]
    centre: Float[np.ndarray, " unknowns"]
    precision: Float[np.ndarray, "unknowns unknowns"]
    tail: float = np.inf

    def probability(self, x: Float[np.ndarray, "models unknowns"]) -> Float[np.ndarray, "models items"]:
        """The probability that each model is right on each item."""
        return np.asarray(expit(x @ self.design.T + self.offset))

    def take(self, indices: Int[np.ndarray, " some"]) -> "Predictor":
        """That of the items at `indices`, in that order."""
        return replace(self, design=self.design[indices], offset=self.offset[indices])

    def first(self, unknowns: int) -> "Predictor":
        """The same, the unknowns after the first at the centre of their prior."""
        fixed = self.offset + self.design[:, unknowns:] @ self.centre[unknowns:]
        return Predictor(
            self.design[:, :unknowns], fixed, self.centre[:unknowns], self.precision[:unknowns, :unknowns], self.tail
        )

    def fit(
        self, answers: Float[np.ndarray, "models items"]
    ) -> tuple[Float[np.ndarray, "models unknowns"], Float[np.ndarray, "models unknowns unknowns"]]:
        """The MAP of each model's x and its covariance; NaN: not asked."""
        some = ~np.isnan(answers).all(axis=0)
        return fit_logistics(
            self.design[some], self.offset[some], answers[:, some], self.centre, self.precision, self.tail
        )

    def scores(
        self, answers: Float[np.ndarray, "models items"]
    ) -> tuple[Float[np.ndarray, " models"], Float[np.ndarray, " models"]]:
        """Each model's accuracy over all items, of which it answered some (the others are NaN), and its error.

        Variance = g' C g + sum_U P (1 - P) / N²: the posterior covariance C of x through the gradient g of the score
        (delta method), and the chance in the unasked answers U.
        """
        x, C = self.fit(answers)
        P, unasked = self.probability(x), np.isnan(answers)
        V = np.where(unasked, P * (1 - P), 0.0) / len(self.offset)
        g = V @ self.design
        variance = np.einsum("mi,mij,mj->m", g, C, g) + V.sum(axis=1) / len(self.offset)
        return np.where(unasked, P, answers).mean(axis=1), np.sqrt(variance)

    def gains(
        self,
        x: Float[np.ndarray, "models unknowns"],
        covariance: Float[np.ndarray, "models unknowns unknowns"],
        unasked: Bool[np.ndarray, "models items"],
    ) -> Float[np.ndarray, "models items"]:
        """By how much an answer to each item would lower the variance of each model's score; 0 for items asked.

        c-optimality (Silvey 1980): with v = P (1 - P) and the score's gradient g, asking item i takes v_i (g' C d_i)² /
        (1 + v_i d_i' C d_i) off g' C g.
        """
        P = self.probability(x)
        V = P * (1 - P)
        g = np.where(unasked, V, 0.0) @ self.design / len(self.offset)
        to_score = np.einsum("mij,mj->mi", covariance, g) @ self.design.T
        own = np.einsum("ni,mij,nj->mn", self.design, covariance, self.design, optimize=True)
        return np.asarray(np.where(unasked, V * to_score**2 / (1 + V * own), 0.0))


@dataclass(frozen=True)
class Fit:
    """How well items, or models, are described by their parameters; near 1 is as expected for infit and outfit.

    NaN for a row without answers.
    """

    infit: Float[np.ndarray, " rows"]
    """Mean squared residual over its expectation, weighted by information (Wright & Masters 1982)."""
    outfit: Float[np.ndarray, " rows"]
    """Mean squared standardised residual: sensitive to surprises far from an item's difficulty."""
    discrimination: Float[np.ndarray, " rows"]
    """Items: correlation of the answers with the rest score. Models: lz, the standardised log-likelihood (Drasgow,
    Levine & Williams 1985): below -2 the answers are not those of this ability."""

    @property
    def negative(self) -> Int[np.ndarray, " some"]:
        """The rows below 0: items that better models have wrong (a wrong key, most often)."""
        return np.flatnonzero(self.discrimination < 0)


def item_fit(items: ItemParameters, responses: Float[np.ndarray, "models items"]) -> Fit:
    """How well each item follows the model; see `Fit`. Items whose answers do not vary have discrimination NaN."""
    P = probability(items, fit_abilities(items, responses)[0])
    asked = ~np.isnan(responses)
    Y = np.where(asked, responses, 0.0)
    rest = np.nansum(responses, axis=1)[:, None] - Y
    share = rest / np.maximum(asked.sum(axis=1)[:, None] - asked, 1)
    correlations = np.full(len(items), np.nan)
    for item in range(len(items)):
        y, s = responses[asked[:, item], item], share[asked[:, item], item]
        if len(y) and np.ptp(y) > 0 and np.ptp(s) > 0:
            correlations[item] = np.corrcoef(y, s)[0, 1]
    return Fit(*_mean_squares(P, responses, 0), correlations)


def model_fit(items: ItemParameters, responses: Float[np.ndarray, "models items"]) -> Fit:
    """How well each model's answers follow its ability; see `Fit`."""
    abilities = fit_abilities(items, responses)[0]
    P, asked = probability(items, abilities), ~np.isnan(responses)
    logit = abilities @ items.discrimination.T - items.difficulty  # finite where P is 0 or 1 to the last bit
    surprise = np.where(asked, (responses - P) * logit, 0.0).sum(axis=1)
    spread = np.sqrt(np.where(asked, P * (1 - P) * logit**2, 0.0).sum(axis=1))
    spread = np.where(asked.any(axis=1), np.maximum(spread, 1e-12), np.nan)
    return Fit(*_mean_squares(P, responses, 1), surprise / spread)


def _mean_squares(
    P: Float[np.ndarray, "models items"], responses: Float[np.ndarray, "models items"], axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Infit and outfit over an axis; NaN where there are no answers."""
    asked = ~np.isnan(responses)
    V = np.clip(P * (1 - P), 1e-12, None)
    squares = np.where(asked, (responses - P) ** 2, 0.0)
    count = np.where(asked.any(axis=axis), asked.sum(axis=axis), np.nan)
    infit = squares.sum(axis=axis) / np.where(np.isnan(count), np.nan, np.where(asked, V, 0.0).sum(axis=axis))
    return infit, (squares / V).sum(axis=axis) / count


def check_responses(responses: Float[np.ndarray, "*shape"]) -> None:
    """Refuse anything but 1 (right), 0 (wrong) and NaN (not scored)."""
    strange = ~(np.isnan(responses) | (responses == 0) | (responses == 1))
    if strange.any():
        raise ValueError(
            "expected answers that are 1 (right), 0 (wrong) or NaN (not scored), "
            f"got {np.unique(responses[strange])[:5].tolist()}: grade them first"
        )


def fit_girth(
    responses: Float[np.ndarray, "models items"],
    dimensions: int,
    seed: int,  # noqa: ARG001 - the signature of an engine
) -> tuple[ItemParameters, Float[np.ndarray, "models dimensions"]]:
    """Marginal maximum likelihood by girth, one dimension; discriminations lie in [.2, 5].

    Items go in chunks of at most `CHUNK`, every chunk with the whole range of difficulties; all are on the
    one scale of theta ~ N(0, 1). Items that all got right, or all wrong, are set aside (girth takes the
    easiest for the hardest): they receive the median discrimination, and the difficulty of their smoothed
    log-odds.

    Raises:
        ValueError: more than one dimension, or no item on which the models differ.
    """
    if dimensions != 1:
        raise ValueError(f"girth fits 1 dimension, got {dimensions}: use the engine 'mirt'")
    right, asked = np.nansum(responses, axis=0), (~np.isnan(responses)).sum(axis=0)
    varied = np.flatnonzero((right > 0) & (right < asked))
    if varied.size == 0:
        raise ValueError("no item that some model got right and another wrong: girth has nothing to fit")
    by_difficulty = varied[np.argsort(right[varied] / asked[varied], kind="stable")]
    chunks = -(-len(varied) // CHUNK)
    a, b = np.empty(len(right)), np.empty(len(right))
    for start in range(chunks):
        chunk = by_difficulty[start::chunks]
        tagged = girth.tag_missing_data(np.nan_to_num(responses[:, chunk].T, nan=-1.0), [0, 1]).astype(int)
        fitted = girth.twopl_mml(tagged)
        a[chunk] = fitted["Discrimination"]
        b[chunk] = a[chunk] * fitted["Difficulty"]  # a (theta - b) -> a theta - b
    constant = np.setdiff1d(np.arange(len(right)), varied)
    a[constant] = np.median(a[varied])
    b[constant] = _difficulty(responses[:, constant], a[constant])
    items = ItemParameters(a[:, None], b)
    return items, fit_abilities(items, responses)[0]


def fit_em(
    responses: Float[np.ndarray, "models items"],
    dimensions: int,
    seed: int,  # noqa: ARG001 - the signature of an engine
) -> tuple[ItemParameters, Float[np.ndarray, "models dimensions"]]:
    """Marginal maximum likelihood by expectation-maximisation (Bock & Aitkin 1981), one dimension, all items at once.

    theta ~ N(0, 1) on `NODES` nodes; in log space, so any number of items. Priors log a ~ N(.4, .8²) and a theta - b at
    theta = 0 ~ N(0, 3.5²) keep all finite, items that all got right included. A maximisation is one step of Fisher's
    scoring for all items together, damped by the slope in log a, without which steep items swing for ever; pairs of
    steps are extrapolated (SQUAREM, Varadhan & Roland 2008) wherever that makes the posterior higher. Discriminations
    are positive.

    Raises:
        ValueError: more than one dimension.
    """
    if dimensions != 1:
        raise ValueError(f"em fits 1 dimension, got {dimensions}: use the engine 'mirt'")
    asked = ~np.isnan(responses)
    full, present = bool(asked.all()), asked.astype(float)
    right = np.where(asked, responses, 0.0)
    theta = np.linspace(-5, 5, NODES)
    prior = -(theta**2) / 2 - np.log(np.exp(-(theta**2) / 2).sum())

    def step(x: np.ndarray) -> tuple[np.ndarray, float]:
        """The next (log a, intercept), and the log-posterior of the given ones."""
        # expectation: where each model's ability is, and so how many there are at each node, and have an item right
        log_a, intercept = x
        a = np.exp(log_a)
        z = a[:, None] * theta + intercept[:, None]
        log_wrong = -np.logaddexp(0.0, z)
        joint = right @ z + (log_wrong.sum(axis=0) if full else present @ log_wrong) + prior
        highest = joint.max(axis=1, keepdims=True)
        posterior = np.exp(joint - highest)
        total = posterior.sum(axis=1, keepdims=True)
        priors = ((log_a - LOG_A[0]) ** 2).sum() / LOG_A[1] ** 2 + (intercept**2).sum() / INTERCEPT**2
        height = float((np.log(total) + highest).sum() - priors / 2)
        posterior /= total
        expected_right = right.T @ posterior
        expected = posterior.sum(axis=0)[None] if full else present.T @ posterior
        # maximisation: gradient g and information h in log a and the intercept d, solved two by two for each item
        p = np.exp(z + log_wrong)
        error, w = expected_right - expected * p, expected * p * (1 - p)
        g_a = a * (error @ theta) - (log_a - LOG_A[0]) / LOG_A[1] ** 2
        g_d = error.sum(axis=1) - intercept / INTERCEPT**2
        h_aa = a**2 * (w @ theta**2) + 1 / LOG_A[1] ** 2 + np.abs(a * (error @ theta))
        h_ad = a * (w @ theta)
        h_dd = w.sum(axis=1) + 1 / INTERCEPT**2
        determinant = h_aa * h_dd - h_ad**2
        step_a = np.clip((h_dd * g_a - h_ad * g_d) / determinant, -0.5, 0.5)
        step_d = np.clip((h_aa * g_d - h_ad * g_a) / determinant, -1.0, 1.0)
        return np.stack([log_a + step_a, intercept + step_d]), height

    start = np.full(right.shape[1], LOG_A[0])
    x = np.stack([start, -_difficulty(responses, np.exp(start))])
    for _ in range(EM_STEPS):
        one = step(x)[0]
        two, height = step(one)
        if np.abs(two - one).max() < 1e-4:
            x = two
            break
        r, v = one - x, two - 2 * one + x
        length = max(1.0, float(np.sqrt((r**2).sum() / max((v**2).sum(), 1e-300))))
        far, reached = step(x + 2 * length * r + length**2 * v)
        x = far if reached >= height else two
    items = ItemParameters(np.exp(x[0])[:, None], -x[1])
    return items, fit_abilities(items, responses)[0]


def fit_mirt(
    responses: Float[np.ndarray, "models items"], dimensions: int, seed: int
) -> tuple[ItemParameters, Float[np.ndarray, "models dimensions"]]:
    """Joint MAP of items and abilities by L-BFGS, any number of dimensions; deterministic in `seed`.

    Priors: abilities N(0, I); discriminations N(1, 1) in the first dimension, N(0, 1) in the others; difficulties
    N(0, 3²). They keep all finite, items that all got right included.
    """
    observed = ~np.isnan(responses)
    Y = np.where(observed, responses, 0.0)
    (models, count), D = Y.shape, dimensions
    a_mean = np.zeros((count, D))
    a_mean[:, 0] = 1.0

    def unpack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        theta, a, b = np.split(x, [models * D, (models + count) * D])
        return theta.reshape(models, D), a.reshape(count, D), b

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta, a, b = unpack(x)
        z = theta @ a.T - b
        misfit = (np.logaddexp(0.0, z) - Y * z)[observed].sum()
        prior = (theta**2).sum() + ((a - a_mean) ** 2).sum() + (b**2).sum() / 9
        R = np.where(observed, expit(z) - Y, 0.0)
        gradient = [R @ a + theta, R.T @ theta + a - a_mean, -R.sum(axis=0) + b / 9]
        return misfit + prior / 2, np.concatenate([part.ravel() for part in gradient])

    rng = np.random.default_rng(seed)
    theta, a = rng.normal(0, 0.3, (models, D)), a_mean + rng.normal(0, 0.3, (count, D))
    theta[:, 0] = -_difficulty(responses.T, np.zeros(models))  # the log-odds of being right
    theta[:, 0] -= theta[:, 0].mean()
    start = np.concatenate([theta.ravel(), a.ravel(), _difficulty(responses, np.ones(count))])
    theta, a, b = unpack(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x)
    return ItemParameters(a, b), theta


def _difficulty(
    responses: Float[np.ndarray, "models items"], discrimination: Float[np.ndarray, " items"]
) -> Float[np.ndarray, " items"]:
    """The difficulty at which a population of N(0, 1) abilities gives each item its share of right answers.

    b = -sqrt(1 + .346 a²) log((k + 1/2) / (n - k + 1/2)), Zeger, Liang & Albert's (1988) approximation of the mean of
    a sigmoid, .346 = (16 sqrt(3) / 15 pi)².
    """
    n = (~np.isnan(responses)).sum(axis=0)
    k = np.nansum(responses, axis=0)
    return np.asarray(-np.sqrt(1 + 0.346 * discrimination**2) * np.log((k + 0.5) / (n - k + 0.5)))


def _whiten(items: ItemParameters, abilities: Float[np.ndarray, "models dimensions"]) -> ItemParameters:
    """The same probabilities with abilities of mean 0, covariance I, and mean discriminations >= 0.

    With theta = W theta' + m: a · theta - b = (aW) · theta' - (b - a · m). A direction in which the models do
    not differ cannot be stretched to 1; its discriminations shrink to nothing instead.
    """
    a, b, m = items.discrimination, items.difficulty, abilities.mean(axis=0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(abilities.T, bias=True)))
    W = vectors[:, ::-1] * np.sqrt(np.maximum(values[::-1], 1e-8))
    W = W * np.where((a @ W).mean(axis=0) < 0, -1.0, 1.0)
    return ItemParameters(a @ W, b - a @ m)


Engine = Callable[[np.ndarray, int, int], tuple[ItemParameters, np.ndarray]]
ENGINES: dict[str, Engine] = {"girth": fit_girth, "em": fit_em, "mirt": fit_mirt}
