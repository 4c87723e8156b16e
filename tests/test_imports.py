from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from merge3 import imports


def write(
    folder: Path, model: str, task: str, samples: list[dict[str, Any]], date: str = "2026-01-01T00-00-00.0"
) -> None:
    path = folder / model / f"samples_{task}_{date}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def sample(doc: int, **values: Any) -> dict[str, Any]:
    return {"doc_id": doc, "doc_hash": f"h{doc}", "filter": "none", **values}


def test_samples_of_models_become_a_table(tmp_path: Path) -> None:
    write(tmp_path, "org__one", "arc_easy", [sample(0, acc=1.0, acc_norm=0.0), sample(1, acc=0.0, acc_norm=1.0)])
    write(tmp_path, "org__two", "arc_easy", [sample(1, acc=1.0, acc_norm=0.0)])
    write(tmp_path, "org__two", "gsm8k", [sample(0, exact_match=1.0)])
    table = imports.lm_eval(tmp_path)
    assert table.fillna(-1).to_dict("index") == {
        "org__one": {"arc_easy:0": 0, "arc_easy:1": 1, "gsm8k:0": -1},
        "org__two": {"arc_easy:0": -1, "arc_easy:1": 0, "gsm8k:0": 1},
    }
    assert imports.lm_eval(tmp_path / "org__one", "acc").loc["org__one"].tolist() == [1, 0]


def test_the_last_run_counts(tmp_path: Path) -> None:
    for date, score in (("2026-01-02T00-00-00.0", 1.0), ("2026-01-01T00-00-00.0", 0.0)):
        write(tmp_path, "m", "t", [sample(0, acc=score)], date)
    assert imports.lm_eval(tmp_path).loc["m", "t:0"] == 1


def test_strict_and_flexible_scores_are_never_mixed(tmp_path: Path) -> None:
    lines = [sample(0, exact_match=0.0, filter="strict-match"), sample(0, exact_match=1.0, filter="flexible-extract")]
    write(tmp_path, "m", "gsm8k", lines)
    with pytest.raises(ValueError, match=r"name one of \['flexible-extract', 'strict-match'\]"):
        imports.lm_eval(tmp_path)
    assert imports.lm_eval(tmp_path, filtering="strict-match").loc["m", "gsm8k:0"] == 0
    with pytest.raises(ValueError, match="no answers were filtered by 'none'"):
        imports.lm_eval(tmp_path, filtering="none")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"exact_match": 0.0, "filter": "strict-match"}, {"exact_match": 1.0, "filter": "flexible-extract"}),
        ({"acc": 1.0, "acc_norm": 0.0}, {"acc": 1.0}),
    ],
)
def test_models_scored_in_two_ways_are_not_put_into_one_table(tmp_path: Path, one: dict, other: dict) -> None:
    write(tmp_path, "a", "t", [sample(0, **one)])
    write(tmp_path, "b", "t", [sample(0, **other)])
    with pytest.raises(ValueError, match="those of the models before by"):
        imports.lm_eval(tmp_path)


@pytest.mark.parametrize(
    ("samples", "metric", "message"),
    [
        ([sample(0, acc=0.5)], None, "acc of document 0 is 0.5; expected 0 or 1"),
        ([sample(0, bleu=1.0)], None, "no acc_norm or acc or exact_match or prompt_level_strict_acc; they have"),
        ([sample(0, acc=1.0)], "f1", "no f1; they have"),
        ([{"acc": 1.0}], None, "line 1: no sample of lm-eval"),
    ],
)
def test_what_is_no_score_is_refused(
    tmp_path: Path, samples: list[dict[str, Any]], metric: str | None, message: str
) -> None:
    write(tmp_path, "m", "t", samples)
    with pytest.raises(ValueError, match=message):
        imports.lm_eval(tmp_path, metric)


def test_another_version_of_a_task_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, "one", "t", [sample(0, acc=1.0)])
    write(tmp_path, "two", "t", [sample(0, acc=1.0) | {"doc_hash": "other"}])
    with pytest.raises(ValueError, match="item 't:0' is another text"):
        imports.lm_eval(tmp_path)


def test_without_a_hash_the_document_itself_tells_another_version(tmp_path: Path) -> None:
    for model, question in (("one", "1 + 1"), ("two", "1 + 2")):
        write(tmp_path, model, "t", [{"doc_id": 0, "doc": {"question": question}, "acc": 1.0}])
    with pytest.raises(ValueError, match="item 't:0' is another text"):
        imports.lm_eval(tmp_path)


def test_a_filter_is_of_the_tasks_that_have_several(tmp_path: Path) -> None:
    lines = [sample(0, exact_match=0.0, filter="strict-match"), sample(0, exact_match=1.0, filter="flexible-extract")]
    write(tmp_path, "m", "gsm8k", lines)
    write(tmp_path, "m", "arc_easy", [sample(0, acc=1.0)])
    assert imports.lm_eval(tmp_path, filtering="strict-match").loc["m"].to_dict() == {"gsm8k:0": 0, "arc_easy:0": 1}


