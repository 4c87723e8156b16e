"""Plan: what a search by merging will need and cost, told from configs, and adapters, before a model is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PretrainedConfig

from merge3 import adapters
from merge3.models import (
    adapter,
    check_causal,
    config_of,
    is_adapter,
    refuse_adapter,
    routed_past,
    skeleton,
    value_of,
    wait_for,
)
from merge3.recipe import TRAITS

GIGABYTE = 1e9
RANKED = ("della", "della_linear")  # methods that keep a rank beside each draw
ROOM = 0.1  # of a device, left for its own needs
CPU_TOKENS = 1024  # answered at once on a CPU: larger buffers are paged in anew for every layer
MOST_TOKENS = 32768  # answered at once on any device: none is faster for more


@dataclass(frozen=True)
class Machine:
    """A device: bytes of memory, bytes copied a second (read and written), operations a second in the model's dtype."""

    memory: float
    bandwidth: float
    operations: float


@dataclass(frozen=True)
class Plan:
    """Bytes and seconds of a search. A candidate is a merge, which moves bytes, and its answers to some tokens."""

    parameters: int
    model: int
    ingredients: int
    masks: int
    answering: int
    moved: int
    merging_seconds: float
    answering_seconds: float
    memory: float

    @property
    def resident(self) -> int:
        """Bytes on the device where model and ingredients are both there."""
        return self.model + self.ingredients + self.masks + self.answering

    @property
    def streamed(self) -> int:
        """Bytes on the device where the ingredients stay in main memory, mapped from their files."""
        return self.model + self.answering

    @property
    def mode(self) -> str:
        """`resident` if all fits on the device, `streamed` if the model does, else `too large`."""
        room = self.memory * (1 - ROOM)
        return "resident" if self.resident <= room else "streamed" if self.streamed <= room else "too large"


def plan(
    base: str | Path,
    experts: Sequence[str | Path],
    method: str,
    machine: Machine,
    *,
    tokens: int,
    batch_tokens: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
) -> Plan:
    """What merging `experts` (models or adapters) into `base`, and asking `tokens` tokens a candidate, takes.

    Operations: 2 a weight and token, of a mixture's experts those that a token is routed to; a batch reads every weight
    once, which is what small batches wait for. Merging moves every byte of the ingredients and the result once.

    Raises:
        FileNotFoundError: a config, or the weights of an adapter, cannot be found.
        ValueError: the method is unknown, or the base is an adapter or no causal language model.
    """
    if method not in TRAITS:
        raise ValueError(f"merge method must be one of {sorted(TRAITS)}, got {method!r}")
    refuse_adapter(base)
    try:
        config = config_of(base)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no config of a model at {str(base)!r}: {str(error).splitlines()[0]}") from error
    check_causal(base, config)
    model = skeleton(config, dtype)
    count = sum(parameter.numel() for parameter in model.parameters())
    active, width = count - routed_past(model), dtype.itemsize
    ingredients = ingredient_bytes(model, [base, *experts], lambda _: width)
    mask = (2 if method in RANKED else 1) * count * len(experts) if TRAITS[method].masks else 0
    moved = ingredients + mask + count * width
    whole, rest = divmod(tokens, batch_tokens) if batch_tokens else (0, 0)
    batches = [batch_tokens] * whole + [rest] * (rest > 0)
    return Plan(
        parameters=count,
        model=count * width,
        ingredients=ingredients,
        masks=mask,
        answering=batch_tokens * token_bytes(config, dtype),
        moved=moved,
        merging_seconds=moved / machine.bandwidth,
        answering_seconds=math.fsum(
            max(2 * active * batch / machine.operations, count * width / machine.bandwidth) for batch in batches
        ),
        memory=machine.memory,
    )


def ingredient_bytes(model: torch.nn.Module, sources: Sequence[str | Path], width: Callable[[str | Path], int]) -> int:
    """Memory of a base and its experts: whole models by each one's bytes a number, adapters by their float32 factors.

    Raises:
        FileNotFoundError: an adapter has no weights as safetensors.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    return sum(4 * adapter_parameters(Path(s), model) if is_adapter(s) else count * width(s) for s in sources)


def token_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Memory that a token of a batch takes while it is answered.

    Its activations, 12 vectors of the hidden and 3 of the inner width, and float32 logits for a token in four.
    """
    text = config.get_text_config()
    inner = value_of(text, "intermediate_size") or 4 * text.hidden_size
    widest = max(inner) if isinstance(inner, list) else inner
    return int((12 * text.hidden_size + 3 * widest) * dtype.itemsize + text.vocab_size)


def resolve_batch_tokens(
    wanted: str | int, config: PretrainedConfig, dtype: torch.dtype, device: str, model: int, ingredients: int
) -> int:
    """The tokens answered at once: the number itself, or for `auto` what suits the device.

    On a GPU the largest power of two up to `MOST_TOKENS` whose batch takes at most half of what the bytes of `model`
    and `ingredients` leave, or those of the model alone where the ingredients do not fit beside it; on a CPU, which
    larger batches make no faster, `CPU_TOKENS`. By the device's whole memory, so that it is the same in every run;
    where a batch does not fit after all, it is halved.

    Raises:
        ValueError: neither `auto` nor a number above 0.
    """
    if wanted != "auto":
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise ValueError(f"batch_tokens must be auto or a number above 0, got {wanted!r}")
        return wanted
    if torch.device(device).type == "cpu":
        return CPU_TOKENS
    left = memory(device) * (1 - ROOM) - model
    if ingredients <= left:
        left -= ingredients
    fits = max(1.0, left / 2 / token_bytes(config, dtype))
    return min(MOST_TOKENS, 1 << int(math.log2(fits)))


def adapter_parameters(folder: Path, model: torch.nn.Module) -> int:
    """How many numbers an adapter of the model is held by: its tensors', and whole matrices where it is DoRA's.

    Raises:
        FileNotFoundError: the adapter has no weights as safetensors.
    """
    _, tensors = adapter(folder)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    whole = [
        f"{key.removeprefix(adapters.PREFIX).removesuffix('.lora_magnitude_vector')}.weight"
        for key in tensors
        if key.endswith(".lora_magnitude_vector")
    ]
    return sum(tensor.numel() for tensor in tensors.values()) + sum(sizes.get(name, 0) for name in whole)


def measure(device: str, dtype: torch.dtype) -> Machine:
    """This machine: its memory, a copy of 256 MB, and a matrix product in `dtype`; the best of five of each."""
    source = torch.ones(2**27, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    square = torch.ones(1024, 1024, dtype=dtype, device=device)

    def best(work: Any) -> float:
        seconds = []
        for _ in range(5):
            begin = perf_counter()
            work()
            wait_for(device)
            seconds.append(perf_counter() - begin)
        return min(seconds)

    moved = 2 * source.numel() * source.element_size()
    return Machine(
        memory(device), moved / best(lambda: target.copy_(source)), 2 * 1024**3 / best(lambda: square @ square)
    )


def memory(device: str) -> float:
    """Bytes of a device's memory, or of the computer's."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
