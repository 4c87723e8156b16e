"""Responses that others measured become a response table: matrices, samples that lm-eval logs, a leaderboard's details.

The Open LLM Leaderboard's details are datasets of files: in its second version (`<org>__<model>-details`) the samples
that lm-eval logged, in its first (`details_<org>__<model>`) a Parquet file a task, named
`details_harness|arc:challenge|25_<date>.parquet`, whose rows have `metrics`, a struct of scores, and `hashes` of what
was asked, or the metrics as columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowException

from merge3 import responses

SAMPLES = ("samples_*.jsonl", "samples_*.json", "details_*.parquet")
DATED = re.compile(r"\d{4}-\d{2}-\d{2}T.*")
MISSING = ("", "NA", "NaN", "nan")  # cells of a CSV file that were not scored
SCORES = {"0", "1", "0.0", "1.0", "True", "False", *MISSING}  # all that a cell may be
METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")  # the first that a task has counts


def matrix(path: Path) -> pd.DataFrame:
    """The response table of a CSV or Parquet file: models x items, the first column (or the index) the models' names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another ending, cannot be read, has no models' names, or is no response table (see `cells`
            and `responses.check`).
    """
    if not path.exists():
        raise FileNotFoundError(f"no response table at {path}")
    if path.suffix == ".csv":
        text = cells(path)
        first = str(text.columns[0])
        if first not in ("model", "") and set() < set(text.iloc[:, 0]) <= SCORES:  # it is an item, which would be lost
            raise ValueError(f"{path}: its first column, {first!r}, has scores: expected the models' names there")
        table = text.iloc[:, 1:].set_axis(text.iloc[:, 0])
        table = table.replace(dict.fromkeys(MISSING) | {"True": "1", "False": "0"})
    elif path.suffix == ".parquet":
        table = _parquet(path)
    else:
        raise ValueError(f"{path}: expected a .csv or .parquet file")
    table.index = table.index.map(str).rename("model")
    return responses.check(table, str(path))


def _parquet(path: Path) -> pd.DataFrame:
    """The table of a Parquet file, the models' names in its index or its first column."""
    try:
        table = pd.read_parquet(path)
    except (ValueError, ArrowException) as error:
        raise ValueError(f"{path} cannot be read as .parquet: {error}") from error
    return table.set_index("model") if len(table.columns) and table.columns[0] == "model" else table


