from __future__ import annotations

import importlib.util
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cmaes import CMA, SepCMA, get_warm_start_mgd

from merge3.evolve import ERROR, FRONTS, KERNELS, SEARCHES, Bipop, Cma, Genes, Grid, Search, begin_after
from merge3.front import hypervolume, nondominated
from merge3.surface import fit

HAS_PYMOO = importlib.util.find_spec("pymoo") is not None
SINGLE = ["cma", "bipop", "sep", "mixed", "pooled", "random", "grid", *["genetic"] * HAS_PYMOO]
DOUBLE = ["front of pooled", "front of como", *["front of nsga2"] * HAS_PYMOO]


def sphere(x: np.ndarray) -> float:
    return -float(((x - 0.7) ** 2).sum())


def two(x: np.ndarray) -> tuple[float, float]:
    return tuple(1 - float(((x - at) ** 2).mean()) for at in (0.3, 0.7))


def fitness(search: Search, x: np.ndarray) -> Any:
    return sphere(x) if search.objectives == 1 else two(x)


def make(name: str = "cma", genes: int = 5, seed: int = 3, **more: Any) -> Search:
    settings = Genes(genes, **more), np.full(genes, 0.3), 0.2, 8, seed
    if name.startswith("front of "):
        return FRONTS[name.removeprefix("front of ")](*settings, 2)
    return SEARCHES[name](*settings)


def run(search: Search, generations: int) -> list[list[Any]]:
    told = []
    for _ in range(generations):
        told.append([fitness(search, x) for x in search.ask()])
        search.tell(told[-1])
    return told


@pytest.mark.parametrize("name", ["cma", "bipop", "sep", "mixed", *["genetic"] * HAS_PYMOO])
def test_it_finds_the_top_of_a_hill(name: str) -> None:
    search = make(name)
    best = max(max(values) for values in run(search, 60))
    assert best > -0.005
    if name in ("cma", "sep", "mixed"):
        np.testing.assert_allclose(search.mean, 0.7, atol=0.02)


@pytest.mark.parametrize("name", SINGLE + DOUBLE)
def test_told_again_after_any_interruption_it_goes_the_same_way(name: str) -> None:
    whole = make(name)
    asked, told = [], []
    for _ in range(6):
        asked.append(whole.ask())
        told.append([fitness(whole, x) for x in asked[-1]])
        whole.tell(told[-1])
    for stop in range(1, 6):
        again = make(name)
        for generation in range(6):
            np.testing.assert_array_equal(again.ask(), asked[generation])
            # up to the interruption from the record, then measured
            again.tell(told[generation] if generation < stop else [fitness(again, x) for x in asked[generation]])
        np.testing.assert_array_equal(again.mean, whole.mean)


@pytest.mark.parametrize("name", SINGLE + DOUBLE)
def test_ties_are_broken_alike_each_time(name: str) -> None:
    one, other = make(name), make(name)
    for _ in range(4):
        asked = one.ask()
        np.testing.assert_array_equal(other.ask(), asked)
        for search in (one, other):
            search.tell([float(x[0] > 0.3) if search.objectives == 1 else (float(x[0] > 0.3), 0.5) for x in asked])


@pytest.mark.parametrize("name", SINGLE + DOUBLE)
def test_two_seeds_differ_and_one_does_not(name: str) -> None:
    np.testing.assert_array_equal(make(name).ask(), make(name).ask())
    assert not np.array_equal(make(name).ask(), make(name, seed=4).ask())


@pytest.mark.parametrize(("name", "reference", "more"), [("cma", CMA, {"lr_adapt": True}), ("sep", SepCMA, {})])
def test_every_generation_is_cmaes_own_by_its_own_seed(name: str, reference: type, more: dict[str, Any]) -> None:
    own = reference(np.full(5, 0.3), 0.2, bounds=np.tile([0.0, 1.0], (5, 1)), population_size=8, **more)
    search = make(name)
    for generation in range(6):
        own.reseed_rng(int(np.random.SeedSequence(3, spawn_key=(generation,)).generate_state(1)[0]))
        asked = search.ask()
        np.testing.assert_array_equal(asked, [own.ask() for _ in range(8)])
        search.tell([sphere(x) for x in asked])
        own.tell([(x, -sphere(x)) for x in asked])


