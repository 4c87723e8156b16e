from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merge3.front import OBJECTIVES, hypervolume, knee, mean, mean_and_worst, nondominated, pair, worst

GRID = 12  # values are multiples of 1 / GRID, so that brute force counts cells exactly
points = st.lists(st.tuples(st.integers(0, GRID), st.integers(0, GRID)), min_size=1, max_size=8).map(
    lambda rows: np.array(rows) / GRID
)


@settings(max_examples=60, deadline=None)
@given(points)
def test_the_front_is_what_a_loop_over_pairs_finds(values: np.ndarray) -> None:
    for i, found in enumerate(nondominated(values)):
        dominated = any((other >= values[i]).all() and (other > values[i]).any() for other in values)
        assert found == (not dominated)


@settings(max_examples=60, deadline=None)
@given(points)
def test_the_hypervolume_counts_the_dominated_cells(values: np.ndarray) -> None:
    cells = np.array([[((values * GRID).round() > (x, y)).all(axis=1).any() for x in range(GRID)] for y in range(GRID)])
    assert hypervolume(values) == pytest.approx(cells.sum() / GRID**2)


@settings(max_examples=60, deadline=None)
@given(points, st.tuples(st.integers(0, GRID), st.integers(0, GRID)))
def test_the_hypervolume_never_falls_and_the_dominated_add_nothing(values: np.ndarray, more: tuple[int, int]) -> None:
    before, after = hypervolume(values), hypervolume(np.vstack([values, np.array(more) / GRID]))
    assert after >= before - 1e-12
    assert hypervolume(values[nondominated(values)]) == pytest.approx(before)
    assert hypervolume(values[:, ::-1]) == pytest.approx(before)


def test_what_does_not_exceed_the_reference_has_no_volume() -> None:
    values = np.array([[0.5, 0.2], [0.1, 0.9]])
    assert hypervolume(values, (0.5, 0.1)) == 0.0
    assert hypervolume(values, (0.0, 0.5)) == pytest.approx(0.1 * 0.4)


@settings(max_examples=60, deadline=None)
@given(points)
def test_the_knee_is_on_the_front(values: np.ndarray) -> None:
    assert nondominated(values)[knee(values)]


def test_the_knee_is_where_the_front_bends() -> None:
    assert knee(np.array([[0.0, 1.0], [0.8, 0.8], [1.0, 0.0], [0.4, 0.5]])) == 1
    assert knee(np.array([[0.0, 10.0], [0.9, 5.0], [1.0, 0.0]])) == 1  # whatever the scales
    assert knee(np.array([[0.0, 1.0], [0.3, 0.3], [1.0, 0.1]])) == 2  # bent inward: the best sum
    assert knee(np.array([[0.3, 0.3]])) == 0
    with pytest.raises(ValueError, match="got none"):
        knee(np.zeros((0, 2)))


@pytest.mark.skipif(importlib.util.find_spec("pymoo") is None, reason="pymoo is not installed")
def test_the_hypervolume_is_pymoos() -> None:
    from pymoo.indicators.hv import HV

    values = np.random.default_rng(0).random((40, 2))
    assert hypervolume(values) == pytest.approx(HV(ref_point=np.zeros(2))(-values))


# --- objectives


def test_objectives_of_groups() -> None:
    scores, weights = {"en": 0.8, "fr": 0.5, "it": 0.2}, {"en": 1.0, "fr": 1.0, "it": 2.0}
    assert mean(scores, weights) == pytest.approx((0.8 + 0.5 + 0.4) / 4)
    assert worst(scores, weights) == 0.2
    assert mean_and_worst(scores, weights) == (mean(scores, weights), 0.2)
    assert pair({"fr": 0.5, "en": 0.8}, {"en": 1.0, "fr": 1.0}) == (0.8, 0.5)  # in the order of the weights
    with pytest.raises(ValueError, match="needs two groups"):
        pair(scores, weights)


@pytest.mark.parametrize("name", ["mean", "worst", "mean_and_worst"])
def test_an_objective_rises_with_every_group(name: str) -> None:
    weights = {"a": 1.0, "b": 3.0}
    low, high = (OBJECTIVES[name]({"a": 0.3, "b": value}, weights) for value in (0.4, 0.5))
    assert (np.asarray(high) >= np.asarray(low)).all()
