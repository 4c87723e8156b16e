"""A recipe is one merge, said in full: the method, the experts, and their coefficients by part of the model and depth.

What a method takes stands in `TRAITS`. The canonical form is one for recipes that make the same model, as far as the
coefficients tell: experts that weigh nothing are left out (but see `COUNTED`), weights of which only the ratio counts
are scaled to sum to one, densities and mask seeds count where they are used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from merge3.store import digest

VERSION = 3  # of the arithmetic in `kernels`; a change that alters weights raises it

GROUPS = ("attention", "mlp", "rest")
ANY = "*"  # the part of a model that is all of it
LEAST = 1e-6  # a sum of weights that is less, some method of those that take their mean does not divide by
PIECE = "~"  # before a piece of a name that may be the name of a group, or hold nothing
COUNTED = ("passthrough", "nuslerp", "multislerp")  # methods by which an expert without weight counts
_ATTENTION = re.compile(r"\.(self_attn|attn|attention|self_attention|linear_attn)\.")
_MLP = re.compile(r"\.(mlp|feed_forward|ffn|block_sparse_moe|fc1|fc2)\.")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")

AVERAGE = "uniform average"
DTYPES = ("float32", "bfloat16", "float16")

Knots = tuple[float, ...]  # values at equally spaced depths, from the first layer to the last, linear between them
Parts = Mapping[str, Knots]  # part of the model -> knots; the first part that holds a parameter counts


@dataclass(frozen=True)
class Traits:
    """What a merge method takes.

    `options` come with their defaults. With `mean`, as with the option `normalize`, only the weights' ratios count.
    """

    options: Mapping[str, float]
    fewest: int = 1
    most: int | None = None
    weights: bool = True
    densities: bool = False
    masks: bool = False
    mean: bool = False


_VOTE = {"lambda": 1.0, "normalize": 0.0}
TRAITS: Mapping[str, Traits] = {
    "linear": Traits({"normalize": 1.0}),
    "slerp": Traits({}, most=2),
    "nuslerp": Traits({"around_base": 1.0}, fewest=2, most=2, mean=True),
    "task_arithmetic": Traits(_VOTE),
    "ties": Traits(_VOTE | {"normalize": 1.0}, densities=True),
    "dare_linear": Traits(_VOTE | {"rescale": 1.0}, densities=True, masks=True),
    "dare_ties": Traits(_VOTE | {"rescale": 1.0}, densities=True, masks=True),
    "breadcrumbs": Traits(_VOTE | {"gamma": 0.01}, densities=True),
    "breadcrumbs_ties": Traits(_VOTE | {"gamma": 0.01}, densities=True),
    "della": Traits(_VOTE | {"normalize": 1.0, "epsilon": 0.15, "rescale": 1.0}, densities=True, masks=True),
    "della_linear": Traits(_VOTE | {"epsilon": 0.15, "rescale": 1.0}, densities=True, masks=True),
    "model_stock": Traits({}, fewest=2, weights=False),
    "multislerp": Traits({"around_base": 1.0, "normalize": 1.0}),
    "karcher": Traits({"max_iter": 10.0, "tol": 1e-5}, weights=False),
    "sce": Traits({"select_topk": 1.0}, weights=False),
    "passthrough": Traits({}, most=1),
}
RANGES = {  # of options that are shares or counts
    **dict.fromkeys(("gamma", "select_topk"), (0.0, 1.0)),
    **dict.fromkeys(("max_iter", "tol"), (0.0, math.inf)),
}


@cache
def group_of(tensor: str) -> str:
    """The group of a parameter: `attention`, `mlp` or `rest` (embeddings, norms, head)."""
    if _ATTENTION.search(tensor):
        return "attention"
    return "mlp" if _MLP.search(tensor) else "rest"


@cache
def layer_of(tensor: str) -> int | None:
    """The layer that a parameter belongs to, from 0; None for embeddings, the final norm and the head."""
    match = _LAYER.search(tensor)
    return int(match.group(1)) if match else None


@cache
def tower_of(tensor: str) -> str:
    """What its layers are counted in, by the name before them: a model of text and pictures has two; '' outside."""
    match = _LAYER.search(tensor)
    return tensor[: match.start()] if match else ""


def depth_of(layer: int | None, layers: int) -> float:
    """The depth in [0, 1] of one of `layers` layers; as in mergekit 0 outside of them, and 1 where there is but one."""
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


def holds(part: str, tensor: str) -> bool:
    """Whether a part of the model holds a parameter: a group, a piece of parameters' names, or `*`.

    `~mlp` is the piece `mlp`, where the group of that name is not meant; any piece may be marked so.
    """
    if part == ANY or part == group_of(tensor):
        return True
    return part not in GROUPS and part.removeprefix(PIECE) in tensor


@dataclass(frozen=True)
class Coefficients:
    """What a merge method is given for one tensor: a weight and a density (kept share) for each expert, and options."""

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One merge of `experts` into their base.

    `weights[expert][part]` are knots along depth; one value is a constant. A part is a group (`attention`, `mlp`,
    `rest`), a piece of parameters' names, or `*`, all; of the parts that hold a parameter the first counts, and
    where none does the weight is 0. The same for `densities`, where it is 1. `options` are those of the method in
    `TRAITS` that differ from its defaults. For `slerp` the weight of the last expert is the angle's share t, between
    the first of two experts (the base, where there is one) and the last.
    """

    method: str
    experts: tuple[str, ...]
    weights: Mapping[str, Parts]
    densities: Mapping[str, Parts] = field(default_factory=dict)
    options: Mapping[str, float] = field(default_factory=dict)
    mask_seed: int = 0

    @property
    def all_options(self) -> dict[str, float]:
        """The method's options, defaults included."""
        return {**TRAITS[self.method].options, **self.options}

    @property
    def scales(self) -> bool:
        """Whether a parameter may change that all experts share with the base: weights need not sum to one."""
        summed = self.method in ("linear", "multislerp") and not self.all_options["normalize"]
        return summed or self.method == "passthrough"

    def at(self, tensor: str, layers: int) -> Coefficients:
        """The coefficients for one parameter of a model of `layers` layers, see `depth_of`."""
        return self.at_depth(tensor, depth_of(layer_of(tensor), layers))

    def at_depth(self, tensor: str, depth: float) -> Coefficients:
        """The coefficients for one parameter, at a depth in [0, 1]."""
        return Coefficients(
            tuple(_value(self.weights.get(expert, {}), tensor, depth, 0.0) for expert in self.experts),
            tuple(_value(self.densities.get(expert, {}), tensor, depth, 1.0) for expert in self.experts),
            self.all_options,
        )

    def canonical(self, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """The form that two recipes of the same weights share; experts are named by their fingerprints.

        Raises:
            KeyError: an expert has no fingerprint.
        """
        traits = TRAITS[self.method]
        entries = []
        for expert in self.experts:
            entry: dict[str, Any] = {"expert": fingerprints[expert]}
            if traits.weights:
                entry["weights"] = _used(self.weights.get(expert, {}))
            if traits.densities:
                densities = self.densities.get(expert, {})
                groups = {*densities, *entry["weights"]} <= set(GROUPS)
                ones = dict.fromkeys(entry["weights"], (1.0,)) if groups else {}
                entry["densities"] = {
                    part: _constant(knots)
                    for part, knots in _ordered(ones | dict(densities)).items()
                    if part in entry["weights"] or not groups
                }
            entries.append(entry)
        options = dict(sorted(self.all_options.items()))
        form: dict[str, Any] = {"version": VERSION, "method": self.method, "options": options}
        if self.method == "slerp" and len(entries) == 2:  # both ends count, and their order; only t has weight
            entries[0]["weights"] = {}
            return form | {"experts": _listed(entries)}
        if self.method == "multislerp" and len(entries) == 1:  # itself, whatever its weight
            entries[0]["weights"] = {}
        if traits.weights and self.method not in COUNTED:
            entries = [entry for entry in entries if entry["weights"]]
            if not entries:  # a merge that moves nothing is the base, whatever its method
                return {"version": VERSION, "experts": []}
        if traits.mean or options.get("normalize"):
            _normalise(entries)
        if self.method != "nuslerp":
            entries.sort(key=lambda entry: str(entry["expert"]))
        return form | {"experts": _listed(entries)} | ({"mask_seed": self.mask_seed} if traits.masks else {})

    def phenotype(self, fingerprints: Mapping[str, str]) -> str:
        """SHA-256 of the canonical form: equal for recipes that make the same model."""
        return digest(self.canonical(fingerprints))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to YAML; `from_dict` returns the recipe."""
        plain = {
            name: {e: {part: list(knots) for part, knots in parts.items()} for e, parts in getattr(self, name).items()}
            for name in ("weights", "densities")
        }
        values = {"method": self.method, "experts": list(self.experts), **plain, "options": dict(self.options)}
        return values | {"mask_seed": self.mask_seed}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote, or a person: a number stands for one knot, and for all parts.

        Raises:
            ValueError: a field is missing or unknown, or a coefficient, an option or the seed is no number.
        """
        expected = ["method", "experts", "weights", "densities", "options", "mask_seed"]
        unknown, missing = set(values) - set(expected), {"method", "experts"} - set(values)
        if unknown or missing:
            raise ValueError(f"a recipe has the fields {expected}, got {sorted(values)}")
        experts = tuple(values["experts"])
        return Recipe(
            method=values["method"],
            experts=experts,
            weights={e: _parts(parts, f"weights of {e}") for e, parts in (values.get("weights") or {}).items()},
            densities={e: _parts(parts, f"densities of {e}") for e, parts in (values.get("densities") or {}).items()},
            options={name: _number(name, value) for name, value in (values.get("options") or {}).items()},
            mask_seed=whole("mask_seed", values.get("mask_seed", 0)),
        )


@dataclass(frozen=True)
class Layers:
    """Layers `first` up to, without, `last` of one expert, as part of a stack (a frankenmerge)."""

    expert: str
    first: int
    last: int


@dataclass(frozen=True)
class Merge:
    """A recipe with its sources.

    `base` and `experts` are folders, GGUF files or hub ids; the base gives config and tokenizer. `dtype` is what is
    written, None what most of the base is stored in. `stack` is layers put on one another, each as the recipe's
    `passthrough` weight of its expert says, whose knots run along each part; the first gives embeddings, the last the
    final norm and the head. `depth` is how many layers the models must have, None where any number will do. `adapters`
    are experts that are known to be adapters of the base before they are looked at.
    """

    recipe: Recipe
    base: str
    experts: Mapping[str, str]
    dtype: str | None = None
    stack: tuple[Layers, ...] = ()
    depth: int | None = None
    adapters: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        if missing := [expert for expert in self.recipe.experts if expert not in self.experts]:
            raise ValueError(f"no source is given for expert {missing[0]!r}; there are {sorted(self.experts)}")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {self.dtype!r}")
        if not self.stack:
            check(self.recipe)
            if self.recipe.method == "passthrough" and not self.recipe.weights:
                raise ValueError("passthrough without weights is a model of zeros: give its expert one, 1 as it is")
        elif self.recipe.method != "passthrough":
            raise ValueError(f"layers can be stacked by passthrough alone, got {self.recipe.method!r}")
        else:
            _check_values(self.recipe)
        for layers in self.stack:
            if layers.expert not in self.experts or not 0 <= layers.first < layers.last:
                raise ValueError(f"a stack needs layers of known experts, first below last, got {layers}")


def constant(
    method: str,
    weights: Mapping[str, float],
    *,
    density: float = 1.0,
    options: Mapping[str, float] | None = None,
    mask_seed: int = 0,
) -> Recipe:
    """The recipe with one weight an expert everywhere, and one density for all."""
    return Recipe(
        method=method,
        experts=tuple(weights),
        weights={expert: {ANY: (weight,)} for expert, weight in weights.items()},
        densities={expert: {ANY: (density,)} for expert in weights},
        options=dict(options or {}),
        mask_seed=mask_seed,
    )


def parents(experts: Sequence[str]) -> dict[str, Recipe]:
    """The base and every expert, as the recipes that make them."""
    base = constant("task_arithmetic", dict.fromkeys(experts, 0.0))
    return {"base": base} | {expert: constant("task_arithmetic", {expert: 1.0}) for expert in experts}


def standard_merges(experts: Sequence[str]) -> dict[str, Recipe]:
    """What people do without a search, at the defaults of the papers.

    Uniform average (arXiv 2203.05482); task arithmetic with scale .4 (arXiv 2212.04089, what it found to serve without
    tuning); TIES with a fifth kept and scale 1 (arXiv 2306.01708).
    """
    return {
        AVERAGE: constant("linear", dict.fromkeys(experts, 1.0)),
        "task arithmetic": constant("task_arithmetic", dict.fromkeys(experts, 0.4)),
        "plain TIES": constant("ties", dict.fromkeys(experts, 1.0), density=0.2),
    }


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be merged.

    Raises:
        ValueError: the method, an option or an expert of the coefficients is unknown, there are too few or too many
            experts, a weight is not finite, slerp's t is outside [0, 1], a density outside (0, 1], or an option
            outside of its range.
    """
    if recipe.method not in TRAITS:
        raise ValueError(f"merge method must be one of {sorted(TRAITS)}, got {recipe.method!r}")
    traits, count = TRAITS[recipe.method], len(recipe.experts)
    if count < traits.fewest or count > (traits.most or count):
        span = f"{traits.fewest} to {traits.most}" if traits.most else f"{traits.fewest} or more"
        raise ValueError(f"{recipe.method} merges {span} experts, got {count}: {list(recipe.experts)}")
    if len(set(recipe.experts)) < count:
        raise ValueError(f"experts must be distinct, got {list(recipe.experts)}")
    _check_values(recipe)


def _check_values(recipe: Recipe) -> None:
    """Refuse options and coefficients that a method has not, or of no use, whatever the number of its experts."""
    options = TRAITS[recipe.method].options
    if unknown := sorted(set(recipe.options) - set(options)):
        raise ValueError(f"{recipe.method} has no option {unknown[0]!r}; it has {sorted(options)}")
    if not all(math.isfinite(value) for value in recipe.options.values()):
        raise ValueError(f"options must be finite, got {dict(recipe.options)}")
    for name, value in recipe.options.items():
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not low <= value <= high:
            span = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"{low:g} or more"
            raise ValueError(f"option {name!r} must be {span}, got {value:g}")
    for kind in ("weights", "densities"):
        if strangers := sorted(set(getattr(recipe, kind)) - set(recipe.experts)):
            raise ValueError(f"{kind} are given for {strangers[0]!r}; the experts are {list(recipe.experts)}")
    for expert, parts in recipe.weights.items():
        share = recipe.method == "slerp" and expert == recipe.experts[-1]
        for part, knots in parts.items():
            if not knots or not all(math.isfinite(w) and (not share or 0 <= w <= 1) for w in knots):
                expected = "in [0, 1]" if share else "finite"
                raise ValueError(f"weights must be {expected}, got {list(knots)} for expert {expert!r}, part {part!r}")
    for expert, parts in recipe.densities.items():
        for part, knots in parts.items():
            if not knots or not all(0 < density <= 1 for density in knots):
                raise ValueError(f"densities must be in (0, 1], got {list(knots)} for expert {expert!r}, part {part!r}")


def interpolate(knots: Sequence[float], depth: float) -> float:
    """The value at `depth` in [0, 1] of the line through equally spaced `knots`."""
    place = depth * (len(knots) - 1)
    left = int(place)
    right = min(left + 1, len(knots) - 1)
    share = place - left
    return float((1 - share) * knots[left] + share * knots[right])


def _value(parts: Parts, tensor: str, depth: float, default: float) -> float:
    for part, knots in parts.items():
        if holds(part, tensor):
            return interpolate(knots, depth) if len(knots) > 1 else knots[0]
    return default


def _parts(value: Any, where: str) -> dict[str, Knots]:
    """Parts from what a person writes: a number, a list of knots, or either by part."""
    by_part = value if isinstance(value, Mapping) else {ANY: value}
    found = {}
    for part, knots in by_part.items():
        listed = knots if isinstance(knots, list | tuple) else [knots]
        if not listed or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in listed):
            raise ValueError(f"{where}: expected a number or a list of numbers, got {knots!r}")
        found[str(part)] = tuple(float(v) for v in listed)
    return found


def _number(option: str, value: Any) -> float:
    """An option's value, which may be yes or no."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"option {option!r} must be a number, got {value!r}") from error


def whole(name: str, value: Any) -> int:
    """A whole number as a person writes it.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


def _ordered(parts: Parts) -> dict[str, Knots]:
    """Parts in the order of their names where they are groups, which do not overlap; else as they stand.

    A piece is marked as one where it is the name of a group, too, and nowhere else.
    """
    plain: dict[str, Knots] = {}
    for part, knots in parts.items():
        bare = part.removeprefix(PIECE)
        plain.setdefault(part if bare in (*GROUPS, ANY) else bare, knots)
    parts = plain
    expanded = dict.fromkeys(GROUPS, parts[ANY]) if set(parts) == {ANY} else dict(parts)
    return {part: expanded[part] for part in sorted(expanded)} if set(expanded) <= set(GROUPS) else expanded


def _used(weights: Parts) -> dict[str, list[float]]:
    """The parts that weigh something; a part of no weight counts where one after it may hold the same parameters."""
    ordered = _ordered(weights)
    groups = set(ordered) <= set(GROUPS)
    used = {part: _constant(knots) for part, knots in ordered.items() if not groups or any(knots)}
    return used if any(any(knots) for knots in used.values()) else {}


def _listed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries whose parts are lists, in which their order is kept."""
    return [{k: list(v.items()) if isinstance(v, dict) else v for k, v in entry.items()} for entry in entries]


def _constant(knots: Sequence[float]) -> list[float]:
    """The knots; equal ones are one constant."""
    return [knots[0]] if len(set(knots)) == 1 else list(knots)


def _normalise(entries: list[dict[str, Any]]) -> None:
    """Scale constant weights of each group so that their magnitudes sum to one; others stay as they are."""
    if not all(set(entry["weights"]) <= set(GROUPS) for entry in entries):
        return
    for group in {g for entry in entries for g in entry["weights"]}:
        members = [entry["weights"][group] for entry in entries if group in entry["weights"]]
        if all(len(weights) == 1 for weights in members):
            total = sum(abs(weights[0]) for weights in members)
            if abs(sum(weights[0] for weights in members)) < max(1e-8 * total, LEAST):  # what no merge divides by
                continue
            for weights in members:
                weights[0] = round(weights[0] / total, 9)
