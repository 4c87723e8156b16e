import numpy as np
import pytest
from scipy.special import expit

from merge3 import lineage
from merge3.irt import ItemParameters, fit_items, loglikelihood, probability

NONE = np.empty((0, 30))


def population(models, items, rng):
    return (rng.random((models, len(items))) < probability(items, rng.normal(size=(models, 1)))).astype(float)


def drawn(count, rng):
    return ItemParameters(rng.lognormal(0.2, 0.4, (count, 1)), rng.normal(0, 1.2, count))


def test_a_family_moves_how_hard_its_items_are_and_strangers_say_how_steep():
    rng = np.random.default_rng(0)
    items = drawn(200, rng)
    theirs = ItemParameters(items.discrimination, items.difficulty + rng.normal(0, 1.5, 200))
    strangers, family = population(300, items, rng), population(12, theirs, rng)
    alone, found = fit_items(strangers, "em", 1, 0), lineage.fit(strangers, np.empty((0, 200)), family)
    far = {
        name: np.sqrt(((fit.difficulty - theirs.difficulty) ** 2).mean())
        for name, fit in (("strangers", alone), ("both", found), ("family", fit_items(family, "em", 1, 0)))
    }
    assert far["both"] < 0.85 * far["strangers"]
    assert far["both"] < 0.85 * far["family"]
    away = np.abs(np.log(found.discrimination / alone.discrimination))
    assert np.median(away) < 0.1


def test_no_family_is_the_strangers_fit_and_no_strangers_the_familys():
    rng = np.random.default_rng(1)
    items = drawn(30, rng)
    strangers, family = population(40, items, rng), population(6, items, rng)
    for found, whole in (
        (lineage.fit(strangers[:2], family, NONE), fit_items(strangers[:2], "em", 1, 0)),
        (lineage.fit(NONE, family[:2], family[2:]), fit_items(family, "em", 1, 0)),
        (lineage.fit(strangers[:1], NONE, family), fit_items(np.vstack([strangers[:1], family]), "em", 1, 0)),
    ):
        np.testing.assert_array_equal(found.difficulty, whole.difficulty)


def test_each_family_is_fitted_as_if_alone():
    rng = np.random.default_rng(5)
    items = drawn(30, rng)
    strangers, families = population(40, items, rng), [population(count, items, rng) for count in (2, 5)]
    for found, family in zip(lineage.fit_each(strangers, [(NONE, f) for f in families]), families, strict=True):
        np.testing.assert_array_equal(found.items.difficulty, lineage.fit(strangers, NONE, family).difficulty)


def test_more_is_expected_of_parents_that_know_different_things():
    one = np.tile([1.0, 0.0], 10)
    assert lineage.expected(np.stack([one, one])) == (0.0, pytest.approx(0.1))
    assert lineage.expected(np.empty((0, 20))) == lineage.expected(one[None]) == (0.0, pytest.approx(0.1))
    shift, spread = lineage.expected(np.stack([one, 1 - one]))
    assert (shift, spread) == (pytest.approx(0.7), pytest.approx(np.hypot(0.1, 0.7)))
    half = lineage.expected(np.stack([one, np.ones(20), one]))  # two of the three pairs differ on half the items
    assert half == pytest.approx((0.7 / 3, np.hypot(0.1, 0.7 * np.sqrt(1 / 3))))


def test_contrasts_are_the_parents_differences_whatever_their_order():
    rng = np.random.default_rng(2)
    residual = rng.normal(size=(3, 20))
    one, other = lineage.contrasts(residual), lineage.contrasts(residual[::-1])
    assert one.shape == (20, 2)
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-10)
    np.testing.assert_allclose(lineage.contrasts(np.vstack([residual[0]] * 2)), np.empty((20, 0)))


def test_the_prior_expects_a_merge_abler_than_its_parents_by_the_shift_that_inherits_their_residuals():
    rng = np.random.default_rng(3)
    items = drawn(80, rng)
    parents = population(2, items, rng)
    model = lineage.predictor(items, parents, (0.3,), 0.5, 1.2, 0.6)
    abilities, residual = lineage.residuals(items, parents)
    z = items.discrimination[:, 0] * (abilities.mean() + 0.3) - items.difficulty + 1.2 * residual.sum(axis=0)
    np.testing.assert_allclose(model.probability(model.centre[None])[0], expit(z))
    np.testing.assert_allclose(model.precision, np.diag(np.array([0.5, 0.6, lineage.CONTRAST]) ** -2))
    assert model.tail == lineage.TAIL


