"""The merge methods: what each does with one parameter, as an instruction for the kernels.

A method is a function of a parameter's ingredients, its coefficients and the mask seed. It moves no tensors: it
returns weights and thresholds, and `kernels` does the work in one pass over memory. Formulas follow the papers;
conventions and defaults are mergekit's (arXiv 2403.13257) where it is right; each function says where it departs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from merge3.ingredients import LEVELS, Ingredients, kept_ranks
from merge3.kernels import Combination, Instruction, Keep, Vote
from merge3.recipe import Coefficients

COLLINEAR = 0.9995  # cosine above which slerp is lerp, as in mergekit
TINY = 1e-8

Experts = Sequence[str]
Method = Callable[[Ingredients, Experts, Coefficients, int], Instruction]


def linear(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """sum(w_i x_i), divided by sum(w_i) with `normalize`: Model Soups (arXiv 2203.05482).

    Weights that sum to zero return the base.
    """
    weights = coefficients.weights
    if not any(weights):
        return Combination(1.0, weights)
    if not coefficients.options["normalize"]:
        return Combination(0.0, weights)
    total = sum(weights)
    if abs(total) < TINY:
        return Combination(1.0, (0.0,) * len(weights))
    return Combination(0.0, tuple(w / total for w in weights))


def task_arithmetic(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Base + lambda sum(w_i d_i) (arXiv 2212.04089); with `normalize` divided by sum(w_i)."""
    weights = _scaled(coefficients)
    return Combination(_rest(weights), weights)


