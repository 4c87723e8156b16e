from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from conftest import CONFIGS, SIZES, build, stretching
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    Lfm2Config,
    MiniMaxConfig,
    MistralConfig,
    MptConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from merge3 import answering, flat, grading
from merge3.answering import BrokenModel, divisors, loglikelihoods
from merge3.items import Item
from merge3.store import Failure
from merge3.trees import alike, tokenize, tree_of

ITEMS = [
    Item("a", "Question: 12 and 5?\nAnswer: ", ("12 + 5 = 17", "12 + 5 = 18", "12 - 5 = 7", "12 - 5 = 8"), 0),
    Item("b", "Short ", ("x", "xy", "y"), 1),
    Item("c", "A much longer prompt than the others have, ends in a letter", (" yes", " no"), 1),
    Item("d", "Ünïcödé: ", ("é", "è"), 0),
]


def slow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item) -> list[float]:
    """Every option as a sequence of its own, unbatched, all logits read."""
    scores = []
    for option in item.options:
        ids = torch.tensor([tokenizer.encode(item.prompt + option)])
        start = len(tokenizer.encode(item.prompt.rstrip()))
        with torch.inference_mode():
            logs = model(ids).logits[0].double().log_softmax(-1)
        scores.append(float(sum(logs[i - 1, ids[0, i]] for i in range(start, ids.shape[1]))))
    return scores


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded rows, as on a GPU."""
    monkeypatch.setattr(flat, "suits", lambda model: False)


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
@pytest.mark.parametrize("rows", ["as suits the processor", "padded"])
def test_packed_trees_agree_with_one_sequence_an_option(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
    rows: str,
    request: pytest.FixtureRequest,
) -> None:
    if rows == "padded":
        request.getfixturevalue("padded")
    answers, _ = loglikelihoods(model, tokenizer, ITEMS, batch_tokens)
    for item, answer in zip(ITEMS, answers, strict=True):
        np.testing.assert_allclose(answer, slow(model, tokenizer, item), rtol=0, atol=2e-4)


def test_asking_twice_gives_the_same_bits(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    first = loglikelihoods(llama, tokenizer, ITEMS, 200)
    assert loglikelihoods(llama, tokenizer, ITEMS, 200) == first


def test_work_counts_tokens_and_read_positions(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    _, work = loglikelihoods(llama, tokenizer, ITEMS, 4096)
    trees = [tokenize(item, tokenizer) for item in ITEMS]
    assert work.tokens == sum(len(tree.tokens) for tree in trees)
    assert work.positions == sum(len(tree.parents) + 1 for tree in trees)


def test_what_logits_are_normalised_by_does_not_depend_on_how_many_rows_there_are() -> None:
    logits, threads = torch.randn(50, 40_000, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole, tops = answering._normalised(logits)
        for count in (1, 2, 16, 17, 33):
            assert torch.equal(answering._normalised(logits[:count])[0], whole[:count])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(whole, logits.logsumexp(-1))
    assert torch.equal(tops, logits.amax(-1))


def test_progress_is_told_every_item(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    told: list[int] = []
    loglikelihoods(llama, tokenizer, ITEMS, 100, told.append)
    assert sum(told) == len(ITEMS)
    assert len(told) > 1


def test_models_whose_layers_are_not_attention_are_asked_an_option_a_sequence(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    layers = {"num_key_value_heads": 2, "vocab_size": 259, "layer_types": ["conv", "full_attention"]}
    convolutional = build(Lfm2Config(**SIZES, **layers), 1)
    assert not answering.packable(convolutional, tokenizer)
    answers, _ = loglikelihoods(convolutional, tokenizer, ITEMS, 300, packed=False)
    for item, answer in zip(ITEMS, answers, strict=True):
        np.testing.assert_allclose(answer, slow(convolutional, tokenizer, item), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "config",
    [
        MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=259, max_seq_len=512),
        BloomConfig(hidden_size=32, n_head=4, n_layer=2, vocab_size=259),
    ],
)
def test_positions_told_by_distance_in_the_row_are_asked_an_option_a_sequence(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    made = build(config, 1, 0.3)
    assert not answering.packable(made, tokenizer)
    answers, _ = loglikelihoods(made, tokenizer, ITEMS, 300, packed=False)
    for item, answer in zip(ITEMS, answers, strict=True):
        np.testing.assert_allclose(answer, slow(made, tokenizer, item), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "config",
    [
        BartConfig(d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, vocab_size=259),
        FalconConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=259, alibi=True),
        MiniMaxConfig(**SIZES, num_key_value_heads=2, vocab_size=259, head_dim=8, num_local_experts=4),
    ],
    ids=["positions counted in the row", "distance in the row", "linear attention"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_packable_is_seen_through_rounding(
    config: PretrainedConfig, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert not answering.packable(build(config, 1).to(dtype), tokenizer)


def test_models_of_attention_are_asked_packed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert answering.packable(model, tokenizer)


@pytest.mark.parametrize("config", [MistralConfig, Gemma3TextConfig])
def test_items_beyond_a_sliding_window_are_asked_an_option_a_sequence(
    config: type[MistralConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    made = build(config(**SIZES, num_key_value_heads=2, vocab_size=259, sliding_window=20, head_dim=8), 1, 0.1)
    for batch_tokens in (1, 4096):
        answers, _ = loglikelihoods(made, tokenizer, ITEMS, batch_tokens)
        for item, answer in zip(ITEMS, answers, strict=True):
            np.testing.assert_allclose(answer, slow(made, tokenizer, item), rtol=0, atol=2e-4)


@pytest.mark.parametrize("rows", ["as suits the processor", "padded"])
def test_items_for_which_positions_are_stretched_are_asked_apart_from_others(
    rows: str, tokenizer: PreTrainedTokenizerBase, request: pytest.FixtureRequest
) -> None:
    if rows == "padded":
        request.getfixturevalue("padded")
    made = build(stretching(64), 1)
    asked = [replace(item, prompt=PREFIX + item.prompt) for item in ITEMS]
    assert len({tokenize(item, tokenizer).depth > 64 for item in asked}) == 2
    for batch_tokens in (1, 4096):
        answers, _ = loglikelihoods(made, tokenizer, asked, batch_tokens)
        for item, answer in zip(asked, answers, strict=True):
            np.testing.assert_allclose(answer, slow(made, tokenizer, item), rtol=0, atol=2e-4)


def test_only_the_strictly_likeliest_option_is_an_answer() -> None:
    items = [ITEMS[3]] * 3
    answers = [(-1.0, -2.0), (-2.0, -1.0), (-1.0, -1.0)]
    assert grading.grades(items, answers, [(1, 1)] * 3)[0].tolist() == [1.0, 0.0, 0.0]
    assert grading.margins(items, answers, [(1, 1)] * 3).tolist() == [1.0, -1.0, 0.0]


def test_options_are_compared_by_sum_character_or_token(tokenizer: PreTrainedTokenizerBase) -> None:
    item = Item("l", "p ", ("no", "noé"), 1)  # the tokenizer has a token a byte
    found = {scoring: divisors([item], tokenizer, scoring) for scoring in answering.SCORINGS}
    assert found == {"sum": [(1, 1)], "characters": [(2, 3)], "tokens": [(3, 5)]}  # the space is the option's
    answer = (-2.0, -2.7)
    assert [grading.grade(item, answer, found[scoring][0])[0] for scoring in answering.SCORINGS] == [0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="scoring must be one of"):
        divisors([item], tokenizer, "mean")


@pytest.mark.usefixtures("padded")
def test_a_model_of_nan_is_broken_not_wrong(tokenizer: PreTrainedTokenizerBase, llama: PreTrainedModel) -> None:
    weight = llama.get_input_embeddings().weight
    kept = weight.data.clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(BrokenModel, match="log-likelihoods of item") as caught:
            loglikelihoods(llama, tokenizer, ITEMS, 4096)
    finally:
        weight.data.copy_(kept)
    shortest = min(len(tokenize(item, tokenizer).tokens) for item in ITEMS)
    assert caught.value.work.tokens == shortest  # the first batch, of one item, and no other


@pytest.mark.usefixtures("padded")
def test_a_batch_that_does_not_fit_is_halved_and_never_graded(
    tokenizer: PreTrainedTokenizerBase, llama: PreTrainedModel
) -> None:
    expected, work = loglikelihoods(llama, tokenizer, ITEMS, 4096)
    room, sizes = 2, []

    def allocate(module: torch.nn.Module, arguments: tuple[object, ...], inputs: dict[str, torch.Tensor]) -> None:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > room:
            raise torch.OutOfMemoryError("out of memory")

    hook = llama.register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        found, same_work = loglikelihoods(llama, tokenizer, ITEMS, 4096)
        assert max(sizes) > room >= sizes[-1]
        assert sum(size > room for size in sizes) <= 2  # what follows is cut as well, before it fails
        room = 0
        with pytest.raises(torch.OutOfMemoryError):
            loglikelihoods(llama, tokenizer, ITEMS, 4096)
    finally:
        hook.remove()
    assert (same_work.tokens, same_work.positions) == (work.tokens, work.positions)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_options_that_cannot_be_told_apart_are_failures_and_not_wrong(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    empty, good = Item("e", "p", ("", "y"), 0), Item("g", "q ", ("x", "y"), 0)
    assert tokenize(empty, tokenizer) == Failure("option '' adds no token to the prompt")
    answers, work = loglikelihoods(llama, tokenizer, [empty, good, empty], 4096)
    assert [isinstance(answer, Failure) for answer in answers] == [True, False, True]
    scores, _ = grading.grades([empty, good, empty], answers, [(1, 1)] * 3)
    assert np.isnan(scores).tolist() == [True, False, True]
    assert work.tokens == len(tokenize(good, tokenizer).tokens)


def test_items_longer_than_the_context_are_failures(tokenizer: PreTrainedTokenizerBase) -> None:
    made = build(CONFIGS["gpt2"], seed=1)  # 256 places
    long = Item("l", "x" * 300, (" y", " z"), 0)
    answers, _ = loglikelihoods(made, tokenizer, [long, ITEMS[1]], 4096)
    assert answers[0] == Failure("301 tokens with its longest option; the model's context holds 256")
    assert isinstance(answers[1], tuple)


# --- batch shape


PREFIX = "Read the question, then answer it.\n"


@given(order=st.permutations(range(6)), batch_tokens=st.integers(1, 700), shared=st.booleans())
@settings(max_examples=25, deadline=None)
def test_grades_do_not_depend_on_batch_or_order(
    order: list[int], batch_tokens: int, shared: bool, tokenizer: PreTrainedTokenizerBase, llama: PreTrainedModel
) -> None:
    asked = [replace(item, prompt=(PREFIX if shared else "") + item.prompt) for item in (*ITEMS, ITEMS[0], ITEMS[3])]
    alone = [loglikelihoods(llama, tokenizer, [item], 1)[0][0] for item in asked]
    found, _ = loglikelihoods(llama, tokenizer, [asked[i] for i in order], batch_tokens)
    for place, answer in zip(order, found, strict=True):
        np.testing.assert_allclose(answer, alone[place], rtol=0, atol=answering.TOLERANCE[torch.float32] / 10)
        assert np.argmax(answer) == np.argmax(alone[place])


@pytest.mark.parametrize("beginnings", [1, 3, 6], ids=["few keys", "both sides of 128 keys", "of 256 keys"])
def test_on_a_cpu_in_bfloat16_likelihoods_are_the_same_to_the_bit_in_any_batch(
    beginnings: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    made = build(CONFIGS["llama"], seed=1).to(torch.bfloat16)
    asked = [replace(item, prompt=PREFIX * beginnings + item.prompt) for item in ITEMS]
    alone = [loglikelihoods(made, tokenizer, [item], 1)[0][0] for item in asked]
    for batch_tokens in (100, 4096):
        assert loglikelihoods(made, tokenizer, asked[::-1], batch_tokens)[0][::-1] == alone


@pytest.mark.usefixtures("padded")
def test_where_they_are_not_near_ties_are_decided_alone(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(CONFIGS["llama"], seed=1)
    alone = [loglikelihoods(made, tokenizer, [item], 1)[0][0] for item in ITEMS]

    def move(module: torch.nn.Module, arguments: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """A device whose sums depend on the batch's shape, much."""
        return logits + (0.0 if len(logits) < 20 else 3.0) * torch.sin(logits * 1e3)

    hook = made.get_output_embeddings().register_forward_hook(move)
    try:
        moved, work = loglikelihoods(made, tokenizer, ITEMS, 4096)
        assert work.near_ties < len(ITEMS)
        assert moved != alone
        monkeypatch.setitem(answering.TOLERANCE, torch.float32, 1e6)  # whatever moved so much is a near-tie
        found, work = loglikelihoods(made, tokenizer, ITEMS[::-1], 4096)
    finally:
        hook.remove()
    assert found[::-1] == alone  # to the bit
    assert work.near_ties == len(ITEMS) - 1  # the shortest was asked alone in the first place
    assert work.tokens == sum(len(tokenize(item, tokenizer).tokens) for item in ITEMS)
    assert work.checks > 0


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=5), st.floats(1e-4, 2), st.randoms())
def test_no_movement_below_the_tolerance_flips_what_is_no_near_tie(
    values: list[float], tolerance: float, random: Random
) -> None:
    spans = [(1,) * len(values), tuple(random.randint(1, 9) for _ in values)]
    moved = [value + 0.499 * tolerance * random.uniform(-1, 1) for value in values]
    if not answering.near_tie(values, spans, tolerance):
        for over in spans:
            assert np.argmax(np.divide(values, over)) == np.argmax(np.divide(moved, over))


