"""A recipe is one merge, said in full: the method, the experts, and their coefficients by group and depth.

Coefficients are multiples of `RESOLUTION`, so what is hashed is what is merged. The canonical form is one for recipes
that make the same model, as far as the coefficients tell: experts that weigh nothing are left out, normalised weights
are scaled to sum to one, densities and mask seeds count where they are used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge3.store import digest

RESOLUTION = 0.01  # coefficients closer than this are one; bf16 rounding hides less (a few per cent of a delta)
VERSION = 1  # of the arithmetic in `merging`; a change that alters weights raises it

GROUPS = ("attention", "mlp", "rest")
_ATTENTION = re.compile(r"\.(self_attn|attn|attention|self_attention)\.")
_MLP = re.compile(r"\.(mlp|feed_forward|ffn|block_sparse_moe)\.")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")

NORMALISED = frozenset({"linear", "ties"})  # methods that divide by the weights' sum: only ratios matter
SPARSE = frozenset({"ties", "dare_linear", "dare_ties"})  # methods that use densities
MASKED = frozenset({"dare_linear", "dare_ties"})  # methods that draw masks

AVERAGE = "uniform average"


def group_of(tensor: str) -> str:
    """The group of a parameter: `attention`, `mlp` or `rest` (embeddings, norms, head)."""
    if _ATTENTION.search(tensor):
        return "attention"
    return "mlp" if _MLP.search(tensor) else "rest"


def layer_of(tensor: str) -> int | None:
    """The layer that a parameter belongs to, from 0; None for embeddings, the final norm and the head."""
    match = _LAYER.search(tensor)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class Coefficients:
    """What a merge method is given for one tensor: a weight and a density (kept share) for each expert."""

    weights: tuple[float, ...]
    densities: tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """One merge of `experts` into their base.

    `weights[group][expert]` is a tuple of values along depth, at equally spaced knots from the first layer to the
    last, linear between them; one value is a constant. The same for `densities`. A group that is absent keeps
    the base (slerp of two experts: the first). For `slerp` the weight of the last expert is the angle's share t,
    between the first of two experts (the base, where there is one) and the last.
    """

    method: str
    experts: tuple[str, ...]
    weights: Mapping[str, Mapping[str, tuple[float, ...]]]
    densities: Mapping[str, Mapping[str, tuple[float, ...]]]
    mask_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("weights", "densities"):
            by_group = getattr(self, name)
            snapped = {g: {e: tuple(snap(v) for v in knots) for e, knots in by.items()} for g, by in by_group.items()}
            object.__setattr__(self, name, snapped)

    def at(self, tensor: str, layers: int) -> Coefficients:
        """The coefficients for one parameter of a model of `layers` layers.

        Parameters outside the layers take the first knot, as embeddings do in mergekit, except that the final
        norm and the head are not set apart here.
        """
        group, layer = group_of(tensor), layer_of(tensor)
        depth = 0.0 if layer is None or layers < 2 else layer / (layers - 1)
        weights, densities = self.weights.get(group, {}), self.densities.get(group, {})
        return Coefficients(
            tuple(interpolate(weights.get(expert, (0.0,)), depth) for expert in self.experts),
            tuple(interpolate(densities.get(expert, (1.0,)), depth) for expert in self.experts),
        )

    def canonical(self, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """The form that two recipes of the same weights share; experts are named by their fingerprints.

        Experts that weigh nothing anywhere are left out, a density counts only where there is a weight, and a
        merge that moves nothing is the base, whatever its method.

        Raises:
            KeyError: an expert has no fingerprint.
        """
        entries = []
        for expert in self.experts:
            weights = {g: _constant(self.weights[g][expert]) for g in sorted(self.weights) if expert in self.weights[g]}
            kept = {g: w for g, w in weights.items() if any(w)}
            densities = {g: _constant(self.densities.get(g, {}).get(expert, (1.0,))) for g in kept}
            entry: dict[str, Any] = {"expert": fingerprints[expert], "weights": kept}
            if self.method in SPARSE:
                entry["densities"] = densities
            entries.append(entry)
        if self.method == "slerp" and len(entries) == 2:  # both ends count, and their order; only t has weight
            entries[0]["weights"] = {}
            return {"method": self.method, "experts": entries, "version": VERSION}
        entries = [entry for entry in entries if entry["weights"]]
        if self.method in NORMALISED:
            _normalise(entries)
        form: dict[str, Any] = {"experts": sorted(entries, key=lambda entry: str(entry["expert"]))}
        if entries:
            form["method"] = self.method
        if entries and self.method in MASKED:
            form["mask_seed"] = self.mask_seed
        return form | {"version": VERSION}

    def phenotype(self, fingerprints: Mapping[str, str]) -> str:
        """SHA-256 of the canonical form: equal for recipes that make the same model."""
        return digest(self.canonical(fingerprints))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to YAML; `from_dict` returns the recipe."""
        plain = {
            name: {g: {e: list(v) for e, v in by.items()} for g, by in getattr(self, name).items()}
            for name in ("weights", "densities")
        }
        return {"method": self.method, "experts": list(self.experts), **plain, "mask_seed": self.mask_seed}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote.

        Raises:
            ValueError: a field is missing or unknown.
        """
        expected = {"method", "experts", "weights", "densities", "mask_seed"}
        if set(values) != expected:
            raise ValueError(f"a recipe has the fields {sorted(expected)}, got {sorted(values)}")
        return Recipe(
            method=values["method"],
            experts=tuple(values["experts"]),
            weights={g: {e: tuple(v) for e, v in by.items()} for g, by in values["weights"].items()},
            densities={g: {e: tuple(v) for e, v in by.items()} for g, by in values["densities"].items()},
            mask_seed=values["mask_seed"],
        )


def constant(method: str, weights: Mapping[str, float], *, density: float = 1.0, mask_seed: int = 0) -> Recipe:
    """The recipe with one weight an expert everywhere, and one density for all."""
    return Recipe(
        method=method,
        experts=tuple(weights),
        weights={group: {e: (w,) for e, w in weights.items()} for group in GROUPS},
        densities={group: dict.fromkeys(weights, (density,)) for group in GROUPS},
        mask_seed=mask_seed,
    )


def standard_merges(experts: Sequence[str]) -> dict[str, Recipe]:
    """What people do without a search, at the defaults of the papers.

    Uniform average (arXiv 2203.05482); task arithmetic with scale .4 (arXiv 2212.04089, what it found to serve without
    tuning); TIES with a fifth kept and scale 1 (arXiv 2306.01708).
    """
    return {
        AVERAGE: constant("linear", dict.fromkeys(experts, 1.0)),
        "task arithmetic": constant("task_arithmetic", dict.fromkeys(experts, 0.4)),
        "plain TIES": constant("ties", dict.fromkeys(experts, 1.0), density=0.2),
    }


def interpolate(knots: Sequence[float], depth: float) -> float:
    """The value at `depth` in [0, 1] of the line through equally spaced `knots`."""
    place = depth * (len(knots) - 1)
    left = min(int(place), len(knots) - 1)
    right = min(left + 1, len(knots) - 1)
    return float(knots[left] + (place - left) * (knots[right] - knots[left]))


def snap(value: float) -> float:
    """The nearest multiple of `RESOLUTION`, without a negative zero; what is not finite stays, to be refused."""
    if not math.isfinite(value):
        return value
    return round(round(value / RESOLUTION) * RESOLUTION, 10) + 0.0


def _constant(knots: Sequence[float]) -> list[float]:
    """The knots; equal ones are one constant."""
    return [knots[0]] if len(set(knots)) == 1 else list(knots)


def _normalise(entries: list[dict[str, Any]]) -> None:
    """Scale constant weights of each group so that their magnitudes sum to one; knots that vary with depth stay."""
    for group in {g for entry in entries for g in entry["weights"]}:
        members = [entry["weights"][group] for entry in entries if group in entry["weights"]]
        if all(len(weights) == 1 for weights in members):
            total = sum(abs(weights[0]) for weights in members)
            for weights in members:
                weights[0] = round(weights[0] / total, 6)
