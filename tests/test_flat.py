"""Tests of a batch as one row of tokens: against padded rows, and that no batch moves a bit."""

from __future__ import annotations

import ctypes
import resource
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONFIGS, build
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from merge3 import answering, flat
from merge3.answering import BrokenModel, loglikelihoods
from merge3.flat import Layout
from merge3.items import Item

ITEMS = [  # shorter and longer than the 128 keys that attention sums in one part
    Item(str(n), f"{n}: " + "what of it? " * n + "\nAnswer:", (" yes", " no", f" maybe {n}", " yes it is"), 0)
    for n in range(1, 16)
]


@pytest.fixture(params=sorted(CONFIGS))
def kind(request: pytest.FixtureRequest) -> str:
    """An architecture."""
    return str(request.param)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in tiles, whatever the processor and the numbers; few rows, since the models are tiny."""
    monkeypatch.setattr(flat, "tiled", lambda model: True)
    for name, value in {"ROWS": 192, "HEAD_ROWS": 96, "TILES_STEP": 16, "RUNG": 64, "TRIED": 2**12}.items():
        monkeypatch.setattr(flat, name, value)
    monkeypatch.setattr(flat, "enough", cache(flat.enough.__wrapped__))


def moved_below(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that sums otherwise in products of fewer rows."""
    multiplied = flat.multiplied

    def moved(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, most: int) -> torch.Tensor:
        parts = [multiplied(part, weight, bias, most) for part in inputs.split(most)]
        return torch.cat([part * (1 if len(part) >= rows else 1 + 2**-6) for part in parts])

    monkeypatch.setattr(flat, "multiplied", moved)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("batch_tokens", [100, 4096])
