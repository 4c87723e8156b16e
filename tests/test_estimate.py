import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import spearmanr

from merge3 import estimate
from merge3 import lineage as descent
from merge3.estimate import (
    ANSWERED,
    ESTIMATORS,
    PARENTLESS,
    Calibration,
    Estimate,
    Known,
    calibrate,
    degenerate,
    learn_inheritance,
    lineage,
    mean,
    mp_irt,
    p_irt,
    parent_aware,
    published_mixing,
    ridge,
    update,
    weighted_mean,
)
from merge3.extract import fisher
from merge3.irt import ItemParameters, fit_abilities, fit_logistic, probability


def world(count=200, asked=20, parents=2, dimensions=1, merges=40, seed=0, inherited=1.5):
    """Parents of ability about 1 with quirks of their own, and merges that inherit both."""
    rng = np.random.default_rng(seed)
    a = rng.normal(0, 0.7, (count, dimensions))
    a[:, 0] = rng.lognormal(0.3, 0.4, count)
    items = ItemParameters(a, rng.normal(0.5, 1.2, count))
    theta = rng.normal(1, 0.3, (parents, dimensions))
    quirks = rng.normal(0, 1.5, count)
    answers = (rng.random((parents, count)) < expit(theta @ a.T - items.difficulty + quirks)).astype(float)
    subset = np.sort(rng.choice(count, asked, replace=False))
    population = (rng.random((80, count)) < probability(items, rng.normal(0.5, 1, (80, dimensions)))).astype(float)
    known = Known(items, subset, np.full(asked, 1 / asked), answers, population=population)
    mixes = rng.dirichlet(np.ones(parents), merges) @ theta + rng.normal(0, 0.2, (merges, dimensions))
    P = expit(mixes @ a.T - items.difficulty + inherited * known.residuals)
    return known, (rng.random((merges, count)) < P).astype(float)


def all_estimators(test):
    return pytest.mark.parametrize("estimator", ANSWERED)(test)


def same(one: Estimate, other: Estimate):
    np.testing.assert_allclose(list(asdict(one).values()), list(asdict(other).values()), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_with_all_items_asked_every_estimator_is_the_accuracy(data):
    known, _ = world(count=12, asked=3, dimensions=data.draw(st.integers(1, 3)), seed=data.draw(st.integers(0, 5)))
    known = replace(known, subset=np.arange(12), weights=np.full(12, 1 / 12), shared_error=0.05)
    answers = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=12, max_size=12)))
    found = ESTIMATORS[data.draw(st.sampled_from(ANSWERED))](answers, known)
    assert found.score == pytest.approx(answers.mean())
    assert found.low == found.score == found.high


@pytest.mark.parametrize("estimator", ["p_irt", "mp_irt", "bayes_mp_irt", "parent_aware", "lineage"])
def test_an_error_that_all_candidates_share_widens_the_interval_and_moves_no_score(estimator):
    known, merges = world(count=200, asked=20)
    answers = merges[0][known.subset]
    plain, wide = (ESTIMATORS[estimator](answers, replace(known, shared_error=error)) for error in (0.0, 0.05))
    assert wide.score == plain.score
    assert wide.standard_error**2 - plain.standard_error**2 == pytest.approx((0.9 * 0.05) ** 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_answers_give_an_ordered_interval_in_zero_to_one(data):
    known, _ = world(asked=10, parents=data.draw(st.integers(1, 4)), dimensions=data.draw(st.integers(1, 3)))
    answers = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=10, max_size=10)))
    found = ESTIMATORS[data.draw(st.sampled_from(ANSWERED))](answers, known)
    assert 0 <= found.low <= found.score <= found.high <= 1
    assert 0 < found.standard_error < 1


@all_estimators
def test_the_order_of_items_and_of_parents_changes_nothing(estimator):
    known, merges = world(parents=3, dimensions=2)
    rng = np.random.default_rng(1)
    renamed, shuffled = rng.permutation(200), rng.permutation(20)  # new index -> old index
    other = Known(
        known.items.take(renamed),
        np.argsort(renamed)[known.subset][shuffled],
        known.weights[shuffled],
        known.parents[::-1][:, renamed],
        population=known.population[::-1][:, renamed],
    )
    answers = merges[0, known.subset]
    same(ESTIMATORS[estimator](answers, known), ESTIMATORS[estimator](answers[shuffled], other))


