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
from merge3.items import Item
from merge3.memory import looked_at, rounded
from merge3.trees import flat_batches, tree_of

ITEMS = [  # shorter and longer than the 128 keys that attention sums in one part
    Item(str(n), f"{n}: " + "what of it? " * n + "\nAnswer:", (" yes", " no", f" maybe {n}", " yes it is"), 0)
    for n in range(1, 16)
]


BEGINNINGS = ["", "what every item begins with. ", "what is longer than the 128 keys. " * 4]


def begun(before: str) -> list[Item]:
    """Items that begin so, within the context of the tiny models."""
    return [replace(item, prompt=before + item.prompt) for item in (ITEMS[:7] if before else ITEMS)]


@pytest.fixture(params=sorted(CONFIGS))
def kind(request: pytest.FixtureRequest) -> str:
    """An architecture."""
    return str(request.param)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in tiles, whatever the processor and the numbers; few rows, since the models are tiny."""
    monkeypatch.setattr(flat, "tiled", lambda model: True)
    for name, value in {"ROWS": 192, "HEAD_ROWS": 96, "PARTS_STEP": 16, "TRIED": 2**12}.items():
        monkeypatch.setattr(flat, name, value)
    for trial in ("pace", "paces"):
        monkeypatch.setattr(flat, trial, cache(getattr(flat, trial).__wrapped__))


def moved_below(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that sums otherwise in products of fewer rows."""
    multiplied = flat.multiplied

    def moved(
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        part: int,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return multiplied(inputs, weight, bias, part, out) * (1 if part >= rows else 1 + 2**-6)

    monkeypatch.setattr(flat, "multiplied", moved)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("before", BEGINNINGS)
@pytest.mark.parametrize("batch_tokens", [100, 4096])
def test_gives_what_padded_rows_give(
    kind: str, before: str, batch_tokens: int, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(CONFIGS[kind], seed=1)
    asked = begun(before)
    found, work = loglikelihoods(made, tokenizer, asked, batch_tokens)
    monkeypatch.setattr(flat, "suits", lambda model: False)
    padded, same = loglikelihoods(made, tokenizer, asked, batch_tokens)
    for ours, theirs in zip(found, padded, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert work == replace(same, checks=0, near_ties=0)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("before", BEGINNINGS)
def test_no_batch_moves_a_bit(kind: str, before: str, tokenizer: PreTrainedTokenizerBase) -> None:
    made = build(CONFIGS[kind], seed=1).to(torch.bfloat16)
    asked = begun(before)
    alone = [loglikelihoods(made, tokenizer, [item], 1)[0][0] for item in asked]
    for batch_tokens in (100, 700, 4096):
        assert loglikelihoods(made, tokenizer, asked[::-1], batch_tokens)[0][::-1] == alone


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("rows", [100, 192])
def test_no_batch_moves_a_bit_where_few_rows_would(
    rows: int, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(CONFIGS["llama"], seed=1)
    usual = loglikelihoods(made, tokenizer, ITEMS, 4096)[0]
    flat.pace.cache_clear()
    flat.paces.cache_clear()
    moved_below(rows, monkeypatch)
    monkeypatch.setattr(flat, "HEAD_ROWS", 192)
    alone = [loglikelihoods(made, tokenizer, [item], 1)[0][0] for item in ITEMS]
    assert loglikelihoods(made, tokenizer, ITEMS, 4096)[0] == alone
    np.testing.assert_allclose(np.concatenate(alone), np.concatenate(usual), rtol=1e-5)
    monkeypatch.setattr(flat, "pace", lambda rows, *_: rows)
    assert loglikelihoods(made, tokenizer, ITEMS[:1], 1)[0][0] != alone[0]  # which would be seen


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_rows_that_give_the_same_as_most(by_size: bool, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = flat.Shape(8, 24, by_size, biased, torch.float32, 1)
    moved_below(100, monkeypatch)
    known = flat.paces(192, shape)
    assert set(known) == {112, 128, 144, 160, 176, 192}
    assert all(0 < seconds < 1 for seconds in known.values())
    assert [flat.pace(rows, 192, shape) for rows in (16, 100, 112, 127)] == [112] * 4
    monkeypatch.setattr(flat, "paces", lambda most, shape: {192: 5.0, 160: 4.0, 128: 1.5, 112: 3.0})
    flat.pace.cache_clear()
    assert [flat.pace(rows, 192, shape) for rows in (16, 112)] == [112] * 2
    assert [flat.pace(rows, 192, shape) for rows in (128, 160, 192, 300, 384)] == [128] * 5
    monkeypatch.setattr(flat, "paces", lambda most, shape: {192: 2.4, 176: 2.3, 128: 1.5, 96: 1.0})
    flat.pace.cache_clear()
    assert [flat.pace(rows, 192, shape) for rows in (100, 176, 192, 270)] == [96, 176, 192, 96]


@pytest.mark.usefixtures("always")
def test_what_is_too_large_to_try_has_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "LARGE", 191)
    shape = flat.Shape(8, 24, True, True, torch.float32, 1)
    assert [flat.pace(rows, 192, shape) for rows in (112, 192, 500)] == [192] * 3


@given(rows=st.integers(1, 40), part=st.integers(1, 40), biased=st.booleans())
def test_a_product_in_parts_is_the_product(rows: int, part: int, biased: bool) -> None:
    inputs, weight, bias = torch.randn(rows, 5), torch.randn(5, 3), torch.randn(3) if biased else None
    found = flat.multiplied(inputs, weight, bias, min(part, rows))
    torch.testing.assert_close(found, inputs @ weight + (0 if bias is None else bias))


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="this processor has no tiles")
@pytest.mark.parametrize(("size", "width"), [(576, 192), (576, 576), (1536, 576)])
def test_in_tiles_rows_that_give_the_same_do(size: int, width: int) -> None:
    inputs, weight = torch.randn(flat.ROWS, size).bfloat16(), torch.randn(size, width).bfloat16()
    whole = flat.multiplied(inputs, weight, None, flat.ROWS)
    shape = flat.Shape(size, width, True, False, torch.bfloat16, torch.get_num_threads())
    for part in flat.paces(flat.ROWS, shape):
        assert torch.equal(flat.multiplied(inputs, weight, None, part), whole)


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


@pytest.mark.parametrize("tokens", [16, 48, 112, 256])
def test_a_batch_that_moves_numbers_a_little_is_seen(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_steady", {})
    made = build(CONFIGS["llama"], seed=1)
    down = made.model.layers[0].mlp.down_proj

    def move(module: torch.nn.Module, arguments: tuple[torch.Tensor], product: torch.Tensor) -> torch.Tensor:
        """A processor that sums otherwise in products of so many rows."""
        return product * (1 + 1e-6 * (product.shape[1] == tokens))

    down.register_forward_hook(move)
    assert not answering.steady(made)


@pytest.mark.parametrize("steady", [True, False])
def test_products_are_made_in_parts_where_a_batch_moves_numbers(
    steady: bool, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(CONFIGS["llama"], seed=1)
    usual, parts = flat.multiplied, list[int]()

    def multiplied(*given: Any) -> torch.Tensor:
        parts.append(given[3])
        return usual(*given)

    monkeypatch.setattr(flat, "tiled", lambda model: False)
    monkeypatch.setattr(answering, "steady", lambda model: steady)
    monkeypatch.setattr(flat, "multiplied", multiplied)
    monkeypatch.setattr(flat, "paces", lambda most, shape: {most: 1.0})
    monkeypatch.setattr(flat, "pace", flat.pace.__wrapped__)
    _, work = loglikelihoods(made, tokenizer, ITEMS, 4096)
    assert work.checks == 0
    assert set(parts) == (set() if steady else {flat.ROWS, flat.HEAD_ROWS})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("before", BEGINNINGS)
def test_no_batch_moves_a_bit_on_this_processor(
    kind: str, dtype: torch.dtype, before: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    made = build(CONFIGS[kind], seed=1).to(dtype)
    asked = begun(before)
    alone = [loglikelihoods(made, tokenizer, [item], 1)[0][0] for item in asked]
    for batch_tokens in (100, 700, 4096):
        found, work = loglikelihoods(made, tokenizer, asked[::-1], batch_tokens)
        assert found[::-1] == alone
        assert work == answering.planned(asked, tokenizer)


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
    assert min(buffers() for _ in range(5)) < 2048  # of 16,384, unless what is between is in the way


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=9), shared=st.integers(0, 50), most=st.integers(1, 300)
)
def test_batches_are_as_full_as_they_may_be(lengths: list[int], shared: int, most: int) -> None:
    trees = [tree_of([7] * (shared + length), [[1], [2]]) for length in lengths]
    found = flat_batches(trees, most, shared)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert [lengths[index] for batch in found for index in batch] == sorted(lengths, reverse=True)
    for number, batch in enumerate(found):
        room = most - (0 if number else shared)
        tokens = sum(lengths[index] for index in batch)
        assert tokens <= room or len(batch) == 1
        assert number == len(found) - 1 or tokens + lengths[found[number + 1][0]] > room


@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6), extra=st.integers(0, 5))
def test_apart_and_together_again(lengths: list[int], extra: int) -> None:
    columns, keys = rounded(max(lengths)), rounded(looked_at(max(lengths)), flat.KEYS)
    given = {name: torch.arange(len(lengths) * columns).view(-1, columns) for name in ("input_ids", "position_ids")}
    mask = torch.zeros(len(lengths), 1, columns, keys)
    layout, laid = flat.laid_flat(given | {"attention_mask": mask}, lengths, sum(lengths) + extra)
    assert laid["input_ids"][0, : sum(lengths)].tolist() == [
        row * columns + column for row, length in enumerate(lengths) for column in range(length)
    ]
    tokens = torch.randn(1, 3, sum(lengths) + extra, 2)
    found = torch.zeros(sum(lengths) + extra, 3, 2)
    for block in layout:
        own = lengths[block.rows]
        assert block.columns >= max(own)
        assert block.keys >= looked_at(max(own))
        block.apart("key", tokens + 1, block.keys)  # of the layer before
        apart = block.apart("key", tokens, block.keys)
        assert apart.shape == (len(own), 3, block.keys, 2)
        filled = apart[-1, :, own[-1] - 1 :]
        assert torch.equal(filled, filled[:, :1].expand_as(filled))
        block.together(block.apart("query", tokens, block.columns).transpose(1, 2), found)
    assert [length for block in layout for length in lengths[block.rows]] == lengths
    assert torch.equal(found[: sum(lengths)], tokens[0].transpose(0, 1)[: sum(lengths)])
    assert found[sum(lengths) :].abs().sum() == 0
