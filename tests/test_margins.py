"""The factors of relatives' margins: the closed form against dense Gaussian algebra, recovery, invariances."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr

from merge3 import extract
from merge3.estimate import Known, calibrate, margin_irt
from merge3.irt import ItemParameters
from merge3.margins import DRAWS, FEWEST, OPEN, Factors, design, factors, fit

ITEMS, ASKED = 200, 20


def family(seed: int, models: int, directions: int = 4, noise: float = 0.3) -> np.ndarray:
    """Margins of models whose margins move along a few directions; the mean model has about two thirds right."""
    rng = np.random.default_rng(seed)
    mean, ways = rng.normal(0.8, 2.0, ITEMS), rng.normal(0.0, 0.7, (directions, ITEMS))
    ways[0] += 0.4  # how much a model knows
    return mean + rng.normal(size=(models, directions)) @ ways + noise * rng.normal(size=(models, ITEMS))


def known_of(relatives: np.ndarray, subset: np.ndarray) -> Known:
    """What is known with a subset of equal weights; the items' parameters say nothing."""
    count = relatives.shape[1]
    items = ItemParameters(np.ones((count, 1)), np.zeros(count))
    parents = (relatives[:2] > 0).astype(float)
    return Known(items, subset, np.full(len(subset), 1 / len(subset)), parents, relatives=relatives)


def drawn(seed: int, count: int = ASKED) -> np.ndarray:
    """A random subset."""
    return np.sort(np.random.default_rng(seed).permutation(ITEMS)[:count])


def test_the_posterior_is_the_gaussian_conditional() -> None:
    relatives, asked = family(0, 9), drawn(1)
    found = factors(relatives[1:], (0.5, 3.0))
    joint = found.loadings @ found.loadings.T + np.diag(found.noise)
    gain = joint[:, asked] @ np.linalg.inv(joint[np.ix_(asked, asked)])
    unasked = np.setdiff1d(np.arange(ITEMS), asked)
    expected = (found.mean + gain @ (relatives[0, asked] - found.mean[asked]))[unasked]
    deviation = np.sqrt(np.diag(joint - gain @ joint[asked])[unasked])
    P, slopes, covariance = found.right(asked, relatives[0, asked])
    assert P[unasked] == pytest.approx(norm.cdf(expected / deviation), abs=1e-9)
    z, same = found.posterior(asked, relatives[0, asked])
    assert np.array_equal(covariance, same)
    step = 1e-6 * np.eye(len(z))[0]
    moved = norm.cdf((found.mean + found.loadings @ (z + step))[unasked] / deviation) - P[unasked]
    assert slopes[unasked, 0] == pytest.approx(moved / 1e-6, abs=1e-4)


def test_factors_have_the_relatives_mean_and_covariance() -> None:
    relatives = family(2, 7)
    found = factors(relatives, (0.5, 1.0))
    assert found.mean == pytest.approx(relatives.mean(axis=0))
    own = found.loadings[:, : len(relatives)]
    assert own @ own.T == pytest.approx(np.cov(relatives.T))
    level, pattern = found.loadings[:, len(relatives) :].T / OPEN
    assert level == pytest.approx(np.full(ITEMS, found.mean.std()))
    assert pattern == pytest.approx(found.mean - found.mean.mean())


def test_few_margins_tell_the_score_where_as_many_answers_do_not() -> None:
    every = family(4, 112)
    relatives, candidates, subset = every[:12], every[12:], drawn(4)
    known = known_of(relatives, subset)
    truths = (candidates > 0).mean(axis=1)
    scores = np.array([margin_irt(row[subset], known).score for row in candidates])
    answers = (candidates[:, subset] > 0).mean(axis=1)
    assert spearmanr(scores, truths).statistic > 0.9 > 0.8 > spearmanr(answers, truths).statistic
    assert np.abs(scores - truths).mean() < 0.5 * np.abs(answers - truths).mean()


def test_nine_intervals_in_ten_hold_the_truth() -> None:
    held = []
    for seed in range(8):
        every, subset = family(seed, 62), drawn(seed)
        known = calibrate("margin_irt", every[:12], known_of(every[:12], subset))
        for row in every[12:]:
            found = margin_irt(row[subset], known)
            held.append(found.low <= (row > 0).mean() <= found.high)
    assert 0.85 <= np.mean(held) <= 0.95


def test_a_collapsed_candidate_is_seen_as_collapsed() -> None:
    relatives, subset = family(5, 12), drawn(6, 10)
    collapsed = np.random.default_rng(7).normal(-3.0, 1.0, ITEMS)
    assert margin_irt(collapsed[subset], known_of(relatives, subset)).score < 0.3 < 0.6 < (relatives > 0).mean()


def test_asking_everything_is_exact() -> None:
    relatives = family(8, 5)
    found = margin_irt(relatives[0], known_of(relatives[1:], np.arange(ITEMS)))
    assert (found.score, found.low, found.high) == pytest.approx(((relatives[0] > 0).mean(),) * 3)


