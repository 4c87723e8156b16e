import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from flows import estimate
from merge3 import cli, lineage, responses, study, surface
from merge3.estimate import ESTIMATORS, MIXED, SAMPLED, Known
from merge3.extract import METHODS
from merge3.irt import ItemParameters
from merge3.verify import stability


def world(merges=12, strangers=20, count=40, seed=0):
    """Two parents, merges that have their answers, and strangers."""
    rng = np.random.default_rng(seed)
    a, b = rng.lognormal(0.2, 0.4, count), rng.normal(0, 1, count)
    parents = (rng.random((2, count)) < expit(a - b)).astype(float)
    z = a * rng.normal(1, 0.5, (merges, 1)) - b + 1.5 * (parents.sum(axis=0) - 1)
    rows = np.vstack([parents, rng.random((merges, count)) < expit(z)])
    others = rng.random((strangers, count)) < expit(a * rng.normal(0, 1, (strangers, 1)) - b)
    names = ["a", "b", *(f"merge-{i}" for i in range(merges)), *(f"other-{i}" for i in range(strangers))]
    return responses.table(names, [f"x-{i}" for i in range(count)], np.vstack([rows, others]).astype(float))


def test_with_all_items_asked_every_pair_is_exact():
    draw = study.family(world(), ["a", "b"], "merge-*", 0, weights())
    table = study.study(draw, ["x"] * 40, (40,), 1)
    asked = table[table["items"] > 0]
    assert len(asked) > 30
    assert study.POOLED in set(asked["estimator"])
    np.testing.assert_allclose(asked[["error", "regret"]], 0, atol=1e-9)
    np.testing.assert_allclose(asked["spearman"], 1)


def weights(merges=12, seed=0):
    """Two coefficients that change by merge, and one that never does."""
    made = np.random.default_rng(seed).random((merges, 2))
    return pd.DataFrame({"a": made[:, 0], "b": 3 * made[:, 1], "c": 1.0}, index=[f"merge-{i}" for i in range(merges)])


def listed(*rows):
    return pd.DataFrame(rows, columns=["merge", "parent_a", "parent_b"])


def related(merges=40, count=200, seed=0):
    """A family whose merges' abilities are a smooth function of two weights, and the weights."""
    rng = np.random.default_rng(seed)
    genes = weights(merges, seed)
    a, b = rng.lognormal(0.2, 0.4, count), rng.normal(0, 1, count)
    theta = 2 * np.sin(2 * genes["a"].to_numpy()) - genes["b"].to_numpy() / 2
    rows = (rng.random((merges + 22, count)) < expit(a * np.append(theta, rng.normal(size=22))[:, None] - b)).astype(
        float
    )
    names = [*genes.index, "a", "b", *(f"other-{i}" for i in range(20))]
    return responses.table(names, [f"x-{i}" for i in range(count)], rows), genes


def test_estimates_pooled_over_the_weights_are_better_than_each_alone_where_the_score_is_smooth_in_them():
    table, genes = related()
    draw = study.family(table, ["a", "b"], "merge-*", 8, genes)
    found = study.study(draw, ["x"] * 200, (10,), 3, methods=("fisher",), estimators=("lineage", study.POOLED))
    alone, pooled = (found[found["estimator"] == name].iloc[0] for name in ("lineage", study.POOLED))
    assert pooled["spearman"] > alone["spearman"] + 0.05
    assert pooled["error"] < alone["error"]
    mixed = genes.sample(frac=1, random_state=0).set_axis(genes.index)
    draw = study.family(table, ["a", "b"], "merge-*", 8, mixed)
    wrong = study.study(draw, ["x"] * 200, (10,), 3, methods=("fisher",), estimators=(study.POOLED,))
    assert wrong["spearman"].iloc[-1] < pooled["spearman"]


