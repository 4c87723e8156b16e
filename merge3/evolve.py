"""EVOLVE: propose genotypes and learn from their fitness, ask and tell.

Owns cmaes, and pymoo where it is installed. Never sees a model. Fitness is higher-is-better. Each generation of a
strategy on cmaes draws from its own spawned seed, and every search is a function of (settings, told values): telling
a new one what an old one was told continues it, bit for bit. That is the checkpoint; nothing is pickled.

    cma       CMA-ES with learning-rate adaptation under noise (Hansen 2016, arXiv 1604.00772; Nomura et al. 2023)
    bipop     the same, restarted where it has converged, with large and small populations in turn (Hansen 2009)
    sep       a diagonal covariance, for hundreds of genes (Ros & Hansen 2008)
    mixed     CatCMA with margin (arXiv 2504.07884): some genes are categories or whole numbers
    pooled    Thompson sampling of a surface through all candidates so far, see `surface`: heeds the errors of fitness
    random, grid, average        controls: uniform points, the points of a grid, the start alone
    genetic   control: pymoo's, as the paper used

and, where a front of several objectives is searched for (`FRONTS`):

    pooled    the same with a surface an objective
    como      COMO-CatCMA with margin: two objectives
    nsga2     control: pymoo's, as the paper used
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cmaes import CMA, CatCMAwM, COMOCatCMAwM, SepCMA
from jaxtyping import Float

from merge3.surface import Surface, fit
from merge3.surface import best as highest

Genotype = Float[np.ndarray, " genes"]
Value = float | tuple[float, ...]  # the fitness of a candidate, of a front in each objective

CONVERGED = 0.005  # of the cube's edge: below this deviation in every gene all candidates are one
ERROR = 0.1  # of a fitness whose standard error is not told: about that of twenty answers
LEADERS, TRIES, STEPS = 5, 150, (0.05, 0.15, 0.3)  # of `pooled`: the best so far, and points drawn about them
SWITCH = 0.25  # share of those points where a category is drawn anew
REFITS = 4  # generations after each of which its settings are chosen anew; then after every third
TIES, RESTART = 1, 2  # what a generation's further seeds are for
SIDE = 3  # of `grid`: values of a gene
KERNELS = 6  # distributions of `como`, each of which settles on a point of the front


@dataclass(frozen=True)
class Genes:
    """What the genes of a search are: numbers in [0, 1], but for those named here by their place.

    `categories[gene]` is its number of options, `levels[gene]` its number of ordered values. Option or value k of n is
    handed out as the middle of the k-th of n equal parts of [0, 1]. Only `pooled`, `mixed` and `como` heed them; to
    the others all genes are numbers.
    """

    count: int
    categories: Mapping[int, int] = field(default_factory=dict)
    levels: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a search needs at least one gene, got {self.count}")
        parts = {**self.categories, **self.levels}
        if set(self.categories) & set(self.levels) or not set(parts) <= set(range(self.count)):
            raise ValueError(f"categories and levels must be distinct genes below {self.count}, got {sorted(parts)}")
        if few := [gene for gene, size in parts.items() if size < 2]:
            raise ValueError(f"gene {few[0]} needs two options or more, got {parts[few[0]]}")

    @property
    def numbers(self) -> list[int]:
        """The places of the genes that are numbers."""
        return [g for g in range(self.count) if g not in self.categories and g not in self.levels]


class Search(ABC):
    """An ask/tell search of the unit cube."""

    objectives = 1
    drifts = True  # on fitness that is the same for all
    elitist = False  # compares candidates by what it was told in other generations, which stays as it was

    def __init__(self, genes: Genes, start: Genotype, sigma: float, population: int, seed: int) -> None:
        """Start around `start` with standard deviation `sigma` and `population` candidates a generation.

        Raises:
            ValueError: `start` does not fit the genes or leaves the cube, `sigma` is not in (0, 1], or `population` is
                below 4.
        """
        if start.shape != (genes.count,) or not ((start >= 0) & (start <= 1)).all():
            raise ValueError(f"start must be {genes.count} gene(s) in [0, 1], got {start.tolist()}")
        if not 0 < sigma <= 1:
            raise ValueError(f"sigma must be in (0, 1], got {sigma}")
        if population < 4:
            raise ValueError(f"population must be 4 or more, got {population}")
        self.genes, self.start, self.sigma, self.population, self.seed = genes, start.copy(), sigma, population, seed
        self.generation = 0
        self._asked: list[Any] = []
        self._errors = np.empty((0, self.objectives))  # standard errors of what `_learn` is given, for who heeds them

    def know(self, genotypes: Float[np.ndarray, "known genes"], fitness: Sequence[Value]) -> None:
        """What merges are worth that were answered in full before the first generation, in the shape of `tell`'s.

        Searches that learn from all candidates start from it (`pooled`); the others from their start alone.

        Raises:
            RuntimeError: a generation was asked before.
            ValueError: genotypes and fitness do not fit together, leave the cube, or are not finite.
        """
        if self.generation or self._asked:
            raise RuntimeError("know comes before the first generation: it was asked already")
        values = self._checked(genotypes, fitness)
        if len(values):
            self._errors = np.zeros(values.shape)
            self._begin(list(genotypes), values)

    def retell(
        self,
        genotypes: Float[np.ndarray, "merges genes"],
        fitness: Sequence[Value],
        errors: Sequence[Value],
        failed: Sequence[Genotype] = (),
    ) -> None:
        """What all merges so far are worth, those known before the search included, by what was learnt since.

        Takes the place of what `know` and `tell` said, for searches that learn from all candidates (`pooled`). The
        `failed` count as the worst of all.

        Raises:
            RuntimeError: a generation was asked and not told.
            ValueError: genotypes, fitness and errors do not fit together, leave the cube, or are not finite.
        """
        if self._asked:
            raise RuntimeError(f"generation {self.generation} was asked and not told; tell its fitness first")
        values = self._checked(genotypes, fitness)
        lost = np.full((len(failed), self.objectives), -np.inf)
        self._errors = np.vstack([_standard(errors, values.shape), np.full(lost.shape, ERROR)])
        self._again([*genotypes, *failed], np.vstack([values, lost]))

    def _checked(
        self, genotypes: Float[np.ndarray, "merges genes"], fitness: Sequence[Value]
    ) -> Float[np.ndarray, "merges objectives"]:
        """The fitness of merges, a row each.

        Raises:
            ValueError: genotypes and fitness do not fit together, leave the cube, or are not finite.
        """
        values = np.array(fitness, dtype=float)
        if genotypes.shape != (len(values), self.genes.count) or values.size != len(values) * self.objectives:
            raise ValueError(
                f"expected {self.genes.count} genes and {self.objectives} value(s) of each merge, got shapes "
                f"{genotypes.shape} and {values.shape}"
            )
        if not (np.isfinite(values).all() and (genotypes >= 0).all() and (genotypes <= 1).all()):
            raise ValueError("what is known of merges must be finite, and their genes in [0, 1]")
        return values.reshape(len(values), self.objectives)

    def ask(self) -> list[Genotype]:
        """The candidates of the next generation; none where the search is at its end.

        Raises:
            RuntimeError: the last generation was not told yet.
        """
        if self._asked:
            raise RuntimeError(f"generation {self.generation} was asked and not told; tell its fitness first")
        self._asked = self._propose(self._seed())
        return [np.clip(self._genotype(x), 0.0, 1.0) for x in self._asked]

    def tell(self, fitness: Sequence[Value], errors: Sequence[Value] | None = None) -> None:
        """The fitness of the asked candidates, in their order; -inf for a candidate that failed.

        Failed candidates are ranked last. A generation in which all candidates are equal teaches nothing and is
        passed over: an evolution strategy would drift on it. `errors` are the standard errors of the fitness, in its
        shape, NaN where it failed, for the search that heeds them.

        Raises:
            RuntimeError: nothing was asked.
            ValueError: the number of values or of objectives differs, one is NaN or +inf, or an error is none.
        """
        if not self._asked:
            raise RuntimeError("tell without ask: ask for a generation first")
        if len(fitness) != len(self._asked):
            raise ValueError(f"expected {len(self._asked)} fitness values, got {len(fitness)}")
        values = np.array([np.atleast_1d(np.asarray(value, dtype=float)) for value in fitness], dtype=float)
        if values.shape[1] != self.objectives:
            raise ValueError(f"expected {self.objectives} objective(s) a candidate, got {values.shape[1]}")
        if np.isnan(values).any() or (values == np.inf).any():
            raise ValueError(f"fitness must be finite, or -inf for a failed candidate; got {list(fitness)}")
        told = np.full(values.shape, ERROR) if errors is None else _standard(errors, values.shape)
        values[np.isneginf(values).any(axis=1)] = -np.inf
        if not self.drifts or np.ptp(np.nan_to_num(values, neginf=-1e300), axis=0).any():
            self._errors = told
            self._learn(self._asked, self._losses(values))
        self._asked = []
        self.generation += 1

    def _begin(self, known: list[Genotype], values: Float[np.ndarray, "known objectives"]) -> None:  # noqa: B027
        """Start from what is known, where the search can."""

    def _again(self, genotypes: list[Genotype], values: Float[np.ndarray, "merges objectives"]) -> None:  # noqa: B027
        """Put this in the place of all that was known and told, where the search can."""

    def _seed(self, *purpose: int) -> int:
        """A seed of this generation: for asking, or for another purpose."""
        stream = np.random.SeedSequence(self.seed, spawn_key=(self.generation, *purpose))
        return int(stream.generate_state(1)[0])

    @property
    def mean(self) -> Genotype:
        """The centre of what the search would ask next, inside the cube; the start where it has none."""
        return self.start.copy()

    @property
    def converged(self) -> bool:
        """Whether the search has narrowed to one candidate, or is at its end."""
        return False

    @abstractmethod
    def _propose(self, seed: int) -> list[Any]:
        """The next generation, in the form that the method learns from."""

    def _genotype(self, asked: Any) -> Genotype:
        return np.array(asked, dtype=float)

    def _losses(self, values: Float[np.ndarray, "candidates objectives"]) -> list[Any]:
        """Lower is better; failed candidates are one worse than the worst. One at least is whole."""
        losses = -values[:, 0]
        worst = losses[np.isfinite(losses)].max() + 1.0
        return [float(v) for v in np.where(np.isfinite(losses), losses, worst)]

    def _learn(self, asked: list[Any], losses: list[Any]) -> None:  # noqa: B027 - controls learn nothing
        """Take in what was told; `losses` is this method's own to keep or sort."""


