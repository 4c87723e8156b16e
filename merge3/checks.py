"""Checks that cost seconds, made before hours are spent: parents, items, memory, disk, device, answers.

A finding is `ok`, a `risk` (the work can be done; read it) or `wrong` (it cannot). Models are judged by their configs,
tokenizers and cards: no weights but an adapter's are loaded, or fetched from the hub.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from merge3 import licences, models
from merge3.items import Item
from merge3.plan import GIGABYTE, Machine, memory, plan, resolve_batch_tokens, token_bytes
from merge3.store import Answer, digest, parsed

OK, RISK, WRONG = "ok", "risk", "wrong"
SMALL = [*models.SMALL, "README.md", models.ADAPTER_WEIGHTS]  # of a model on the hub
NAME = re.compile(r"\w[\w.-]*")  # of an expert: of folders and rows of tables, too
CONTEXT = "context"  # what a finding of prompts that do not fit is about
FEW = 50  # items, below which hardly any difference between models can be shown
LONGEST = 20  # prompts, by characters, whose tokens are counted


@dataclass(frozen=True)
class Finding:
    """What was found about something."""

    level: str
    what: str
    text: str


def refuse(findings: Iterable[Finding]) -> None:
    """Stop where anything is wrong.

    Raises:
        ValueError: it says what.
    """
    if wrong := [f"{finding.what}: {finding.text}" for finding in findings if finding.level == WRONG]:
        raise ValueError("; ".join(wrong))


def small(source: str) -> Path:
    """A model's folder, or GGUF file; of a hub id everything but its weights, if those are no adapter's.

    Raises:
        FileNotFoundError: `source` is neither a model nor a hub id that can be reached.
    """
    path = Path(source)
    if path.is_dir():
        if not list(path.glob("*.safetensors")):
            raise FileNotFoundError(
                f"{source} has no .safetensors files: it is no model, or one in a form that is refused"
            )
        return path
    if models.is_gguf(source) and path.is_file():
        return path
    try:
        return Path(snapshot_download(source, allow_patterns=SMALL))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{source!r} is neither a folder nor a hub id that can be reached from here") from error


def parents(base: str, experts: Mapping[str, str]) -> list[Finding]:
    """Whether base and experts are there, fit together, and may be merged and shared."""
    found: list[Finding] = []
    try:
        folder = small(base)
        config = models.config_of(folder)
        models.check_causal(base, config)
        tokenizer = models.load_tokenizer(folder)
        model = models.skeleton(config)
    except (OSError, ValueError, KeyError) as error:
        return [Finding(WRONG, "base", _line(error))]
    count = sum(parameter.numel() for parameter in model.parameters())
    found.append(Finding(OK, "base", f"{base}: {config.model_type}, {count / 1e6:,.0f} M parameters"))
    if not experts:
        found.append(Finding(WRONG, "experts", "there is none: name two fine-tunes of the base or more"))
    if len(experts) == 1:
        found.append(Finding(RISK, "experts", "there is one: only how far to go towards it can be searched"))
    named = {"base": base, **experts}
    if wrong := [name for name in experts if name == "base" or not NAME.fullmatch(name)]:
        text = f"a name is letters, digits, '_', '-' and '.', begins with none of the last two, is not 'base': {wrong}"
        found.append(Finding(WRONG, "experts", text))
    places = {name: models.absolute(source) for name, source in named.items()}
    for source, times in Counter(places.values()).items():
        if times > 1:
            names = ", ".join(name for name, other in places.items() if other == source)
            found.append(Finding(WRONG, "experts", f"{names} are the same model, {source}"))
    found += [expert(name, source, model, config, tokenizer, base) for name, source in experts.items()]
    stated = {source: licences.licence(source) for source in dict.fromkeys(named.values())}
    follows = licences.consequences(stated)
    found += [Finding(RISK, "licence", text) for text in follows]
    if not follows:
        found.append(Finding(OK, "licence", ", ".join(sorted({str(value) for value in stated.values()}))))
    return found


def expert(
    name: str,
    source: str,
    base: torch.nn.Module,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    origin: str,
) -> Finding:
    """Whether an expert is a fine-tune or an adapter of the base, whose weights may be on the meta device.

    `origin` is where the base is from.
    """
    what = f"expert {name}"
    try:
        folder = small(source)
        added = models.added_tokens(folder, tokenizer)
        if models.is_adapter(folder):
            changed = models.changes(folder, models.weights_of(base), config, added.values())  # type: ignore[arg-type]
            said = f"{source}: an adapter of {len(changed)} tensors"
            if made_for := models.of_another(folder, origin):
                return Finding(RISK, what, f"{said}, made for {made_for}; the base here is {origin}")
        else:
            models.check_config(folder, config)
            said = f"{source}: a model of the base's shape and vocabulary"
            if not models.is_gguf(folder) and list(folder.glob("*.safetensors")):
                models.stored_dtype(folder)
            rows, ours = (
                getattr(of.get_text_config(), "vocab_size", None) for of in (models.config_of(folder), config)
            )
            if not models.has_tokenizer(folder) and rows != ours:
                text = (
                    f"{source} has no tokenizer and {rows} rows of tokens, the base {ours}: taken as the base's tokens"
                )
                return Finding(RISK, what, text)
    except (OSError, ValueError, KeyError) as error:
        return Finding(WRONG, what, _line(error))
    return Finding(RISK, what, models.left_out(source, added)) if added else Finding(OK, what, said)


def runtime(device: str, dtype: str) -> Finding:
    """Whether the device is there, and whether it multiplies the dtype in hardware."""
    try:
        models.check_device(device)
        resolved = models.resolve_dtype(dtype, device)
    except ValueError as error:
        return Finding(WRONG, "runtime", _line(error))
    said = f"{models.runtime_name(device)}, {models.dtype_name(resolved)}"
    if resolved.itemsize == 2 and resolved != models.resolve_dtype("auto", device):
        return Finding(RISK, "runtime", f"{said}, which is slow here: {device} does not multiply it in hardware")
    return Finding(OK, "runtime", said)


def room(
    base: str, experts: Sequence[str], method: str, device: str, dtype: str, batch_tokens: str | int, out: Path
) -> list[Finding]:
    """Whether a search by merging fits into memory, and its models on the disk of `out`; call it for sound parents."""
    resolved = models.resolve_dtype(dtype, device)
    folder, folders = small(base), [small(source) for source in experts]
    cpu = torch.device(device).type == "cpu"
    have = float(models.free_memory()) if cpu else memory(device)
    machine = Machine(have, 1.0, 1.0)
    bare = plan(folder, folders, method, machine, tokens=1, batch_tokens=0, dtype=resolved)
    config = models.config_of(folder)
    batch = resolve_batch_tokens(batch_tokens, config, resolved, device, bare.model, bare.resident - bare.model)
    needs = replace(bare, answering=batch * token_bytes(config, resolved))
    where = "memory that is free" if cpu else f"{device}'s memory"
    said = f"{needs.resident / GIGABYTE:.1f} GB of {have / GIGABYTE:.1f} GB of {where}"
    streamed = f"model and answers need {needs.streamed / GIGABYTE:.1f} GB of {have / GIGABYTE:.1f} GB of {where}"
    slower = "base and experts are read from disk for every merge" if cpu else "merges read it from main memory"
    found = [
        {
            "resident": Finding(OK, "memory", said),
            "streamed": Finding(RISK, "memory", f"{streamed}; the rest does not fit: {slower}, which is slower"),
            "too large": Finding(WRONG, "memory", f"{streamed}: take smaller batches, or a larger device"),
        }[needs.mode]
    ]
    place = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free, model = shutil.disk_usage(place).free, needs.model
    said = f"{free / GIGABYTE:.1f} GB free at {out}; base and winner take {2 * model / GIGABYTE:.1f} GB"
    level = WRONG if free < 2 * model else RISK if free < 4 * model else OK
    return [*found, Finding(level, "disk", said)]


def context(source: str | Path) -> float:
    """Tokens that a model's positions reach, by its config; infinite where it does not say."""
    config = models.config_of(source).get_text_config()
    return float(getattr(config, "max_position_embeddings", None) or math.inf)


