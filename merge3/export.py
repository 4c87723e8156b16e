"""Export: a merge written as a model that anyone can load, with a card that says how it was made.

What is written is read back, and gives the logits that the live merge gives.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from merge3 import licences, mergefile, models
from merge3.merging import LiveMerger
from merge3.recipe import ANY, COUNTED, GROUPS, PIECE, TRAITS, Layers, Merge, Recipe, depth_of, holds, layer_of

SHARD = "5GB"
PROBE = 16  # tokens on which the written model is held against the live one


def export(
    merge: Merge,
    out: Path,
    device: str = "cpu",
    scores: pd.DataFrame | None = None,
    measured: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> PreTrainedModel:
    """Write the merged model to `out`: safetensors shards, config, the base's tokenizer and processors, recipe, card.

    `scores` and `measured`, how they came about, go into the card, see `card`. `say` is told what of the parents is
    left out, and which adapters were made for another base.

    Returns:
        The live merge.

    Raises:
        FileExistsError: `out` holds something.
        FileNotFoundError: a source cannot be found.
        OSError: nothing can be written there.
        ValueError: the recipe cannot be merged, or the written model does not give the live one's logits.
    """
    begun(out).rmdir()
    if scores is not None and (missing := {"model", "accuracy", "low", "high"} - set(scores.columns)):
        raise ValueError(f"scores must have the columns model, accuracy, low and high; there is no {min(missing)!r}")
    folder = _base(merge)
    tokenizer = models.stored_tokenizer(folder)
    added = _added(merge, tokenizer)
    notes = [models.left_out(name, tokens) for name, tokens in added.items() if tokens]
    notes += [
        f"{name} is an adapter made for {other}; the base here is {merge.base}"
        for name, source in merge.experts.items()
        if (other := models.of_another(models.weights_folder(source), merge.base))
    ]
    recipe = merge.recipe
    if TRAITS[recipe.method].weights and recipe.method not in (*COUNTED, "slerp"):
        left = [name for name in recipe.experts if not recipe.weights.get(name)]
        notes += [f"{name} has no weight: nothing of it is merged" for name in left]
    if models.config_of(folder).model_type != models.whole_config_of(folder).model_type:
        notes.append(f"{merge.base} is a model of more than text: the merge is of its text alone")
    for note in notes:
        say(note)
    live = _built(merge, folder, device, added)
    partial = begun(out)
    live.save_pretrained(partial, max_shard_size=SHARD)
    models.save_tokenizer(tokenizer, partial)
    models.copy_files(folder, models.SENTENCEPIECE, partial)
    models.copy_files(folder, models.PROCESSORS, partial)
    (partial / "merge.yaml").write_text(mergefile.to_yaml(merge), encoding="utf-8")
    (partial / "README.md").write_text(card(merge, out.name, live.dtype, scores, measured, notes), encoding="utf-8")
    check_written(live, partial, device)
    finished(partial, out)
    return live


def begun(out: Path) -> Path:
    """The empty folder beside `out` that becomes it, made: whether anything can be written there is known at once.

    Raises:
        FileExistsError: `out` holds something, or is a file or a link.
        OSError: nothing can be written there.
        ValueError: `out` has no name, as `.` has none.
    """
    if not out.name:
        raise ValueError(f"the model is written to a new folder, and {str(out)!r} names none: give it a name")
    if out.is_symlink():
        raise FileExistsError(f"the model is written to a new folder, and {out} is a link: name another place")
    if out.is_file():
        raise FileExistsError(f"the model is written to a new folder, and {out} is a file: name another place")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name a new folder, or remove what is there")
    partial = out.with_name(f"{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise OSError(f"nothing can be written to {out}: {error}") from error
    return partial


def finished(partial: Path, out: Path) -> None:
    """Give what was `begun` its name: what has it is whole."""
    if out.exists():
        out.rmdir()
    partial.rename(out)


def build(merge: Merge, device: str = "cpu") -> PreTrainedModel:
    """The merged model, live, in the dtype it is written in.

    Raises:
        FileNotFoundError: a source cannot be found.
        ValueError: experts and base do not fit, or the recipe cannot be merged.
    """
    folder = _base(merge)
    tokenless = merge.stack or not models.has_tokenizer(folder)
    return _built(merge, folder, device, {} if tokenless else _added(merge, models.load_tokenizer(folder)))


def _base(merge: Merge) -> Path:
    """Where the base's weights lie.

    Raises:
        FileNotFoundError: it cannot be found.
        ValueError: it is an adapter.
    """
    folder = models.weights_folder(merge.base)
    models.refuse_adapter(folder)
    return folder


def _built(merge: Merge, folder: Path, device: str, added: Mapping[str, Mapping[str, int]]) -> PreTrainedModel:
    """`build`, where it is known in which folder the base lies and which tokens each expert added."""
    models.check_device(device)
    dtype = models.written_dtype(folder) if merge.dtype is None else models.resolve_dtype(merge.dtype, device)
    folders = {name: models.weights_folder(source) for name, source in merge.experts.items()}
    if merge.stack:
        return stacked(merge, folders, dtype, device)
    base = models.load_stored(folder)
    if merge.depth not in (None, has := base.config.get_text_config().num_hidden_layers):
        raise ValueError(
            f"the layers to merge must all cover the model: the base has {has}, asked for are {merge.depth}"
        )
    weights = models.weights_of(base)
    _check_parts(merge.recipe, weights)
    changes = {
        name: models.changes(folders[name], weights, base.config, added.get(name, {}).values())
        for name in merge.recipe.experts
    }
    prints = {name: models.fingerprint(folders[name]) for name in merge.recipe.experts}
    live = models.load(folder, dtype, device)
    LiveMerger(live, changes, prints, weights).apply(merge.recipe)
    return live


def _check_parts(recipe: Recipe, weights: Mapping[str, Tensor]) -> None:
    """Refuse parts that hold nothing, but for those that are marked as pieces.

    Raises:
        ValueError: there is one.
    """
    for named in (recipe.weights, recipe.densities):
        for expert, parts in named.items():
            written = [part for part in parts if not part.startswith(PIECE)]
            if unknown := [part for part in written if not any(holds(part, name) for name in weights)]:
                raise ValueError(
                    f"part {unknown[0]!r} of {expert!r} holds none of the model's parameters: a part is one of "
                    f"{[*GROUPS, ANY]} or a piece of names as {list(weights)[-1]}"
                )


def _added(merge: Merge, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, int]]:
    """The tokens that each expert added to the base's; of a stack, which takes embeddings as they are, none may.

    Raises:
        IncompatibleModels: a number is two tokens, or an expert of a stack has not the base's tokens.
    """
    folders = {name: models.weights_folder(source) for name, source in merge.experts.items()}
    if merge.stack:
        for name, folder in folders.items():
            if models.vocabulary(folder) not in (None, tokenizer.get_vocab()):
                raise models.IncompatibleModels(
                    f"expert {name!r} has not the base's tokens: layers of it cannot be stacked"
                )
        return {}
    return {name: models.added_tokens(folder, tokenizer) for name, folder in folders.items()}


def stacked(merge: Merge, folders: Mapping[str, Path], dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Layers of experts put on one another (a frankenmerge): embeddings of the first, final norm and head of the last.

    Raises:
        ValueError: an expert has not so many layers, or layers of more than text; the experts are of different
            sizes; or a part of the recipe holds none of their parameters.
    """
    parts = {name: models.load_stored(folders[name]) for name in folders}
    first = parts[merge.stack[0].expert]
    config = copy.deepcopy(first.config)
    if config.get_text_config() is not config:
        raise ValueError(f"layers of a {config.model_type} cannot be stacked: it has other layers beside those of text")
    depths = {name: model.config.num_hidden_layers for name, model in parts.items()}
    for layers in merge.stack:
        if layers.last > depths[layers.expert]:
            raise ValueError(f"{layers.expert!r} has {depths[layers.expert]} layers, the stack asks for {layers.last}")
    config.num_hidden_layers = sum(layers.last - layers.first for layers in merge.stack)
    for field, kinds in list(vars(config).items()):  # layer_types, and what else has an entry a layer
        if isinstance(kinds, list) and len(kinds) == first.config.num_hidden_layers:
            setattr(config, field, [kind for layers in merge.stack for kind in kinds[layers.first : layers.last]])
    live: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    live.generation_config = copy.deepcopy(first.generation_config)
    weights = {name: models.weights_of(model) for name, model in parts.items()}
    lowest = weights[merge.stack[0].expert]
    _check_parts(merge.recipe, lowest)
    for name, parameter in models.weights_of(live).items():
        part, there = _origin(name, merge.stack, lowest)
        found = weights[part.expert].get(there)
        if found is None or found.shape != parameter.shape:
            shape = "none" if found is None else f"one of shape {tuple(found.shape)}"
            raise ValueError(f"{name!r} needs shape {tuple(parameter.shape)}; {part.expert!r} has {shape} at {there!r}")
        scale = _scale(merge.recipe, part, there)
        parameter.copy_(found.float() * scale if scale != 1 else found)
    module: torch.nn.Module = live
    module.to(torch.device(device)).train(False).requires_grad_(False)
    return live