class Cma(Search):
    """CMA-ES. `cov` is the first covariance, in units of sigma², see `begin_after`."""

    def __init__(
        self,
        genes: Genes,
        start: Genotype,
        sigma: float,
        population: int,
        seed: int,
        cov: Float[np.ndarray, "genes genes"] | None = None,
    ) -> None:
        super().__init__(genes, start, sigma, population, seed)
        self._cma = self._made(start, population, sigma, cov)

    def _made(self, start: Genotype, population: int, sigma: float, cov: np.ndarray | None = None) -> CMA | SepCMA:
        mean = _padded(start)
        return CMA(
            mean=mean,
            sigma=sigma,
            bounds=np.tile([0.0, 1.0], (mean.size, 1)),
            population_size=population,
            cov=cov.copy() if cov is not None and start.size > 1 else None,
            lr_adapt=True,  # halves the error under the noise of a small subset
        )

    @property
    def mean(self) -> Genotype:
        """The centre of the search distribution, inside the cube."""
        mean: Genotype = np.clip(self._cma.mean, 0.0, 1.0)[: self.genes.count].copy()
        return mean

    @property
    def converged(self) -> bool:
        """Whether the deviation in every gene is below `CONVERGED`."""
        return self._narrow

    @property
    def _narrow(self) -> bool:
        spread = np.diag(self._cma._C) if isinstance(self._cma, CMA) else self._cma._C
        own = spread[: self.genes.count]  # an idle companion never narrows
        return bool(self._cma._sigma * np.sqrt(own.max()) < CONVERGED)

    def _propose(self, seed: int) -> list[Any]:
        self._cma.reseed_rng(seed)
        return [self._cma.ask() for _ in range(self._cma.population_size)]

    def _genotype(self, asked: Any) -> Genotype:
        genotype: Genotype = asked[: self.genes.count].copy()
        return genotype

    def _learn(self, asked: list[Any], losses: list[Any]) -> None:
        self._cma.tell(list(zip(asked, losses, strict=True)))


