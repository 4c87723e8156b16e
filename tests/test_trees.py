from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from merge3.items import Item
from merge3.memory import looked_at
from merge3.store import Failure
from merge3.trees import Tree, alike, batches, encode, tokenize


def test_shared_beginnings_are_computed_once(tokenizer: PreTrainedTokenizerBase) -> None:
    tree = tokenize(
        Item("a", "Question: 12 and 5?\nAnswer: ", ("12 + 5 = 17", "12 + 5 = 18", "12 - 5 = 7", "12 - 5 = 8"), 0),
        tokenizer,
    )
    prompt = len("Question: 12 and 5?\nAnswer:")
    # " 12 " once, then "+ 5 = 1" and "- 5 = " once each: the last token of an option is read, not computed
    assert (tree.prompt, len(tree.tokens)) == (prompt, prompt + len(" 12 ") + len("+ 5 = 1") + len("- 5 = "))
    assert [len(path) for path in tree.reads] == [len(" 12 + 5 = 17")] * 2 + [len(" 12 - 5 = 7")] * 2


def test_an_option_that_begins_another_keeps_its_own_end(tokenizer: PreTrainedTokenizerBase) -> None:
    tree = tokenize(Item("b", "Short ", ("x", "xy", "y"), 1), tokenizer)
    assert [len(path) for path in tree.reads] == [2, 3, 2]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_batches_hold_every_tree_once_within_the_budget(sizes: list[int], budget: int) -> None:
    trees = [Tree(n, tuple(range(n)), (), ()) for n in sizes]
    found = batches(trees, budget)
    assert sorted(i for batch in found for i in batch) == list(range(len(sizes)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(sizes[i] for i in batch) <= budget


def test_an_end_that_the_tokenizer_puts_there_is_not_read(tokenizer: PreTrainedTokenizerBase) -> None:
    ending = copy.deepcopy(tokenizer)
    ends = (str(ending.eos_token), ending.eos_token_id)
    ending.backend_tokenizer.post_processor = TemplateProcessing(f"$A {ends[0]}", special_tokens=[ends])
    assert ending.encode("2+2=")[-1] == ending.eos_token_id
    assert encode("2+2=", ending) == tokenizer.encode("2+2=")
    assert encode(f"a{ending.eos_token}", ending)[-1] == ending.eos_token_id


def test_an_empty_prompt_is_conditioned_on_the_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tree = tokenize(Item("e", "", ("xy", "z"), 0), tokenizer)
    assert tree.tokens[: tree.prompt] == (tokenizer.bos_token_id,)
    assert [len(path) for path in tree.reads] == [2, 1]


def test_trees_are_alike_where_attention_looks_at_as_many_columns() -> None:
    sizes = [3, 128, 129, 256, 257, 128, 600]
    trees = [Tree(size, (0,) * size, (), ()) for size in sizes]
    assert alike(trees) == [[0, 1, 5], [2, 3], [4], [6]]
    assert [looked_at(size) for size in sizes] == [16, 128, 256, 256, 512, 128, 768]


@pytest.fixture(scope="module")
def merging_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer in which "ab" and "abc" are tokens, so that tokens merge across a prompt's end."""
    vocabulary = {token: place for place, token in enumerate(["<s>", "</s>", "<pad>", "a", "b", "c", "ab", "abc", " "])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("ab", "c")]))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def lm_eval_pair(context: str, continuation: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """lm-eval 0.4.13, `TemplateLM._encode_pair`, in its own words."""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation = context[-n_spaces:] + continuation
        context = context[:-n_spaces]
    whole_enc = tokenizer.encode(context + continuation)
    context_enc = tokenizer.encode(context)
    return context_enc, whole_enc[len(context_enc) :]


@given(
    prompt=st.text("abc ", min_size=1, max_size=6),
    options=st.lists(st.text("abc ", max_size=4), min_size=2, unique=True),
)
def test_tokens_that_merge_across_the_border_are_parted_as_lm_eval_does(
    prompt: str, options: list[str], merging_tokenizer: PreTrainedTokenizerBase
) -> None:
    if not prompt.strip():
        return
    theirs = [lm_eval_pair(prompt, option, merging_tokenizer) for option in options]
    tree = tokenize(Item("m", prompt, tuple(options), 0), merging_tokenizer)
    continuations = [continuation for _, continuation in theirs]
    if isinstance(tree, Failure):
        assert [] in continuations or len({tuple(c) for c in continuations}) < len(continuations)
        return
    assert list(tree.tokens[: tree.prompt]) == theirs[0][0]
    assert [[token for _, token in path] for path in tree.reads] == continuations


def test_an_option_whose_tokens_all_merge_into_the_prompt_is_a_failure(
    merging_tokenizer: PreTrainedTokenizerBase,
) -> None:
    tree = tokenize(Item("m", "a", ("b", "c"), 0), merging_tokenizer)  # "ab" is one token, as many as "a" alone
    assert tree == Failure("option 'b' adds no token to the prompt")


def test_an_item_is_made_tokens_once_for_each_tokenizer(
    tokenizer: PreTrainedTokenizerBase, merging_tokenizer: PreTrainedTokenizerBase
) -> None:
    item = Item("a", "aa", ("b", "c"), 0)
    one, other = tokenize(item, tokenizer), tokenize(item, merging_tokenizer)
    assert one != other
    assert tokenize(replace(item, answer=1), tokenizer) == one
    assert tokenize(Item("a", "aa", ("b", "c"), 0), tokenizer) is one