@all_estimators
def test_estimating_twice_gives_the_same_and_changes_nothing(estimator):
    known, merges = world()
    answers = merges[0, known.subset]
    before = answers.copy()
    assert ESTIMATORS[estimator](answers, known) == ESTIMATORS[estimator](answers, known)
    np.testing.assert_array_equal(answers, before)


@all_estimators
def test_the_widening_is_a_factor_of_the_error_and_of_nothing_else(estimator):
    known, merges = world()
    answers = merges[0, known.subset]
    plain, wide = (
        ESTIMATORS[estimator](answers, replace(known, calibration=Calibration(widening=w))) for w in (1.0, 2.0)
    )
    assert wide.score == plain.score
    assert wide.standard_error == pytest.approx(2 * plain.standard_error)


def test_of_questions_without_an_answer_the_others_keep_their_proportions():
    known, _ = world(asked=4)
    known = replace(known, weights=np.array([0.4, 0.2, 0.3, 0.1]))
    scored = np.array([True, False, True, True])
    part = known.answered(scored)
    np.testing.assert_array_equal(part.subset, known.subset[[0, 2, 3]])
    np.testing.assert_allclose(part.weights, [0.5, 0.375, 0.125])
    assert known.answered(scored) is part  # what is found out of it serves the next
    assert known.answered(np.ones(4, dtype=bool)) is known


def test_what_is_expected_of_merges_of_these_parents_is_their_lineages():
    known, _ = world()
    shift, spread = descent.expected(known.parents)
    assert estimate.expected(known.parents) == Calibration(centre_shift=(shift,), spread=spread)


def test_before_a_candidate_is_asked_it_is_of_its_lineage_or_else_of_the_population():
    known, _ = world(dimensions=2)
    assert estimate.prior_of(known) is known.lineage
    one = replace(known, parents=known.parents[:1])
    assert estimate.prior_of(one) is one.lineage
    stranger = estimate.prior_of(replace(known, parents=np.empty((0, 200))))
    np.testing.assert_array_equal(stranger.centre, [0, 0])
    np.testing.assert_array_equal(stranger.precision, np.eye(2))


@all_estimators
def test_a_missing_answer_is_an_error_and_not_a_wrong_answer(estimator):
    known, _ = world()
    answers = np.ones(20)
    answers[3] = np.nan
    with pytest.raises(ValueError, match=r"1 of 20 answers are missing \(NaN\): ask the candidate again"):
        ESTIMATORS[estimator](answers, known)


@all_estimators
def test_answers_to_another_subset_are_refused(estimator):
    known, _ = world()
    with pytest.raises(ValueError, match="expected answers to the 20 items of the subset"):
        ESTIMATORS[estimator](np.ones(19), known)
    with pytest.raises(ValueError, match="grade them first"):
        ESTIMATORS[estimator](np.full(20, 0.5), known)


def test_the_weighted_mean_weighs_the_answers_and_the_mean_does_not():
    known, _ = world(asked=4)
    known = replace(known, weights=np.array([0.4, 0.2, 0.3, 0.1]))
    assert weighted_mean(np.array([1.0, 1, 0, 0]), known).score == pytest.approx(0.6)
    assert mean(np.array([1.0, 1, 0, 0]), known).score == pytest.approx(0.5)
    known = replace(known, calibration=Calibration(widening=2.0))
    p, unasked = (3 + 2) / (4 + 4), 196 / 200
    error = weighted_mean(np.array([1.0, 1, 1, 0]), known).standard_error
    assert error == pytest.approx(2 * np.sqrt(p * (1 - p) * (0.16 + 0.04 + 0.09 + 0.01) * unasked))


def test_ridge_is_the_closed_form_with_the_penalty_of_least_leave_one_out_error():
    known, merges = world(count=60, asked=8)
    X, y = known.population[:, known.subset], known.population.mean(axis=1)
    found = []
    for strength in np.logspace(-1, 4, 21):

        def fit(X, y, strength=strength):
            centred = X - X.mean(axis=0)
            weights = np.linalg.solve(centred.T @ centred + strength * np.eye(8), centred.T @ (y - y.mean()))
            return weights, y.mean() - X.mean(axis=0) @ weights

        H = (X - X.mean(axis=0)) @ np.linalg.solve(
            (X - X.mean(axis=0)).T @ (X - X.mean(axis=0)) + strength * np.eye(8), (X - X.mean(axis=0)).T
        ) + 1 / len(y)
        misses = (y - H @ y) / (1 - np.diag(H))
        found.append((np.sqrt((misses**2).mean()), fit(X, y)))
    error, (weights, intercept) = min(found, key=lambda pair: pair[0])
    answers = merges[0, known.subset]
    result = ridge(answers, known)
    assert result.score == pytest.approx(intercept + weights @ answers)
    assert result.standard_error == pytest.approx(error)