class Sep(Cma):
    """CMA-ES with a diagonal covariance."""

    def _made(
        self,
        start: Genotype,
        population: int,
        sigma: float,
        cov: np.ndarray | None = None,  # noqa: ARG002 - it starts from a round one
    ) -> CMA | SepCMA:
        mean = _padded(start)
        bounds = np.tile([0.0, 1.0], (mean.size, 1))
        return SepCMA(mean=mean, sigma=sigma, bounds=bounds, population_size=population)


class Bipop(Cma):
    """CMA-ES, restarted at a random point where it has converged (Hansen 2009, BBOB).

    Of two regimes the one that has asked less goes next: populations that double with every restart of the kind, or
    small ones (between the first and half the largest) with a small sigma.
    """

    def __init__(self, genes: Genes, start: Genotype, sigma: float, population: int, seed: int) -> None:
        super().__init__(genes, start, sigma, population, seed)
        self._spent = {"large": 0, "small": 0}
        self._regime, self._largest = "large", population

    @property
    def converged(self) -> bool:
        """Never: it restarts."""
        return False

    def _propose(self, seed: int) -> list[Any]:
        if self._narrow:
            generator = np.random.default_rng(self._seed(RESTART))
            first = self._largest == self.population
            self._regime = "large" if first or self._spent["large"] <= self._spent["small"] else "small"
            size, sigma = self.population, self.sigma
            if self._regime == "large":
                size = self._largest = 2 * self._largest
            else:
                share = generator.random() ** 2
                size = int(self.population * (0.5 * self._largest / self.population) ** share)
                sigma = self.sigma * 10 ** (-2 * generator.random())
            self._cma = self._made(generator.random(self.genes.count), size, max(sigma, 2 * CONVERGED))
        return super()._propose(seed)

    def _learn(self, asked: list[Any], losses: list[Any]) -> None:
        self._spent[self._regime] += len(asked)
        super()._learn(asked, losses)


