from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import psutil
import pytest
import world
import yaml
from conftest import CONFIGS, build, with_tokens

from flows.pipeline import experiment, pipeline
from flows.pipeline import run as run_command
from flows.serve import search
from flows.stage import SHARED, STOPPED
from merge3 import front, grading, items, mergefile, responses
from merge3.recipe import Recipe, standard_merges
from merge3.store import DamagedAnswers

ROOT = Path(__file__).parents[1]
TRAIN = yaml.safe_load((ROOT / "params.yaml").read_text())["experts"]["train"]
HEEDING = """\
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
runpy.run_module("flows.evolve", run_name="__main__")
"""


@pytest.fixture(scope="module")
def done(saved: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has run. Tests do not change it."""
    folder = tmp_path_factory.mktemp("world")
    world.write(folder, world.params(saved))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        world.run(world.params(saved))
    return folder


@pytest.fixture
def here(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the working directory."""
    folder = tmp_path / "world"
    shutil.copytree(done, folder)
    monkeypatch.chdir(folder)
    return folder


def change(values: dict[str, Any], section: str, **changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    changed[section].update(changes)
    return changed


# --- the whole road


def test_the_pipeline_ends_with_a_winner_measured_on_held_out_items(done: Path) -> None:
    scores = pd.read_csv(done / "data/evaluate/scores.csv")
    assert scores["kind"].tolist() == ["winner", *["standard merge"] * 3, "base", *["expert"] * 2]
    table = responses.read(done / "data/evaluate/responses.parquet")
    np.testing.assert_allclose(scores["accuracy"], table.mean(axis=1).loc[scores["model"]])
    test_ids = {item.id for item in items.read(done / "data/prepare/test.parquet")}
    assert set(table.columns) == test_ids
    assert "evolved merge" in (done / "data/report/index.html").read_text()
    assert "evolved merge" in (done / "data/report/result.txt").read_text()


def test_no_test_item_is_seen_before_evaluate(done: Path) -> None:
    search = items.read(done / "data/prepare/search.parquet")
    test = items.read(done / "data/prepare/test.parquet")
    assert not {item.content_hash for item in search} & {item.content_hash for item in test}
    assert len(search) + len(test) == 80
    asked = set(pd.read_parquet(done / "data/extract/subset.parquet")["id"])
    assert asked <= {item.id for item in search}
    assert set(responses.read(done / "data/population/responses.parquet").columns) == {item.id for item in search}


def test_the_history_has_a_row_a_candidate_that_says_what_it_was(done: Path) -> None:
    history = pd.read_csv(done / "data/evolve/history.csv")
    assert len(history) == 12
    genes = [name for name in history.columns if name.startswith("weight ")]
    assert len(genes) == 2 * 3  # experts x groups: a full fine-tune moves attention, mlp and rest
    assert ((history[genes] >= 0) & (history[genes] <= 1)).all(axis=None)
    assert (history["low"] <= history["estimate"]).all()
    assert (history["estimate"] <= history["high"]).all()
    ledger = json.loads((done / "data/evolve/ledger.json").read_text())
    assert ledger["search_tokens"] == history["tokens"].sum() > 0
    assert ledger["all_items_tokens"] > 4 * ledger["search_tokens"]
    assert ledger["relatives_tokens"] > 0
    spent = ledger["search_tokens"] + ledger["relatives_tokens"] + ledger["finalists_tokens"]
    assert ledger["this_run"]["tokens"] == spent  # no question is counted twice


def test_forced_again_every_asking_stage_asks_nothing_and_says_the_same(here: Path, saved: dict[str, Path]) -> None:
    kept = {
        path: (here / path).read_bytes()
        for path in (
            "data/respond/search.parquet",
            "data/respond/test.parquet",
            "data/population/responses.parquet",
            "data/evolve/history.csv",
            "data/evolve/finalists.csv",
            "data/evolve/winner.json",
            "data/evaluate/metrics.json",
        )
    }
    asking = ("respond", "population", "evolve", "evaluate")
    world.run(world.params(saved), *asking)
    ledgers = {name: json.loads((here / f"data/{name}/ledger.json").read_text()) for name in asking}
    ledgers |= {f"respond {split}": ledger for split, ledger in ledgers.pop("respond").items()}
    assert {name: ledger["this_run"]["tokens"] for name, ledger in ledgers.items()} == dict.fromkeys(ledgers, 0)
    assert ledgers["population"]["tokens"] > 0
    for path, content in kept.items():
        assert (here / path).read_bytes() == content, path


def test_a_killed_search_goes_on_where_it_was(here: Path, saved: dict[str, Path]) -> None:
    values = change(world.params(saved), "evolve", generations=25)
    world.write(here, values)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    command = [sys.executable, "-m", "flows.evolve"]
    shutil.rmtree(here / "data/evolve")
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not len(list(here.glob("data/evolve/answers/*/*.jsonl"))) > 20:
        assert killed.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {path: path.read_bytes() for path in here.glob("data/evolve/answers/*/*.jsonl")}
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    resumed = (here / "data/evolve/history.csv").read_bytes()
    ledger = json.loads((here / "data/evolve/ledger.json").read_text())
    asked = [path for path in here.glob("data/evolve/answers/*/*.jsonl") if path.read_bytes() != before.get(path)]
    assert ledger["distinct"] - len(before) <= len(asked) < ledger["distinct"]
    shutil.rmtree(here / "data/evolve")
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    assert (here / "data/evolve/history.csv").read_bytes() == resumed
    whole = json.loads((here / "data/evolve/ledger.json").read_text())
    one = pd.read_csv(here / "data/evolve/history.csv")["tokens"].max()
    assert whole["this_run"]["tokens"] - ledger["this_run"]["tokens"] >= (len(before) - 1) * one


def test_a_search_with_damaged_answers_goes_the_same_way(here: Path, saved: dict[str, Path]) -> None:
    before = (here / "data/evolve/history.csv").read_bytes()
    for number, path in enumerate(sorted(here.glob("data/evolve/answers/*/*.jsonl"))):
        content = bytearray(path.read_bytes())
        content[-30 - 11 * number] ^= 1  # in one line or another
        path.write_bytes(content)
    with pytest.warns(DamagedAnswers, match="set aside"):
        world.run(world.params(saved), "evolve")
    assert (here / "data/evolve/history.csv").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_search_has_a_best_so_far_and_goes_on(here: Path, saved: dict[str, Path], number: int) -> None:
    world.write(here, change(world.params(saved), "evolve", generations=8))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    command = [sys.executable, "-m", "flows.evolve"]
    whole = {}
    for run in ("whole", "stopped"):
        shutil.rmtree(here / "data/evolve")
        if run == "stopped":
            (here / "data/evolve").mkdir()
            (here / "data/evolve/winner.json").write_text("{}")  # of an earlier search
            search = subprocess.Popen(
                [sys.executable, "-c", HEEDING], env=environment, stderr=subprocess.PIPE, text=True
            )
            while not (here / "data/evolve/best.yaml").exists():
                assert search.poll() is None, search.communicate()[1]
                time.sleep(0.005)
            search.send_signal(number)
            said = search.communicate(timeout=300)[1]
            assert search.returncode == STOPPED
            line = said.splitlines()[-1]
            assert line.startswith("evolve: stopped after ")
            assert "the best so far is data/evolve/best.yaml, estimated 0." in line
            assert "Traceback" not in said
            assert not (here / "data/evolve/winner.json").exists()
            best = mergefile.read(here / "data/evolve/best.yaml").recipe.to_dict()
            assert best in json.loads((here / "data/evolve/recipes.json").read_text()).values()
            asked = pd.read_csv(here / "data/evolve/history.csv")
            assert 4 <= len(asked) <= 32
            same_candidates(asked, pd.read_csv(BytesIO(whole["history.csv"])).head(len(asked)))
            assert not list(here.glob("data/evolve/*.tmp"))
        subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
        for name in ("history.csv", "winner.json", "finalists.csv"):
            assert (
                whole.setdefault(name, (here / "data/evolve" / name).read_bytes())
                == (here / "data/evolve" / name).read_bytes()
            )


def test_stopped_after_any_generation_there_is_one_history(here: Path, saved: dict[str, Path]) -> None:
    names = ("history.csv", "finalists.csv", "winner.json", "best.yaml")
    whole = [Path("data/evolve", name).read_bytes() for name in names]
    for generations in (1, 2):
        shutil.rmtree("data/evolve")
        world.run(change(world.params(saved), "evolve", generations=generations), "evolve")
        assert pd.read_csv("data/evolve/history.csv")["generation"].nunique() == generations
        world.run(world.params(saved), "evolve")
        assert [Path("data/evolve", name).read_bytes() for name in names] == whole


def test_two_seeds_ask_other_candidates(here: Path, saved: dict[str, Path]) -> None:
    before = pd.read_csv("data/evolve/history.csv")
    world.run(world.params(saved) | {"seed": 1}, "evolve")
    assert not set(pd.read_csv("data/evolve/history.csv")["phenotype"]) & set(before["phenotype"])


def same_candidates(history: pd.DataFrame, other: pd.DataFrame) -> None:
    """What is known of them may differ: leaders that join later teach more of all."""
    known = ["items", "estimate", "low", "high"]
    pd.testing.assert_frame_equal(history.drop(columns=known), other.drop(columns=known))


def test_a_larger_budget_repeats_nothing(here: Path, saved: dict[str, Path]) -> None:
    before = pd.read_csv("data/evolve/history.csv")
    world.run(change(world.params(saved), "evolve", generations=5), "evolve")
    after = pd.read_csv("data/evolve/history.csv")
    same_candidates(after.head(len(before)), before)
    ledger = json.loads(Path("data/evolve/ledger.json").read_text())
    new = after["tokens"].sum() - before["tokens"].sum()
    assert ledger["this_run"]["tokens"] <= new + ledger["relatives_tokens"] + ledger["finalists_tokens"]


def test_a_budget_of_tokens_is_kept(here: Path, saved: dict[str, Path]) -> None:
    before = pd.read_csv("data/evolve/history.csv")
    one = before["tokens"].max()
    for budget, generations in ((1, 1), (8 * one, 2), (12 * one - 1, 2)):  # the first generation is always asked
        world.run(change(world.params(saved), "evolve", tokens=int(budget)), "evolve")
        history = pd.read_csv("data/evolve/history.csv")
        assert history["generation"].nunique() == generations
        same_candidates(history, before.head(len(history)))
        winner = json.loads(Path("data/evolve/winner.json").read_text())["phenotype"]
        assert winner in pd.read_csv("data/evolve/finalists.csv")["phenotype"].tolist()


def test_a_budget_of_tokens_is_kept_where_generations_differ_in_size(here: Path, saved: dict[str, Path]) -> None:
    values = change(world.params(saved), "evolve", strategy="como", objective="pareto")
    world.run(values, "evolve")
    before = pd.read_csv("data/evolve/history.csv")
    assert len(set(before.groupby("generation").size())) > 1
    first = before.groupby("generation")["tokens"].sum().iloc[:3].sum()
    world.run(change(values, "evolve", tokens=int(first) - 1), "evolve")
    history = pd.read_csv("data/evolve/history.csv")
    assert history["tokens"].sum() < first
    same_candidates(history, before.head(len(history)))


@pytest.mark.parametrize("strategy", ["cma", "bipop", "sep", "mixed", "random", "grid", "average"])
def test_every_strategy_can_search(here: Path, saved: dict[str, Path], strategy: str) -> None:
    world.run(change(world.params(saved), "evolve", strategy=strategy, generations=2, objective="worst"), "evolve")
    assert len(pd.read_csv("data/evolve/history.csv")) == (1 if strategy == "average" else 8)
    assert mergefile.read(Path("data/evolve/best.yaml")).recipe.method == "task_arithmetic"
    assert json.loads(Path("data/evolve/winner.json").read_text())["objective"] == "worst"


def test_a_search_begins_where_an_earlier_one_was_good(here: Path, saved: dict[str, Path]) -> None:
    shutil.copytree("data/evolve", "before")
    history = pd.read_csv("before/history.csv").drop_duplicates("phenotype", keep="last")
    best = json.loads(Path("before/recipes.json").read_text())[history.loc[history["estimate"].idxmax(), "phenotype"]]
    begun = [best["weights"][name][group][0] for group in ("attention", "mlp", "rest") for name in ("first", "second")]
    values = change(world.params(saved), "evolve", strategy="cma", warm_start="before", generations=1, population=20)
    world.run(values, "evolve")
    asked = pd.read_csv("data/evolve/history.csv").filter(like="weight ").to_numpy()
    assert len(asked) == 20
    assert np.abs(asked - begun).max() < 0.5  # five deviations: one candidate of twelve is its tenth
    assert np.abs(asked.mean(axis=0) - begun).max() < 0.1


def test_an_earlier_search_of_other_merges_is_refused(here: Path, saved: dict[str, Path]) -> None:
    shutil.copytree("data/evolve", "before")
    values = change(world.params(saved), "evolve", strategy="cma", warm_start="before", method="dare_ties")
    with pytest.raises(ValueError, match=r"none of the .* candidates in before is a merge by dare_ties"):
        world.run(values, "evolve")
    with pytest.raises(ValueError, match=r"expected history.csv and recipes.json of a search in nowhere"):
        world.run(change(world.params(saved), "evolve", strategy="cma", warm_start="nowhere"), "evolve")


def test_a_gain_is_over_the_start_which_answers_all_items(here: Path, saved: dict[str, Path]) -> None:
    before = json.loads(Path("data/evolve/ledger.json").read_text())
    world.run(change(world.params(saved), "evolve", objective="gain"), "evolve")
    ledger = json.loads(Path("data/evolve/ledger.json").read_text())
    one = before["all_items_tokens"] / before["distinct"]
    assert (before["start_tokens"], ledger["start_tokens"]) == (0, one)
    assert ledger["relatives_tokens"] == before["relatives_tokens"]
    finalists = pd.read_csv("data/evolve/finalists.csv")
    assert len(finalists) > 0
    assert json.loads(Path("data/evolve/winner.json").read_text())["objective"] == "gain"


def test_a_search_in_which_every_candidate_is_broken_says_so(here: Path, saved: dict[str, Path]) -> None:
    values = change(world.params(saved), "evolve", weights=[1e16, 1e18])
    with pytest.raises(ValueError, match="no candidate could be scored, for likelihoods that are not finite or"):
        world.run(values, "evolve")
    history = pd.read_csv(here / "data/evolve/history.csv")
    assert history["estimate"].isna().all()
    assert not (here / "data/evolve/winner.json").exists()


def test_the_standard_merges_are_among_the_finalists(here: Path, saved: dict[str, Path]) -> None:
    world.run(change(world.params(saved), "evolve", finalists=6), "evolve", "evaluate", "report")
    found = pd.read_csv("data/evolve/finalists.csv").set_index("phenotype")
    assert found["merge"].value_counts().drop("evolved").to_dict() == dict.fromkeys(
        standard_merges(["first", "second"]), 1
    )
    assert found.index.is_unique
    winner = json.loads(Path("data/evolve/winner.json").read_text())
    assert winner["merge"] == found.loc[winner["phenotype"], "merge"]
    scores = pd.read_csv("data/evaluate/scores.csv").set_index("model")
    rival = json.loads(Path("data/evaluate/metrics.json").read_text())["over_best_standard"]
    assert scores.loc[rival["name"], "accuracy"] == scores.loc[scores["kind"] == "standard merge", "accuracy"].max()
    for group, lead in rival["groups"].items():
        gap = scores.loc["evolved merge", f"group {group}"] - scores.loc[rival["name"], f"group {group}"]
        assert lead["lead"] == pytest.approx(gap)
        assert lead["lead_low"] <= lead["lead"] <= lead["lead_high"]


def test_a_standard_merge_that_wins_has_its_name_and_is_no_rival_of_its_own(here: Path, saved: dict[str, Path]) -> None:
    path = Path("data/evolve/winner.json")
    recipe = standard_merges(["first", "second"])["uniform average"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"merge": "uniform average", "recipe": recipe.to_dict()}))
    world.run(world.params(saved), "evaluate", "report")
    scores = pd.read_csv("data/evaluate/scores.csv")
    assert scores["model"].tolist() == ["uniform average", "task arithmetic", "plain TIES", "base", "first", "second"]
    assert scores["kind"].tolist() == ["winner", *["standard merge"] * 2, "base", *["expert"] * 2]
    figures = json.loads(Path("data/evaluate/metrics.json").read_text())
    assert "uniform average" not in [*figures["no_better_than"], figures["over_best_standard"]["name"]]
    assert figures["over_uniform_average"]["lead"] == 0
    said = Path("data/report/result.txt").read_text()
    assert "The uniform average, which the search found nothing better than, is not shown to be better than" in said
    assert "evolved merge" not in said


