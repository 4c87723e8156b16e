"""A surface of the score over the genes, pooled from every candidate asked so far: Gaussian process regression.

An estimate from a few items is noisy, and the best of many is a lucky one. Neighbours in the genes are much the
same model, so that each estimate tells of all, and the surface's highest point stands on all of them. What the items
asked favour in all candidates alike moves the surface as a whole, and no choice. Knows genes, estimates and their
errors; knows neither models nor items.

    estimate_c = mean + f(x_c) + e_c,   f ~ GP(0, signal² k),   e_c ~ N(0, v_c)

with k(x, y) = exp(-|x - y|² / (2 length²)) and v_c the square of a share of the estimate's standard error (Rasmussen
& Williams 2006: eq. 2.25 and 2.26 for the posterior, 2.30 for the evidence, which chooses length, signal and share).
A standard error speaks of the level, most of which candidates with the same items have in common, and is widened to
be right on average: taken whole, it would pass a real difference for noise, and the surface for a plane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import ThreadpoolController

LENGTHS = (0.2, 0.35, 0.6, 1.0)  # in units of the cube's diagonal
SIGNALS = (0.02, 0.04, 0.1, 0.25)  # of accuracy
SHARES = (0.125, 0.25, 0.5, 1.0)  # of a standard error, that are a candidate's own
CLIMBERS, CLIMB, TRIES = 4, 24, 24  # of `best`: starts, steps, tries of a step
FLOOR = 0.005  # least error of a candidate: what the genes cannot say of it
UNSEEN = 0.02  # of a score, at least: what the few items asked favour in one candidate and not in its neighbours

# numpy and scipy bring a linear algebra each, whose threads wait for one another's: one thread takes a twelfth of the
# time, and what it gives does not depend on how many there are.
F = TypeVar("F", bound=Callable[..., Any])
_on_one_thread: Callable[[F], F] = ThreadpoolController().wrap(limits=1, user_api="blas")


@dataclass(frozen=True)
class Surface:
    """The posterior of the score, given the estimates of candidates.

    Args:
        genes: of the candidates, in the unit cube.
        scores: their estimates.
        errors: the estimates' standard errors.
        settings: length (of the cube's diagonal), signal, and share of the errors; see `fit` for the most likely ones.
    """

    genes: Float[np.ndarray, "candidates genes"]
    scores: Float[np.ndarray, " candidates"]
    errors: Float[np.ndarray, " candidates"]
    settings: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.scores) == 0:
            raise ValueError("a surface needs one candidate with an estimate, got none")
        if not (np.isfinite(self.scores).all() and np.isfinite(self.errors).all()):
            raise ValueError("scores and errors must be finite: leave out candidates that failed")

    @cached_property
    def _covariance(self) -> Float[np.ndarray, "candidates candidates"]:
        own = np.maximum(self.settings[2] * self.errors, np.minimum(self.errors, UNSEEN))
        return np.asarray(self._kernel(self.genes, self.genes) + np.diag(np.maximum(own, FLOOR) ** 2))

    @cached_property
    def _factor(self) -> tuple[Float[np.ndarray, "candidates candidates"], bool]:
        factor: tuple[np.ndarray, bool] = cho_factor(self._covariance, lower=True)
        return factor

    @cached_property
    def _mean(self) -> float:
        """The generalised least-squares mean."""
        ones = cho_solve(self._factor, np.ones(len(self.scores)))
        return float(ones @ self.scores / ones.sum())

    @cached_property
    def _weights(self) -> Float[np.ndarray, " candidates"]:
        return np.asarray(cho_solve(self._factor, self.scores - self._mean))

    @property
    def evidence(self) -> float:
        """Log-likelihood of the estimates under the settings, but for a constant."""
        logs = np.log(np.diag(self._factor[0])).sum()
        return float(-0.5 * (self.scores - self._mean) @ self._weights - logs)

    def _kernel(
        self, first: Float[np.ndarray, "some genes"], second: Float[np.ndarray, "others genes"]
    ) -> Float[np.ndarray, "some others"]:
        length, signal, _ = self.settings
        scale = length * np.sqrt(first.shape[1])
        distances = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
        return np.asarray(signal**2 * np.exp(-np.maximum(distances, 0.0) / (2 * scale**2)))

    @_on_one_thread
    def predict(
        self, genes: Float[np.ndarray, "some genes"]
    ) -> tuple[Float[np.ndarray, " some"], Float[np.ndarray, " some"]]:
        """Mean and standard deviation of the score anywhere in the cube."""
        cross = self._kernel(genes, self.genes)
        explained = (cross * cho_solve(self._factor, cross.T).T).sum(1)
        variance = np.maximum(self.settings[1] ** 2 - explained, 1e-12)
        return self._mean + cross @ self._weights, np.sqrt(variance)

    @_on_one_thread
    def sample(
        self, genes: Float[np.ndarray, "some genes"], count: int, generator: np.random.Generator
    ) -> Float[np.ndarray, "count some"]:
        """Draws of the whole surface at `genes`, from the posterior."""
        cross = self._kernel(genes, self.genes)
        covariance = self._kernel(genes, genes) - cross @ cho_solve(self._factor, cross.T)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        noise = generator.standard_normal((count, len(genes))) @ root.T
        return np.asarray(self._mean + cross @ self._weights + noise)


@_on_one_thread
def fit(
    genes: Float[np.ndarray, "candidates genes"],
    scores: Float[np.ndarray, " candidates"],
    errors: Float[np.ndarray, " candidates"],
) -> Surface:
    """The surface of the highest evidence, over a grid of settings."""
    made = (Surface(genes, scores, errors, settings) for settings in product(LENGTHS, SIGNALS, SHARES))
    return max(made, key=lambda surface: surface.evidence)


def best(surface: Surface, seed: int) -> Float[np.ndarray, " genes"]:
    """Where the surface is highest: a random climb from the best candidates with steps that shrink."""
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    found = surface.genes[np.argsort(-surface.predict(surface.genes)[0], kind="stable")[:CLIMBERS]]
    for step in np.geomspace(0.3, 0.01, CLIMB):
        tried = found[:, None] + step * generator.standard_normal((len(found), TRIES, found.shape[1]))
        tried = np.clip(np.concatenate([found[:, None], tried], axis=1), 0.0, 1.0)
        heights = surface.predict(tried.reshape(-1, found.shape[1]))[0].reshape(tried.shape[:2])
        found = tried[np.arange(len(found)), heights.argmax(axis=1)]
    top: Float[np.ndarray, " genes"] = found[surface.predict(found)[0].argmax()]
    return top