class Mixed(Search):
    """CatCMA with margin: numbers, whole numbers and categories together."""

    def __init__(self, genes: Genes, start: Genotype, sigma: float, population: int, seed: int) -> None:
        super().__init__(genes, start, sigma, population, seed)
        self._cma = _catcma(genes, start, sigma, population)

    @property
    def mean(self) -> Genotype:
        """The centre of the distribution; of categories the most probable."""
        x = np.full(self.genes.count, 0.5)
        if hasattr(self._cma, "_mean"):
            numbers = self.genes.numbers
            x[numbers] = self._cma._mean[: len(numbers)]
            for gene, place in zip(self.genes.levels, range(len(numbers), len(self._cma._mean)), strict=True):
                size = self.genes.levels[gene]
                x[gene] = (np.clip(np.round(self._cma._mean[place]), 0, size - 1) + 0.5) / size
        for row, (gene, size) in enumerate(self.genes.categories.items()):
            x[gene] = (int(self._cma._q[row].argmax()) + 0.5) / size
        inside: Genotype = np.clip(x, 0.0, 1.0)
        return inside

    def _propose(self, seed: int) -> list[Any]:
        self._cma.reseed_rng(seed)
        return [self._cma.ask() for _ in range(self._cma.population_size)]

    def _genotype(self, asked: Any) -> Genotype:
        return _cube(asked, self.genes)

    def _learn(self, asked: list[Any], losses: list[Any]) -> None:
        # ranks, equals in random order: a quartile range of zero would turn its penalties into NaN
        order = np.random.default_rng(self._seed(TIES)).permutation(len(losses))
        ranks = np.empty(len(losses))
        ranks[order[np.argsort(np.array(losses)[order], kind="stable")]] = np.arange(len(losses))
        self._cma.tell([(x, float(rank)) for x, rank in zip(asked, ranks, strict=True)])


