"""Stage extract: the few items that candidates are asked, and their weights."""

from __future__ import annotations

from typing import Any

import pandas as pd
from prefect import flow

from flows.known import expert_answers, margins, parameters, study_items, study_of
from flows.stage import DATA, Count, Seed, main, say
from merge3 import irt, lineage, parquet
from merge3.extract import MARGINS, METHODS, by_margins

OUT = DATA / "extract"


@flow
def extract(seed: Seed, study: str, studies: dict[str, Any], method: str, items: Count) -> None:
    """Write data/extract/subset.parquet: id, group, weight, method of `items` extracted from the study's search items.

    Raises:
        ValueError: the method is unknown, or `items` exceeds what there is.
    """
    if method not in (offered := sorted([MARGINS, *METHODS])):
        raise ValueError(f"extract.method must be one of {offered}, got {method!r}")
    experts, groups = study_of(study, studies)
    found = study_items(groups)
    labels, fitted, answers = [item.group for item in found], parameters(found), expert_answers(experts, found)
    if method == MARGINS:
        if (relatives := margins(found)) is None:
            raise ValueError("extract.method margins needs a population of merges; population.responses is imported")
        chosen, weights = by_margins(relatives, items, labels, seed)
    else:
        abilities, model = irt.fit_abilities(fitted, answers)[0], lineage.predictor(fitted, answers)
        chosen, weights = METHODS[method](fitted, abilities, items, labels, seed, model)
    OUT.mkdir(parents=True, exist_ok=True)
    subset = pd.DataFrame(
        {
            "id": [found[i].id for i in chosen],
            "group": [found[i].group for i in chosen],
            "weight": weights,
            "method": method,
        }
    )
    parquet.write(OUT / "subset.parquet", subset, index=False)
    say(f"{items} of {len(found)} items ({items / len(found):.1%}) by {method}")


if __name__ == "__main__":
    main(extract)