@pytest.mark.parametrize("strategy", ["pooled", "como"])
def test_a_front_has_its_hypervolume_and_its_knee_wins(here: Path, saved: dict[str, Path], strategy: str) -> None:
    values = change(world.params(saved), "evolve", strategy=strategy, objective="pareto", finalists=5)
    world.run(values, "evolve", "evaluate", "report")
    joined = json.loads(Path("data/evolve/ledger.json").read_text())["relatives_tokens"]
    assert (joined > 0) == (strategy == "pooled")  # como holds candidates against what it was told of others before
    history, found = pd.read_csv("data/evolve/history.csv"), pd.read_csv("data/evolve/front.csv")
    winner = json.loads(Path("data/evolve/winner.json").read_text())
    assert history[["estimate x", "estimate y"]].notna().all(axis=None)
    scores = found[["score x", "score y"]].to_numpy()
    assert found["front"].tolist() == front.nondominated(scores).tolist()
    assert found["phenotype"][found["knee"]].tolist() == [winner["phenotype"]]
    assert winner["hypervolume"] == pytest.approx(front.hypervolume(scores))
    shown = pd.read_csv("data/report/front.csv").set_index("model")
    assert shown.loc[winner["phenotype"], "kind"] == "knee"
    np.testing.assert_allclose(shown.loc[found["phenotype"], ["score x", "score y"]], scores)
    assert 'id="front"' in Path("data/report/index.html").read_text()
    world.run(world.params(saved), "evolve")
    assert not Path("data/evolve/front.csv").exists()


