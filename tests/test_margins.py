"""The factors of relatives' margins: the closed form against dense Gaussian algebra, recovery, invariances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr

from merge3 import extract
from merge3.estimate import Calibration, Known, calibrate, margin_irt
from merge3.irt import ItemParameters
from merge3.margins import DRAWS, FEWEST, LEAST, NOISES, OPEN, SPREAD, WIDTHS, Factors, design, factors, fit

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
    found = factors(relatives, (0.5, 3.0))
    assert found.mean == pytest.approx(relatives.mean(axis=0))
    own = found.loadings[:, : len(relatives)]
    assert own @ own.T == pytest.approx(3.0 * np.cov(relatives.T))
    spread = relatives.std(axis=0, ddof=1)
    assert np.sqrt(found.noise) == pytest.approx(0.5 * (spread + np.sqrt((spread**2).mean())) / 2)
    level, pattern = found.loadings[:, len(relatives) :].T / OPEN
    assert level == pytest.approx(np.full(ITEMS, found.mean.std()))
    assert pattern == pytest.approx(found.mean - found.mean.mean())
    assert factors(relatives[[0, 0, 0]], (0.5, 3.0)).noise == pytest.approx((0.5 * SPREAD) ** 2)


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
    relatives[0, 0] = 0.0  # a tie is no answer
    found = margin_irt(relatives[0], known_of(relatives[1:], np.arange(ITEMS)))
    assert (found.score, found.low, found.high) == pytest.approx(((relatives[0] > 0).mean(),) * 3)


def test_the_score_of_some_items_heeds_the_answers_to_all() -> None:
    relatives, subset = family(9, 10), drawn(10)
    members = np.arange(0, ITEMS, 3)
    part = Known(**{**vars(known_of(relatives[1:], subset)), "counted": members})
    P, slopes, covariance = part.factors.right(subset, relatives[0, subset])
    unasked = np.setdiff1d(members, subset)
    gradient, chance = slopes[unasked].sum(axis=0), (P * (1 - P))[unasked].sum()
    P[subset] = relatives[0, subset] > 0
    found = margin_irt(relatives[0, subset], part)
    assert found.score == pytest.approx(P[members].mean())
    assert found.standard_error == pytest.approx(np.sqrt(gradient @ covariance @ gradient + chance) / len(members))
    wide = margin_irt(relatives[0, subset], replace(part, calibration=Calibration(widening=2.0)))
    assert (wide.score, wide.standard_error) == pytest.approx((found.score, 2 * found.standard_error))
    whole = margin_irt(relatives[0, subset], replace(part, counted=subset[:7]))  # all of these were asked
    assert (whole.score, whole.standard_error) == ((relatives[0, subset[:7]] > 0).mean(), 0.0)


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


@pytest.mark.parametrize("asked", [20, 120])
def test_the_fit_is_the_setting_that_tells_left_out_relatives_best(asked: int) -> None:
    relatives, subset = family(12, 7), drawn(12, asked)
    relatives[0, :40] *= -1  # unlike all others: no answer of it decides alone

    def likelihood(setting: tuple[float, float]) -> float:
        total = 0.0
        for k, row in enumerate(relatives):
            P, _, _ = factors(np.delete(relatives, k, axis=0), setting).right(subset, row[subset])
            total += np.log(np.maximum(np.delete(np.where(row > 0, P, 1 - P), subset), LEAST)).sum()
        return total

    best = factors(relatives, max(product(NOISES, WIDTHS), key=likelihood))
    for found, expected in zip(vars(fit(relatives, subset)).values(), vars(best).values(), strict=True):
        np.testing.assert_array_equal(found, expected)


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


def left(found: Factors, asked: Sequence[int]) -> np.ndarray:
    """The variance of the score that is left of each of the candidates a design is for, when it was asked so much."""
    z = np.random.default_rng(0).standard_normal((DRAWS, found.loadings.shape[1]))
    deviation = np.sqrt(found.noise)
    gradient = (norm.pdf((found.mean + z @ found.loadings.T) / deviation) / deviation) @ found.loadings
    V = found.loadings[list(asked)]
    covariance = np.linalg.inv(np.eye(V.shape[1]) + (V.T / found.noise[list(asked)]) @ V)
    return np.einsum("qi,ij,qj->q", gradient, covariance, gradient)


def test_the_design_takes_each_next_item_that_lowers_the_variance_most() -> None:
    found = factors(family(15, 6), (0.3, 1.0))
    group, greedy = np.arange(ITEMS) % 2, list[int]()
    for _ in range(4):
        rest = [i for i in range(ITEMS) if i not in greedy and [group[j] for j in greedy].count(group[i]) < 2]
        greedy.append(min(rest, key=lambda i: float((left(found, [*greedy, i]) / left(found, greedy)).mean())))
    seats = np.array([2, 2])
    assert design(found, 4, group, seats).tolist() == greedy
    assert seats.tolist() == [2, 2]


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
    found = fit(relatives, drawn(99, 10))
    shares = [(left(found, subset) / left(found, [])).mean() for subset in (chosen, *(drawn(n, 10) for n in range(50)))]
    assert shares[0] < min(shares[1:])
    assert chosen.tolist() != extract.by_margins(relatives, 10, ["x"] * ITEMS, 1)[0].tolist()  # whose fit is another


@pytest.mark.parametrize("spoil", [lambda m: m[: FEWEST - 1], lambda m: np.where(m == m.max(), np.nan, m)])
def test_too_few_relatives_or_a_missing_margin_is_refused(spoil) -> None:
    with pytest.raises(ValueError, match="expected the margins of 3 or more merges"):
        fit(spoil(family(18, 6)), drawn(0))


def test_what_does_not_fit_is_refused() -> None:
    known = known_of(family(19, 6), drawn(0))
    with pytest.raises(ValueError, match=f"expected {FEWEST + 1} relatives or more, as each is left out in turn"):
        calibrate("margin_irt", np.ones((1, ITEMS)), known_of(family(19, FEWEST), drawn(0)))
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
