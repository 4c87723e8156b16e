import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from merge3 import irt
from merge3.irt import ItemParameters, fit_abilities, fit_items, fit_logistic, probability


def simulate(models, count, dimensions=1, seed=0):
    """Items with positive first discriminations, N(0, I) abilities, answers drawn from the model itself."""
    rng = np.random.default_rng(seed)
    a = rng.normal(0, 1, (count, dimensions))
    a[:, 0] = rng.lognormal(0.3, 0.4, count)
    items = ItemParameters(a, rng.normal(0, 1.2, count))
    theta = rng.normal(size=(models, dimensions))
    responses = (rng.random((models, count)) < probability(items, theta)).astype(float)
    return items, theta, responses


def correlation(x, y):
    return np.corrcoef(x.ravel(), y.ravel())[0, 1]


def test_a_harder_item_is_answered_less_often_and_a_better_model_is_right_more_often():
    items = ItemParameters(np.array([[1.0], [1.0], [2.0]]), np.array([0.0, 1.0, 0.0]))
    P = probability(items, np.array([[0.0], [1.0]]))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    np.testing.assert_allclose(P, [[0.5, sigmoid(-1), 0.5], [sigmoid(1), 0.5, sigmoid(2)]])


def test_take_keeps_the_order_asked_for():
    items, _, _ = simulate(2, 5)
    taken = items.take(np.array([3, 1]))
    assert len(taken) == 2
    assert taken.dimensions == 1
    np.testing.assert_array_equal(taken.difficulty, items.difficulty[[3, 1]])
    np.testing.assert_array_equal(taken.discrimination, items.discrimination[[3, 1]])


@pytest.mark.parametrize("engine", ["em", "girth", "mirt"])
def test_every_engine_recovers_the_items_that_made_the_answers(engine):
    truth, theta, responses = simulate(400, 60)
    fitted = fit_items(responses, engine, 1, seed=0)
    assert correlation(fitted.discrimination, truth.discrimination) > 0.8
    assert correlation(fitted.difficulty, truth.difficulty) > 0.97
    assert correlation(fit_abilities(fitted, responses)[0], theta) > 0.95


@pytest.mark.parametrize("engine", ["em", "mirt"])
def test_the_engines_agree(engine):
    _, _, responses = simulate(400, 60, seed=1)
    one, other = (fit_items(responses, name, 1, seed=0) for name in ("girth", engine))
    assert correlation(one.discrimination, other.discrimination) > 0.85
    assert correlation(one.difficulty, other.difficulty) > 0.95


def test_mirt_recovers_the_probabilities_of_two_dimensions():
    truth, theta, responses = simulate(300, 120, dimensions=2)
    fitted = fit_items(responses, "mirt", 2, seed=0)
    P = probability(fitted, fit_abilities(fitted, responses)[0])
    assert correlation(P, probability(truth, theta)) > 0.95
    flat = fit_items(responses, "mirt", 1, seed=0)
    worse = probability(flat, fit_abilities(flat, responses)[0])
    assert np.abs(P - probability(truth, theta)).mean() < 0.7 * np.abs(worse - probability(truth, theta)).mean()


@pytest.mark.parametrize(("engine", "dimensions"), [("em", 1), ("girth", 1), ("mirt", 1), ("mirt", 3)])
def test_after_every_fit_the_population_is_standard(engine, dimensions):
    _, _, responses = simulate(150, 90, dimensions)
    theta = fit_abilities(fit_items(responses, engine, dimensions, 0), responses)[0]
    np.testing.assert_allclose(theta.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(theta.T), np.eye(dimensions), atol=0.35)


def test_whitening_is_exact_and_changes_no_probability():
    items, theta, _ = simulate(40, 8, 3)
    skewed = theta @ np.array([[2.0, 0.5, 0], [0, 1, 0.3], [0, 0, -0.2]]) + 3
    white = irt._whiten(items, skewed)
    P, m = probability(items, skewed), skewed.mean(axis=0)
    W = np.linalg.lstsq(items.discrimination, white.discrimination, rcond=None)[0]
    standard = (skewed - m) @ np.linalg.inv(W).T
    np.testing.assert_allclose(probability(white, standard), P, atol=1e-10)
    np.testing.assert_allclose(np.cov(standard.T, bias=True), np.eye(3), atol=1e-8)
    assert (white.discrimination.mean(axis=0) >= 0).all()


