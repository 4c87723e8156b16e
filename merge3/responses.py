"""Responses: which model answered which item rightly. Rows are models, columns item ids, NaN is not scored.

Knows the table and how several are put together. Does not know where answers come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from merge3 import parquet


def table(models: Sequence[str], item_ids: Sequence[str], correct: Float[np.ndarray, "models items"]) -> pd.DataFrame:
    """A response table, checked by `check`."""
    return check(pd.DataFrame(correct, index=pd.Index(models, name="model"), columns=list(item_ids)))


def check(responses: pd.DataFrame, source: str = "responses") -> pd.DataFrame:
    """`responses` itself, as float64, if it is a response table.

    Raises:
        ValueError: a model or an item occurs twice, there are none, or a value is not 0, 1 or NaN.
    """
    if responses.empty:
        raise ValueError(f"{source}: expected at least one model and one item, got shape {responses.shape}")
    for axis, names in (("model", responses.index), ("item", responses.columns)):
        if names.has_duplicates:
            raise ValueError(f"{source}: {axis} {names[names.duplicated()][0]!r} occurs more than once")
    values: pd.DataFrame
    try:
        values = responses.astype(float)
    except (TypeError, ValueError):  # some are no numbers
        values = responses.apply(pd.to_numeric, errors="coerce").astype(float)
    cells = values.to_numpy()
    wrong = ~((cells == 0) | (cells == 1)) & responses.notna().to_numpy()
    if wrong.any():
        model, item = np.argwhere(wrong)[0]
        raise ValueError(
            f"{source}: values must be 0, 1 or NaN (not scored), got {responses.iloc[model, item]} for model "
            f"{responses.index[model]!r}, item {responses.columns[item]!r}"
        )
    return values


def read(path: Path) -> pd.DataFrame:
    """The response table of a Parquet file whose index is the model's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a response table, see `check`.
    """
    if not path.exists():
        raise FileNotFoundError(f"no response table at {path}")
    return check(pd.read_parquet(path), str(path))


def write(path: Path, responses: pd.DataFrame) -> None:
    """Write a response table so that `read` returns it; a byte a cell where nothing is missing."""
    full = not responses.isna().to_numpy().any()
    parquet.write(path, responses.astype(np.int8 if full else np.float32))


def columns(responses: pd.DataFrame, item_ids: Sequence[str], source: str = "responses") -> pd.DataFrame:
    """The columns `item_ids`, in that order.

    Raises:
        ValueError: an item is not in the table; the message names the first and counts them.
    """
    missing = [item for item in item_ids if item not in responses.columns]
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} of {len(item_ids)} items are not in it (first: {missing[0]!r}); "
            "answer them, or use the items it was made with"
        )
    return responses[list(item_ids)]
