"""`merge3 run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from merge3 import run as search
from merge3.cli.show import as_json, percent, quiet, table
from merge3.report_text import minutes
from merge3.run import Progress

GROUPS = 8  # at most whose scores are printed
LINES = 20  # that a run prints at most beside one for each of its stages, where there is no terminal


def run(options: argparse.Namespace) -> None:
    """`merge3 run`."""
    quiet()
    with watching() as tell:
        found = search.run(
            options.base,
            named(options.expert),
            options.items,
            options.out,
            budget=options.budget,
            method=options.method,
            test_share=options.test_share,
            seed=options.seed,
            device=options.device,
            dtype=options.dtype,
            store=options.store,
            tell=tell,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    if options.json:
        as_json(found.to_dict())
        return
    rows = []
    for place, row in enumerate(found.scores.to_dict("records")):
        interval, lead = f"[{percent(row['low'])}, {percent(row['high'])}]", ("", "", "")
        if place:
            span = f"[{100 * row['lead_low']:+.1f}, {100 * row['lead_high']:+.1f}]"
            lead = (f"{100 * row['lead']:+.1f}", span, f"{row['holm_p']:.3g}")
        rows.append((str(row["model"]), percent(row["accuracy"]), interval, *lead))
    print("In % of the held-out items, leads in points:\n")
    table(("model", "accuracy", "95 % interval", "winner's lead", "its interval", "p"), rows, first_bold=True)
    groups = [name for name in found.scores.columns if name.startswith("group ")]
    if 1 < len(groups) <= GROUPS:
        print()
        cells = [
            (str(row["model"]), *(percent(row[name]) for name in groups)) for row in found.scores.to_dict("records")
        ]
        table(("by group", *(name.removeprefix("group ") or "none" for name in groups)), cells, first_bold=True)
    estimate, tokens = found.estimate, found.tokens
    print(f"\nOn {found.items['test']} held-out items {found.verdict}.")
    span = f" [{percent(estimate.low)}, {percent(estimate.high)}] by estimate, with its 90 % interval"
    told = f"{percent(estimate.score)} %{'' if estimate.low == estimate.high else span}"
    print(f"Of all {found.items['search']} search items it has {told}.")
    print(
        f"Tokens asked: {tokens['search'] + tokens['finalists']:,} by search and finalists, {tokens['leaders']:,} by "
        f"leaders on all search items, {tokens['preparation']:,} by parents and population, {tokens['test']:,} by the "
        f"test. Asking every candidate all search items would take {tokens['all_items']:,}."
    )
    print(f"\n{found.out} is the model, its card in README.md. Try it: merge3 chat {found.out}")
    if found.report:
        print(f"The page to read: {found.report}")


def named(experts: Sequence[str]) -> dict[str, str]:
    """Experts by name: `name=source`, or a source, whose last part is its name.

    Raises:
        ValueError: two are called alike, or one has no source.
    """
    pairs = []
    for expert in experts:
        name, equals, source = expert.partition("=")
        pairs.append((name, source) if equals else (expert.rstrip("/").split("/")[-1], expert))
    if empty := [name for name, source in pairs if not source]:
        raise ValueError(f"expert {empty[0]!r} has no model: give NAME=MODEL")
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"experts must be called differently, got {[name for name, _ in pairs]}: give NAME=MODEL")
    return dict(pairs)


@contextmanager
def watching() -> Iterator[Callable[[Progress], None]]:
    """Show a run as it goes on: one live line in a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield plain_lines()
        return
    with Bar(*columns(), console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task("loading", total=None, said="")
        yield lambda p: bar.update(task, description=p.stage, total=p.total, completed=p.done, said=figures(p))


def columns() -> tuple[ProgressColumn, ...]:
    """Of the live line: where a terminal is narrow the bar goes, then the end of the figures."""
    return (
        TextColumn("{task.description}", table_column=Column(min_width=10)),
        BarColumn(),
        TaskProgressColumn(table_column=Column(min_width=4)),
        TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True)),
    )


def plain_lines() -> Callable[[Progress], None]:
    """A line for each stage, and at every twentieth of the way."""
    shown: tuple[str, int] = ("", -1)

    def show(p: Progress) -> None:
        nonlocal shown
        now = (p.stage, p.done * LINES // p.total)
        if now != shown:
            shown = now
            print(f"{p.stage}: {p.done}/{p.total} answers, {figures(p)}", file=sys.stderr, flush=True)

    return show


def figures(p: Progress) -> str:
    """The time left, the best so far, the speed, and how many answers were kept."""
    best = p.best and f"best {percent(p.best.score)} [{percent(p.best.low)}, {percent(p.best.high)}]"
    speed = p.seconds and f"{p.tokens / p.seconds:,.0f} tokens/s"
    kept = p.kept and f"{p.kept} kept"
    left = p.left is not None and f"{minutes(p.left)} left"
    return ", ".join(part for part in (left, best, speed, kept) if part)
