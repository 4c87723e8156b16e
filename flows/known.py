"""What a study knows before its search: its items, their parameters, its experts' answers, and the subset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from flows.stage import DATA
from merge3 import items, responses
from merge3.irt import ItemParameters
from merge3.items import Item

PREPARE = DATA / "prepare"
RESPOND = DATA / "respond"
CALIBRATE = DATA / "calibrate"
EXTRACT = DATA / "extract"


def study_of(study: str, studies: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Experts and item groups of the study.

    Raises:
        ValueError: there is no such study.
    """
    if study not in studies:
        raise ValueError(f"params.yaml: study must be one of {sorted(studies)}, got {study!r}")
    return list(studies[study]["experts"]), list(studies[study]["groups"])


def study_items(groups: list[str], split: str = "search") -> list[Item]:
    """The items of the study's groups.

    Raises:
        ValueError: a group has no item.
    """
    found = items.read(PREPARE / f"{split}.parquet")
    if missing := [group for group in groups if group not in {item.group for item in found}]:
        raise ValueError(f"no {split} item has group {missing[0]!r}; groups are {sorted({i.group for i in found})}")
    return [item for item in found if item.group in groups]


def parameters(found: list[Item]) -> ItemParameters:
    """The fitted parameters of items, in their order."""
    table = pd.read_parquet(CALIBRATE / "items.parquet").set_index("id").loc[[item.id for item in found]]
    return ItemParameters(table.filter(like="discrimination_").to_numpy(), table["difficulty"].to_numpy())


def expert_answers(experts: list[str], found: list[Item]) -> np.ndarray:
    """The experts' 0/1 answers to items, experts x items.

    Raises:
        ValueError: an expert was not asked.
    """
    table = responses.columns(responses.read(RESPOND / "search.parquet"), [item.id for item in found])
    if missing := [expert for expert in experts if expert not in table.index]:
        raise ValueError(f"expert {missing[0]!r} was not asked; asked were {list(table.index)}")
    return table.loc[experts].to_numpy()


def subset(found: list[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Indices into `found` of the extracted items, and their weights."""
    table = pd.read_parquet(EXTRACT / "subset.parquet")
    places = {item.id: index for index, item in enumerate(found)}
    return np.array([places[name] for name in table["id"]]), table["weight"].to_numpy()