@pytest.mark.parametrize("engine", ["em", "girth", "mirt"])
def test_an_item_all_got_right_is_easy_and_one_all_got_wrong_is_hard(engine):
    _, _, responses = simulate(60, 12)
    responses[:, 0], responses[:, 1] = 1.0, 0.0
    fitted = fit_items(responses, engine, 1, seed=0)
    assert fitted.difficulty[0] == fitted.difficulty.min() < fitted.difficulty.max() == fitted.difficulty[1]
    assert np.isfinite(fitted.discrimination).all()
    if engine == "girth":  # it cannot tell how steep they are
        assert fitted.discrimination[:2, 0] == pytest.approx([np.median(fitted.discrimination[2:])] * 2)


def test_em_stands_where_the_marginal_posterior_is_highest():
    _, _, responses = simulate(60, 4, seed=3)
    responses[::7, 1] = np.nan
    found, _ = irt.fit_em(responses, 1, 0)
    theta = np.linspace(-5, 5, irt.NODES)
    asked = ~np.isnan(responses)

    def loss(x):
        log_a, intercept = np.split(x, 2)
        z = np.exp(log_a)[:, None] * theta + intercept[:, None]
        likelihood = np.where(asked, responses, 0.0) @ z - asked @ np.logaddexp(0, z) - theta**2 / 2
        priors = ((log_a - irt.LOG_A[0]) / irt.LOG_A[1]) ** 2 + (intercept / irt.INTERCEPT) ** 2
        return -np.logaddexp.reduce(likelihood, axis=1).sum() + priors.sum() / 2

    best = minimize(loss, np.zeros(8), method="BFGS").x
    np.testing.assert_allclose(np.log(found.discrimination[:, 0]), best[:4], atol=5e-3)
    np.testing.assert_allclose(-found.difficulty, best[4:], atol=5e-3)


def test_mirt_stands_where_the_joint_posterior_is_highest():
    _, _, responses = simulate(40, 12, 2, seed=3)
    responses[::7, 1] = np.nan
    found, theta = irt.fit_mirt(responses, 2, 0)
    a, b = found.discrimination, found.difficulty
    R = np.nan_to_num(responses - probability(found, theta))
    np.testing.assert_allclose(R @ a - theta, 0, atol=5e-2)
    np.testing.assert_allclose(R.T @ theta - (a - np.array([1.0, 0.0])), 0, atol=5e-2)
    np.testing.assert_allclose(-R.sum(axis=0) - b / 9, 0, atol=5e-2)


