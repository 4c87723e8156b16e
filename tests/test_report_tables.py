"""What the report computes, against values worked out by hand or another way."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import findings
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr

from flows.report import spent
from merge3.irt import ItemParameters
from merge3.items import Item
from merge3.report_tables import (
    Results,
    candidates,
    coefficients,
    costs,
    duels,
    estimates,
    extracted,
    front,
    generations,
    information,
    item_map,
    outcome,
    tables,
    telling,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results() -> Results:
    return findings.results(search=40, tests=30)


def test_a_generation_has_its_tokens_best_mean_and_spread() -> None:
    tried = pd.DataFrame(
        {
            "generation": [0, 0, 0, 1, 1, 1, 2, 3],
            "asked": [10, 20, 30, 40, 40, 50, 60, 70],
            "estimate": [0.5, 0.3, 0.4, 0.2, 0.6, np.nan, np.nan, 0.1],
        }
    )
    table = generations(tried)
    assert table["tokens"].tolist() == [30, 50, 60, 70]
    assert table["best"].tolist() == [0.5, 0.6, 0.6, 0.6]
    np.testing.assert_allclose(table["mean"], [0.4, 0.4, np.nan, 0.1])
    np.testing.assert_allclose(table["low"], [0.32, 0.24, np.nan, 0.1])
    np.testing.assert_allclose(table["high"], [0.48, 0.56, np.nan, 0.1])


def test_candidates_have_the_coefficients_of_their_recipes(results: Results) -> None:
    table = candidates(results)
    assert table["asked"].iloc[-1] == results.history["tokens"].sum()
    for gene in findings.GENES:
        np.testing.assert_allclose(table[gene], (1.2 * results.history[gene]).round(2))


def test_a_coefficient_that_a_recipe_lacks_is_missing() -> None:
    recipe = {"weights": {"a b": {"mlp": [0.1, 0.2]}}, "densities": {"a b": {"mlp": [0.5]}}}
    genes = ["weight a b mlp 1", "density a b mlp 0", "density a b mlp 1", "weight c mlp 0", "weight a b rest 0"]
    np.testing.assert_array_equal(coefficients(recipe, genes), [0.2, 0.5, np.nan, np.nan, np.nan])


def test_the_telling_coefficients_are_those_of_the_highest_rank_correlation(results: Results) -> None:
    tried = candidates(results)
    strength = {gene: abs(spearmanr(tried[gene], tried["estimate"]).statistic) for gene in findings.GENES}
    assert telling(tried, findings.GENES) == sorted(strength, key=lambda gene: -strength[gene])[:2]
    assert telling(tried.assign(**{findings.GENES[0]: 0.5}), findings.GENES[:2]) == findings.GENES[1:2]
    assert telling(tried.assign(estimate=0.5), findings.GENES) == findings.GENES[:2]
    assert telling(tried.assign(estimate=-tried[findings.GENES[5]]), findings.GENES)[0] == findings.GENES[5]


def test_the_truth_has_an_interval_of_its_own(results: Results) -> None:
    """Wilson's interval holds the shares p with |truth - p| = z sqrt(p (1 - p) / n) at its ends."""
    table, items = estimates(results), results.responses.shape[1]
    for row in table.to_dict("records"):
        truth = round(row["truth"] * items) / items
        for end in (row["truth_low"], row["truth_high"]):
            assert abs(truth - end) == pytest.approx(1.6448536 * np.sqrt(end * (1 - end) / items), rel=1e-5)


def test_information_is_the_curvature_of_the_likelihood(results: Results) -> None:
    """Fisher's information is P'(θ)² / (P (1 - P)), here by differences."""
    table = item_map(results)
    ability, step = results.abilities["ability_1"].mean(), 1e-5
    a, b = results.parameters.discrimination[:, 0], results.parameters.difficulty

    def right(theta: float) -> np.ndarray:
        return 1 / (1 + np.exp(b - a * theta))

    slope = (right(ability + step) - right(ability - step)) / (2 * step)
    expected = slope**2 / (right(ability) * (1 - right(ability)))
    np.testing.assert_allclose(table["information"], expected, rtol=1e-6)
    assert table["id"][table["weight"].notna()].tolist() == results.subset["id"].tolist()


def test_an_item_of_several_abilities_discriminates_by_the_length_of_its_vector(results: Results) -> None:
    items = ItemParameters(np.tile([3.0, 4.0], (len(results.search), 1)), np.full(len(results.search), 7.0))
    several = replace(
        results, parameters=items, abilities=pd.DataFrame({"ability_1": [0.0, 2.0], "ability_2": [1.0, 1.0]})
    )
    table = item_map(several)
    assert set(table["discrimination"]) == {5.0}
    np.testing.assert_allclose(table["information"], 25 / 4)  # a model of mean ability is right half the time
    assert information(several) is None


