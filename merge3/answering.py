"""Answering: the likelihood that a model gives each option of each item; the likeliest option is its answer.

A prompt and its options are one tree of tokens, packed into one sequence: the prompt is computed once, and so is
every beginning that options share. Logits are read only where an option's next token hangs. A model whose likelihoods
are not finite is broken, which is an error and never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merge3.items import Item
from merge3.store import Answer

PROTOCOL = {
    "scoring": "sum of option log-likelihoods",
    "tokens": "joint, trailing space to the option",
    "version": 1,
}


@dataclass(frozen=True)
class Work:
    """What answering cost: tokens that went through the model, and positions whose logits were read."""

    tokens: int
    positions: int


SCORINGS = ("sum", "characters", "tokens")


class BrokenModel(ValueError):  # noqa: N818 - reads better where it is raised
    """The model's likelihoods are not finite numbers; `work` is what it took to find out."""

    def __init__(self, message: str, work: Work) -> None:
        super().__init__(message)
        self.work = work


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


def tokenize(item: Item, tokenizer: PreTrainedTokenizerBase) -> Tree:
    """The token tree of an item.

    Prompt and option are tokenized together, the prompt's trailing space belonging to the option, as lm-eval does.

    Raises:
        ValueError: the prompt has no token, or an option adds none.
    """
    prompt = tokenizer.encode(item.prompt.rstrip())
    if not prompt:
        raise ValueError(f"item {item.id!r}: its prompt has no token: {item.prompt!r}")
    tokens, parents = list(prompt), list[int]()
    reads = []
    children: dict[tuple[int, int], int] = {}  # (parent position, token) -> position
    for option in item.options:
        own = tokenizer.encode(item.prompt + option)[len(prompt) :]
        if not own:
            raise ValueError(f"item {item.id!r}: option {option!r} adds no token to the prompt")
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


def batches(trees: Sequence[Tree], batch_tokens: int) -> list[list[int]]:
    """Indices of trees, longest first, in batches of at most `batch_tokens` padded tokens (or one tree)."""
    order = sorted(range(len(trees)), key=lambda i: (-len(trees[i].tokens), i))
    result: list[list[int]] = []
    for index in order:
        if result and (len(result[-1]) + 1) * len(trees[result[-1][0]].tokens) <= batch_tokens:
            result[-1].append(index)
        else:
            result.append([index])
    return result