def test_the_order_of_strangers_and_family_changes_nothing():
    rng = np.random.default_rng(4)
    items = drawn(30, rng)
    strangers, family = population(25, items, rng), population(4, items, rng)
    one, other = lineage.fit(strangers, NONE, family), lineage.fit(strangers[::-1], NONE, family[::-1])
    np.testing.assert_allclose(one.difficulty, other.difficulty, atol=1e-4)


def test_relatives_teach_what_merges_of_the_same_parents_answer():
    rng = np.random.default_rng(6)
    items = drawn(150, rng)
    parents = population(2, items, rng)
    abilities, residual = lineage.residuals(items, parents)
    own = rng.normal(0, 1, 150)  # what the family has beyond its parents
    z = items.discrimination[:, 0] * (abilities.mean() + 0.8) - items.difficulty + 1.5 * residual.sum(axis=0) + own
    merges = (rng.random((48, 150)) < expit(z)).astype(float)
    alone, taught = lineage.predictor(items, parents), lineage.predictor(items, parents, relatives=merges[:8])
    twice = lineage.predictor(lineage.fit(population(150, items, rng), parents, merges[:8]), parents)
    told, counted_twice, nothing = (
        loglikelihood(np.tile(m.probability(m.centre[None]), (40, 1)), merges[8:]) for m in (taught, twice, alone)
    )
    assert told > max(nothing, counted_twice) + 0.02
    assert taught.centre[1] == 0  # what relatives share with the parents is in the items now
    assert abs(taught.centre[0] - abilities.mean() - 0.8) < abs(alone.centre[0] - abilities.mean() - 0.8)


def test_the_prior_with_relatives_by_hand():
    rng = np.random.default_rng(10)
    items = drawn(60, rng)
    parents, relatives = population(2, items, rng), population(5, items, rng)
    relatives[:, 7] = np.nan
    usual, model = lineage.predictor(items, parents), lineage.predictor(items, parents, relatives=relatives)
    common = lineage.residuals(items, parents)[1].sum(axis=0)
    assert model.offset[7] == pytest.approx(1.5 * common[7] - items.difficulty[7], abs=1e-4)  # nobody moved it
    design, centre = model.design[:, :3], np.array([usual.centre[0], 0.0, 0.0])
    free = lineage.Predictor(design, model.offset, centre, np.eye(3) / 9)
    shift, scale = lineage.learnt(centre[:1], usual.precision[0, :1] ** -0.5, free.fit(relatives)[0][:, :1])
    np.testing.assert_allclose(model.centre, [centre[0] + shift[0], *np.zeros(6)])
    scales = np.array([scale[0], 0.7, lineage.CONTRAST, *[lineage.LIKENESS] * 4])
    np.testing.assert_allclose(np.diag(model.precision), scales**-2)
    alike = lineage.Predictor(design, model.offset, model.centre[:3], np.diag(scales[:3] ** -2))
    residual = np.nan_to_num(relatives - alike.probability(alike.fit(relatives)[0]))
    np.testing.assert_allclose(model.design[:, 3:], lineage.contrasts(residual))
    assert model.tail == lineage.TAIL


def test_what_one_relative_has_beyond_its_parents_tells_of_a_merge_that_is_like_it():
    rng = np.random.default_rng(9)
    items = drawn(400, rng)
    parents = population(2, items, rng)
    abilities, residual = lineage.residuals(items, parents)
    way = rng.normal(0, 2, 400)  # in which merges of this family differ, and neither ability nor parents tell
    expected = items.discrimination[:, 0] * abilities.mean() - items.difficulty + 1.5 * residual.sum(axis=0)
    merges = (rng.random((38, 400)) < expit(expected + np.outer(rng.normal(size=38), way))).astype(float)
    model = lineage.predictor(items, parents, relatives=merges[:8])
    unlike = lineage.Predictor(model.design[:, :3], model.offset, model.centre[:3], model.precision[:3, :3], model.tail)
    assert model.design.shape == (400, 3 + 7)
    asked = merges[8:].copy()
    asked[:, 100:] = np.nan
    told, untold = (loglikelihood(m.probability(m.fit(asked)[0])[:, 100:], merges[8:, 100:]) for m in (model, unlike))
    assert told > untold + 0.02
    missing = merges[:8].copy()
    missing[0, 0] = np.nan
    assert np.isfinite(lineage.predictor(items, parents, relatives=missing).design).all()


