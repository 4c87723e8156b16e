"""mergekit's YAML (arXiv 2403.13257), read and written, so that people can come and leave.

Settings are looked up as mergekit does: a model's own before the file's, of those with a filter the first whose text is
in the parameter's name, lists along depth. What is not done here is refused by name, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count, dropwhile, takewhile
from typing import Any

from merge3.models import is_adapter
from merge3.recipe import ANY, GROUPS, PIECE, TRAITS, Knots, Layers, Merge, Parts, Recipe

FIELDS = {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"}
TOKENIZER = {"tokenizer_source", "tokenizer"}
ENTRY = {"models": {"model", "parameters"}, "sources": {"model", "layer_range", "parameters"}}
SLICE = {"sources", "parameters", "base_model"}
IGNORED = {"int8_mask", "eps"}  # how mergekit computes, not what
FIXED: Mapping[str, bool] = {  # where it is no option
    "nuslerp_flatten": True,
    "nuslerp_row_wise": False,
    "filter_wise": False,
    "rescale": False,
}
IDLE = {"task_arithmetic": {"density", "rescale"}, "model_stock": {"normalize"}}  # read there, and without effect
THEIRS = {("multislerp", "normalize"): "normalize_weights"}  # mergekit's name of an option, where ours is another
AROUND = "around_base"  # ours alone: mergekit tells it by whether there is a base
BASELESS = ("linear", "karcher", "passthrough")  # in which mergekit's base is one of the models
Model = tuple[str, dict[str, Any]]  # a folder or hub id, and its own parameters
Slice = tuple[str, int, int]  # a folder or hub id, and its layers from, to
FILTERS = {
    "attention": ("attn.", ".attention.", ".self_attention."),
    "mlp": (".mlp.", "feed_forward.", ".ffn.", "block_sparse_moe.", ".fc1.", ".fc2."),
}


# --- read


def read(values: Mapping[str, Any]) -> Merge:
    """A merge from the fields of a mergekit file.

    Raises:
        ValueError: a field, method or parameter is not known here, or a required one is missing.
    """
    method = str(values.get("merge_method"))
    if method not in TRAITS:
        raise ValueError(f"merge_method must be one of {sorted(TRAITS)}, got {method!r}")
    if unknown := sorted(set(values) - FIELDS - TOKENIZER):
        raise ValueError(f"mergekit's {unknown[0]!r} is not supported; supported are {sorted(FIELDS | TOKENIZER)}")
    base = _base(values["base_model"]) if values.get("base_model") else None
    adapters = _adapters(values, base)
    if base is None and method not in (*BASELESS, "nuslerp", "multislerp"):
        raise ValueError(f"{method} needs a base_model")
    slices, shared = values.get("slices"), dict(values.get("parameters") or {})
    stack, depth = list[Slice](), None
    if values.get("models") and slices:
        raise ValueError("give either models or slices")
    if slices and method == "passthrough":
        models, stack = _stacked(slices)
    elif slices:
        models, own, depth = _side_by_side(slices, method)
        shared = _over(own, shared)
    else:
        models = [(_source(m["model"]), dict(m.get("parameters") or {})) for m in values.get("models") or ()]
    models = _merged(models, base, method, sliced=bool(slices))
    if not models:
        raise ValueError("expected at least one model beside the base, got none")
    _check_tokenizer(values, base or models[0][0])
    names = _names(source for source, _ in models)
    recipe = _recipe(method, shared, {names[source]: own for source, own in models}, around=base is not None)
    dtype = values.get("out_dtype") or values.get("dtype")
    layers = tuple(Layers(names[source], first, last) for source, first, last in stack)
    experts = {name: source for source, name in names.items()}
    known = frozenset(names[source] for source in adapters)
    return Merge(recipe, base or models[0][0], experts, dtype, layers, depth, known)


def _base(model: Any) -> str:
    """The folder or hub id of the base.

    Raises:
        ValueError: it is no text, or an adapter.
    """
    if isinstance(model, str) and "+" in model:
        raise ValueError(f"base_model {model!r} is an adapter: merge it into its own model first")
    return _source(model)


def _source(model: Any) -> str:
    """The folder or hub id of a model; of `model+adapter` the adapter.

    Raises:
        ValueError: it is no text.
    """
    if not isinstance(model, str) or not model:
        raise ValueError(f"a model must be a folder or hub id, got {model!r}")
    return model.split("+")[-1]


def _adapters(values: Mapping[str, Any], base: str | None) -> set[str]:
    """Which of a file's models are said to be adapters of the base.

    Raises:
        ValueError: an entry or a slice says what is not done here.
    """
    found = _entries("models", values.get("models") or (), base)
    for part in values.get("slices") or ():
        _known("a slice", part, SLICE)
        if (own := part.get("base_model")) is not None and own != base:
            raise ValueError(f"a slice's base_model {own!r} is not supported: give it as the file's, which is {base!r}")
        found |= _entries("sources", part.get("sources") or (), base)
    return found


def _entries(field: str, entries: Any, base: str | None) -> set[str]:
    """Refuse entries of `models`, or of a slice's `sources`, that say more than is done here.

    Returns:
        Which of the models are said to be adapters.

    Raises:
        ValueError: one names no model, an adapter of another model than the base, or a setting that is not known; or
            two name one model.
    """
    named, adapters = set[str](), set[str]()
    for entry in entries:
        if not isinstance(entry, Mapping) or "model" not in entry:
            raise ValueError(f"each of models, and of a slice's sources, names a model: got {entry!r}")
        _known(f"an entry of {field}", entry, ENTRY[field])
        *of, adapter = str(entry["model"]).split("+")
        if of and of != [base]:
            raise ValueError(
                f"{entry['model']!r} is an adapter of {of[0]!r}, and the base_model is {base!r}: merge {adapter!r} "
                "into its own model first"
            )
        if adapter in named:
            raise ValueError(f"{adapter!r} is there twice in {field}: name each model once, with one weight")
        named.add(adapter)
        adapters |= {adapter} if of else set()
    return adapters


def _known(what: str, values: Mapping[str, Any], fields: set[str]) -> None:
    """Refuse fields that are not known.

    Raises:
        ValueError: there is one.
    """
    if unknown := sorted(set(values) - fields):
        raise ValueError(f"{what} has a field {unknown[0]!r}, which is not supported; supported are {sorted(fields)}")


def _stacked(slices: Any) -> tuple[list[Model], list[Slice]]:
    """Of passthrough's slices, of one model each, the models with their parameters, and what is put on one another.

    Raises:
        ValueError: a slice has several models, or one model other parameters in another slice.
    """
    models, stack = dict[str, dict[str, Any]](), list[Slice]()
    for part in slices:
        if len(part["sources"]) != 1:
            raise ValueError(f"a passthrough slice has one source, got {len(part['sources'])}")
        (source,) = part["sources"]
        own = _over(source.get("parameters") or {}, part.get("parameters") or {})
        name = _source(source["model"])
        if models.setdefault(name, own) != own:
            raise ValueError(f"{name!r} has other parameters in another slice: that is not supported")
        stack.append((name, *_range(source)))
    return list(models.items()), stack


def _side_by_side(slices: Any, method: str) -> tuple[list[Model], dict[str, Any], int]:
    """Of the one slice of other methods the models with their parameters, its own ones, and how many layers all have.

    Raises:
        ValueError: there are several slices, or it does not begin with layer 0 of each and end with the same.
    """
    if len(slices) > 1:
        raise ValueError(f"slices of {method} are not supported but for one that covers the model; got {len(slices)}")
    (part,) = slices
    ranges = {_range(source) for source in part["sources"]}
    if len(ranges) != 1 or min(ranges)[0] != 0:
        raise ValueError(f"layer ranges of a {method} must all cover the model, got {sorted(ranges)}")
    models = [(_source(source["model"]), dict(source.get("parameters") or {})) for source in part["sources"]]
    ((_, depth),) = ranges
    return models, dict(part.get("parameters") or {}), depth


def _over(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of which the `first` count first; where none of their filters holds, the others do."""
    both = {**then, **first}
    for name in first.keys() & then.keys():
        conditions = _conditions(first[name])
        if any(isinstance(condition, Mapping) for condition in conditions):
            both[name] = [*conditions, *_conditions(then[name])]
    return both