@pytest.mark.parametrize(("beginnings", "groups"), [(1, 1), (3, 2), (6, 2)])
def test_a_common_beginning_is_computed_once_for_items_that_are_alike(
    beginnings: int, groups: int, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    beginning = PREFIX * beginnings
    asked = [replace(item, prompt=beginning + item.prompt) for item in (*ITEMS, ITEMS[0], ITEMS[2])]
    trees = [tokenize(item, tokenizer) for item in asked]
    assert len(alike(trees)) == groups
    answers, work = loglikelihoods(llama, tokenizer, asked, 4096)
    for item, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer, slow(llama, tokenizer, item), rtol=0, atol=2e-4)
    assert replace(work, checks=0) == answering.planned(asked, tokenizer)


@pytest.mark.parametrize("rows", ["as suits the processor", "padded"])
def test_a_common_beginning_is_computed_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: str, request: pytest.FixtureRequest
) -> None:
    if rows == "padded":
        request.getfixturevalue("padded")
    asked = [replace(item, prompt=PREFIX + item.prompt) for item in ITEMS]
    answers, work = loglikelihoods(model, tokenizer, asked, 4096)
    for item, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer, slow(model, tokenizer, item), rtol=0, atol=2e-4)
    assert replace(work, checks=0) == answering.planned(asked, tokenizer)
    assert work.tokens == sum(len(tokenize(i, tokenizer).tokens) for i in ITEMS) + len(PREFIX)


