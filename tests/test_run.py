from __future__ import annotations

import html
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge3 import cli, compare, items, live, mergefile, models, run
from merge3.estimate import Z90
from merge3.extract import MARGINS
from merge3.items import FreeText, Item
from merge3.live import open_asker
from merge3.recipe import constant, standard_merges

NAMES = ("first", "second")
BUDGET = (run.JOIN + 1) * run.GENERATION  # leaders join before the last generation


@pytest.fixture(scope="module")
def questions() -> list[Item]:
    return [
        Item(f"q{n}", f"Say {n}: ", (f"{n}a", f"{n + 1}b", f"c{n}"), n % 3, "x" if n < 100 else "y") for n in range(200)
    ]


def experts(saved: dict[str, Path]) -> dict[str, str]:
    return {name: str(saved[name]) for name in NAMES}


@pytest.fixture(scope="module")
def done(
    saved: dict[str, Path], questions: list[Item], tmp_path_factory: pytest.TempPathFactory
) -> tuple[run.Result, list[run.Progress], Path]:
    """A run, what it told, and its folder. Tests do not change it."""
    folder, told = tmp_path_factory.mktemp("run"), list[run.Progress]()
    found = run.run(
        saved["base"], experts(saved), questions, folder / "out", budget=BUDGET, dtype="float32", tell=told.append
    )
    return found, told, folder


def test_a_run_ends_with_a_model_measured_on_items_it_did_not_see(done: tuple) -> None:
    found, _, folder = done
    assert AutoModelForCausalLM.from_pretrained(found.out).num_parameters() > 0
    assert mergefile.read(folder / "out" / "merge.yaml") == found.merge
    assert found.scores["kind"].tolist() == ["winner", "base", "expert", "expert", *["standard merge"] * 3]
    assert found.accuracy == found.scores["accuracy"][0]
    assert found.estimate.low <= found.estimate.score <= found.estimate.high
    assert "held-out items" in (folder / "out" / "README.md").read_text()
    assert len(found.history) == BUDGET
    assert found.verdict.startswith("the evolved merge")


def test_a_run_has_a_report_of_what_it_found_tried_and_spent(done: tuple, questions: list[Item]) -> None:
    found, told, folder = done
    assert found.report == folder / "out.store" / "report" / "index.html"
    page = found.report.read_text()
    assert f"<b>{100 * found.accuracy:.1f}%</b>" in page
    assert found.report.as_posix() == found.to_dict()["report"]

    def table(name: str) -> pd.DataFrame:
        return pd.read_csv(found.report.with_name(f"{name}.csv"))

    shown = table("models").set_index("model")["accuracy"]
    assert shown.to_dict() == pytest.approx(found.scores.set_index("model")["accuracy"].to_dict())
    assert table("candidates")["phenotype"].tolist() == found.history["phenotype"].tolist()
    spent, tokens = table("ledger"), found.tokens
    parts = {"search": ("search", "leaders"), "finalists": ("finalists",), "preparation": ("preparation",)}
    for part, names in parts.items():
        assert spent["tokens"][spent["part"] == part].sum() == sum(tokens[name] for name in names)
    assert spent["seconds"].sum() == pytest.approx(told[-1].seconds)
    items = table("items")
    assert len(items) == 120
    assert items["weight"].sum() == pytest.approx(1.0)
    assert items["weight"].notna().sum() == run.ASKED
    assert table("duels")["decided"].notna().all()  # every raw answer is there to be shown
    assert not (found.report.parent / "estimates.csv").exists()
    assert f"merge3 merge {folder}/out.store/winner.yaml my-model" in page
    assert "merge3 run " not in page  # whose items were a list