def test_an_asked_item_tells_most_at_its_difficulty(results: Results) -> None:
    items = ItemParameters(np.full((len(results.search), 1), 2.0), np.full(len(results.search), 2.0))
    curve = information(replace(results, parameters=items, subset=results.subset.head(1)))
    assert curve is not None
    assert curve["ability"][curve["asked"].idxmax()] == pytest.approx(1.0)
    np.testing.assert_allclose(curve["asked"], 1 / np.cosh(curve["ability"] - 1.0) ** 2)  # a² P (1 - P)


def test_the_curve_of_all_items_is_that_of_chance(results: Results) -> None:
    every = pd.DataFrame(
        {"id": [i.id for i in results.search], "group": [i.group for i in results.search], "weight": 1}
    )
    curve = information(replace(results, subset=every))
    assert curve is not None
    np.testing.assert_allclose(curve["asked"], curve["chance"])
    few = information(results)
    assert few is not None
    np.testing.assert_allclose(few["chance"], curve["chance"] * len(results.subset) / len(results.search))


def test_groups_are_counted_with_what_is_asked_of_them(results: Results) -> None:
    rows = extracted(results)
    assert [row["group"] for row in rows] == findings.GROUPS
    assert [row["size"] for row in rows] == [40, 40, 40]
    assert sum(row["count"] for row in rows) == 20
    assert sum(row["sum"] for row in rows) == pytest.approx(1.0)


def test_a_front_goes_from_one_end_to_the_other_then_come_those_behind_it_and_the_experts(results: Results) -> None:
    ours = findings.with_front(results, ["fr", "es"])
    assert ours.front is not None
    table = front(ours, ours.front)
    on = table[table["kind"].isin(["knee", "front"])]
    assert on.index.tolist() == list(range(len(on)))
    assert (np.diff(on["score fr"]) < 0).all()
    assert (np.diff(on["score es"]) > 0).all()
    assert table["kind"].tolist()[len(on) :] == ["behind"] * (9 - len(on)) + ["expert"] * 4
    assert table["model"][table["kind"] == "knee"].tolist() == [ours.winner["phenotype"]]
    expert = table.iloc[-1]
    right = [a for a, item in zip(results.parents[-1], results.search, strict=True) if item.group == "es"]
    assert expert["score es"] == pytest.approx(sum(right) / 40)
    assert np.isnan(expert["low es"])
    assert list(tables(ours)) == [*tables(results), "front"]


def test_duels_are_the_items_on_which_two_differ_the_clearest_first(results: Results) -> None:
    tests = [Item(name, "?", ("a", "b"), 0, "fr") for name in ("i", "j", "k", "l")]
    models = list(results.responses.index)
    answers = pd.DataFrame(1.0, index=pd.Index(models, name="model"), columns=["i", "j", "k", "l"])
    answers.loc["base"] = [0, 1, 0, 0]
    answers.loc["evolved merge", "j"] = 0
    raw = {
        "evolved merge": {"i": (-1.0, -2.0), "j": (-5.0, -4.0), "k": (-1.0, -9.0), "l": (-1.0, -2.0)},
        "base": {"i": (-3.0, -1.0), "j": (-1.0, -2.0), "k": (-3.0, -2.0)},
    }
    table = duels(replace(results, tests=tests, responses=answers, raw=raw))
    base = table[table["rival"] == "base"]
    assert base["item"].tolist() == ["k", "i", "l", "j"]
    assert base["outcome"].tolist() == ["won", "won", "won", "lost"]
    np.testing.assert_allclose(base["decided"], [9.0, 3.0, np.nan, 2.0])
    assert set(table["item"][table["rival"] == "TIES"]) == {"j"}
    raw = {"evolved merge": raw["evolved merge"]}
    alone = duels(replace(results, tests=tests, responses=answers, raw=raw))
    base = alone[alone["rival"] == "base"]
    assert base["item"].tolist() == ["k", "i", "l", "j"]
    np.testing.assert_allclose(base["decided"], [8.0, 1.0, 1.0, 1.0])


def test_duels_go_by_rivals_the_best_first(results: Results) -> None:
    names = [row["model"] for row in results.rivals]
    assert list(dict.fromkeys(duels(results)["rival"])) == names
    accuracies = results.scores.set_index("model")["accuracy"]
    assert names == sorted(set(accuracies.index) - {"evolved merge"}, key=lambda name: -accuracies[name])