# --- fuzz


TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["שלום", "e\u0301", "é", "\u200f", " ", "\n "]
)


@given(prompt=TEXT, options=st.lists(TEXT, min_size=2, max_size=4, unique=True), repeat=st.sampled_from([1, 1, 40]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_answered_as_by_a_sequence_an_option_or_fails_with_a_reason(
    prompt: str, options: list[str], repeat: int, tokenizer: PreTrainedTokenizerBase, llama: PreTrainedModel
) -> None:
    item = Item("f", prompt * repeat, tuple(options), 0)
    (answer,), _ = loglikelihoods(llama, tokenizer, [item], 4096)
    score, _ = grading.grade(item, answer, (1,) * len(options))
    if isinstance(answer, Failure):
        assert answer.reason
        assert np.isnan(score)
    else:
        assert np.isfinite(answer).all()
        if item.prompt.rstrip():
            np.testing.assert_allclose(answer, slow(llama, tokenizer, item), rtol=1e-4, atol=5e-4)


def test_the_protocol_is_part_of_what_names_an_answer() -> None:
    assert set(answering.PROTOCOL) == {"scoring", "tokens", "version"}


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6))
def test_a_greedy_option_has_the_first_of_the_highest_tokens_everywhere(rows: list[list[int]]) -> None:
    trees = [tree_of([0], [[token] for token in range(4)])] * len(rows)
    likeliest = [row.index(max(row)) for row in rows]
    _, greedy = answering._read(torch.tensor(rows).bfloat16(), trees, trees)
    assert greedy == [tuple(token == best for token in range(4)) for best in likeliest]
    path = tree_of([0], [[*likeliest], [*likeliest[:-1], 4]])
    wide = torch.tensor([[*row, 0] for row in rows]).bfloat16()
    assert answering._read(wide, [path], [path])[1] == [(True, False)]
