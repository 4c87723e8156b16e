from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from merge3 import margins
from merge3.estimate import ESTIMATORS, Known
from merge3.grouped import Grouped, Objective
from merge3.irt import ItemParameters, Predictor, probability
from merge3.lineage import predictor

GENERATOR = np.random.default_rng(0)
COUNT = 120
GROUPS = [f"g{n % 3}" for n in range(COUNT)]
ITEMS = ItemParameters(GENERATOR.uniform(0.5, 2.0, (COUNT, 1)), GENERATOR.normal(0.0, 1.0, COUNT))


def drawn(ability: float) -> np.ndarray:
    return (GENERATOR.random(COUNT) < probability(ITEMS, np.array([[ability]]))[0]).astype(float)


def known(subset: np.ndarray) -> Known:
    return Known(ITEMS, subset, np.full(len(subset), 1 / len(subset)), np.stack([drawn(0.0), drawn(0.5)]))


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_with_all_items_asked_every_group_has_its_accuracy(name: str) -> None:
    answers = drawn(0.3)
    found = Grouped(ESTIMATORS[name], known(np.arange(COUNT)), GROUPS)(answers)
    assert {group: e.score for group, e in found.items()} == pytest.approx(
        {group: answers[[g == group for g in GROUPS]].mean() for group in ("g0", "g1", "g2")}
    )


def test_the_shares_make_the_whole() -> None:
    answers, whole = drawn(0.3), known(np.arange(0, COUNT, 4))
    grouped = Grouped(ESTIMATORS["mean"], whole, GROUPS)
    total = sum(grouped.shares[g] * e.score for g, e in grouped(answers[whole.subset]).items())
    assert Grouped(ESTIMATORS["mean"], whole, ["a"] * 30 + ["b"] * 90).shares == {"a": 0.25, "b": 0.75}
    assert total == pytest.approx(ESTIMATORS["mean"](answers[whole.subset], whole).score)


def test_a_group_that_is_better_is_estimated_better() -> None:
    answers = drawn(0.3)
    answers[[g == "g1" for g in GROUPS]] = 1.0
    whole = known(np.arange(60))
    found = Grouped(ESTIMATORS["parent_aware"], whole, GROUPS)(answers[:60])
    assert max(found, key=lambda group: found[group].score) == "g1"


def test_what_relatives_tell_is_found_out_once_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    relatives, subset = np.random.default_rng(2).normal(size=(6, COUNT)), np.arange(0, COUNT, 4)
    fit, fitted = margins.fit, []
    monkeypatch.setattr(margins, "fit", lambda *of: fitted.append(of) or fit(*of))
    whole = replace(known(subset), relatives=relatives[1:])
    answers = np.where(np.arange(len(subset)) == 3, np.nan, relatives[0, subset])
    found = Grouped(ESTIMATORS["margin_irt"], whole, GROUPS)(answers)
    scored = ~np.isnan(answers)
    ESTIMATORS["margin_irt"](answers[scored], whole.answered(scored))  # and once for these and the score of all
    assert len(fitted) == 1
    for n, group in enumerate(("g0", "g1", "g2")):
        part = replace(whole.answered(scored), counted=np.arange(n, COUNT, 3))
        assert found[group] == ESTIMATORS["margin_irt"](answers[scored], part)


def test_a_group_is_estimated_by_its_own_items_of_family_and_population() -> None:
    generator = np.random.default_rng(1)
    answers, subset = generator.integers(0, 2, (8, COUNT)).astype(float), np.arange(0, COUNT, 2)
    whole = known(subset)
    family = predictor(ITEMS, whole.parents, relatives=answers[:4])
    weights = generator.dirichlet(np.ones(len(subset)))
    whole = replace(whole, weights=weights, population=answers, family=family)
    members = np.arange(1, COUNT, 3)  # of g1
    mine = np.isin(subset, members)
    part = Known(
        ITEMS.take(members),
        np.searchsorted(members, subset[mine]),
        weights[mine] / weights[mine].sum(),
        whole.parents[:, members],
        population=answers[:, members],
        family=Predictor(family.design[members], family.offset[members], family.centre, family.precision, family.tail),
    )
    row = answers[5, subset]
    for name in ("lineage", "ridge", "weighted_mean"):
        found = Grouped(ESTIMATORS[name], whole, GROUPS)(row)["g1"]
        assert found.score == pytest.approx(ESTIMATORS[name](row[mine], part).score, abs=1e-12)


