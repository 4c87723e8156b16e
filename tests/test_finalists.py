from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from merge3 import surface
from merge3.estimate import Z90, Calibration, Known
from merge3.evolve import SEARCHES, Genes
from merge3.finalists import (
    combined,
    combined_by_group,
    contenders,
    finals,
    fresh,
    halves,
    paired,
    told_apart,
    whole,
)
from merge3.genome import Genome
from merge3.history import average, joins
from merge3.irt import ItemParameters
from merge3.recipe import AVERAGE, standard_merges


def test_the_paired_variance_is_that_of_the_differences_of_means_by_half() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(size=400)
    draws = [(hard + 0.5 * generator.normal(size=(5, 400)) > 0).astype(float) for _ in range(300)]
    means = np.array([draw.mean(axis=1) for draw in draws])
    differences = np.var([row[0] - row[1] for row in means], ddof=1) / 2  # the same models, asked again and again
    found = np.mean([paired(draw, 10**9) for draw in draws])
    assert found == pytest.approx(differences, rel=0.2)
    unpaired = np.mean([draw.mean() * (1 - draw.mean()) / 400 for draw in draws])
    assert found < 0.5 * unpaired


def test_the_paired_variance_of_two_is_half_that_of_their_difference() -> None:
    answers = np.array([[1.0, 0, 1, 1, 0], [0, 0, 1, 0, 1]])
    expected = np.var(answers[0] - answers[1], ddof=1) / 2 / 5 * (1 - 5 / 20)
    assert paired(answers, 20) == pytest.approx(expected)


def test_what_all_answer_alike_and_what_all_are_asked_counts_for_nothing() -> None:
    alike = np.tile([1.0, 0.0, 1.0, 1.0], (3, 1))
    assert paired(alike, 100) == 0
    assert paired(np.eye(4), 4) == 0  # all items were asked: nothing is left to chance
    assert paired(np.eye(4), 100) > 0


def test_answers_that_one_lacks_are_left_out() -> None:
    answers = np.random.default_rng(1).integers(0, 2, (3, 30)).astype(float)
    broken = answers.copy()
    broken[1, :10] = np.nan
    assert paired(broken, 1000) == paired(answers[:, 10:], 1000)
    assert paired(answers[:1], 1000) == 0.25  # one alone: an answer's own variance at most
    assert paired(answers[:, :1], 1000) == 0.25  # as of one answer each


def test_exact_fresh_items_decide_alone_and_useless_ones_leave_it_to_the_surface() -> None:
    means, deviations = np.array([0.5, 0.7, 0.6]), np.full(3, 0.05)
    found = np.array([0.4, 0.3, 0.5])
    np.testing.assert_allclose(combined(means, deviations, found, 0.0), found)
    useless = combined(means, deviations, found, 1e9)
    np.testing.assert_allclose(useless - useless.mean(), means - means.mean(), atol=1e-6)


def test_surface_and_fresh_items_count_by_the_others_mean_variance() -> None:
    means, found = np.array([0.5, 0.7, 0.6]), np.array([0.4, 0.3, 0.5])
    searched = (0.02**2 + 0.04**2 + 0.1**2) / 3  # of the first at least what few items favour
    share = searched / (searched + 0.003)
    expected = (1 - share) * (means - 0.2) + share * found  # on the level of what was found
    np.testing.assert_allclose(combined(means, np.array([0.01, 0.04, 0.1]), found, 0.003), expected)


def test_a_surface_that_is_high_for_all_alike_says_nothing() -> None:
    means, deviations, found = np.array([0.5, 0.7, np.nan]), np.full(3, 0.04), np.array([0.4, 0.3, 0.5])
    np.testing.assert_allclose(
        combined(means + 0.2, deviations, found, 0.001), combined(means, deviations, found, 0.001)
    )


