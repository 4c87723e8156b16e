from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONFIGS, SIZES, build, stretching
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    GPT2Config,
    Lfm2Config,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from merge3.answering import TOLERANCE, BrokenModel, Work, packable
from merge3.generation import generate
from merge3.grading import grade_reply
from merge3.items import FreeText, Item
from merge3.respond import planned, respond
from merge3.store import Failure, Reply

FREE = FreeText(stop=("\n",), max_tokens=12, extract="text")
PROMPTS = [
    "Q: 1 + 1?\nA:",
    "Question: what is 12 times 5?\nAnswer:",
    "x",
    "Say something longer than the others do, please: ",
]
ITEMS = [Item(f"i{n}", prompt, expected=("2",), free=FREE) for n, prompt in enumerate(PROMPTS)]
SHARED = "Read the question, then answer it.\n"


def slow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item) -> str:
    """Greedy generation by whole passes over the text so far, without a cache."""
    ids, start = tokenizer.encode(item.prompt), len(tokenizer.encode(item.prompt))
    assert item.free is not None
    for _ in range(item.free.max_tokens):
        with torch.inference_mode():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        text = tokenizer.decode(ids[start:], skip_special_tokens=True)
        if any(stop in text for stop in item.free.stop):
            break
    text = tokenizer.decode(ids[start:], skip_special_tokens=True)
    for stop in item.free.stop:
        text = text.split(stop)[0]
    return text


def texts(answers: list[object]) -> list[str]:
    assert all(isinstance(answer, Reply) for answer in answers)
    return [answer.text for answer in answers if isinstance(answer, Reply)]


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
@pytest.mark.parametrize("shared", ["", SHARED])
def test_replies_are_those_of_greedy_generation_without_a_cache(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, shared: str
) -> None:
    asked = [replace(item, prompt=shared + item.prompt) for item in ITEMS]
    answers, work = generate(model, tokenizer, asked, batch_tokens)
    assert texts(answers) == [slow(model, tokenizer, item) for item in asked]
    assert 0 < work.tokens <= planned(asked, tokenizer).tokens


def test_replies_are_those_of_transformers_own_generation(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    endless = [replace(item, free=replace(FREE, stop=("\0",))) for item in ITEMS]
    answers, _ = generate(llama, tokenizer, endless, 4096)
    for item, answer in zip(endless, texts(answers), strict=True):
        ids = torch.tensor([tokenizer.encode(item.prompt)])
        out = llama.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=2
        )
        assert answer == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split("\0")[0]


@given(order=st.permutations(range(4)), batch_tokens=st.integers(1, 400), shared=st.booleans())
@settings(max_examples=10, deadline=None)
def test_replies_do_not_depend_on_batch_or_order(
    order: list[int], batch_tokens: int, shared: bool, tokenizer: PreTrainedTokenizerBase, llama: PreTrainedModel
) -> None:
    asked = [replace(item, prompt=(SHARED if shared else "") + item.prompt) for item in ITEMS]
    alone = [generate(llama, tokenizer, [item], 1)[0][0] for item in asked]
    found, _ = generate(llama, tokenizer, [asked[i] for i in order], batch_tokens)
    assert found == [alone[i] for i in order]