def test_the_winners_written_model_has_the_accuracy_that_is_told(done: tuple, questions: list[Item]) -> None:
    found, _, _ = done
    model, tokenizer = (auto.from_pretrained(found.out) for auto in (AutoModelForCausalLM, AutoTokenizer))
    right = []
    for item in run.split(questions, run.TEST_SHARE, 0)["test"]:
        start, scores = len(tokenizer(item.prompt)["input_ids"]), []
        for option in item.options:
            tokens = torch.tensor([tokenizer(item.prompt + option)["input_ids"]])
            with torch.inference_mode():
                logits = model(tokens).logits[0].double().log_softmax(-1)
            scores.append(sum(float(logits[p - 1, tokens[0, p]]) for p in range(start, tokens.shape[1])))
        right.append(int(np.argmax(scores)) == item.answer)
    assert np.mean(right) == pytest.approx(found.accuracy)


def test_no_search_question_is_a_test_question(done: tuple, questions: list[Item]) -> None:
    found, _, folder = done
    parts = run.split(questions, run.TEST_SHARE, 0)
    test = {item.content_hash for item in parts["test"]}
    assert len(test) == 80
    asked = [set(line_items(path)) for path in (folder / "out.store" / "answers").glob("*/*.jsonl")]
    tested = [kept & test for kept in asked if kept & test]
    evolved = found.merge.recipe not in standard_merges(found.merge.recipe.experts).values()
    assert len(tested) == evolved + 3 + 3  # the winner, base and experts, standard merges
    assert all(kept == test for kept in tested)


def line_items(path: Path) -> list[str]:
    return [json.loads(line)[0] for line in path.read_text().splitlines()[1:]]


def test_a_run_in_which_no_leader_joins_chooses_among_merges_that_answered_everything(
    saved: dict[str, Path], questions: list[Item], tmp_path: Path
) -> None:
    told = list[run.Progress]()
    found = run.run(
        saved["base"], experts(saved), questions, tmp_path / "out", budget=12, dtype="float32", tell=told.append
    )
    assert found.tokens["leaders"] == 0
    assert told[-1].done <= told[-1].total
    searched = {item.content_hash for item in run.split(questions, run.TEST_SHARE, 0)["search"]}
    kept = [set(line_items(path)) for path in (tmp_path / "out.store" / "answers").glob("*/*.jsonl")]
    assert sum(searched <= answered for answered in kept) >= 3 + run.POPULATION + 3  # parents, merges; in the end
    assert found.estimate.low == found.estimate.score == found.estimate.high


def test_progress_rises_to_its_end(done: tuple) -> None:
    found, told, _ = done
    stages = ["parents", "population", "search", "finalists", "test"]
    assert list(dict.fromkeys(event.stage for event in told)) == stages
    counts = [event.done for event in told]
    assert counts == sorted(counts)
    assert counts[-1] <= told[-1].total
    assert told[-1].left is not None
    speeds = [one.left * one.tokens / one.seconds / (one.total - one.done) for one in told if one.left is not None]
    assert speeds == pytest.approx([speeds[0]] * len(speeds))  # what is left takes as long an answer as what was done
    assert told[-1].tokens == found.tokens["this_run"] > 0
    assert not any(event.kept for event in told if event.stage in stages[:2])
    assert next(event.kept for event in told if event.stage == "search") == 0
    best = told[-1].best
    assert best is not None
    assert (best.score, best.low) in set(zip(found.history["estimate"], found.history["low"], strict=True))
    assert 0 < found.tokens["leaders"] < found.tokens["search"] < found.tokens["all_items"]