def _origin(name: str, stack: Sequence[Layers], first: Mapping[str, Tensor]) -> tuple[Layers, str]:
    """The part of a stack that a parameter is from, and the parameter's name in that part's expert."""
    layer = layer_of(name)
    if layer is None:
        order = list(first)
        before = order.index(name) < min(i for i, other in enumerate(order) if layer_of(other) is not None)
        return (stack[0] if before else stack[-1]), name
    for layers in stack:
        if layer < layers.last - layers.first:
            original = next(key for key in first if layer_of(key) == 0)
            prefix = original[: original.index(".0.")]
            rest = name[len(prefix) + 1 :].split(".", 1)[1]
            return layers, f"{prefix}.{layers.first + layer}.{rest}"
        layer -= layers.last - layers.first
    raise ValueError(f"{name!r} is beyond the stack")


def _scale(recipe: Recipe, part: Layers, name: str) -> float:
    one = Recipe("passthrough", (part.expert,), {part.expert: recipe.weights.get(part.expert, {ANY: (1.0,)})})
    layer = layer_of(name)
    depth = depth_of(None if layer is None else layer - part.first, part.last - part.first)
    return one.at_depth(name, depth).weights[0]


def check_written(live: PreTrainedModel, out: Path, device: str) -> None:
    """Read a written model back and hold it against the live one, which makes room for it on the device meanwhile.

    Raises:
        ValueError: their logits differ.
    """
    tokens = torch.arange(PROBE, device=device).view(1, -1) % live.config.get_text_config().vocab_size
    module: torch.nn.Module = live  # whose methods have whole types
    ours = _logits(live, tokens)
    module.to("cpu")
    theirs = _logits(models.load(out, live.dtype, device), tokens)
    module.to(device)
    if not torch.equal(ours, theirs):
        worst = float((ours - theirs).abs().max())
        raise ValueError(f"{out}: the written model's logits differ from the live one's by up to {worst}")


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens, use_cache=False).logits
    return logits