def test_a_near_tie_is_written_again_alone_where_batches_move_numbers(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(CONFIGS["llama"], seed=1)
    alone = [generate(made, tokenizer, [item], 1)[0][0] for item in ITEMS]

    def move(module: torch.nn.Module, arguments: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        return logits + (0.0 if len(logits) < 2 else 3.0) * torch.sin(logits * 1e3)

    hook = made.get_output_embeddings().register_forward_hook(move)
    try:
        assert generate(made, tokenizer, ITEMS, 4096)[0] != alone
        monkeypatch.setitem(TOLERANCE, torch.float32, 1e9)
        found, work = generate(made, tokenizer, ITEMS, 4096)
    finally:
        hook.remove()
    assert found == alone
    assert work.near_ties == len(ITEMS) - 1


def test_in_bfloat16_on_a_cpu_nothing_moves(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(CONFIGS["llama"], seed=1).to(torch.bfloat16)
    monkeypatch.setitem(TOLERANCE, torch.bfloat16, 1e9)
    alone = [generate(made, tokenizer, [item], 1)[0][0] for item in ITEMS]
    found, work = generate(made, tokenizer, ITEMS, 4096)
    assert (found, work.near_ties) == (alone, 0)


def test_recurrent_layers_and_sliding_windows_are_left_to_transformers(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = {"num_key_value_heads": 2, "vocab_size": 259}
    convolutional = build(Lfm2Config(**SIZES, **sizes, layer_types=["conv", "full_attention"]), 1)
    assert not packable(convolutional, tokenizer)
    answers, _ = respond(convolutional, tokenizer, ITEMS, 4096, packed=False)
    assert texts(answers) == [slow(convolutional, tokenizer, item) for item in ITEMS]
    windowed = build(MistralConfig(**SIZES, **sizes, sliding_window=20), 1)
    assert texts(generate(windowed, tokenizer, ITEMS, 4096)[0]) == [slow(windowed, tokenizer, item) for item in ITEMS]


def test_replies_in_which_positions_are_stretched_are_left_to_transformers(tokenizer: PreTrainedTokenizerBase) -> None:
    made = build(stretching(64), 1)
    asked = [replace(item, prompt=SHARED + item.prompt) for item in ITEMS]
    assert texts(generate(made, tokenizer, asked, 4096)[0]) == [slow(made, tokenizer, item) for item in asked]


def test_how_a_model_would_write_does_not_change_its_likeliest_tokens(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = {"no_repeat_ngram_size": 1, "repetition_penalty": 2.0, "stop_strings": ["a"], "eos_token_id": 7}
    made = build(llama.config, 1)
    made.generation_config = own = GenerationConfig(do_sample=True, **settings)
    found = [generate(made, tokenizer, ITEMS, 4096, packed=packed)[0] for packed in (True, False)]
    assert found[0] == found[1]
    assert made.generation_config is own


@pytest.mark.parametrize("packed", [True, False])
def test_tokenizer_and_generation_config_both_tell_what_ends_a_text(
    packed: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert tokenizer.eos_token_id is not None
    model = writer([*tokenizer.encode("?abc"), tokenizer.eos_token_id], 259)
    item = Item("i", "?", expected=("",), free=replace(FREE, stop=("\0",)))
    for own, text in ((None, "abc"), (*tokenizer.encode("c"), "ab"), (tokenizer.encode("bx"), "a")):
        model.generation_config.eos_token_id = own
        (answer,), _ = generate(model, tokenizer, [item], 1, packed=packed)
        assert answer == Reply(text, "stop", len(text))


def test_a_reply_ends_at_its_stop_or_is_cut_off(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    (whole,) = texts(generate(llama, tokenizer, [replace(ITEMS[0], free=replace(FREE, stop=("\0",)))], 1)[0])
    middle = whole[3:5]
    item = replace(ITEMS[0], free=replace(FREE, stop=(middle,)))
    (answer,), work = generate(llama, tokenizer, [item], 1)
    assert isinstance(answer, Reply)
    assert (answer.text, answer.end) == (whole[: whole.index(middle)], "stop")
    assert work.positions < FREE.max_tokens
    (cut,), _ = generate(llama, tokenizer, [replace(ITEMS[0], free=replace(FREE, stop=("\0",), max_tokens=3))], 1)
    assert isinstance(cut, Reply)
    assert (cut.end, cut.tokens) == ("length", 3)
    score, reason = grade_reply(ITEMS[0], cut)
    assert (np.isnan(score), reason) == (True, "truncated")


@pytest.mark.parametrize("shared", ["", SHARED])
def test_the_work_of_replies_is_that_of_the_questions_whatever_the_batches(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shared: str
) -> None:
    limits = [12, 3, 7, 1]
    asked = [
        replace(item, prompt=shared + item.prompt, free=replace(FREE, stop=("\0",), max_tokens=limit))
        for item, limit in zip(ITEMS, limits, strict=True)
    ]
    read = len(shared) + sum(map(len, PROMPTS)) + sum(limits) - 4  # a token a byte; the last of a reply is not read
    assert planned(asked, tokenizer) == Work(read + 4, sum(limits))
    for batch_tokens in (1, 100, 4096):
        work = generate(llama, tokenizer, asked, batch_tokens)[1]
        assert (work.tokens, work.positions) == (read, sum(limits))
    assert work.checks == len(shared) + 1 + limits[2] - 1  # in one batch, the shortest's repetition
    apart = generate(llama, tokenizer, asked, 4096, packed=False)[1]
    assert (apart.tokens, apart.positions, apart.checks) == (read + 3 * len(shared), sum(limits), 0)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("around", [("", ""), ("", "\n"), ("\n", "")])
@pytest.mark.parametrize("text", ["abc", ""])
def test_a_stop_text_may_be_a_special_token(
    packed: bool, around: tuple[str, str], text: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<|im_end|>"], special_tokens=True)
    written = [*own.encode(text + around[0]), 259, *own.encode(around[1] + "more")]
    model = writer([*own.encode("?"), *written], 260)
    free = replace(FREE, stop=(f"{around[0]}<|im_end|>{around[1]}",), max_tokens=20)
    (answer,), _ = generate(model, own, [Item("i", "?", expected=("abc",), free=free)], 1, packed=packed)
    assert isinstance(answer, Reply)
    assert (answer.text, answer.end) == (text, "stop")
    other = replace(free, stop=("\0",), max_tokens=len(written))
    (answer,), _ = generate(model, own, [Item("i", "?", expected=("abc",), free=other)], 1, packed=packed)
    assert isinstance(answer, Reply)
    assert answer.text == text + "".join(around) + "more"  # where it is no stop text it is not written out
    assert (
        Item("i", "?", expected=("",), free=free).content_hash
        != Item("i", "?", expected=("",), free=other).content_hash
    )


def writer(tokens: list[int], words: int) -> PreTrainedModel:
    """A model that writes each of these tokens after the one before; none may occur twice."""
    config = GPT2Config(n_embd=words, n_inner=4, n_layer=1, n_head=1, n_positions=64, vocab_size=words)
    config.tie_word_embeddings = False
    model = build(config, 1, spread=0.0)
    model.transformer.wte.weight.copy_(torch.eye(words))
    model.transformer.ln_f.weight.fill_(1.0)
    for before, after in pairwise(tokens):
        model.lm_head.weight[after, before] = 1.0
    return model


def reply(text: str, tokenizer: PreTrainedTokenizerBase, packed: bool, **free: Any) -> Reply:
    """The reply to "?" of a model that writes this text."""
    asked = Item(
        "i", "?", expected=("",), free=FreeText(**{"stop": ("\0",), "max_tokens": 20, "extract": "text"} | free)
    )
    (answer,), _ = generate(writer(tokenizer.encode("?" + text), 259), tokenizer, [asked], 1, packed=packed)
    assert isinstance(answer, Reply)
    return answer


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("stop", [("cd", "bcd"), ("bcd", "cd"), ("d", "bcd", "cd")])
def test_of_several_stop_texts_the_one_that_begins_first_ends_a_reply(
    packed: bool, stop: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
) -> None:
    assert reply("abcdef", tokenizer, packed, stop=stop) == Reply("a", "stop", 4)


@pytest.mark.parametrize("packed", [True, False])
def test_a_reply_ends_where_more_could_not_change_the_number(packed: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    assert reply("a12bcd", tokenizer, packed, extract="first_number") == Reply("a12b", "stop", 4)


def test_one_near_tie_is_enough_however_sure_the_tokens_after_it(tokenizer: PreTrainedTokenizerBase) -> None:
    model = writer(tokenizer.encode("?abc"), 259)
    a, b, y, z = tokenizer.encode("abyz")
    model.lm_head.weight[y, a] = 1.0 - 1e-6  # "b" leads "y" by little
    model.lm_head.weight[z, y] = 1.0

    def move(module: torch.nn.Module, arguments: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        if len(logits) > 1:
            logits[:-1, ..., b] -= 1e-4
            logits[-1, ..., b] -= 4e-6  # the repetition is moved, too, but writes the same
        return logits

    model.get_output_embeddings().register_forward_hook(move)
    free = replace(FREE, stop=("\0",), max_tokens=3)
    asked = [Item(prompt, prompt, expected=("",), free=free) for prompt in ("?", "??")]
    found, work = generate(model, tokenizer, asked, 4096)
    assert found == [Reply("abc", "length", 3)] * 2
    assert (work.near_ties, work.checks) == (1, 1 + 2 + 2 + 2)  # of the repetition, and of what was written alone


@pytest.mark.parametrize("packed", [True, False])
def test_of_equal_logits_the_lowest_token_is_written_and_one_that_cannot_be_breaks_nothing(
    packed: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = writer(tokenizer.encode("?a"), 259)
    for token in tokenizer.encode("bcd"):
        model.lm_head.weight[token, tokenizer.encode("?")] = 1.0

    def never(module: torch.nn.Module, arguments: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        logits[..., 7] = -torch.inf
        return logits

    model.get_output_embeddings().register_forward_hook(never)
    item = Item("i", "?", expected=("",), free=replace(FREE, max_tokens=1))
    assert generate(model, tokenizer, [item], 1, packed=packed)[0] == [Reply("a", "length", 1)]


def test_who_has_written_nothing_waits_in_a_large_batch_and_harms_nobody(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.eos_token_id is not None
    model = writer([*tokenizer.encode("?"), tokenizer.eos_token_id], 259)
    for before, after in pairwise(tokenizer.encode("!abcd")):
        model.lm_head.weight[after, before] = 1.0
    free = replace(FREE, stop=("\0",), max_tokens=4)
    asked = [Item(f"{n}", "x" * n + ("?" if n == 5 else "!"), expected=("",), free=free) for n in range(12)]
    told: list[int] = []
    found, work = generate(model, tokenizer, asked, 4096, told.append)
    assert found == [Reply("", "stop", 0) if n == 5 else Reply("abcd", "length", 4) for n in range(12)]
    assert sum(told) == 12
    assert work.tokens == planned(asked, tokenizer).tokens - 12 * 4 + 11 * 3  # none while it waits


@pytest.mark.parametrize("prompt", ["x" * 238, "x" * 240])
def test_a_context_may_end_anywhere(prompt: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = GPT2Config(**CONFIGS["gpt2"].to_dict() | {"n_positions": 250})
    made = build(config, seed=1)
    items = [replace(ITEMS[0], id=name, prompt=text) for name, text in (("long", prompt[:238]), ("short", "x"))]
    assert texts(generate(made, tokenizer, items, 4096)[0]) == [slow(made, tokenizer, item) for item in items]
    chosen = [Item("c", prompt, ("x", "yz"), 0), Item("d", "x", ("x", "yz"), 0)]
    packed, apart = (respond(made, tokenizer, chosen, 4096, packed=how)[0] for how in (True, False))
    np.testing.assert_allclose(np.array(packed), np.array(apart), rtol=1e-4)


def test_a_reply_that_does_not_fit_is_a_failure(tokenizer: PreTrainedTokenizerBase) -> None:
    made = build(CONFIGS["gpt2"], seed=1)
    told: list[int] = []
    answers, _ = generate(made, tokenizer, [replace(ITEMS[0], prompt="x" * 245), ITEMS[1]], 4096, told.append)
    assert answers[0] == Failure("257 tokens with the reply; the model's context holds 256")
    assert isinstance(answers[1], Reply)
    assert sum(told) == 2


def test_a_model_of_nan_is_broken_after_one_short_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    made = build(CONFIGS["llama"], seed=1)
    made.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(BrokenModel, match="not finite") as caught:
        generate(made, tokenizer, ITEMS, 4096)
    assert caught.value.work.tokens == len("x")


@pytest.mark.parametrize("packed", [True, False])
def test_what_was_written_before_a_model_broke_is_counted(tokenizer: PreTrainedTokenizerBase, packed: bool) -> None:
    made = build(CONFIGS["gpt2"], seed=1)
    made.transformer.wpe.weight.data[20:] = float("nan")  # the shorter prompts go well
    asked = [replace(item, free=replace(FREE, stop=("\0",), max_tokens=2)) for item in ITEMS[:3]]
    with pytest.raises(BrokenModel, match="item 'i1' are not finite") as caught:
        generate(made, tokenizer, asked, 1, packed=packed)
    first, long, least = (len(item.prompt) for item in asked)
    written = least + 1 + (0 if packed else first + 1)  # a batch is longest first; apart it is shortest first
    assert caught.value.work.tokens == written + long


def test_a_batch_that_does_not_fit_is_halved(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    expected, _ = generate(llama, tokenizer, ITEMS, 4096)

    def allocate(module: torch.nn.Module, arguments: tuple[object, ...], inputs: dict[str, torch.Tensor]) -> None:
        if len(inputs["input_ids"]) > 2 and inputs["input_ids"].shape[1] > 16:
            raise torch.OutOfMemoryError("out of memory")

    hook = llama.register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        assert generate(llama, tokenizer, ITEMS, 4096)[0] == expected
    finally:
        hook.remove()


def test_both_kinds_of_items_are_answered_in_order(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    chosen = Item("c", "p ", ("x", "yz"), 0)
    for packed in (True, False):
        told: list[int] = []
        answers, work = respond(llama, tokenizer, [ITEMS[0], chosen, ITEMS[1]], 4096, told.append, packed)
        assert [type(answer) for answer in answers] == [Reply, tuple, Reply]
        assert sum(told) == 3
        assert work.tokens > 0
    with pytest.raises(ValueError, match="extract must be one of"):
        respond(llama, tokenizer, [replace(ITEMS[0], free=replace(FREE, extract="("))], 4096)
