"""Stage report: one self-contained page of the study, and its result in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.known import expert_answers, items_of, parameters, study_items, study_of
from flows.stage import DATA, main, present, read_json, say, served, show_text, write_text
from merge3 import responses
from merge3.grading import divisors, grade
from merge3.items import Item
from merge3.recipe import Recipe, parents, standard_merges
from merge3.report import answered_on, as_files, evidence, headline, ledger
from merge3.report_tables import Results, costs, outcome, ranked
from merge3.report_text import count, fraction, percent, points
from merge3.store import Answer, Store, digest

PREPARE = DATA / "prepare"
EXPERTS = DATA / "experts"
RESPOND = DATA / "respond"
POPULATION = DATA / "population"
CALIBRATE = DATA / "calibrate"
EXTRACT = DATA / "extract"
ESTIMATE = DATA / "estimate"
EVOLVE = DATA / "evolve"
EVALUATE = DATA / "evaluate"
OUT = DATA / "report"

INPUTS = (
    EXPERTS / "manifest.json",
    PREPARE / "search.parquet",
    PREPARE / "test.parquet",
    RESPOND / "search.parquet",
    RESPOND / "ledger.json",
    POPULATION / "ledger.json",
    CALIBRATE / "items.parquet",
    EXTRACT / "subset.parquet",
    ESTIMATE / "calibration.json",
    ESTIMATE / "estimators.csv",
    ESTIMATE / "experts.csv",
    EVOLVE / "history.csv",
    EVOLVE / "recipes.json",
    EVOLVE / "finalists.csv",
    EVOLVE / "winner.json",
    EVOLVE / "ledger.json",
    EVALUATE / "metrics.json",
    EVALUATE / "scores.csv",
    EVALUATE / "sample.csv",
    EVALUATE / "responses.parquet",
    EVALUATE / "ledger.json",
)
COMMANDS = (
    "make run                                          # all of this; nothing that is up to date runs again",
    "merge3 merge data/evolve/winner.yaml my-model     # the winner as a model that anyone can load",
    "merge3 answers data/evaluate/answers --items data/prepare/test.parquet    # every answer, raw",
    "python -m flows.report                            # this page",
    "dvc plots show                                    # the search and the estimates, as plots of DVC's",
)
COLOURS = {"better": "green", "worse": "red", "undecided": "yellow"}


@flow
def report(study: str, studies: dict[str, Any], runtime: dict[str, Any]) -> None:
    """Write data/report/index.html, its figures as CSV and result.txt, and say the result.

    Raises:
        FileNotFoundError: a stage before was not run.
        ValueError: the stages before ran another study.
    """
    for path in INPUTS:
        present(path)
    results = read(study, studies, runtime["scoring"])
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "front.csv").unlink(missing_ok=True)
    for name, content in as_files(results).items():
        write_text(OUT / name, content)
    write_text(OUT / "result.txt", plain(results))
    show(results)


def read(study: str, studies: dict[str, Any], scoring: str) -> Results:
    """What the stages before wrote about the study.

    Raises:
        ValueError: they ran another study, or not one after the other.
    """
    experts, groups = study_of(study, studies)
    metrics, winner = read_json(EVALUATE / "metrics.json"), read_json(EVOLVE / "winner.json")
    for stage, found in (("evolve", winner["study"]), ("evaluate", metrics["study"])):
        if found != study:
            raise ValueError(f"data/{stage} holds study {found!r}, asked for {study!r}: run {stage} first")
    if metrics["winner"]["estimate"] != winner["estimate"]:
        raise ValueError("data/evaluate is of another winner than data/evolve has: run evaluate first")
    search, tests = study_items(groups), items_of(groups, "test")
    scores = _table(EVALUATE / "scores.csv")
    answered = responses.read(EVALUATE / "responses.parquet")
    if not set(answered.columns) <= {item.id for item in tests}:
        raise ValueError("data/evaluate is of other items than this study's: run evaluate first")
    ledgers = {folder.name: read_json(folder / "ledger.json") for folder in (RESPOND, POPULATION, EVOLVE, EVALUATE)}
    manifest = read_json(EXPERTS / "manifest.json")
    fingerprints = {expert["name"]: expert["fingerprint"] for expert in manifest["experts"]}
    recipes = parents(experts) | standard_merges(experts)
    recipes[scores["model"][0]] = Recipe.from_dict(winner["recipe"])
    return Results(
        study=study,
        experts=experts,
        search=search,
        tests=tests,
        parameters=parameters(search),
        abilities=_table(ESTIMATE / "experts.csv"),
        parents=expert_answers(experts, search),
        subset=pd.read_parquet(EXTRACT / "subset.parquet"),
        estimates=metrics["estimates"],
        by_group=metrics["over_best_standard"],
        one_runtime=metrics["one_runtime"],
        scores=scores,
        responses=answered,
        raw=kept({name: recipe.phenotype(fingerprints) for name, recipe in recipes.items()}, tests, answered, scoring),
        scoring=scoring,
        sample=_table(EVALUATE / "sample.csv"),
        history=_table(EVOLVE / "history.csv"),
        recipes=read_json(EVOLVE / "recipes.json"),
        finalists=_table(EVOLVE / "finalists.csv"),
        front=_table(EVOLVE / "front.csv") if (EVOLVE / "front.csv").exists() else None,
        winner=winner,
        estimator=read_json(ESTIMATE / "calibration.json")["estimator"],
        estimators=_table(ESTIMATE / "estimators.csv"),
        costs=spent(ledgers),
        full=ledgers["evolve"]["all_items_tokens"],
        identity={
            "the winner (phenotype)": winner["phenotype"],
            "base (weights)": manifest["base"]["fingerprint"],
            **{f"{name} (weights)": fingerprints[name] for name in experts},
            "search items": digest([item.content_hash for item in search]),
            "test items": digest([item.content_hash for item in tests]),
            "merges answered the test on": answered_on(ledgers["evaluate"]["runtime"]),
            "parents answered it on": answered_on(ledgers["respond"]["test"]["runtime"]),
        },
        commands=COMMANDS,
    )


def spent(ledgers: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What the stages that ask spent, see `report_tables.costs`."""
    search, respond = ledgers["evolve"], ledgers["respond"]
    rows = [
        ("evolve", "the search", "search", search["search_tokens"], seconds(search)),
        ("evolve", "where it begins, on all items", "search", search["start_tokens"], np.nan),
        ("evolve", "leaders on all items on the way", "search", search["relatives_tokens"], np.nan),
        ("evolve", "finalists in the end", "finalists", search["finalists_tokens"], np.nan),
    ]
    for stage, what, part, of in (
        ("population", "merges that calibrate the items", "preparation", ledgers["population"]),
        ("respond", "base and experts, search items", "preparation", respond["search"]),
        ("respond", "base and experts, test items", "test", respond["test"]),
        ("evaluate", "winner, standard merges, sample", "test", ledgers["evaluate"]),
    ):
        rows.append((stage, what, part, of["tokens"], seconds(of)))
    return costs(rows)


