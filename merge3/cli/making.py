"""`merge3 merge`, `tokens`, `recipe`, `plan`, `chat`."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
import yaml
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from merge3 import export, mergefile, scaling
from merge3 import plan as costs
from merge3.cli.show import as_json, as_line, ask, quiet, refuse
from merge3.models import check_device, fingerprint, load, load_tokenizer, resolve_dtype, weights_folder
from merge3.recipe import Merge
from merge3.tokens import give

MERGE_FILES = (".yaml", ".yml")


def merge(options: argparse.Namespace) -> None:
    """`merge3 merge`."""
    scores = None if options.scores is None else scores_of(options.scores)
    quiet()
    found, begin = mergefile.read(options.file), perf_counter()
    made = export.export(found, options.out, options.device, scores, say=partial(print, file=sys.stderr))
    parameters = made.num_parameters()
    if options.json:
        seconds, size = perf_counter() - begin, sum(path.stat().st_size for path in options.out.iterdir())
        written = {"path": str(options.out), "phenotype": phenotype(found), "parameters": parameters}
        as_json(written | {"seconds": seconds, "bytes": size})
    else:
        print(f"{options.out}: {parameters:,} parameters, read back and found the same")


def scores_of(path: Path) -> pd.DataFrame:
    """The scores of a card, from their file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no scores at {path}: expected a CSV file with the columns model, accuracy, low, high")
    try:
        return pd.read_csv(path)
    except ValueError as error:
        raise ValueError(f"{path} is no CSV file of scores: {str(error).strip()}") from error


def tokens(options: argparse.Namespace) -> None:
    """`merge3 tokens`."""
    quiet()
    added = give(options.base, options.expert, options.out)
    if options.json:
        as_json({"path": str(options.out), "tokens": added})
    else:
        print(f"{options.out}: the base with the tokenizer of {options.expert}, {len(added)} tokens added")


def phenotype(merge: Merge) -> str | None:
    """What a search's history calls the merge; None of a stack, which no search makes."""
    if merge.stack:
        return None
    return merge.recipe.phenotype({name: fingerprint(weights_folder(of)) for name, of in merge.experts.items()})


def recipe(options: argparse.Namespace) -> None:
    """`merge3 recipe`."""
    found = mergefile.read(options.file)
    text = mergefile.to_mergekit(found) if options.form == "mergekit" else mergefile.to_yaml(found)
    if options.json:
        as_json(yaml.safe_load(text))
    else:
        print(text, end="")


