from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from merge3 import items, responses
from merge3.cli import main
from merge3.items import FreeText, Item


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


def test_a_merge_is_written(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("model,accuracy,low,high\nit,0.5,0.4,0.6\n")
    assert main(["merge", str(file), str(tmp_path / "out"), "--scores", str(scores)]) == 0
    assert "read back and found the same" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "merge.yaml", "README.md"} <= names
    assert main(["merge", str(tmp_path / "out" / "merge.yaml"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_a_file_goes_to_mergekits_form_and_back(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", str(file), "--as", "mergekit"]) == 0
    theirs = capsys.readouterr().out
    assert yaml.safe_load(theirs)["merge_method"] == "ties"
    (tmp_path / "theirs.yaml").write_text(theirs)
    assert main(["recipe", str(tmp_path / "theirs.yaml")]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"] == "ties"


def test_a_plan_says_what_fits(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = ["--memory", "24", "--bandwidth", "1000", "--tflops", "70"]
    assert main(["plan", str(file), *card]) == 0
    assert "device              24.00 GB: resident" in capsys.readouterr().out
    shared = [*card, "--candidates", "120", "--population", "12", "--workers"]
    assert main(["plan", str(file), *shared, "8"]) == 0
    assert "8 worker(s)" in capsys.readouterr().out
    assert main(["plan", str(file), *shared, "0"]) == 1
    assert main(["plan", str(file), "--dtype", "float32"]) == 0
    assert main(["plan", str(file), "--memory", "24"]) == 1
    assert "give all three" in capsys.readouterr().err


def test_errors_are_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err.startswith("merge3 recipe: no merge file at")
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
    assert main(["respond", *chosen[:2], *chosen[:2], *files]) == 1
    assert "which must differ" in capsys.readouterr().err


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
    assert main(["answers", store, "--items", file, "--model", "nobody"]) == 1
    assert "keeps no such answer" in capsys.readouterr().err


def test_either_items_or_tasks_are_answered(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["respond", "--model", str(saved["base"]), "--out", str(tmp_path / "t.parquet")]) == 1
    assert "give either --items or --task" in capsys.readouterr().err
    if find_spec("lm_eval") is None:
        task = ["--task", "arc_easy", "--out", str(tmp_path / "t.parquet")]
        assert main(["respond", "--model", str(saved["base"]), *task]) == 1
        assert "pip install 'merge3-pipeline[lm-eval]'" in capsys.readouterr().err


def test_what_others_measured_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "org__m"
    run.mkdir(parents=True)
    (run / "samples_t_2026-01-01T00-00-00.0.jsonl").write_text('{"doc_id": 0, "acc": 1.0}\n{"doc_id": 1, "acc": 0.0}\n')
    (tmp_path / "matrix.csv").write_text("model,i,j\na,1,\n")
    for source, said in ((tmp_path / "runs", "1 models x 2 items, 0 not"), (tmp_path / "matrix.csv", "2 items, 1 not")):
        assert main(["import", str(source), "--out", str(tmp_path / "out.parquet")]) == 0
        assert said in capsys.readouterr().out
        assert responses.read(tmp_path / "out.parquet").iloc[0, 0] == 1