def test_ridge_tells_no_more_and_no_less_than_the_answers_leave_possible():
    known, _ = world(count=24, asked=20)
    good = (np.random.default_rng(0).random((3, 24)) < 0.8).astype(float)
    assert ridge(np.ones(20), replace(known, population=1 - good)).score == pytest.approx(20 / 24)
    assert ridge(np.zeros(20), replace(known, population=good)).score == pytest.approx(4 / 24)


def test_estimators_that_need_parents_or_a_population_say_so():
    known, merges = world()
    answers = merges[0, known.subset]
    alone = replace(known, parents=np.empty((0, 200)), population=None)
    for name in sorted(set(ANSWERED) - PARENTLESS - {"post_stratified"}):
        with pytest.raises(ValueError, match="needs the answers of one or more parents"):
            ESTIMATORS[name](answers, alone)
    with pytest.raises(ValueError, match="ridge needs a population"):
        ridge(answers, alone)
    same(p_irt(answers, alone), p_irt(answers, known))


@pytest.mark.parametrize(
    ("error", "variance", "count", "c"),
    [(0.05, 0.25, 100, 0.8), (0.05, 0.25, 25, 0.5), (0.0, 0.25, 20, 0.0), (0.1, 0.0, 20, 1.0)],
)
def test_the_published_mixing_is_reproduced(error, variance, count, c):
    assert published_mixing(error, variance, count) == pytest.approx(c)


def test_gp_irt_with_the_published_mixing_is_its_mixture():
    known, merges = world()
    answers = merges[0, known.subset]
    c = published_mixing(0.04, 0.2, 20)
    found = ESTIMATORS["gp_irt"](answers, replace(known, calibration=Calibration(mixing=c)))
    assert found.score == pytest.approx(c * answers.mean() + (1 - c) * p_irt(answers, known).score)
    errors = [part(answers, known).standard_error for part in (weighted_mean, p_irt)]
    assert found.standard_error == pytest.approx(c * errors[0] + (1 - c) * errors[1])


def test_lineage_is_parent_aware_where_the_contrasts_say_nothing():
    known, merges = world()
    twin = replace(known, parents=np.vstack([known.parents[0]] * 2))
    for row in merges[:5]:
        same(lineage(row[known.subset], twin), parent_aware(row[known.subset], twin))


def test_lineage_goes_by_what_relatives_taught():
    known, merges = world()
    taught = descent.predictor(known.items, known.parents, relatives=merges[:8])
    asked = np.full(merges[8:].shape, np.nan)
    asked[:, known.subset] = merges[8:, known.subset]
    scores, errors = taught.scores(asked)
    found = [lineage(row[known.subset], replace(known, family=taught)) for row in merges[8:]]
    np.testing.assert_allclose([e.score for e in found], scores, atol=1e-5)
    np.testing.assert_allclose([e.standard_error for e in found], errors, rtol=1e-3)


def test_lineage_sees_a_candidate_that_is_one_parent_and_not_the_other():
    known, _ = world(count=400, asked=60, seed=1)
    parents = np.random.default_rng(1).permutation(known.parents.T).T
    known = replace(known, parents=np.vstack([parents[0], known.parents[1]]))
    errors = np.array(
        [
            [abs(f(parent[known.subset], known).score - parent.mean()) for parent in known.parents]
            for f in (lineage, parent_aware)
        ]
    )
    assert errors[0].mean() <= errors[1].mean() + 0.01


@pytest.mark.parametrize("estimator", ["parent_aware", "lineage"])
def test_with_ten_answers_a_collapsed_candidate_is_seen_as_collapsed(estimator):
    scores = []
    for seed in range(5):
        known, merges = world(asked=10, seed=seed)
        typical = np.mean([ESTIMATORS[estimator](row[known.subset], known).score for row in merges])
        dead = ESTIMATORS[estimator](np.zeros(10), known)
        scores.append((dead.score, typical))
        assert dead.score < min(ESTIMATORS[estimator](row[known.subset], known).score for row in merges)
    assert np.mean([typical - dead for dead, typical in scores]) > 0.25


