from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from merge3 import responses


@pytest.mark.parametrize("missing", [False, True])
def test_what_is_written_is_read(tmp_path: Path, missing: bool) -> None:
    cells = np.array([[0.0, 1.0, 1.0], [1.0, np.nan if missing else 0.0, 0.0]])
    table = responses.table(["m", "n"], ["a", "b", "c"], cells)
    responses.write(tmp_path / "r.parquet", table)
    pd.testing.assert_frame_equal(responses.read(tmp_path / "r.parquet"), table)


def test_what_cannot_be_written_whole_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    table = responses.table(["m"], ["a"], np.array([[1.0]]))
    responses.write(tmp_path / "r.parquet", table)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # bytes that a file may have
    try:
        with pytest.raises(OSError, match="File too large"):
            responses.write(tmp_path / "r.parquet", 1 - table)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    pd.testing.assert_frame_equal(responses.read(tmp_path / "r.parquet"), table)
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"a": [0, 2]}), "got 2 for model 1, item 'a'"),
        (pd.DataFrame({"a": [0.0, 1.0]}, index=["m", "m"]), "model 'm' occurs more than once"),
        (pd.DataFrame([[0, 1]], columns=["a", "a"]), "item 'a' occurs more than once"),
        (pd.DataFrame({"a": ["yes"]}), "0, 1 or NaN"),
        (pd.DataFrame(), "at least one model"),
    ],
)
def test_what_is_no_response_table_is_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        responses.check(table)


def test_columns_come_in_the_order_asked_and_missing_ones_are_named(tmp_path: Path) -> None:
    table = responses.table(["m"], ["a", "b"], np.array([[0.0, 1.0]]))
    assert list(responses.columns(table, ["b", "a"]).columns) == ["b", "a"]
    with pytest.raises(ValueError, match=r"1 of 2 items are not in it \(first: 'z'\)"):
        responses.columns(table, ["a", "z"])
    with pytest.raises(FileNotFoundError):
        responses.read(tmp_path / "none.parquet")
