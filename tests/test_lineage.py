import numpy as np
import pytest
from scipy.special import expit

from merge3 import lineage
from merge3.irt import ItemParameters, fit_items, probability
from merge3.lineage import Trust


def population(models, items, rng):
    return (rng.random((models, len(items))) < probability(items, rng.normal(size=(models, 1)))).astype(float)


def drawn(count, rng):
    return ItemParameters(rng.lognormal(0.2, 0.4, (count, 1)), rng.normal(0, 1.2, count))


def test_the_nearest_stranger_counts_the_share_and_the_others_less_by_distance():
    family = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    strangers = np.array([[1.0, 1, 1, 0], [1, 1, 0, 0], [np.nan, 0, 0, 1]])
    found = lineage.counts(strangers, family, Trust(0.5, 0.25))
    np.testing.assert_allclose(found, 0.5 * np.exp(-np.array([0, 0.25, 1 / 3 - 0.25]) / 0.25))
    np.testing.assert_array_equal(lineage.counts(strangers, family, Trust()), [1, 1, 1])
    assert lineage.counts(np.empty((0, 4)), family, Trust()).shape == (0,)


def test_with_full_trust_the_fit_is_the_fit_of_all():
    rng = np.random.default_rng(0)
    items = drawn(30, rng)
    strangers, family = population(40, items, rng), population(3, items, rng)
    found, _ = lineage.fit(strangers, family, Trust())
    whole = fit_items(np.vstack([strangers, family]), "em", 1, 0)
    np.testing.assert_allclose(found.difficulty, whole.difficulty, atol=1e-6)


def test_strangers_like_the_family_are_trusted_and_strangers_unlike_it_are_not():
    rng = np.random.default_rng(1)
    items, others = drawn(120, rng), drawn(120, rng)
    family = population(12, items, rng)
    like, unlike = population(60, items, rng), population(60, others, rng)
    choices = (Trust(), Trust(share=0.005))
    assert lineage.choose_trust([(like, family)], choices) == Trust()
    assert lineage.choose_trust([(unlike, family)], choices) == Trust(share=0.005)
    assert lineage.choose_trust([(like, family[:1])], choices) == choices[0]


def test_contrasts_are_the_parents_differences_whatever_their_order():
    rng = np.random.default_rng(2)
    residual = rng.normal(size=(3, 20))
    one, other = lineage.contrasts(residual), lineage.contrasts(residual[::-1])
    assert one.shape == (20, 2)
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-10)
    np.testing.assert_allclose(lineage.contrasts(np.vstack([residual[0]] * 2)), np.empty((20, 0)))


def test_the_prior_expects_a_merge_as_able_as_its_parents_that_inherits_their_residuals():
    rng = np.random.default_rng(3)
    items = drawn(80, rng)
    parents = population(2, items, rng)
    model = lineage.predictor(items, parents, inheritance=1.2)
    abilities, residual = lineage.residuals(items, parents)
    z = items.discrimination[:, 0] * abilities.mean() - items.difficulty + 1.2 * residual.sum(axis=0)
    np.testing.assert_allclose(model.probability(model.centre[None])[0], expit(z))


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_order_of_strangers_and_family_changes_nothing(share):
    rng = np.random.default_rng(4)
    items = drawn(20, rng)
    strangers, family = population(25, items, rng), population(4, items, rng)
    one, _ = lineage.fit(strangers, family, Trust(share, 0.1))
    other, _ = lineage.fit(strangers[::-1], family[::-1], Trust(share, 0.1))
    np.testing.assert_allclose(one.difficulty, other.difficulty, atol=1e-8)