@pytest.mark.parametrize("name", SINGLE + DOUBLE)
@pytest.mark.parametrize("genes", [1, 2, 200])
def test_any_number_of_genes_stays_in_the_cube(name: str, genes: int) -> None:
    search = make(name, genes)
    for _ in range(3):
        asked = search.ask()
        assert all(x.shape == (genes,) and ((x >= 0) & (x <= 1)).all() for x in asked)
        if asked:  # one gene's grid has but three points
            search.tell([fitness(search, x) for x in asked])
    assert search.mean.shape == (genes,)


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "pooled"])
def test_flat_fitness_moves_nothing(name: str) -> None:
    search = make(name)
    first = search.mean
    for _ in range(20):
        search.tell([0.5] * len(search.ask()))
    np.testing.assert_array_equal(search.mean, first)
    assert search.generation == 20


@pytest.mark.parametrize("name", SINGLE + DOUBLE)
def test_when_all_fail_the_search_goes_on(name: str) -> None:
    search = make(name)
    failure = -np.inf if search.objectives == 1 else (-np.inf, -np.inf)
    first = search.ask()
    search.tell([failure] * len(first))
    second = search.ask()
    assert not np.array_equal(second, first[: len(second)])
    search.tell([fitness(search, x) for x in second])
    assert np.isfinite(search.ask()).all()


@pytest.mark.parametrize("name", SINGLE)
def test_ties_of_most_candidates_do_no_harm(name: str) -> None:
    search = make(name)
    for _ in range(5):
        search.tell([float(i == 0) for i in range(len(search.ask()))])
    assert np.isfinite(search.ask()).all()


@pytest.mark.parametrize("name", ["cma", "sep", "mixed"])
def test_a_failed_candidate_is_ranked_last(name: str) -> None:
    failed, worst = make(name), make(name)
    values = [sphere(x) for x in failed.ask()]
    worst.ask()
    failed.tell([-np.inf, *values[1:]])
    worst.tell([min(values[1:]) - 5.0, *values[1:]])
    np.testing.assert_array_equal(failed.ask(), worst.ask())


@pytest.mark.parametrize("name", ["cma", "sep", "mixed"])
def test_one_failure_among_equals_teaches(name: str) -> None:
    search = make(name)
    search.ask()
    search.tell([0.5] * 7 + [-np.inf])
    assert not np.array_equal(search.mean, np.full(5, 0.3))


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_taken_and_handed_out_is_a_copy(name: str) -> None:
    start = np.full(5, 0.3)
    first, second = SEARCHES[name](Genes(5), start, 0.2, 8, 3), make(name)
    start[:] = 0.9
    for x in first.ask():
        x[:] = 0.0
    second.ask()
    first.mean[:] = 9.0
    values = [float(i) for i in range(8)]
    first.tell(values)
    second.tell(values)
    assert values == [float(i) for i in range(8)]
    np.testing.assert_array_equal(first.ask(), second.ask())


@pytest.mark.parametrize("genes", [1, 2])
def test_restarts_double_the_population_or_are_small(genes: int) -> None:
    search = make("bipop", genes)
    sizes = [len(values) for values in run(search, 300)]
    restarts = [after for before, after in pairwise(sizes) if before != after]
    assert restarts[:3] == [16, 8, 32]
    assert isinstance(search, Bipop)
    assert not search.converged


@pytest.mark.parametrize("name", ["cma", "sep"])
@pytest.mark.parametrize("genes", [1, 2])
def test_a_search_that_has_narrowed_says_so(name: str, genes: int) -> None:
    search = make(name, genes)
    assert not search.converged
    run(search, 80)
    assert search.converged


@pytest.mark.parametrize(("spread", "narrow"), [((1.0, 0.01), False), ((0.3, 0.3), False), ((0.2, 0.01), True)])
def test_a_search_has_narrowed_once_the_widest_gene_has(spread: tuple[float, float], narrow: bool) -> None:
    assert Cma(Genes(2), np.full(2, 0.5), 0.01, 8, 0, np.diag(spread)).converged == narrow


def test_every_restart_begins_elsewhere() -> None:
    search, sizes, starts = make("bipop", 2), [8], []
    for _ in range(200):
        asked = search.ask()
        if len(asked) != sizes[-1]:
            starts.append(tuple(search.mean))
        sizes.append(len(asked))
        search.tell([sphere(x) for x in asked])
    assert len(set(starts)) == len(starts) > 3