def test_what_is_pooled_goes_through_the_relatives_and_keeps_the_error_that_scores_share():
    table, genes = related()
    case = study.family(table, ["a", "b"], "merge-*", 12, genes)(0)[0]
    near, there = case.weights
    case = replace(case, weights=(near, np.vstack([near[:3], there[3:]])))  # three candidates are where relatives are
    items, subset = ItemParameters(np.ones((200, 1)), np.zeros(200)), np.arange(50)
    known = Known(items, subset, np.full(50, 1 / 50), case.parents)
    scores, errors = np.full(len(case.candidates), 0.5), np.full(len(case.candidates), 0.3)
    alone, shared = (study._pooled(case, [replace(known, shared_error=error)], scores, errors) for error in (0.0, 0.2))
    np.testing.assert_allclose(alone[0, :3], case.relatives[:3].mean(axis=1), atol=0.02)
    assert alone[1].min() > surface.FLOOR
    np.testing.assert_array_equal(shared[0], alone[0])
    np.testing.assert_allclose(shared[1] ** 2 - alone[1] ** 2, (0.2 * 150 / 200) ** 2)


def test_weights_follow_their_merges_into_the_draws():
    genes = weights()
    table = world()
    case = study.family(table, ["a", "b"], "merge-*", 4, genes.sample(frac=1, random_state=1))(0)[0]
    assert case.weights is not None
    numbers = genes[["a", "b"]].to_numpy()
    cube = (numbers - numbers.min(axis=0)) / np.ptp(numbers, axis=0)
    by_answers = {row.tobytes(): gene for row, gene in zip(table.loc[genes.index].to_numpy(), cube, strict=True)}
    for rows, found in zip((case.relatives, case.candidates), case.weights, strict=True):
        np.testing.assert_allclose(found, [by_answers[row.tobytes()] for row in rows])
    left_out = study.rehearsals(case, 0)[1]
    np.testing.assert_array_equal(left_out.weights[1], case.weights[0][[1]])
    np.testing.assert_array_equal(left_out.weights[0], case.weights[0][[0, 2, 3]])