def test_a_run_again_asks_nothing_and_finds_the_same(
    done: tuple, saved: dict[str, Path], questions: list[Item], tmp_path: Path
) -> None:
    first, _, folder = done
    items.write(tmp_path / "items.parquet", questions)
    shutil.copytree(folder / "out.store", tmp_path / "kept")
    told = list[run.Progress]()
    again = run.run(
        saved["base"],
        experts(saved),
        tmp_path / "items.parquet",
        tmp_path / "out",
        budget=BUDGET,
        dtype="float32",
        store=tmp_path / "kept",
        tell=told.append,
    )
    assert all(event.kept == event.done for event in told)
    replaced = "kept holds another run's winner and report, which this one's will replace"
    assert [replaced in line for line in again.notes] == [False] * len(first.notes) + [True]
    assert again.tokens == {**first.tokens, "this_run": 0}
    pd.testing.assert_frame_equal(again.scores, first.scores)
    pd.testing.assert_frame_equal(again.history, first.history)
    written = (folder / "out" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == written
    page = tmp_path / "kept" / "report" / "index.html"
    (command,) = [html.unescape(line) for line in page.read_text().splitlines() if "merge3 run --base" in line]
    words = shlex.split(command[command.index("merge3 run") :])
    given = vars(cli.parser().parse_args(words[1:]))
    assert given["expert"] == [f"{name}={saved[name]}" for name in NAMES]
    assert (given["items"], given["store"]) == (str(tmp_path / "items.parquet"), tmp_path / "kept")
    assert (given["budget"], given["seed"], given["dtype"], given["test_share"]) == (BUDGET, 0, "float32", None)


def test_a_stopped_run_keeps_the_best_so_far_and_goes_on(
    done: tuple, saved: dict[str, Path], questions: list[Item], tmp_path: Path
) -> None:
    """A process of the command, and a real signal."""
    first, _, _ = done
    items.write(tmp_path / "items.parquet", questions)
    parents = [f"--expert={name}={saved[name]}" for name in NAMES]
    command = [sys.executable, "-m", "merge3.cli", "run", f"--base={saved['base']}", *parents, "--dtype=float32"]
    command += ["--items=items.parquet", "--out=out", f"--budget={BUDGET}"]
    run_, best = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True), tmp_path / "out.store"
    while not (best / "best.yaml").exists():
        assert run_.poll() is None, run_.communicate()[1]
        time.sleep(0.005)
    run_.send_signal(signal.SIGTERM)
    said = run_.communicate(timeout=60)[1]
    assert run_.returncode == cli.STOPPED
    assert "Traceback" not in said
    assert "best so far is out.store/best.yaml, estimated " in said.splitlines()[-1]
    assert mergefile.read(best / "best.yaml").recipe.method == "task_arithmetic"
    assert not (tmp_path / "out").exists()
    told = list[run.Progress]()
    again = run.run(
        saved["base"], experts(saved), questions, tmp_path / "out", budget=BUDGET, dtype="float32", tell=told.append
    )
    assert told[0].kept == told[0].done > 0
    assert told[-1].kept < told[-1].done
    assert 0 < again.tokens["this_run"] < first.tokens["this_run"] - first.tokens["preparation"]
    pd.testing.assert_frame_equal(again.history, first.history)
    pd.testing.assert_frame_equal(again.scores, first.scores)