def _inputs(trees: Sequence[Tree], padding: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Left-padded tensors in which a token sees itself, the prompt before it, and its ancestors in the tree."""
    width = max(len(tree.tokens) for tree in trees)
    ids = torch.full((len(trees), width), padding)
    places = torch.zeros(len(trees), width, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        start = width - len(tree.tokens)
        after = start + tree.prompt
        ids[row, start:] = torch.tensor(tree.tokens)
        places[row, start:after] = torch.arange(tree.prompt)
        sees[row, start:after, start:after] = torch.ones(tree.prompt, tree.prompt, dtype=torch.bool).tril()
        for node, parent in enumerate(tree.parents):
            sees[row, after + node] |= sees[row, start + parent]
            places[row, after + node] = places[row, start + parent] + 1
    mask = torch.zeros(len(trees), 1, width, width, dtype=dtype)
    mask.masked_fill_(~sees.unsqueeze(1), torch.finfo(dtype).min)
    return {"input_ids": ids, "position_ids": places, "attention_mask": mask}


def _logits(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], rows: list[int], columns: list[int]
) -> Float[torch.Tensor, "positions vocabulary"]:
    """Logits at the given places alone: the head, a fifth of a small model, is spared everywhere else."""
    at = (torch.tensor(rows, device=model.device), torch.tensor(columns, device=model.device))
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hook = head.register_forward_pre_hook(lambda module, arguments: (arguments[0][at],))
    try:
        outputs = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, use_cache=False)
    finally:
        hook.remove()
    logits: torch.Tensor = outputs.logits.float()
    return logits


def loglikelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda items: None,
) -> tuple[list[Answer], Work]:
    """The log-likelihood of every option of every item, in nats, and the work it took.

    `on_batch` is told how many items a finished batch held.

    Raises:
        BrokenModel: a log-likelihood is not finite; the batch in which it occurs is the last that is asked.
        ValueError: an item is longer than the model's sliding window.
        torch.OutOfMemoryError: a single item does not fit; batches that do not are halved, and never graded.
    """
    trees = [tokenize(item, tokenizer) for item in items]
    window = getattr(model.config.get_text_config(), "sliding_window", None) or np.inf
    if (longest := max((len(tree.tokens) for tree in trees), default=0)) > window:
        raise ValueError(f"an item has {longest} tokens with its options; this model's sliding window is {window}")
    answers = _score(model, tokenizer, trees, batch_tokens, on_batch)
    asked = [tree for tree, answer in zip(trees, answers, strict=True) if answer is not None]
    work = Work(sum(len(t.tokens) for t in asked), sum(t.read_positions for t in asked))
    found = []
    for item, answer in zip(items, answers, strict=True):
        if answer is not None and not np.isfinite(answer).all():
            raise BrokenModel(f"log-likelihoods of item {item.id!r} are {answer}", work)
        found.append(answer or ())
    return found, work


def check_packing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item) -> None:
    """Refuse a model in which an option's likelihood depends on its siblings in the tree, as in recurrent layers.

    The tokens that only other options use are replaced: attention that heeds the mask gives the last option the same
    likelihood. (Nothing can be told by an item whose options have a token each.)

    Raises:
        ValueError: the likelihood changed by a tenth of a nat or more.
    """
    tree = tokenize(item, tokenizer)
    own = {position for position, _ in tree.reads[-1]}
    tokens = tuple(
        token if at < tree.prompt or at in own else (token + 1) % len(tokenizer) for at, token in enumerate(tree.tokens)
    )
    other = replace(tree, tokens=tokens)
    changes = []  # the smaller of two, since a rare hiccup of bfloat16 hardware is not the model's doing
    for _ in range(2):
        before, after = ((_score(model, tokenizer, [one], 1)[0] or (np.nan,))[-1] for one in (tree, other))
        changes.append(abs(after - before))
    if min(changes) >= 0.1:  # NaN is no difference: the answers will tell
        raise ValueError(
            f"{type(model).__name__} cannot be asked by packed options (one moves another by {min(changes):.2f} nats): "
            "its layers are not all attention"
        )


@torch.inference_mode()
def _score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trees: Sequence[Tree],
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda items: None,
) -> list[Answer | None]:
    """The log-likelihood of every option of every tree; None where it was not asked, after others were not finite."""
    answers: list[Answer | None] = [None] * len(trees)
    queue = batches(trees, batch_tokens)
    while queue:
        batch = queue.pop(0)
        chosen = [trees[i] for i in batch]
        inputs = _inputs(chosen, tokenizer.pad_token_id, model.dtype)
        width = inputs["input_ids"].shape[1]
        rows = [row for row, tree in enumerate(chosen) for _ in range(tree.read_positions)]
        columns = [column for tree in chosen for column in range(width - tree.read_positions, width)]
        try:
            logits = _logits(model, inputs, rows, columns)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            queue[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            continue
        totals = logits.logsumexp(-1).double()
        first = 0  # the read positions of a tree stand together, the last prompt token first
        for index, tree in zip(batch, chosen, strict=True):
            pairs = [(first + position - tree.prompt + 1, token) for path in tree.reads for position, token in path]
            read, tokens = torch.tensor(pairs, device=logits.device).T
            values = logits[read, tokens].double() - totals[read]
            parts = torch.split(values, [len(path) for path in tree.reads])
            answers[index] = tuple(float(part.sum()) for part in parts)
            first += tree.read_positions
        on_batch(len(batch))
        if not all(np.isfinite(answers[index] or ()).all() for index in batch):
            break
    return answers


def lengths(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, scoring: str) -> list[tuple[int, ...]]:
    """What each option's log-likelihood is divided by.

    1 (`sum`, lm-eval's acc), its `characters` (lm-eval's acc_norm), or its `tokens`.

    Raises:
        ValueError: the scoring is none of these.
    """
    if scoring == "sum":
        return [(1,) * len(item.options) for item in items]
    if scoring == "characters":
        return [tuple(len(option) for option in item.options) for item in items]
    if scoring == "tokens":
        return [tuple(len(path) for path in tokenize(item, tokenizer).reads) for item in items]
    raise ValueError(f"scoring must be one of {list(SCORINGS)}, got {scoring!r}")


def correct(
    items: Sequence[Item], answers: Sequence[Answer], divisors: Sequence[tuple[int, ...]]
) -> Float[np.ndarray, " items"]:
    """1 where the right option scores above every other, else 0: a tie is not an answer."""
    return np.array([float(margin > 0) for margin in margins(items, answers, divisors)])


def margins(
    items: Sequence[Item], answers: Sequence[Answer], divisors: Sequence[tuple[int, ...]]
) -> Float[np.ndarray, " items"]:
    """Log-likelihood of the right option less that of the best other, in nats; each over its divisor, see `lengths`."""
    found = []
    for item, answer, over in zip(items, answers, divisors, strict=True):
        scores = [value / length for value, length in zip(answer, over, strict=True)]
        found.append(scores[item.answer] - max(v for o, v in enumerate(scores) if o != item.answer))
    return np.array(found)
