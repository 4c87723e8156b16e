"""Merges of the demonstration answered in full, so that searches over them can be replayed in seconds.

    python benchmarks/demonstration.py    # hours on two cores; goes on where it stopped

Task arithmetic of the English arithmetic and the French language expert, weights spread evenly over the search's range
(a scrambled Sobol sequence), for the attention and the rest. The table has a row a merge: its genes, then by item the
lead of the right option over the best other, in nats. The items are a French sample of the search's.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from figures import RESULTS, command_line
from scipy.stats import qmc

from flows.asking import open_asker
from flows.known import items_of
from flows.stage import read_params, say
from merge3.genome import Genome, live_groups

EXPERTS = ("english_arithmetic", "french_language")
LANGUAGE, ITEMS = "fr", 100
CANDIDATES = 160
WEIGHTS = (0.0, 1.2)  # what a gene of 0 and of 1 mean
KEPT = Path(".bench/demonstration")
TABLE = RESULTS / "demonstration.parquet"


def main() -> None:
    """Answer, and write the table."""
    command_line(__doc__).parse_args()
    asker = open_asker(read_params()["runtime"], KEPT, EXPERTS)
    found = items_of([LANGUAGE], "search")[:ITEMS]
    genome = Genome(("task_arithmetic",), EXPERTS, live_groups(asker.merger.changed), 1, WEIGHTS, (0.2, 1.0), 0)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the count is no power of two
        points = qmc.Sobol(len(genome.names), rng=0).random(CANDIDATES)
    rows = []
    for number, point in enumerate(points):
        asked = asker.ask(genome.decode(point), found)
        if asked.answers is None:
            raise ValueError(f"candidate {number} is broken: {genome.decode(point)}")
        rows.append(np.concatenate([point, asker.margins(found, asked.answers)]))
        if asked.new:
            say(f"candidate {number + 1} of {CANDIDATES}: {(rows[-1][len(point) :] > 0).mean():.1%}")
    columns = [*genome.names, *(item.id for item in found)]
    pd.DataFrame(np.array(rows, dtype=np.float32), columns=columns).to_parquet(TABLE, index=False)


if __name__ == "__main__":
    main()