def test_a_weighted_sum_of_groups_can_be_searched_for(here: Path, saved: dict[str, Path]) -> None:
    asked = []
    for objective in ({"x": 1}, {"x": 1, "y": 1}, {"x": 0.2, "y": 0.2}):
        world.run(change(world.params(saved), "evolve", objective=objective), "evolve")
        asked.append(pd.read_csv("data/evolve/history.csv"))
    assert not asked[0]["weight first attention 0"].equals(asked[1]["weight first attention 0"])
    pd.testing.assert_frame_equal(asked[1], asked[2])


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp", "breadcrumbs", "della"])
def test_every_merge_method_can_be_searched(here: Path, saved: dict[str, Path], method: str) -> None:
    world.run(change(world.params(saved), "evolve", method=method, generations=1), "evolve", "evaluate", "report")
    made = json.loads(Path("data/evolve/recipes.json").read_text())
    assert {made[name]["method"] for name in pd.read_csv("data/evolve/history.csv")["phenotype"]} == {method}
    winner = json.loads(Path("data/evolve/winner.json").read_text())
    recipe = Recipe.from_dict(winner["recipe"])
    assert recipe.method == method or winner["merge"] in standard_merges(recipe.experts)
    merge = mergefile.read(Path("data/evolve/winner.yaml"))
    assert merge.recipe == recipe
    assert Path(merge.base, "config.json").exists()