def cells(path: Path) -> pd.DataFrame:
    """The cells of a CSV file as text, its first line the columns' names; none is missing, as a model may be called NA.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no UTF-8, or a line has more cells than the first (which pandas would shift by one).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}: expected a CSV file with the columns' names first")
    try:
        text = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
    except ValueError as error:
        problem = str(error).strip()
        raise ValueError(f"{path}: expected a CSV file in UTF-8 with the columns' names first: {problem}") from error
    return text.iloc[1:].set_axis(text.iloc[0], axis=1).rename_axis(columns=None)


def lm_eval(folder: Path, metric: str | None = None, filtering: str | None = None) -> pd.DataFrame:
    """The response table of what `lm_eval --log_samples --output_path folder` wrote, or of a leaderboard's details.

    A model is a folder that holds `samples_<task>_<date>.jsonl` or `details_<task>_<date>.parquet`; of several runs of
    a task the last counts. An item is `<task>:<doc_id>`; items that a model was not asked are NaN.

    Args:
        folder: the output path.
        metric: the score of a sample, 0 or 1; None takes the first of `METRICS` that a task has.
        filtering: lm-eval's filter of answers (`strict-match`, ...), where a task has several.

    Raises:
        FileNotFoundError: there are no samples.
        ValueError: a line is no sample, a score is not 0 or 1, the metric is missing, a task has several filters and
            none is named, or two models were asked another text under one id or scored in another way.
    """
    files: dict[tuple[str, str], Path] = {}
    found = (path for pattern in SAMPLES for path in folder.rglob(pattern))
    for path in sorted(found):
        task = path.name.split("_", 1)[1].rsplit("_", 1)[0]
        parent = path.parent
        while parent != folder and DATED.fullmatch(parent.name):  # the first leaderboard has a folder a run
            parent = parent.parent
        files[str(parent.relative_to(folder)), task] = path  # names end in their date: the last one stays
    if not files:
        raise FileNotFoundError(
            f"no {', '.join(SAMPLES)} under {folder}: run lm_eval with --log_samples --output_path {folder}"
        )
    texts: dict[str, Any] = {}
    ways: dict[str, tuple[str, str]] = {}
    rows: dict[str, dict[str, float]] = {}
    for (model, task), path in files.items():
        row = rows.setdefault(model if model != "." else folder.name, {})
        for sample in _filtered(_samples(path), filtering, path):
            item = f"{task}:{sample['doc_id']}"
            text = sample.get("doc_hash", sample.get("doc"))
            if texts.setdefault(item, text) != text:
                raise ValueError(
                    f"{path}: item {item!r} is another text than for the models before: another version of the task"
                )
            row[item] = score_of(sample, metric, path)
            way = str(sample.get("filter", "none")), metric or next(name for name in METRICS if name in sample)
            if ways.setdefault(task, way) != way:
                raise ValueError(
                    f"{path}: its samples are scored by filter {way[0]!r} and metric {way[1]!r}, those of the models "
                    f"before by {ways[task]}: name the filter and the metric"
                )
    return responses.check(pd.DataFrame.from_dict(rows, orient="index").rename_axis("model"), str(folder))


def _samples(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows = [{str(name): value for name, value in row.items()} for row in pd.read_parquet(path).to_dict("records")]
        return [{**row, **_struct(row, "metrics"), **_asked(row), "doc_id": n} for n, row in enumerate(rows)]
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n")):
        try:
            sample = json.loads(line)
            found.append({"doc_id": sample["doc_id"], **sample})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number + 1}: no sample of lm-eval: {error}") from error
    return found


def _struct(row: Mapping[Any, Any], name: str) -> dict[str, Any]:
    value = row.get(name)
    return dict(value) if isinstance(value, Mapping) else {}


def _asked(row: Mapping[Any, Any]) -> dict[str, Any]:
    """What names the text of a row of the first leaderboard: the hash of the question, or the question itself."""
    return {"doc_hash": _struct(row, "hashes").get("hash_example", row.get("example"))}


def _filtered(samples: Sequence[dict[str, Any]], filtering: str | None, path: Path) -> Iterable[dict[str, Any]]:
    """The samples of one filter: strict and flexible scores are never mixed."""
    kinds = sorted({str(sample.get("filter", "none")) for sample in samples})
    if filtering is None and len(kinds) > 1:
        raise ValueError(f"{path}: its answers were filtered in several ways; name one of {kinds}")
    wanted = kinds[0] if filtering is None or len(kinds) == 1 else filtering
    if wanted not in kinds:
        raise ValueError(f"{path}: no answers were filtered by {wanted!r}; there are {kinds}")
    return [sample for sample in samples if str(sample.get("filter", "none")) == wanted]


def score_of(sample: Mapping[str, Any], metric: str | None, path: Path | str) -> float:
    """The score of one sample of lm-eval, 0 or 1; NaN where it has none.

    Raises:
        ValueError: it has no such metric, or its value is another. `path` is named in the message.
    """
    names = [name for name in ((metric,) if metric else METRICS) if name in sample]
    if not names:
        known = sorted(key for key, value in sample.items() if isinstance(value, int | float) and key != "doc_id")
        raise ValueError(f"{path}: its samples have no {metric or ' or '.join(METRICS)}; they have {known}")
    value = sample[names[0]]
    if value is None:
        return float("nan")
    if value not in (0, 1):
        raise ValueError(f"{path}: {names[0]} of document {sample['doc_id']} is {value!r}; expected 0 or 1")
    return float(value)