def test_without_relatives_the_parents_say_all():
    rng = np.random.default_rng(7)
    items = drawn(30, rng)
    parents = population(3, items, rng)
    one, other = lineage.predictor(items, parents), lineage.predictor(items, parents, relatives=NONE)
    for name in ("design", "offset", "centre", "precision"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_prior_counts_as_four_models_when_it_learns_from_others():
    shift, scale = lineage.learnt(np.array([1.0]), np.array([2.0]), np.array([[2.0], [4.0]]))
    assert shift == pytest.approx((1 + 3) / 6)
    assert scale**2 == pytest.approx((4 * (4 + (2 / 3) ** 2) + (1 - 2 / 3) ** 2 + (3 - 2 / 3) ** 2) / 6)
    shift, scale = lineage.learnt(np.array([1.0]), np.array([2.0]), np.empty((0, 1)))
    assert (shift, scale) == (0.0, 2.0)


def test_scores_share_an_error_where_neither_relatives_nor_many_strangers_tell():
    rng = np.random.default_rng(7)
    items = drawn(30, rng)
    parents, relatives = population(2, items, rng), population(4, items, rng)
    strangers = population(lineage.MANY + 20, items, rng)
    for count, alone in ((20, lineage.SHARED_ERROR), (len(strangers), 0.0)):
        families = lineage.fit_each(strangers[:count], [(parents, NONE), (parents, relatives)])
        assert [family.shared_error for family in families] == [alone, 0.0]


def test_one_number_shifts_ability_along_what_the_items_ask():
    items = ItemParameters(np.array([[3.0, 0.0], [3.0, 8.0]]), np.zeros(2))
    np.testing.assert_allclose(lineage.raised(items, (10.0,)), [6.0, 8.0])
    np.testing.assert_allclose(lineage.raised(items, (1.0, -1.0)), [1.0, -1.0])
    np.testing.assert_allclose(lineage.raised(ItemParameters(np.ones((2, 1)), np.zeros(2)), (-0.5,)), [-0.5])


def test_many_strangers_tell_two_abilities_apart_where_parents_say_whose():
    rng = np.random.default_rng(8)
    items = drawn(30, rng)
    strangers, parents = population(lineage.MANY, items, rng), population(2, items, rng)
    for few, family, dimensions in (
        (strangers, (parents, NONE), 2),
        (strangers[1:], (parents, NONE), 1),
        (strangers, (NONE, NONE), 2),
        (strangers[1:], (NONE, NONE), 1),
        (strangers, (parents, parents), 1),
    ):
        found = lineage.fit_each(few, [family])[0]
        assert found.items.dimensions == dimensions
        assert (found.model is None) == (not len(family[0]))
        alone = len(few) < lineage.MANY and len(family[0]) > 0 and not len(family[1])
        assert found.shared_error == (lineage.SHARED_ERROR if alone else 0)


@pytest.mark.parametrize("strangers", [3, lineage.MANY + 20])
@pytest.mark.parametrize("alike", [False, True])
def test_without_relatives_an_interview_is_of_ability_alone_however_alike_the_parents(strangers, alike):
    rng = np.random.default_rng(0)
    items = drawn(60, rng)
    others, parents = population(strangers, items, rng), population(2, items, rng)
    parents = parents[[0, 0]] if alike else parents
    found = lineage.fit_each(others, [(parents, np.empty((0, 60)))])[0]
    abilities = lineage.SPACE if strangers > lineage.MANY else 1
    assert found.interview.design.shape[1] == abilities
    assert found.model.design.shape[1] == abilities + 2 - alike  # inheritance, and a contrast where parents differ
    assert found.draft.design.shape[1] == min(abilities, lineage.PLANE) + 2 - alike
    related = lineage.fit_each(others, [(parents, population(2, items, rng))])[0]
    assert related.interview is related.model