@pytest.mark.parametrize("steepness", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("right", [40, 100, 190])
def test_a_difficulty_gives_a_standard_population_its_share_of_right_answers(steepness, right):
    answers = np.append((np.arange(200) < right).astype(float), np.full(300, np.nan))[:, None]
    (b,) = irt._difficulty(answers, np.array([steepness]))
    theta = np.linspace(-6, 6, 2001)
    share = np.average(expit(steepness * theta - b), weights=np.exp(-(theta**2) / 2))
    assert share == pytest.approx(right / 200, abs=0.012)


def test_em_takes_many_items_at_once():
    truth, _, responses = simulate(200, 3000, seed=4)
    found = fit_items(responses, "em", 1, 0)
    assert correlation(found.difficulty, truth.difficulty) > 0.97
    assert np.isfinite(found.discrimination).all()


def test_girth_in_chunks_is_girth_at_once(monkeypatch):
    _, _, responses = simulate(300, 30)
    monkeypatch.setattr(irt, "CHUNK", 30)
    whole = fit_items(responses, "girth", 1, 0)
    monkeypatch.setattr(irt, "CHUNK", 11)
    chunked = fit_items(responses, "girth", 1, 0)
    assert correlation(whole.discrimination, chunked.discrimination) > 0.9
    assert correlation(whole.difficulty, chunked.difficulty) > 0.99


@pytest.mark.parametrize("engine", ["em", "girth", "mirt"])
def test_missing_answers_are_not_wrong_answers(engine):
    truth, _, responses = simulate(400, 40)
    rng = np.random.default_rng(1)
    responses[rng.random(responses.shape) < np.linspace(0, 0.6, 40)] = np.nan
    fitted = fit_items(responses, engine, 1, 0)
    assert correlation(fitted.difficulty, truth.difficulty) > 0.95
    assert np.abs(fitted.difficulty - truth.difficulty)[-10:].mean() < 0.5


@pytest.mark.parametrize("engine", ["em", "girth", "mirt"])
def test_clones_and_the_order_of_the_models_change_nothing(engine):
    _, _, responses = simulate(40, 15)
    once = fit_items(responses, engine, 1, 0)
    again = fit_items(np.vstack([responses[::-1], responses[:7], responses[:7]]), engine, 1, 0)
    np.testing.assert_array_equal(once.discrimination, again.discrimination)
    np.testing.assert_array_equal(once.difficulty, again.difficulty)


def test_the_seed_decides_mirt_and_the_answers_are_left_as_they_were():
    _, _, responses = simulate(40, 15, 2)
    before = responses.copy()
    one, two = fit_items(responses, "mirt", 2, 5), fit_items(responses, "mirt", 2, 5)
    np.testing.assert_array_equal(one.discrimination, two.discrimination)
    assert not np.array_equal(one.discrimination, fit_items(responses, "mirt", 2, 6).discrimination)
    np.testing.assert_array_equal(responses, before)


@pytest.mark.parametrize("dimensions", [1, 10])
def test_more_dimensions_than_models_stay_finite(dimensions):
    responses = np.array([[1.0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 0]])
    fitted = fit_items(responses, "mirt", dimensions, 0)
    assert np.isfinite(fitted.discrimination).all()
    assert np.isfinite(fit_abilities(fitted, responses)[0]).all()


@pytest.mark.parametrize(
    ("responses", "engine", "dimensions", "message"),
    [
        (np.ones((1, 3)), "mirt", 1, "a population of one model: items are fitted on how models differ, so add"),
        (
            np.ones((5, 3)),
            "mirt",
            1,
            r"all 5 models answer these 3 items alike \(100% right\), so nothing can be learned",
        ),
        (np.ones((5, 0)), "mirt", 1, "at least one item"),
        (np.array([[1.0, 0.0], [0.5, 1.0]]), "mirt", 1, r"got \[0.5\]"),
        (np.array([[1.0, np.nan], [0.0, np.nan]]), "mirt", 1, r"no model answered the items at \[1\]"),
        (np.eye(3), "girth", 2, "use the engine 'mirt'"),
        (np.eye(3), "em", 2, "use the engine 'mirt'"),
        (np.eye(3), "mirt", 0, "at least 1 dimension"),
        (np.array([[1.0, np.nan], [1.0, 1.0]]), "girth", 1, "girth has nothing to fit"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_the_reason(responses, engine, dimensions, message):
    with pytest.raises(ValueError, match=message):
        fit_items(responses, engine, dimensions, 0)


def test_an_unknown_engine_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"girth.*mirt"):
        fit_items(np.eye(3), "bilog", 1, 0)


def test_a_transposed_matrix_is_refused_with_both_shapes():
    items, theta, _ = simulate(4, 5, 2)
    with pytest.raises(Exception, match="abilities"):
        probability(items, theta.T[0])


def test_answers_to_another_number_of_items_are_refused_by_name():
    items, _, responses = simulate(4, 5)
    for tell in (fit_abilities, irt.item_fit, irt.model_fit):
        with pytest.raises(ValueError, match=r"expected answers of models x 5 items, got shape \(5, 4\)"):
            tell(items, responses.T)


def test_abilities_are_the_minimum_a_general_optimiser_finds():
    items, _, responses = simulate(5, 30, 2)
    responses[0, :10] = np.nan
    abilities, errors = fit_abilities(items, responses)
    for row, found, error in zip(responses, abilities, errors, strict=True):
        asked = ~np.isnan(row)
        some = items.take(np.flatnonzero(asked))

        def loss(theta, some=some, y=row[asked]):
            z = some.discrimination @ theta - some.difficulty
            return np.logaddexp(0, z).sum() - y @ z + theta @ theta / 2

        slow = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-7})
        np.testing.assert_allclose(found, slow.x, atol=1e-4)
        h = 1e-3 * np.eye(2)
        curvature = [
            [(loss(found + u + v) - loss(found + u - v) - loss(found - u + v) + loss(found - u - v)) / 4e-6 for u in h]
            for v in h
        ]
        np.testing.assert_allclose(error, np.sqrt(np.diag(np.linalg.inv(curvature))), rtol=1e-3)


def test_a_model_without_answers_is_an_average_one():
    items, _, _ = simulate(2, 5, 2)
    abilities, errors = fit_abilities(items, np.full((1, 5), np.nan))
    np.testing.assert_array_equal(abilities, [[0, 0]])
    np.testing.assert_array_equal(errors, [[1, 1]])


@settings(max_examples=30, deadline=None)
@given(
    steepness=st.floats(0.2, 50),
    count=st.integers(1, 300),
    right=st.booleans(),
    tail=st.sampled_from([4.0, np.inf]),
)
def test_all_right_and_all_wrong_have_a_finite_ability(steepness, count, right, tail):
    x, covariance = fit_logistic(
        np.full((count, 1), steepness),
        np.ones(count),
        np.full(count, float(right)),
        np.zeros(1),
        np.eye(1),
        tail,
    )
    assert np.isfinite(x).all()
    assert 0 < covariance[0, 0] < np.inf
    assert (x[0] > 0) == right
    weight = 1 if np.isinf(tail) else (tail + 1) / (tail + x[0] ** 2)
    slope = count * steepness * (right - expit(steepness * x[0] + 1)) - weight * x[0]
    assert abs(slope) * covariance[0, 0] < 1e-5


@pytest.mark.parametrize("right", [35, 36, 45, 90])
def test_newton_does_not_swing_around_a_steep_mode(right):
    y = (np.arange(100) < right).astype(float)
    x, _ = fit_logistic(np.full((100, 1), 40.0), np.full(100, 20.0), y, np.array([3.0]), np.eye(1) * 1e-6)
    assert 40 * x[0] + 20 == pytest.approx(np.log(right / (100 - right)), abs=1e-3)


def test_a_heavy_tail_gives_way_where_a_gaussian_holds_on():
    design, centre, precision = np.ones((20, 1)), np.array([3.0]), np.eye(1) / 0.4**2
    gauss = fit_logistic(design, np.zeros(20), np.zeros(20), centre, precision)[0][0]
    heavy = fit_logistic(design, np.zeros(20), np.zeros(20), centre, precision, 4.0)[0][0]
    assert heavy < gauss - 1

    def loss(x):
        return 20 * np.logaddexp(0, x[0]) + 2.5 * np.log1p((x[0] - 3) ** 2 / 0.16 / 4)

    slow = minimize(loss, np.array([heavy]), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10})
    assert heavy == pytest.approx(slow.x[0], abs=1e-4)


