"""Stage report: one self-contained page of the study, and its result in the terminal."""

from __future__ import annotations

import sys
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.known import items_of, study_of
from flows.stage import DATA, main, read_json, say, served, show_text
from merge3.report import Results, evidence, headline, outcome, page, percent, points, ranked

PREPARE = DATA / "prepare"
RESPOND = DATA / "respond"
POPULATION = DATA / "population"
EXTRACT = DATA / "extract"
ESTIMATE = DATA / "estimate"
EVOLVE = DATA / "evolve"
EVALUATE = DATA / "evaluate"
OUT = DATA / "report"

INPUTS = (
    PREPARE / "search.parquet",
    PREPARE / "test.parquet",
    RESPOND / "ledger.json",
    POPULATION / "ledger.json",
    EXTRACT / "subset.parquet",
    ESTIMATE / "calibration.json",
    ESTIMATE / "estimators.csv",
    EVOLVE / "history.csv",
    EVOLVE / "finalists.csv",
    EVOLVE / "winner.json",
    EVOLVE / "ledger.json",
    EVALUATE / "metrics.json",
    EVALUATE / "scores.csv",
    EVALUATE / "sample.csv",
    EVALUATE / "ledger.json",
)
COMMANDS = (
    "dvc repro                  # every stage that is out of date",
    "python -m flows.evolve     # the search alone; answers that are kept are not asked again",
    "python -m flows.evaluate   # the winner on the test items",
    "python -m flows.report     # this page",
)
COLOURS = {"better": "green", "worse": "red", "undecided": "yellow"}


@flow
def report(study: str, studies: dict[str, Any]) -> None:
    """Write data/report/index.html and result.txt, and say the result.

    Raises:
        FileNotFoundError: a stage before was not run.
        ValueError: the stages before ran another study.
    """
    if missing := [path for path in INPUTS if not path.exists()]:
        raise FileNotFoundError(f"{missing[0]} is missing: run the stage {missing[0].parent.name} first")
    results = read(study, studies)
    OUT.mkdir(parents=True, exist_ok=True)
    temporary = OUT / "index.tmp"
    temporary.write_text(page(results), encoding="utf-8")
    temporary.replace(OUT / "index.html")
    (OUT / "result.txt").write_text(plain(results), encoding="utf-8")
    show(results)


def read(study: str, studies: dict[str, Any]) -> Results:
    """What the stages before wrote about the study.

    Raises:
        ValueError: they ran another study.
    """
    experts, groups = study_of(study, studies)
    metrics, winner = read_json(EVALUATE / "metrics.json"), read_json(EVOLVE / "winner.json")
    for stage, found in (("evolve", winner["study"]), ("evaluate", metrics["study"])):
        if found != study:
            raise ValueError(f"data/{stage} holds study {found!r}, asked for {study!r}: run {stage} first")
    sizes = Counter(item.group for item in items_of(groups, "search"))
    folders = (RESPOND, POPULATION, EVOLVE, EVALUATE)
    return Results(
        study=study,
        experts=experts,
        search_items={group: sizes[group] for group in groups},
        test_items=len(items_of(groups, "test")),
        metrics=metrics,
        scores=_table(EVALUATE / "scores.csv"),
        sample=_table(EVALUATE / "sample.csv"),
        history=_table(EVOLVE / "history.csv"),
        finalists=_table(EVOLVE / "finalists.csv"),
        winner=winner,
        estimator=read_json(ESTIMATE / "calibration.json")["estimator"],
        estimators=_table(ESTIMATE / "estimators.csv"),
        subset=pd.read_parquet(EXTRACT / "subset.parquet"),
        ledgers={folder.name: read_json(folder / "ledger.json") for folder in folders},
        commands=COMMANDS,
    )


def show(results: Results) -> None:
    """Say the result: colours in a terminal, plain aligned lines elsewhere."""
    if sys.stderr.isatty() and not served():
        draw(results, Console(stderr=True, highlight=False))
    else:
        say(plain(results))
    say(f"\nreport: {OUT / 'index.html'}")
    where = f"The whole page: `{(OUT / 'index.html').resolve()}`"
    show_text("report", f"```\n{plain(results)}```\n\n{where}\n", "the result of the study")


def plain(results: Results) -> str:
    """The result as aligned lines of text."""
    console = Console(file=StringIO(), width=200, highlight=False)
    with console.capture() as capture:
        draw(results, console)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def draw(results: Results, console: Console) -> None:
    """The table of models and the result in a sentence."""
    for part in ("", table(results), "", summary(results)):
        console.print(part)


def table(results: Results) -> Table:
    """Every model with its accuracy, its 95 % interval, and the winner's lead over it, the best first."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("model", "accuracy", "95% interval", "winner's lead"):
        made.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    for row in ranked(results.scores):
        first = row["kind"] == "winner"
        lead = "" if first else f"{points(row['lead'])} [{points(row['lead_low'])}, {points(row['lead_high'])}]"
        cells = (row["model"], percent(row["accuracy"]), f"[{percent(row['low'])}, {percent(row['high'])}]", lead)
        made.add_row(*map(Text, cells), style="bold" if first else "")
    return made


def summary(results: Results) -> Text:
    """The result in a sentence and its evidence."""
    rival = results.best_expert
    text = Text(f"{headline(results)}:\n", style=f"bold {COLOURS[outcome(rival)]}")
    return text.append(f"{evidence(rival, results.test_items)}.", style="not bold default")


def _table(path: Path) -> pd.DataFrame:
    """A CSV file in which only an empty cell is missing: a model may be called `NA`."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


if __name__ == "__main__":
    main(report)
