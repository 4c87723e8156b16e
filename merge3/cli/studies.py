"""`merge3 study`, `verify`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import numpy as np
import pandas as pd

from merge3 import imports, lineage
from merge3 import study as studies
from merge3 import verify as guarantees
from merge3.cli.show import as_json, progress
from merge3.estimate import Known


def study(options: argparse.Namespace) -> None:
    """`merge3 study`.

    Raises:
        ValueError: an option needs --parents.
    """
    if not options.parents and (options.relatives or options.merges != "*" or options.weights):
        raise ValueError("--relatives, --merges and --weights speak of merges of --parents: name them")
    weights = None
    if options.weights:
        weights = pd.read_csv(options.weights, index_col=0, dtype=str, keep_default_na=False)
    draw, groups = read_case(options, weights)
    with progress("study", options.draws) as advance:
        found = studies.study(draw, groups, options.counts, options.draws, options.seed, advance=advance)
    picture = options.plot or options.responses.with_suffix(".study.png")
    if options.json:
        as_json(found.to_dict("records"))
        studies.plot(found, picture)
        return
    shown = found.sort_values(["items", "error"])
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep=""))
    for row in studies.recommend(found).to_dict("records"):
        print(
            f"{row['items']} items: ask {row['method']} items, estimate by {row['estimator']} "
            f"(error {row['error']:.1f} points, Spearman {row['spearman']:.2f}, regret {row['regret']:.1f})"
        )
    studies.plot(found, picture)


def verify(options: argparse.Namespace) -> None:
    """`merge3 verify`.

    Raises:
        ValueError: a guarantee did not hold.
    """
    checks = guarantees.simulated(options.seed)
    if options.responses is not None:
        draw, groups = read_case(options)
        for case in draw(options.seed)[:1]:
            fitted = lineage.fit(case.strangers, case.parents, case.relatives)
            near = np.vstack([case.strangers, case.parents, case.relatives])
            count = options.count
            if not 1 <= count <= len(fitted):
                raise ValueError(f"--count must be between 1 and the {len(fitted)} items, got {count}")
            known = Known(fitted, np.arange(count), np.full(count, 1 / count), case.parents, population=near)
            checks += guarantees.on_answers(known, case.candidates, groups, options.seed)
    if options.json:
        as_json([asdict(check) for check in checks])
    for check in () if options.json else checks:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in check.figures.items())
        print(f"{'holds' if check.holds else 'FAILS'}  {check.name}: {figures}")
    if broken := [check.name for check in checks if not check.holds]:
        raise ValueError(f"{len(broken)} of {len(checks)} guarantees do not hold: {broken}")


def read_case(options: argparse.Namespace, weights: pd.DataFrame | None = None) -> tuple[studies.Draw, list[str]]:
    """The draws of a study from its table, and the groups of the items.

    Raises:
        ValueError: an item's id has no group in it where groups are wanted.
    """
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
        return studies.triplets(table, pd.read_csv(options.triplets, dtype=str, keep_default_na=False)), groups
    return studies.leaderboard(table), groups
