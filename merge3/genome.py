"""A genome turns a vector of the unit cube into a recipe, so that an optimiser can search merges.

Genes come in this order: for each group, each expert, each knot along depth its weight; then, for methods that
use densities, the same again for densities. A gene in [0, 1] spans the stated range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from merge3.merging import METHODS
from merge3.recipe import GROUPS, RESOLUTION, SPARSE, Recipe, group_of, snap


@dataclass(frozen=True)
class Genome:
    """The merges of `experts` by `method`, with a weight for each expert, group and knot.

    `weight_range` and `density_range` are what a gene of 0 and of 1 mean. For slerp only the last expert has genes
    (t), and the range must lie in [0, 1].
    """

    method: str
    experts: tuple[str, ...]
    groups: tuple[str, ...]
    knots: int
    weight_range: tuple[float, float]
    density_range: tuple[float, float]
    mask_seed: int

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"merge method must be one of {sorted(METHODS)}, got {self.method!r}")
        if not self.experts or len(set(self.experts)) < len(self.experts):
            raise ValueError(f"a genome needs distinct experts, at least one, got {list(self.experts)}")
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
        if self.method == "slerp" and len(self.experts) > 2:
            raise ValueError(f"slerp merges one or two experts, got {len(self.experts)}: {list(self.experts)}")
        if self.method == "slerp" and not 0 <= self.weight_range[0] < self.weight_range[1] <= 1:
            raise ValueError(f"slerp needs a weight_range in [0, 1], got {list(self.weight_range)}")

    @property
    def weighted(self) -> tuple[str, ...]:
        """The experts that have a weight gene."""
        return self.experts[-1:] if self.method == "slerp" else self.experts

    @property
    def names(self) -> list[str]:
        """What each gene is: `weight french mlp 0`."""
        kinds = ["weight", "density"] if self.method in SPARSE else ["weight"]
        return [
            f"{kind} {expert} {group} {knot}"
            for kind in kinds
            for group in self.groups
            for expert in self.weighted
            for knot in range(self.knots)
        ]

    def decode(self, genotype: Float[np.ndarray, " genes"]) -> Recipe:
        """The recipe of a genotype, its coefficients snapped to the resolution of recipes.

        Raises:
            ValueError: the genotype's length is not the number of genes, or a gene is outside [0, 1].
        """
        if genotype.shape != (len(self.names),):
            raise ValueError(f"expected {len(self.names)} genes ({self.names[0]}, ...), got shape {genotype.shape}")
        if not ((genotype >= 0) & (genotype <= 1)).all():
            raise ValueError(f"genes must lie in [0, 1], got {genotype.tolist()}")
        cube = genotype.reshape(-1, len(self.groups), len(self.weighted), self.knots)
        densities = self._spread(cube[1], self.density_range) if self.method in SPARSE else {}
        return Recipe(
            method=self.method,
            experts=self.experts,
            weights=self._spread(cube[0], self.weight_range),
            densities=densities,
            mask_seed=self.mask_seed,
        )

    def _spread(
        self, genes: Float[np.ndarray, "groups experts knots"], bounds: tuple[float, float]
    ) -> dict[str, dict[str, tuple[float, ...]]]:
        low, high = bounds
        values = low + genes * (high - low)
        return {
            group: {expert: tuple(snap(v) for v in values[g, e]) for e, expert in enumerate(self.weighted)}
            for g, group in enumerate(self.groups)
        }

    def encode(self, weights: Mapping[str, float], density: float) -> Float[np.ndarray, " genes"]:
        """The genotype of constant weights and one density, clipped to the ranges: a place to start from."""
        low, high = self.weight_range
        knots = [[(weights[expert] - low) / (high - low)] * self.knots for expert in self.weighted]
        genes = np.array([knots] * len(self.groups)).ravel()
        if self.method in SPARSE:
            low, high = self.density_range
            genes = np.concatenate([genes, np.full_like(genes, (density - low) / (high - low))])
        clipped: Float[np.ndarray, " genes"] = np.clip(genes, 0.0, 1.0)
        return clipped


def live_groups(changed: Iterable[str]) -> tuple[str, ...]:
    """The groups that hold a parameter in which some expert differs from the base: others need no gene."""
    found = {group_of(name) for name in changed}
    return tuple(group for group in GROUPS if group in found)