def seconds(ledger: Mapping[str, Any]) -> float:
    """What the last run took; NaN where it found all answers kept."""
    run = ledger["this_run"]
    return run["merging_seconds"] + run["answering_seconds"] if run["tokens"] else np.nan


def kept(
    phenotypes: dict[str, str], tests: Sequence[Item], answered: pd.DataFrame, scoring: str
) -> dict[str, dict[str, Answer]]:
    """By model and test item: the raw answers that respond and evaluate still have, if graded as `answered` says.

    The stores are scratch: what is not there is left out, as are answers of other runs that were graded otherwise, and
    options scored by tokens, which cannot be graded here.
    """
    wanted = {item.content_hash: item for item in tests if item.id in answered.columns}
    found: dict[str, dict[str, Answer]] = {}
    for store in (Store(RESPOND / "answers"), Store(EVALUATE / "answers")):
        for key in store.keys():  # noqa: SIM118 - no mapping
            merge = digest(key.get("merge"))
            models = [name for name, phenotype in phenotypes.items() if phenotype == merge]
            for content, answer in store.get(key).items() if models else ():
                item = wanted.get(content)
                if item is None or (item.options and scoring == "tokens"):
                    continue
                score, _ = grade(item, answer, divisors(item, scoring))
                for model in models:
                    if score == answered.loc[model, item.id]:
                        found.setdefault(model, {})[item.id] = answer
    return found


def show(results: Results) -> None:
    """Say the result: colours in a terminal, plain aligned lines elsewhere."""
    if sys.stderr.isatty() and not served():
        draw(results, Console(stderr=True, highlight=False))
    else:
        say(plain(results))
    say(f"\nreport: {OUT / 'index.html'}")
    show_text("report", f"```\n{plain(results)}```\n\nThe whole page: {place()}\n", "the result of the study")


def place() -> str:
    """Where the page is, in Markdown; from an experiment that runs in a copy, the command that brings it."""
    page = (OUT / "index.html").resolve()
    name = os.environ.get("DVC_EXP_NAME")
    return f"`dvc exp apply {name}`, then `{OUT / 'index.html'}`" if name and ".dvc" in page.parts else f"`{page}`"


def plain(results: Results) -> str:
    """The result as aligned lines of text."""
    console = Console(file=StringIO(), width=200, highlight=False)
    with console.capture() as capture:
        draw(results, console)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def draw(results: Results, console: Console) -> None:
    """The table of models, the result in a sentence, and what it cost."""
    uneven = Text(f"{results.uneven}.") if results.uneven else ""
    for part in ("", table(results), uneven, summary(results), cost(results)):
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
    return text.append(f"{evidence(rival, results.both(rival['model']))}.", style="not bold default")


def cost(results: Results) -> Text:
    """The tokens that the search asked, and all that it took to find the winner."""
    spent = ledger(results)
    asked, found = spent["search"], spent["found"]
    return Text(
        f"The search asked {count(asked)} tokens, {fraction(asked, spent['full'])} of asking every item "
        f"({count(spent['full'])}); with all preparation {count(found)}, {fraction(found, spent['full'])}."
    )


def _table(path: Path) -> pd.DataFrame:
    """A CSV file in which only an empty cell is missing: a model may be called `NA`."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


if __name__ == "__main__":
    main(report)
