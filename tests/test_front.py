from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merge3.front import OBJECTIVES, hypervolume, knee, mean, nondominated, spread, worst

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
    values = np.array([[0.5, 0.2], [0.1, 0.9], [0.9, 0.05]])
    assert hypervolume(values, 0.5) == 0.0
    assert hypervolume(values, 0.1) == pytest.approx(0.4 * 0.1)


def test_the_hypervolume_of_three_objectives_counts_the_dominated_cells() -> None:
    values = np.random.default_rng(0).integers(0, 7, (9, 3))
    grid = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), axis=-1)[..., None, :]
    cells = (values > grid).all(axis=-1).any(axis=-1).sum()
    assert hypervolume(values / 6) == pytest.approx(cells / 6**3)
    assert hypervolume(values[:, [2, 0, 1]] / 6) == pytest.approx(cells / 6**3)


def test_what_is_spread_over_a_front_has_its_knee_and_its_ends() -> None:
    angles = np.linspace(0, np.pi / 2, 41)
    front = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    values = np.vstack([0.5 * front, front])  # the first are dominated
    chosen = spread(values, 3)
    assert chosen[0] == 41 + 20 == knee(values)
    assert set(chosen[1:]) == {41, 81}
    assert sorted(spread(values, 100)) == list(range(41, 82))
    assert spread(np.array([[0.1, 0.1]]), 4) == [0]
    assert spread(np.full((3, 2), 0.5), 3) == [0, 1, 2]  # equals are all of the front
    sphere = np.abs(np.random.default_rng(0).normal(size=(40, 3)))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    away = np.abs(sphere[:, None] - sphere[None]).max(axis=2)
    chosen = spread(sphere, 6)
    assert chosen[1:] == [int(away[chosen[:n]].min(axis=0).argmax()) for n in range(1, 6)]


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


@pytest.mark.parametrize("name", ["mean", "worst"])
def test_an_objective_rises_with_every_group(name: str) -> None:
    weights = {"a": 1.0, "b": 3.0}
    low, high = (OBJECTIVES[name]({"a": 0.3, "b": value}, weights) for value in (0.4, 0.5))
    assert high >= low
