"""A Parquet file is written whole or not at all, and never through a link into another file, such as DVC's cache."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def write(path: Path, table: pd.DataFrame, index: bool | None = None) -> None:
    """Write a table through a temporary name, of which nothing stays; `index` as pandas has it."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        table.to_parquet(temporary, index=index)
        temporary.replace(path)
    except (OSError, KeyboardInterrupt):
        temporary.unlink(missing_ok=True)
        raise