def slerp(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Spherical interpolation of two whole tensors, flattened: sin((1-t)θ)/sin θ v0 + sin(tθ)/sin θ v1.

    θ is the angle of the unit vectors, v0 and v1 are not normalised. Of two experts v0 is the first and v1 the
    second; one expert is v1 against the base. t is the last weight, in [0, 1]. Nearly collinear tensors
    (cosine above .9995) are interpolated linearly.
    """
    t = coefficients.weights[-1]
    if t in (0, 1):
        first, last = 1 - t, t
    else:
        gram = _models(parameter.gram(experts))
        first, last = _arc(gram[-2, -2], gram[-1, -1], gram[-2, -1], t, COLLINEAR)
    return Combination(0.0, (first, last)) if len(experts) == 2 else Combination(first, (last,))


def nuslerp(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Slerp of two experts with t = w_1 / (w_0 + w_1), of their differences with `around_base`, else of the models."""
    weights = coefficients.weights
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    around = bool(coefficients.options["around_base"])
    gram = parameter.gram(experts) if around else _models(parameter.gram(experts))
    pair = (1 - t, t) if t in (0, 1) else _arc(gram[1, 1], gram[2, 2], gram[1, 2], t, 1 - 1e-16)
    return Combination(_rest(pair) if around else 0.0, pair)


def ties(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Trim, elect sign, merge what agrees (arXiv 2306.01708).

    Entries that tie with the smallest kept magnitude are all kept (an unstable sort picks among them in mergekit).
    """
    return _vote(coefficients, _largest(parameter, experts, coefficients, 0.0), elect=True)


def breadcrumbs(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Neither the share `gamma` of the largest entries nor the smallest (arXiv 2312.06795); added up."""
    gamma = coefficients.options["gamma"]
    return _vote(coefficients, _largest(parameter, experts, coefficients, gamma), elect=False)


def breadcrumbs_ties(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """As `breadcrumbs`, merged by elected sign."""
    gamma = coefficients.options["gamma"]
    return _vote(coefficients, _largest(parameter, experts, coefficients, gamma), elect=True)


def dare_linear(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Base + sum(w_i drop(d_i)) (arXiv 2311.03099): kept with probability density, and divided by it.

    The density is rounded to 1/256. (mergekit rescales to the tensor's L1 norm instead.)
    """
    return _vote(coefficients, _chance(parameter, experts, coefficients, seed, 0.0), elect=False)


def dare_ties(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """As `dare_linear`, merged by elected sign."""
    return _vote(coefficients, _chance(parameter, experts, coefficients, seed, 0.0), elect=True)


def della(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Kept with a probability that rises with the magnitude's rank in its row (arXiv 2406.11617); elected sign.

    From density - epsilon to density + epsilon, within (0, 1], in steps of 1/256; a kept entry is divided by its
    probability.
    """
    epsilon = coefficients.options["epsilon"]
    return _vote(coefficients, _chance(parameter, experts, coefficients, seed, epsilon), elect=True)


def della_linear(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """As `della`, added up."""
    epsilon = coefficients.options["epsilon"]
    return _vote(coefficients, _chance(parameter, experts, coefficients, seed, epsilon), elect=False)


def model_stock(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """T mean(x_i) + (1 - t) b with t = N cos / (1 + (N - 1) cos), cos the mean cosine of differences (2403.19522)."""
    inner = parameter.gram(experts)[1:, 1:]
    norms = np.sqrt(np.diag(inner))
    pairs = np.triu_indices(len(experts), 1)
    cosine = float((inner[pairs] / np.maximum(norms[pairs[0]] * norms[pairs[1]], 1e-6)).clip(-1, 1).mean())
    count = len(experts)
    below = 1 + (count - 1) * cosine
    t = count * cosine / below if abs(below) >= 1e-6 else 0.0
    return Combination(1 - t, (t / count,) * count)


def multislerp(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Barycentric interpolation on the sphere, in the tangent space at the weighted mean, times the mean norm.

    Of the experts' differences with `around_base`, else of the models. One expert is itself.

    Raises:
        ValueError: the weighted mean is zero, of more than two.
    """
    around = bool(coefficients.options["around_base"])
    if len(experts) == 1:
        return Combination(0.0, (1.0,))
    gram = (parameter.gram(experts) if around else _models(parameter.gram(experts)))[1:, 1:]
    weights = np.array(coefficients.weights)
    if not weights.any():
        return Combination(1.0, (0.0,) * len(experts))
    if coefficients.options["normalize"] and abs(weights.sum()) > TINY:
        weights = weights / weights.sum()
    alone = np.count_nonzero(weights) == 1
    found = tuple(weights.tolist()) if alone else _tangent_mean(gram, weights, parameter.name)
    return Combination(_rest(found) if around else 0.0, found)


def karcher(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """The Riemannian mean of the models' unit vectors, times their mean norm (arXiv 2603.04972)."""
    tolerance, gram = coefficients.options["tol"], _models(parameter.gram(experts))[1:, 1:]
    norms = np.sqrt(np.diag(gram))
    valid = norms > tolerance
    if not valid.any():
        return Combination(0.0, (0.0,) * len(experts))
    units = np.divide(1.0, norms, out=np.zeros_like(norms), where=valid)
    cosines = gram * np.outer(units, units)  # of the unit vectors, in whose span the mean lies
    share = valid / valid.sum()
    mean = _unit(share, cosines, valid)
    for _ in range(int(coefficients.options["max_iter"])):
        dots = (cosines @ mean).clip(-1, 1)
        angles = np.arccos(dots)
        far = valid & (angles >= tolerance)
        pull = np.divide(share * angles, np.sin(angles), out=np.zeros_like(angles), where=far & (np.sin(angles) > 0))
        tangent = pull - (pull * dots).sum() * mean
        length = np.sqrt(max(tangent @ cosines @ tangent, 0.0))
        if length < tolerance:
            break
        mean = _unit(np.cos(length) * mean + np.sin(length) * tangent / length, cosines, valid)
    return Combination(0.0, tuple((mean * units * norms.mean()).tolist()))


def sce(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """Select by variance over the experts, weigh by energy, elect signs, erase what disagrees (arXiv 2408.07990).

    The weights are the mean squares of what is selected. (mergekit weighs all alike where they sum to less than 1e-6,
    as those of most fine-tunes do.)
    """
    share = coefficients.options["select_topk"]
    spread = parameter.spread(experts) if share < 1 else None
    cut = 0.0 if spread is None else _reached(spread.numpy(), share)
    energy = []
    for expert in experts:
        difference = parameter.difference(expert)
        if spread is not None:
            difference = difference.where(spread >= cut, 0.0)
        energy.append(float(difference.double().square().mean()))
    total = sum(energy)
    weights = tuple(e / total if total else 0.0 for e in energy)
    # signs are elected by the plain sum: the weights come in after
    return Vote(weights, tuple(Keep() for _ in experts), elect=True, mean=True, spread=cut, plain_signs=True)


def passthrough(parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int) -> Instruction:
    """One expert as it is, times its weight."""
    return Combination(0.0, coefficients.weights)


METHODS: Mapping[str, Method] = {
    "linear": linear,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "della": della,
    "della_linear": della_linear,
    "model_stock": model_stock,
    "multislerp": multislerp,
    "karcher": karcher,
    "sce": sce,
    "passthrough": passthrough,
}


def _rest(weights: Sequence[float]) -> float:
    """The base's own weight, where experts enter as differences."""
    return 1.0 - float(sum(weights))


def _scaled(coefficients: Coefficients) -> tuple[float, ...]:
    """The weights times lambda, and divided by their sum with `normalize`."""
    total = sum(coefficients.weights)
    divisor = total if coefficients.options["normalize"] and abs(total) >= TINY else 1.0
    return tuple(coefficients.options["lambda"] * w / divisor for w in coefficients.weights)


def _vote(coefficients: Coefficients, keep: tuple[Keep, ...], *, elect: bool) -> Instruction:
    """Kept entries added up, or those of the elected sign; with `normalize` divided by the weights of what was added.

    An elected mean divides by magnitudes of weights, which keeps weights of both signs from exploding, as they do in
    mergekit. Where nothing is dropped or outvoted it is a combination, which returns a parent bit for bit.
    """
    weights, options = coefficients.weights, coefficients.options
    if elect and sum(map(bool, weights)) == 1:
        size = sum(map(abs, weights)) if options["normalize"] else 1.0
        weights, elect = tuple(options["lambda"] * w / size for w in weights), False
    elif not elect:
        weights = _scaled(coefficients)
    if elect:
        return Vote(weights, keep, elect=True, mean=bool(options["normalize"]), scale=options["lambda"])
    if all(kept.everything for kept in keep):
        return Combination(_rest(weights), weights)
    return Vote(weights, keep, elect=False, mean=False)


def _largest(parameter: Ingredients, experts: Experts, coefficients: Coefficients, gamma: float) -> tuple[Keep, ...]:
    """Each expert's entries between two magnitudes: its density of all, without the share `gamma` of the largest."""
    keep = []
    count = parameter.base.numel()
    for expert, weight, density in zip(experts, coefficients.weights, coefficients.densities, strict=True):
        if not weight or density >= 1 or expert not in parameter.experts:
            keep.append(Keep())
            continue
        low, high = kept_ranks(count, density, int(gamma * count))
        magnitude = parameter.magnitude
        top = magnitude(expert, high, gamma) if high < count - 1 else float("inf")
        keep.append(Keep(low=magnitude(expert, low, gamma), high=top))
    return tuple(keep)


def _chance(
    parameter: Ingredients, experts: Experts, coefficients: Coefficients, seed: int, epsilon: float
) -> tuple[Keep, ...]:
    """Each expert's entries by chance: kept where the draw is below the density, that rises by rank with `epsilon`."""
    keep = []
    rescale = bool(coefficients.options["rescale"])
    for expert, weight, density in zip(experts, coefficients.weights, coefficients.densities, strict=True):
        if not weight or density >= 1 or expert not in parameter.experts:
            keep.append(Keep())
            continue
        draws = parameter.draws(expert, seed)
        if epsilon:
            floor, rise = LEVELS * (density - epsilon), LEVELS * 2 * epsilon / (LEVELS - 1)
            keep.append(Keep(draws=draws, ranks=parameter.ranks(expert), floor=floor, rise=rise, rescale=rescale))
        else:
            keep.append(Keep(draws=draws, floor=float(max(1, round(density * LEVELS))), rescale=rescale))
    return tuple(keep)


def _reached(spread: Float[np.ndarray, "rows columns"], share: float) -> float:
    """What a share of the elements that are not zero reaches."""
    count = int(np.count_nonzero(spread) * share)
    return float(np.partition(spread, -count, axis=None)[-count]) if count else float("inf")


def _models(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Inner products of the base and the experts themselves, from those of the base and the differences."""
    shift = np.ones(len(gram))
    shift[0] = 0.0
    cross = np.outer(shift, gram[0])
    models: Float[np.ndarray, "n n"] = gram + cross + cross.T + gram[0, 0] * np.outer(shift, shift)
    return models


def _arc(first: float, last: float, inner: float, t: float, collinear: float) -> tuple[float, float]:
    """Slerp's coefficients of two vectors, from their squared norms and inner product."""
    norms = np.sqrt(first * last)
    cosine = float(np.clip(inner / norms, -1, 1)) if norms else 1.0
    if abs(cosine) > collinear:
        return 1 - t, t
    angle = np.arccos(cosine)
    return float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))


def _tangent_mean(gram: Float[np.ndarray, "n n"], weights: Float[np.ndarray, " n"], name: str) -> tuple[float, ...]:
    """The coefficients of `multislerp`, from inner products."""
    norms = np.sqrt(np.diag(gram))
    units = np.where(norms > 0, 1.0 / (norms + TINY), 0.0)
    cosines = gram * np.outer(units, units)
    length = np.sqrt(max(weights @ cosines @ weights, 0.0))
    if length < TINY:
        if len(weights) == 2:
            return tuple(weights.tolist())
        raise ValueError(f"multislerp: the weighted mean of {name!r} is zero; change the weights")
    mean = weights / length
    tangent = weights - (weights @ cosines @ mean) * mean
    reach = np.sqrt(max(tangent @ cosines @ tangent, 0.0)) + TINY
    found = np.cos(reach) * mean + np.sin(reach) / reach * tangent
    return tuple((found * units * float(norms @ weights)).tolist())


def _unit(
    vector: Float[np.ndarray, " n"], cosines: Float[np.ndarray, "n n"], valid: np.ndarray
) -> Float[np.ndarray, " n"]:
    """`vector`, in the span of unit vectors, scaled to length one; the first valid one where it has none."""
    length = np.sqrt(max(vector @ cosines @ vector, 0.0))
    if length < 1e-12:
        first = np.zeros_like(vector)
        first[np.flatnonzero(valid)[0]] = 1.0
        return first
    unit: Float[np.ndarray, " n"] = vector / length
    return unit
