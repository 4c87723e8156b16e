import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from merge3.extract import (
    CLIMB,
    METHODS,
    STEPS,
    Interview,
    _draws,
    _kmeans,
    adaptive,
    ascent,
    design,
    disagreement,
    fisher,
    share,
    stratified,
    uniform,
)
from merge3.irt import ItemParameters, Predictor

PARENTS = np.array([[0.5], [1.0]])


def items_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return ItemParameters(rng.lognormal(0, 0.5, (count, 1)), rng.normal(0, 1.5, count))


def model_of(items):
    return Predictor(items.discrimination, -items.difficulty, np.array([0.7]), np.eye(1) / 0.4**2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_method_gives_sorted_distinct_items_and_weights_that_sum_to_one(data):
    groups = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
    count = data.draw(st.integers(1, len(groups)))
    method = METHODS[data.draw(st.sampled_from(sorted(METHODS)))]
    items = items_of(len(groups))
    chosen, weights = method(items, PARENTS, count, groups, data.draw(st.integers(0, 9)), model_of(items))
    assert len(chosen) == len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < len(groups)
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    seats = {g: sum(groups[i] == g for i in chosen) for g in "abc"}
    for g in "abc":
        assert abs(seats[g] - count * groups.count(g) / len(groups)) < 1
    if all(seats[g] for g in set(groups)) and method is not METHODS["anchors"]:
        for g in set(groups):
            ours = np.array([groups[i] == g for i in chosen])
            assert weights[ours].sum() == pytest.approx(groups.count(g) / len(groups))


def test_largest_remainder_by_hand():
    np.testing.assert_array_equal(share(10, np.array([47, 16, 15, 22])), [5, 2, 1, 2])
    np.testing.assert_array_equal(share(1, np.array([3, 3])), [1, 0])
    np.testing.assert_array_equal(share(6, np.array([2, 4])), [2, 4])


@pytest.mark.parametrize("method", METHODS)
def test_all_items_are_all_items_with_equal_weights(method):
    items = items_of(7)
    chosen, weights = METHODS[method](items, PARENTS, 7, ["x", "y", "y", "x", "x", "x", "z"], 0, model_of(items))
    np.testing.assert_array_equal(chosen, np.arange(7))
    np.testing.assert_allclose(weights, 1 / 7)


def test_uniform_draws_every_item_equally_often_and_its_weighted_mean_has_no_bias():
    groups = ["a"] * 6 + ["b"] * 4
    truth = np.arange(10.0)
    draws = [uniform(items_of(10), PARENTS, 3, groups, seed) for seed in range(2000)]
    estimates = [weights @ truth[chosen] for chosen, weights in draws]
    assert np.mean(estimates) == pytest.approx(truth.mean(), abs=0.15)
    counts = np.bincount(np.concatenate([chosen for chosen, _ in draws]), minlength=10)
    np.testing.assert_allclose(counts[:6] / 2000, 2 / 6, atol=0.05)
    np.testing.assert_allclose(counts[6:] / 2000, 1 / 4, atol=0.05)


def test_the_seed_decides_uniform():
    items, groups = items_of(50), ["x"] * 50
    one, same, other = (uniform(items, PARENTS, 5, groups, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_fisher_takes_the_steep_items_at_the_parents_ability():
    a = np.array([[1.0], [3.0], [3.0], [3.0], [1.0]])
    b = a[:, 0] * np.array([0.7, 0.7, 4.0, -4.0, 0.8])
    chosen, _ = fisher(ItemParameters(a, b), PARENTS, 1, ["x"] * 5, 0)
    np.testing.assert_array_equal(chosen, [1])
    chosen, _ = fisher(ItemParameters(a, b), PARENTS, 3, ["x"] * 5, 0)
    np.testing.assert_array_equal(chosen, [0, 1, 4])


@pytest.mark.parametrize(
    ("parents", "points"), [([-1.0, 0.3, 2.0], [-1.0, 0.3, 2.0, 1.3 / 3]), ([], norm.ppf((np.arange(9) + 0.5) / 9))]
)
def test_fisher_matches_its_formula_item_by_item(parents, points):
    items = items_of(30)
    information = np.zeros(30)
    for theta in points:
        p = 1 / (1 + np.exp(items.difficulty - items.discrimination[:, 0] * theta))
        information += items.discrimination[:, 0] ** 2 * p * (1 - p)
    for count in range(1, 30):
        chosen, _ = fisher(items, np.reshape(parents, (-1, 1)), count, ["x"] * 30, 0)
        assert set(chosen.tolist()) == set(np.argsort(information)[-count:].tolist())


@pytest.mark.parametrize("method", ["fisher", "ascent", "disagreement"])
def test_the_seed_alone_decides_between_items_that_tell_as_much(method):
    alike = ItemParameters(np.ones((30, 1)), np.zeros(30))
    draws = [METHODS[method](alike, PARENTS, 5, ["x"] * 30, seed, model_of(alike))[0].tolist() for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(map(tuple, draws))) == 3


def test_fisher_without_ties_depends_neither_on_the_seed_nor_on_the_order_of_the_parents():
    items, groups = items_of(40), ["x"] * 25 + ["y"] * 15
    one, other = fisher(items, PARENTS, 8, groups, 0)[0], fisher(items, PARENTS[::-1], 8, groups, 7)[0]
    np.testing.assert_array_equal(one, other)


def test_ascent_asks_all_the_way_up_where_fisher_asks_one_step():
    steps = np.linspace(0.75, 1.8, 6)  # the parents' mean, and CLIMB deviations above the better
    a = np.full((18, 1), 12.0)
    items = ItemParameters(a, a[:, 0] * np.repeat(steps, 3))
    of = {
        name: steps[METHODS[name](items, PARENTS, 6, ["x"] * 18, 0, model_of(items))[0] // 3]
        for name in ("ascent", "fisher")
    }
    assert len(set(of["ascent"].tolist())) >= 4  # of six steps
    assert of["ascent"].max() >= 1.5
    assert of["fisher"].max() <= 1.0


@pytest.mark.parametrize("dimensions", [1, 2])
def test_ascent_is_greedy_in_the_mean_log_information(dimensions):
    rng = np.random.default_rng(10)
    items = ItemParameters(3 * rng.lognormal(0, 0.5, (20, dimensions)), 3 * rng.normal(0, 1.5, 20))
    parents = np.array([[-0.5, 0.2], [0.0, -0.3]])[:, :dimensions]  # less able than the candidate that is expected
    covariance = np.array([[0.16, 0.14], [0.14, 0.25]])[:dimensions, :dimensions]
    expected = np.array([0.7, 0.4])[:dimensions]
    model = Predictor(items.discrimination, -items.difficulty, expected, np.linalg.inv(covariance))
    way = np.linspace(parents.mean(axis=0), expected + CLIMB * np.sqrt(np.diag(covariance)), STEPS)

    def value(chosen):
        total = np.ones(STEPS)
        for i in chosen:
            a, b = items.discrimination[i], items.difficulty[i]
            p = 1 / (1 + np.exp(b - way @ a))
            total += a @ a * p * (1 - p)
        return np.log(total).mean()

    greedy: list[int] = []
    for count in range(1, 7):
        greedy.append(max(set(range(20)) - set(greedy), key=lambda i: value([*greedy, i])))
        chosen, _ = ascent(items, parents, count, ["x"] * 20, 0, model)
        np.testing.assert_array_equal(chosen, sorted(greedy))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, -1, 6])
def test_a_budget_that_cannot_be_spent_is_refused(method, count):
    with pytest.raises(ValueError, match=f"between 1 and the number of items, 5, got {count}"):
        METHODS[method](items_of(5), PARENTS, count, ["x"] * 5, 0, model_of(items_of(5)))


@pytest.mark.parametrize("method", METHODS)
def test_groups_must_match_the_items(method):
    with pytest.raises(ValueError, match="got 4 groups for 5 items"):
        METHODS[method](items_of(5), PARENTS, 2, ["x"] * 4, 0, model_of(items_of(5)))


@pytest.mark.parametrize(("parents", "ability"), [(PARENTS, PARENTS.mean()), (PARENTS[:0], 0.0)])
def test_stratified_takes_one_of_each_stratum_and_its_weighted_mean_has_no_bias(parents, ability):
    a = np.tile([1.0, 30.0], 6)
    items = ItemParameters(a[:, None], a * ability - np.arange(12.0))  # the log-odds at the parents' ability
    truth = np.arange(12.0) ** 2
    draws = [stratified(items, parents, 4, ["x"] * 12, seed) for seed in range(2000)]
    assert all((chosen // 3 == np.arange(4)).all() for chosen, _ in draws)
    assert np.mean([weights @ truth[chosen] for chosen, weights in draws]) == pytest.approx(truth.mean(), abs=0.8)


def test_anchors_are_one_item_of_each_cluster_and_weigh_as_it_does():
    b = np.concatenate([np.full(6, -5.0), np.full(3, 0.0), np.full(1, 5.0)])
    chosen, weights = METHODS["anchors"](ItemParameters(np.ones((10, 1)), b), PARENTS, 3, ["x"] * 10, 0)
    assert sorted(b[chosen].tolist()) == [-5, 0, 5]
    np.testing.assert_allclose(weights, [0.6, 0.3, 0.1])


def test_anchors_tell_steep_items_from_flat_ones():
    a = np.repeat([[0.5], [4.0]], 5, axis=0)
    chosen, weights = METHODS["anchors"](ItemParameters(a, np.tile([-0.1, 0.1], 5)), PARENTS, 2, ["x"] * 10, 0)
    assert a[chosen, 0].tolist() == [0.5, 4.0]
    np.testing.assert_allclose(weights, 0.5)


def test_the_centres_of_clusters_are_the_means_of_what_is_nearest():
    points = np.random.default_rng(0).normal(size=(60, 2))
    centres = _kmeans(points, 5, np.random.default_rng(1))
    nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_allclose(centres, [points[nearest == c].mean(axis=0) for c in range(5)])


def test_the_best_of_several_starts_finds_clusters_that_one_start_misses():
    places = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = np.repeat(places, 8, axis=0) + 0.05 * np.random.default_rng(0).normal(size=(32, 2))
    for seed in range(20):
        centres = _kmeans(points, 4, np.random.default_rng(seed))
        np.testing.assert_allclose(sorted(centres.round().tolist()), sorted(places.tolist()))


def test_a_centre_without_items_stays_where_one_was():
    places = np.array([[1.0, 1.0], [1.0, -1.0]])
    centres = _kmeans(places[[0, 0, 0, 0, 1, 1]], 3, np.random.default_rng(0))
    assert {tuple(centre) for centre in centres} == {tuple(place) for place in places}


def test_anchors_of_the_same_parameters_share_their_clusters_weight():
    b = np.array([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])  # three anchors of two places
    chosen, weights = METHODS["anchors"](ItemParameters(np.ones((6, 1)), b), PARENTS, 3, ["x"] * 6, 0)
    assert len(set(chosen.tolist())) == 3
    for place in (1.0, -1.0):
        mine = b[chosen] == place
        np.testing.assert_allclose(weights[mine], (b == place).mean() / mine.sum())


def test_the_candidates_that_a_design_is_for_lie_evenly_about_the_prior():
    prior = Predictor(np.ones((4, 3)), np.zeros(4), np.array([1.0, -2.0, 0.5]), np.eye(3) / 0.4**2)
    x = _draws(prior)
    np.testing.assert_allclose(x.mean(axis=0), prior.centre, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=0), 0.4, rtol=0.03)
    covariance = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, 0.2], [0.0, 0.2, 0.5]])
    x = _draws(Predictor(np.ones((4, 3)), np.zeros(4), prior.centre, np.linalg.inv(covariance)))
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.15)


