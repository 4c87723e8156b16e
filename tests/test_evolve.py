from __future__ import annotations

import numpy as np
import pytest
from cmaes import CMA

from merge3.evolve import Search


def sphere(x: np.ndarray) -> float:
    return -float(((x - 0.7) ** 2).sum())


def run(search: Search, generations: int) -> list[list[float]]:
    told = []
    for _ in range(generations):
        told.append([sphere(x) for x in search.ask()])
        search.tell(told[-1])
    return told


def start(genes: int = 5, seed: int = 3) -> Search:
    return Search(np.full(genes, 0.3), 0.2, 8, seed)


def test_it_finds_the_top_of_a_hill() -> None:
    search = start()
    run(search, 60)
    np.testing.assert_allclose(search.mean, 0.7, atol=0.01)


def test_replaying_what_was_told_continues_bit_for_bit() -> None:
    whole = start()
    told = run(whole, 12)
    again = start()
    for values in told[:7]:
        again.ask()
        again.tell(values)
    for values in told[7:]:
        assert [sphere(x) for x in again.ask()] == values
        again.tell(values)
    assert np.array_equal(again.mean, whole.mean)


def test_two_seeds_differ_and_one_does_not() -> None:
    assert np.array_equal(start().ask()[0], start().ask()[0])
    assert not np.array_equal(start().ask()[0], start(seed=4).ask()[0])


def test_the_first_generation_is_cmaes_own() -> None:
    seed = int(np.random.SeedSequence(3, spawn_key=(0,)).generate_state(1)[0])
    reference = CMA(
        np.full(5, 0.3), 0.2, bounds=np.tile([0.0, 1.0], (5, 1)), seed=seed, population_size=8, lr_adapt=True
    )
    expected = [reference.ask() for _ in range(8)]
    np.testing.assert_array_equal(start().ask(), expected)


@pytest.mark.parametrize("genes", [1, 2, 200])
def test_any_number_of_genes_stays_in_the_cube(genes: int) -> None:
    search = start(genes)
    for _ in range(3):
        asked = search.ask()
        assert all(x.shape == (genes,) and ((x >= 0) & (x <= 1)).all() for x in asked)
        search.tell([sphere(x) for x in asked])
    assert search.mean.shape == (genes,)


def test_a_failed_candidate_is_ranked_last() -> None:
    failed, worst = start(), start()
    values = [sphere(x) for x in failed.ask()]
    worst.ask()
    failed.tell([-np.inf, *values[1:]])
    worst.tell([min(values) - 5.0, *values[1:]])
    assert np.array_equal(failed.mean, worst.mean)


def test_a_generation_of_failures_teaches_nothing_and_the_search_goes_on() -> None:
    search = start()
    before = search.mean
    first = search.ask()
    search.tell([-np.inf] * 8)
    assert np.array_equal(search.mean, before)
    assert not np.array_equal(search.ask()[0], first[0])


def test_what_is_handed_out_is_a_copy() -> None:
    first, second = start(), start()
    for x in first.ask():
        x[:] = 0.0
    second.ask()
    first.mean[:] = 9.0
    values = [float(i) for i in range(8)]
    first.tell(values)
    second.tell(values)
    assert values == [float(i) for i in range(8)]
    assert np.array_equal(first.mean, second.mean)


def test_misuse_is_refused() -> None:
    search = start()
    with pytest.raises(RuntimeError, match="tell without ask"):
        search.tell([0.0] * 8)
    search.ask()
    with pytest.raises(RuntimeError, match="generation 0 was asked and not told"):
        search.ask()
    with pytest.raises(ValueError, match="expected 8 fitness values, got 3"):
        search.tell([0.0] * 3)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="must be finite"):
            search.tell([bad] + [0.0] * 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": np.array([])}, "at least one gene"),
        ({"start": np.array([1.5])}, r"in \[0, 1\]"),
        ({"sigma": 0.0}, r"sigma must be in \(0, 1\]"),
        ({"population": 3}, "population must be 4 or more"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Search(**({"start": np.full(2, 0.5), "sigma": 0.2, "population": 6, "seed": 0} | change))