def test_many_fits_at_once_are_the_single_fits():
    rng = np.random.default_rng(0)
    design, offset = rng.normal(size=(25, 3)), rng.normal(size=25)
    answers = rng.integers(0, 2, (6, 25)).astype(float)
    answers[0], answers[1, :20] = 1.0, np.nan
    for tail in (4.0, np.inf):
        found, covariances = irt.fit_logistics(design, offset, answers, np.ones(3), np.eye(3), tail)
        for row, x, covariance in zip(answers, found, covariances, strict=True):
            some = ~np.isnan(row)
            one, its = fit_logistic(design[some], offset[some], row[some], np.ones(3), np.eye(3), tail)
            np.testing.assert_allclose(x, one, atol=1e-5)
            np.testing.assert_allclose(covariance, its, atol=1e-4)


def test_the_scores_of_a_predictor_are_answers_where_asked_and_expectations_elsewhere():
    items, _, responses = simulate(4, 30)
    model = irt.Predictor(items.discrimination, -items.difficulty, np.zeros(1), np.eye(1))
    shown = np.where(np.arange(30) < 10, responses, np.nan)
    P = probability(items, fit_abilities(items, shown)[0])
    scores, errors = model.scores(shown)
    np.testing.assert_allclose(scores, (responses[:, :10].sum(axis=1) + P[:, 10:].sum(axis=1)) / 30, atol=1e-8)
    assert (errors > 0).all()
    np.testing.assert_allclose(model.scores(responses), [responses.mean(axis=1), np.zeros(4)], atol=1e-12)