def test_a_leader_that_the_surface_does_not_know_stands_by_its_fresh_items() -> None:
    means, deviations = np.array([0.5, np.nan, 0.6]), np.array([0.05, np.nan, 0.05])
    found = np.array([0.4, 0.55, 0.5])
    scores = combined(means, deviations, found, 0.002)
    alone = combined(means[[0, 2]], deviations[[0, 2]], found[[0, 2]], 0.002)
    np.testing.assert_allclose(scores, [alone[0], found[1], alone[1]])
    np.testing.assert_allclose(combined(means[[1]], deviations[[1]], found[[1]], 0.002), found[[1]])


def test_a_groups_score_is_a_share_that_certain_fresh_items_tell_alone() -> None:
    means, found = np.array([[0.9, 0.2], [1.0, 0.1]]), np.array([[1.0, 0.3], [0.95, 0.0]])
    deviations = np.full((2, 2), 0.05)
    scores, half = combined_by_group(means, deviations, found, np.zeros((2, 2)))
    np.testing.assert_allclose(scores, found)
    np.testing.assert_array_equal(half, 0.0)
    scores, half = combined_by_group(means, deviations, found, np.full((2, 2), 0.2))
    share = 0.05**2 / (0.05**2 + 0.2**2)
    level = (found - means).mean(axis=0)
    expected = (1 - share) * (means + level) + share * found
    assert expected.max() > 1  # on the level of the fresh items the surface's best would be beyond it
    np.testing.assert_allclose(scores, np.minimum(expected, 1.0))
    np.testing.assert_allclose(half, Z90 * np.sqrt(share * 0.2**2 + 0.2**2 / 2))


@pytest.mark.parametrize("others", [1, 3])
def test_where_fewer_items_are_left_than_finalists_might_be_asked_all_of_them_are_fresh(others: int) -> None:
    count, asked = 6, 6 - others
    items = ItemParameters(np.ones((count, 1)), np.zeros(count))
    known = Known(items, np.arange(asked), np.full(asked, 1 / asked), np.zeros((2, count)))
    found = fresh(known, ["x"] * count, 300, 0)
    assert found.subset.tolist() == list(range(asked, count))
    assert found.weights == pytest.approx(np.full(others, 1 / others))
    everything = replace(known, subset=np.arange(count), weights=np.full(count, 1 / count))
    assert fresh(everything, ["x"] * count, 300, 0) is everything


def test_where_no_candidate_is_whole_the_contenders_are_of_the_surface_and_the_search() -> None:
    genes = np.array([[0.2, 0.2], [0.8, 0.4], [0.5, 0.9], [0.1, 0.7]])
    pooled = surface.fit(genes, np.array([0.3, 0.6, 0.5, 0.4]), np.zeros(4))
    search = SEARCHES["pooled"](Genes(2), np.full(2, 0.5), 0.2, 4, 0)
    found = contenders(pooled, search, np.empty((0, 2)))
    np.testing.assert_array_equal(found, [surface.best(pooled, search.seed), search.mean, search.start])
    more = contenders(pooled, search, genes)
    np.testing.assert_array_equal(more[[0, 2, 3]], found)
    assert pooled.predict(more[[1, 4, 5, 6]])[0].tolist() == sorted(pooled.predict(genes)[0], reverse=True)


def test_every_part_of_the_fresh_items_has_all_groups_and_lies_within_the_next() -> None:
    groups = [f"g{n % 57}" for n in range(57 * 9)]
    items = ItemParameters(np.ones((len(groups), 1)), np.zeros(len(groups)))
    known = Known(items, np.arange(57), np.full(57, 1 / 57), np.ones((1, len(groups))))
    others = fresh(replace(known, calibration=Calibration(widening=2.0)), groups, 57 * 5, 0)
    assert set(others.subset).isdisjoint(known.subset)
    assert others.calibration == Calibration()  # the other was learnt for other items
    assert whole(replace(known, calibration=Calibration(widening=2.0))).calibration == Calibration()
    parts = halves(others, groups)
    for part, asked in zip(parts, (2, 3, 5), strict=True):
        assert sorted(groups[i] for i in part.subset) == sorted(f"g{n}" for n in range(57) for _ in range(asked))
        assert part.weights.sum() == pytest.approx(1)
    for part, larger in itertools.pairwise(parts):
        assert set(part.subset) < set(larger.subset)