def test_restarts_find_the_higher_hill() -> None:
    def hills(x: np.ndarray) -> float:
        low, high = (float(np.exp(-20 * ((x - at) ** 2).sum())) for at in (0.15, 0.85))
        return 0.5 * low + high

    found = []
    for name in ("cma", "bipop"):
        search = SEARCHES[name](Genes(2), np.full(2, 0.15), 0.1, 8, 0)
        best = -np.inf
        for _ in range(150):
            values = [hills(x) for x in search.ask()]
            search.tell(values)
            best = max(best, *values)
        found.append(best)
    assert found[0] < 0.6
    assert found[1] > 0.99


def test_pooled_finds_the_top_under_noise() -> None:
    generator = np.random.default_rng(0)
    search = SEARCHES["pooled"](Genes(3), np.full(3, 0.3), 0.25, 8, 0)
    for _ in range(12):
        values = [0.6 + sphere(x) / 2 + 0.05 * generator.standard_normal() for x in search.ask()]
        search.tell(values, [0.05] * 8)
    assert sphere(search.mean) > -0.05  # the start's is -.48


@pytest.mark.parametrize("genes", [2, 8, 24])
def test_pooled_comes_back_from_where_everything_fails(genes: int) -> None:
    """What is known rises towards a cliff: beyond it every candidate fails, and the surface leads there."""

    def score(x: np.ndarray) -> float:
        return x.mean() if x.mean() < 0.55 else -np.inf

    rng = np.random.default_rng(0)
    search = SEARCHES["pooled"](Genes(genes), np.full(genes, 0.3), 0.2, 12, 0)
    known = np.clip(np.linspace(0.2, 0.54, 16)[:, None] + 0.05 * rng.normal(size=(16, genes)), 0, 1)
    known = known[[np.isfinite(score(x)) for x in known]]
    search.know(known, [score(x) for x in known])
    whole, lost = [], 0
    for _ in range(20):
        asked = search.ask()
        if lost:  # the one before failed whole
            assert np.abs(np.array(asked) - 0.3).std() < 0.2 / 2**lost
        scores = [score(x) for x in asked]
        lost = 0 if np.isfinite(scores).any() else lost + 1
        whole += [s for s in scores if np.isfinite(s)]
        search.tell(scores, [0.01] * 12)
    assert len(whole) > 60
    assert max(whole) > 0.4


def test_pooled_draws_two_generations_around_the_start_and_then_from_the_surface() -> None:
    search = make("pooled")
    for generation in range(3):
        seed = int(np.random.SeedSequence(3, spawn_key=(generation,)).generate_state(1)[0])
        around = np.clip(0.3 + 0.2 * np.random.default_rng(seed).standard_normal((8, 5)), 0, 1)
        asked = search.ask()
        assert np.array_equal(asked, around) == (generation < 2)
        search.tell([sphere(x) for x in asked])


def test_settings_of_surfaces_are_chosen_anew_four_times_and_then_every_third() -> None:
    search, asked, told, before = make("front of pooled", 2), [], [], [(0.0, 0.0, 0.0)] * 2
    generator = np.random.default_rng(0)
    for generation in range(8):
        asked += search.ask()
        told += [tuple(np.array(two(x)) + 0.1 * generator.standard_normal(2)) for x in asked[-8:]]
        search.tell(told[-8:], [(0.02, 0.1)] * 8)
        likely = [
            fit(np.array(asked), scores, np.full(len(scores), error)).settings
            for scores, error in zip(np.transpose(told), (0.02, 0.1), strict=True)
        ]
        before = before if generation in (4, 5, 7) else likely
        assert [surface.settings for surface in search.surfaces] == before
        assert [set(surface.errors) for surface in search.surfaces] == [{0.02}, {0.1}]
    search.retell(np.array(asked), [(x[0], x[1] / 50) for x in asked], [(0.0, 0.0)] * 64)
    likely = [fit(np.array(asked), scores, np.zeros(64)).settings for scores in np.transpose(asked) / [[1], [50]]]
    assert [surface.settings for surface in search.surfaces] == likely != before  # of another world