def test_the_first_unknowns_of_a_predictor_are_its_own_with_the_others_at_their_centre():
    rng = np.random.default_rng(0)
    centre = np.array([0.1, 0.5, -2.0])
    model = irt.Predictor(rng.normal(size=(6, 3)), rng.normal(size=6), centre, np.diag([1.0, 2.0, 3.0]), 4.0)
    x, part = rng.normal(size=(4, 2)), model.first(2)
    np.testing.assert_allclose(part.probability(x), model.probability(np.column_stack([x, np.full(4, -2.0)])))
    np.testing.assert_array_equal(part.centre, [0.1, 0.5])
    np.testing.assert_array_equal(part.precision, np.diag([1.0, 2.0]))
    assert part.tail == 4.0


def test_adapted_items_are_the_most_probable_given_population_and_family():
    items, _, responses = simulate(6, 12)
    responses[0, :3] = np.nan
    found = irt.adapt_items(items, responses)
    first = fit_abilities(items, responses)[0][:, 0]
    theta = minimize_scalar_each(found, responses, first.mean())
    P = probability(found, theta[:, None])
    R = np.nan_to_num(responses - P)
    a = found.discrimination[:, 0]
    along_a = (R.T @ theta) * a - np.log(a / items.discrimination[:, 0]) / irt.STEEPER**2
    along_d = R.sum(axis=0) + (found.difficulty - items.difficulty) / irt.HARDER**2
    np.testing.assert_allclose(along_a, 0, atol=5e-3)
    np.testing.assert_allclose(along_d, 0, atol=5e-3)


def minimize_scalar_each(items, responses, centre):
    """Abilities of most posterior density under N(centre, 1), one by one."""

    def height(theta, row):
        P = probability(items, np.array([[theta]]))[0]
        return (theta - centre) ** 2 / 2 - np.nansum(row * np.log(P) + (1 - row) * np.log1p(-P))

    return np.array([minimize_scalar(height, args=(row,), bounds=(-8, 8), method="bounded").x for row in responses])


def test_items_that_nobody_of_the_family_answered_stay_the_populations():
    items, _, responses = simulate(5, 10)
    responses[:, 4], items.discrimination[4] = np.nan, -0.3
    found = irt.adapt_items(items, responses)
    assert found.difficulty[4] == pytest.approx(items.difficulty[4], abs=1e-4)
    assert found.discrimination[4] == pytest.approx(0.001)
    assert irt.adapt_items(items, np.empty((0, 10))) is items
    with pytest.raises(ValueError, match="expected answers to 10 items of one dimension, got 9"):
        irt.adapt_items(items, responses[:, :9])


def test_held_out_answers_choose_the_number_of_dimensions():
    rng = np.random.default_rng(0)
    a = np.zeros((60, 2))
    a[:30, 0] = a[30:, 1] = 2.5
    theta = rng.normal(size=(200, 2))
    items = ItemParameters(a, rng.normal(0, 0.5, 60))
    responses = (rng.random((200, 60)) < probability(items, theta)).astype(float)
    chosen, found = irt.choose_dimensions(responses, 0, (1, 2))
    assert chosen == 2
    assert found[2] > found[1]
    chosen, found = irt.choose_dimensions(simulate(200, 60)[2], 0, (1, 3, 2))
    assert (chosen, set(found)) == (1, {1, 3})  # no more are tried after one that is no better


def test_the_likelihood_of_an_answer_that_was_certain_is_finite():
    found = irt.loglikelihood(np.array([1.0, 0.0, 0.5]), np.array([1.0, 1.0, np.nan]))
    assert found == pytest.approx(np.log(1e-12) / 2)


def test_a_table_too_small_to_hide_an_answer_has_the_fewest_dimensions():
    responses = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert irt.choose_dimensions(responses, 1) == (1, {})
    assert fit_items(responses, "mirt", None, 1).dimensions == 1


