from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, spearmanr
from threadpoolctl import threadpool_limits

from merge3.surface import Surface, best, fit

GENERATOR = np.random.default_rng(0)
SETTINGS = (0.4, 0.1, 0.5)


def hill(genes: np.ndarray) -> np.ndarray:
    return 0.7 - ((genes - 0.6) ** 2).sum(axis=1) * 0.5


def sampled(count: int, error: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Genes, estimates of the hill, errors."""
    generator = np.random.default_rng(seed)
    genes = generator.random((count, 3))
    return genes, hill(genes) + error * generator.standard_normal(count), np.full(count, error)


def test_the_posterior_is_that_of_the_joint_normal() -> None:
    genes, scores, _ = sampled(6, 0.05)
    errors = np.array([0.0, 0.004, 0.01, 0.03, 0.05, 0.2])
    own = np.array([0.005, 0.005, 0.01, 0.02, 0.025, 0.1])  # half, and the least that a candidate's own is
    new = GENERATOR.random((3, 3))
    surface = Surface(genes, scores, errors, SETTINGS)
    every = np.vstack([genes, new])
    distances = ((every[:, None] - every[None]) ** 2).sum(axis=2)
    K = 0.1**2 * np.exp(-distances / (2 * 0.4**2 * 3))
    observed = K[:6, :6] + np.diag(own**2)
    inverse = np.linalg.inv(observed)
    centre = inverse.sum(axis=0) @ scores / inverse.sum()
    mean, deviation = surface.predict(new)
    np.testing.assert_allclose(mean, centre + K[6:, :6] @ inverse @ (scores - centre))
    np.testing.assert_allclose(deviation**2, np.diag(K[6:, 6:] - K[6:, :6] @ inverse @ K[:6, 6:]))
    likelihood = multivariate_normal(np.full(6, centre), observed).logpdf(scores)
    assert surface.evidence == pytest.approx(likelihood + 3 * np.log(2 * np.pi))


def test_draws_have_the_posteriors_mean_and_deviation() -> None:
    surface = Surface(*sampled(10, 0.05), SETTINGS)
    new = GENERATOR.random((4, 3))
    draws = surface.sample(new, 3000, GENERATOR)
    mean, deviation = surface.predict(new)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.008)
    np.testing.assert_allclose(draws.std(axis=0), deviation, rtol=0.06)


def test_no_number_of_threads_moves_a_bit() -> None:
    given, new = sampled(300, 0.05), np.random.default_rng(1).random((200, 3))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            surface = fit(*given)
            found.append([*surface.predict(new), surface.sample(new, 5, np.random.default_rng(0))])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_error_that_all_share_moves_no_difference() -> None:
    genes, scores, errors = sampled(20, 0.05)
    first, second = (Surface(genes, scores + shift, errors, SETTINGS).predict(genes)[0] for shift in (0, 0.3))
    np.testing.assert_allclose(second - first, 0.3)


def test_pooling_ranks_better_than_the_estimates_themselves() -> None:
    genes, scores, errors = sampled(150, 0.1)
    pooled = fit(genes, scores, errors).predict(genes)[0]
    assert spearmanr(pooled, hill(genes)).statistic > spearmanr(scores, hill(genes)).statistic + 0.1
    assert np.abs(pooled - hill(genes)).mean() < 0.04


def test_exact_estimates_are_met() -> None:
    genes, _, _ = sampled(12, 0.0)
    mean = fit(genes, hill(genes), np.zeros(12)).predict(genes)[0]
    np.testing.assert_allclose(mean, hill(genes), atol=0.005)


def test_the_optimum_of_a_hill_is_found() -> None:
    surface = fit(*sampled(200, 0.03))
    top = best(surface, 0)
    np.testing.assert_allclose(top, 0.6, atol=0.12)
    assert surface.predict(top[None])[0][0] >= surface.predict(surface.genes)[0].max()
    np.testing.assert_array_equal(top, best(surface, 0))


def test_the_optimum_is_the_highest_in_the_cube_and_no_lower_than_a_lone_peak() -> None:
    generator = np.random.default_rng(0)
    genes = generator.random((12, 4))
    surface = Surface(genes, 0.5 + 0.2 * generator.standard_normal(12), np.zeros(12), (0.35, 0.25, 0.5))
    climbs = [minimize(lambda x: -surface.predict(x[None])[0][0], at, bounds=[(0.0, 1.0)] * 4) for at in genes]
    top = best(surface, 0)
    assert ((top >= 0) & (top <= 1)).all()
    assert surface.predict(top[None])[0][0] == pytest.approx(-min(climb.fun for climb in climbs), abs=1e-4)
    genes, scores = generator.random((30, 14)), 0.5 + 0.05 * generator.standard_normal(30)
    scores[17] = 0.9
    lone = Surface(genes, scores, np.zeros(30), (0.1, 0.25, 0.5))
    assert lone.predict(best(lone, 0)[None])[0][0] >= lone.predict(genes)[0].max() - 1e-9


def test_one_candidate_makes_a_flat_surface() -> None:
    surface = fit(np.full((1, 2), 0.5), np.array([0.6]), np.array([0.1]))
    np.testing.assert_allclose(surface.predict(GENERATOR.random((5, 2)))[0], 0.6)


def test_failures_are_refused() -> None:
    with pytest.raises(ValueError, match="leave out candidates that failed"):
        fit(np.zeros((2, 1)), np.array([0.5, np.nan]), np.ones(2))
    with pytest.raises(ValueError, match="leave out candidates that failed"):
        fit(np.zeros((2, 1)), np.ones(2), np.array([np.inf, 0.1]))
    with pytest.raises(ValueError, match="got none"):
        fit(np.zeros((0, 1)), np.zeros(0), np.zeros(0))