def test_update_learns_from_partial_answers_where_the_candidates_are():
    known, _ = world(count=400, asked=30, seed=2)
    rng = np.random.default_rng(0)
    centre = known.parent_abilities.mean() + 1.2
    z = known.items.discrimination[:, 0] * rng.normal(centre, 0.2, (60, 1)) - known.items.difficulty
    strong = (rng.random((60, 400)) < expit(z + 1.5 * known.residuals)).astype(float)
    learnt = update(known, strong[:30, known.subset])
    assert 0.6 < learnt.calibration.centre_shift[0] < 1.5
    assert errors_of(parent_aware, learnt, strong[30:]) < errors_of(parent_aware, known, strong[30:])
    assert known.calibration == Calibration()


def test_update_stands_where_the_candidates_posteriors_do():
    known, merges = world(count=400, asked=30, merges=20, seed=2)
    before = Calibration(centre_shift=(0.3,), spread=0.5, inheritance=1.0, inheritance_spread=0.6)
    answers, S = merges[:, known.subset], known.subset
    after = update(replace(known, calibration=before), answers).calibration

    def prior(c):
        centre = np.array([known.parent_abilities.mean() + c.centre_shift[0], c.inheritance])
        return centre, np.array([c.spread, c.inheritance_spread])

    (first, scale), (centre, spread) = prior(before), prior(after)
    design = np.column_stack([known.items.discrimination, known.residuals])[S]
    fits = [
        fit_logistic(design, -known.items.difficulty[S], row, centre, np.diag(spread**-2), descent.TAIL)
        for row in answers
    ]
    x, within = np.array([x for x, _ in fits]), np.array([np.diag(C) for _, C in fits])
    np.testing.assert_allclose(centre, (4 * first + x.sum(axis=0)) / 24, atol=1e-3)
    variance = (4 * (scale**2 + (centre - first) ** 2) + ((x - centre) ** 2 + within).sum(axis=0)) / 24
    np.testing.assert_allclose(spread**2, variance, rtol=5e-3)


def test_update_of_nobody_changes_nothing_and_missing_answers_are_refused():
    known, _ = world()
    assert update(known, np.empty((0, 20))).calibration == known.calibration
    with pytest.raises(ValueError, match="none missing"):
        update(known, np.full((2, 20), np.nan))


def test_p_irt_by_hand():
    known, merges = world()
    S, answers = known.subset, merges[0, known.subset]
    row = np.full((1, 200), np.nan)
    row[0, S] = answers
    P = probability(known.items, fit_abilities(known.items, row)[0])[0]
    expected = (answers.sum() + np.delete(P, S).sum()) / 200
    assert p_irt(answers, known).score == pytest.approx(expected)


@pytest.mark.parametrize(("mixed", "model"), [("gp_irt", "p_irt"), ("gmp_irt", "mp_irt")])
def test_mixing_goes_from_the_model_to_the_weighted_mean(mixed, model):
    known, merges = world()
    answers = merges[0, known.subset]
    for c, expected in [(0.0, ESTIMATORS[model]), (1.0, weighted_mean)]:
        same(
            ESTIMATORS[mixed](answers, replace(known, calibration=Calibration(mixing=c))),
            expected(answers, known),
        )


def test_mp_irt_is_p_irt_under_the_prior_that_the_parents_induce():
    known, merges = world(parents=3, dimensions=2)
    S, U, answers = known.subset, known.unasked, merges[0, known.subset]
    gamma, items = known.parent_abilities, known.items
    theta, _ = fit_logistic(
        items.discrimination[S], -items.difficulty[S], answers, np.zeros(2), np.linalg.inv(gamma.T @ gamma)
    )
    expected = 0.1 * answers.mean() + 0.9 * probability(items.take(U), theta[None]).mean()
    assert mp_irt(answers, known).score == pytest.approx(expected, abs=1e-6)


def test_where_the_parents_span_the_space_mp_irt_without_prior_is_p_irt_without_prior():
    known, merges = world(asked=60, parents=2, dimensions=2, seed=3)
    assert degenerate(known)
    S, answers, items = known.subset, merges[0, known.subset], known.items
    design, offset, none = items.discrimination[S], -items.difficulty[S], 1e-9 * np.eye(2)
    theta, _ = fit_logistic(design, offset, answers, np.zeros(2), none)
    weights, _ = fit_logistic(design @ known.parent_abilities.T, offset, answers, np.zeros(2), none)
    np.testing.assert_allclose(known.parent_abilities.T @ weights, theta, atol=1e-4)


