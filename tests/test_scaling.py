from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from merge3.plan import Plan
from merge3.recipe import TRAITS
from merge3.scaling import COPIES, HOST, OWN, PEAK, choices, own_seconds, scaled

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FITS = Plan(
    parameters=10,
    model=20,
    ingredients=60,
    masks=0,
    answering=5,
    moved=80,
    merging_seconds=0.1,
    answering_seconds=0.3,
    memory=1000.0,
)
ONE = 0.1 * COPIES["ties"] + 0.3 / PEAK


def measured(name: str) -> dict[str, float]:
    return {row["figure"]: row["value"] for row in json.loads((RESULTS / f"{name}.json").read_text())}


def test_a_generation_waits_for_its_last_candidate() -> None:
    rounds = {1: 125, 8: 10 * 2 + 1, 12: 11, 64: 11}  # of ten generations of twelve and one of five
    for workers, count in rounds.items():
        found = scaled(FITS, "ties", 125, 12, workers, 1.0)
        assert found.seconds == pytest.approx(own_seconds(125) + count * ONE)
        assert found.merging + found.answering == pytest.approx(ONE)


def test_the_searchs_own_share_bounds_what_workers_give() -> None:
    alone = scaled(FITS, "ties", 240, 240, 1, 1.0).seconds
    fastest = scaled(FITS, "ties", 240, 240, 10**6, 1.0).seconds
    assert alone / fastest < alone / own_seconds(240)


def test_workers_share_their_hosts_memory_where_merges_are_made_there() -> None:
    small = replace(FITS, memory=50.0)
    assert small.mode == "streamed"
    merging, answering = COPIES["ties"] * 80 / 40.0, 0.3 / PEAK
    generations = {  # of 12
        1: 12 * (merging + answering),
        4: 12 * merging + 3 * answering,  # however many share it: the same bytes go through one memory
        HOST: 12 * merging + 2 * answering,
        2 * HOST: 6 * merging + answering,
    }
    for workers, seconds in generations.items():
        found = scaled(small, "ties", 120, 12, workers, main=40.0)
        assert found.seconds - found.own == pytest.approx(10 * seconds)


def test_generations_that_leave_no_worker_idle_are_offered() -> None:
    assert [(each.workers, each.population) for each in choices(FITS, "ties", 120, 12, 8, 1.0)] == [
        (1, 12),
        (8, 12),
        (8, 16),
    ]
    assert [(each.workers, each.population) for each in choices(FITS, "ties", 120, 12, 1, 1.0)] == [(1, 12)]


def test_the_searchs_own_seconds_pass_through_what_was_measured() -> None:
    assert [own_seconds(count) for count, _ in OWN] == pytest.approx([seconds for _, seconds in OWN])
    assert own_seconds(1) < own_seconds(12) < own_seconds(180) < own_seconds(1000)


def test_the_constants_are_what_the_benchmarks_measured() -> None:
    own = measured("workers")
    assert [own[f"the search's own seconds, {count} candidates"] for count, _ in OWN] == [s for _, s in OWN]
    merging = measured("merging")
    assert COPIES.keys() == TRAITS.keys()
    for method in COPIES.keys() - {"passthrough"}:
        assert math.isclose(COPIES[method], merging[f"{method}: time / floor"], rel_tol=0.5), method
    shares = [value for figure, value in measured("answering").items() if "matrix-product peak" in figure]
    assert min(shares) <= PEAK <= max(shares)