def test_without_weights_nothing_is_pooled():
    table = study.study(study.family(world(), ["a", "b"], "merge-*", 4), ["x"] * 40, (10,), 1)
    assert study.POOLED not in set(table["estimator"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.drop(index="merge-3"), "expected the weights of all 12 merges, got none of 'merge-3'"),
        (lambda w: pd.concat([w, w.iloc[[2]]]), "expected one row of weights a merge, got two of 'merge-2'"),
        (
            lambda w: w.astype(object).replace({"c": 1.0}, "much"),
            "expected finite weights, got 'much' as 'c' of 'merge-0'",
        ),
        (lambda w: w[["c"]], "expected weights that differ between the 12 merges, got 1 columns alike"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.family(world(), ["a", "b"], "merge-*", weights=change(weights()))


def test_relatives_are_no_candidates_and_are_paid_for():
    draw = study.family(world(), ["a", "b"], "merge-*", relatives=4)
    case = draw(0)[0]
    assert (len(case.relatives), len(case.candidates), len(case.strangers)) == (4, 8, 20)
    table = study.study(draw, ["x"] * 40, (10,), 1, methods=("uniform",), estimators=("mean",))
    assert table.loc[table["items"] == 10, "answers"].item() == pytest.approx(10 + 4 * 40 / 8)


def test_triplets_keep_merges_and_parents_out_of_the_strangers():
    listed = pd.DataFrame({"merge": ["merge-0", "merge-1"], "parent_a": ["a", "merge-0"], "parent_b": ["b", "b"]})
    cases = study.triplets(world(), listed)(3)
    assert len(cases) == 2
    assert all(len(case.strangers) == 12 - 2 + 20 for case in cases)
    np.testing.assert_array_equal(cases[1].parents, world().loc[["merge-0", "b"]])


def test_models_without_parents_are_split_and_only_what_needs_none_is_tried():
    table = study.study(study.leaderboard(world()), ["x"] * 40, (10,), 2)
    assert set(table["estimator"]) == {"mean", "weighted_mean", "ridge", "p_irt", "gp_irt"}
    assert not set(table.loc[table["method"] == "fisher", "estimator"]) & {"mean", "weighted_mean", "gp_irt"}


def test_estimators_that_need_a_sample_are_tried_with_the_methods_that_the_pipeline_allows_them():
    table = study.study(study.family(world(), ["a", "b"], "merge-*", 4), ["x"] * 40, (10,), 1)
    tried = table[table["items"] > 0].groupby("estimator")["method"].agg(set)
    for estimator, methods in SAMPLED.items():
        assert tried[estimator] == methods, estimator
    for mixture in MIXED:
        assert tried[mixture] == SAMPLED["weighted_mean"], mixture
    assert tried["p_irt"] == {*METHODS, study.ADAPTIVE}


def test_the_seed_decides_all():
    one, two, other = (
        study.study(study.family(world(), ["a", "b"], "merge-*"), ["x"] * 40, (5,), 1, seed, ("uniform",), ("p_irt",))
        for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, two)
    assert one["error"].iloc[1] != other["error"].iloc[1]


def test_the_figures_of_a_draw_are_as_worked_out_by_hand():
    tally = study.Tally()
    study._count(tally, np.array([0.5, 0.7, 0.7]), np.array([0.4, 0.6, 0.9]))
    study._count(tally, np.array([0.5, 0.6]), np.array([0.6, 0.6]))
    study._count(tally, np.array([0.5, 0.5]), np.array([0.4, 0.8]))
    assert tally.error == pytest.approx([40 / 3, 5, 20])
    assert tally.regret == pytest.approx([15, 0, 20])  # of equal estimates any may be taken
    assert tally.spearman == pytest.approx([np.sqrt(3) / 2, 0, 0])
    tally.coverage = [1.0, 0.5, 0.9]
    row = study._row(("m", "e", 10), tally, 7.5)
    assert (row["answers"], row["low"], row["high"]) == pytest.approx(
        (17.5, 5 + 0.1 * (25 / 3), 40 / 3 + 0.9 * (20 / 3))
    )
    assert (row["error"], row["regret"], row["coverage"]) == pytest.approx((115 / 9, 35 / 3, 0.8))


def test_each_draw_is_another():
    drawn = []
    study.study(
        lambda seed: drawn.append(seed) or study.leaderboard(world())(seed), ["x"] * 40, (5,), 3, 4, ("uniform",)
    )
    assert sorted(set(drawn)) == [4, 5, 6]


def test_the_recommended_pair_is_the_best_of_all_figures():
    row = {"low": 0.0, "high": 0.0, "answers": 5.0}
    table = pd.DataFrame(
        [
            {"method": "a", "estimator": "x", "items": 5, "error": 1.0, "spearman": 0.9, "regret": 0.0, **row},
            {"method": "b", "estimator": "x", "items": 5, "error": 2.0, "spearman": 0.8, "regret": 1.0, **row},
            {"method": "none", "estimator": "parents", "items": 0, "error": 0.1, "spearman": 1.0, "regret": 0.0, **row},
        ]
    )
    assert study.recommend(table)["method"].tolist() == ["a"]
    even = pd.DataFrame(
        [  # ranks 1, 3 and 3; 2, 1 and 1; 3, 2 and 2
            {"method": "a", "estimator": "x", "items": 5, "error": 1.0, "spearman": 0.5, "regret": 2.0, **row},
            {"method": "b", "estimator": "x", "items": 5, "error": 2.0, "spearman": 0.9, "regret": 0.0, **row},
            {"method": "c", "estimator": "x", "items": 5, "error": 3.0, "spearman": 0.7, "regret": 1.0, **row},
        ]
    )
    assert study.recommend(even)["method"].tolist() == ["b"]


def test_the_mean_of_the_parents_is_held_against_the_same_candidates():
    draw = study.family(world(), ["a", "b"], "merge-*", relatives=4)
    table = study.study(draw, ["x"] * 40, (5,), 1, methods=("uniform",), estimators=("mean",))
    truths = draw(0)[0].candidates.mean(axis=1)
    guess = world().loc[["a", "b"]].to_numpy().mean()
    row = table[table["items"] == 0].iloc[0]
    assert (row["method"], row["estimator"], row["answers"] >= 0) == ("none", "parents", True)
    assert row["error"] == pytest.approx(100 * np.abs(truths - guess).mean())
    assert row["regret"] == pytest.approx(100 * (truths.max() - truths.mean()))  # it tells none apart


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: study.family(world(), ["a", "nobody"]), "'nobody' is not in the table"),
        (lambda: study.family(world(), ["a", "b"], "merge-*", relatives=10), "three candidates or more"),
        (lambda: study.family(world(), ["a", "b", "a"]), "parents that differ, got 'a' more than once"),
        (lambda: study.triplets(world(), pd.DataFrame({"merge": ["a"]})), "got none called 'parent_a'"),
        (lambda: study.triplets(world(), listed(("merge-0", "merge-0", "b"))), "got 'merge-0' of 'merge-0' and 'b'"),
        (lambda: study.triplets(world(), listed(("merge-0", "b", "b"))), "got 'merge-0' of 'b' and 'b'"),
        (lambda: study.triplets(world(), listed(("merge-0", "a", "b"), ("merge-0", "b", "a"))), "several of 'merge-0'"),
    ],
)
def test_what_cannot_be_studied_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_the_commands_print_write_and_plot(tmp_path, capsys):
    path = tmp_path / "table.parquet"
    responses.write(path, world(merges=6, count=20))
    weights(6).to_csv(tmp_path / "weights.csv")
    case = [str(path), "--parents", "a", "b", "--merges", "merge-*"]
    quick = ["--counts", "5", "--draws", "1"]
    assert cli.main(["study", *case, *quick]) == 0
    assert "5 items: ask " in capsys.readouterr().out
    assert cli.main(["study", *case, *quick, "--weights", str(tmp_path / "weights.csv")]) == 0
    assert " pooled " in capsys.readouterr().out
    assert cli.main(["study", str(path), "--weights", str(tmp_path / "weights.csv")]) == 1
    assert "--weights speak of merges of --parents" in capsys.readouterr().err
    assert cli.main(["study", *case, *quick, "--json"]) == 0
    told = capsys.readouterr()
    assert {row["items"] for row in json.loads(told.out)} == {0, 5}
    assert f"{tmp_path / 'table.study.png'} shows the best of these figures" in told.err
    assert (tmp_path / "table.study.png").stat().st_size > 1000
    assert cli.main(["verify", *case, "--count", "5"]) == 0
    printed = capsys.readouterr().out
    assert "FAILS" not in printed
    assert "holds  eps-stability of lineage: eps 0." in printed
    assert cli.main(["verify", *case, "--count", "5", "--json"]) == 0
    assert all(check["holds"] for check in json.loads(capsys.readouterr().out))