class Como(Search):
    """COMO-CatCMA with margin: `KERNELS` distributions, each rewarded by what it adds to the front's hypervolume.

    Two objectives, each of which is worth something above 0: (0, 0) is the reference point, and a failed candidate's
    place. A generation is a distribution's candidates and some means; the first is larger.
    """

    drifts = False  # and what was asked has to be told
    elitist = True

    def __init__(
        self, genes: Genes, start: Genotype, sigma: float, population: int, seed: int, objectives: int = 2
    ) -> None:
        if objectives != 2:
            raise ValueError(f"como searches a front of two objectives, got {objectives}: pooled and nsga2 take any")
        super().__init__(genes, start, sigma, population, seed)
        self.objectives = objectives
        generator = np.random.default_rng(np.random.SeedSequence(seed))
        starts = [
            start,
            *(np.clip(start + sigma * generator.standard_normal(genes.count), 0, 1) for _ in range(KERNELS - 1)),
        ]
        kernels = [_catcma(genes, one, sigma, population) for one in starts]
        self._como = COMOCatCMAwM(*_spaces(genes), reference_point=[0.0, 0.0], kernels=kernels, seed=self._seed())

    def _propose(self, seed: int) -> list[Any]:
        self._como.reseed_rng(seed)
        return list(self._como.ask_iter())

    def _genotype(self, asked: Any) -> Genotype:
        return _cube(asked, self.genes)

    def _losses(self, values: Float[np.ndarray, "candidates objectives"]) -> list[Any]:
        # a trace of chance: equal hypervolumes would turn its penalties into NaN
        trace = 1e-9 * np.random.default_rng(self._seed(TIES)).random(values.shape)
        return [loss.tolist() for loss in np.where(np.isfinite(values), -values, 0.0) + trace]

    def _learn(self, asked: list[Any], losses: list[Any]) -> None:
        self._como.tell(list(zip(asked, losses, strict=True)))


class Pooled(Search):
    """Thompson sampling (1933) of a surface through all candidates: each candidate is the best point of a draw from it.

    The first two generations are drawn around the start, where nothing is known before (`know`). A draw is compared at
    `TRIES` points about the `LEADERS` candidates of the highest posterior mean. A failed candidate counts as the worst
    of all so far, and after a generation that failed whole the next is drawn around the start, closer each time: where
    the surface leads nothing may be whole. Options of a category are as far apart as the ends of a number are: what one
    teaches of the other genes, the others learn.
    """

    drifts = False

    def __init__(self, genes: Genes, start: Genotype, sigma: float, population: int, seed: int) -> None:
        super().__init__(genes, start, sigma, population, seed)
        self._told: list[tuple[Genotype, np.ndarray, np.ndarray]] = []  # with its objectives and their errors
        self.surfaces: list[Surface] = []  # one an objective, once something is told
        self.blind = 2  # generations that are drawn around the start
        self.lost = 0  # generations that failed whole, one after the other

    @property
    def mean(self) -> Genotype:
        """Where the surface is highest; the start before there is one."""
        if not self.surfaces:
            return self.start.copy()
        top: Genotype = self._placed(highest(self.surfaces[0], self.seed)[None], 0.0, np.random.default_rng(0))[0]
        return top

    def _propose(self, seed: int) -> list[Any]:
        generator = np.random.default_rng(seed)
        if not self.surfaces or self.generation < self.blind or self.lost:
            steps = self.sigma * generator.standard_normal((self.population, self.genes.count))
            around = self.start + steps / 2**self.lost
            return list(self._placed(around, 1.0, generator))
        return self._drawn(generator)

    def _drawn(self, generator: np.random.Generator) -> list[Genotype]:
        """The best points of draws from what was told."""
        surface = self.surfaces[0]
        heights = surface.predict(surface.genes)[0]
        tries = self._tries(surface.genes[np.argsort(-heights, kind="stable")[:LEADERS]], generator)
        return [tries[draw.argmax()] for draw in surface.sample(tries, self.population, generator)]

    def _tries(
        self, leaders: Float[np.ndarray, "leaders genes"], generator: np.random.Generator
    ) -> Float[np.ndarray, "tries genes"]:
        """Points about the leaders."""
        steps = generator.choice(STEPS, (TRIES, 1)) * generator.standard_normal((TRIES, self.genes.count))
        return self._placed(leaders[generator.integers(len(leaders), size=TRIES)] + steps, SWITCH, generator)

    def _placed(
        self, points: Float[np.ndarray, "points genes"], switch: float, generator: np.random.Generator
    ) -> Float[np.ndarray, "points genes"]:
        """The points in the cube, whole numbers and categories in the middle of their parts, some categories anew."""
        placed: np.ndarray = np.clip(points, 0.0, 1.0)
        for gene in self.genes.categories:
            anew = generator.random(len(placed)) < switch
            placed[anew, gene] = generator.random(int(anew.sum()))
        for gene, size in {**self.genes.categories, **self.genes.levels}.items():
            placed[:, gene] = (np.minimum(np.floor(placed[:, gene] * size), size - 1) + 0.5) / size
        return placed

    def _losses(self, values: Float[np.ndarray, "candidates objectives"]) -> list[Any]:
        whole = values[np.isfinite(values).all(axis=1)]
        self.lost = 0 if len(whole) else self.lost + 1
        so_far = [*whole, *(told for _, told, _ in self._told)]
        worst = np.min(so_far, axis=0) if so_far else np.nan
        return list(-np.where(np.isfinite(values), values, worst))

    def _begin(self, known: list[Genotype], values: Float[np.ndarray, "known objectives"]) -> None:
        self.blind = 0
        self._learn(known, self._losses(values))

    def _again(self, genotypes: list[Genotype], values: Float[np.ndarray, "merges objectives"]) -> None:
        self._told, self.surfaces = [], []
        self._learn(genotypes, self._losses(values))

    def _learn(self, asked: list[Any], losses: list[Any]) -> None:
        rows = zip(asked, losses, self._errors, strict=True)
        self._told += [(x, -loss, errors) for x, loss, errors in rows if not np.isnan(loss).any()]
        if not self._told:
            return
        genes, scores, errors = (np.array(column) for column in zip(*self._told, strict=True))
        before: list[Surface | None] = [*self.surfaces] or [None] * self.objectives
        self.surfaces = [
            Surface(genes, scores[:, k], errors[:, k], old.settings)
            if old and self._keeps
            else fit(genes, scores[:, k], errors[:, k])
            for k, old in enumerate(before)
        ]

    @property
    def _keeps(self) -> bool:
        """Whether a surface's settings stay as they are in this generation."""
        return self.generation >= REFITS and self.generation % 3 > 0


