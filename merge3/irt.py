"""Item response theory: what each item asks, and what each model can do.

Owns the sign convention, used everywhere else in the project:

    P(right) = sigmoid(discrimination · ability - difficulty)

so a higher difficulty is harder, and abilities are N(0, I) over the population the items were fitted on. Owns
girth, whose convention is another one: items x people, whole numbers only, a (theta - b). Knows nothing of
subsets, parents or merges.
"""

from collections.abc import Callable
from dataclasses import dataclass

import girth
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit

NODES = 41  # of ability, on which em integrates
EM_STEPS = 500  # at most
LOG_A = (0.4, 0.8)  # em's prior of the logarithm of a discrimination: its mean and deviation
INTERCEPT = 3.5  # em's prior of the log-odds of a model of ability 0: its deviation
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


def fit_items(responses: Float[np.ndarray, "models items"], engine: str, dimensions: int, seed: int) -> ItemParameters:
    """Fit the items on the answers of a population, whitened: its abilities have mean 0 and covariance I.

    Identical rows (clones of one model) count once; the order of the models changes nothing.

    Args:
        responses: 1 right, 0 wrong, NaN not scored.
        engine: a key of `ENGINES`: "girth" and "em" (marginal maximum likelihood, one dimension; em takes all
            items at once) or "mirt" (joint MAP, any number of dimensions).
        dimensions: the number of abilities a model has.
        seed: of the starting point of "mirt"; "girth" has no chance in it.

    Raises:
        ValueError: no items, an item nobody answered, a population of one model, or a value other than 0, 1
            and NaN.
        KeyError: an unknown engine.
    """
    if engine not in ENGINES:
        raise KeyError(f"unknown engine {engine!r}: choose one of {sorted(ENGINES)}")
    if dimensions < 1:
        raise ValueError(f"expected at least 1 dimension, got {dimensions}")
    check_responses(responses)
    if responses.shape[1] == 0:
        raise ValueError("expected at least one item, got none: nothing can be fitted")
    if (silent := np.flatnonzero(np.isnan(responses).all(axis=0))).size:
        raise ValueError(f"no model answered the items at {silent[:10].tolist()}: score them or drop them")
    tagged = np.unique(np.nan_to_num(responses, nan=-1.0), axis=0)
    if len(tagged) < 2:
        raise ValueError(
            f"a population of one model: {len(responses)} rows, {len(tagged)} distinct; items are fitted on "
            "how models differ, so add the answers of other models"
        )
    distinct = np.where(tagged < 0, np.nan, tagged)
    return _whiten(*ENGINES[engine](distinct, dimensions, seed))


def fit_abilities(
    items: ItemParameters, responses: Float[np.ndarray, "models items"]
) -> tuple[Float[np.ndarray, "models dimensions"], Float[np.ndarray, "models dimensions"]]:
    """The abilities of models and their standard errors: MAP under the prior N(0, I).

    Finite for every pattern of answers, all right and all wrong included; a model without answers gets 0 ± 1.

    Raises:
        ValueError: a value other than 0, 1 and NaN.
    """
    check_responses(responses)
    abilities = np.zeros((len(responses), items.dimensions))
    errors = np.ones_like(abilities)
    for model, answers in enumerate(responses):
        asked = ~np.isnan(answers)
        abilities[model], covariance = fit_logistic(
            items.discrimination[asked],
            -items.difficulty[asked],
            answers[asked],
            np.zeros(items.dimensions),
            np.eye(items.dimensions),
        )
        errors[model] = np.sqrt(np.diag(covariance))
    return abilities, errors


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
    theta = 0 ~ N(0, 3.5²) keep all finite, items that all got right included. Each step is a few of Fisher's scoring,
    for all items together. Discriminations are positive.

    Raises:
        ValueError: more than one dimension.
    """
    if dimensions != 1:
        raise ValueError(f"em fits 1 dimension, got {dimensions}: use the engine 'mirt'")
    asked = ~np.isnan(responses)
    right = np.where(asked, responses, 0.0)
    wrong = asked - right
    theta = np.linspace(-5, 5, NODES)
    prior = -(theta**2) / 2
    log_a = np.full(right.shape[1], LOG_A[0])
    intercept = -_difficulty(responses, np.exp(log_a))
    for _ in range(EM_STEPS):
        z = np.exp(log_a)[:, None] * theta + intercept[:, None]
        log_wrong = -np.logaddexp(0.0, z)
        posterior = right @ (z + log_wrong) + wrong @ log_wrong + prior
        posterior = np.exp(posterior - posterior.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        expected_right, expected = right.T @ posterior, asked.T.astype(float) @ posterior
        moved = 0.0
        for _ in range(3):
            slope = np.exp(log_a)[:, None] * theta
            p = expit(slope + intercept[:, None])
            error, weight = expected_right - expected * p, expected * p * (1 - p)
            g_a = (error * slope).sum(axis=1) - (log_a - LOG_A[0]) / LOG_A[1] ** 2
            g_d = error.sum(axis=1) - intercept / INTERCEPT**2
            h_aa = (weight * slope**2).sum(axis=1) + 1 / LOG_A[1] ** 2
            h_ad = (weight * slope).sum(axis=1)
            h_dd = weight.sum(axis=1) + 1 / INTERCEPT**2
            determinant = h_aa * h_dd - h_ad**2
            step_a = np.clip((h_dd * g_a - h_ad * g_d) / determinant, -0.5, 0.5)
            step_d = np.clip((h_aa * g_d - h_ad * g_a) / determinant, -1.0, 1.0)
            log_a, intercept = log_a + step_a, intercept + step_d
            moved = max(moved, float(np.abs(step_a).max()), float(np.abs(step_d).max()))
        if moved < 1e-4:
            break
    items = ItemParameters(np.exp(log_a)[:, None], -intercept)
    return items, fit_abilities(items, responses)[0]


def fit_mirt(
    responses: Float[np.ndarray, "models items"], dimensions: int, seed: int
) -> tuple[ItemParameters, Float[np.ndarray, "models dimensions"]]:
    """Joint MAP of items and abilities by L-BFGS, any number of dimensions; deterministic in `seed`.

    Priors: abilities N(0, I); discriminations N(1, 1) in the first dimension, N(0, 1) in the others;
        difficulties
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

    b = -sqrt(1 + .346 a²) log((k + 1/2) / (n - k + 1/2)), MacKay's (1992) approximation of the mean of a
    sigmoid.
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