def card(
    merge: Merge,
    name: str,
    dtype: torch.dtype,
    scores: pd.DataFrame | None = None,
    measured: str = "",
    notes: Sequence[str] = (),
) -> str:
    """A model card as the hub reads it: parents, their licences and what follows, recipe, and scores if there are any.

    `scores` has a row a model, with `model`, `accuracy`, `low` and `high`; and, where the first model was compared with
    the others, `lead`, `lead_low`, `lead_high` and `holm_p`. `measured` says in a sentence or two how. `notes` are
    of the parents.
    """
    sources = {"base": merge.base, **merge.experts}
    parents = list(dict.fromkeys(sources.values()))
    stated = {source: licences.licence(source) for source in parents}
    follows = licences.consequences(stated)
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": [source for source in parents if not Path(source).exists()] or None,
        "base_model_relation": "merge",
        "tags": ["merge", "merge3"],
    }
    if len(set(stated.values())) == 1:
        whole = licences.front(merge.base)
        front |= {key: whole.get(key) for key in ("license", "license_name", "license_link")}
    if not front["base_model"]:  # the hub takes ids, not folders
        del front["base_model"], front["base_model_relation"]
    front = {key: value for key, value in front.items() if value is not None}
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    lines += [
        f"A merge of {len(merge.recipe.experts)} fine-tunes of one base by `{merge.recipe.method}`, in "
        f"{models.dtype_name(dtype)}, made with merge3. It loads like any model of its kind:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model, tokenizer = (auto.from_pretrained("{name}") for auto in (AutoModelForCausalLM, AutoTokenizer))',
        "```",
        "",
    ]
    lines += ["## Parents", "", "| | source | licence |", "|---|---|---|"]
    lines += [f"| {label} | {source} | {stated[source] or 'not stated'} |" for label, source in sources.items()]
    lines += ["", *(f"{note}." for note in notes)] if notes else []
    lines += ["", "### Licence", "", *(f"- {text}" for text in follows)] if follows else []
    again = "`merge3 merge merge.yaml OUT` makes this model again"
    if any(Path(source).exists() and not Path(source).is_absolute() for source in parents):
        again += ", run in the folder from which its paths lead to the parents"
    lines += ["", "## Recipe", "", f"{again}.", ""]
    lines += ["```yaml", mergefile.to_yaml(merge).strip(), "```", ""]
    if scores is not None:
        lines += ["## Scores", "", *([measured, ""] if measured else []), *_scores(scores), ""]
    return "\n".join(lines)


def _scores(scores: pd.DataFrame) -> list[str]:
    """The table of scores, in Markdown, and what its columns are."""
    compared = {"lead", "lead_low", "lead_high", "holm_p"} <= set(scores.columns)
    said = "Accuracy on held-out items, in per cent, with 95 % bootstrap intervals."
    heads = ["model", "accuracy", "interval"]
    if compared:
        said += (
            f" The lead of {scores['model'].iloc[0]} over each is on the same items, with its paired interval; p is "
            "McNemar's, corrected for the number of models (Holm)."
        )
        heads += ["lead", "p"]
    lines = [said, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for place, row in enumerate(scores.to_dict("records")):
        cells = [row["model"], f"{100 * row['accuracy']:.1f}", f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"]
        if compared:
            low, high = 100 * row["lead_low"], 100 * row["lead_high"]
            lead = f"{100 * row['lead']:+.1f} [{low:+.1f}, {high:+.1f}]"
            cells += ["", ""] if place == 0 else [lead, f"{row['holm_p']:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