def _conditions(value: Any) -> list[Any]:
    """The values of a setting, those that have one with their filter."""
    several = isinstance(value, list) and any(isinstance(v, Mapping) for v in value)
    return value if several else [value]


def _range(source: Mapping[str, Any]) -> tuple[int, int]:
    """The layers of a source, from, to.

    Raises:
        ValueError: they are not two whole numbers that rise.
    """
    given = source.get("layer_range")
    match given:
        case [int(first), int(last)] if 0 <= first < last:
            return first, last
    raise ValueError(f"layer_range must be two whole numbers that rise, from 0 on, got {given!r}")


def _merged(models: list[Model], base: str | None, method: str, *, sliced: bool) -> list[Model]:
    """Those that mergekit merges: of the models that a file lists, and the base."""
    if base is None:
        return models
    if method not in BASELESS:  # what the others differ from
        return [model for model in models if model[0] != base]
    if not sliced and base not in dict(models):  # without a setting of its own
        return [*models, (base, {})]
    if method == "linear":  # where the base gives config and tokenizer alone, as `write` says it
        return [(source, own) for source, own in models if source != base or own.get("weight") != 0]
    return models


def _check_tokenizer(values: Mapping[str, Any], base: str) -> None:
    """Refuse another tokenizer than the base's.

    Raises:
        ValueError: one is asked for, or something of it.
    """
    tokenizer = values.get("tokenizer") or {"source": values.get("tokenizer_source")}
    if set(values) >= TOKENIZER or set(tokenizer) != {"source"} or tokenizer["source"] not in (None, "base", base):
        shown = ", ".join(f"{field} {values[field]!r}" for field in sorted(TOKENIZER & set(values)))
        raise ValueError(f"{shown} is not supported: the base's is kept; `merge3 tokens` makes a base with another's")