def test_mp_irt_says_when_it_degenerates():
    assert degenerate(world(parents=2, dimensions=1)[0])
    assert not degenerate(world(parents=2, dimensions=3)[0])
    clones = world(parents=1, dimensions=2)[0]
    assert not degenerate(replace(clones, parents=np.vstack([clones.parents] * 3)))


@pytest.mark.parametrize(("outside", "biased"), [(0.0, False), (1.5, True)])
def test_mp_irt_is_asymptotically_unbiased_inside_the_span_and_biased_outside(outside, biased):
    rng = np.random.default_rng(0)
    N, n = 4000, 2000
    a = np.column_stack([rng.lognormal(0, 0.3, N), rng.normal(0, 1, N), np.where(np.arange(N) < n, 0.3, 1.5)])
    items = ItemParameters(a, rng.normal(0, 1, N))
    gamma = np.array([[1.0, 0.8, 0.0], [0.5, -1.0, 0.0]])
    parents = (rng.random((2, N)) < probability(items, gamma)).astype(float)
    known = Known(items, np.arange(n), np.full(n, 1 / n), parents)
    errors = []
    for _ in range(20):
        theta = np.array([[0.6, 0.4]]) @ gamma + np.array([[0, 0, outside]])
        truth = probability(items, theta)[0]
        answers = (rng.random(n) < truth[:n]).astype(float)
        score = mp_irt(answers, known).score
        errors.append(2 * (score - answers.mean() / 2) - truth[n:].mean())  # over the unasked half alone
    assert (abs(np.mean(errors)) > 0.05) == biased


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_chosen_candidate_is_within_two_eps_of_the_best(table):
    estimates, truths = np.array(table).T
    eps, chosen = np.abs(estimates - truths).max(), int(np.argmax(estimates))
    assert truths.max() - truths[chosen] <= 2 * eps + 1e-12
    assert abs(estimates[chosen] - truths.max()) <= eps + 1e-12


@all_estimators
def test_the_two_eps_bound_holds_for_the_estimates_of_real_tables(estimator):
    known, merges = world()
    truths = merges.mean(axis=1)
    scores = np.array([ESTIMATORS[estimator](row[known.subset], known).score for row in merges])
    eps = np.abs(scores - truths).max()
    assert truths.max() - truths[scores.argmax()] <= 2 * eps
    assert abs(scores.max() - truths.max()) <= eps


def errors_of(estimator, known, merges):
    scores = np.array([estimator(row[known.subset], known).score for row in merges])
    return np.abs(scores - merges.mean(axis=1)).mean()


@pytest.mark.parametrize("dimensions", [1, 2])
def test_on_merges_that_inherit_parent_aware_beats_p_irt_and_p_irt_beats_the_mean(dimensions):
    figures = []
    for seed in range(6):
        known, merges = world(count=400, dimensions=dimensions, seed=seed)
        figures.append([errors_of(f, known, merges) for f in (parent_aware, p_irt, mean)])
    best, middle, worst = np.mean(figures, axis=0)
    assert best < 0.8 * middle < 0.8 * worst


def test_fisher_items_serve_parent_aware_better_than_random_ones():
    figures = []
    for seed in range(6):
        known, merges = world(count=400, seed=seed)
        subset, weights = fisher(known.items, known.parent_abilities, 20, ["x"] * 400, 0)
        chosen = replace(known, subset=subset, weights=weights)
        figures.append([errors_of(parent_aware, k, merges) for k in (chosen, known)])
    assert np.mean(figures, axis=0) @ [1, -1] < 0


def test_bayes_mp_irt_by_hand():
    known, merges = world(dimensions=2)
    known = replace(known, calibration=Calibration(centre_shift=(0.2, -0.1), spread=0.5))
    answers = merges[0][known.subset]
    centre = known.parent_abilities.mean(axis=0) + np.array([0.2, -0.1])
    a, b = known.items.discrimination, known.items.difficulty
    x, _ = fit_logistic(a[known.subset], -b[known.subset], answers, centre, np.eye(2) / 0.25)
    P = expit(a[known.unasked] @ x - b[known.unasked])
    assert estimate.bayes_mp_irt(answers, known).score == pytest.approx((answers.sum() + P.sum()) / 200)


