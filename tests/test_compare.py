from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from merge3 import compare
from merge3.compare import holm, interval, leads, mcnemar
from merge3.items import Item


def test_the_interval_of_one_group_is_the_binomial_one() -> None:
    values = np.repeat([1.0, 0.0], [60, 140])
    low, high = interval(values, ["x"] * 200, seed=0)
    half = norm.ppf(0.975) * np.sqrt(0.3 * 0.7 / 200)
    assert (low, high) == (pytest.approx(0.3 - half, abs=0.01), pytest.approx(0.3 + half, abs=0.01))


def test_groups_are_resampled_apart() -> None:
    values, groups = np.repeat([1.0, 0.0], compare.SMALL), ["right"] * compare.SMALL + ["wrong"] * compare.SMALL
    assert interval(values, groups, seed=0) == (0.5, 0.5)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 240])
def test_intervals_hold_the_truth_about_as_often_as_they_say(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "RESAMPLES", 1000)
    generator, groups, held = np.random.default_rng(0), [str(n // size) for n in range(240)], 0
    for seed in range(200):
        low, high = interval((generator.random(240) < 0.6).astype(float), groups, seed)
        held += low <= 0.6 <= high
    assert 180 <= held <= 198  # 95 % of 200, within three standard errors


def test_small_groups_are_resampled_as_one_beside_the_large() -> None:
    values = np.array([1.0] * 40 + [0.0] * 40 + [1.0, 0.0] * 10)
    groups = ["right"] * 40 + ["wrong"] * 40 + [str(n) for n in range(20)]
    low, high = interval(values, groups, seed=0)
    alone = interval(values[80:], groups[80:], seed=0)
    assert (low, high) == (pytest.approx((40 + 20 * alone[0]) / 100), pytest.approx((40 + 20 * alone[1]) / 100))
    assert low < 0.5 < high


def test_all_right_or_all_wrong_is_no_certainty() -> None:
    tests = [Item(str(n), f"{n}?", ("a", "b"), 0) for n in range(20)]
    table = pd.DataFrame([[1.0] * 20, [0.0] * 20, [1.0] * 20], index=["right", "wrong", "too"])
    found = compare.scores(table, tests, "right", 0).set_index("model")
    z = norm.ppf(0.975)
    assert found.loc["right", ["low", "high"]].tolist() == pytest.approx([20 / (20 + z**2), 1])
    assert found.loc["wrong", ["low", "high"]].tolist() == pytest.approx([0, z**2 / (20 + z**2)])
    assert found.loc["too", ["lead_low", "lead_high"]].tolist() == [0, 0]
    assert found["holm_p"].tolist() == [1, pytest.approx(2 * found.loc["wrong", "mcnemar_p"]), 1]  # of two rivals


def test_the_verdict_names_who_won_and_who_is_better() -> None:
    tests = [Item(str(n), f"{n}?", ("a", "b"), 0) for n in range(40)]
    right = {"good": 40, "same": 21, "mine": 20, "bad": 0}
    table = pd.DataFrame([[1.0] * count + [0.0] * (40 - count) for count in right.values()], index=list(right))

    def said(*models: str) -> str:
        named = table.loc[["mine", *models]].rename(index={"mine": compare.EVOLVED})
        return compare.verdict(compare.scores(named, tests, compare.EVOLVED, 0), compare.EVOLVED)

    assert said("bad").startswith("the evolved merge beats every expert and standard merge (")
    assert said("bad", "same").startswith("the evolved merge is not shown to be better than same (")
    assert said("good", "bad").startswith("the evolved merge is worse than good (")
    both = said("good", "same")
    assert both.startswith("the evolved merge is worse than good and not shown to be better than same (")
    assert compare.unbeaten(compare.scores(table, tests, "mine", 0), "mine") == ["good", "same"]
    alone = compare.verdict(compare.scores(table.loc[["mine", "bad"]], tests, "mine", 0), "mine")
    assert alone.startswith("mine, which the search found nothing better than, beats every other expert")


def test_one_seed_one_interval() -> None:
    values = np.random.default_rng(1).random(50)
    assert interval(values, ["x"] * 50, seed=1) == interval(values, ["x"] * 50, seed=1)


def test_blocks_of_resamples_draw_what_all_at_once_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups = np.random.default_rng(1).random(257), ["x"] * 157 + ["y"] * 100
    monkeypatch.setattr(compare, "RESAMPLES", 1001)
    found = []
    for draws in (10**9, 10_000, 1):
        monkeypatch.setattr(compare, "DRAWS", draws)
        found.append(interval(values, groups, seed=1))
    assert found[0] == found[1] == found[2]


def test_mcnemar_is_the_sign_test_of_the_disagreements() -> None:
    first = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 30)
    second = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 30)
    assert mcnemar(first, second) == pytest.approx(2 * binom.cdf(2, 10, 0.5))
    assert mcnemar(first, second) == mcnemar(second, first)
    assert mcnemar(first, first) == 1.0


def test_holm_is_the_step_down_of_bonferronis() -> None:
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1.0, 1.0])
    assert holm(np.array([0.02])) == pytest.approx(0.02)
    assert holm(np.zeros(0)).size == 0