def benchmark(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, context: float) -> list[Finding]:
    """Whether the items tell models apart, and fit into the context."""
    groups = Counter(item.group for item in items)
    shown = ", ".join(f"{group or 'no group'} ({count})" for group, count in sorted(groups.items()))
    width = 98 / len(items) ** 0.5
    text = f"{len(items)}: {shown}; a score on all is known to within {width:.0f} points"
    found = [Finding(OK if len(items) >= FEW else RISK, "items", text)]
    if twice := len(items) - len({item.content_hash for item in items}):
        found.append(Finding(RISK, "items", f"{twice} questions are there more than once"))
    if alike := [item.id for item in items if len(set(item.options)) < len(item.options)]:
        text = f"{len(alike)} items have an option twice (the first: {alike[0]!r}): not scored, give each option once"
        found.append(Finding(RISK, "items", text))
    longest = sorted(items, key=lambda item: len(item.prompt), reverse=True)[:LONGEST]
    tokens = [len(tokenizer(item.prompt)["input_ids"]) for item in longest]
    if beyond := sum(count >= context for count in tokens):
        text = f"{beyond} or more have prompts of up to {max(tokens)} tokens, the context is {context:.0f}: not scored"
        found.append(Finding(RISK, CONTEXT, text))
    return found


def answers(root: Path) -> Finding:
    """Whether every line of an answers store passes its checksum. Nothing is moved or mended."""
    what, count, damaged = f"answers {root}", 0, []
    for path in sorted(root.glob("*/*.jsonl")):
        try:
            kept = _kept(path)
        except PermissionError:
            return Finding(WRONG, what, f"{path} cannot be read")
        if kept is None:
            damaged.append(path.name)
        else:
            count += len(kept)
    if damaged:
        text = f"{len(damaged)} files are damaged (first: {damaged[0]}): they will be set aside and asked again"
        return Finding(RISK, what, text)
    return Finding(OK, what, f"{count} answers, all whole")


def _kept(path: Path) -> dict[str, Answer] | None:
    """The answers of a file of the store; None where it is damaged, or not called by the hash of its key."""
    content = path.read_bytes()
    try:
        key = json.loads(content.partition(b"\n")[0])
        return parsed(content, key) if digest(key) == path.stem else None
    except (ValueError, RecursionError):  # the latter of brackets without end
        return None


def _line(error: BaseException) -> str:
    return str(error).split("\n")[0] if str(error) else type(error).__name__