def test_the_search_may_choose_the_method(here: Path, saved: dict[str, Path]) -> None:
    methods = ["linear", "ties", "della"]
    world.run(change(world.params(saved), "evolve", method=methods, generations=1, population=12), "evolve")
    tried = {recipe["method"] for recipe in json.loads(Path("data/evolve/recipes.json").read_text()).values()}
    assert {"ties", "della"} & tried
    assert tried <= set(methods)


@pytest.mark.parametrize(
    "method", ["mean", "p_irt", "gp_irt", "mp_irt", "gmp_irt", "bayes_mp_irt", "post_stratified", "parent_aware"]
)
def test_every_estimator_can_be_searched_with(here: Path, saved: dict[str, Path], method: str) -> None:
    values = change(change(world.params(saved), "estimate", method=method), "extract", method="uniform")
    world.run(values, "extract", "estimate", "evolve")
    assert pd.read_csv("data/evolve/history.csv")["estimate"].between(0, 1).all()


def test_an_imported_population_serves(here: Path, saved: dict[str, Path]) -> None:
    ids = [item.id for item in items.read(Path("data/prepare/search.parquet"))]
    generator = np.random.default_rng(0)
    cells = (generator.random((30, len(ids))) < generator.uniform(0.3, 0.7, (30, 1))).astype(float)
    responses.write(Path("board.parquet"), responses.table([f"{n:02d}" for n in range(30)], ids, cells))
    values = change(world.params(saved), "population", responses="board.parquet")
    world.run(values, "population", "calibrate")
    with pytest.raises(ValueError, match="margins needs a population of merges"):
        world.run(values, "extract")
    values = change(values, "extract", method="fisher")
    world.run(values, "extract")
    with pytest.raises(ValueError, match="with this population, got 'margin_irt'"):
        world.run(values, "estimate")
    world.run(change(values, "estimate", method="parent_aware"), "estimate", "evolve")
    members = pd.read_csv("data/population/models.csv", keep_default_na=False, dtype=str)
    assert (len(members), members["held_out"].tolist().count("True")) == (30, 3)
    assert sorted(members["model"]) == [f"{n:02d}" for n in range(30)]
    assert members["model"].tolist()[-3:] != ["27", "28", "29"]  # a leaderboard is sorted