def test_a_group_that_nobody_asks_is_refused() -> None:
    with pytest.raises(ValueError, match="of group 'g1'"):
        Grouped(ESTIMATORS["mean"], known(np.array([0, 3, 5])), GROUPS)
    with pytest.raises(ValueError, match="one group an item"):
        Grouped(ESTIMATORS["mean"], known(np.array([0])), GROUPS[:5])


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        ("worst", min),
        ("mean", np.mean),
        ("pareto", np.mean),
        ({"g0": 2, "g2": 1}, lambda scores: (2 * scores[0] + scores[2]) / 3),
        ({"g1": 0.3}, lambda scores: scores[1]),
    ],
)
def test_the_objective_is_made_of_the_groups_estimates(wanted: Any, value: Callable[[list[float]], float]) -> None:
    answers, whole = drawn(0.3), known(np.arange(60))
    objective = Objective(wanted, ESTIMATORS["mean"], whole, GROUPS)
    found = objective(answers[:60])
    assert found == Grouped(ESTIMATORS["mean"], whole, GROUPS)(answers[:60])
    assert objective.value(found) == pytest.approx(value([found[group].score for group in ("g0", "g1", "g2")]))
    assert objective.front == (wanted == "pareto")


def test_a_gain_is_that_of_the_group_that_gains_least() -> None:
    whole, start = known(np.arange(60)), {"g0": 0.2, "g1": 0.5, "g2": 0.1}
    objective = Objective("gain", ESTIMATORS["mean"], whole, GROUPS, start)
    found = objective(drawn(0.3)[:60])
    assert found is not None
    assert objective.value(found) == pytest.approx(min(found[group].score - start[group] for group in start))
    assert objective.variance(dict.fromkeys(start, 0.04)) == pytest.approx(0.04)
    for unknown in (None, {"g0": 0.2}):
        with pytest.raises(ValueError, match="to gain on by group"):
            Objective("gain", ESTIMATORS["mean"], whole, GROUPS, unknown)


@pytest.mark.parametrize(
    "wanted", [{"g3": 1.0}, {"g0": -1.0, "g1": 2.0}, {"g0": 0.0}, {}, {"g0": np.nan}, {"g0": np.inf}]
)
def test_weights_that_make_no_mean_are_refused(wanted: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"weighs group 'g3'; there are|must be 0 or more, and one above 0"):
        Objective(wanted, ESTIMATORS["mean"], known(np.arange(60)), GROUPS)


def test_questions_without_an_answer_are_left_out() -> None:
    answers, whole = drawn(0.3), known(np.arange(60))
    some = answers[:60].copy()
    some[[0, 3, 4]] = np.nan
    found = Grouped(ESTIMATORS["mean"], whole, GROUPS)(some)
    assert found["g0"].score == pytest.approx(np.nanmean(some[::3]))
    some[::3] = np.nan  # all of a group
    assert set(Grouped(ESTIMATORS["mean"], whole, GROUPS)(some)) == {"g1", "g2"}
    assert Objective("worst", ESTIMATORS["mean"], whole, GROUPS)(some) is None


def test_the_variance_of_the_worst_is_a_groups_and_that_of_a_mean_is_less() -> None:
    whole = known(np.arange(60))
    own = {"g0": 0.01, "g1": 0.03, "g2": 0.02}

    def variance(wanted: Any) -> float:
        return Objective(wanted, ESTIMATORS["mean"], whole, GROUPS).variance(own)

    assert variance("worst") == pytest.approx(np.mean(list(own.values())))
    assert variance({"g0": 1, "g1": 3}) == pytest.approx((own["g0"] + 9 * own["g1"]) / 16)
    assert variance("mean") < min(own.values())