def test_a_sample_without_a_score_is_not_scored_and_ends_at_its_line(tmp_path: Path) -> None:
    dated = tmp_path / "2026-01-01T00-00-00.0"  # as the folder of a run: it is the one that was named
    path = dated / "samples_t_2026-01-01T00-00-00.0.jsonl"
    dated.mkdir()
    lines = [sample(0, acc=None, text="one\u2028line"), sample(1, acc=0.0)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    table = imports.lm_eval(dated)
    assert table.fillna(-1).to_dict("index") == {dated.name: {"t:0": -1, "t:1": 0}}


def test_a_folder_without_samples_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run lm_eval with --log_samples"):
        imports.lm_eval(tmp_path)


@pytest.mark.parametrize("ending", ["csv", "parquet", "column"])
def test_matrices(tmp_path: Path, ending: str) -> None:
    table = pd.DataFrame([[1, 0], [0, None]], index=pd.Index(["1", "NA"], name="model"), columns=["i", "j"])
    path = tmp_path / ("m.csv" if ending == "csv" else "m.parquet")
    if ending == "csv":
        table.to_csv(path)
    elif ending == "parquet":
        table.to_parquet(path)
    else:
        table.reset_index().to_parquet(path, index=False)
    found = imports.matrix(path)
    assert list(found.index) == ["1", "NA"]
    assert found.fillna(-1).to_numpy().tolist() == [[1, 0], [0, -1]]


def test_matrices_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no response table at"):
        imports.matrix(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("name,i,j\n")
    with pytest.raises(ValueError, match=r"m\.csv: expected at least one model and one item"):
        imports.matrix(tmp_path / "m.csv")
    (tmp_path / "m.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected a \.csv or"):
        imports.matrix(tmp_path / "m.txt")
    for name, held in (("m.csv", b""), ("m.csv", b"\x89PNG\xff"), ("m.parquet", b"PAR1")):
        (tmp_path / name).write_bytes(held)
        with pytest.raises(ValueError, match=rf"{name}(: expected a CSV file| cannot be read as \.parquet)"):
            imports.matrix(tmp_path / name)
    (tmp_path / "m.csv").write_text("model,i\na,2\n")
    with pytest.raises(ValueError, match="values must be 0, 1 or NaN"):
        imports.matrix(tmp_path / "m.csv")
    for content in (b"", b"model,i\na,1,0\n", "model,i\né,1\n".encode("latin-1")):
        (tmp_path / "m.csv").write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.csv: expected a CSV file in UTF-8 with the columns' names first"):
            imports.matrix(tmp_path / "m.csv")


@pytest.mark.parametrize("rows", ["1,0\n0,1\n", "1,0\n1,1\n,1\n", "True,False\n"])
def test_a_matrix_without_names_is_refused_and_models_may_be_called_by_numbers(tmp_path: Path, rows: str) -> None:
    file = tmp_path / "table.csv"
    file.write_text(f"q1,q2\n{rows}")
    with pytest.raises(ValueError, match=r"table\.csv: its first column, 'q1', has scores: expected the models' names"):
        imports.matrix(file)
    for head in ("model", ""):
        file.write_text(f"{head},q1\n0,1\n1,0\n")
        assert imports.matrix(file)["q1"].to_dict() == {"0": 1, "1": 0}


@pytest.mark.parametrize("form", ["struct", "columns"])
def test_the_first_leaderboards_details_are_read(tmp_path: Path, form: str) -> None:
    for model, scores in (("details_org__one", [1.0, 0.0]), ("details_org__two", [0.0, 0.0])):
        date = "2023-09-01T10-00-00.0"
        path = tmp_path / model / date / f"details_harness|arc:challenge|25_{date}.parquet"
        path.parent.mkdir(parents=True)
        rows = [
            {
                "example": f"q{n}",
                "hashes": {"hash_example": f"h{n}"},
                "metrics": {"acc": 1.0 - score, "acc_norm": score},
            }
            for n, score in enumerate(scores)
        ]
        if form == "columns":
            rows = [{"example": row["example"], **row["metrics"]} for row in rows]
        pd.DataFrame(rows).to_parquet(path)
    table = imports.lm_eval(tmp_path)
    ids = ["harness|arc:challenge|25:0", "harness|arc:challenge|25:1"]
    assert (list(table.index), list(table.columns)) == (["details_org__one", "details_org__two"], ids)
    assert table.to_numpy().tolist() == [[1, 0], [0, 0]]
    assert imports.lm_eval(tmp_path, "acc").to_numpy().tolist() == [[0, 1], [1, 1]]
    changed = [row | {"example": "another", "hashes": {"hash_example": "another"}} for row in rows]
    pd.DataFrame([{name: row[name] for name in rows[0]} for row in changed]).to_parquet(path)
    with pytest.raises(ValueError, match="0' is another text than for the models before"):
        imports.lm_eval(tmp_path)


def test_the_second_leaderboards_details_are_lm_evals_samples(tmp_path: Path) -> None:
    folder = tmp_path / "org__m-details" / "org__m"
    folder.mkdir(parents=True)
    lines = [
        {"doc_id": n, "doc_hash": f"h{n}", "doc": {}, "resps": [["x"]], "prompt_level_strict_acc": n == 1}
        for n in range(2)
    ]
    path = folder / "samples_leaderboard_ifeval_2024-06-16T18-51-11.276190.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = imports.lm_eval(tmp_path)
    assert table.loc["org__m-details/org__m"].to_dict() == {"leaderboard_ifeval:0": 0, "leaderboard_ifeval:1": 1}


def test_a_matrix_with_an_item_twice_is_refused_and_truth_values_are_answers(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("model,a,b\nNA,True,0\nother,False,\n")
    table = imports.matrix(file)
    assert table.index.tolist() == ["NA", "other"]
    assert table.fillna(9).to_numpy().tolist() == [[1, 0], [0, 9]]
    file.write_text("model,a,b,a\nm,1,0,1\n")
    with pytest.raises(ValueError, match=r"table\.csv: item 'a' occurs more than once"):
        imports.matrix(file)
    file.write_text("model,a,b\nm,1,0\nn,1,maybe\n")
    with pytest.raises(ValueError, match="got maybe for model 'n', item 'b'"):
        imports.matrix(file)