def test_a_search_on_all_items_has_a_winner(here: Path, saved: dict[str, Path]) -> None:
    values = change(change(world.params(saved), "extract", items=48), "evolve", generations=1)
    world.run(values, "extract", "estimate", "evolve")
    history, finalists = pd.read_csv("data/evolve/history.csv"), pd.read_csv("data/evolve/finalists.csv")
    best = json.loads(Path("data/evolve/winner.json").read_text())["estimate"]
    assert best >= history["estimate"].max()
    assert (finalists["low"] == finalists["high"]).all()


def test_a_population_of_one_imported_model_is_refused(here: Path, saved: dict[str, Path]) -> None:
    ids = [item.id for item in items.read(Path("data/prepare/search.parquet"))]
    cells = np.tile(np.arange(len(ids)) % 2.0, (3, 1))
    responses.write(Path("board.parquet"), responses.table(["a", "b", "clone"], ids, cells))
    with pytest.raises(ValueError, match="got 3 of 1 distinct models"):
        world.run(change(world.params(saved), "population", responses="board.parquet"), "population")


def test_a_population_whose_models_all_miss_an_answer_is_refused(here: Path, saved: dict[str, Path]) -> None:
    ids = [item.id for item in items.read(Path("data/prepare/search.parquet"))]
    cells = np.random.default_rng(0).integers(0, 2, (30, len(ids))).astype(float)
    cells[np.arange(30), np.arange(30)] = np.nan
    responses.write(Path("board.parquet"), responses.table([f"{n}" for n in range(30)], ids, cells))
    values = change(world.params(saved), "population", responses="board.parquet")
    values = change(change(values, "extract", method="fisher"), "estimate", method="parent_aware")
    with pytest.raises(ValueError, match=r"all 48 search items scored; 30 of its 30 models miss some: leave out"):
        world.run(values, "population", "calibrate", "extract", "estimate")


# --- what is wrong is said