class PooledFront(Pooled):
    """Thompson sampling of a front: a surface an objective, and each candidate is the best of a draw of all of them.

    The best is that which goes furthest in a random direction: of the objectives, scaled to what the candidates so far
    span, the smallest share of its weight (Paria et al. 2019, arXiv 1805.12168, with Chebyshev's scalarisation). The
    weights are drawn for each candidate, uniformly.
    """

    def __init__(
        self, genes: Genes, start: Genotype, sigma: float, population: int, seed: int, objectives: int = 2
    ) -> None:
        super().__init__(genes, start, sigma, population, seed)
        self.objectives = objectives

    @property
    def mean(self) -> Genotype:
        """The asked candidate that goes furthest with equal weights; the start before there is one."""
        if not self.surfaces:
            return self.start.copy()
        heights = self._heights(self.surfaces[0].genes)
        equal = np.full(self.objectives, 1 / self.objectives)
        top: Genotype = self.surfaces[0].genes[_furthest(heights, equal, *_spans(heights))[-1]].copy()
        return top

    def _heights(self, genes: Float[np.ndarray, "some genes"]) -> Float[np.ndarray, "some objectives"]:
        return np.stack([surface.predict(genes)[0] for surface in self.surfaces], axis=1)

    def _drawn(self, generator: np.random.Generator) -> list[Genotype]:
        heights = self._heights(self.surfaces[0].genes)
        spans = _spans(heights)
        made = []
        for weights in generator.dirichlet(np.ones(self.objectives), self.population):
            leaders = self.surfaces[0].genes[_furthest(heights, weights, *spans)[-LEADERS:]]
            tries = self._tries(leaders, generator)
            draws = np.stack([surface.sample(tries, 1, generator)[0] for surface in self.surfaces], axis=1)
            made.append(tries[_furthest(draws, weights, *spans)[-1]])
        return made