@pytest.mark.parametrize(("sizes", "count"), [((50, 40, 10), 10), ((3, 11, 30, 200), 40), ((1, 1, 60), 7)])
def test_in_every_part_of_the_fresh_items_a_group_weighs_what_it_weighs_in_all(
    sizes: tuple[int, ...], count: int
) -> None:
    groups = [f"g{n}" for n, size in enumerate(sizes) for _ in range(size)]
    items = ItemParameters(np.ones((len(groups), 1)), np.zeros(len(groups)))
    others = fresh(Known(items, np.array([0]), np.ones(1), np.ones((1, len(groups)))), groups, count, 0)

    def shares(known: Known) -> np.ndarray:
        labels = np.array([groups[i] for i in known.subset])
        return np.array([known.weights[labels == f"g{n}"].sum() for n in range(len(sizes))])

    for part in halves(others, groups):
        np.testing.assert_allclose(shares(part), shares(others))


def test_no_group_is_lost_where_candidates_are_asked_anew() -> None:
    groups = ["a"] * 10 + ["b"] * 390
    items = ItemParameters(np.ones((400, 1)), np.zeros(400))
    known = Known(items, np.array([0, *range(10, 29)]), np.full(20, 0.05), np.ones((1, 400)))
    others = replace(known, subset=np.array([*range(1, 10), *range(30, 150)]), weights=np.full(129, 1 / 129))
    margins = np.random.default_rng(0).normal(size=(8, 400))
    margins[:, 0] = 9.0  # the last of its group tells nothing
    subset, weights = told_apart(known, others, groups, 0)(margins)
    assert {groups[i] for i in subset} == {"a", "b"}
    assert len(subset) == len(weights) == 20


def test_leaders_join_between_generations() -> None:
    assert [joins(4, generations) for generations in (1, 4, 5, 8, 9)] == [0, 0, 1, 1, 2]


def test_what_finalists_take_at_most() -> None:
    assert finals(4, [10, 20, 40]) == 4 * 10 + 2 * 10 + 1 * 20
    assert finals(8, [75, 150, 300], 960) == 8 * 75 + 4 * 75 + 2 * 150 + 2 * 660
    assert finals(5, [75, 150, 300], 960) == 5 * 75 + 3 * 75 + 2 * 150 + 2 * 660
    assert finals(1, [75], 960) == 960
    assert finals(3, [], 960) == 2 * 960


def test_what_candidates_are_asked_anew_is_kept_from_the_finalists_items() -> None:
    groups = ["xy"[n % 2] for n in range(60)]
    items = ItemParameters(np.ones((60, 1)), np.zeros(60))
    known = Known(items, np.arange(6), np.full(6, 1 / 6), np.ones((1, 60)))
    others = fresh(known, groups, 20, 0)
    margins = np.random.default_rng(0).normal(size=(8, 60))
    subset, weights = told_apart(known, others, groups, 0)(margins)
    assert len(subset) == len(set(subset)) == 6
    assert set(subset).isdisjoint(others.subset)
    assert weights.sum() == pytest.approx(1)


def test_the_uniform_average_is_where_a_search_begins_if_its_method_makes_it() -> None:
    def genome(*methods: str, least: float = 0.0) -> Genome:
        return Genome(methods, ("a", "b", "c"), ("mlp",), 2, (least, 1.2), (0.2, 1.0), 0)

    made = average(genome("task_arithmetic"))
    assert made == genome("task_arithmetic").decode(genome("task_arithmetic").start)
    assert set(made.weights["a"]["mlp"]) == {0.33}
    for other in (genome("ties"), genome("ties", "task_arithmetic"), genome("task_arithmetic", least=0.5)):
        assert average(other) == standard_merges(["a", "b", "c"])[AVERAGE]
