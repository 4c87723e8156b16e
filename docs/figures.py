"""The pictures of the explanation, drawn from what is in git: `python docs/figures.py` writes docs/pictures/*.svg.

Extract: the questions of the demonstration as its population answered them. Estimate and evolve: the figures of
benchmarks/results. The same data give the same bytes. Paper is white in both themes of the site.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from merge3 import responses
from merge3.report_plots import look

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OUT = ROOT / "docs" / "pictures"
INK, MUTED, LINE, BLUE, ORANGE = "#16191d", "#565f6a", "#d3d9e0", "#0067a3", "#b84a00"
STYLE = look(INK, MUTED, LINE)
BENCHMARKS = {
    "triplets arc": "merges, ARC",
    "triplets gsm8k": "merges, GSM8K",
    "family tiny, 8 relatives": "merges, tiny world",
    "family transfer, 4 relatives": "merges, transfer",
    "family multilingual, 4 relatives": "merges, multilingual",
}
SEARCHES = {  # as benchmarks/evolution.py calls them: the name here, colour, marker
    "random": ("random points", MUTED, "^"),
    "paper": ("the paper's", ORANGE, "s"),
    "pooled": ("pooled", BLUE, "o"),
    "full": ("every question asked", INK, "D"),
}


def draw_extract(axes: Axes) -> None:
    """Every question: how many of the population know it, and how well it tells those who know more from the rest."""
    table = responses.read(ROOT / "data" / "population" / "responses.parquet").to_numpy()
    right, total = table.mean(axis=0), table.sum(axis=1)
    told = (right > 0) & (right < 1)
    rest = total[:, None] - table[:, told]  # a question is not held against itself
    follows = [
        float(np.corrcoef(column, others)[0, 1]) for column, others in zip(table[:, told].T, rest.T, strict=True)
    ]
    axes.plot(100 * right[told], follows, "o", color=BLUE, alpha=0.35, markersize=4, label="a question")
    silent = right[~told]
    axes.plot(
        100 * silent, np.zeros(len(silent)), "X", color=ORANGE, markersize=8, label=f"says nothing: {len(silent)}"
    )
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel(f"models that answer it right, % of {len(table)}")
    axes.set_ylabel("correlation with the other answers")
    axes.figure.legend(loc="outside upper left", ncols=2)


def draw_estimate(axes: Axes) -> None:
    """The error of twenty answers by the paper's estimator and by the chosen one, on five sets of merges."""
    found = {row["figure"]: row["value"] for row in figures("estimation")}
    rows = np.arange(len(BENCHMARKS))[::-1]
    theirs = [found[f"{name}: uniform, mp_irt: error"] for name in BENCHMARKS]
    ours = [
        next(v for k, v in found.items() if k.startswith(f"{name}: ") and k.endswith("(chosen on the others): error"))
        for name in BENCHMARKS
    ]
    axes.hlines(rows, ours, theirs, color=LINE, linewidth=2)
    axes.plot(theirs, rows, "s", color=ORANGE, markersize=8, label="uniform, mp_irt (the paper's)")
    axes.plot(ours, rows, "o", color=BLUE, markersize=9, label="chosen on the other benchmarks")
    axes.set_yticks(rows, list(BENCHMARKS.values()))
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mean absolute error of 20 answers, points of accuracy")
    axes.figure.legend(loc="outside upper left", ncols=2, columnspacing=1)


def draw_evolve(axes: Axes) -> None:
    """How far a search's winner stays below the best that was found, by the answers that the search took."""
    pattern = re.compile(r"regret, (\w+), ([\d,]+) answers \[([\d.]+), ([\d.]+)\]")
    points: dict[str, list[tuple[float, ...]]] = {name: [] for name in SEARCHES}
    for row in figures("evolution"):
        if (match := pattern.fullmatch(row["figure"])) and match[1] in points:
            points[match[1]].append((int(match[2].replace(",", "")), row["value"], float(match[3]), float(match[4])))
    for name, (label, colour, marker) in SEARCHES.items():
        answers, regret, low, high = np.array(points[name]).T
        axes.plot(answers, regret, marker=marker, color=colour, linewidth=2, label=label)
        axes.fill_between(answers, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    ticks = [500, 2_000, 10_000, 50_000, 200_000]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:,}" for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("answers that the search took")
    axes.set_ylabel("regret, points")
    axes.figure.legend(loc="outside upper left", ncols=2)


def figures(name: str) -> list[dict[str, Any]]:
    """The figures of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def svg(name: str, draw: Callable[[Axes], None]) -> str:
    """A picture as SVG: no date, no ids by chance, hundredths of a point."""
    out = StringIO()
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        draw(figure.subplots())
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", out.getvalue(), flags=re.DOTALL)
    lines = re.sub(r"(\.\d\d)\d+", r"\1", text).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


PICTURES: dict[str, Callable[[Axes], None]] = {
    "extract": draw_extract,
    "estimate": draw_estimate,
    "evolve": draw_evolve,
}


def main() -> None:
    """Write every picture."""
    for name, draw in PICTURES.items():
        (OUT / f"{name}.svg").write_text(svg(name, draw), encoding="utf-8")


if __name__ == "__main__":
    main()