def _names(sources: Iterable[str]) -> dict[str, str]:
    """Short names of sources: the last part of each, numbered where two are alike."""
    names: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        short = source.rstrip("/").split("/")[-1]
        choices = chain([short], (f"{short}-{number}" for number in count(len(names) + 1)))
        names[source] = next(name for name in choices if name not in names.values())
    return names


def _recipe(method: str, shared: dict[str, Any], own: dict[str, dict[str, Any]], *, around: bool) -> Recipe:
    """The recipe of a method, the file's parameters, and each model's own."""
    traits, weight = TRAITS[method], _weight(method)
    options = {name: THEIRS.get((method, name), name) for name in traits.options if name != AROUND}
    known = {weight, *options.values()} | ({"density"} if traits.densities else set())
    idle = IGNORED | IDLE.get(method, set())
    fixed = {name: value for name, value in FIXED.items() if name not in known | idle}
    for settings in (shared, *own.values()):
        if strange := sorted(set(settings) - known - idle - set(fixed)):
            raise ValueError(f"{method} has no parameter {strange[0]!r}; it has {sorted(known)}")
        if refused := [name for name, value in fixed.items() if settings.get(name, value) != value]:
            raise ValueError(f"{refused[0]}: {settings[refused[0]]} is not supported")
    weights, densities = {}, {}
    for name, settings in own.items():
        if traits.weights:
            sources = [shared] if method == "slerp" else [settings, shared]
            weights[name] = _rules(weight, sources, 1.0 if method == "passthrough" else None)
        if traits.densities:
            densities[name] = _rules("density", [settings, shared], 1.0)
    found = {ours: _scalar(theirs, [shared, *own.values()]) for ours, theirs in options.items()}
    chosen = {name: value for name, value in found.items() if value is not None and value != traits.options[name]}
    if AROUND in traits.options and not around:
        chosen[AROUND] = 0.0
    return Recipe(method, tuple(own), weights, densities, chosen)


def _rules(name: str, settings: Sequence[Mapping[str, Any]], default: float | None) -> dict[str, Knots]:
    """The parts of a parameter: the settings that come first count first.

    Raises:
        ValueError: it is not set everywhere and has no default, or a value is no number.
    """
    parts: dict[str, Knots] = {}
    for scope in settings:
        value = scope.get(name)
        if value is None:
            continue
        for condition in _conditions(value):
            part, knots = ANY, condition
            if isinstance(condition, Mapping):
                part, knots = condition.get("filter") or ANY, condition["value"]
            part = part if part == ANY else PIECE + part
            parts.setdefault(part, _knots(name, knots))
    if ANY not in parts:
        if default is None:
            raise ValueError(f"{name!r} is not set for every parameter: add a value without a filter")
        parts[ANY] = (default,)
    return parts


def _knots(name: str, value: Any) -> Knots:
    listed = value if isinstance(value, list) else [value]
    try:
        return tuple(float(v) for v in listed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r} must be a number or a list of numbers, got {value!r}") from error


def _scalar(name: str, settings: Sequence[Mapping[str, Any]]) -> float | None:
    """An option, which is one number here.

    Raises:
        ValueError: it varies over models, parameters or depth.
    """
    values = [scope[name] for scope in settings if name in scope]
    if not values:
        return None
    try:
        (number,) = {float(value) for value in values}  # YAML reads 1e-9 as text
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r} must be one number here, for all models and parameters; got {values}") from error
    return number


