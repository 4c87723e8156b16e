"""LoRA adapters: what the files that PEFT writes change of a base.

The same numbers as PEFT's `merge_and_unload` (`tests/test_adapters.py`): LoRA (arXiv 2106.09685), rank-stabilised
(2312.03732), with ranks and scales by module, of linear layers, GPT-2's and embeddings; DoRA (2402.09353); biases and
whole modules trained beside them.

Knows names, tensors and an adapter's settings; what of a model they are is known to `merge3.models`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge3.ingredients import LowRank, Source

PREFIX = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"  # the rows of some tokens, whole
ALPHA = 8  # PEFT's, where a config does not say
APART = (
    "embedding and head are one parameter in the base, and the adapter trains them apart, or one alone; "
    "merge the adapter into its base first"
)
KEPT = (True, False, "gaussian", "eva", "orthogonal")  # values of init_lora_weights that leave the base as it is
PLAIN: dict[str, Any] = {  # what is refused where it says otherwise
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "target_parameters": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}


@dataclass(frozen=True)
class Factors:
    """What an adapter has for one matrix.

    Args:
        low: the difference, its scale within.
        magnitude: DoRA's length of what leads to each output.
        bias: what is added to the layer's bias.
        across: whether outputs are the matrix's columns (GPT-2), not its rows.
    """

    low: LowRank
    magnitude: Float[Tensor, " outputs"] | None
    bias: Float[Tensor, " outputs"] | None
    across: bool


def read(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], across: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Factors]]:
    """The tensors that an adapter holds whole, by name, and its factors, by module. Rows of tokens are apart: `rows`.

    Args:
        settings: of its adapter_config.json.
        tensors: of its file.
        across: the modules of the base whose outputs are the matrix's columns (GPT-2's). The settings'
            `fan_in_fan_out` does not say which: PEFT leaves there what the last of the modules is.

    Raises:
        ValueError: it is of a kind that cannot be merged.
    """
    if settings.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"peft_type is {settings['peft_type']!r}; only LoRA can be merged")
    if settings.get("init_lora_weights", True) not in KEPT:
        raise ValueError(f"init_lora_weights {settings['init_lora_weights']!r} changes the base")
    for field, expected in PLAIN.items():
        if settings.get(field, expected) not in (expected, None, [], {}):
            raise ValueError(
                f"{field} is {settings[field]!r}, which cannot be merged; merge the adapter into its base first"
            )
    whole, parts = dict[str, Tensor](), dict[str, dict[str, Tensor]]()
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        module, mark, part = name.rpartition(".lora_")
        if mark:
            parts.setdefault(module, {})[part.removesuffix(".weight")] = tensor
        elif not name.endswith(ROWS):
            whole[name.replace(".base_layer.", ".")] = tensor
    if not parts and not any(key.endswith(ROWS) for key in tensors):
        raise ValueError(f"it holds no LoRA matrices, but {sorted(whole)[:1] or 'nothing'}")
    return whole, {
        module: _factors(module, found, settings, module in across) for module, found in sorted(parts.items())
    }


def rows(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    """The rows of single tokens that an adapter holds, by the name of what they are of, and the token's number.

    Raises:
        ValueError: it does not say of which tokens they are.
    """
    given = settings.get("trainable_token_indices") or {}
    found = {}
    for key, tensor in tensors.items():
        if key.endswith(ROWS):
            module = key.removeprefix(PREFIX).removesuffix(ROWS)
            numbers = given if isinstance(given, list) else given.get(module.rpartition(".")[2], given.get(module, []))
            if len(numbers) != len(tensor):
                raise ValueError(
                    f"trainable_token_indices names {len(numbers)} tokens of {module!r}, got {len(tensor)}"
                )
            found[f"{module}.weight"] = dict(zip(numbers, tensor, strict=True))
    return found


def _factors(module: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], across: bool) -> Factors:
    """A module's factors, whose difference is alpha / rank * B A; rank-stabilised: alpha / sqrt(rank) * B A."""
    embedding = "embedding_A" in parts
    names = ["embedding_A", "embedding_B"] if embedding else ["A", "B"]
    wanted = (
        names + ["magnitude_vector"] * bool(settings.get("use_dora")) + ["B.bias"] * bool(settings.get("lora_bias"))
    )
    if missing := [name for name in wanted if name not in parts]:
        raise ValueError(f"{module!r} has no lora_{missing[0]}")
    if strange := sorted(set(parts) - {*names, "magnitude_vector", "B.bias"}):
        raise ValueError(f"{module!r} has lora_{strange[0]}, which cannot be merged")
    if embedding and "magnitude_vector" in parts:
        raise ValueError(f"{module!r} is an embedding with DoRA, which cannot be merged")
    a, b = (parts[name].float() for name in names)
    if a.dim() != 2 or b.dim() != 2 or not 0 < len(a) == b.shape[1]:
        raise ValueError(
            f"{module!r}: expected lora_{names[0]} of shape (rank, inputs) and lora_{names[1]} of (outputs, rank), got "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    patterns: dict[str, float] = settings.get("alpha_pattern") or {}
    alphas = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = next(alphas, settings.get("lora_alpha", ALPHA))
    scale = alpha / (len(a) ** 0.5 if settings.get("use_rslora") else len(a))
    across |= embedding
    low = LowRank(a.T.contiguous(), (scale * b).T.contiguous()) if across else LowRank(scale * b, a.contiguous())
    bias = parts.get("B.bias")
    magnitude = parts.get("magnitude_vector")
    return Factors(
        low,
        None if magnitude is None else magnitude.float().flatten(),
        None if bias is None else scale * bias.float(),
        across,
    )


def unite(
    by_token: Sequence[str], shared: Sequence[str], whole: dict[str, Tensor], factors: dict[str, Factors], tied: bool
) -> None:
    """Leave out what an adapter has for the names `shared`, other names of one parameter: of embedding and head.

    Args:
        by_token: the names of embedding and head, which are one parameter in the base.
        shared: those by which the base does not know it.
        whole: as `read`, changed here.
        factors: as `read`, changed here.
        tied: whether they were one in training (`ensure_weight_tying`).

    Raises:
        ValueError: they were trained apart, or one alone.
    """
    modules = [name.removesuffix(".weight") for name in by_token]
    trained = [whole.get(name) for name in by_token]
    if not tied and any(module in factors for module in modules):
        raise ValueError(APART)
    if not tied and any(tensor is not None for tensor in trained):
        first, *others = trained
        if first is None or any(other is None or not torch.equal(first, other) for other in others):
            raise ValueError(APART)
    for name in shared:
        whole.pop(name, None)
        factors.pop(name.removesuffix(".weight"), None)


def changes(
    whole: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    base: Mapping[str, Tensor],
    tokens: Mapping[str, Mapping[int, Tensor]],
) -> dict[str, Source]:
    """What an adapter has where it differs from the base: whole tensors, or differences of low rank.

    Raises:
        ValueError: the base has no such parameter, or one of another shape.
    """
    found: dict[str, Source] = {}
    for name, tensor in whole.items():
        _check(name, tensor.shape, base)
        found[name] = tensor.to(base[name].device).contiguous()
    for module, factor in factors.items():
        name = f"{module}.weight"
        up, down = factor.low.up, factor.low.down
        _check(name, (len(up), down.shape[1]), base)
        device = base[name].device
        low = LowRank(up.to(device), down.to(device))
        if name in whole or factor.magnitude is not None:
            found[name] = _dense(found.get(name, base[name]), low, factor)
        else:
            found[name] = low
        if factor.bias is not None:
            name = f"{module}.bias"
            _check(name, factor.bias.shape, base)
            before = found.get(name, base[name])
            assert isinstance(before, Tensor)
            found[name] = before.float() + factor.bias.to(device)
    for name, own in tokens.items():
        _check(name, (len(base.get(name, ())), *next(iter(own.values())).shape), base)
        before = found.get(name, base[name])
        if isinstance(before, LowRank):
            before = base[name].float() + before.rows(0, len(base[name]))
        found[name] = table = before.float().clone()
        for number, row in own.items():
            if number < len(table):
                table[number] = row
    return found


def _dense(before: Source, low: LowRank, factor: Factors) -> Tensor:
    """A matrix with its difference; by DoRA, what leads to each output scaled to its length."""
    assert isinstance(before, Tensor)
    table = before.float() + low.up @ low.down
    if factor.magnitude is None:
        return table
    inputs = 0 if factor.across else 1
    lengths: Tensor = torch.linalg.norm(table, dim=inputs, keepdim=True)
    return table * (factor.magnitude.to(table.device).view_as(lengths) / lengths)


def _check(name: str, shape: tuple[int, ...], base: Mapping[str, Tensor]) -> None:
    if name not in base:
        raise ValueError(f"the base has no parameter {name!r}")
    if tuple(shape) != tuple(base[name].shape):
        raise ValueError(f"{name!r} has shape {tuple(shape)}, the base's {tuple(base[name].shape)}")