def test_the_advice_says_what_the_pipeline_does_not_offer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert estimate.STUDIED <= study.STUDIED
    responses.write(tmp_path / "table.parquet", world())
    for seed, name in ((0, "p_irt"), (4, "ridge")):
        case = ["study", str(tmp_path / "table.parquet"), "--draws", "1", "--counts", "5", "--seed", str(seed)]
        assert cli.main(case) == 0
        advice = capsys.readouterr().out.partition("5 items: ask ")[2]
        assert f"estimate by {name} (" in advice
        assert ("The pipeline does not offer ridge: of the pairs above" in advice) == (name == "ridge")


@pytest.mark.parametrize(("items", "counts"), [(40, {10, 20}), (5, {5})])
def test_where_no_counts_are_given_they_are_those_that_there_are_items_for(items: int, counts: set[int]) -> None:
    draw = study.leaderboard(world(count=items))
    table = study.study(draw, ["x"] * items, draws=1, methods=("uniform",), estimators=("mean",))
    assert set(table["items"]) == counts


def test_a_small_table_is_studied_and_a_picture_that_cannot_be_written_is_refused_before(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    responses.write(path, world(count=12))
    assert cli.main(["study", str(path), "--draws", "1", "--json"]) == 0
    assert {row["items"] for row in json.loads(capsys.readouterr().out)} == {10}
    for picture, said in (
        ("x.docx", "expected a picture's ending, one of "),
        ("none/x.png", f"make {tmp_path / 'none'}"),
    ):
        assert cli.main(["study", str(path), "--draws", "0", "--plot", str(tmp_path / picture)]) == 1
        assert said in capsys.readouterr().err  # and not that there are no draws
    monkeypatch.setattr(os, "access", lambda place, mode: (place, mode) != (tmp_path / "x.png", os.W_OK))
    (tmp_path / "x.png").touch()
    assert cli.main(["study", str(path), "--draws", "0", "--plot", str(tmp_path / "x.png")]) == 1
    assert "x.png cannot be written: name another place" in capsys.readouterr().err


def test_a_picture_that_fails_leaves_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    responses.write(tmp_path / "table.parquet", world(count=12))
    monkeypatch.setattr(study, "plot", full)
    for form, shown in (([], "10 items: ask "), (["--json"], '"items": 10')):
        assert cli.main(["study", str(tmp_path / "table.parquet"), "--draws", "1", *form]) == 1
        told = capsys.readouterr()
        assert shown in told.out
        assert told.err.endswith("merge3 study: no space left on device\n")


def test_verify_looks_at_every_triplet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One candidate alone has no regret."""
    responses.write(tmp_path / "table.parquet", world())
    (tmp_path / "merges.csv").write_text("merge,parent_a,parent_b\n" + "".join(f"merge-{n},a,b\n" for n in range(12)))
    case = [str(tmp_path / "table.parquet"), "--triplets", str(tmp_path / "merges.csv")]
    assert cli.main(["verify", *case, "--count", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any(check["figures"]["regret"] > 0 for check in found if check["name"].startswith("eps-stability"))


@pytest.mark.parametrize("relatives", [0, 4])
def test_verify_checks_lineage_by_the_family_of_the_candidates(
    relatives: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    responses.write(tmp_path / "table.parquet", world())
    case = ["--parents", "a", "b", "--merges", "merge-*", "--relatives", str(relatives)]
    assert cli.main(["verify", str(tmp_path / "table.parquet"), *case, "--count", "5", "--json"]) == 0
    found = {check["name"]: check["figures"] for check in json.loads(capsys.readouterr().out)}
    (one,) = study.family(world(), ["a", "b"], "merge-*", relatives)(0)
    (family,) = lineage.fit_each(one.strangers, [(one.parents, one.relatives)])
    subset, weights = METHODS["uniform"](family.items, np.empty((2, 1)), 5, ["all"] * 40, 0)
    known = Known(family.items, subset, weights, one.parents, family=family.model, shared_error=family.shared_error)
    scores = np.array([ESTIMATORS["lineage"](row[subset], known).score for row in one.candidates])
    assert found["eps-stability of lineage"] == stability(scores, one.candidates.mean(axis=1)).figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--parents", "a", "b"], "--groups speak of a response table: name it"),
        (["verify", "--triplets", "x.csv"], "--groups speak of a response table: name it"),
        (["verify", "--groups", "-"], "--groups speak of a response table: name it"),
        (["verify", "--count", "5"], "--count, --parents, --triplets, --merges, --relatives and --groups speak of"),
        (["verify", "TABLE", "--relatives", "3"], "--relatives speak of merges of --parents: name them"),
        (["verify", "TABLE", "--merges", "m1*"], "--merges speak of merges of --parents: name them"),
        (
            ["study", "TABLE", "--merges", "m1*", "--relatives", "3"],
            "--relatives and --merges speak of merges of --parents: name them",
        ),
    ],
)
def test_options_that_speak_of_nothing_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    responses.write(tmp_path / "table.parquet", world())
    assert cli.main([argument.replace("TABLE", str(tmp_path / "table.parquet")) for argument in arguments]) == 1
    assert message in capsys.readouterr().err


def test_clones_are_neither_two_merges_nor_strangers() -> None:
    table = world()
    clones = pd.concat(
        [table, table.iloc[2:8].rename("again-{}".format), table.iloc[3:5].rename("merge-twin-{}".format)]
    )
    (case,) = study.family(clones, ["a", "b"], "merge-*", relatives=4)(0)
    rows = np.vstack([case.strangers, case.relatives, case.candidates])
    assert len(rows) == len(np.unique(rows, axis=0)) == 20 + 12


def test_what_a_study_cannot_use_is_said() -> None:
    table, broken = world(), world()
    broken.iloc[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"1 of 34 with missing answers \(the first: 'merge-1'\): leave out"):
        study.leaderboard(broken)
    draw = study.family(table, ["a", "b"], "merge-*")
    for draws, counts in ((0, (10,)), (1, (10, 41)), (1, (0,))):
        with pytest.raises(ValueError, match="counts between 1 and the 40 items"):
            study.study(draw, ["x"] * 40, counts, draws)
    with pytest.raises(ValueError, match="0 relatives or more, got -2"):
        study.family(table, ["a", "b"], "merge-*", relatives=-2)
    columns = {"merge": [], "parent_a": [], "parent_b": []}
    with pytest.raises(ValueError, match="one merge or more"):
        study.triplets(table, pd.DataFrame(columns))


def test_ridge_is_left_out_where_it_has_nobody_to_learn_from() -> None:
    listed = pd.DataFrame({"merge": ["merge-0"], "parent_a": ["a"], "parent_b": ["b"]})
    draw = study.triplets(world(merges=1, strangers=0), listed)
    table = study.study(draw, ["x"] * 40, (10,), 1)
    assert {"mean", "mp_irt", "lineage"} <= set(table["estimator"])
    assert "ridge" not in set(table["estimator"])


def test_names_that_look_like_numbers_and_ids_without_a_group(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = world()
    table.index = [str(n) for n in range(len(table))]
    responses.write(tmp_path / "table.parquet", table)
    (tmp_path / "merges.csv").write_text("merge,parent_a,parent_b\n2,0,1\n3,0,1\n4,0,1\n")
    case = ["study", str(tmp_path / "table.parquet"), "--triplets", str(tmp_path / "merges.csv"), "--draws", "1"]
    assert cli.main([*case, "--counts", "5", "--json"]) == 0
    assert {row["items"] for row in json.loads(capsys.readouterr().out)} == {0, 5}
    assert cli.main([*case, "--counts", "5", "--groups", ":"]) == 1
    assert "--groups ':': 40 of 40 item ids do not have it" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "table.parquet"), "--count", "0"]) == 1
    assert "--count must be between 1 and the 40 items, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--triplets", "", "list.csv: expected a CSV file in UTF-8 with the columns' names first: No columns"),
        ("--triplets", "merge,parent_a,parent_b\nmerge-0,merge-1,a,b\n", "Expected 3 fields in line 2, saw 4"),
        ("--triplets", "merge,parent_a,parent_b,merge\nmerge-0,a,b,merge-0\n", "got 2 called 'merge'"),
        ("--weights", "merge,x\nmerge-0,1,2\n", "list.csv: expected a CSV file in UTF-8"),
    ],
)
def test_a_list_that_is_no_table_is_named_and_no_row_of_it_is_shifted(
    tmp_path: Path, capsys: pytest.CaptureFixture, option: str, text: str, message: str
) -> None:
    responses.write(tmp_path / "table.parquet", world())
    case = ["study", str(tmp_path / "table.parquet"), option, str(tmp_path / "list.csv"), "--draws", "1"]
    case += ["--parents", "a", "b"] if option == "--weights" else []
    assert cli.main(case) == 1
    assert f"no file at {tmp_path / 'list.csv'}: expected a CSV file" in capsys.readouterr().err
    (tmp_path / "list.csv").write_text(text)
    assert cli.main(case) == 1
    assert message in capsys.readouterr().err


def test_a_study_of_too_few_models_says_how_many_it_needs() -> None:
    table = pd.DataFrame(np.eye(4), index=[f"m{n}" for n in range(4)])
    with pytest.raises(ValueError, match="expected 4 models or more whose answers differ, got 3"):
        study.leaderboard(table.iloc[[0, 1, 2, 2]])
    with pytest.raises(ValueError, match="got 2 parents, 0 relatives and 0 others: give more --relatives"):
        study.family(world(strangers=0), ["a", "b"], "merge-*")
    assert len(study.family(world(strangers=0), ["a", "b"], "merge-*", 1)(0)[0].candidates) == 11
    (case,) = study.leaderboard(table)(0)
    assert (len(case.candidates), len(case.strangers)) == (1, 3)


def test_intervals_learn_their_width_from_who_is_known_before_the_candidates_are_asked() -> None:
    case = study.family(world(), ["a", "b"], "merge-*", relatives=3)(0)[0]
    left_out = study.rehearsals(case, 0)
    np.testing.assert_array_equal(np.vstack([one.candidates for one in left_out]), case.relatives)
    for one in left_out:
        assert len(one.relatives) == 2
        assert not (one.relatives == one.candidates).all(axis=1).any()
        np.testing.assert_array_equal(one.parents, case.parents)
    assert study.rehearsals(study.family(world(), ["a", "b"], "merge-*")(0)[0], 0) == []
    alone = study.leaderboard(world())(0)[0]
    (held,) = study.rehearsals(alone, 0)
    rows = np.vstack([held.strangers, held.candidates])
    assert len(held.candidates) == round(len(alone.strangers) / 4)
    assert sorted(map(tuple, rows)) == sorted(map(tuple, alone.strangers))


def test_of_merges_with_parents_of_their_own_one_half_teaches_the_other_how_wide_intervals_are() -> None:
    rng = np.random.default_rng(0)
    scores, errors = rng.normal(0.5, 0.1, (1, 30)), np.full((1, 30), 0.01)
    truths = scores[0] + rng.normal(0, 0.03, 30)
    widening = study._by_halves(scores, errors, truths, 0)
    assert sorted(np.unique(widening, return_counts=True)[1]) == [15, 15]
    for i in range(30):  # no merge's own truth decides its interval
        moved = truths.copy()
        moved[i] += 0.5
        again = study._by_halves(scores, errors, moved, 0)
        assert again[i] == widening[i]
        assert (again > widening).sum() == 15
    np.testing.assert_array_equal(study._by_halves(scores[:, :1], errors[:, :1], truths[:1], 0), [1.0])


def test_a_family_with_one_relative_learns_its_width_without_the_error_of_those_that_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for error in (0.0, 0.5):
        monkeypatch.setattr(lineage, "SHARED_ERROR", error)
        found.append(
            [
                study.study(draw, ["x"] * 60, (10,), 2, methods=("fisher",), estimators=("lineage",))["coverage"].iloc[
                    -1
                ]
                for draw in (
                    study.family(world(14, count=60), ["a", "b"], "merge-*", relatives) for relatives in (1, 0)
                )
            ]
        )
    assert found[0][0] == found[1][0]
    assert found[0][1] < found[1][1] == 1


def test_nine_intervals_in_ten_hold_the_truth_where_relatives_teach_how_wide_they_are() -> None:
    draw = study.family(world(merges=50, count=60), ["a", "b"], "merge-*", relatives=12)
    table = study.study(draw, ["x"] * 60, (10,), 2, methods=("uniform",), estimators=("mean", "lineage"))
    assert table[table["items"] > 0]["coverage"].min() > 0.9  # as wide as the estimators say they hold less than eight


@pytest.mark.parametrize("relatives", [0, 4])
def test_no_candidate_moves_the_width_of_another(relatives: int) -> None:
    case = study.family(world(merges=14, count=60), ["a", "b"], "merge-*", relatives=relatives)(0)[0]

    def covered(rows: np.ndarray) -> float:
        draw = lambda seed: [replace(case, candidates=rows)]  # noqa: E731
        table = study.study(draw, ["x"] * 60, (10,), 1, methods=("fisher",), estimators=("lineage",))
        return table["coverage"].iloc[-1]

    together = covered(case.candidates)
    assert 0 < together < 1
    assert together == pytest.approx(np.mean([covered(row[None]) for row in case.candidates]))