# --- written


def write(merge: Merge) -> dict[str, Any]:
    """The fields of a mergekit file. The seed of masks has none there: mergekit draws its own.

    Where mergekit would merge a `base_model`, too, there is none, see `note`.

    Raises:
        ValueError: a part of the model cannot be said by mergekit's filters.
    """
    recipe, method = merge.recipe, merge.recipe.method
    traits, options = TRAITS[method], recipe.all_options
    options.pop(AROUND, None)
    values: dict[str, Any] = {"merge_method": method}
    models = {
        name: f"{merge.base}+{source}" if name in merge.adapters or is_adapter(source) else source
        for name, source in merge.experts.items()
    }
    base = _base_model(merge, models)
    if base is not None:
        values["base_model"] = base
    parameters: dict[str, Any] = {THEIRS.get((method, name), name): _plain(value) for name, value in options.items()}
    if method == "slerp":
        parameters["t"] = _setting(recipe.weights.get(recipe.experts[-1], {}), 0.0)
    entries: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        if model == base and method not in BASELESS:
            continue
        own = {}
        if traits.weights and method != "slerp":
            unsaid: Parts = {ANY: (1.0,)} if merge.stack else {}
            own[_weight(method)] = _setting(recipe.weights.get(name, unsaid), 0.0)
        if traits.densities:
            own["density"] = _setting(recipe.densities.get(name, {}), 1.0)
        entries[name] = {"model": model} | ({"parameters": own} if own else {})
    listed = list(entries.values())
    if merge.depth is not None:
        first: list[dict[str, Any]] = [{"model": base}] if base is not None and method not in BASELESS else []
        values["slices"] = [{"sources": [entry | {"layer_range": [0, merge.depth]} for entry in first + listed]}]
    elif merge.stack:
        values["slices"] = [
            {"sources": [entries[layers.expert] | {"layer_range": [layers.first, layers.last]}]}
            for layers in merge.stack
        ]
    elif method == "linear" and base not in models.values():  # mergekit would add it with the others' weight
        values["models"] = [*listed, {"model": base, "parameters": {_weight(method): 0.0}}]
    else:
        values["models"] = listed
    if parameters:
        values["parameters"] = parameters
    if merge.dtype:
        values["dtype"] = merge.dtype
    return values


def note(values: Mapping[str, Any], merge: Merge) -> str | None:
    """What the fields that `write` returned leave out of a merge; None where they say all of it."""
    if values.get("base_model") == merge.base:
        return None
    return f"config and tokenizer are those of one of the models: mergekit would merge the base, {merge.base}, too"


def _base_model(merge: Merge, models: Mapping[str, str]) -> str | None:
    """The base that a file names; None where mergekit would merge it, too, or tells by it what the method does."""
    recipe = merge.recipe
    if recipe.method == "slerp" and len(recipe.experts) == 2:
        return models[recipe.experts[0]]
    if recipe.method == "linear":  # in which it can be listed without weight
        return merge.base
    if recipe.method in BASELESS:
        sliced, listed = bool(merge.stack) or merge.depth is not None, merge.base in models.values()
        return merge.base if sliced or listed else None
    return merge.base if recipe.all_options.get(AROUND, True) else None


def _weight(method: str) -> str:
    """The name of our weight in mergekit."""
    return {"slerp": "t", "passthrough": "scale"}.get(method, "weight")


def _setting(parts: Parts, default: float) -> Any:
    """Parts as mergekit's setting: a value, or filters of which the last holds everywhere.

    Raises:
        ValueError: a part after `rest` differs from it: mergekit has no filter for the rest.
    """
    before = dict(takewhile(lambda part: part[0] != ANY, parts.items()))
    others = parts.get(ANY, (default,))
    if "rest" in before:
        if inside := [part for part in dropwhile(lambda part: part != "rest", before) if part not in GROUPS]:
            raise ValueError(f"mergekit cannot tell {inside[0]!r} from 'rest': give both one value")
        before |= {group: others for group in GROUPS if group not in before}
        others = before.pop("rest")
    rules: list[dict[str, Any]] = []
    for part, knots in [*before.items(), (ANY, others)]:
        value: Any = knots[0] if len(knots) == 1 else list(knots)
        for text in FILTERS.get(part, (part.removeprefix(PIECE),)):
            rules.append({"filter": text, "value": value})
    return rules[0]["value"] if len(rules) == 1 else rules


def _plain(value: float) -> float | bool | int:
    return int(value) if float(value).is_integer() and abs(value) > 1 else value