def test_a_candidate_that_failed_in_one_objective_failed() -> None:
    search = FRONTS["pooled"](Genes(2), np.full(2, 0.3), 0.2, 4, 0, 2)
    failed = search.ask()[1]
    search.tell([(0.1, 0.8), (-np.inf, 0.9), (0.3, 0.6), (0.2, 0.7)])
    at = (search.surfaces[0].genes == failed).all(axis=1)
    assert [surface.scores[at].tolist() for surface in search.surfaces] == [[0.1], [0.6]]


def test_a_failed_candidate_counts_as_the_worst_of_all_so_far() -> None:
    search = SEARCHES["pooled"](Genes(2), np.full(2, 0.3), 0.2, 4, 0)
    search.ask()
    search.tell([0.1, 0.2, 0.3, 0.4])
    failed = search.ask()[1]
    search.tell([0.6, -np.inf, 0.7, 0.8])
    surface = search.surfaces[0]
    assert surface.scores[(surface.genes == failed).all(axis=1)].tolist() == [0.1]


def test_what_is_known_of_merges_spares_pooled_the_blind_generations() -> None:
    known = np.random.default_rng(1).random((24, 3))
    blind, told = (SEARCHES["pooled"](Genes(3), np.full(3, 0.3), 0.1, 8, 0) for _ in range(2))
    told.know(known, [sphere(x) for x in known])
    assert set(told.surfaces[0].errors) == {0.0}  # they answered everything
    assert sphere(told.mean) > max(sphere(x) for x in known)
    assert np.mean([sphere(x) for x in told.ask()]) > np.mean([sphere(x) for x in blind.ask()]) + 0.1
    told.tell([-np.inf] * 8)  # that all fail does not undo it
    assert np.isfinite(told.mean).all()


def test_a_pooled_front_starts_from_what_is_known() -> None:
    known = np.random.default_rng(1).random((24, 3))
    search = FRONTS["pooled"](Genes(3), np.full(3, 0.3), 0.1, 8, 0, 2)
    search.know(known, [two(x) for x in known])
    assert len(search.surfaces) == 2
    best = max(sum(two(x)) for x in known)
    assert max(sum(two(x)) for x in search.ask()) > best


@pytest.mark.parametrize("name", sorted(set(SEARCHES) - {"pooled", "genetic"}))
def test_the_others_begin_at_their_start_whatever_is_known(name: str) -> None:
    one, other = make(name), make(name)
    one.know(np.full((1, one.genes.count), 0.9), [1.0])
    np.testing.assert_array_equal(one.ask(), other.ask())


def test_what_is_known_must_fit_and_come_first() -> None:
    search = make("pooled")
    point = np.full((1, search.genes.count), 0.5)
    for genotypes, values, message in (
        (point[:, 1:], [0.5], "expected"),
        (point, [0.5, 0.6], "expected"),
        (point, [(0.5, 0.6)], "expected"),
        (point, [np.nan], "must be finite"),
        (point + 1, [0.5], "in \\[0, 1\\]"),
    ):
        with pytest.raises(ValueError, match=message):
            search.know(genotypes, values)
    search.know(point[:0], [])  # nothing: as if it had not been said
    assert not search.surfaces
    search.ask()
    with pytest.raises(RuntimeError, match="before the first generation"):
        search.know(point, [0.5])


def test_told_again_pooled_knows_what_it_is_told_last_and_nothing_else() -> None:
    known = np.random.default_rng(1).random((24, 3))
    first, other = (SEARCHES["pooled"](Genes(3), np.full(3, 0.3), 0.1, 8, 0) for _ in range(2))
    first.know(known, [0.0] * 24)
    asked = np.array(first.ask())
    first.tell([float(x[0]) for x in asked])
    genotypes = np.vstack([known, asked])
    first.retell(genotypes, [sphere(x) for x in genotypes], [0.0] * 32)
    other.know(genotypes, [sphere(x) for x in genotypes])
    np.testing.assert_array_equal(first.mean, other.mean)
    assert first.generation == 1