def test_the_score_of_some_items_heeds_the_answers_to_all() -> None:
    relatives, subset = family(9, 10), drawn(10)
    members = np.arange(0, ITEMS, 3)
    part = Known(**{**vars(known_of(relatives[1:], subset)), "counted": members})
    P, _, _ = part.factors.right(subset, relatives[0, subset])
    P[subset] = relatives[0, subset] > 0
    assert margin_irt(relatives[0, subset], part).score == pytest.approx(P[members].mean())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.floats(0.1, 10.0))
def test_order_and_unit_do_not_matter(seed: int, unit: float) -> None:
    relatives, subset = family(seed, 8), drawn(seed)
    plain = margin_irt(relatives[0, subset], known_of(relatives[1:], subset))
    rng = np.random.default_rng(seed)
    order = rng.permutation(ITEMS)
    renamed = np.argsort(order)[subset]
    moved = unit * relatives[:, order][np.append(0, 1 + rng.permutation(7))]
    other = margin_irt(moved[0, renamed], known_of(moved[1:], renamed))
    assert (other.score, other.standard_error) == pytest.approx((plain.score, plain.standard_error), abs=1e-6)


def test_the_fit_is_the_setting_that_tells_left_out_relatives_best() -> None:
    noisy, clean = family(11, 12, noise=1.0), family(11, 12, directions=2, noise=0.02)
    subset = drawn(12)
    shares = [fit(relatives, subset).noise / relatives.var(axis=0, ddof=1) for relatives in (noisy, clean)]
    assert np.median(shares[0]) > 4 * np.median(shares[1])


def test_calibration_leaves_each_relative_out() -> None:
    relatives, subset = family(13, 10), drawn(14)
    choose = partial(extract.by_margins, count=ASKED, groups=["x"] * ITEMS, seed=0)
    truths = (relatives > 0).mean(axis=1)
    for by in (None, choose):
        known = calibrate("margin_irt", np.ones((1, ITEMS)), known_of(relatives, subset), by)
        found = []
        for k, row in enumerate(relatives):
            others = np.delete(relatives, k, axis=0)
            asked = subset if by is None else by(others)[0]
            found.append(margin_irt(row[asked], known_of(others, asked)).score)
        assert known.calibration.models == 10
        assert known.calibration.mean_absolute_error == pytest.approx(np.abs(found - truths).mean())


def test_the_design_takes_the_item_that_lowers_the_variance_most() -> None:
    found = factors(family(15, 6), (0.3, 1.0))
    z = np.random.default_rng(0).standard_normal((DRAWS, found.loadings.shape[1]))
    deviation = np.sqrt(found.noise)
    gradient = (norm.pdf((found.mean + z @ found.loadings.T) / deviation) / deviation) @ found.loadings
    left = []
    for v, noise in zip(found.loadings, found.noise, strict=True):
        covariance = np.linalg.inv(np.eye(len(v)) + np.outer(v, v) / noise)
        left.append(np.mean([(g @ covariance @ g) / (g @ g) for g in gradient]))
    assert design(found, 1, np.zeros(ITEMS, dtype=int), np.array([1])) == [int(np.argmin(left))]


def test_extracted_items_share_the_budget_between_the_groups() -> None:
    groups = ["x"] * 150 + ["y"] * 50
    subset, weights = extract.by_margins(family(16, 6), 8, groups, 0)
    assert [groups[i] for i in subset].count("x") == 6
    assert len(set(subset.tolist())) == 8
    assert weights.sum() == pytest.approx(1.0)


def test_designed_items_tell_more_than_random_ones() -> None:
    every = family(17, 112)
    relatives, candidates = every[:12], every[12:]
    truths, errors = (candidates > 0).mean(axis=1), []
    chosen, _ = extract.by_margins(relatives, 10, ["x"] * ITEMS, 0)
    for subset in (chosen, *(drawn(seed, 10) for seed in range(5))):
        known = known_of(relatives, subset)
        errors.append(np.abs([margin_irt(row[subset], known).score for row in candidates] - truths).mean())
    assert errors[0] < np.mean(errors[1:])


@pytest.mark.parametrize("spoil", [lambda m: m[: FEWEST - 1], lambda m: np.where(m == m.max(), np.nan, m)])
def test_too_few_relatives_or_a_missing_margin_is_refused(spoil) -> None:
    with pytest.raises(ValueError, match="expected the margins of 3 or more merges"):
        fit(spoil(family(18, 6)), drawn(0))


def test_what_does_not_fit_is_refused() -> None:
    known = known_of(family(19, 6), drawn(0))
    with pytest.raises((TypeError, ValueError)):
        Known(**{**vars(known), "relatives": np.ones((5, 7))})
    with pytest.raises(ValueError, match="margin_irt needs the margins of merges"):
        margin_irt(np.ones(ASKED), Known(**{**vars(known), "relatives": None}))
    with pytest.raises(ValueError, match="answers are missing"):
        margin_irt(np.full(ASKED, np.nan), known)


def test_shapes_are_checked() -> None:
    found = factors(family(20, 5), (0.3, 1.0))
    with pytest.raises(TypeError):
        Factors(found.mean, found.loadings[:, 0], found.noise)
