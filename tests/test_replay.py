"""Searches between candidates that were answered in full before, on a table whose truth is known."""

from __future__ import annotations

import sys
from copy import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import evolution

ITEMS, GENES = 120, 4


@pytest.fixture(scope="module")
def replay() -> evolution.Replay:
    """A hill in four genes: merges near .6 are able, items of all difficulties."""
    generator = np.random.default_rng(0)
    genes = generator.random((90, GENES))
    difficulty = generator.normal(0, 1, ITEMS)

    def margins(ability: np.ndarray) -> np.ndarray:
        return ability[:, None] - difficulty + generator.logistic(0, 0.4, (len(ability), ITEMS))

    names = [f"gene {g}" for g in range(GENES)] + [f"item {i}" for i in range(ITEMS)]
    table = pd.DataFrame(np.hstack([genes, margins(2 - 4 * ((genes - 0.6) ** 2).sum(axis=1))]), columns=names)
    experts = pd.DataFrame(margins(np.array([0.0, 0.3])) > 0, columns=names[GENES:], index=["a", "b"])
    return evolution.Replay(table, experts[experts.columns[::-1]], np.full(GENES, 0.4), 0)


def test_a_candidate_has_its_own_answers_and_a_merge_between_those_between(replay: evolution.Replay) -> None:
    for x, margins in zip(replay.points[:3], replay.table, strict=False):
        np.testing.assert_allclose(replay.margins(x, np.arange(5)), margins[replay.searched][:5], atol=1e-6)
        assert replay.truth(x) == (margins[replay.tested] > 0).mean()
    peak, corner = np.full(GENES, 0.6), np.zeros(GENES)
    assert replay.truth(peak) > replay.truth(corner)


def test_what_is_searched_is_no_test(replay: evolution.Replay) -> None:
    assert sorted([*replay.searched, *replay.tested]) == list(range(ITEMS))
    assert len(replay.searched) == len(replay.every) == round(evolution.SEARCHED * ITEMS)


def test_finalists_cost_half_a_budget_at_most() -> None:
    for budget in (60, 480, 3840, 96_000):
        count = evolution.fitting(budget, 1000)
        assert evolution.cost(count) <= budget / 2
        assert count == evolution.FRESH or evolution.cost(count + 1) > budget / 2
    assert evolution.fitting(3840, 7) == 7
    assert evolution.cost(8) == 9 * 2 + 5 * 2 + 3 * 4


def test_a_candidate_is_told_by_the_others(replay: evolution.Replay) -> None:
    plane = copy(replay)
    slope = np.random.default_rng(1).normal(size=(GENES, ITEMS))
    plane.table = replay.points @ slope  # what the others tell exactly
    assert plane.left_out() == pytest.approx((1.0, 0.0))
    noise = copy(replay)
    noise.table = np.random.default_rng(2).normal(size=replay.table.shape)
    assert 0.4 < noise.left_out()[0] < 0.6


@pytest.mark.parametrize("name", ["paper", "random", "cma", "pooled", "pooled, verified", "full"])
def test_every_way_searches_the_table(replay: evolution.Replay, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution.Replay, "budgets", ((240, 720), (1440, 4320)))
    way = evolution.REPLAYED[name]
    found = [replay.run(way, seed) for seed in range(2)]
    assert found[0] == replay.run(way, 0)
    assert list(found[0]) == list(replay.budgets[way.subset == "all"])
    last = [list(one.values())[-1] for one in found]
    if name == "full":
        assert np.mean(last) > np.quantile((replay.table[:, replay.tested] > 0).mean(axis=1), 0.9)