def test_fit_statistics_are_one_where_the_model_made_the_answers_and_tell_a_wrong_key():
    items, _, responses = simulate(400, 50)
    fitted = irt.item_fit(items, responses)
    assert fitted.infit.mean() == pytest.approx(1, abs=0.05)
    assert len(fitted.negative) == 0
    responses[:, 7] = 1 - responses[:, 7]
    wrong = irt.item_fit(items, responses)
    np.testing.assert_array_equal(wrong.negative, [7])
    assert wrong.outfit.argmax() == 7


def test_fit_statistics_by_hand():
    items, _, responses = simulate(30, 8)
    responses[::3, 2] = np.nan
    P = probability(items, fit_abilities(items, responses)[0])
    items_fit, models_fit = irt.item_fit(items, responses), irt.model_fit(items, responses)
    for fit, answers, expected in ((items_fit, responses.T, P.T), (models_fit, responses, P)):
        for row, (y, p) in enumerate(zip(answers, expected, strict=True)):
            y, p = y[~np.isnan(y)], p[~np.isnan(y)]
            assert fit.infit[row] == pytest.approx(((y - p) ** 2).sum() / (p * (1 - p)).sum())
            assert fit.outfit[row] == pytest.approx(((y - p) ** 2 / (p * (1 - p))).mean())
    for item in range(8):
        asked = ~np.isnan(responses[:, item])
        rest = np.nanmean(np.delete(responses, item, axis=1), axis=1)
        assert items_fit.discrimination[item] == pytest.approx(correlation(responses[asked, item], rest[asked]))
    for model, (y, p) in enumerate(zip(responses, P, strict=True)):
        y, p = y[~np.isnan(y)], p[~np.isnan(y)]
        surprise = (y * np.log(p) + (1 - y) * np.log(1 - p) - p * np.log(p) - (1 - p) * np.log(1 - p)).sum()
        lz = surprise / np.sqrt((p * (1 - p) * np.log(p / (1 - p)) ** 2).sum())
        assert models_fit.discrimination[model] == pytest.approx(lz)


def test_an_item_alone_or_with_equal_others_has_no_correlation_with_them():
    items, _, responses = simulate(30, 3)
    responses[:, 1:] = [1.0, 0.0]
    for some in ([0], [0, 1, 2]):
        found = irt.item_fit(items.take(np.array(some)), responses[:, some])
        assert np.isnan(found.discrimination).all()
        assert np.isfinite(found.infit).all()


def test_a_model_that_answers_at_random_does_not_fit():
    items, _, responses = simulate(200, 200)
    usual = irt.model_fit(items, responses)
    assert abs(usual.discrimination.mean()) < 0.5
    assert 0.6 < usual.discrimination.std() < 1.4
    responses[0] = np.random.default_rng(1).integers(0, 2, 200)
    assert irt.model_fit(items, responses).discrimination[0] < -2


def test_fit_is_unknown_of_who_answered_nothing_and_changes_for_nobody_else():
    items, _, responses = simulate(30, 20)
    model, item = irt.model_fit(items, responses), irt.item_fit(items, responses)
    more = irt.model_fit(items, np.vstack([responses, np.full(20, np.nan)]))
    for name in ("infit", "outfit", "discrimination"):
        np.testing.assert_allclose(getattr(more, name), np.append(getattr(model, name), np.nan), rtol=1e-12)
    responses[:, 3] = np.nan
    found = irt.item_fit(items, responses)
    assert np.isnan([found.infit[3], found.outfit[3], found.discrimination[3]]).all()
    assert np.isfinite(np.delete(found.infit, 3)).all()
    assert np.isfinite(item.infit).all()


def test_fit_is_finite_where_an_answer_is_certain():
    items = ItemParameters(np.full((6, 1), 1.0), np.array([-60.0, -1.0, 0.0, 1.0, 60.0, 0.5]))
    responses = np.array([[1.0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]])
    with_certain, without = (
        irt.model_fit(items.take(i), responses[:, i]) for i in (np.arange(6), np.array([1, 2, 3, 5]))
    )
    np.testing.assert_allclose(with_certain.discrimination, without.discrimination, rtol=1e-9)