def test_holm_claims_what_a_test_after_test_would() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        p_values = generator.random(6) ** 3
        claimed, left = set[int](), 6
        for place in np.argsort(p_values):  # until the first that is not below .05 over the number left
            if p_values[place] > 0.05 / left:
                break
            claimed.add(int(place))
            left -= 1
        assert set(np.flatnonzero(holm(p_values) <= 0.05).tolist()) == claimed


def test_the_leads_by_group_are_those_of_each_group_alone() -> None:
    answers = np.random.default_rng(2).integers(0, 2, (2, 90)).astype(float)
    answers[1, 4] = np.nan
    tests = [Item(str(n), f"{n}?", ("a", "b"), 0, group="xyz"[n % 3]) for n in range(90)]
    found = leads(pd.DataFrame(answers, index=["ours", "theirs"]), tests, "ours", "theirs", 0)
    assert list(found) == ["x", "y", "z"]
    for place, lead in enumerate(found.values()):
        difference = answers[0, place::3] - answers[1, place::3]
        difference = difference[~np.isnan(difference)]
        assert lead["lead"] == pytest.approx(difference.mean())
        assert (lead["lead_low"], lead["lead_high"]) == interval(difference, ["x"] * len(difference), 0)
    same = leads(pd.DataFrame(answers, index=["ours", "theirs"]), tests, "ours", "ours", 0)
    assert set(same["y"].values()) == {0.0}


def test_the_best_standard_merge_is_one_beside_the_winner_if_there_is_one() -> None:
    answers = np.array([[1.0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 1]])
    tests = [Item(str(n), f"{n}?", ("a", "b"), 0, group="xy"[n % 2]) for n in range(4)]
    table = pd.DataFrame(answers, index=["ours", "better", "worse", "expert"])
    scored = compare.scores(table, tests, "ours", 0)
    scored["kind"] = ["winner", "standard merge", "standard merge", "expert"]
    found = compare.over_best_standard(scored, table, tests, "ours", 0)
    assert found == {"name": "better", "groups": leads(table, tests, "ours", "better", 0)}
    alone = scored[scored["kind"] != "standard merge"]
    assert compare.over_best_standard(alone, table, tests, "ours", 0) is None


def test_what_one_model_leaves_unfinished_moves_no_other_models_figures() -> None:
    answers = np.random.default_rng(3).integers(0, 2, (3, 60)).astype(float)
    tests = [Item(str(n), f"{n}?", ("a", "b"), 0, group="xy"[n % 2], form="uv"[n // 20 > 0]) for n in range(60)]
    table = pd.DataFrame(answers, index=["ours", "rambling", "other"])
    whole = compare.scores(table, tests, "ours", 0).set_index("model")
    table.loc["rambling", 20:] = np.nan
    found = compare.scores(table, tests, "ours", 0).set_index("model")
    same = [column for column in found.columns if column != "holm_p"]  # which is corrected for all
    pd.testing.assert_frame_equal(found.loc[["ours", "other"], same], whole.loc[["ours", "other"], same])
    alone = compare.scores(table.loc[["ours", "rambling"]].iloc[:, :20], tests[:20], "ours", 0).set_index("model")
    pd.testing.assert_series_equal(found.loc["rambling", same].drop("form v"), alone.loc["rambling"].drop("holm_p"))
    assert np.isnan(found.loc["rambling", "form v"])


def test_of_how_many_items_accuracies_are_is_said_where_it_is_not_the_same() -> None:
    table = pd.DataFrame(np.ones((2, 10)), index=["ours", "rambling"])
    assert compare.uneven(table) == ""
    table.loc["rambling", 7:] = np.nan
    assert "(ours 10, rambling 7)" in compare.uneven(table)


def test_what_the_winner_leaves_unfinished_counts_for_no_lead() -> None:
    answers = np.random.default_rng(4).integers(0, 2, (3, 60)).astype(float)
    tests = [Item(str(n), f"{n}?", ("a", "b"), 0, group="xy"[n // 20 > 0]) for n in range(60)]
    table = pd.DataFrame(answers, index=["ours", "one", "other"])
    table.loc["ours", 50:] = np.nan
    leads = ["lead", "lead_low", "lead_high", "mcnemar_p", "holm_p"]
    found = compare.scores(table, tests, "ours", 0)
    alone = compare.scores(table.iloc[:, :50], tests[:50], "ours", 0)
    pd.testing.assert_frame_equal(found[leads], alone[leads])
    assert found["accuracy"].tolist() == [answers[0, :50].mean(), *answers[1:].mean(axis=1)]


def test_who_left_half_of_the_items_is_not_compared() -> None:
    table = pd.DataFrame(np.ones((3, 10)), index=["ours", "half", "more"])
    table.loc["half", 5:] = np.nan
    table.loc["more", 6:] = np.nan
    kept, left = compare.comparable(table, ["ours"])
    assert list(kept.index) == ["ours", "more"]
    assert left == {"half": "5 of 10 held-out items scored"}
    with pytest.raises(ValueError, match="'half' has 5 of 10 held-out items scored, which is too few"):
        compare.comparable(table, ["ours", "half"])
