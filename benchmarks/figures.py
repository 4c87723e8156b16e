"""Figures of a benchmark: a table in the terminal, and a list of rows in `results/<name>.json`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from merge3.models import runtime_name

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """A measured value; `target` is what it should reach, or stay below where `below`."""

    figure: str
    value: float
    unit: str
    target: float | None = None
    below: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.below else self.value >= self.target


def command_line(said: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark's options, whose help is what its module says of itself."""
    return argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)


def machine() -> str:
    """The machine in a line."""
    return f"{platform.machine()} {runtime_name('cpu').removeprefix('cpu ')}"


def publish(name: str, figures: list[Figure], variant: str = "", options: str = "") -> None:
    """Print the figures and write them to `results/<name><variant>.json`; `options` are those of the command."""
    rows = [
        {
            "figure": figure.figure,
            "value": float(f"{figure.value:.4g}"),
            "unit": figure.unit,
            "target": figure.target,
            "holds": figure.holds,
            "command": f"python benchmarks/{name}.py {options}".strip(),
            "machine": machine(),
        }
        for figure in figures
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}{variant}.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    table = Table("figure", "value", "unit", "target", "holds", title=machine())
    for row in rows:
        cells = [row[key] for key in ("figure", "value", "unit", "target", "holds")]
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    Console(file=sys.stdout, width=120).print(table)