def test_told_again_a_front_knows_each_objective() -> None:
    known = np.random.default_rng(1).random((24, 3))
    search = FRONTS["pooled"](Genes(3), np.full(3, 0.3), 0.1, 8, 0, 2)
    search.know(known, [(0.0, 0.0)] * 24)
    search.retell(known, [two(x) for x in known], [(0.01, 0.02)] * 24)
    np.testing.assert_array_equal(
        [surface.scores for surface in search.surfaces], np.transpose([two(x) for x in known])
    )
    assert [set(surface.errors) for surface in search.surfaces] == [{0.01}, {0.02}]


def test_told_again_what_failed_counts_as_the_worst_of_all() -> None:
    search, known = make("pooled"), np.random.default_rng(1).random((24, 5))
    far = np.full(5, 0.99)
    search.retell(known, [sphere(x) for x in known], [0.01] * 24, [far])
    surface = search.surfaces[0]
    np.testing.assert_array_equal(surface.genes, [*known, far])
    np.testing.assert_array_equal(surface.scores, [*(found := [sphere(x) for x in known]), min(found)])
    assert surface.errors[-1] == ERROR


def test_told_again_cma_goes_on_as_it_was() -> None:
    one, other = make("cma"), make("cma")
    for search in (one, other):
        search.tell([sphere(x) for x in search.ask()])
    one.retell(np.full((1, one.genes.count), 0.9), [1.0], [0.0])
    np.testing.assert_array_equal(one.ask(), other.ask())
    with pytest.raises(RuntimeError, match="was asked and not told"):
        one.retell(np.full((1, one.genes.count), 0.9), [1.0], [0.0])


@pytest.mark.parametrize(("name", "value"), [("pooled", 0.5), ("front of pooled", (0.5, 0.5))])
def test_pooled_is_steady_on_flat_fitness(name: str, value: Any) -> None:
    search = make(name)
    for _ in range(5):
        asked = search.ask()
        assert len(asked) == 8
        search.tell([value] * 8)
    assert np.isfinite(search.mean).all()


def test_a_grid_asks_every_point_once() -> None:
    search = Grid(Genes(3), np.full(3, 0.5), 0.2, 4, 0)
    points = []
    while asked := search.ask():
        points += [tuple(x) for x in asked]
        search.tell([sphere(x) for x in asked])
    assert len(points) == len(set(points)) == 27
    assert {value for point in points for value in point} == {0.0, 0.5, 1.0}
    assert search.converged


def test_the_average_is_asked_once() -> None:
    search = make("average")
    np.testing.assert_array_equal(search.ask(), [np.full(5, 0.3)])
    search.tell([0.5])
    assert search.ask() == []
    assert search.converged


# --- categories, whole numbers, fronts


def mixed_score(x: np.ndarray) -> float:
    return -float((x[1] - 0.7) ** 2) - float(abs(x[0] - 2.5 / 3)) - float(abs(x[2] - 0.5 / 5))


@pytest.mark.parametrize("name", ["mixed", "pooled"])
def test_the_category_and_the_whole_number_are_found(name: str) -> None:
    genes = Genes(3, categories={0: 3}, levels={2: 5})
    search = SEARCHES[name](genes, np.full(3, 0.5), 0.3, 10, 0)
    for _ in range(60):
        asked = search.ask()
        for x in asked:
            assert np.isclose(x[0] * 3 % 1, 0.5)
            assert np.isclose(x[2] * 5 % 1, 0.5)
        search.tell([mixed_score(x) for x in asked])
    np.testing.assert_allclose(search.mean, [2.5 / 3, 0.7, 0.1], atol=0.05)


def test_whole_numbers_start_where_they_are_told_to() -> None:
    start = np.array([0.4, 0.3, 0.9, 0.6])
    search = SEARCHES["mixed"](Genes(4, levels={1: 5, 2: 5}), start, 0.2, 8, 0)
    np.testing.assert_allclose(search.mean, start)


def test_whole_numbers_spread_as_far_as_numbers() -> None:
    search = SEARCHES["mixed"](Genes(2, levels={1: 20}), np.full(2, 0.5), 0.15, 400, 0)
    np.testing.assert_allclose(np.std(search.ask(), axis=0), 0.15, rtol=0.1)


def test_every_option_of_a_category_is_tried_at_first_wherever_the_start_is() -> None:
    search = SEARCHES["pooled"](Genes(2, categories={0: 4}), np.full(2, 0.9), 0.05, 40, 0)
    asked = np.array(search.ask())
    assert set(asked[:, 0]) == {0.125, 0.375, 0.625, 0.875}
    assert np.abs(asked[:, 1] - 0.9).max() < 0.25


