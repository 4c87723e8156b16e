from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SIZES, build
from hypothesis import given
from hypothesis import strategies as st
from transformers import Lfm2Config, MistralConfig, PreTrainedModel, PreTrainedTokenizerBase

from merge3 import answering
from merge3.answering import BrokenModel, Tree, batches, correct, lengths, loglikelihoods, margins, tokenize
from merge3.items import Item

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


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_packed_trees_agree_with_one_sequence_an_option(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> None:
    answers, _ = loglikelihoods(model, tokenizer, ITEMS, batch_tokens)
    for item, answer in zip(ITEMS, answers, strict=True):
        np.testing.assert_allclose(answer, slow(model, tokenizer, item), rtol=0, atol=2e-4)


def test_asking_twice_gives_the_same_bits(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    first = loglikelihoods(llama, tokenizer, ITEMS, 200)
    assert loglikelihoods(llama, tokenizer, ITEMS, 200) == first


def test_shared_beginnings_are_computed_once(tokenizer: PreTrainedTokenizerBase) -> None:
    tree = tokenize(ITEMS[0], tokenizer)
    prompt = len("Question: 12 and 5?\nAnswer:")
    # " 12 " once, then "+ 5 = 1" and "- 5 = " once each: the last token of an option is read, not computed
    assert (tree.prompt, len(tree.tokens)) == (prompt, prompt + len(" 12 ") + len("+ 5 = 1") + len("- 5 = "))
    assert [len(path) for path in tree.reads] == [len(" 12 + 5 = 17")] * 2 + [len(" 12 - 5 = 7")] * 2


def test_an_option_that_begins_another_keeps_its_own_end(tokenizer: PreTrainedTokenizerBase) -> None:
    tree = tokenize(ITEMS[1], tokenizer)
    assert [len(path) for path in tree.reads] == [2, 3, 2]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_batches_hold_every_tree_once_within_the_budget(sizes: list[int], budget: int) -> None:
    trees = [Tree(n, tuple(range(n)), (), ()) for n in sizes]
    found = batches(trees, budget)
    assert sorted(i for batch in found for i in batch) == list(range(len(sizes)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(sizes[i] for i in batch) <= budget


def test_work_counts_tokens_and_read_positions(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    _, work = loglikelihoods(llama, tokenizer, ITEMS, 4096)
    trees = [tokenize(item, tokenizer) for item in ITEMS]
    assert work.tokens == sum(len(tree.tokens) for tree in trees)
    assert work.positions == sum(len(tree.parents) + 1 for tree in trees)


def test_progress_is_told_every_item(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    told: list[int] = []
    loglikelihoods(llama, tokenizer, ITEMS, 100, told.append)
    assert sum(told) == len(ITEMS)
    assert len(told) > 1


def test_models_whose_layers_are_not_attention_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    layers = {"num_key_value_heads": 2, "vocab_size": 259, "layer_types": ["conv", "full_attention"]}
    convolutional = build(Lfm2Config(**SIZES, **layers), 1)
    with pytest.raises(ValueError, match="cannot be asked by packed options"):
        answering.check_packing(convolutional, tokenizer, ITEMS[0])


def test_models_of_attention_pass(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    answering.check_packing(model, tokenizer, ITEMS[0])


def test_items_beyond_a_sliding_window_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    config = MistralConfig(**SIZES, num_key_value_heads=2, vocab_size=259, sliding_window=20)
    with pytest.raises(ValueError, match="sliding window is 20"):
        loglikelihoods(build(config, 1), tokenizer, ITEMS, 4096)


def test_only_the_strictly_likeliest_option_is_an_answer() -> None:
    items = [ITEMS[3]] * 3
    answers = [(-1.0, -2.0), (-2.0, -1.0), (-1.0, -1.0)]
    assert correct(items, answers, [(1, 1)] * 3).tolist() == [1.0, 0.0, 0.0]
    assert margins(items, answers, [(1, 1)] * 3).tolist() == [1.0, -1.0, 0.0]


def test_options_are_compared_by_sum_character_or_token(tokenizer: PreTrainedTokenizerBase) -> None:
    item = Item("l", "p ", ("no", "noé"), 1)  # the tokenizer has a token a byte
    found = {scoring: lengths([item], tokenizer, scoring) for scoring in answering.SCORINGS}
    assert found == {"sum": [(1, 1)], "characters": [(2, 3)], "tokens": [(3, 5)]}  # the space is the option's
    answers = [(-2.0, -2.7)]
    assert [float(correct([item], answers, found[scoring])[0]) for scoring in answering.SCORINGS] == [0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="scoring must be one of"):
        lengths([item], tokenizer, "mean")


def test_a_model_of_nan_is_broken_not_wrong(tokenizer: PreTrainedTokenizerBase, llama: PreTrainedModel) -> None:
    weight = llama.get_input_embeddings().weight
    kept = weight.data.clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(BrokenModel, match="log-likelihoods of item") as caught:
            loglikelihoods(llama, tokenizer, ITEMS, 1)
    finally:
        weight.data.copy_(kept)
    longest = max(len(tokenize(item, tokenizer).tokens) for item in ITEMS)
    assert caught.value.work.tokens == longest  # the first batch, of one item, and no other


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
        room = 0
        with pytest.raises(torch.OutOfMemoryError):
            loglikelihoods(llama, tokenizer, ITEMS, 4096)
    finally:
        hook.remove()
    assert same_work == work
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_prompts_and_options_without_tokens_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="prompt has no token"):
        tokenize(Item("e", " ", ("x", "y"), 0), tokenizer)
    with pytest.raises(ValueError, match="option '' adds no token"):
        tokenize(Item("e", "p", ("", "y"), 0), tokenizer)


def test_the_protocol_is_part_of_what_names_an_answer() -> None:
    assert set(answering.PROTOCOL) == {"scoring", "tokens", "version"}
