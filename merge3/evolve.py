"""EVOLVE: propose genotypes and learn from their fitness, by CMA-ES (Hansen 2016), ask and tell.

Owns cmaes. Never sees a model. Fitness is higher-is-better. Each generation draws from its own spawned seed, so a
search is a function of (settings, told values): telling a new `Search` what an old one was told continues it, bit
for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from cmaes import CMA
from jaxtyping import Float


class Search:
    """An ask/tell search of the unit cube."""

    def __init__(self, start: Float[np.ndarray, " genes"], sigma: float, population: int, seed: int) -> None:
        """Start around `start` with standard deviation `sigma` and `population` candidates a generation.

        Raises:
            ValueError: `start` has no gene or leaves the cube, `sigma` is not in (0, 1], or `population` is below 4.
        """
        if start.size < 1 or not ((start >= 0) & (start <= 1)).all():
            raise ValueError(f"start must be at least one gene in [0, 1], got {start.tolist()}")
        if not 0 < sigma <= 1:
            raise ValueError(f"sigma must be in (0, 1], got {sigma}")
        if population < 4:
            raise ValueError(f"population must be 4 or more, got {population}")
        self.generation = 0
        self._seed = seed
        self._asked: list[Float[np.ndarray, " genes"]] = []
        self._padded = start.size == 1  # cmaes needs two dimensions: the second is idle
        mean = np.append(start, 0.5) if self._padded else start.copy()
        self._cma = CMA(
            mean=mean,
            sigma=sigma,
            bounds=np.tile([0.0, 1.0], (mean.size, 1)),
            population_size=population,
            lr_adapt=True,  # halves the error under the noise of a small subset
        )

    @property
    def mean(self) -> Float[np.ndarray, " genes"]:
        """The centre of the search distribution, inside the cube."""
        mean: Float[np.ndarray, " genes"] = np.clip(self._cma.mean, 0.0, 1.0)
        return mean[:1].copy() if self._padded else mean

    def ask(self) -> list[Float[np.ndarray, " genes"]]:
        """The candidates of the next generation.

        Raises:
            RuntimeError: the last generation was not told yet.
        """
        if self._asked:
            raise RuntimeError(f"generation {self.generation} was asked and not told; tell its fitness first")
        stream = np.random.SeedSequence(self._seed, spawn_key=(self.generation,))
        self._cma.reseed_rng(int(stream.generate_state(1)[0]))
        self._asked = [self._cma.ask() for _ in range(self._cma.population_size)]
        return [x[:1].copy() if self._padded else x.copy() for x in self._asked]

    def tell(self, fitness: Sequence[float]) -> None:
        """The fitness of the asked candidates, in their order; -inf for a candidate that failed.

        Failed candidates are ranked last. A generation without a finite value teaches nothing and is passed over.

        Raises:
            RuntimeError: nothing was asked.
            ValueError: the number of values differs, or one is NaN or +inf.
        """
        if not self._asked:
            raise RuntimeError("tell without ask: ask for a generation first")
        if len(fitness) != len(self._asked):
            raise ValueError(f"expected {len(self._asked)} fitness values, got {len(fitness)}")
        if any(math.isnan(value) or value == math.inf for value in fitness):
            raise ValueError(f"fitness must be finite, or -inf for a failed candidate; got {list(fitness)}")
        finite = [value for value in fitness if math.isfinite(value)]
        if finite:
            worst = min(finite) - 1.0
            losses = [-value if math.isfinite(value) else -worst for value in fitness]
            self._cma.tell(list(zip(self._asked, losses, strict=True)))
        self._asked = []
        self.generation += 1
