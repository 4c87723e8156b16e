"""`merge3 study`, `verify`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd

from merge3 import imports, lineage
from merge3 import study as studies
from merge3 import verify as guarantees
from merge3.cli.show import as_json, progress
from merge3.estimate import Known

COUNT = 20  # items that `verify` asks


def study(options: argparse.Namespace) -> None:
    """`merge3 study`."""
    picture = options.plot or options.responses.with_suffix(".study.png")
    studies.check_plot(picture)
    weights = None
    if options.weights:
        weights = imports.cells(options.weights)
        weights = weights.iloc[:, 1:].set_axis(weights.iloc[:, 0])
    draw, groups = read_case(options, weights)
    with progress("study", options.draws) as advance:
        found = studies.study(draw, groups, options.counts, options.draws, options.seed, advance=advance)
    if options.json:
        as_json(found.to_dict("records"))
    else:
        show_study(found)
    studies.plot(found, picture)  # last: the figures are there though it cannot be written
    print(f"{picture} shows the best of these figures", file=sys.stderr)


def show_study(found: pd.DataFrame) -> None:
    """Print the figures of a study, and its advice."""
    shown = found.sort_values(["items", "error"])
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep=""))
    best = studies.recommend(found)
    for row in best.to_dict("records"):
        print(
            f"{row['items']} items: ask {row['method']} items, estimate by {row['estimator']} "
            f"(error {row['error']:.1f} points, Spearman {row['spearman']:.2f}, regret {row['regret']:.1f})"
        )
    for name in sorted({*best["method"], *best["estimator"]} & studies.STUDIED):
        print(f"The pipeline does not offer {name}: of the pairs above take the best without it.")


def verify(options: argparse.Namespace) -> None:
    """`merge3 verify`.

    Raises:
        ValueError: a guarantee did not hold, an option needs a table, or --count is not among its items.
    """
    given = options.parents, options.triplets, options.groups, options.count, *_of_merges(options)
    if options.responses is None and any(one is not None for one in given):
        raise ValueError(
            "--count, --parents, --triplets, --merges, --relatives and --groups speak of a response table: name it"
        )
    checks = list[guarantees.Check]()
    if options.responses is not None:
        draw, groups = read_case(options)
        count, items = COUNT if options.count is None else options.count, len(groups)
        if not 1 <= count <= items:
            raise ValueError(f"--count must be between 1 and the {items} items, got {count}")
        drawn = draw(options.seed)
        fitted = lineage.fit_each(drawn[0].strangers, [(case.parents, case.relatives) for case in drawn])
        asked = np.arange(count), np.full(count, 1 / count)
        cases = []
        for case, found in zip(drawn, fitted, strict=True):
            near = np.vstack([case.strangers, case.parents, case.relatives])
            known = Known(
                *(found.items, *asked, case.parents),
                population=near,
                family=found.model,
                shared_error=found.shared_error,
            )
            cases.append((known, case.candidates))
        checks = guarantees.on_answers(cases, groups, options.seed)
    checks = [*guarantees.simulated(options.seed), *checks]
    if options.json:
        as_json([asdict(check) for check in checks])
    else:
        print("Errors, biases and regrets are shares of the items: 0.01 is a point.")
        for check in checks:
            figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in check.figures.items())
            print(f"{'holds' if check.holds else 'FAILS'}  {check.name}: {figures}")
    if broken := [check.name for check in checks if not check.holds]:
        raise ValueError(f"{len(broken)} of {len(checks)} guarantees do not hold: {broken}")


def read_case(options: argparse.Namespace, weights: pd.DataFrame | None = None) -> tuple[studies.Draw, list[str]]:
    """The draws of a study from its table, and the groups of the items.

    Raises:
        ValueError: an item's id has no group in it where groups are wanted, or an option needs --parents.
    """
    if (given := _of_merges(options)) and not options.parents:
        raise ValueError(f"{' and '.join(given)} speak of merges of --parents: name them")
    table = imports.matrix(options.responses)
    without = [name for name in table.columns if options.groups and options.groups not in str(name)]
    if without:
        raise ValueError(
            f"--groups {options.groups!r}: {len(without)} of {table.shape[1]} item ids do not have it (the first: "
            f"{without[0]!r}); an item's group is its id before the last of these"
        )
    groups = [str(name).rsplit(options.groups, 1)[0] if options.groups else "all" for name in table.columns]
    if options.parents:
        return studies.family(table, options.parents, options.merges, options.relatives, weights), groups
    if options.triplets:
        return studies.triplets(table, imports.cells(options.triplets)), groups
    return studies.leaderboard(table), groups


def _of_merges(options: argparse.Namespace) -> list[str]:
    """The options that were given and that only merges of --parents have."""
    given = {"--relatives": options.relatives, "--merges": options.merges != "*"}
    given["--weights"] = getattr(options, "weights", None)  # which `verify` has not
    return [name for name, there in given.items() if there]
