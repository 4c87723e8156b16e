"""Merging: tensors in, tensor out, and straight into a live model.

Every method takes the base's tensor and the experts' differences from it, in float32, and returns the merged tensor
in float32; `LiveMerger` rounds once, into the parameters of one model. No candidate is ever written to disk.
Formulas and defaults follow mergekit (arXiv 2403.13257) where it is right; each function says where it departs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from merge3.models import Deltas, weights_of
from merge3.recipe import GROUPS, SPARSE, Coefficients, Recipe, layer_of, snap

COLLINEAR = 0.9995  # cosine above which slerp is lerp, as in mergekit
MASK_LEVELS = 256  # a mask draw is one byte: densities of DARE are multiples of 1/256


@dataclass(frozen=True)
class Noise:
    """Where the masks of one tensor come from: the same draws wherever, whenever and in whatever order."""

    seed: int
    experts: tuple[str, ...]  # what names an expert in the key of its masks
    tensor: str

    def keep(self, expert: int, density: float, shape: torch.Size) -> Tensor:
        """A Bernoulli(density) mask, `density` rounded to 1/256."""
        draws = _draws(self.seed, self.experts[expert], self.tensor, shape.numel())
        return (draws <= round(density * MASK_LEVELS) - 1).view(shape)


@cache
def _draws(seed: int, expert: str, tensor: str, count: int) -> Tensor:
    """`count` uniform integers below 256 from Philox, a counter-based generator (Salmon et al. 2011)."""
    key = hashlib.sha256(f"{seed} {expert} {tensor}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return torch.from_numpy(generator.integers(0, MASK_LEVELS, count, dtype=np.uint8))


Method = Callable[[Tensor, Sequence[Tensor], Coefficients, Noise], Tensor]


def linear(base: Tensor, deltas: Sequence[Tensor], coefficients: Coefficients, noise: Noise) -> Tensor:
    """sum(w_i x_i) / sum(w_i), Model Soups (arXiv 2203.05482). Weights that sum to zero return the base."""
    total = snap(sum(coefficients.weights))
    if total == 0:
        return base.clone()
    return _add(base, deltas, [w / total for w in coefficients.weights])


def task_arithmetic(base: Tensor, deltas: Sequence[Tensor], coefficients: Coefficients, noise: Noise) -> Tensor:
    """Base + sum(w_i d_i) (arXiv 2212.04089)."""
    return _add(base, deltas, coefficients.weights)


def slerp(base: Tensor, deltas: Sequence[Tensor], coefficients: Coefficients, noise: Noise) -> Tensor:
    """Spherical interpolation of two whole tensors, flattened: sin((1-t)θ)/sin θ v0 + sin(tθ)/sin θ v1.

    θ is the angle of the unit vectors, v0 and v1 are not normalised. Of two experts v0 is the first and v1 the
    second; one expert is v1 against the base. t is the last weight, in [0, 1]. Nearly collinear tensors
    (cosine above .9995) are interpolated linearly. Ends are returned bit for bit.
    """
    t = coefficients.weights[-1]
    start = base + deltas[0] if len(deltas) == 2 else base
    end = base + deltas[-1]
    if t in (0, 1):
        return end if t else start.clone()
    norms = start.norm() * end.norm()
    cosine = float((start * end).sum() / norms) if norms else 1.0
    if abs(cosine) > COLLINEAR:
        return torch.lerp(start, end, t)
    angle = np.arccos(cosine)
    return torch.add(
        start * float(np.sin((1 - t) * angle) / np.sin(angle)), end, alpha=float(np.sin(t * angle) / np.sin(angle))
    )


def ties(base: Tensor, deltas: Sequence[Tensor], coefficients: Coefficients, noise: Noise) -> Tensor:
    """Trim, elect sign, merge what agrees (arXiv 2306.01708), `_consensus` of `trim`med differences.

    Entries that tie with the smallest kept magnitude are all kept (an unstable sort picks among them in mergekit).
    """
    kept = [trim(delta, density) for delta, density in zip(deltas, coefficients.densities, strict=True)]
    return base + _consensus(kept, coefficients.weights, normalise=True)


def dare_linear(base: Tensor, deltas: Sequence[Tensor], coefficients: Coefficients, noise: Noise) -> Tensor:
    """Base + sum(w_i drop(d_i)) (arXiv 2311.03099); see `drop`."""
    return _add(base, drop(deltas, coefficients, noise), coefficients.weights)


def dare_ties(base: Tensor, deltas: Sequence[Tensor], coefficients: Coefficients, noise: Noise) -> Tensor:
    """Dropped and rescaled differences, merged by elected sign, not normalised (mergekit's default)."""
    return base + _consensus(drop(deltas, coefficients, noise), coefficients.weights, normalise=False)


def trim(delta: Tensor, density: float) -> Tensor:
    """`delta` with all but its `density` share of largest magnitudes set to zero; at least one is kept."""
    count = max(1, int(density * delta.numel()))
    if count >= delta.numel():
        return delta
    magnitude = delta.abs()
    threshold = np.partition(magnitude.cpu().numpy().ravel(), delta.numel() - count)[delta.numel() - count]
    return delta.where(magnitude >= float(threshold), 0.0)


def drop(deltas: Sequence[Tensor], coefficients: Coefficients, noise: Noise) -> list[Tensor]:
    """Each difference kept with probability density and divided by it, as the DARE paper says.

    The density is rounded to 1/256, and is at least that. (mergekit rescales to the tensor's L1 norm instead.)
    """
    dropped = []
    for expert, (delta, density) in enumerate(zip(deltas, coefficients.densities, strict=True)):
        share = max(1, round(density * MASK_LEVELS)) / MASK_LEVELS
        mask = noise.keep(expert, share, delta.shape).to(delta.device)
        dropped.append(delta.where(mask, 0.0).div_(share) if share < 1 else delta)
    return dropped


def _add(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    merged = base.clone()
    for delta, weight in zip(deltas, weights, strict=True):
        if weight:
            merged.add_(delta, alpha=weight)
    return merged


def _consensus(deltas: Sequence[Tensor], weights: Sequence[float], *, normalise: bool) -> Tensor:
    """Sum of the w_i d_i whose sign is the elected one, +1 where sum(w_i d_i) >= 0.

    With `normalise` divided by the sum of their |w_i|: the magnitude keeps weights of both signs from exploding,
    as they do in mergekit.
    """
    weighted = torch.stack([delta * weight for delta, weight in zip(deltas, weights, strict=True)])
    elected = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = (weighted.sign() == elected).float()
    merged = (weighted * agrees).sum(0)
    if normalise:
        magnitudes = torch.tensor([abs(w) for w in weights], device=merged.device)
        share = torch.einsum("e,e...->...", magnitudes, agrees)
        merged = merged / share.where(share > 0, 1.0)
    return merged


METHODS: Mapping[str, Method] = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be merged.

    Raises:
        ValueError: the method is unknown, slerp has not one or two experts or t outside [0, 1], a weight is not finite,
            a density is not in (0, 1], or a group or
            expert of the coefficients is unknown.
    """
    if recipe.method not in METHODS:
        raise ValueError(f"merge method must be one of {sorted(METHODS)}, got {recipe.method!r}")
    if not recipe.experts:
        raise ValueError("a merge needs at least one expert, got none")
    if recipe.method == "slerp" and len(recipe.experts) > 2:
        raise ValueError(f"slerp merges one or two experts, got {len(recipe.experts)}: {list(recipe.experts)}")
    for group, by_expert in [*recipe.weights.items(), *recipe.densities.items()]:
        if group not in GROUPS or not set(by_expert) <= set(recipe.experts):
            raise ValueError(
                f"coefficients must be of groups {list(GROUPS)} and experts {list(recipe.experts)}, "
                f"got group {group!r} with {sorted(by_expert)}"
            )
    for group, by_expert in recipe.weights.items():
        for expert, knots in by_expert.items():
            bounded = recipe.method == "slerp" and expert == recipe.experts[-1]
            if not all(np.isfinite(w) and (not bounded or 0 <= w <= 1) for w in knots):
                expected = "in [0, 1]" if bounded else "finite"
                raise ValueError(
                    f"weights must be {expected}, got {list(knots)} for expert {expert!r}, group {group!r}"
                )
    if recipe.method in SPARSE:
        for group, by_expert in recipe.densities.items():
            for expert, knots in by_expert.items():
                if not all(0 < density <= 1 for density in knots):
                    raise ValueError(
                        f"densities must be in (0, 1], got {list(knots)} for expert {expert!r}, group {group!r}"
                    )


class LiveMerger:
    """One model in memory that becomes any merge of its experts.

    The base's float32 values are kept for the tensors in which some expert differs; all others are never touched.
    """

    def __init__(self, model: PreTrainedModel, experts: Mapping[str, Deltas], fingerprints: Mapping[str, str]) -> None:
        """`model` holds the base's weights, `experts` what each adds; `fingerprints` name them in the keys of masks."""
        self.model = model
        self.experts = experts
        self.fingerprints = fingerprints
        self._parameters = weights_of(model)
        names = sorted({name for expert in experts.values() for name in expert})
        self._base = {name: self._parameters[name].float().clone() for name in names}
        self.layers = 1 + max((layer for layer in map(layer_of, self._parameters) if layer is not None), default=0)

    @property
    def changed(self) -> list[str]:
        """The parameters in which some expert differs from the base."""
        return list(self._base)

    @torch.inference_mode()
    def apply(self, recipe: Recipe) -> None:
        """Write the merge into the model's parameters.

        Raises:
            ValueError: see `check`; or an expert of the recipe is not loaded.
        """
        check(recipe)
        unknown = [expert for expert in recipe.experts if expert not in self.experts]
        if unknown:
            raise ValueError(f"recipe names expert {unknown[0]!r}; loaded are {sorted(self.experts)}")
        method = METHODS[recipe.method]
        for name, base in self._base.items():
            merged = self._merge(method, recipe, name, base)
            self._parameters[name].copy_(merged)

    def _merge(self, method: Method, recipe: Recipe, name: str, base: Tensor) -> Float[Tensor, ...]:
        coefficients = recipe.at(name, self.layers)
        moving = [e for e in recipe.experts if name in self.experts[e]]
        if recipe.method != "slerp":  # a zero weight or a zero difference is no vote
            moving = [e for e in moving if coefficients.weights[recipe.experts.index(e)]]
        if not moving:
            return base
        if recipe.method in ("slerp", "linear"):  # an expert equal to the base here still counts
            moving = list(recipe.experts)
        chosen = [recipe.experts.index(e) for e in moving]
        deltas = [self.experts[e].get(name, torch.zeros_like(base)) for e in moving]
        picked = Coefficients(
            tuple(coefficients.weights[i] for i in chosen), tuple(coefficients.densities[i] for i in chosen)
        )
        return method(base, deltas, picked, Noise(recipe.mask_seed, tuple(self.fingerprints[e] for e in moving), name))
