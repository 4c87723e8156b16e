"""Stage estimate: the estimator, calibrated on merges that the item fit did not see, and all others beside it."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pandas as pd
from prefect import flow

from flows.known import (
    expert_answers,
    extracted_by,
    fitted_margins,
    margins,
    parameters,
    relatives,
    study_items,
    study_of,
    subset,
)
from flows.stage import DATA, Seed, main, say, write_json, write_text
from merge3.estimate import ANSWERED, CONTINUOUS, ESTIMATORS, Known, learn_inheritance
from merge3.estimate import calibrate as calibrate_estimator
from merge3.extract import MARGINS, by_margins
from merge3.margins import FEWEST

OUT = DATA / "estimate"
STUDIED = {"ridge"}  # needs a population of many models like the candidates: see `merge3 study`


@flow
def estimate(seed: Seed, study: str, studies: dict[str, Any], method: str) -> None:
    """Write data/estimate/calibration.json, estimators.csv (every method on the held-out models) and experts.csv.

    What merges inherit is learnt from the study's own merges in the population; error and interval are measured on
    the held-out ones, of margin_irt on every merge in turn. An imported population of strangers teaches no inheritance.

    Raises:
        ValueError: the method is unknown.
    """
    experts, groups = study_of(study, studies)
    found = study_items(groups)
    moved = margins(found)
    offered = sorted(set(ANSWERED if moved is None else ESTIMATORS) - STUDIED)
    if method not in offered:
        raise ValueError(f"estimate.method must be one of {offered} with this population, got {method!r}")
    chosen, weights = subset(found, method)
    fitted, truths = relatives(found)
    asked = Known(parameters(found), chosen, weights, expert_answers(experts, found), relatives=moved)
    known = learn_inheritance(fitted, asked)
    choose = partial(by_margins, count=len(chosen), groups=[item.group for item in found], seed=seed)
    by, fair = None, known
    if extracted_by() == MARGINS:  # held-out merges have no say in which items they are asked
        by, others = choose, fitted_margins(found)
        if others is not None and len(others) >= FEWEST:
            fair = replace(known, **dict(zip(("subset", "weights"), choose(others), strict=True)))
    calibrated = {
        name: calibrate_estimator(name, truths, known if ESTIMATORS[name] in CONTINUOUS else fair, by).calibration
        for name in offered
    }
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "calibration.json", asdict(calibrated[method]))
    table = pd.DataFrame([asdict(c) for c in calibrated.values()])[
        ["estimator", "models", "mean_absolute_error", "bias", "deviation", "spearman", "coverage"]
    ]
    write_text(OUT / "estimators.csv", table.to_csv(index=False))
    abilities = pd.DataFrame(known.parent_abilities, index=pd.Index(experts, name="expert"))
    abilities.columns = [f"ability_{d + 1}" for d in range(abilities.shape[1])]
    abilities["accuracy"] = known.parents.mean(axis=1)
    write_text(OUT / "experts.csv", abilities.to_csv())
    error = calibrated[method].mean_absolute_error
    say(f"{method} on {calibrated[method].models} held-out merges: mean absolute error {100 * (error or 0):.1f} points")


if __name__ == "__main__":
    main(estimate)