def test_categories_alone_can_be_searched() -> None:
    search = SEARCHES["mixed"](Genes(1, categories={0: 4}), np.full(1, 0.5), 0.3, 6, 0)
    for _ in range(30):
        search.tell([float(x[0] > 0.75) for x in search.ask()])
    assert search.mean[0] == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("name", DOUBLE)
def test_a_front_is_covered(name: str) -> None:
    search = make(name, 2)
    values = np.array([value for generation in run(search, 20 if "pooled" in name else 60) for value in generation])
    # the front of `two` in one gene t on the diagonal: (1 - (t - .3)², 1 - (t - .7)²), .3 <= t <= .7
    for t in (0.35, 0.5, 0.65):
        wanted = np.array([1 - (t - 0.3) ** 2, 1 - (t - 0.7) ** 2])
        assert (values >= wanted - 0.01).all(axis=1).any()
    # and its hypervolume above (.8, .8)
    t = np.linspace(0.3, 0.7, 20_001)
    whole = hypervolume_of_curve(0.2 - (t - 0.3) ** 2, 0.2 - (t - 0.7) ** 2)
    assert 0.85 * whole < hypervolume(values, 0.8) <= whole


def hypervolume_of_curve(first: np.ndarray, second: np.ndarray) -> float:
    """Of a curve along which `first` falls and `second` rises: strips under it."""
    both = np.stack([first, second])[:, (first > 0) & (second > 0)]
    return float(both[0, 0] * both[1, 0] + (both[0, 1:] * np.diff(both[1])).sum())


def test_a_front_of_three_is_covered() -> None:
    """Of shares of one whole: all points are on the front: its ends and its middle are reached."""
    search = FRONTS["pooled"](Genes(2), np.full(2, 0.5), 0.3, 8, 0, 3)

    def shares(x: np.ndarray) -> tuple[float, float, float]:
        return x[0] * x[1], x[0] * (1 - x[1]), 1 - x[0]

    values = []
    for _ in range(15):
        values += [shares(x) for x in search.ask()]
        search.tell(values[-8:], [(0.01,) * 3] * 8)
    assert (np.max(values, axis=0) > 0.75).all()
    assert np.abs(np.array(values) - 1 / 3).max(axis=1).min() < 0.1
    np.testing.assert_allclose(shares(search.mean), 1 / 3, atol=0.15)


def test_a_pooled_front_heeds_noise() -> None:
    """What it would name after noisy answers lies nearer to the true front than what looks best by itself."""
    generator = np.random.default_rng(0)
    search = FRONTS["pooled"](Genes(3), np.full(3, 0.3), 0.2, 8, 0, 2)
    asked, told = [], []
    for _ in range(12):
        asked += search.ask()
        told += [tuple(np.array(two(x)) + 0.08 * generator.standard_normal(2)) for x in asked[-8:]]
        search.tell(told[-8:], [(0.08, 0.08)] * 8)
    truth = np.array([two(x) for x in asked])
    smooth = np.stack([surface.predict(np.array(asked))[0] for surface in search.surfaces], axis=1)
    by_surface, by_luck = (truth[nondominated(values)].sum(axis=1).mean() for values in (smooth, np.array(told)))
    assert by_surface > by_luck + 0.01


def test_como_is_for_two_objectives() -> None:
    with pytest.raises(ValueError, match="of two objectives, got 3: pooled and nsga2 take any"):
        FRONTS["como"](Genes(2), np.full(2, 0.5), 0.2, 8, 0, 3)


def test_the_first_generation_of_a_front_asks_the_means_too() -> None:
    assert len(make("front of como").ask()) == 8 + KERNELS - 1


# --- warm start