def test_gives_what_padded_rows_give(
    kind: str, batch_tokens: int, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(CONFIGS[kind], seed=1)
    found, work = loglikelihoods(made, tokenizer, ITEMS, batch_tokens)
    monkeypatch.setattr(flat, "suits", lambda model: False)
    padded, same = loglikelihoods(made, tokenizer, ITEMS, batch_tokens)
    for ours, theirs in zip(found, padded, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert work == replace(same, checks=0, near_ties=0)


@pytest.mark.usefixtures("always")
def test_no_batch_moves_a_bit(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    made = build(CONFIGS[kind], seed=1).to(torch.bfloat16)
    alone = [loglikelihoods(made, tokenizer, [item], 1)[0][0] for item in ITEMS]
    for batch_tokens in (100, 700, 4096):
        assert loglikelihoods(made, tokenizer, ITEMS[::-1], batch_tokens)[0][::-1] == alone


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("rows", [100, 192])
def test_no_batch_moves_a_bit_where_few_rows_would(
    rows: int, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(CONFIGS["llama"], seed=1)
    usual = loglikelihoods(made, tokenizer, ITEMS, 4096)[0]
    flat.enough.cache_clear()
    moved_below(rows, monkeypatch)
    monkeypatch.setattr(flat, "HEAD_ROWS", 192)
    alone = [loglikelihoods(made, tokenizer, [item], 1)[0][0] for item in ITEMS]
    assert loglikelihoods(made, tokenizer, ITEMS, 4096)[0] == alone
    np.testing.assert_allclose(np.concatenate(alone), np.concatenate(usual), rtol=1e-5)
    monkeypatch.setattr(flat, "enough", lambda rows, *_: rows)
    assert loglikelihoods(made, tokenizer, ITEMS[:1], 1)[0][0] != alone[0]  # which would be seen


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_the_fewest_rows_that_give_the_same(by_size: bool, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = flat.Shape(8, 24, by_size, biased, torch.float32, 1)
    moved_below(100, monkeypatch)
    found = {rows: flat.enough(rows, 192, shape) for rows in (16, 64, 100, 112, 128, 176)}
    assert found == {16: 128, 64: 128, 100: 100, 112: 112, 128: 128, 176: 176}


@pytest.mark.usefixtures("always")
def test_what_is_too_large_to_try_has_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "LARGE", 191)
    assert flat.enough(112, 192, flat.Shape(8, 24, True, True, torch.float32, 1)) == 192


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="this processor has no tiles")
@pytest.mark.parametrize(("size", "width"), [(576, 192), (576, 576), (1536, 576)])
def test_rows_that_are_enough_are_those_of_a_whole_product(size: int, width: int) -> None:
    inputs, weight = torch.randn(flat.ROWS, size).bfloat16(), torch.randn(size, width).bfloat16()
    whole = flat.multiplied(inputs, weight, None, flat.ROWS)
    shape = flat.Shape(size, width, True, False, torch.bfloat16, torch.get_num_threads())
    for rows in (64, 384, 1152):
        enough = flat.enough(rows, flat.ROWS, shape)
        assert torch.equal(flat.multiplied(inputs[:enough], weight, None, flat.ROWS), whole[:enough])


@pytest.mark.usefixtures("always")
def test_leaves_the_model_as_it_was(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    made = build(CONFIGS[kind], seed=1)

    def refuse(*_: Any) -> None:
        raise RuntimeError("within the pass")

    hook = made.get_output_embeddings().register_forward_hook(refuse)
    with pytest.raises(RuntimeError, match="within the pass"):
        loglikelihoods(made, tokenizer, ITEMS, 4096)
    hook.remove()
    assert made.config._attn_implementation == "sdpa"
    assert not [module for module in made.modules() if "forward" in vars(module)]
    tokens = torch.arange(9)[None]
    torch.testing.assert_close(made(tokens).logits, build(CONFIGS[kind], seed=1)(tokens).logits)


@pytest.mark.usefixtures("always")
def test_a_broken_model_is_found(tokenizer: PreTrainedTokenizerBase) -> None:
    made = build(CONFIGS["llama"], seed=1)
    made.get_output_embeddings().weight.data[:] = float("nan")
    with pytest.raises(BrokenModel, match="log-likelihoods of item"):
        loglikelihoods(made, tokenizer, ITEMS, 4096)


def test_leaves_attention_of_other_kinds_alone() -> None:
    made = build(deepcopy(CONFIGS["llama"]), seed=1)
    assert flat.replaceable(made)
    made.set_attn_implementation("eager")
    assert not flat.replaceable(made)


def test_leaves_products_of_other_kinds_alone() -> None:
    made = build(CONFIGS["llama"], seed=1)
    made.experts = torch.nn.Parameter(torch.zeros(2, 3, 4))  # as mixtures of experts have them
    assert not flat.replaceable(made)


def moves(module: torch.nn.Module, arguments: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """A processor whose sums depend on how many rows there are."""
    return logits * (1 + 1e-5 * len(logits))


def test_a_model_whose_numbers_a_batch_moves_is_not_laid_flat(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "_steady", {})
    monkeypatch.setattr(flat, "tiled", lambda model: False)
    made = build(CONFIGS["llama"], seed=1)
    made.get_output_embeddings().register_forward_hook(moves)
    assert not answering.steady(made)
    _, work = loglikelihoods(made, tokenizer, ITEMS, 4096)
    assert work.checks > 0  # so rows are padded, and whether a batch moves them is seen in each


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_batch_moves_a_bit_of_what_is_steady(
    kind: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "tiled", lambda model: False)
    made = build(CONFIGS[kind], seed=1).to(dtype)
    if not answering.steady(made):
        pytest.skip("this processor's sums depend on how many rows there are")
    alone = [loglikelihoods(made, tokenizer, [item], 1)[0][0] for item in ITEMS]
    for batch_tokens in (100, 700, 4096):
        found, work = loglikelihoods(made, tokenizer, ITEMS[::-1], batch_tokens)
        assert found[::-1] == alone
        assert work.checks == 0


def test_a_model_is_tried_once_and_a_broken_one_never_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_steady", {})
    made, other = build(CONFIGS["llama"], seed=1), build(CONFIGS["llama"], seed=2)
    made.get_output_embeddings().weight.data[:] = float("nan")
    assert answering.steady(made)
    assert not answering._steady
    found = answering.steady(other)
    other.get_output_embeddings().register_forward_hook(moves)
    assert answering.steady(other) == found


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_what_a_layer_frees_is_kept_for_the_next() -> None:
    flat.keep_buffers()

    def buffers() -> int:
        """The pages that a layer with eight buffers of 8 MiB faults."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for buffer in [torch.ones(2**21) for _ in range(8)]:
            assert buffer[-1] == 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    buffers()
    assert max(buffers() for _ in range(5)) < 2048  # of 16,384


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), extra=st.integers(0, 5))
def test_apart_and_together_again(lengths: list[int], extra: int) -> None:
    columns = max(lengths) + 1
    places = torch.cat([torch.arange(n) + row * columns for row, n in enumerate(lengths)])
    layout = Layout(places, len(lengths), columns, columns + extra)
    tokens = torch.randn(1, 3, len(places) + extra, 2)
    layout.apart("keys", tokens + 1, layout.keys)  # of the layer before
    apart = layout.apart("keys", tokens, layout.keys)
    assert apart.shape == (len(lengths), 3, layout.keys, 2)
    assert apart[-1, :, lengths[-1] :].abs().sum() == 0
    again = layout.together(layout.apart("keys", tokens, columns).transpose(1, 2), len(places) + extra)
    torch.testing.assert_close(again[:, : len(places)], tokens.transpose(1, 2)[:, : len(places)])
    assert again[:, len(places) :].abs().sum() == 0
