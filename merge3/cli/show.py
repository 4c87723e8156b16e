"""What commands show: progress, tables, findings, JSON. Results go to standard output, the rest to standard error."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers.utils import logging

COLOURS = {"ok": "green", "risk": "yellow", "wrong": "bold red"}
WIDE = 200  # of a table where there is no terminal
NAMED = 18  # letters of a name that stay on one line in the narrowest terminal
GAP = 2  # between two columns


def refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse options that are without effect here, if any of them was given.

    Raises:
        ValueError: the first of them, and why.
    """
    if given := [name for name in names if getattr(options, name) is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')} has no effect here: {why}")


def as_json(value: Any) -> None:
    """Print a value as JSON; what is not a finite number is null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):  # of NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_line(value: Any) -> None:
    """Print a value as one line of JSON, at once."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def ask(prompt: str) -> str:
    """A line of standard input, without spaces at its ends; the prompt is shown to whoever is there.

    Raises:
        EOFError: there is none.
    """
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    return input().strip()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], first_bold: bool = False) -> None:
    """Print aligned columns, the first on the left and the others on the right.

    In a narrow terminal long names are folded. What is still too wide runs on in the terminal's next line: no figure is
    broken up.
    """
    console, rows = Console(highlight=False), list(rows)
    widths = [max(map(cell_len, column)) + GAP for column in zip(heads, *rows, strict=True)]
    room = (console.width if console.is_terminal else WIDE) - sum(widths[1:]) + GAP
    widths[0] = min(widths[0], max(room, NAMED + GAP))
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for place, head in enumerate(heads):
        made.add_column(head, justify="left" if place == 0 else "right", overflow="fold", no_wrap=place > 0)
    for place, row in enumerate(rows):
        made.add_row(*map(Text, row), style="bold" if first_bold and place == 0 else "")
    console.width = sum(widths) - GAP
    console.print(made)


def finding(level: str, what: str, text: str) -> None:
    """Print what a check found."""
    line = Text.assemble((f"{level:<6}", COLOURS[level]), (f"{what}: ", "bold"), text)
    Console(highlight=False, soft_wrap=True).print(line)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal, nothing elsewhere; yields a function that is told how many more are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=total)
        yield lambda step: bar.advance(task, step)


def percent(share: float) -> str:
    """A share as per cent."""
    return f"{100 * share:.1f}"


def quiet() -> None:
    """No bars of transformers' own while weights are loaded or written."""
    silence: Any = logging.disable_progress_bar
    silence()
