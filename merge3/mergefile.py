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
from pathlib import Path
from typing import Any

import yaml

from merge3 import mergekit, reading
from merge3.recipe import Layers, Merge, Recipe, whole

OWN = ("weights", "densities", "options", "mask_seed")


def read(path: Path) -> Merge:
    """A merge file, ours or mergekit's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping, a key stands twice, a field is missing or unknown, or the recipe cannot be
            merged.
    """
    if not path.exists():
        raise FileNotFoundError(f"no merge file at {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a merge file is YAML")
    values = reading.from_yaml(path)
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected a mapping with `method` (ours) or `merge_method` (mergekit's)")
    try:
        return mergekit.read(values) if "merge_method" in values else from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, KeyError, AttributeError, OverflowError) as error:  # a field holds another kind of value
        raise ValueError(f"{path}: a field has a value of another kind than a merge file's: {error}") from error


def from_dict(values: Mapping[str, Any]) -> Merge:
    """A merge from our own fields.

    Raises:
        ValueError: a field is missing or unknown, or the recipe cannot be merged.
    """
    expected = ["base", "experts", "method", *OWN, "dtype", "stack", "depth"]
    missing = [name for name in ("base", "experts", "method") if name not in values]
    if unknown := sorted(set(values) - set(expected)) + missing:
        raise ValueError(f"{'missing' if unknown[0] in missing else 'unknown'} {unknown[0]!r}; fields are {expected}")
    if not isinstance(values["experts"], Mapping):
        raise ValueError(f"experts must map names to folders or hub ids, got {values['experts']!r}")
    for name in OWN[:3]:
        if not isinstance(values.get(name) or {}, Mapping):
            raise ValueError(
                f"{name} must map {'names' if name == 'options' else 'experts'} to numbers, got {values[name]!r}"
            )
    plain = {name: values[name] for name in OWN if name in values}
    plain |= {name: _named(values.get(name) or {}) for name in ("weights", "densities")}
    experts = {name: _source(name, source) for name, source in _named(values["experts"]).items()}
    recipe = Recipe.from_dict({"method": values["method"], "experts": list(experts), **plain})
    stack = tuple(_layers(entry) for entry in values.get("stack") or ())
    depth = None if values.get("depth") is None else whole("depth", values["depth"])
    return Merge(recipe, _source("base", values["base"]), experts, values.get("dtype"), stack, depth)


def _named(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Values by the names of experts as text, of which YAML reads some as numbers."""
    return {str(name): value for name, value in values.items()}


def _source(name: str, source: Any) -> str:
    """The folder, GGUF file or hub id of the base or an expert.

    Raises:
        ValueError: it is none.
    """
    if not source or isinstance(source, Mapping | list):
        raise ValueError(f"{name} must be a folder, a GGUF file or a hub id, got {source!r}")
    return str(source)


def _layers(entry: Any) -> Layers:
    fields = {"expert", "first", "last"}
    if not isinstance(entry, Mapping) or set(entry) != fields:
        raise ValueError(f"a stack is a list of {sorted(fields)}, got {entry!r}")
    return Layers(str(entry["expert"]), whole("first", entry["first"]), whole("last", entry["last"]))


def to_yaml(merge: Merge) -> str:
    """Our own form of a merge, which `read` returns."""
    recipe = merge.recipe.to_dict()
    values: dict[str, Any] = {"base": merge.base, "experts": dict(merge.experts), "method": recipe["method"]}
    values |= {name: recipe[name] for name in OWN if recipe[name]}
    if merge.dtype:
        values["dtype"] = merge.dtype
    if merge.stack:
        values["stack"] = [vars(layers) for layers in merge.stack]
    if merge.depth is not None:
        values["depth"] = merge.depth
    return _dump(values)


def to_mergekit(merge: Merge) -> str:
    """The form of a merge that mergekit reads, under a comment where it cannot say all.

    Raises:
        ValueError: a part of the model cannot be said by mergekit's filters.
    """
    values = mergekit.write(merge)
    note = mergekit.note(values, merge)
    return (f"# {note}\n" if note else "") + _dump(values)


def _dump(values: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        dict(values), Dumper=_Plain, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )
    return text


class _Plain(yaml.SafeDumper):
    """Values that are the same are written out each time, without anchors."""

    def ignore_aliases(self, _: Any) -> bool:
        return True
