"""The live model of the stages that ask: base and experts of the manifest, loaded once, verified, with a store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flows.stage import DATA, RUNTIME, do, present, progress, say, section
from merge3 import models, responses
from merge3.asker import Asker
from merge3.grading import failures
from merge3.items import Item
from merge3.ledger import Cost
from merge3.live import Watched, assembled
from merge3.recipe import Recipe
from merge3.shared import Shared
from merge3.store import Store

MANIFEST = DATA / "experts" / "manifest.json"
PLACE = "MERGE3_SHARED"  # where answers lie beside the local store, for several machines: a URL of fsspec


def open_asker(runtime: Mapping[str, Any], store: Path, names: Sequence[str] | None = None) -> Asker:
    """An asker for merges of the experts called `names` (all of the manifest where None), keeping answers in `store`.

    Raises:
        ValueError: an expert is not in the manifest, its files changed since, or it does not fit the base.
    """
    runtime = section("runtime", runtime, RUNTIME)
    models.check_device(runtime["device"])
    base, experts = models.read_manifest(present(MANIFEST))
    by_name = {expert.name: expert for expert in experts}
    names = list(by_name) if names is None else names
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"{MANIFEST} has no expert {unknown[0]!r}; it has {sorted(by_name)}")
    dtype = models.resolve_dtype(runtime["dtype"], runtime["device"])
    wanted = (base, *(by_name[name] for name in names))
    folders = {model.name: models.weights_folder(model.source) for model in wanted}
    url = os.environ.get(PLACE)
    kept = Watched(Shared(store, url) if url else Store(store), folders, "run the experts stage")
    for model in wanted:
        if models.fingerprint(folders[model.name]) != model.fingerprint:
            raise ValueError(
                f"the weights of {model.source} changed since {MANIFEST} was written; run the experts stage"
            )
    return assembled(
        folders,
        {model.name: model.fingerprint for model in wanted},
        kept,
        device=runtime["device"],
        dtype=dtype,
        batch_tokens=runtime["batch_tokens"],
        scoring=runtime["scoring"],
        portable=runtime["portable"],
        say=say,
    )


def answer_all(
    label: str, asker: Asker, recipes: Mapping[str, Recipe], items: Sequence[Item]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The response table of named recipes on items, and a ledger: what it takes, and what this run spent.

    Says beforehand what it may cost. Where a recipe's model is broken, its row is NaN, and so is an answer that failed
    or was cut off; both are said, with their reasons.
    """
    distinct = len({recipe.phenotype(asker.merger.fingerprints) for recipe in recipes.values()})
    cost = asker.cost(items)
    say(f"{label}: {distinct} models x {len(items)} items, at most {distinct * cost.tokens:,} tokens")
    rows, total = [], Cost()
    with progress(f"{label}: answers", len(recipes) * len(items)) as advance:
        for name, recipe in recipes.items():
            asked = do(f"{label}: {name}", partial(asker.ask, recipe, items, advance), lambda asked: asked.new == 0)
            total += asked.cost
            advance(len(items) - asked.new)
            if asked.answers is None:
                say(f"{name} is not scored: its likelihoods are not finite")
                rows.append(np.full(len(items), np.nan))
            else:
                scores, reasons = asker.grades(items, asked.answers)
                rows.append(scores)
                for reason, count in failures(scores, reasons).items():
                    say(f"{name}: {count} of {len(items)} items not scored ({count / len(items):.1%}): {reason}")
    table = responses.table(list(recipes), [item.id for item in items], np.stack(rows))
    return table, {"tokens": distinct * cost.tokens, "flops": distinct * cost.flops, "this_run": total.to_dict()}