def slow_variance(model, x, asked):
    """Posterior variance of the score over the items not asked, by explicit inversion."""
    P = model.probability(x[None])[0]
    v = P * (1 - P)
    d = model.design[asked]
    covariance = np.linalg.inv(model.precision + (d.T * v[asked]) @ d)
    return covariance, v


def test_the_gain_of_an_item_is_how_much_it_lowers_the_variance_of_the_score():
    rng = np.random.default_rng(0)
    model = Predictor(rng.normal(size=(9, 2)), rng.normal(size=9), np.zeros(2), np.eye(2))
    x, asked = np.array([0.3, -0.2]), [1, 4]
    covariance, v = slow_variance(model, x, asked)
    unasked = np.ones(9, dtype=bool)
    unasked[asked] = False
    g = (v * unasked) @ model.design / 9
    gains = model.gains(x[None], covariance[None], unasked[None])[0]
    for item in range(9):
        after, _ = slow_variance(model, x, [*asked, item])
        expected = g @ covariance @ g - g @ after @ g if unasked[item] else 0.0
        assert gains[item] == pytest.approx(expected, abs=1e-12)


def test_a_design_is_greedy_in_the_mean_share_of_the_variance_that_an_item_takes():
    rng = np.random.default_rng(8)
    model = Predictor(2 * rng.normal(size=(12, 2)), rng.normal(size=12), rng.normal(size=2), np.eye(2) / 0.7**2)

    def taken(asked, item):
        shares = []
        for x in _draws(model):
            before, v = slow_variance(model, x, asked)
            after, _ = slow_variance(model, x, [*asked, item])
            g = np.delete(v, asked) @ np.delete(model.design, asked, axis=0)
            shares.append(1 - (g @ after @ g) / (g @ before @ g))
        return np.mean(shares)

    greedy: list[int] = []
    for count in range(1, 12):
        greedy.append(max(set(range(12)) - set(greedy), key=lambda i: taken(greedy, i)))
        chosen, _ = design(items_of(12), PARENTS, count, ["x"] * 12, 0, model)
        np.testing.assert_array_equal(chosen, sorted(greedy))