def test_post_stratification_by_hand():
    parents = np.array([[1.0, 1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 1, 0, 0]])
    items = ItemParameters(np.ones((8, 1)), np.zeros(8))
    known = Known(items, np.array([0, 2, 3]), np.full(3, 1 / 3), parents)
    found = estimate.post_stratified(np.array([1.0, 1.0, 0.0]), known)
    low, high = estimate.INHERITED
    both, one, none = (2 * high + 1) / 3, (2 * (low + high) / 2 + 1) / 4, low
    assert found.score == pytest.approx((1 + 2 * both + 1 + 1 * one + 2 * none) / 8)
    strata = ((2, both, 3), (1, one, 4), (2, none, 2))  # unasked, share, and what the Beta's counts add up to
    variance = sum(q * (1 - q) * (unasked**2 / (size + 1) + unasked) for unasked, q, size in strata)
    assert found.standard_error == pytest.approx(np.sqrt(variance) / 8)


def test_post_stratification_beats_the_mean_on_merges_that_inherit():
    known, merges = world(count=400, asked=20, merges=80)
    errors = {
        name: np.mean([abs(ESTIMATORS[name](row[known.subset], known).score - row.mean()) for row in merges])
        for name in ("mean", "post_stratified")
    }
    assert errors["post_stratified"] < 0.8 * errors["mean"]


def test_parent_aware_by_hand():
    known, merges = world()
    known = replace(known, calibration=Calibration(spread=0.3, inheritance=1.0))
    answers, S, U = merges[0, known.subset], known.subset, known.unasked
    a, b, r = known.items.discrimination[:, 0], known.items.difficulty, known.residuals
    centre = known.parent_abilities.mean()
    theta, g = np.meshgrid(np.linspace(-1, 3, 801), np.linspace(-1, 3, 801))
    z = a[S, None, None] * theta - b[S, None, None] + r[S, None, None] * g
    distance = ((theta - centre) / 0.3) ** 2 + ((g - 1) / 0.7) ** 2
    loss = np.logaddexp(0, z).sum(axis=0) - np.tensordot(answers, z, 1) + 3 * np.log1p(distance / 4)
    best = np.unravel_index(loss.argmin(), loss.shape)
    P = expit(a[U] * theta[best] - b[U] + r[U] * g[best])
    expected = 0.1 * answers.mean() + 0.9 * P.mean()
    assert parent_aware(answers, known).score == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_collapsed_candidate_is_let_go(dimensions):
    known, merges = world(asked=40, dimensions=dimensions)
    typical = np.mean([parent_aware(row[known.subset], known).score for row in merges])
    found = parent_aware(np.zeros(40), known)
    assert found.score < typical - 0.3
    assert found.low < 0.07


def test_a_candidate_better_than_all_parents_is_recognised(monkeypatch):
    known, _ = world(count=500, asked=60)
    rng = np.random.default_rng(0)
    P = expit(known.items.discrimination[:, 0] * 3.5 - known.items.difficulty + known.residuals)
    stars = (rng.random((30, 500)) < P).astype(float)
    assert stars.mean() > known.parents.mean(axis=1).max() + 0.15
    heavy = errors_of(parent_aware, known, stars)
    monkeypatch.setattr(estimate.descent, "TAIL", np.inf)
    assert heavy < 0.05
    assert heavy < 0.8 * errors_of(parent_aware, known, stars)


@all_estimators
def test_calibrated_intervals_cover_nine_in_ten_unseen_candidates(estimator):
    known, merges = world(count=300, merges=400)
    known = calibrate(estimator, merges[:200], known)
    estimates = [ESTIMATORS[estimator](row[known.subset], known) for row in merges[200:]]
    inside = [e.low <= t <= e.high for e, t in zip(estimates, merges[200:].mean(axis=1), strict=True)]
    assert 0.83 <= np.mean(inside) <= 0.97


