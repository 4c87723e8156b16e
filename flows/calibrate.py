"""Stage calibrate: the items' IRT parameters, fitted on the population's answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from prefect import flow

from flows.known import POPULATION, RESPOND, members
from flows.stage import DATA, Count, Seed, main, present, say
from merge3 import irt, parquet, responses

OUT = DATA / "calibrate"


@flow
def calibrate(seed: Seed, engine: str, dimensions: Count) -> None:
    """Write data/calibrate/items.parquet: id, discrimination_1 ... discrimination_D, difficulty.

    The fit sees the population without its held-out models, and the base and experts, which were asked anyway.

    Raises:
        ValueError: the engine is unknown, or fewer than two distinct models are left.
    """
    population = responses.read(present(POPULATION / "responses.parquet"))
    held_out = members()["held_out"]
    fitted = population.loc[held_out.index[~held_out]]
    experts = responses.columns(responses.read(present(RESPOND / "search.parquet")), list(population.columns))
    table = pd.concat([fitted, experts])
    table = table.loc[:, table.notna().any(axis=0)]  # what nobody's answer could be scored on is no item of the study
    say(f"fitting {table.shape[1]} items on {table.shape[0]} models with {engine}")
    if engine not in irt.ENGINES:
        raise ValueError(f"calibrate.engine must be one of {sorted(irt.ENGINES)}, got {engine!r}")
    found = irt.fit_items(table.to_numpy(), engine, dimensions, seed)
    columns = {f"discrimination_{d + 1}": found.discrimination[:, d] for d in range(found.dimensions)}
    OUT.mkdir(parents=True, exist_ok=True)
    items = pd.DataFrame({"id": table.columns, **columns, "difficulty": found.difficulty})
    parquet.write(OUT / "items.parquet", items, index=False)
    spread = np.percentile(found.discrimination[:, 0], [5, 50, 95])
    say("discrimination: 5 % {:.2f}, median {:.2f}, 95 % {:.2f}".format(*spread))


if __name__ == "__main__":
    main(calibrate)
