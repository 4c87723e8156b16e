"""A genome turns a vector of the unit cube into a recipe, so that an optimiser can search merges.

Genes come in this order: the method, where there are several; for each group, each expert, each knot along depth its
weight; then, where a method uses densities, the same again for densities. A gene in [0, 1] spans the stated range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from merge3.recipe import GROUPS, TRAITS, Recipe, check, group_of

SEARCHED = sorted(method for method, traits in TRAITS.items() if traits.weights and traits.most != 1)
RESOLUTION = 0.01  # coefficients closer than this are one; bf16 rounding hides less (a few per cent of a delta)


@dataclass(frozen=True)
class Genome:
    """The merges of `experts` by one of `methods`, with a weight for each expert, group and knot.

    `weight_range` and `density_range` are what a gene of 0 and of 1 mean; coefficients are multiples of
    `RESOLUTION`. For slerp, which is searched alone, only the last expert has genes (t), and the range must lie in
    [0, 1].
    """

    methods: tuple[str, ...]
    experts: tuple[str, ...]
    groups: tuple[str, ...]
    knots: int
    weight_range: tuple[float, float]
    density_range: tuple[float, float]
    mask_seed: int

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"a genome needs distinct merge methods, at least one, got {list(self.methods)}")
        if "slerp" in self.methods and len(self.methods) > 1:
            raise ValueError(f"slerp's t is no weight: search it alone, not with {list(self.methods)}")
        unknown = set(self.groups) - set(GROUPS)
        if unknown or not self.groups:
            raise ValueError(f"groups must be among {list(GROUPS)}, at least one, got {list(self.groups)}")
        if self.knots < 1:
            raise ValueError(f"knots must be 1 or more, got {self.knots}")
        for name, (low, high) in (("weight_range", self.weight_range), ("density_range", self.density_range)):
            if not (np.isfinite([low, high]).all() and low < high):
                raise ValueError(f"{name} must be two finite numbers that rise, got {[low, high]}")
        if not snap(self.density_range[0]) > 0 or self.density_range[1] > 1:
            raise ValueError(f"density_range must lie in [{RESOLUTION}, 1], got {list(self.density_range)}")
        if "slerp" in self.methods and not 0 <= self.weight_range[0] < self.weight_range[1] <= 1:
            raise ValueError(f"slerp needs a weight_range in [0, 1], got {list(self.weight_range)}")
        for method in self.methods:
            if method not in TRAITS:
                raise ValueError(f"merge method must be one of {SEARCHED} to be searched, got {method!r}")
            check(Recipe(method, self.experts, {}))
            if not TRAITS[method].weights:
                raise ValueError(f"{method} has no weights: there is nothing to search")

    @property
    def weighted(self) -> tuple[str, ...]:
        """The experts that have a weight gene."""
        return self.experts[-1:] if self.methods == ("slerp",) else self.experts

    @property
    def kinds(self) -> tuple[str, ...]:
        """What an expert's genes are of: its weight, and its density where a method uses it."""
        return ("weight", "density") if any(TRAITS[method].densities for method in self.methods) else ("weight",)

    @property
    def names(self) -> list[str]:
        """What each gene is: `weight french mlp 0`."""
        return ["method"] * (len(self.methods) > 1) + [
            f"{kind} {expert} {group} {knot}"
            for kind in self.kinds
            for group in self.groups
            for expert in self.weighted
            for knot in range(self.knots)
        ]

    @property
    def start(self) -> Float[np.ndarray, " genes"]:
        """Where a search begins: all experts alike, their weights adding up to 1, a little off the cube's sides."""
        alike = self.encode(dict.fromkeys(self.experts, 1 / len(self.experts)), 1.0)
        off: Float[np.ndarray, " genes"] = np.clip(alike, 0.05, 0.95)
        return off

    def decode(self, genotype: Float[np.ndarray, " genes"]) -> Recipe:
        """The recipe of a genotype, its coefficients snapped to `RESOLUTION`.

        Raises:
            ValueError: the genotype's length is not the number of genes, or a gene is outside [0, 1].
        """
        if genotype.shape != (len(self.names),):
            raise ValueError(f"expected {len(self.names)} genes ({self.names[0]}, ...), got shape {genotype.shape}")
        if not ((genotype >= 0) & (genotype <= 1)).all():
            raise ValueError(f"genes must lie in [0, 1], got {genotype.tolist()}")
        method = self.methods[0]
        if len(self.methods) > 1:
            method = self.methods[min(int(genotype[0] * len(self.methods)), len(self.methods) - 1)]
            genotype = genotype[1:]
        cube = genotype.reshape(len(self.kinds), len(self.groups), len(self.weighted), self.knots)
        sparse = TRAITS[method].densities
        return Recipe(
            method=method,
            experts=self.experts,
            weights=self._spread(cube[0], self.weight_range),
            densities=self._spread(cube[1], self.density_range) if sparse else {},
            mask_seed=self.mask_seed,
        )

    def place(self, recipe: Recipe) -> Float[np.ndarray, " genes"] | None:
        """The genotype of a recipe, as `decode` has it; None where the genome has no such merge.

        A recipe of one knot is constant along depth, and has its place among those of more.
        """
        if recipe.method not in self.methods or recipe.experts != self.experts or recipe.options:
            return None
        traits = TRAITS[recipe.method]
        if traits.masks and recipe.mask_seed != self.mask_seed:
            return None
        parts = [(recipe.weights, self.weight_range)]
        if len(self.kinds) > 1:  # a method without densities does not look at them
            parts.append((recipe.densities if traits.densities else {}, self.density_range))
        genes: list[float] = []
        if len(self.methods) > 1:
            genes.append((self.methods.index(recipe.method) + 0.5) / len(self.methods))
        for values, (low, high) in parts:
            ends = {snap(low): low, snap(high): high}  # what an end of the range is snapped to may lie beyond it
            for group in self.groups:
                for expert in self.weighted:
                    along = values.get(expert, {}).get(group, ()) if values else (high,)
                    if len(along) not in (1, self.knots):
                        return None
                    found = along if len(along) == self.knots else along * self.knots
                    genes += [(ends.get(value, value) - low) / (high - low) for value in found]
        genotype = np.array(genes)
        rounded: Float[np.ndarray, " genes"] = np.clip(genotype, 0.0, 1.0)
        return rounded if np.allclose(genotype, rounded, atol=1e-9) else None

    def draw(self, totals: tuple[float, float], generator: np.random.Generator) -> Recipe:
        """A random merge: in each group the experts share a random total of weight, every split as likely as another.

        The total is uniform within `totals`; a weight is cut to its range. (Weights that are drawn one by one add up to
        much more than one: merges far from those that are any good.) Densities, and slerp's t, are uniform.

        Raises:
            ValueError: `totals` are not two numbers of 0 or more that do not fall.
        """
        if not 0 <= totals[0] <= totals[1] < np.inf:
            raise ValueError(f"totals must be two numbers of 0 or more, the lowest first, got {list(totals)}")
        cube = generator.random((len(self.kinds), len(self.groups), len(self.weighted), self.knots))
        if self.weighted == self.experts:
            low, high = self.weight_range
            total = generator.uniform(*totals, (len(self.groups), 1))
            share = total * generator.dirichlet(np.ones(len(self.experts)), len(self.groups))
            cube[0] = np.clip((share[:, :, None] - low) / (high - low), 0.0, 1.0)
        method = generator.random() if len(self.methods) > 1 else None
        return self.decode(np.concatenate([[] if method is None else [method], cube.ravel()]))

    def _spread(
        self, genes: Float[np.ndarray, "groups experts knots"], bounds: tuple[float, float]
    ) -> dict[str, dict[str, tuple[float, ...]]]:
        low, high = bounds
        values = low + genes * (high - low)
        return {
            expert: {group: tuple(snap(v) for v in values[g, e]) for g, group in enumerate(self.groups)}
            for e, expert in enumerate(self.weighted)
        }

    def encode(self, weights: Mapping[str, float], density: float) -> Float[np.ndarray, " genes"]:
        """A place to start: the genotype of the first method, constant weights and one density, within the ranges."""
        low, high = self.weight_range
        knots = [[(weights[expert] - low) / (high - low)] * self.knots for expert in self.weighted]
        parts = [np.array([knots] * len(self.groups)).ravel()]
        if len(self.kinds) > 1:
            low, high = self.density_range
            parts.append(np.full_like(parts[0], (density - low) / (high - low)))
        if len(self.methods) > 1:
            parts.insert(0, np.array([0.5 / len(self.methods)]))
        clipped: Float[np.ndarray, " genes"] = np.clip(np.concatenate(parts), 0.0, 1.0)
        return clipped


def snap(value: float) -> float:
    """The nearest multiple of `RESOLUTION`, without a negative zero; what is not finite stays, to be refused."""
    if not math.isfinite(value):
        return value
    return round(round(value / RESOLUTION) * RESOLUTION, 10)


def live_groups(changed: Iterable[str]) -> tuple[str, ...]:
    """The groups that hold a parameter in which some expert differs from the base: others need no gene."""
    found = {group_of(name) for name in changed}
    return tuple(group for group in GROUPS if group in found)