def test_a_warm_start_is_cmaes_own_below_its_limit() -> None:
    generator = np.random.default_rng(0)
    x = generator.random((65, 6))  # of which the best six
    values = np.array([sphere(one) for one in x])
    mean, sigma, cov = begin_after(x, values)
    reference = get_warm_start_mgd([(one, -value) for one, value in zip(x, values, strict=True)])
    for ours, theirs in zip((mean, sigma, cov), reference, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_warm_start_holds_for_hundreds_of_genes() -> None:
    x = np.random.default_rng(0).random((30, 400))
    mean, sigma, cov = begin_after(x, x.sum(axis=1))
    assert 0.05 < sigma < 1
    assert np.linalg.slogdet(cov)[1] == pytest.approx(0.0, abs=1e-6)
    search = Cma(Genes(400), mean, sigma, 8, 0, cov)
    assert np.isfinite(search.ask()).all()


def test_a_warm_start_is_nearer_than_a_cold_one() -> None:
    x = np.random.default_rng(0).random((200, 5))
    mean, sigma, cov = begin_after(x, np.array([sphere(one) for one in x]))
    warm = Cma(Genes(5), mean, sigma, 8, 0, cov)
    assert np.mean([sphere(one) for one in warm.ask()]) > np.mean([sphere(one) for one in make().ask()])


def test_a_warm_start_takes_one_candidate_at_least_and_all_at_most() -> None:
    x = np.random.default_rng(0).random((4, 3))
    mean, sigma, cov = begin_after(x, np.array([0.1, 0.4, 0.3, 0.2]))
    np.testing.assert_array_equal(mean, x[1])
    np.testing.assert_allclose(sigma**2 * cov, 0.01 * np.eye(3))
    np.testing.assert_allclose(begin_after(x, np.zeros(4), 1.0)[0], x.mean(axis=0))


@pytest.mark.parametrize(
    ("x", "values", "share", "alpha", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0), 0.1, 0.1, "one or more genotypes"),
        (np.zeros((3, 2)), np.zeros(3), 0.0, 0.1, "share must be"),
        (np.zeros((3, 2)), np.zeros(3), 0.1, 0.0, "alpha above 0"),
    ],
)
def test_a_warm_start_of_nothing_is_refused(
    x: np.ndarray, values: np.ndarray, share: float, alpha: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        begin_after(x, values, share, alpha)


# --- misuse


@pytest.mark.parametrize("name", SINGLE)
def test_misuse_is_refused(name: str) -> None:
    search = make(name)
    with pytest.raises(RuntimeError, match="tell without ask"):
        search.tell([0.0] * 8)
    search.ask()
    with pytest.raises(RuntimeError, match="generation 0 was asked and not told"):
        search.ask()
    with pytest.raises(ValueError, match="expected 8 fitness values, got 3"):
        search.tell([0.0] * 3)
    with pytest.raises(ValueError, match=r"expected 1 objective\(s\) a candidate, got 2"):
        search.tell([(0.0, 0.0)] * 8)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must be finite"):
            search.tell([bad] + [0.0] * 7)
    for errors in ([0.1] * 7, [-0.1] * 8, [np.inf] * 8):
        with pytest.raises(ValueError, match="a finite standard error of every fitness value"):
            search.tell([0.0, 1.0] * 4, errors)
    search.tell([0.0, 1.0] * 4, [np.nan] * 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": np.array([])}, r"start must be 2 gene\(s\)"),
        ({"start": np.array([1.5, 0.0])}, r"in \[0, 1\]"),
        ({"sigma": 0.0}, r"sigma must be in \(0, 1\]"),
        ({"population": 3}, "population must be 4 or more"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    settings = {"genes": Genes(2), "start": np.full(2, 0.5), "sigma": 0.2, "population": 6, "seed": 0}
    with pytest.raises(ValueError, match=message):
        Cma(**(settings | change))


@pytest.mark.parametrize("name", SINGLE)
def test_settings_at_the_ends_of_their_ranges_are_taken(name: str) -> None:
    search = SEARCHES[name](Genes(2), np.array([0.0, 1.0]), 1.0, 4, 0)
    assert len(search.ask()) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "at least one gene"),
        ({"count": 2, "categories": {2: 3}}, "distinct genes below 2"),
        ({"count": 2, "categories": {0: 3}, "levels": {0: 3}}, "distinct genes below 2"),
        ({"count": 2, "levels": {1: 1}}, "two options or more"),
    ],
)
def test_genes_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genes(**settings)


@pytest.mark.skipif(HAS_PYMOO, reason="pymoo is installed")
def test_without_pymoo_its_methods_say_what_to_install() -> None:
    with pytest.raises(ValueError, match="pip install pymoo"):
        make("genetic")