@all_estimators
def test_calibration_reports_its_figures_as_json(estimator):
    known, merges = world()
    once = calibrate(estimator, merges, known)
    whole = once.calibration
    assert (whole.estimator, whole.models) == (estimator, 40)
    assert calibrate(estimator, merges, once).calibration == whole  # what it was before is no part of it
    if estimator not in estimate.MIXED:
        made = [ESTIMATORS[estimator](row[known.subset], known) for row in merges]
        inside = [e.low - 1e-9 <= row.mean() <= e.high + 1e-9 for e, row in zip(made, merges, strict=True)]
        assert whole.coverage == np.mean(inside)  # before they are widened
    merges = merges[:6]  # the slow path below calibrates once a merge
    figures = calibrate(estimator, merges, known).calibration
    scores = np.array(
        [  # each merge by what the others taught
            ESTIMATORS[estimator](row[known.subset], calibrate(estimator, np.delete(merges, i, axis=0), known)).score
            for i, row in enumerate(merges)
        ]
    )
    errors = scores - merges.mean(axis=1)
    assert figures.bias == pytest.approx(errors.mean())
    assert figures.mean_absolute_error == pytest.approx(np.abs(errors).mean())
    assert figures.deviation == pytest.approx(errors.std())
    assert figures.spearman == pytest.approx(spearmanr(scores, merges.mean(axis=1)).statistic)
    assert figures.models == 6
    restored = json.loads(json.dumps(asdict(figures), allow_nan=False))
    assert Calibration(**restored | {"centre_shift": tuple(restored["centre_shift"])}) == figures


def widened(misses):
    """Share of rows whose last miss is in the interval that the others of the row widen; all of standard error 1."""
    held = 0
    for row in misses:
        _, widening = estimate.fit_mixture(row[None, :-1], np.ones((1, len(row) - 1)), np.zeros(len(row) - 1))
        held += abs(row[-1]) <= estimate.Z90 * widening
    return held / len(misses)


@pytest.mark.parametrize("count", [9, 19, 40])
def test_of_models_alike_the_next_ones_widened_interval_holds_nine_times_in_ten(count):
    misses = np.random.default_rng(count).standard_t(3, (4000, count + 1))
    promised = np.ceil(0.9 * (count + 1)) / (count + 1)  # Vovk et al. 2005
    assert widened(misses) == pytest.approx(promised, abs=0.025)


@pytest.mark.parametrize(("count", "place"), [(9, 9), (10, 10), (15, 15), (19, 18), (29, 27)])
def test_from_nine_models_on_the_widening_is_by_the_one_at_nine_tenths_of_all_and_the_next(count, place):
    _, widening = estimate.fit_mixture(1.0 + np.arange(count)[None], np.ones((1, count)), np.zeros(count))
    assert widening == pytest.approx(place / estimate.Z90)


@pytest.mark.parametrize("count", [0, 1, 4, 8])
def test_a_few_models_widen_by_the_prediction_of_a_scale_seen_once(count):
    rng = np.random.default_rng(count)
    scales = 1 / np.abs(rng.normal(size=(4000, 1)))  # w² ~ 1 / chi² of one degree of freedom, the prior
    assert count == 0 or widened(scales * rng.normal(size=(4000, count + 1))) == pytest.approx(0.9, abs=0.02)
    _, even = estimate.fit_mixture(np.ones((1, count)), np.ones((1, count)), np.zeros(count))  # each errs by its error
    student = [1.6449, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331]  # a table's 95 % points
    assert even == pytest.approx(student[count] / estimate.Z90, abs=1e-4)


def test_one_model_teaches_no_mixture_of_itself():
    scores, errors, truth = np.array([[0.2], [0.6]]), np.array([[0.1], [0.3]]), np.array([0.5])
    estimates, spreads = estimate.cross_calibrate(scores, errors, truth)
    assert estimates.tolist() == [pytest.approx(0.4)]
    assert spreads.tolist() == [pytest.approx(0.2)]


@pytest.mark.parametrize("estimator", ["gp_irt", "gmp_irt"])
def test_the_calibrated_mixing_is_the_best_there_is(estimator):
    known, merges = world()
    best = calibrate(estimator, merges, known)

    def squares(c):
        other = replace(known, calibration=Calibration(mixing=c))
        return sum((ESTIMATORS[estimator](r[known.subset], other).score - r.mean()) ** 2 for r in merges)

    assert all(squares(best.calibration.mixing) <= squares(c) + 1e-9 for c in np.linspace(0, 1, 11))


def test_the_mean_of_fisher_items_is_given_no_weight():
    known, merges = world(count=400)
    subset, weights = fisher(known.items, known.parent_abilities + 1, 20, ["x"] * 400, 0)
    assert calibrate("gp_irt", merges, replace(known, subset=subset, weights=weights)).calibration.mixing < 0.3


