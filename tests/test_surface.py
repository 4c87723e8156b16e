from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr

from merge3.surface import Surface, best, fit

GENERATOR = np.random.default_rng(0)
SETTINGS = (0.4, 0.1, 0.04, 1.0)


def hill(genes: np.ndarray) -> np.ndarray:
    return 0.7 - ((genes - 0.6) ** 2).sum(axis=1) * 0.5


def sampled(count: int, error: float, sets: int = 1, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Genes, estimates of the hill, errors, sets; a set's candidates share an error of .05."""
    generator = np.random.default_rng(seed)
    genes = generator.random((count, 3))
    number = np.arange(count) % sets
    scores = hill(genes) + error * generator.standard_normal(count) + 0.05 * generator.standard_normal(sets)[number]
    return genes, scores, np.full(count, error), number


def test_the_posterior_is_that_of_the_joint_normal() -> None:
    genes, scores, errors, sets = sampled(6, 0.05, 2)
    new = GENERATOR.random((3, 3))
    surface = Surface(genes, scores, errors, sets, SETTINGS)
    every = np.vstack([genes, new])
    distances = ((every[:, None] - every[None]) ** 2).sum(axis=2)
    K = 0.1**2 * np.exp(-distances / (2 * 0.4**2 * 3))
    observed = K[:6, :6] + 0.04**2 * (sets[:, None] == sets) + np.diag(errors**2)
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


def test_an_error_that_all_share_moves_no_difference() -> None:
    genes, scores, errors, sets = sampled(20, 0.05)
    first, second = (Surface(genes, scores + shift, errors, sets, SETTINGS).predict(genes)[0] for shift in (0, 0.3))
    np.testing.assert_allclose(second - first, 0.3)


def test_pooling_ranks_better_than_the_estimates_themselves() -> None:
    genes, scores, errors, sets = sampled(150, 0.1, 12)
    pooled = fit(genes, scores, errors, sets).predict(genes)[0]
    assert spearmanr(pooled, hill(genes)).statistic > spearmanr(scores, hill(genes)).statistic + 0.1
    assert np.abs(pooled - pooled.mean() - hill(genes) + hill(genes).mean()).mean() < 0.04


def test_exact_estimates_are_met() -> None:
    genes, _, _, sets = sampled(12, 0.0)
    mean = fit(genes, hill(genes), np.zeros(12), sets).predict(genes)[0]
    np.testing.assert_allclose(mean, hill(genes), atol=0.005)


def test_the_optimum_of_a_hill_is_found() -> None:
    genes, scores, errors, sets = sampled(200, 0.03, 10)
    surface = fit(genes, scores, errors, sets)
    top = best(surface, 0)
    np.testing.assert_allclose(top, 0.6, atol=0.12)
    assert surface.predict(top[None])[0][0] >= surface.predict(genes)[0].max()
    np.testing.assert_array_equal(top, best(surface, 0))


def test_one_candidate_makes_a_flat_surface() -> None:
    surface = fit(np.full((1, 2), 0.5), np.array([0.6]), np.array([0.1]), np.zeros(1, int))
    np.testing.assert_allclose(surface.predict(GENERATOR.random((5, 2)))[0], 0.6)


def test_failures_are_refused() -> None:
    with pytest.raises(ValueError, match="leave out candidates that failed"):
        fit(np.zeros((2, 1)), np.array([0.5, np.nan]), np.ones(2), np.zeros(2, int))
    with pytest.raises(ValueError, match="got none"):
        fit(np.zeros((0, 1)), np.zeros(0), np.zeros(0), np.zeros(0, int))