def plan(options: argparse.Namespace) -> None:
    """`merge3 plan`.

    Raises:
        ValueError: a figure of a device is not above 0 or not finite, only some of its three are given, the device that
            is to be measured is not there or has no effect, or there are more workers than candidates.
    """
    stated = [value for value in (options.memory, options.bandwidth, options.tflops) if value is not None]
    for name in ("memory", "bandwidth", "tflops", "main_bandwidth"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0 and finite, got {value:g}")
    if stated and len(stated) < 3:
        raise ValueError("--memory, --bandwidth and --tflops describe a device together: give all three")
    if options.workers > options.candidates:
        raise ValueError(
            f"--workers must be no more than the {options.candidates} --candidates, which they share, "
            f"got {options.workers}"
        )
    device = options.device or "cpu"
    if stated:
        refuse(options, ("device",), "the device that is planned for is that of --memory, --bandwidth and --tflops")
    else:
        check_device(device)
    dtype = torch.bfloat16 if stated and options.dtype == "auto" else resolve_dtype(options.dtype, device)
    if stated:
        machine = costs.Machine(
            options.memory * costs.GIGABYTE, options.bandwidth * costs.GIGABYTE, options.tflops * 1e12
        )
    else:
        machine = costs.measure(device, dtype)
    asked = mergefile.read(options.file)
    found = costs.plan(
        asked.base,
        list(asked.experts.values()),
        asked.recipe.method,
        machine,
        tokens=options.tokens,
        batch_tokens=options.batch_tokens,
        dtype=dtype,
    )
    main = options.main_bandwidth
    memory = main * costs.GIGABYTE if main else costs.measure("cpu", torch.float32).bandwidth
    search = scaling.choices(
        found, asked.recipe.method, options.candidates, options.population, options.workers, memory
    )
    if options.json:
        derived = {"resident": found.resident, "streamed": found.streamed, "mode": found.mode}
        as_json(asdict(found) | derived | {"search": [asdict(each) for each in search]})
    else:
        print(told(found, options.candidates, search))


def sized(size: int | float) -> str:
    """Bytes in the unit that shows three figures of them or more; of a small model in MB."""
    if 0 < size < costs.GIGABYTE:
        return f"{size / 1e6:8.2f} MB"
    return f"{size / costs.GIGABYTE:8.2f} GB"


def told(found: costs.Plan, candidates: int, search: list[scaling.Scaled]) -> str:
    """A plan in lines."""
    size = {name: sized(value) for name, value in asdict(found).items()}
    first = search[0]
    candidate = first.merging + first.answering
    return "\n".join(
        (
            f"parameters       {found.parameters / 1e6:8,.{0 if found.parameters >= 1e7 else 2}f} M",
            f"live model       {size['model']}",
            f"base and experts {size['ingredients']}",
            f"masks            {size['masks']}",
            f"answering        {size['answering']}",
            f"resident         {sized(found.resident)} on the device",
            f"streamed         {sized(found.streamed)} on the device, the rest in main memory",
            f"device           {size['memory']}: {found.mode}",
            f"a candidate      {candidate:8.3f} s, {first.merging / candidate:.0%} of it merging",
            f"the search       {first.own:8.3f} s of its own for {candidates} candidates, which devices do not share",
            *(
                f"{each.workers:4} device(s)   {each.seconds:8.0f} s in generations of {each.population}, "
                f"{first.seconds / each.seconds:.1f} times as fast as one"
                for each in search
            ),
        )
    )


def chat(options: argparse.Namespace) -> None:
    """`merge3 chat`."""
    quiet()
    model, tokenizer = opened(options.model, options.device, options.dtype)
    show = not options.json
    if options.prompt is not None:
        turns = [{"role": "user", "content": options.prompt}]
        written = reply(model, tokenizer, turns, options.max_tokens, show)
        if options.json:
            as_json({"prompt": options.prompt, "reply": written})
        return
    turns = []
    while said := asked():
        turns.append({"role": "user", "content": said})
        turns.append({"role": "assistant", "content": reply(model, tokenizer, turns, options.max_tokens, show)})
        if options.json:
            as_line({"prompt": said, "reply": turns[-1]["content"]})


def asked() -> str:
    """The next line of whoever is there; empty at the end."""
    try:
        return ask("> ")
    except EOFError:
        return ""


def opened(source: str, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, of a folder or hub id, or as a merge file says.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the device or dtype is not to be had, or the merge cannot be made.
    """
    check_device(device)
    if source.endswith(MERGE_FILES):
        merge = mergefile.read(Path(source))
        model = export.build(merge, device)
        if dtype != "auto":
            torch.nn.Module.to(model, resolve_dtype(dtype, device))  # in place
        return model, load_tokenizer(weights_folder(merge.base))
    folder = weights_folder(source)
    return load(folder, resolve_dtype(dtype, device), device), load_tokenizer(folder)


def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    max_tokens: int,
    show: bool,
) -> str:
    """The likeliest reply to the last turn; without a chat template only that turn is seen.

    With `show` it is printed as it is written.
    """
    tokenize: Any = tokenizer
    if tokenizer.chat_template:
        given = tokenize.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    else:
        given = tokenize(turns[-1]["content"], return_tensors="pt")
    tokens, mask = (given[name].to(model.device) for name in ("input_ids", "attention_mask"))
    if not tokens.numel():
        raise ValueError("there is nothing to answer: the prompt has no token")
    ends = model.generation_config.eos_token_id if model.generation_config else None
    settings: Any = GenerationConfig
    how = settings(
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    shown = TextStreamer(tokenize, skip_prompt=True, skip_special_tokens=True) if show else None
    generate: Any = model.generate
    written = generate(input_ids=tokens, attention_mask=mask, generation_config=how, streamer=shown)
    return str(tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True))
