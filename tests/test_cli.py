from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import rich.progress
import torch
import yaml
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from merge3 import answering, cli, items, mergefile, models, responses, run
from merge3.cli import asking, main, making, searching, show
from merge3.estimate import Estimate
from merge3.items import FreeText, Item
from merge3.models import fingerprint


@pytest.fixture
def file(saved: dict[str, Path], tmp_path: Path) -> Path:
    path = tmp_path / "merge.yaml"
    values = {
        "base": str(saved["base"]),
        "experts": {"a": str(saved["first"]), "b": str(saved["second"])},
        "method": "ties",
        "weights": {"a": 0.5, "b": {"mlp": [0.1, 0.9]}},
        "densities": {"a": 0.4},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"merge3 {declared}\n"


def test_a_merge_is_written(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("model,accuracy,low,high\nit,0.5,0.4,0.6\n")
    assert main(["merge", str(file), str(tmp_path / "out"), "--scores", str(scores)]) == 0
    assert "read back and found the same" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "merge.yaml", "README.md"} <= names
    assert main(["merge", str(tmp_path / "out" / "merge.yaml"), str(tmp_path / "again"), "--json"]) == 0
    told, merge = json.loads(capsys.readouterr().out), mergefile.read(file)
    assert told.pop("seconds") > 0
    assert told == {
        "path": str(tmp_path / "again"),
        "phenotype": merge.recipe.phenotype({name: fingerprint(Path(of)) for name, of in merge.experts.items()}),
        "parameters": AutoModelForCausalLM.from_pretrained(tmp_path / "again").num_parameters(),
        "bytes": sum(path.stat().st_size for path in (tmp_path / "again").iterdir()),
    }
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_a_file_goes_to_mergekits_form_and_back(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", str(file), "--as", "mergekit"]) == 0
    theirs = capsys.readouterr().out
    assert yaml.safe_load(theirs)["merge_method"] == "ties"
    assert main(["recipe", str(file), "--as", "mergekit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(theirs)
    (tmp_path / "theirs.yaml").write_text(theirs)
    assert main(["recipe", str(tmp_path / "theirs.yaml")]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"] == "ties"


def test_a_plan_says_what_fits(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = ["--memory", "24", "--bandwidth", "1000", "--tflops", "70"]
    assert main(["plan", str(file), *card]) == 0
    said = capsys.readouterr().out
    assert "device              24.00 GB: resident" in said
    assert re.search(r"\nlive model +0\.\d[1-9] MB\n", said)
    assert re.search(r"^parameters +0\.0[1-9] M\n", said)
    shared = [*card, "--candidates", "120", "--population", "12", "--workers"]
    assert main(["plan", str(file), *shared, "8"]) == 0
    said = capsys.readouterr().out
    assert "   1 device(s)" in said
    assert said.count("   8 device(s)") == 2  # in generations of 12, and of 16, which leave none idle
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(file), *shared, "0"])
    assert main(["plan", str(file), "--dtype", "float32"]) == 0
    capsys.readouterr()
    for wrong, message in (
        (["--memory", "24"], "give all three"),
        ([*shared, "121"], "--workers must be no more than the 120 --candidates, which they share, got 121"),
        ([*card, "--device", "cpu"], "--device has no effect here: the device that is planned for is that of --memory"),
    ):
        assert main(["plan", str(file), *wrong]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-5", "nan", "inf"])
def test_a_plan_is_of_a_device_that_there_can_be(file: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    card = ["--memory", "24", "--bandwidth", "1000", "--tflops", "70", "--main-bandwidth", "50"]
    for place in range(1, len(card), 2):
        assert main(["plan", str(file), *card[:place], value, *card[place + 1 :]]) == 1
        said = f"merge3 plan: {card[place - 1]} must be above 0 and finite, got {value}\n"
        assert capsys.readouterr().err == said
    assert main(["plan", str(file), "--device", "nowhere"]) == 1
    assert "device 'nowhere' cannot be used here" in capsys.readouterr().err


def test_a_plan_is_printed_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file), "--memory", "24", "--bandwidth", "1000", "--tflops", "70", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mode"] == "resident"
    assert found["resident"] > found["streamed"] > found["model"] > 0
    assert [(each["workers"], each["population"]) for each in found["search"]] == [(1, 12)]


def test_errors_are_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err.startswith("merge3 recipe: no merge file at")
    assert main(["merge", str(tmp_path), "out"]) == 1
    assert capsys.readouterr().err == f"merge3 merge: {tmp_path} is a folder, a merge file is YAML\n"
    (tmp_path / "empty.csv").touch()
    for scores in (tmp_path, tmp_path / "none.csv", tmp_path / "empty.csv"):
        assert main(["merge", "m.yaml", "out", "--scores", str(scores)]) == 1
        assert str(scores) in (said := capsys.readouterr().err)
        assert "CSV file" in said
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "recipe", str(tmp_path / "none.yaml")])


def test_models_answer_items(saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [Item(f"i{n}", f"{n} + {n} = ", (str(2 * n), str(2 * n + 1)), 0) for n in range(6)]
    items.write(tmp_path / "items.parquet", asked)
    out, answers = tmp_path / "table.parquet", tmp_path / "answers.jsonl"
    files = ["--items", str(tmp_path / "items.parquet"), "--out", str(out), "--answers", str(answers)]
    chosen = ["--model", str(saved["first"]), "--model", str(saved["second"])]
    assert main(["respond", *chosen, *files, "--dtype", "float32"]) == 0
    table = responses.read(out)
    assert (list(table.index), list(table.columns)) == (["first", "second"], [item.id for item in asked])
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["correct"] for line in lines] == table.to_numpy().astype(bool).ravel().tolist()
    assert all((line["loglikelihoods"][0] > line["loglikelihoods"][1]) == line["correct"] for line in lines)
    assert "tokens" in capsys.readouterr().out
    assert main(["respond", *chosen, *files, "--dtype", "float32", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(did["model"], did["accuracy"]) for did in said] == list(table.mean(axis=1).items())
    assert main(["respond", *chosen[:2], *chosen[:2], *files]) == 1
    assert "which must differ" in capsys.readouterr().err


def test_an_adapters_answers_are_asked_anew_where_its_base_changed(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(saved["base"], base)
    get_peft_model(models.load(base, torch.float32), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        adapter
    )
    items.write(tmp_path / "items.parquet", [Item("right", "1 + 1 = ", ("2", "3"), 0)])
    respond = ["respond", "--model", str(adapter), "--items", str(tmp_path / "items.parquet")]
    respond += ["--store", str(tmp_path / "store"), "--dtype", "float32", "--out", str(tmp_path / "t.parquet")]
    for kept in (False, True):
        assert main(respond) == 0
        assert ("all of them kept" in capsys.readouterr().out) == kept
    shutil.copy(saved["first"] / "model.safetensors", base)
    assert main(respond) == 0
    assert "all of them kept" not in capsys.readouterr().out


def test_what_cannot_be_written_or_found_is_said_before_anything_is_asked(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items.write(tmp_path / "items.parquet", [Item("right", "1 + 1 = ", ("2", "3"), 0)])
    respond = ["respond", "--model", str(saved["base"]), "--items", str(tmp_path / "items.parquet")]
    assert main([*respond, "--out", str(tmp_path / "t.csv")]) == 1
    assert "--out is a Parquet file" in capsys.readouterr().err
    assert main([*respond, "--model", "nowhere", "--out", str(tmp_path / "t.parquet")]) == 1
    printed = capsys.readouterr()
    assert "no model at 'nowhere'" in printed.err
    assert "base:" not in printed.out  # nobody was asked
    (tmp_path / "file").touch()
    assert main([*respond, "--out", str(tmp_path / "file" / "t.parquet")]) == 1
    assert "base:" not in capsys.readouterr().out
    assert main([*respond, "--out", str(tmp_path / "new" / "t.parquet")]) == 0
    capsys.readouterr()
    for option in ("--out", "--answers"):  # the last of an option counts
        assert main([*respond, "--out", str(tmp_path / "t.parquet"), option, str(tmp_path / "new")]) == 1
        told = capsys.readouterr()
        assert (told.out, told.err) == ("", f"merge3 respond: {tmp_path / 'new'} is a folder: name a file\n")
    assert main(["plan", "m.yaml", "--memory", "-24", "--bandwidth", "1", "--tflops", "1"]) == 1
    assert main(["study", str(tmp_path / "new" / "t.parquet"), "--relatives", "5"]) == 1
    assert "speak of merges of --parents" in capsys.readouterr().err


def test_a_model_that_does_not_fit_the_device_is_refused(
    saved: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.20 GiB free. Of the")

    monkeypatch.setattr(PreTrainedModel, "to", to)
    assert main(["chat", str(saved["base"]), "--prompt", "1 + 1 = "]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"merge3 chat: not enough memory for model '{saved['base']}': CUDA out of memory. Tried")
    assert said.endswith("GPU 0 has 1.20 GiB free; end what else uses it, or take a device with more\n")


def test_an_item_that_does_not_fit_the_device_ends_with_a_line(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.20 GiB free. Of the")

    items.write(tmp_path / "items.parquet", [Item("one", "1 + 1 = ", ("2", "3"), 0)])
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    asked = ["respond", "--model", str(saved["base"]), "--items", str(tmp_path / "items.parquet")]
    assert main([*asked, "--out", str(tmp_path / "t.parquet")]) == 1
    assert "merge3 respond: not enough memory for an item: CUDA out of memory. Tried" in capsys.readouterr().err


def test_where_nothing_could_be_asked_nothing_is_said_to_be_kept(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items.write(tmp_path / "items.parquet", [Item("same", "1 + 1 = ", ("2", "2"), 0)])
    asked = ["respond", "--model", str(saved["base"]), "--items", str(tmp_path / "items.parquet")]
    assert main([*asked, "--out", str(tmp_path / "t.parquet")]) == 0
    assert "base: no item scored (none could be asked; 0 near-ties)" in capsys.readouterr().out


def test_what_was_answered_before_an_interruption_stays(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Item(f"i{n}", f"{n} + {n} = ", (str(2 * n), str(2 * n + 1)), 0) for n in range(5)]
    items.write(tmp_path / "items.parquet", asked)
    respond = ["respond", "--model", str(saved["base"]), "--items", str(tmp_path / "items.parquet")]
    respond += ["--dtype", "float32", "--out", str(tmp_path / "t.parquet"), "--store", str(tmp_path / "store")]
    monkeypatch.setattr(asking, "KEEP", 2)
    ask, parts = asking.ask, []

    def interrupted(*given: Any) -> Any:
        parts.append(given)
        if len(parts) == 2:
            raise KeyboardInterrupt
        return ask(*given)

    monkeypatch.setattr(asking, "ask", interrupted)
    assert main(respond) == cli.STOPPED
    assert main(["answers", str(tmp_path / "store"), "--items", str(tmp_path / "items.parquet")]) == 0
    assert "2 answers" in capsys.readouterr().err
    assert main(respond) == 0
    assert [len(items) for _, _, items, *_ in parts] == [2, 2, 2, 1]
    plain = [part for part in respond[:-2] if part != str(tmp_path / "t.parquet")] + [str(tmp_path / "u.parquet")]
    assert main(plain) == 0
    assert responses.read(tmp_path / "t.parquet").equals(responses.read(tmp_path / "u.parquet"))


def test_a_broken_model_is_named_and_the_others_are_asked(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = models.load(saved["base"], torch.float32)
    broken.get_output_embeddings().weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    models.load_tokenizer(saved["base"]).save_pretrained(tmp_path / "broken")
    asked = [Item("a", "1 + 1 = ", ("2", "3"), 0), Item("same", "2 + 2 = ", ("4", "4", "5"), 0)]
    items.write(tmp_path / "items.parquet", asked)
    respond = ["respond", "--items", str(tmp_path / "items.parquet"), "--out", str(tmp_path / "t.parquet")]
    respond += ["--dtype", "float32", "--model", str(tmp_path / "broken")]
    assert main(respond) == 1
    capsys.readouterr()
    assert main([*respond, "--model", str(saved["first"])]) == 0
    printed = capsys.readouterr()
    assert "broken is not scored: log-likelihoods of item" in printed.err
    assert "broken: no item scored" in printed.out
    assert "first: 1 of 2 items not scored (50.0%): two options are the same tokens" in printed.out
    assert responses.read(tmp_path / "t.parquet").isna().to_numpy().tolist() == [[True, True], [False, True]]


def test_items_that_ask_the_same_each_show_their_answer(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [Item(name, "1 + 1 = ", ("2", "3"), answer) for name, answer in (("a", 0), ("b", 1))]
    items.write(tmp_path / "items.parquet", asked)
    chosen = ["--items", str(tmp_path / "items.parquet")]
    out = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "t.parquet")]
    assert main(["respond", "--model", str(saved["base"]), *chosen, *out]) == 0
    capsys.readouterr()
    assert main(["answers", str(tmp_path / "store"), *chosen, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["item"] for line in lines] == ["a", "b"]
    assert {line["correct"] for line in lines} == {True, False}


def test_every_raw_answer_can_be_read(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = FreeText(stop=("\0",), max_tokens=4, extract="text")
    asked = [
        Item("right", "1 + 1 = ", ("2", "3"), 0),
        Item("empty", "1 + 1 =", ("", "3"), 0),
        Item("written", "2 + 2 =", expected=("4",), free=free),
    ]
    items.write(tmp_path / "items.parquet", asked)
    assert items.read(tmp_path / "items.parquet") == asked
    store, file = str(tmp_path / "store"), str(tmp_path / "items.parquet")
    respond = ["respond", "--model", str(saved["base"]), "--items", file, "--out", str(tmp_path / "t.parquet")]
    assert main([*respond, "--store", store, "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 items not scored (33.3%): option '' adds no token" in said
    assert "1 of 3 items not scored (33.3%): truncated" in said
    table = responses.read(tmp_path / "t.parquet")
    assert table.isna().loc["base"].tolist() == [False, True, True]
    assert main([*respond, "--store", store, "--dtype", "float32"]) == 0
    assert "all of them kept" in capsys.readouterr().out
    assert main(["answers", store, "--items", file, "--json"]) == 0
    printed = capsys.readouterr()
    lines = {line["item"]: line for line in map(json.loads, printed.out.splitlines())}
    assert "3 answers, 2 not scored, 1 of them truncated" in printed.err
    assert lines["right"]["correct"] == (lines["right"]["loglikelihoods"][0] > lines["right"]["loglikelihoods"][1])
    assert (lines["empty"]["correct"], "loglikelihoods" in lines["empty"]) == (None, False)
    assert (lines["written"]["correct"], lines["written"]["reason"], lines["written"]["tokens"]) == (
        None,
        "truncated",
        4,
    )
    assert len(lines["written"]["reply"]) > 0
    assert main(["answers", store, "--items", file, "--failed"]) == 0
    text = capsys.readouterr().out
    assert "not scored: truncated" in text
    assert "1 + 1" in text
    assert "right" not in text
    (tmp_path / "run").mkdir()
    shutil.copytree(store, tmp_path / "run" / "answers")  # as `merge3 run` keeps them
    assert main(["answers", str(tmp_path / "run"), "--items", file, "--failed"]) == 0
    assert capsys.readouterr().out == text
    assert main(["answers", str(tmp_path / "none"), "--items", file]) == 1
    assert "there is no store at" in capsys.readouterr().err
    assert main(["answers", store, "--items", file, "--model", "nobody"]) == 1
    assert f"{store} keeps no answer to the items of {file} with --model nobody: name" in capsys.readouterr().err


def test_either_items_or_tasks_are_answered(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["respond", "--model", str(saved["base"]), "--out", str(tmp_path / "t.parquet")]) == 1
    assert "give either --items or --task" in capsys.readouterr().err
    for given, option, why in (
        (["--items", "i.jsonl", "--metric", "acc"], "--metric", "it is of lm-eval's tasks, --task"),
        (["--items", "i.jsonl", "--include-path", "more"], "--include-path", "it is of lm-eval's tasks, --task"),
        (["--task", "arc_easy", "--store", "kept"], "--store", "of --task lm-eval keeps and grades the answers"),
        (["--task", "arc_easy", "--scoring", "sum"], "--scoring", "of --task lm-eval keeps and grades the answers"),
    ):
        assert main(["respond", "--model", str(saved["base"]), *given, "--out", str(tmp_path / "t.parquet")]) == 1
        assert f"merge3 respond: {option} has no effect here: {why}" in capsys.readouterr().err
    if find_spec("lm_eval") is None:
        task = ["--task", "arc_easy", "--out", str(tmp_path / "t.parquet")]
        assert main(["respond", "--model", str(saved["base"]), *task]) == 1
        assert "pip install 'lm_eval[hf]'" in capsys.readouterr().err


def test_what_others_measured_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "org__m"
    run.mkdir(parents=True)
    (run / "samples_t_2026-01-01T00-00-00.0.jsonl").write_text('{"doc_id": 0, "acc": 1.0}\n{"doc_id": 1, "acc": 0.0}\n')
    (tmp_path / "matrix.csv").write_text("model,i,j\na,1,\n")
    for source, said in ((tmp_path / "runs", "1 models x 2 items, 0 not"), (tmp_path / "matrix.csv", "2 items, 1 not")):
        assert main(["import", str(source), "--out", str(tmp_path / "out.parquet")]) == 0
        assert said in capsys.readouterr().out
        assert responses.read(tmp_path / "out.parquet").iloc[0, 0] == 1
    assert main(["import", str(tmp_path / "matrix.csv"), "--out", str(tmp_path / "out.parquet"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path / "out.parquet"),
        **{"models": 1, "items": 2, "not_scored": 1},
    }
    assert main(["import", str(tmp_path / "matrix.csv"), "--out", str(tmp_path / "new" / "out.parquet")]) == 0
    assert responses.read(tmp_path / "new" / "out.parquet").shape == (1, 2)
    capsys.readouterr()
    for option in ("--metric", "--filter"):
        wrong = ["import", str(tmp_path / "matrix.csv"), "--out", str(tmp_path / "out.parquet"), option, "acc"]
        assert main(wrong) == 1
        assert f"{option} has no effect here: it is of a folder that lm-eval wrote" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "matrix.csv"), "--out", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err == f"merge3 import: {tmp_path / 'new'} is a folder: name a file\n"


# --- from nothing to a model


def test_two_models_and_a_file_of_questions_become_an_evolved_model(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "first", "second"):
        shutil.copytree(saved[name], tmp_path / name)
    rows = [{"id": n, "prompt": f"Say {n}: ", "options": [f"{n}a", f"{n}b"], "answer": n % 2} for n in range(200)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    parents = ["--base", "base", "--expert", "a=first", "--expert", "b=second"]
    command = ["run", *parents, "--items", "questions.jsonl", "--out", "merged", "--budget", "12", "--dtype", "float32"]
    assert main(command) == 0  # the first command
    told = capsys.readouterr()
    lines = told.err.splitlines()
    outlook, first = [line for line in lines if "answers" in line][:2]
    assert outlook.startswith("120 items to search by, 80 held out; 12 candidates; at most ")
    assert int(outlook.split(" answers")[0].split()[-1].replace(",", "")) == int(first.split("/")[1].split()[0])
    assert first.startswith("parents: ")
    assert "tokens/s" in lines[-1]
    assert any(line.startswith("finalists: ") and "best " in line and "left" in line for line in lines)
    assert {"evolved merge", "base", "a", "b", "uniform average"} <= {
        line.split("  ")[0] for line in told.out.splitlines()
    }
    assert "\nOn 80 held-out items the evolved merge is " in told.out
    estimate = r"\nOf all 120 search items it has [\d.]+ %( \[.*\] by estimate, with its 90 % interval)?\.\n"
    assert re.search(estimate, told.out)
    assert re.search(r"\. Asking every candidate all search items would take [\d,]+\.\n", told.out)
    assert "Try it: merge3 chat merged" in told.out
    assert main(["chat", "merged", "--prompt", "Say 7: ", "--max-tokens", "8", "--dtype", "float32"]) == 0  # the second
    assert len(capsys.readouterr().out) > 1
    assert main(command) == 1
    assert "merged is not empty" in capsys.readouterr().err
    again = [*command[: (place := command.index("merged"))], "again", "--store", "merged.store", *command[place + 1 :]]
    assert main([*again, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["tokens"]["this_run"] == 0
    done = told.err.splitlines()[-1].removeprefix("test: ").split("/")[0]
    assert int(done) > 0
    assert told.err.splitlines()[-1].endswith(f", {done} kept")
    assert [row["model"] for row in found["scores"]][:4] == ["evolved merge", "base", "a", "b"]
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "merged/model.safetensors").read_bytes()


def test_experts_are_named_by_their_last_part_or_as_told() -> None:
    assert searching.named(["a=org/x", "org/y", "./z/"]) == {"a": "org/x", "y": "org/y", "z": "./z/"}
    with pytest.raises(ValueError, match="called differently"):
        searching.named(["org/x", "me/x"])
    with pytest.raises(ValueError, match=r"expert 'a' has no model: give NAME=MODEL"):
        searching.named(["a=", "org/x"])


# --- chat


def test_chat_is_greedy_and_the_same_of_folder_and_merge_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(file), str(tmp_path / "out")]) == 0
    capsys.readouterr()
    said = ["--prompt", "Hello", "--max-tokens", "6", "--dtype", "float32"]
    for source in (file, tmp_path / "out"):
        assert main(["chat", str(source), *said]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert main(["chat", str(file), *said, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"prompt": "Hello", "reply": first}
    model, tokenizer = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForCausalLM, AutoTokenizer))
    tokens = tokenizer("Hello", return_tensors="pt")["input_ids"]
    for _ in range(6):
        with torch.inference_mode():
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert first == tokenizer.decode(tokens[0, 5:], skip_special_tokens=True)


def test_turns_go_through_the_chat_template(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(saved["first"], tmp_path / "it")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "it")
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role[0] }}>{{ turn.content }}{% endfor %}<a>"
    tokenizer.save_pretrained(tmp_path / "it")
    model, tokenizer = making.opened(str(tmp_path / "it"), "cpu", "float32")
    seen = []
    monkeypatch.setattr(model, "generate", lambda **given: seen.append(given["input_ids"]) or given["input_ids"])
    monkeypatch.setattr(making, "opened", lambda *source: (model, tokenizer))
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nYou?\n\n"))
    assert main(["chat", str(tmp_path / "it")]) == 0
    assert [tokenizer.decode(tokens[0]) for tokens in seen] == ["<u>Hi<a>", "<u>Hi<a><u>You?<a>"]
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nYou?\n"))
    assert main(["chat", str(tmp_path / "it"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"prompt": "Hi", "reply": ""}, {"prompt": "You?", "reply": ""}]


# --- the parser


def test_every_command_has_help_examples_and_something_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands = next(action for action in cli.parser()._actions if action.dest == "command").choices
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name, command in commands.items():
        module, function = command.get_default("run")
        assert callable(getattr(import_module(f"merge3.cli.{module}"), function))
        assert command.get_default("json") is False
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = capsys.readouterr().out
        assert all(len(line) <= 80 for line in said.splitlines()), name
        whole = said.replace("\\\n", " ")
        examples = [line.strip() for line in whole.splitlines() if line.startswith("  merge3 ")]
        assert examples, name
        for example in examples:  # is understood by the parser itself
            cli.parser().parse_args(shlex.split(example.split("|")[0], comments=True)[1:])
    named = {line.split()[1] for line in readme.splitlines() if line.startswith("merge3 ")}
    assert named <= set(commands)


def test_an_option_that_is_unknown_is_said_with_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["recipe", "merge.yaml", "--form", "mergekit"])
    said = capsys.readouterr().err
    assert said.startswith("usage: merge3 recipe")
    assert said.endswith("merge3 recipe: error: unrecognized arguments: --form mergekit\n")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "respond --model m --items i.jsonl --out t.parquet --batch-tokens 0",
            "--batch-tokens: expected a whole number",
        ),
        ("chat m --max-tokens -1", "--max-tokens: expected a whole number of 1 or more, got '-1'"),
        ("run --base b --expert e --items i.jsonl --out o --seed -1", "--seed: expected a whole number of 0 or more"),
        (
            "run --base b --expert e --items i.jsonl --out o --budget 5.5",
            "--budget: expected a whole number of 1 or more, got '5.5'",
        ),
        ("study t.csv --draws two", "--draws: expected a whole number of 0 or more, got 'two'"),
    ],
)
def test_a_number_out_of_its_range_is_said(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    assert message in capsys.readouterr().err


def test_export_is_merge() -> None:
    merged, exported = (cli.parser().parse_args([name, "winner.yaml", "out", "--json"]) for name in ("merge", "export"))
    assert {**vars(merged), "command": "export"} == vars(exported)


def test_choices_are_the_librarys() -> None:
    assert cli.SCORINGS == answering.SCORINGS
    default = next(a for a in cli.parser()._actions if a.dest == "command").choices["run"].get_default("budget")
    assert default == run.BUDGET


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_printed(shell: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "merge3.cli", "--print-completion", shell], capture_output=True, text=True, check=True
    ).stdout
    assert "--budget" in printed
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=printed, text=True, check=True)


def test_an_interrupt_ends_in_a_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "recipe", interrupted)
    assert main(["recipe", str(file)]) == cli.STOPPED
    assert capsys.readouterr().err == "merge3 recipe: stopped\n"
    monkeypatch.setattr(asking, "respond", interrupted)
    asked = ["respond", "--model", "a", "--items", "i.jsonl", "--out", "t.parquet"]
    assert main(asked) == cli.STOPPED
    assert capsys.readouterr().err == "merge3 respond: stopped\n"
    assert main([*asked, "--store", "kept"]) == cli.STOPPED
    assert capsys.readouterr().err == "merge3 respond: stopped; answers so far are kept in kept\n"


def test_who_reads_no_further_hears_no_complaint(file: Path) -> None:
    for command in ("merge3 --print-completion bash", f"merge3 recipe {file}"):
        piped = f"set -o pipefail; {shlex.quote(str(Path(sys.executable).parent))}/{command} | head -c 1 > /dev/null"
        ended = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, ""), command


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_stays_whole_in_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("COLUMNS", str(width))
    figures = ("79.2", "[62.5, 95.8]", "+25.0", "[+8.3, +41.7]", "0.188")
    names = ("uniform average", "english_arithmetic", 60 * "n")
    heads = ("model", "accuracy", "95 % interval", "winner's lead", "its interval", "p")
    show.table(heads, [(name, *figures) for name in names])
    lines = [line.split("  ") for line in re.sub(r"\x1b\[\w+m", "", capsys.readouterr().out).splitlines()]
    rows = [[cell.strip() for cell in line if cell] for line in lines]
    assert [row for row in rows if row[0] in names[:2]] == [[name, *figures] for name in names[:2]]
    assert max(len("  ".join(line)) for line in lines) <= max(width, 80)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_shows_a_runs_stage_and_the_time_left(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    far = run.Progress("finalists", 54, 40, 100, 1000, 3.0, 312.0, Estimate(0.251, 0.22, 0.281, 0.02))
    console = Console(file=(shown := io.StringIO()), width=width, force_terminal=True, color_system=None)
    with rich.progress.Progress(*searching.columns(), console=console) as bar:
        bar.add_task(far.stage, total=far.total, completed=far.done, said=searching.figures(far))
    line = re.sub(r"\x1b\[\??\d*[A-Za-z]", "", shown.getvalue()).strip().splitlines()[-1]
    assert re.search(r"^finalists .*54% 5 min left, best 25.1 \[22.0, 28.1\], 333 t", line)
    assert len(line) <= width