def test_the_best_expert_is_the_best_of_the_experts_whatever_their_order(results: Results) -> None:
    assert results.best_expert["model"] == "english_arithmetic"
    assert replace(results, scores=results.scores[::-1]).best_expert["model"] == "english_arithmetic"


def test_items_are_counted_that_the_winner_and_that_both_have_scored(results: Results) -> None:
    answers = results.responses.copy()
    answers.iloc[0, :7], answers.iloc[4, 5:10] = np.nan, np.nan
    few = replace(results, responses=answers)
    assert (few.tested, few.both("base"), few.both("TIES")) == (90 - 7, 90 - 10, 90 - 7)
    assert "base 85" in few.uneven


@pytest.mark.parametrize(
    ("p", "low", "high", "expected"),
    [
        (0.05, 0.01, 0.1, "better"),
        (0.05, -0.1, -0.01, "worse"),
        (0.051, 0.01, 0.1, "undecided"),
        (0.051, -0.1, -0.01, "undecided"),
        (0.01, 0.0, 0.1, "undecided"),
        (0.01, -0.1, 0.0, "undecided"),
        (np.nan, 0.01, 0.1, "better"),
    ],
)
def test_a_lead_is_shown_where_interval_and_test_agree(p: float, low: float, high: float, expected: str) -> None:
    assert outcome({"holm_p": p, "lead_low": low, "lead_high": high}) == expected


def test_what_made_by_hand_won_is_named(results: Results) -> None:
    assert results.by_hand == ""
    assert replace(results, winner={**results.winner, "merge": "plain TIES"}).by_hand == "plain TIES"


def test_results_that_do_not_fit_together_are_refused(results: Results) -> None:
    scores = results.scores
    for changes, message in (
        ({"scores": scores.assign(kind=scores["kind"].replace("base", "winner"))}, "of kind 'winner', got 2"),
        ({"scores": scores.assign(kind=scores["kind"].replace("winner", "base"))}, "of kind 'winner', got 0"),
        ({"scores": scores.assign(kind=scores["kind"].replace("expert", "base"))}, "no model of kind 'expert'"),
        ({"scores": scores[scores["model"] != "base"]}, "not of the same models \\('base'\\)"),
        ({"responses": results.responses.drop(index="TIES")}, "not of the same models \\('TIES'\\)"),
        ({"history": results.history.drop(columns="items")}, "history has no column 'items'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(results, **changes)


def test_what_took_no_tokens_is_no_row_of_the_ledger() -> None:
    table = costs([("s", "all", "search", 5, 1.0), ("s", "kept", "search", 0, 2.0), ("s", "last", "test", 7, 3.0)])
    assert table["what"].tolist() == ["all", "last"]
    assert table.index.tolist() == [0, 1]


def test_options_scored_by_characters_are_decided_by_characters(results: Results) -> None:
    tests = [Item("i", "?", ("aa", "bbbb"), 0, "fr")]
    models = list(results.responses.index)
    answers = pd.DataFrame({"i": np.zeros(len(models))}, index=pd.Index(models, name="model"))
    answers.loc["evolved merge"] = 1.0
    raw = {"evolved merge": {"i": (-1.0, -4.0)}, "base": {"i": (-4.0, -4.0)}}
    made = replace(results, tests=tests, responses=answers, raw=raw, scoring="characters")
    table = duels(made).set_index("rival")
    assert table.loc["base", "decided"] == pytest.approx((-0.5 + 1.0) - (-2.0 + 1.0))


def test_the_ledger_leaves_out_times_of_runs_that_asked_nothing() -> None:
    ledgers = findings.LEDGERS | {"evaluate": {"tokens": 7, "this_run": findings.cost(0)}}
    table = spent(ledgers).set_index("what")
    assert np.isnan(table.loc["winner, standard merges, sample", "seconds"])
    assert table.loc["the search", "seconds"] == 653.5
    assert table["tokens"][table["part"] != "test"].sum() == 311_040 + 124_416 + 48_600 + 2_600_000 + 430_000


def test_dvc_draws_the_search_and_the_estimates(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    Path("dvc.yaml").write_text(yaml.safe_dump({"plots": pipeline["plots"]}))
    Path("data/report").mkdir(parents=True)
    for name, table in tables(results).items():
        table.to_csv(f"data/report/{name}.csv", index=False)
    shown = subprocess.run(["dvc", "plots", "show", "--json"], check=True, capture_output=True, text=True)
    drawn = {name: made[0]["content"]["data"]["values"] for name, made in json.loads(shown.stdout)["data"].items()}
    assert len(drawn["the search"]) == 2 * 16  # the best and the mean of each generation
    assert len(drawn["estimate against truth"]) == len(results.sample)