@pytest.mark.parametrize(
    ("section", "changes", "stage", "message"),
    [
        ("evolve", {"lambda": 1}, "evolve", "evolve has no parameter 'lambda'"),
        ("base", {"model": "nowhere/at-all"}, "base", "no model at 'nowhere/at-all'"),
        ("base", {"model": None}, "base", "either base.package or base.model"),
        ("experts", {"models": {"first": "nowhere"}}, "experts", "no model at 'nowhere'"),
        ("experts", {"models": None}, "experts", "either experts.models or experts.train"),
        (
            "prepare",
            {"benchmark": {"source": "none.jsonl", "test_share": 0.5}},
            "prepare",
            "no benchmark at none.jsonl",
        ),
        ("prepare", {"benchmark": {"source": "items.jsonl", "test_share": 1.0}}, "prepare", "inside"),
        ("prepare", {"benchmark": None}, "prepare", "either prepare.benchmark or prepare.problems"),
        (
            "prepare",
            {"benchmark": None, "problems": {"search": 0, "test": 1}},
            "prepare",
            "prepare.problems.search must be 1 or more, got 0",
        ),
        ("experts", {"models": {}}, "experts", "experts.models must be 1 entry or more, got {}"),
        ("experts", {"models": None, "train": {"steps": 1}}, "experts", "experts.train must have the keys"),
        ("experts", {"models": None, "train": TRAIN | {"rank": 0}}, "experts", "experts.train.rank must be 1 or more"),
        (
            "experts",
            {"models": None, "train": TRAIN | {"adapters": {"it": {"language": "it"}}}},
            "experts",
            "experts.train.adapters.it must have the keys",
        ),
        ("calibrate", {"dimensions": 0}, "calibrate", "calibrate.dimensions must be 1 or more, got 0"),
        ("extract", {"items": -1}, "extract", "extract.items must be 1 or more, got -1"),
        ("population", {"size": 1, "held_out": 1}, "population", "at least two models to fit"),
        ("population", {"weights": [0.5]}, "population", "population.weights must be two numbers"),
        ("experts", {"models": {"base": "m"}}, "experts", "not 'base'|no model at"),
        ("prepare", {"benchmark": {"source": "items.jsonl"}}, "prepare", "either test_split or test_share"),
        (
            "prepare",
            {"benchmark": {"source": "items.jsonl", "test_split": "x"}},
            "prepare",
            "test_split needs a prompt",
        ),
        (
            "prepare",
            {"benchmark": {"source": "items.jsonl", "test_share": 0.3, "options": "choices"}},
            "prepare",
            "options needs a prompt template",
        ),
        ("runtime", {"protable": True}, "respond", "runtime must have the keys"),
        ("runtime", {"device": "gpu"}, "respond", "device 'gpu' cannot be used here"),
        ("runtime", {"device": None}, "respond", "runtime.device must be str, got None"),
        ("runtime", {"portable": "false"}, "respond", "runtime.portable must be bool, got 'false'"),
        ("runtime", {"batch_tokens": 1.5}, "respond", r"runtime.batch_tokens must be int \| str, got 1.5"),
        (
            "studies",
            {"tiny": {"experts": "first", "groups": ["x"]}},
            "evolve",
            r"experts must be list\[str\], got 'first'",
        ),
        ("studies", {"tiny": {"experts": ["first"], "groups": []}}, "population", "groups must name one or more"),
        ("studies", {"tiny": {"experts": ["second"] * 2, "groups": ["x"]}}, "estimate", "each once, got"),
        (
            "studies",
            {"tiny": {"experts": ["first"], "groups": ["x"]}},
            "evaluate",
            "a merge of 'second', the study has",
        ),
        ("studies", {"tiny": {"experts": ["first"], "groups": ["x"]}}, "report", "data/evaluate is of other items"),
        ("studies", {"tiny": {"expert": ["first"], "groups": ["x"]}}, "extract", "studies.tiny must have the keys"),
        ("studies", {"tiny": {"experts": ["thrid"], "groups": ["x"]}}, "population", "has no expert 'thrid'"),
        ("evolve", {"weights": [0.0, 0.5, 1.0]}, "evolve", "evolve.weights must be two numbers"),
        ("estimate", {"method": "mean"}, "estimate", "mean needs extract.method uniform:"),
        (
            "estimate",
            {"method": "post_stratified"},
            "estimate",
            "post_stratified needs extract.method stratified or uniform",
        ),
        ("population", {"responses": "none.parquet"}, "population", "no response table at none.parquet"),
        ("calibrate", {"engine": "guess"}, "calibrate", "calibrate.engine must be one of"),
        ("calibrate", {"dimensions": 3}, "calibrate", "mirt"),
        ("extract", {"method": "best"}, "extract", "extract.method must be one of"),
        ("extract", {"items": 49}, "extract", "49"),
        ("estimate", {"method": "guess"}, "estimate", "estimate.method must be one of"),
        ("evolve", {"method": "average"}, "evolve", "merge method must be one of"),
        ("evolve", {"generations": 0}, "evolve", "evolve.generations must be 1 or more"),
        ("evolve", {"hours": -1}, "evolve", "evolve.hours must be above 0, got -1"),
        ("evolve", {"tokens": -1}, "evolve", "evolve.tokens must be 1 or more, got -1"),
        ("evolve", {"join": -1}, "evolve", "evolve.join must be 0 or more, got -1"),
        ("evolve", {"strategy": "como"}, "evolve", "evolve.strategy must be one of"),
        ("evolve", {"strategy": "cma", "objective": "pareto"}, "evolve", r"one of \['como', 'nsga2', 'pooled'\]"),
        ("evolve", {"objective": {"z": 1}}, "evolve", "weighs group 'z'; there are \\['x', 'y'\\]"),
        ("evolve", {"objective": "best"}, "evolve", "evolve.objective must be one of"),
        ("evolve", {"population": 2}, "evolve", "population must be 4 or more"),
        ("evaluate", {"sample": 1}, "evaluate", "evaluate.sample must be 2 or more"),
    ],
)
def test_wrong_parameters_are_said_and_refused(
    here: Path, saved: dict[str, Path], section: str, changes: dict[str, Any], stage: str, message: str
) -> None:
    kept = sorted(Path("data", stage).rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        world.run(change(world.params(saved), section, **changes), stage)
    assert sorted(Path("data", stage).rglob("*")) == kept or "no model at" in message


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"experts": ["first", "third"], "groups": ["x"]}, "has no expert 'third'|'third' was not asked"),
        ({"experts": ["first"], "groups": ["z"]}, "no search item has group 'z'"),
    ],
)
def test_a_study_of_what_is_not_there_is_refused(
    here: Path, saved: dict[str, Path], study: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        world.run(world.params(saved) | {"studies": {"tiny": study}}, "extract")
    with pytest.raises(ValueError, match=r"study must be one of \['tiny'\], got 'other'"):
        world.run(world.params(saved) | {"study": "other"}, "extract")


def test_what_was_made_for_another_study_is_refused_with_the_stage_to_run(here: Path, saved: dict[str, Path]) -> None:
    values, other = world.params(saved), {"experts": ["first", "second"], "groups": ["x"]}
    less = {**values, "study": "less", "studies": {"less": other, **values["studies"]}}
    for stage in ("estimate", "evolve"):
        with pytest.raises(ValueError, match=r"data/extract has items that are not .* run the stage extract again"):
            world.run(less, stage)
    for made, refused, stale in (
        ("population", "extract", "population"),
        ("calibrate", "extract", "calibrate"),
        ("extract", "evolve", "calibrate"),
    ):
        world.run(less, made)
        with pytest.raises(ValueError, match=f"data/{stale} is of other items .* run the stage {stale} again"):
            world.run(values, refused)


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("experts/manifest.json", "respond"),
        ("prepare/search.parquet", "population"),
        ("population/responses.parquet", "calibrate"),
        ("calibrate/items.parquet", "extract"),
        ("extract/subset.parquet", "estimate"),
        ("estimate/calibration.json", "evolve"),
        ("evolve/history.csv", "evaluate"),
    ],
)
def test_where_a_stage_was_not_run_it_is_named(here: Path, saved: dict[str, Path], missing: str, stage: str) -> None:
    (here / "data" / missing).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"data/{missing} is missing: run the stage {Path(missing).parent} first"
    ):
        world.run(world.params(saved), stage)


