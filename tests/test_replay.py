"""The replay of searches over candidates that were answered in full before, on a table whose truth is known."""

from __future__ import annotations

import sys
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
    return evolution.Replay(table, experts[experts.columns[::-1]], np.full(GENES, 0.4))


def test_a_proposal_is_the_nearest_candidate_that_was_not_asked(replay: evolution.Replay) -> None:
    replay.begin()
    x = np.full(GENES, 0.5)
    order = np.argsort(((replay.points - x) ** 2).sum(axis=1), kind="stable")
    for place in order[:3]:
        np.testing.assert_array_equal(replay.margins(x.copy(), np.arange(5)), replay.table[place, :5])
        assert replay.truth(x) == (replay.table[place] > 0).mean()
    assert replay.left.sum() == len(replay.points) - 3
    assert replay.truth(x + 1e-9) == replay.truths[order[0]]  # not asked: the nearest of all
    replay.left[:] = False
    with pytest.raises(ValueError, match="candidates were asked"):
        replay.margins(x, np.arange(5))


def test_what_is_known_before_is_not_searched(replay: evolution.Replay) -> None:
    assert replay.before.shape == (evolution.POPULATION, ITEMS)
    assert len(replay.points) == 90 - evolution.POPULATION
    assert replay.experts.shape == (2, ITEMS)


@pytest.mark.parametrize("name", ["paper", "random", "cma", "pooled", "full"])
def test_every_way_searches_the_table(replay: evolution.Replay, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution.Replay, "budgets", ((240, 720), (1440, 4320)))
    way = evolution.REPLAYED[name]
    found = [replay.run(way, seed) for seed in range(2)]
    assert found[0] == replay.run(way, 0)
    assert list(found[0]) == list(replay.budgets[way.subset == "all"])
    last = [list(one.values())[-1] for one in found]
    assert set(last) <= set(replay.truths.tolist())
    if name == "full":
        assert np.mean(last) > np.quantile(replay.truths, 0.9)