def test_the_result_is_plain_values(done: tuple) -> None:
    found, _, folder = done
    plain = json.loads((folder / "out.store" / "result.json").read_text())
    assert plain == json.loads(json.dumps(found.to_dict()))
    assert plain["recipe"]["experts"] == list(NAMES)
    assert compare.unbeaten(found.scores, compare.EVOLVED)  # random models: nothing is shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 11}, "budget must be 12"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"experts": {"base": "x"}}, r"is not 'base': \['base'\]"),
        ({"experts": {"a/b": "x", "-c": "y"}}, r"\['a/b', '-c'\]"),
        ({"experts": {"a": "nowhere"}}, "expert a: 'nowhere' is neither"),
        ({"base": "nowhere"}, "base: 'nowhere' is neither"),
        ({"items": "none.jsonl"}, "no benchmark at none.jsonl"),
        ({"store": __file__}, "test_run.py is a file: name another place"),
        ({"out": "."}, r"'\.' names none: give it a name"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_asked(
    changes: dict, message: str, saved: dict[str, Path], questions: list[Item], tmp_path: Path
) -> None:
    asked = {"base": saved["base"], "experts": experts(saved), "items": questions, "out": tmp_path / "out"} | changes
    with pytest.raises((ValueError, FileNotFoundError, NotADirectoryError), match=message):
        run.run(**asked)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(
    saved: dict[str, Path], questions: list[Item], tmp_path: Path
) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        run.run(saved["base"], experts(saved), questions, tmp_path)


def test_an_expert_that_changes_while_it_is_asked_is_noticed(
    saved: dict[str, Path], questions: list[Item], tmp_path: Path
) -> None:
    shutil.copytree(saved["second"], tmp_path / "second")
    asker = open_asker(str(saved["base"]), {"a": str(saved["first"]), "b": str(tmp_path / "second")}, tmp_path / "kept")
    asker.ask(constant("linear", {"a": 1.0, "b": 1.0}), questions[:2])
    weights = tmp_path / "second" / "model.safetensors"
    weights.write_bytes((saved["first"] / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"the files of 'b' in .* changed while it was asked; start again"):
        asker.ask(constant("linear", {"a": 1.0, "b": 1.0}), questions[2:4])


def test_what_base_and_experts_need_is_by_how_each_is_stored(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = models.load(saved["base"], torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    models.save_tokenizer(models.load_tokenizer(saved["base"]), tmp_path / "half")
    needed = list[int]()
    monkeypatch.setattr(live, "home", lambda device, size: needed.append(size) or device)
    open_asker(str(tmp_path / "half"), {"wide": str(saved["first"])}, tmp_path / "kept")
    assert needed == [(2 + 4) * half.num_parameters()]


def test_the_settings_are_the_pipelines() -> None:
    params = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    evolve = params["evolve"]
    assert (params["extract"]["method"], params["estimate"]["method"]) == (MARGINS, run.ESTIMATOR)
    assert (evolve["strategy"], evolve["population"], evolve["sigma"]) == (run.STRATEGY, run.GENERATION, run.SIGMA)
    assert (tuple(evolve["weights"]), tuple(evolve["densities"])) == (run.WEIGHTS, run.DENSITIES)
    assert evolve["knots"] == run.KNOTS
    assert (evolve["finalists"], evolve["finalist_items"]) == (run.FINALISTS, run.FRESH)
    assert tuple(params["population"]["totals"]) == run.TOTALS
    assert params["extract"]["items"] == run.ASKED
    assert (evolve["generations"], evolve["join"]) == (run.BUDGET // run.GENERATION, run.JOIN)


def test_what_is_held_out_is_what_the_call_says_or_the_benchmark_or_four_tenths(
    questions: list[Item], tmp_path: Path
) -> None:
    items.write(tmp_path / "items.parquet", questions)
    (tmp_path / "it.yaml").write_text(f"source: {tmp_path / 'items.parquet'}\ntest_share: 0.5\n")
    for given, share, held in (
        (questions, None, run.TEST_SHARE),
        (questions, 0.3, 0.3),
        (tmp_path / "items.parquet", None, run.TEST_SHARE),
        (str(tmp_path / "items.parquet"), 0.3, 0.3),
        (tmp_path / "it.yaml", None, 0.5),
        (tmp_path / "it.yaml", 0.3, 0.3),
    ):
        assert run.parts_of(given, share, 1) == run.split(questions, held, 1)
    (tmp_path / "it.yaml").write_text("source: org/data\nprompt: x\ntest_split: test\n")
    with pytest.raises(ValueError, match="has its own test_split: leave out the test share"):
        run.parts_of(tmp_path / "it.yaml", 0.3, 1)


def test_what_could_not_be_scored_is_said_and_counted(saved: dict[str, Path], tmp_path: Path) -> None:
    """A third of the questions, a group, is beyond the context: they are left out, and no count is of them."""
    asked = [
        Item(
            f"q{n}", f"{'' if n % 3 else 'long ' * 600}Say {n}: ", (f"{n}a", f"{n + 1}b"), n % 2, "y" if n % 3 else "x"
        )
        for n in range(90)
    ]
    said: list[str] = []
    found = run.run(saved["base"], experts(saved), asked, tmp_path / "out", budget=13, dtype="float32", say=said.append)
    parts = run.split(asked, run.TEST_SHARE, 0)
    short = {part: sum("long" not in item.prompt for item in of) for part, of in parts.items()}
    assert found.items == short
    outlook = [line for line in said if "answers are kept in" in line]
    assert [line for line in said if line not in outlook] == list(found.notes)
    assert any(line.startswith("budget 13: 12 candidates") for line in said)
    left = len(parts["search"]) - short["search"]
    assert any(line.startswith(f"{left} of {len(parts['search'])} search items are left out") for line in said)
    assert "no search item is left of x: the search is for the other groups alone" in said
    assert any("search items:" in line and "the context is" in line for line in said)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"on {short['test']} items that the search did not see, in float32" in card
    assert f"of {short['search']} other items" in card.replace("\n", " ")
    page = (tmp_path / "out.store" / "report" / "index.html").read_text()
    assert f"measured on {short['test']} items, questions that it had never seen" in page
    assert f"standard merges on {short['test']} held-out items" in page
    assert ("and leaders on the way all of them" in card) == (found.tokens["leaders"] > 0)
    assert json.loads((tmp_path / "out.store" / "result.json").read_text())["items"] == short


def test_an_expert_with_the_bases_name_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be called 'base'"):
        open_asker(str(saved["base"]), {"base": str(saved["first"])}, tmp_path)


def test_a_standard_merge_that_wins_is_named_and_is_no_rival_of_its_own(
    saved: dict[str, Path], questions: list[Item], tmp_path: Path
) -> None:
    """What the uniform average answers is made right."""
    asker = open_asker(str(saved["base"]), experts(saved), tmp_path / "asked", dtype="float32")
    answers = asker.ask(constant("task_arithmetic", dict.fromkeys(NAMES, 0.5)), questions).answers
    assert answers is not None
    made = [replace(item, answer=int(np.argmax(answer))) for item, answer in zip(questions, answers, strict=True)]
    found = run.run(saved["base"], experts(saved), made, tmp_path / "out", budget=BUDGET, dtype="float32")
    assert found.scores["model"].tolist() == ["uniform average", "base", *NAMES, "task arithmetic", "plain TIES"]
    assert found.scores["kind"].tolist() == ["winner", "base", *["expert"] * 2, *["standard merge"] * 2]
    assert found.verdict.startswith("uniform average, which the search found nothing better than, is not shown")
    assert found.verdict.count("uniform average") == 1
    note = "the search found nothing better than uniform average: it is the winner"
    assert note in found.notes
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The winner is uniform average: the search found nothing better." in card
    assert "evolved merge" not in card


@pytest.mark.parametrize("score", [0.03, 0.5, 0.95])
def test_the_standard_error_of_an_estimate_is_that_of_an_interval_that_was_not_clipped(score: float) -> None:
    low, high = max(0.0, score - Z90 * 0.05), min(1.0, score + Z90 * 0.05)
    assert run.estimate_of({"estimate": score, "low": low, "high": high}).standard_error == pytest.approx(0.05)


def test_slerp_is_searched_and_what_cannot_be_is_refused_at_once(
    saved: dict[str, Path], questions: list[Item], tmp_path: Path
) -> None:
    genes = run.genome_of("slerp", NAMES, ("mlp",), 0)
    assert 0 <= max(genes.decode(np.ones(len(genes.names))).weights["second"]["mlp"]) <= 1
    with pytest.raises(ValueError, match="karcher"):
        run.run(saved["base"], experts(saved), questions, tmp_path / "out", method="karcher")
    with pytest.raises(ValueError, match="expected items"):
        run.run(saved["base"], experts(saved), [], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_models_that_answer_all_alike_are_said_so(saved: dict[str, Path], tmp_path: Path) -> None:
    asked = [Item(f"q{n}", f"Say {n}: ", ("x", "x" * 40), 0) for n in range(60)]
    with pytest.raises(ValueError, match=r"answer all \d+ search items alike \(100% right\), so nothing"):
        run.run(saved["base"], experts(saved), asked, tmp_path / "out", dtype="float32")


def test_why_nothing_could_be_scored_is_said(saved: dict[str, Path], tmp_path: Path) -> None:
    asked = [Item(f"q{n}", f"Say {n}: ", expected=("x",), free=FreeText(("\0",), 2, "text")) for n in range(60)]
    with pytest.raises(ValueError, match=r"no search item has an answer of every.*base: 36 of 36 items not"):
        run.run(saved["base"], experts(saved), asked, tmp_path / "out", dtype="float32")