@pytest.mark.parametrize("merges", [1, 12])
@all_estimators
def test_few_and_identical_models_calibrate_to_finite_figures(estimator, merges):
    known, _ = world()
    figures = calibrate(estimator, np.ones((merges, 200)), known).calibration
    assert figures.spearman is None
    assert np.isfinite([figures.widening, figures.mixing, figures.deviation]).all()


def test_models_of_one_score_have_no_rank():
    known, _ = world()
    alike = np.array([np.roll(np.arange(200) < 90, 30 * k) for k in range(6)], dtype=float)
    figures = calibrate("mean", alike, known).calibration
    assert figures.deviation > 0
    assert figures.spearman is None


@all_estimators
def test_calibration_with_all_items_asked_has_no_error(estimator):
    known, merges = world(asked=200)
    figures = calibrate(estimator, merges, known).calibration
    assert figures.mean_absolute_error == pytest.approx(0)
    assert figures.spearman == pytest.approx(1)
    assert figures.coverage == 1


def test_calibration_needs_full_answers_to_all_items():
    known, merges = world()
    with pytest.raises(ValueError, match="answered in full"):
        calibrate("mean", np.where(merges > 2, 0, np.nan), known)
    with pytest.raises(ValueError, match="answered in full"):
        calibrate("mean", merges[:0], known)
    with pytest.raises(ValueError, match="all 200 items, got 199"):
        calibrate("mean", merges[:, :-1], known)


def test_a_family_of_merges_teaches_the_prior():
    known, merges = world(count=1000, merges=30, inherited=2.5)
    learnt = learn_inheritance(merges, known).calibration
    assert learnt.inheritance == pytest.approx(2.5 - 4 / 34, abs=0.25)
    assert learnt.spread < 0.4
    assert learn_inheritance(merges[:0], known).calibration == known.calibration
    with pytest.raises(ValueError, match="answered in full"):
        learn_inheritance(np.full((1, 1000), np.nan), known)


def test_a_learnt_prior_is_that_of_each_merges_own_fit():
    known, merges = world(dimensions=2, merges=6)
    before = Calibration(centre_shift=(0.2, -0.1), spread=0.5, inheritance=1.0, inheritance_spread=0.6)
    known = replace(known, calibration=before)
    centre = np.append(known.parent_abilities.mean(axis=0) + np.array([0.2, -0.1]), 1.0)
    design = np.column_stack([known.items.discrimination, known.residuals])
    found = [fit_logistic(design, -known.items.difficulty, row, centre, np.eye(3) / 9)[0] for row in merges]
    shift, scale = descent.learnt(centre, np.array([0.5, 0.5, 0.6]), np.array(found))
    after = learn_inheritance(merges, known).calibration
    assert after.centre_shift == pytest.approx((0.2 + shift[0], -0.1 + shift[1]))
    assert after.inheritance == pytest.approx(1.0 + shift[2])
    assert (after.spread**2, after.inheritance_spread) == pytest.approx(((scale[0] ** 2 + scale[1] ** 2) / 2, scale[2]))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_learnt_prior_serves_a_family_that_differs_from_the_usual(dimensions):
    figures = []
    for seed in range(6):
        known, merges = world(count=400, merges=60, inherited=0.0, dimensions=dimensions, seed=seed)
        learnt = learn_inheritance(merges[:20], known)
        assert len(learnt.calibration.centre_shift) == dimensions
        figures.append([errors_of(parent_aware, k, merges[20:]) for k in (learnt, known)])
    assert np.mean(figures, axis=0) @ [1, -1] < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset": np.array([0, 0]), "weights": np.array([0.5, 0.5])}, "distinct items"),
        ({"subset": np.array([0, 200]), "weights": np.array([0.5, 0.5])}, "between 0 and 199"),
        ({"weights": np.full(20, 0.1)}, "sum to 1"),
        ({"weights": np.append(np.full(19, 0.1), -0.9)}, r"20 weights of 0 or more that sum to 1, got 20 from -0\.9"),
        ({"weights": np.full(20, np.nan)}, "sum to 1, got 20 from nan"),
        ({"parents": np.full((2, 200), np.nan)}, "400 answers of the parents are missing"),
        ({"parents": np.full((2, 200), 0.3)}, "grade them first"),
        ({"parents": np.ones((2, 100)), "population": None}, "answers of the parents to 200 items"),
        ({"population": np.full((3, 200), np.nan)}, "population that answered all 200 items"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change, message):
    known, _ = world()
    with pytest.raises(ValueError, match=message):
        replace(known, **change)