def _standard(errors: Sequence[Value], shape: tuple[int, ...]) -> Float[np.ndarray, "candidates objectives"]:
    """The standard errors of fitness of a shape; `ERROR` where one is NaN.

    Raises:
        ValueError: their number differs, or one is negative or infinite.
    """
    told = np.array(errors, dtype=float)
    if told.size != math.prod(shape) or (told < 0).any() or np.isinf(told).any():
        raise ValueError(f"expected a finite standard error of every fitness value, NaN where it failed, got {errors}")
    return np.where(np.isnan(told), ERROR, told).reshape(shape)


def _spans(heights: Float[np.ndarray, "some objectives"]) -> tuple[np.ndarray, np.ndarray]:
    """What the candidates' objectives reach: the lowest, and how far it is to the highest."""
    low = heights.min(axis=0)
    return low, np.maximum(heights.max(axis=0) - low, 1e-9)


def _furthest(
    heights: Float[np.ndarray, "some objectives"], weights: np.ndarray, low: np.ndarray, span: np.ndarray
) -> np.ndarray:
    """The order of the points by the least of their scaled objectives' shares of the weights; the last is the best."""
    return np.argsort(((heights - low) / span / np.maximum(weights, 1e-3)).min(axis=1), kind="stable")


class Random(Search):
    """Uniform points."""

    def _propose(self, seed: int) -> list[Any]:
        return list(np.random.default_rng(seed).random((self.population, self.genes.count)))


class Grid(Search):
    """The points of a grid of `SIDE` values a gene, in random order, each once."""

    def __init__(self, genes: Genes, start: Genotype, sigma: float, population: int, seed: int) -> None:
        super().__init__(genes, start, sigma, population, seed)
        self._seen = set[tuple[int, ...]]()

    @property
    def converged(self) -> bool:
        """Whether every point was asked."""
        return len(self._seen) == int(SIDE**self.genes.count)

    def _propose(self, seed: int) -> list[Any]:
        generator, found = np.random.default_rng(seed), list[np.ndarray]()
        while len(found) < self.population and not self.converged:
            point = tuple(generator.integers(0, SIDE, self.genes.count).tolist())
            if point not in self._seen:
                self._seen.add(point)
                found.append(np.array(point) / (SIDE - 1))
        return found


class Average(Search):
    """The start alone, once."""

    @property
    def converged(self) -> bool:
        """Whether the start was asked."""
        return self.generation > 0

    def _propose(self, seed: int) -> list[Any]:  # noqa: ARG002 - the signature of a method
        return [] if self.generation else [self.start]


class Pymoo(Search):
    """A method of pymoo, which is an extra. Starts from uniform points."""

    method = "GA"
    drifts = False
    elitist = True

    def __init__(
        self, genes: Genes, start: Genotype, sigma: float, population: int, seed: int, objectives: int = 1
    ) -> None:
        super().__init__(genes, start, sigma, population, seed)
        self.objectives = objectives
        try:
            from pymoo.algorithms.moo.nsga2 import NSGA2
            from pymoo.algorithms.soo.nonconvex.ga import GA
            from pymoo.core.problem import Problem
            from pymoo.core.termination import NoTermination
        except ImportError as error:
            raise ValueError("this search needs pymoo: pip install pymoo") from error
        problem = Problem(n_var=genes.count, n_obj=self.objectives, xl=0.0, xu=1.0)
        self._algorithm = {"GA": GA, "NSGA2": NSGA2}[self.method](pop_size=population)
        self._algorithm.setup(problem, termination=NoTermination(), seed=seed, verbose=False)
        self._infills: Any = None

    def _propose(self, seed: int) -> list[Any]:  # noqa: ARG002 - pymoo has one stream for a whole search
        self._infills = self._algorithm.ask()
        return list(self._infills.get("X"))

    def _losses(self, values: Float[np.ndarray, "candidates objectives"]) -> list[Any]:
        losses = -values
        whole = losses[np.isfinite(losses).all(axis=1)]
        worst = whole.max(axis=0) + 1.0 if len(whole) else 0.0
        return list(np.where(np.isfinite(losses), losses, worst))

    def _learn(self, asked: list[Any], losses: list[Any]) -> None:  # noqa: ARG002 - it keeps them itself
        self._infills.set("F", np.array(losses))
        for one in self._infills:
            one.evaluated.update({"F", "G", "H"})
        self._algorithm.tell(infills=self._infills)


