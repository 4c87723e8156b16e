"""Items with options as trees of tokens, and which trees go through a model together.

A prompt and its options are one tree: every beginning that options share is there once. Knows tokenizers and the
lengths of rows; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from merge3.items import Item
from merge3.memory import FEW, looked_at, rounded
from merge3.store import Failure

KEPT = 2**13  # trees, some 40 MB: every candidate of a search is asked the same items
SHARED = 24  # tokens from which on a common beginning is worth a pass of its own


@dataclass(frozen=True)
class Tree:
    """One item in tokens.

    `tokens` are the prompt and then the inner nodes of the options' tree; `parents[k]` is the position in `tokens`
    that inner node k hangs from. `reads[o]` lists for option o the pairs (position, next token) whose log-probabilities
    sum to the option's.
    """

    prompt: int  # number of prompt tokens
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    reads: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def read_positions(self) -> int:
        """The last prompt token and every inner node."""
        return len(self.tokens) - self.prompt + 1

    @property
    def depth(self) -> int:
        """Tokens of the longest option with the prompt, which is what a model's context must hold."""
        return self.prompt + max(map(len, self.reads), default=1) - 1

    def lines(self) -> list[Tree]:
        """The same options as trees of one option each."""
        found = []
        for path in self.reads:
            tail = tuple(token for _, token in path)
            start = self.prompt - 1
            found.append(
                Tree(
                    self.prompt,
                    (*self.tokens[: self.prompt], *tail[:-1]),
                    tuple(range(start, start + len(tail) - 1)),
                    (tuple((start + place, token) for place, token in enumerate(tail)),),
                )
            )
        return found


@lru_cache(KEPT)
def tokenize(item: Item, tokenizer: PreTrainedTokenizerBase) -> Tree | Failure:
    """The token tree of an item; a failure where two options are the same tokens, or one adds none to the prompt.

    Prompt and option are tokenized together and parted after as many tokens as the prompt has alone, the prompt's
    trailing space belonging to the option, exactly as lm-eval does. Where a token would merge across that border,
    the prompt keeps its own tokens, and the option is what follows so many tokens of the whole.
    """
    context = item.prompt.rstrip()
    prompt = encode(context, tokenizer)
    wholes = [encode(item.prompt + option, tokenizer) for option in item.options]
    owns = [whole[len(prompt) :] for whole in wholes]
    if not context:
        # nothing to condition on: lm-eval's one token, which is not put before an option that begins with it
        first = beginning(tokenizer)
        plain: list[list[int]] = [
            tokenizer.encode(item.prompt + option, add_special_tokens=False) for option in item.options
        ]
        prompt, owns = [first], [own[1:] if own[:1] == [first] else own for own in plain]
    for option, own in zip(item.options, owns, strict=True):
        if not own:
            return Failure(f"option {option!r} adds no token to the prompt")
    if len(set(map(tuple, owns))) < len(owns):
        return Failure("two options are the same tokens")
    return tree_of(prompt, owns)


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a text; a beginning-of-text token that it has already, from a chat template, is not put there again."""
    begins = tokenizer.bos_token
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=not (begins and text.startswith(begins)))
    ends = tokenizer.eos_token
    if tokens and ends and tokens[-1] == tokenizer.eos_token_id and not text.endswith(str(ends)):
        tokens.pop()  # put there by the tokenizer: nothing would be read after it
    return tokens


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for an empty prompt, as in lm-eval: beginning of text, else end of text.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("an empty prompt needs a tokenizer with a beginning-of-text or end-of-text token")


def tree_of(prompt: Sequence[int], options: Sequence[Sequence[int]]) -> Tree:
    """The tree of a prompt's tokens and those of each option."""
    tokens, parents = list(prompt), list[int]()
    reads = []
    children: dict[tuple[int, int], int] = {}  # (parent position, token) -> position
    for own in options:
        position, path = len(prompt) - 1, []
        for token in own[:-1]:
            path.append((position, token))
            if (position, token) not in children:
                children[position, token] = len(tokens)
                tokens.append(token)
                parents.append(position)
            position = children[position, token]
        reads.append((*path, (position, own[-1])))
    return Tree(len(prompt), tuple(tokens), tuple(parents), tuple(reads))


def longest(trees: Sequence[Tree]) -> int:
    """Tokens of the longest."""
    return max(len(tree.tokens) for tree in trees)


def common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of several prompts begin with, the last token of none among them; 0 below `SHARED`."""
    if len(prompts) < 2:
        return 0
    arrays = [np.array(prompt[: min(map(len, prompts)) - 1]) for prompt in prompts]
    shared = int(np.logical_and.accumulate((np.stack(arrays) == arrays[0]).all(axis=0)).sum())
    return shared if shared >= SHARED else 0


def longest_first(trees: Sequence[Tree]) -> list[int]:
    """Indices of trees, the longest first, equally long ones by their tokens: in whatever order items come."""
    return sorted(range(len(trees)), key=lambda i: (-len(trees[i].tokens), trees[i].tokens, i))


def alike(trees: Sequence[Tree], stretched: float = np.inf) -> list[list[int]]:
    """Indices of trees in groups in which attention looks at as many columns, or at few enough, see `looked_at`.

    Trees of more than `stretched` tokens a sequence are apart from others, see `stretches`.
    """
    found: dict[tuple[int, bool], list[int]] = {}
    for index, tree in enumerate(trees):
        found.setdefault((max(looked_at(len(tree.tokens)), FEW), tree.depth > stretched), []).append(index)
    return [found[kind] for kind in sorted(found)]


def batches(trees: Sequence[Tree], batch_tokens: int, shared: int = 0) -> list[list[int]]:
    """Indices of trees, longest first, in batches of at most `batch_tokens` padded tokens (or one tree).

    `shared` tokens at the beginning of each are not computed with it.
    """
    result: list[list[int]] = []
    for index in longest_first(trees):
        width = _width(len(trees[result[-1][0]].tokens), shared) if result else 0
        if result and (len(result[-1]) + 1) * width <= batch_tokens:
            result[-1].append(index)
        else:
            result.append([index])
    return result


def flat_batches(trees: Sequence[Tree], batch_tokens: int, shared: int = 0) -> list[list[int]]:
    """Indices of trees, longest first, in batches of at most `batch_tokens` tokens (or one tree), none padded.

    `shared` tokens at the beginning of each are computed with the first batch alone.
    """
    result: list[list[int]] = []
    room = 0
    for index in longest_first(trees):
        own = len(trees[index].tokens) - shared
        if not result or own > room:
            room = batch_tokens if result else batch_tokens - shared
            result.append([])
        result[-1].append(index)
        room -= own
    return result


def _width(tokens: int, shared: int) -> int:
    """Columns of a batch whose longest row has so many tokens: with the shared ones they are whole vectors."""
    return rounded(tokens) - shared
