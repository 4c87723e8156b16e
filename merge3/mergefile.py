"""A merge as a file: a recipe, and where its base and experts come from; ours, or mergekit's (see `mergekit`).

base: org/base
experts: {maths: org/maths, german: ./german-adapter}
method: ties
weights: {maths: 0.6, german: {attention: [0.2, 0.8], mlp: 0.4}}
densities: {maths: 0.3}
dtype: bfloat16
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merge3 import mergekit
from merge3.recipe import Recipe, check

DTYPES = ("float32", "bfloat16", "float16")
OWN = ("weights", "densities", "options", "mask_seed")


@dataclass(frozen=True)
class Layers:
    """Layers `first` up to, without, `last` of one expert, as part of a stack (a frankenmerge)."""

    expert: str
    first: int
    last: int


@dataclass(frozen=True)
class MergeFile:
    """A recipe with its sources.

    `base` and `experts` are folders, GGUF files or hub ids; the base gives config and tokenizer. `dtype` is what is
    written, None what the base is stored in. `stack` is layers put on one another, each as the recipe's `passthrough`
    weight of its expert says; the first gives embeddings, the last the final norm and the head.
    """

    recipe: Recipe
    base: str
    experts: Mapping[str, str]
    dtype: str | None = None
    stack: tuple[Layers, ...] = ()

    def __post_init__(self) -> None:
        if missing := [expert for expert in self.recipe.experts if expert not in self.experts]:
            raise ValueError(f"no source is given for expert {missing[0]!r}; there are {sorted(self.experts)}")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {self.dtype!r}")
        if not self.stack:
            check(self.recipe)
        elif self.recipe.method != "passthrough":
            raise ValueError(f"layers can be stacked by passthrough alone, got {self.recipe.method!r}")
        for layers in self.stack:
            if layers.expert not in self.experts or not 0 <= layers.first < layers.last:
                raise ValueError(f"a stack needs layers of known experts, first below last, got {layers}")


def read(path: Path) -> MergeFile:
    """A merge file, ours or mergekit's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping, a field is missing or unknown, or the recipe cannot be merged.
    """
    if not path.exists():
        raise FileNotFoundError(f"no merge file at {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected a mapping with `method` (ours) or `merge_method` (mergekit's)")
    try:
        return from_mergekit(values) if "merge_method" in values else from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_dict(values: Mapping[str, Any]) -> MergeFile:
    """A merge from our own fields.

    Raises:
        ValueError: a field is missing or unknown, or the recipe cannot be merged.
    """
    expected = ["base", "experts", "method", *OWN, "dtype", "stack"]
    missing = [name for name in ("base", "experts", "method") if name not in values]
    if unknown := sorted(set(values) - set(expected)) + missing:
        raise ValueError(f"{'missing' if unknown[0] in missing else 'unknown'} {unknown[0]!r}; fields are {expected}")
    if not isinstance(values["experts"], Mapping):
        raise ValueError(f"experts must map names to folders or hub ids, got {values['experts']!r}")
    plain = {name: values[name] for name in OWN if name in values}
    recipe = Recipe.from_dict({"method": values["method"], "experts": list(values["experts"]), **plain})
    stack = tuple(Layers(**layers) for layers in values.get("stack") or ())
    return MergeFile(recipe, str(values["base"]), dict(values["experts"]), values.get("dtype"), stack)


def to_yaml(merge: MergeFile) -> str:
    """Our own form of a merge, which `read` returns."""
    recipe = merge.recipe.to_dict()
    values: dict[str, Any] = {"base": merge.base, "experts": dict(merge.experts), "method": recipe["method"]}
    values |= {name: recipe[name] for name in OWN if recipe[name]}
    if merge.dtype:
        values["dtype"] = merge.dtype
    if merge.stack:
        values["stack"] = [vars(layers) for layers in merge.stack]
    return _dump(values)


def from_mergekit(values: Mapping[str, Any]) -> MergeFile:
    """A merge from mergekit's fields.

    Raises:
        ValueError: what it asks for is not done here; the message names it.
    """
    found = mergekit.read(values)
    stack = tuple(Layers(*layers) for layers in found.stack)
    return MergeFile(found.recipe, found.base, found.experts, found.dtype, stack)


def to_mergekit(merge: MergeFile) -> str:
    """The form of a merge that mergekit reads.

    Raises:
        ValueError: mergekit cannot say it.
    """
    stack = [(layers.expert, layers.first, layers.last) for layers in merge.stack]
    return _dump(mergekit.write(mergekit.Found(merge.recipe, merge.base, dict(merge.experts), merge.dtype, stack)))


def _dump(values: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return text
