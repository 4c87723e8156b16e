import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merge3.extract import METHODS, fisher, share, uniform
from merge3.irt import ItemParameters

PARENTS = np.array([[0.5], [1.0]])


def items_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return ItemParameters(rng.lognormal(0, 0.5, (count, 1)), rng.normal(0, 1.5, count))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_method_gives_sorted_distinct_items_and_weights_that_sum_to_one(data):
    groups = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
    count = data.draw(st.integers(1, len(groups)))
    method = METHODS[data.draw(st.sampled_from(sorted(METHODS)))]
    chosen, weights = method(items_of(len(groups)), PARENTS, count, groups, data.draw(st.integers(0, 9)))
    assert len(chosen) == len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < len(groups)
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    seats = {g: sum(groups[i] == g for i in chosen) for g in "abc"}
    for g in "abc":
        assert abs(seats[g] - count * groups.count(g) / len(groups)) < 1
    if all(seats[g] for g in set(groups)):
        for g in set(groups):
            ours = np.array([groups[i] == g for i in chosen])
            assert weights[ours].sum() == pytest.approx(groups.count(g) / len(groups))


def test_largest_remainder_by_hand():
    np.testing.assert_array_equal(share(10, np.array([47, 16, 15, 22])), [5, 2, 1, 2])
    np.testing.assert_array_equal(share(1, np.array([3, 3])), [1, 0])
    np.testing.assert_array_equal(share(6, np.array([2, 4])), [2, 4])


@pytest.mark.parametrize("method", METHODS)
def test_all_items_are_all_items_with_equal_weights(method):
    chosen, weights = METHODS[method](items_of(7), PARENTS, 7, ["x", "y", "y", "x", "x", "x", "z"], 0)
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


def test_fisher_matches_its_formula_item_by_item():
    items, parents = items_of(30), np.array([[-1.0], [0.3], [2.0]])
    information = np.zeros(30)
    for theta in [-1.0, 0.3, 2.0, (-1.0 + 0.3 + 2.0) / 3]:
        p = 1 / (1 + np.exp(items.difficulty - items.discrimination[:, 0] * theta))
        information += items.discrimination[:, 0] ** 2 * p * (1 - p)
    chosen, _ = fisher(items, parents, 6, ["x"] * 30, 0)
    assert set(chosen.tolist()) == set(np.argsort(information)[-6:].tolist())


def test_fisher_without_ties_depends_neither_on_the_seed_nor_on_the_order_of_the_parents():
    items, groups = items_of(40), ["x"] * 25 + ["y"] * 15
    one, other = fisher(items, PARENTS, 8, groups, 0)[0], fisher(items, PARENTS[::-1], 8, groups, 7)[0]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, -1, 6])
def test_a_budget_that_cannot_be_spent_is_refused(method, count):
    with pytest.raises(ValueError, match=f"between 1 and the number of items, 5, got {count}"):
        METHODS[method](items_of(5), PARENTS, count, ["x"] * 5, 0)


@pytest.mark.parametrize("method", METHODS)
def test_groups_must_match_the_items(method):
    with pytest.raises(ValueError, match="got 4 groups for 5 items"):
        METHODS[method](items_of(5), PARENTS, 2, ["x"] * 4, 0)