@pytest.mark.parametrize(
    ("damaged", "stage"), [("experts/manifest.json", "respond"), ("evolve/winner.json", "evaluate")]
)
def test_a_damaged_file_is_named(here: Path, saved: dict[str, Path], damaged: str, stage: str) -> None:
    (here / "data" / damaged).write_text('{"base": ')
    with pytest.raises(ValueError, match=f"data/{damaged} is damaged .*: run the stage"):
        world.run(world.params(saved), stage)


def test_a_winner_that_was_not_evaluated_is_not_reported(here: Path, saved: dict[str, Path]) -> None:
    path = Path("data/evolve/winner.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"estimate": 0.123}))
    with pytest.raises(ValueError, match=r"data/evaluate is of another winner .*: run evaluate first"):
        world.run(world.params(saved), "report")


def test_a_benchmark_without_answers_is_refused(here: Path, saved: dict[str, Path]) -> None:
    rows = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    Path("items.jsonl").write_text("".join(json.dumps({**row, "answer": None}) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"80 item\(s\) have no answer"):
        world.run(world.params(saved), "prepare")


def test_any_table_is_a_benchmark_through_templates(here: Path, saved: dict[str, Path]) -> None:
    table = [{"q": f"{n} plus 1?", "good": str(n + 1), "bad": "no", "part": "ab"[n % 2]} for n in range(20)]
    form = {"prompt": "Q: {{q}}\nA:", "options": ["{{bad}}", "{{good}}"], "answer": "good", "group": "part", "shots": 1}
    pd.DataFrame(table).to_csv("table.csv", index=False)
    world.run(world.params(saved) | prepare_from(source="table.csv", test_share=0.3, **form), "prepare")
    parts = {part: items.read(Path(f"data/prepare/{part}.parquet")) for part in ("search", "test")}
    assert {part: len(found) for part, found in parts.items()} == {"search": 14, "test": 6}
    assert parts["test"][0].prompt.startswith("Q: ")
    assert parts["test"][0].prompt.count("A:") == 2
    assert {item.group for item in parts["search"]} == {"a", "b"}
    splits = {name: datasets.Dataset.from_list(table[half]) for name, half in (("x", slice(12)), ("y", slice(12, 20)))}
    datasets.DatasetDict(splits).save_to_disk("saved")
    both = prepare_from(source="saved", split="x", test_split="y", **form)
    world.run(world.params(saved) | both, "prepare")
    assert len(items.read(Path("data/prepare/test.parquet"))) == 8
    with pytest.raises(ValueError, match="either test_split or test_share"):
        world.run(world.params(saved) | prepare_from(source="saved", split="x", **form), "prepare")
    with pytest.raises(ValueError, match="and may have"):
        world.run(world.params(saved) | prepare_from(source="saved", test_share=0.3, promt=""), "prepare")


def test_free_text_items_go_all_the_way(here: Path, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies of tiny models are noise: whether one has an even number of letters is right in half of the cases."""
    monkeypatch.setenv(grading.OWN, "world")
    rows = [
        {
            "id": f"q{n}",
            "prompt": f"Say {n}: ",
            "expected": ["0"],
            "group": "xy"[n % 2],
            "free": {"stop": "\0", "max_tokens": 2 + n % 5, "extract": "text", "match": "world:even"},
        }
        for n in range(80)
    ]
    Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree("data")
    with pytest.raises(ValueError, match="has no answer that could be scored"):  # all are truncated, none is wrong
        world.run(world.params(saved), "base", "experts", "prepare", "respond")
    stops = [chr(letter) for letter in range(32, 127)]
    for row in rows:
        row["free"] |= {"stop": stops, "max_tokens": 200, "extract": "text"}
    Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.run(world.params(saved))
    scores = pd.read_csv("data/evaluate/scores.csv")
    assert scores["accuracy"].between(0, 1).all()
    history = pd.read_csv("data/evolve/history.csv")
    assert history["estimate"].between(0, 1).all()


def prepare_from(**benchmark: Any) -> dict[str, Any]:
    return {"prepare": {"benchmark": benchmark, "problems": None}}


def test_an_expert_of_another_architecture_is_refused(here: Path, saved: dict[str, Path]) -> None:
    build(CONFIGS["qwen2"], 9).save_pretrained(here / "qwen")
    values = change(world.params(saved), "experts", models={"first": str(here / "qwen")})
    with pytest.raises(ValueError, match="model_type is 'qwen2'"):
        world.run(values, "experts", "respond")


def test_an_expert_with_tokens_of_its_own_is_searched_without_them_and_that_is_said(
    here: Path, saved: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with_tokens(saved["first"], here / "longer", "<|im_end|>")
    stages = ("base", "experts", "prepare", "respond")
    world.run(world.params(saved), *stages)
    plain = pd.read_parquet("data/respond/search.parquet")
    values = change(world.params(saved), "experts", models={"first": "longer", "second": str(saved["second"])})
    world.run(values, *stages)
    pd.testing.assert_frame_equal(pd.read_parquet("data/respond/search.parquet"), plain)
    assert "first has tokens that the base lacks (1, the first '<|im_end|>')" in capsys.readouterr().err


def test_weights_that_changed_under_their_name_are_refused(here: Path, saved: dict[str, Path]) -> None:
    shutil.copytree(saved["first"], here / "mine")
    values = change(world.params(saved), "experts", models={"first": "mine", "second": str(saved["second"])})
    world.run(values, "experts")
    shutil.copy(saved["second"] / "model.safetensors", here / "mine" / "model.safetensors")
    with pytest.raises(ValueError, match="the weights of mine changed"):
        world.run(values, "respond")


def command(module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
    )


def test_the_command_line_ends_with_one_paragraph(here: Path, saved: dict[str, Path]) -> None:
    world.write(here, change(world.params(saved), "extract", items=1000))
    ended = command("flows.extract")
    assert ended.returncode == 1
    assert ended.stderr.startswith("extract: ")
    assert "Traceback" not in ended.stderr
    world.write(here, world.params(saved) | {"evlove": {}})
    ended = command("flows.extract")
    assert "unknown section 'evlove'" in ended.stderr


def test_shared_parameters_are_those_of_the_file() -> None:
    assert set(SHARED) <= set(world.params({"base": Path("b"), "first": Path("f"), "second": Path("s")}))


def test_the_pipeline_is_dvc_repro(here: Path) -> None:
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    Path("dvc.yaml").write_text("stages: {one: {cmd: echo 1 > out, outs: [out]}}")
    pipeline.fn()
    assert Path("out").read_text() == "1\n"
    Path("dvc.yaml").write_text("stages: {one: {cmd: 'false', outs: [out]}}")
    with pytest.raises(ValueError, match="dvc repro ended with status"):
        pipeline.fn()


def test_stages_are_tasks_of_the_pipelines_run_and_the_last_fails_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tasks: list[str] = []

    def do(name: str, work: Callable[[], str | None]) -> str | None:
        tasks.append(name)
        said.append(f"[{name}")
        following = work()
        said.append(f"{name}]")
        return following

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.pipeline.served", lambda: True)
    monkeypatch.setattr("flows.pipeline.do", do)
    monkeypatch.setattr("flows.pipeline.say", said.append)
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    Path("dvc.yaml").write_text("stages: {one: {cmd: echo a}, two: {cmd: echo b}, three: {cmd: 'false'}}")
    with pytest.raises(ValueError, match="dvc repro ended with status"):
        pipeline.fn()
    assert tasks == ["one", "two", "three"]
    assert said.index("[one") < said.index("a") < said.index("one]") < said.index("[two") < said.index("b")
    assert "three]" not in said


def test_what_a_cancelled_run_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(line: str) -> None:
        raise KeyboardInterrupt(line)

    monkeypatch.setattr("flows.pipeline.served", lambda: True)
    monkeypatch.setattr("flows.pipeline.say", say)
    monkeypatch.setattr("flows.pipeline.GRACE", 0.2)
    file = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt, match="begun"):  # a child of its own, and it hears no Ctrl-C
        run_command("bash", "-c", f"trap '' INT; sleep 60 & echo $! > {file}; echo begun; wait")
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid := int(file.read_text())) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_search_of_the_ui_takes_the_parameters_of_now(here: Path, saved: dict[str, Path]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(world.params(saved)))
    world.call(search, changes={"generations": 1})
    assert set(pd.read_csv("data/evolve/history.csv")["generation"]) == {0}
    with pytest.raises(ValueError, match="evolve has no parameter 'generation'; it has"):
        world.call(search, changes={"generation": 1})
    with pytest.raises(ValueError, match=r"evolve\.generations must be int, got '1'"):
        world.call(search, changes={"generations": "1"})


def test_an_experiment_finds_what_one_that_was_stopped_was_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ask.py").write_text(
        "import os; from pathlib import Path; from flows.report import place; from merge3.shared import Shared\n"
        "store, key = Shared(Path('answers'), os.environ['MERGE3_SHARED']), {'kind': 'x'}\n"
        "found = store.get(key); print('found', sorted(found))\n"
        "store.put(key, {'a': (-1.0,)}); assert found; print(place())\n"
    )
    stage = {"cmd": f"{sys.executable} ask.py", "deps": ["ask.py"], "params": ["evolve"], "outs": ["answers"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"evolve": stage}}))
    Path("params.yaml").write_text("evolve: {generations: 5}\n")
    commands = ["git init -q", "git config user.name tester", "git config user.email t@example.org", "dvc init -q"]
    for command in (*commands, "git add --all", "git commit -q -m Begin"):
        subprocess.run(command.split(), check=True)
    with pytest.raises(ValueError, match="ended with status"):
        world.call(experiment, changes={"evolve.generations": 2})
    world.call(experiment, changes={"evolve.generations": 2})
    said = capfd.readouterr().out
    assert re.findall("found .*", said) == ["found []", "found ['a']"]
    name = subprocess.run(["dvc", "exp", "list", "--name-only"], check=True, capture_output=True, text=True).stdout
    assert f"`dvc exp apply {name.strip()}`, then `data/report/index.html`" in said


def test_an_experiment_leaves_parameters_and_results_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("evolve: {generations: 5}\n")
    Path("dvc.yaml").write_text("stages: {evolve: {cmd: cp params.yaml out, params: [evolve], outs: [out]}}\n")
    for command in ("git init -q", "git config user.name tester", "git config user.email t@example.org", "dvc init -q"):
        run(*command.split())
    world.call(pipeline)
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "Run")
    world.call(experiment, changes={"evolve.generations": 2})
    assert Path("out").read_text() == Path("params.yaml").read_text() == "evolve: {generations: 5}\n"
    assert '"generations": 2' in run("dvc", "exp", "show", "--json")
    assert not run("git", "status", "--porcelain")
