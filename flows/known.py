"""What a study knows before its search: its items, their parameters, its experts' answers, and the subset."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from flows.stage import DATA, present, section
from merge3 import items, responses
from merge3.estimate import SAMPLED
from merge3.irt import ItemParameters
from merge3.items import Item

PREPARE = DATA / "prepare"
RESPOND = DATA / "respond"
POPULATION = DATA / "population"
CALIBRATE = DATA / "calibrate"
EXTRACT = DATA / "extract"


def study_of(study: str, studies: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Experts and item groups of the study.

    Raises:
        ValueError: there is no such study, or it is not one, or of no expert or no group.
    """
    if study not in studies:
        raise ValueError(f"params.yaml: study must be one of {sorted(studies)}, got {study!r}")
    definition = section(f"studies.{study}", studies[study], {"experts": list[str], "groups": list[str]})
    for name, values in definition.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"params.yaml: studies.{study}.{name} must name one or more, each once, got {values}")
    return list(definition["experts"]), list(definition["groups"])


def items_of(groups: list[str], split: str) -> list[Item]:
    """The items of some groups.

    Raises:
        ValueError: a group has no item.
    """
    found = items.read(present(PREPARE / f"{split}.parquet"))
    if missing := [group for group in groups if group not in {item.group for item in found}]:
        raise ValueError(f"no {split} item has group {missing[0]!r}; groups are {sorted({i.group for i in found})}")
    return [item for item in found if item.group in groups]


def study_items(groups: list[str]) -> list[Item]:
    """The search items of some groups that the base and every expert have an answer to.

    Raises:
        ValueError: a group has no item.
    """
    found = items_of(groups, "search")
    table = responses.columns(responses.read(present(RESPOND / "search.parquet")), [item.id for item in found])
    whole = table.notna().all(axis=0)
    return [item for item in found if whole[item.id]]


def parameters(found: list[Item]) -> ItemParameters:
    """The fitted parameters of items, in their order.

    Raises:
        ValueError: an item was not fitted.
    """
    table = pd.read_parquet(present(CALIBRATE / "items.parquet")).set_index("id")
    _all_there("calibrate", [item.id for item in found], table.index)
    table = table.loc[[item.id for item in found]]
    return ItemParameters(table.filter(like="discrimination_").to_numpy(), table["difficulty"].to_numpy())


def expert_answers(experts: list[str], found: list[Item]) -> np.ndarray:
    """The experts' 0/1 answers to items, experts x items.

    Raises:
        ValueError: an expert was not asked.
    """
    table = responses.columns(responses.read(present(RESPOND / "search.parquet")), [item.id for item in found])
    if missing := [expert for expert in experts if expert not in table.index]:
        raise ValueError(f"expert {missing[0]!r} was not asked; asked were {list(table.index)}")
    return table.loc[experts].to_numpy()


def relatives(found: list[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Full answers of the population's merges: those of the item fit, and the held-out ones.

    Where a population was imported, there are no relatives to fit, and its held-out models stand for them. Models with
    an answer missing are left out.

    Raises:
        ValueError: no held-out model is left.
    """
    table = responses.columns(responses.read(present(POPULATION / "responses.parquet")), [item.id for item in found])
    whole = table.notna().all(axis=1).to_numpy()
    table = table[whole]
    named = members().loc[table.index]
    held_out, merges = named["held_out"].to_numpy(dtype=bool), (named["study"] != "").to_numpy()
    if not held_out.any():
        raise ValueError(
            f"no held-out model of the population has all {len(found)} search items scored; {(~whole).sum()} of its "
            f"{len(whole)} models miss some: leave out the items that they miss, or take models answered in full"
        )
    return table[merges & ~held_out].to_numpy(), table[held_out].to_numpy()


def margins(found: list[Item]) -> np.ndarray | None:
    """The margins of the population's merges, in nats, models x items; None where it was imported.

    Merges with an answer missing are left out.

    Raises:
        ValueError: the population was not asked one of the items.
    """
    table = _margins(found)
    return None if table.empty else table.to_numpy(dtype=float)


def fitted_margins(found: list[Item]) -> np.ndarray | None:
    """`margins` without the merges held out from the item fit."""
    table = _margins(found)
    table = table[~members()["held_out"].loc[table.index].to_numpy(dtype=bool)]
    return None if table.empty else table.to_numpy(dtype=float)


def merges(found: list[Item]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names of the population's merges, their answers and margins, models x items; none where it was imported.

    Merges with an answer missing are left out.
    """
    table = _margins(found)
    answers = responses.columns(responses.read(present(POPULATION / "responses.parquet")), [item.id for item in found])
    return list(table.index), answers.loc[table.index].to_numpy(), table.to_numpy(dtype=float)


def members() -> pd.DataFrame:
    """The population's models, by name: the study of a merge (of others none), and whether it is held out."""
    return pd.read_csv(
        present(POPULATION / "models.csv"), keep_default_na=False, dtype={"model": str, "study": str}, index_col="model"
    )


def _margins(found: list[Item]) -> pd.DataFrame:
    table, names = pd.read_parquet(present(POPULATION / "margins.parquet")), [item.id for item in found]
    if table.columns.empty:  # an imported population
        return pd.DataFrame(columns=names, dtype=float)
    _all_there("population", names, table.columns)
    return table[names].dropna()


def _all_there(stage: str, wanted: Collection[str], there: Collection[str]) -> None:
    """Refuse what a stage wrote of other items, those of another study for instance.

    Raises:
        ValueError: one that is wanted is not there.
    """
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(
            f"{DATA / stage} is of other items than this study's: {len(missing)} of {len(wanted)} are missing (first: "
            f"{missing[0]!r}); run the stage {stage} again, or dvc repro"
        )


def extracted_by() -> str:
    """The method that chose the items that candidates are asked."""
    return str(pd.read_parquet(present(EXTRACT / "subset.parquet"))["method"].iloc[0])


def subset(found: list[Item], estimator: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices into `found` of the extracted items, and their weights.

    Raises:
        ValueError: the estimator takes the items for a sample, and they are none: it would be far off; or they are not
            of those found.
    """
    table = pd.read_parquet(present(EXTRACT / "subset.parquet"))
    if estimator in SAMPLED and not set(table["method"]) <= SAMPLED[estimator]:
        fair = " or ".join(sorted(SAMPLED[estimator]))
        raise ValueError(f"estimate.method {estimator} needs extract.method {fair}: others' items are no fair sample")
    places = {item.id: index for index, item in enumerate(found)}
    if others := [name for name in table["id"] if name not in places]:
        raise ValueError(
            f"{EXTRACT} has items that are not this study's (first: {others[0]!r}); run the stage extract again, or "
            "dvc repro"
        )
    return np.array([places[name] for name in table["id"]]), table["weight"].to_numpy()