def test_a_design_leaves_less_variance_than_fisher_and_uniform():
    items = items_of(80)
    model, groups = model_of(items), ["x"] * 80
    left = {}
    for method in (design, fisher, uniform):
        chosen, _ = method(items, PARENTS, 10, groups, 0, model)
        variances = []
        for x in np.linspace(-0.1, 1.5, 9)[:, None]:
            covariance, v = slow_variance(model, x, chosen)
            g = v @ model.design / 80
            variances.append(g @ covariance @ g)
        left[method] = np.mean(variances)
    assert left[design] <= left[fisher] * 1.02
    assert left[design] < left[uniform]


def test_disagreement_asks_what_merges_differ_on():
    model = Predictor(np.ones((4, 1)), np.array([6.0, 0.0, -6.0, 0.1]), np.zeros(1), np.eye(1))
    chosen, _ = disagreement(items_of(4), PARENTS, 2, ["x"] * 4, 0, model)
    np.testing.assert_array_equal(chosen, [1, 3])


@pytest.mark.parametrize("method", [design, disagreement])
def test_methods_that_need_the_model_say_so(method):
    with pytest.raises(ValueError, match="needs the model of a candidate's answers"):
        method(items_of(5), PARENTS, 2, ["x"] * 5, 0)


def test_an_interview_goes_up_with_right_answers_and_shares_its_budget_between_groups():
    items = ItemParameters(np.full((40, 1), 2.0), np.tile(np.linspace(-4, 8, 20), 2))
    groups = ["x"] * 20 + ["y"] * 20
    able, unable = (Interview(model_of(items), 10, groups) for _ in range(2))
    while not able.done:
        able.tell(np.ones(len(able.ask(2))))
        unable.tell(np.zeros(len(unable.ask(2))))
    assert items.difficulty[able.subset].mean() > items.difficulty[unable.subset].mean() + 0.5
    assert (able.subset < 20).sum() == (able.subset >= 20).sum() == 5
    assert able.x[0, 0] > unable.x[0, 0] + 0.5
    assert len(able.ask()) == 0


def test_an_interview_asks_no_item_twice_though_none_would_tell_anything():
    interview = Interview(model_of(ItemParameters(np.zeros((5, 1)), np.zeros(5))), 5, ["x"] * 5)
    asked = []
    while not interview.done:
        asked += interview.ask().tolist()
        interview.tell(np.ones(1))
    assert sorted(asked) == list(range(5))


def test_an_interview_refuses_misuse():
    interview = Interview(model_of(items_of(6)), 3, ["x"] * 6)
    interview.ask(2)
    with pytest.raises(RuntimeError, match="before asking for more"):
        interview.ask()
    with pytest.raises(ValueError, match="expected 2 answers"):
        interview.tell(np.ones(3))
    with pytest.raises(ValueError, match="right"):
        interview.tell(np.array([0.5, np.nan]))


def test_adaptive_answers_are_those_of_an_interview_and_of_the_model():
    items = items_of(30)
    answers = np.random.default_rng(1).integers(0, 2, (3, 30)).astype(float)
    found = adaptive(model_of(items), answers, 5, ["x"] * 30)
    assert ((~np.isnan(found)).sum(axis=1) == 5).all()
    np.testing.assert_array_equal(found[~np.isnan(found)], answers[~np.isnan(found)])