class Nsga2(Pymoo):
    """NSGA-II (Deb et al. 2002)."""

    method = "NSGA2"


def begin_after(
    genotypes: Float[np.ndarray, "candidates genes"],
    fitness: Float[np.ndarray, " candidates"],
    share: float = 0.1,
    alpha: float = 0.1,
) -> tuple[Genotype, float, Float[np.ndarray, "genes genes"]]:
    """Start, sigma and covariance from another search's candidates: WS-CMA-ES (arXiv 2012.06932, section 4.2).

    The best `share` of the candidates (one at least) as a mixture of Gaussians of width `alpha`, by its mean and
    covariance. As `cmaes.get_warm_start_mgd`, by log-determinants, so that it holds for any number of genes.

    Raises:
        ValueError: no candidate, or a share outside (0, 1].
    """
    if len(fitness) == 0:
        raise ValueError("expected one or more genotypes with their fitness, got none")
    if not 0 < share <= 1 or not alpha > 0:
        raise ValueError(f"share must be in (0, 1] and alpha above 0, got {share} and {alpha}")
    count = max(1, math.floor(share * len(fitness)))
    best = genotypes[np.argsort(-fitness, kind="stable")[:count]]
    away = best - best.mean(axis=0)
    covariance = alpha**2 * np.eye(best.shape[1]) + away.T @ away / count
    sigma = float(np.exp(np.linalg.slogdet(covariance)[1] / (2 * best.shape[1])))
    return best.mean(axis=0), sigma, covariance / sigma**2


def _padded(start: Genotype) -> Float[np.ndarray, " padded"]:
    """A copy of the start; cmaes needs two dimensions, so that a single gene has an idle companion."""
    return np.append(start, 0.5) if start.size == 1 else start.copy()


def _spaces(genes: Genes) -> tuple[list[list[float]] | None, list[list[int]] | None, list[int] | None]:
    numbers, levels = [[0.0, 1.0]] * len(genes.numbers), [list(range(n)) for n in genes.levels.values()]
    return numbers or None, levels or None, list(genes.categories.values()) or None


def _catcma(genes: Genes, start: Genotype, sigma: float, population: int) -> CatCMAwM:
    """CatCMAwM with its numbers at `start`; whole numbers are counted in levels."""
    sizes = np.array(list(genes.levels.values()), dtype=float)
    levels = start[list(genes.levels)] * sizes - 0.5
    mean = np.concatenate([start[genes.numbers], np.clip(levels, 0.0, np.maximum(sizes - 1, 0))])
    scale = np.concatenate([np.ones(len(genes.numbers)), sizes])
    gaussian = {"mean": mean, "sigma": sigma, "cov": np.diag(scale**2)} if mean.size else {}
    numbers, levels_, categories = _spaces(genes)
    return CatCMAwM(numbers, levels_, categories, population_size=population, **gaussian)


def _cube(solution: Any, genes: Genes) -> Genotype:
    """The genotype of a solution of CatCMAwM."""
    x = np.empty(genes.count)
    if genes.numbers:
        x[genes.numbers] = solution.x
    for place, (gene, size) in enumerate(genes.levels.items()):
        x[gene] = (solution.z[place] + 0.5) / size
    for place, (gene, size) in enumerate(genes.categories.items()):
        x[gene] = (int(solution.c[place].argmax()) + 0.5) / size
    return x


SEARCHES: dict[str, Callable[[Genes, Genotype, float, int, int], Search]] = {
    "cma": Cma,
    "bipop": Bipop,
    "sep": Sep,
    "mixed": Mixed,
    "pooled": Pooled,
    "random": Random,
    "grid": Grid,
    "average": Average,
    "genetic": Pymoo,
}

FRONTS: dict[str, Callable[[Genes, Genotype, float, int, int, int], Search]] = {
    "pooled": PooledFront,
    "como": Como,
    "nsga2": Nsga2,
}
