"""Answering: the likelihood that a model gives each option of each item; the likeliest option is its answer.

A prompt and its options are one tree of tokens (`merge3.trees`), packed into one sequence: the prompt is computed once,
and so is every beginning that options share. A beginning that all items share (examples, a system prompt) is computed
once for all. Logits are read only where an option's next token hangs. Models for which that is not exact (layers that
are not attention, items beyond a sliding window) are asked a sequence an option instead. Items so long that a model
stretches its positions (LongRoPE) are asked apart from others, and whole.

**Batch shape decides nothing.** On a CPU tokens go through the layers as one row without padding (`merge3.flat`), and
likelihoods are the same to the bit in any batch: where a matrix product's row depends on how many others there are,
which is tried once (`steady`), products are made of numbers of rows that give the same. Elsewhere rows are padded at
their end, to whole vectors, so that every token keeps its column, and whether likelihoods are the same is seen in every
batch: the shortest item is asked alone, and again in each. Where it moved, a *near-tie* of that batch, an item whose
best two options are closer than `TOLERANCE` by any of the `SCORINGS`, is asked again, alone and without a shared
beginning, and that decides.

A model whose likelihoods are not finite is broken, which is an error and never a wrong answer; it is found in the first
batch, or by the shortest item, asked before it. What cannot be asked (too long, an option without tokens) is a failure
with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from merge3 import flat, grading
from merge3.items import Item
from merge3.memory import Prefix, looked_at, rounded
from merge3.models import value_of
from merge3.store import Answer, Failure
from merge3.trees import Tree, alike, batches, common, flat_batches, longest, longest_first, tokenize, tree_of

PROTOCOL = {
    "scoring": "sum of option log-likelihoods",
    "tokens": "joint, trailing space to the option",
    "version": 2,
}

# Nats by which the difference of two log-likelihoods may move where sums are made in another order: seen were .37 in
# bfloat16 and 1e-4 in float32, a sequence an option against packed trees, on the demonstration's base.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
SCORINGS = ("sum", "characters", "tokens")  # what log-likelihoods of options are compared by, see `divisors`
PROBE = (8, 3, 3)  # tokens of the prompt and of the two options by which `packable` sees how a model attends
TRIAL = (5, 33, 100, 250)  # lengths of the rows by which `steady` sees whether a batch moves them
COPIES = 3  # of each in one
TOLD = 5  # tokens of each whose likelihoods are compared: rounding hides what moved from one in five
HEAD_ROWS = 16  # rows of logits normalised at once, so that they stay in the processor's cache


@dataclass(frozen=True)
class Work:
    """What answering took: tokens of the questions that went through the model, and positions whose logits were read.

    `near_ties` counts the items that were asked again, `checks` the tokens of that and of the shortest item's
    repetitions; they come on top, so that `tokens` depends on the questions alone.
    """

    tokens: int = 0
    positions: int = 0
    near_ties: int = 0
    checks: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass
class Scores:
    """What trees were scored.

    Attributes:
        values: the log-likelihood of each option of each tree; None where it was not asked, others being not finite.
        greedy: whether each option is what the model would have written itself.
        moved: trees that were in a batch in which the shortest tree's answer was not, to the bit, what it is alone.
        work: what it took.
    """

    values: list[tuple[float, ...] | None]
    greedy: list[tuple[bool, ...]]
    moved: set[int]
    work: Work


_steady: dict[tuple[str, torch.dtype, int], bool] = {}  # what `steady` has found


class BrokenModel(ValueError):  # noqa: N818 - reads better where it is raised
    """The model's likelihoods are not finite numbers; `work` is what it took to find out."""

    def __init__(self, message: str, work: Work) -> None:
        super().__init__(message)
        self.work = work


def _inputs(
    trees: Sequence[Tree], padding: int, dtype: torch.dtype, shared: int, width: int
) -> dict[str, torch.Tensor]:
    """Right-padded tensors in which a token sees itself, the prompt before it, and its ancestors in the tree.

    The mask has `width` columns.
    """
    columns = rounded(longest(trees))
    ids = np.full((len(trees), columns), padding)
    places = np.zeros((len(trees), columns), dtype=np.int64)
    sees = np.zeros((len(trees), columns, width), dtype=bool)
    sees[:] = np.tri(columns, width, dtype=bool)  # what follows the prompt is set below; padding sees what it likes
    for row, tree in enumerate(trees):
        ids[row, : len(tree.tokens)] = tree.tokens
        places[row, : tree.prompt] = np.arange(tree.prompt)
        sees[row, tree.prompt : len(tree.tokens), tree.prompt :] = False
        for node, parent in enumerate(tree.parents, start=tree.prompt):
            if parent >= tree.prompt:
                sees[row, node] |= sees[row, parent]
            sees[row, node, node] = True
            places[row, node] = places[row, parent] + 1
    visible = torch.from_numpy(sees[:, None, shared:])
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
    given = {"input_ids": ids, "position_ids": places}
    return {name: torch.from_numpy(value[:, shared:]) for name, value in given.items()} | {"attention_mask": mask}


def _line_inputs(lines: Sequence[Tree], padding: int, holds: float) -> dict[str, torch.Tensor]:
    """Right-padded tensors of plain sequences, of as many columns as the model `holds` at most.

    No mask is needed, since what follows a token is not seen by it.
    """
    width = int(min(rounded(max(len(line.tokens) for line in lines)), holds))
    return {"input_ids": torch.tensor([[*line.tokens, *[padding] * (width - len(line.tokens))] for line in lines])}


def logits_at(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    rows: Sequence[int],
    columns: Sequence[int],
    memory: Cache | None = None,
) -> Float[torch.Tensor, "positions vocabulary"]:
    """Logits at the given places alone: the head, a fifth of a small model, is spared everywhere else."""
    at = (torch.tensor(rows, device=model.device), torch.tensor(columns, device=model.device))
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hook = head.register_forward_pre_hook(lambda module, arguments: (arguments[0][at],))
    given = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    try:
        outputs = model(**given, past_key_values=memory, use_cache=memory is not None)
    finally:
        hook.remove()
    logits: torch.Tensor = outputs.logits
    return logits


@torch.inference_mode()
def remember(model: PreTrainedModel, tokens: Sequence[int], padding: int, width: int) -> Prefix:
    """The keys and values of a beginning that several rows share, for attention that looks at `width` columns."""
    memory = Prefix(model.config.get_text_config().num_hidden_layers, width)
    tree = tree_of(tokens, [])
    with memory.keeping(len(tokens)):
        logits_at(model, _inputs([tree], padding, model.dtype, 0, width), [0], [0], memory)
    return memory


def context_length(model: PreTrainedModel) -> float:
    """Tokens that the model's positions reach; infinite where its config does not say."""
    return float(getattr(model.config.get_text_config(), "max_position_embeddings", None) or np.inf)


def window(model: PreTrainedModel) -> float:
    """Tokens that a layer looks back at; infinite where no layer has a window."""
    config = model.config.get_text_config()
    names = ["attention_chunk_size"] + ["window_size"] * (config.model_type == "gpt_neo")
    if getattr(config, "use_sliding_window", True) is not False:
        names.append("sliding_window")
    found = [value_of(config, name) for name in names]
    each = [size for value in found for size in (value if isinstance(value, list) else [value])]
    return float(min((size or np.inf for size in each), default=np.inf))


def stretches(model: PreTrainedModel) -> float:
    """Tokens of a pass from beyond which all its positions are told otherwise (LongRoPE); infinite where none are."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one for all layers, or for each kind
    long = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return float(min(long, default=np.inf))


def planned(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> Work:
    """What items with options take; a common beginning counts once for items that are `alike`."""
    trees = [tree for tree in (tokenize(item, tokenizer) for item in items) if isinstance(tree, Tree)]
    work = Work()
    for group in ([trees[index] for index in part] for part in alike(trees)):
        shared = common([tree.tokens[: tree.prompt] for tree in group])
        own = sum(len(tree.tokens) - shared for tree in group)
        work += Work(own + shared, sum(tree.read_positions for tree in group))
    return work


def loglikelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda items: None,
    packed: bool = True,
) -> tuple[list[Answer], Work]:
    """The log-likelihood of every option of every item, in nats, and the work it took.

    `on_batch` is told how many items a finished batch held. Without `packed` every option is a sequence of its own,
    as for items that are longer than the model's sliding window.

    Raises:
        BrokenModel: a log-likelihood is not finite; the batch in which it occurs is the last that is asked.
        torch.OutOfMemoryError: a single item does not fit; batches that do not are halved, and never graded.
    """
    answers: list[Answer | None] = []
    trees: dict[int, Tree] = {}
    holds = context_length(model)
    for index, item in enumerate(items):
        tree = tokenize(item, tokenizer)
        if isinstance(tree, Tree) and tree.depth > holds:
            tree = Failure(f"{tree.depth} tokens with its longest option; the model's context holds {holds:.0f}")
        answers.append(tree if isinstance(tree, Failure) else None)
        if isinstance(tree, Tree):
            trees[index] = tree
    on_batch(len(items) - len(trees))
    chosen = list(trees.values())
    spans = [spans_of(items[index], tree) for index, tree in trees.items()]
    found = settled(model, tokenizer, chosen, spans, batch_tokens, on_batch, packed)
    for index, values in zip(trees, found.values, strict=True):
        if values is not None and not np.isfinite(values).all():
            raise BrokenModel(f"log-likelihoods of item {items[index].id!r} are {values}", found.work)
        answers[index] = values
    return [() if answer is None else answer for answer in answers], found.work


def settled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trees: Sequence[Tree],
    spans: Sequence[Sequence[Sequence[int]]],
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda items: None,
    packed: bool = True,
) -> Scores:
    """`score`, and where batches moved the answers, the near-ties by `spans` decided alone (see `near_tie`)."""
    found = score(model, tokenizer, trees, batch_tokens, on_batch, packed)
    if any(values is not None and not np.isfinite(values).all() for values in found.values):
        return found
    for place in sorted(found.moved):
        if near_tie(found.values[place] or (), spans[place], TOLERANCE.get(model.dtype, 0.0)):
            again = score(model, tokenizer, [trees[place]], 1, packed=packed)
            found.values[place], found.greedy[place] = again.values[0], again.greedy[0]
            found.work += Work(near_ties=1, checks=again.work.tokens)
    return found


def spans_of(item: Item, tree: Tree) -> tuple[tuple[int, ...], ...]:
    """What each option's log-likelihood is divided by, for each of `SCORINGS`."""
    return (
        grading.divisors(item, "sum"),
        grading.divisors(item, "characters"),
        tuple(len(path) for path in tree.reads),
    )


def near_tie(values: Sequence[float], spans: Sequence[Sequence[int]], tolerance: float) -> bool:
    """Whether the best option leads another by less than `tolerance`, by any way of dividing log-likelihoods.

    Each log-likelihood may have moved by half the tolerance, hence a score by that over its divisor.
    """
    for over in spans:
        scores = [value / length for value, length in zip(values, over, strict=True)]
        best = int(np.argmax(scores))
        for other, value in enumerate(scores):
            if other != best and scores[best] - value < tolerance / 2 * (1 / over[best] + 1 / over[other]):
                return True
    return False


@torch.inference_mode()
def packable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether options may be asked as one tree: attention that heeds a mask and tells positions by their numbers.

    Tried on a tree of random tokens. Its options have the likelihoods that they have apart, to `TOLERANCE`; the last
    one's stays, to a tenth of that, where the tokens that the other alone uses are replaced (not so in recurrent
    layers), and changes where its positions' numbers do (not so where positions are told by distance in the row,
    ALiBi). The base is to be tried, not its merges: rounding moves those with large weights by more.
    """
    padding, tolerance = tokenizer.pad_token_id or 0, TOLERANCE.get(model.dtype, 0.5)
    words = model.config.get_text_config().vocab_size
    tokens = np.random.default_rng(0).integers(words, size=sum(PROBE)).tolist()
    prompt, one, other = (tokens[end - size : end] for size, end in zip(PROBE, np.cumsum(PROBE), strict=True))
    tree = tree_of(prompt, [one, other])
    if len(tree.tokens) > min(window(model), context_length(model)):
        return False
    own = [position for position, _ in tree.reads[-1][1:]]  # where the last option's tokens stand
    replaced = tree_of(prompt, [[(token + 1) % words for token in one], other])
    inputs = _inputs([tree], padding, model.dtype, 0, rounded(len(tree.tokens)))
    places = inputs["position_ids"].clone()
    places[0, own] -= 1

    def likelihoods(tree: Tree, packed: bool = True) -> Float[np.ndarray, " options"]:
        return np.array(score(model, tokenizer, [tree], 1, packed=packed).values[0])

    def moved() -> float:
        before, after = (
            logits_at(model, given, [0], own[-1:]) for given in (inputs, inputs | {"position_ids": places})
        )
        return float((after - before).abs().max())

    try:
        told = abs(likelihoods(tree) - likelihoods(tree, packed=False)).max() <= tolerance
        # twice, since a rare hiccup of bfloat16 hardware is not the model's doing
        masked = min(abs(likelihoods(tree) - likelihoods(replaced))[-1] for _ in range(2)) <= tolerance / 10
        numbered = min(moved() for _ in range(2)) > 0
    except (ValueError, TypeError, RuntimeError):  # it takes no mask of a tree
        return False
    return bool(told and masked and numbered)


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trees: Sequence[Tree],
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda items: None,
    packed: bool = True,
) -> Scores:
    """The log-likelihood of every option of every tree; where one is not finite, no further batch is asked."""
    scores = Scores([None] * len(trees), [()] * len(trees), set(), Work())
    packed = packed and (not trees or longest(trees) <= window(model))
    for group in alike(trees, stretches(model)):
        found = _score(
            model, [trees[index] for index in group], tokenizer.pad_token_id or 0, batch_tokens, on_batch, packed
        )
        for place, index in enumerate(group):
            scores.values[index], scores.greedy[index] = found.values[place], found.greedy[place]
        scores.moved |= {group[place] for place in found.moved}
        scores.work += found.work
        if not all(values is not None and np.isfinite(values).all() for values in found.values):
            break
    return scores


def _score(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    padding: int,
    batch_tokens: int,
    on_batch: Callable[[int], None],
    packed: bool,
) -> Scores:
    """`score` of trees that are alike."""
    stretched = trees[0].depth > stretches(model)  # all are, or none: a beginning read before would not be
    shared = common([tree.tokens[: tree.prompt] for tree in trees]) if packed and not stretched else 0
    if packed and flat.suits(model):
        parts = flat.tiled(model) or not steady(model)
        return _score_flat(model, trees, padding, shared, batch_tokens, on_batch, parts)
    scores = Scores([None] * len(trees), [()] * len(trees), set(), Work())
    *_, shortest = longest_first(trees)  # asked first: a broken model is found by it
    values, greedy, rows = _ask(model, [trees[shortest]], padding, None, 0, packed)
    scores.values[shortest], scores.greedy[shortest], scores.work = values[0], greedy[0], _work(rows, 0)
    on_batch(1)
    if len(trees) == 1 or not np.isfinite(values[0]).all():
        return scores
    memory = None
    if shared:
        memory = remember(model, trees[shortest].tokens[:shared], padding, looked_at(longest(trees)))
        scores.work += Work(checks=shared)  # which the shortest was read with before
    rest = [index for index in range(len(trees)) if index != shortest]
    queue = [[rest[place] for place in batch] for batch in batches([trees[i] for i in rest], batch_tokens, shared)]
    while queue:
        batch = queue.pop(0)
        try:
            values, greedy, rows = _ask(model, [trees[i] for i in (*batch, shortest)], padding, memory, shared, packed)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            half = len(batch) // 2  # what follows is no shorter a batch: it is cut as well, before it fails
            queue = [part[i : i + half] for part in (batch, *queue) for i in range(0, len(part), half)]
            continue
        again = 1 if packed else len(trees[shortest].reads)  # rows of the shortest item
        scores.work += _work(rows[:-again], shared) + Work(checks=_work(rows[-again:], shared).tokens)
        for index, value, own in zip(batch, values, greedy, strict=False):
            scores.values[index], scores.greedy[index] = value, own
        if values[-1] != scores.values[shortest]:
            scores.moved |= {*batch}
        on_batch(len(batch))
        if not all(np.isfinite(value).all() for value in values):
            break
    return scores


def steady(model: PreTrainedModel) -> bool:
    """Whether no batch moves a bit of the model's likelihoods, laid flat: a trial, once for models of a kind.

    A processor multiplies matrices of one shape in one way, whatever the numbers. So rows of random tokens are asked
    alone and all together, which takes as long as twenty items: either nothing moves, or shapes matter.
    """
    kind = model.config.to_json_string(use_diff=False), model.dtype, torch.get_num_threads()
    if kind not in _steady:
        generator = np.random.default_rng(0)
        words = model.config.get_text_config().vocab_size
        rows = [generator.integers(words, size=n + 1).tolist() for n in TRIAL if n <= context_length(model)]
        trees = [tree_of(row[:-TOLD], [row[-TOLD:]]) for row in rows]

        def likelihoods(trees: Sequence[Tree], batch_tokens: int) -> list[tuple[float, ...] | None]:
            return _score_flat(model, trees, 0, 0, batch_tokens, lambda items: None, parts=False).values

        alone = [values for tree in trees for values in likelihoods([tree], 1)]
        together = likelihoods(trees * COPIES, COPIES * sum(TRIAL))
        if not all(np.isfinite(value or ()).all() for value in together):
            return True  # whatever the batch, the model is broken
        _steady[kind] = together == alone * COPIES
    return _steady[kind]


def _score_flat(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    padding: int,
    shared: int,
    batch_tokens: int,
    on_batch: Callable[[int], None],
    parts: bool,
) -> Scores:
    """`score` of trees that are alike, by `flat`, which share so many tokens; products are made in parts or whole."""
    scores = Scores([None] * len(trees), [()] * len(trees), set(), Work(tokens=shared))
    width = rounded(looked_at(longest(trees)), flat.KEYS)
    step = flat.step(parts)
    queue = flat_batches(trees, flat.room(batch_tokens, parts), shared)
    memory = Prefix(model.config.get_text_config().num_hidden_layers, 0) if shared and len(queue) > 1 else None
    begun = tree_of(trees[0].tokens[:shared], [])
    for number, batch in enumerate(queue):
        rows = [trees[index] for index in batch]
        first = shared > 0 and number == 0
        lengths = [len(row.tokens) - shared for row in rows]
        padded = _inputs(rows, padding, model.dtype, shared, width)
        beginning = _inputs([begun], padding, model.dtype, 0, width) if first else None
        layout, inputs = flat.laid_flat(padded, lengths, step, shared, beginning)
        ends = np.cumsum(lengths) + (shared if first else 0)
        columns = [
            column for row, end in zip(rows, ends, strict=True) for column in range(end - row.read_positions, end)
        ]
        columns += columns[-1:] * (-len(columns) % step)
        with flat.passing(model, layout, parts), memory.keeping(shared) if memory and first else nullcontext():
            logits = logits_at(model, inputs, [0] * len(columns), columns, memory)
        scores.work += _work(rows, shared)
        for index, values, greedy in zip(batch, *_read(logits, rows, rows), strict=True):
            scores.values[index], scores.greedy[index] = values, greedy
        on_batch(len(batch))
        if not all(np.isfinite(scores.values[index] or ()).all() for index in batch):
            break
    return scores


def _ask(
    model: PreTrainedModel, trees: Sequence[Tree], padding: int, memory: Prefix | None, shared: int, packed: bool
) -> tuple[list[tuple[float, ...]], list[tuple[bool, ...]], list[Tree]]:
    """The log-likelihoods of one batch, what is greedy, and its rows."""
    rows = list(trees) if packed else [line for tree in trees for line in tree.lines()]
    if packed:
        width = memory.width if memory else looked_at(longest(rows))
        if memory is None and width > rounded(longest(rows)):
            memory = Prefix(model.config.get_text_config().num_hidden_layers, width)
        inputs = _inputs(rows, padding, model.dtype, shared, width)
    else:
        inputs = _line_inputs(rows, padding, context_length(model))
    at = [row for row, tree in enumerate(rows) for _ in range(tree.read_positions)]
    columns = [column - shared for tree in rows for column in range(tree.prompt - 1, len(tree.tokens))]
    logits = logits_at(model, inputs, at, columns, memory)
    return *_read(logits, trees, rows), rows


def _read(
    logits: Float[torch.Tensor, "positions vocabulary"], trees: Sequence[Tree], rows: Sequence[Tree]
) -> tuple[list[tuple[float, ...]], list[tuple[bool, ...]]]:
    """The log-likelihoods of trees whose rows had these logits, and what is greedy."""
    first, pairs = 0, []  # the read positions of a row stand together, the last prompt token first
    for tree in rows:
        pairs += [(first + position - tree.prompt + 1, token) for path in tree.reads for position, token in path]
        first += tree.read_positions
    read, tokens = torch.tensor(pairs, device=logits.device).T
    totals, tops = _normalised(logits)
    chosen = logits[read, tokens]
    values = (chosen.double() - totals.double()[read]).tolist()
    highest = (chosen == tops.to(logits.dtype)[read]).tolist()
    options, start = [], 0
    for path in (path for tree in rows for path in tree.reads):
        end = start + len(path)
        likeliest = all(highest[start:end]) and all(_first(logits[at], token) for at, token in pairs[start:end])
        options.append((float(np.sum(values[start:end])), likeliest))
        start = end
    found, greedy, start = list[tuple[float, ...]](), list[tuple[bool, ...]](), 0
    for tree in trees:
        own = options[start : start + len(tree.reads)]
        found.append(tuple(value for value, _ in own))
        greedy.append(tuple(best for _, best in own))
        start += len(own)
    return found, greedy


def _normalised(
    logits: Float[torch.Tensor, "positions vocabulary"],
) -> tuple[Float[torch.Tensor, " positions"], Float[torch.Tensor, " positions"]]:
    """What each position's logits are normalised by, and the highest of them.

    Never of one row, whose sum threads share, in another order.
    """
    rows = logits if len(logits) > 1 else logits.expand(2, -1)
    totals, tops = list[torch.Tensor](), list[torch.Tensor]()
    for part in torch.tensor_split(rows, max(1, len(rows) // HEAD_ROWS)):
        wide = part.to(torch.float32, copy=True)
        top = wide.amax(-1)
        totals.append(wide.sub_(top[:, None]).exp_().sum(-1).log_().add_(top))  # logsumexp, in place
        tops.append(top)
    return torch.cat(totals)[: len(logits)], torch.cat(tops)[: len(logits)]


def _first(logits: Float[torch.Tensor, " vocabulary"], token: int) -> bool:
    """Whether no token before this one, of the highest logits, has as high ones."""
    return not (logits[:token] == logits[token]).any()


def _work(rows: Sequence[Tree], shared: int) -> Work:
    return Work(sum(len(row.tokens) - shared for row in rows), sum(row.read_positions for row in rows))


def divisors(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, scoring: str) -> list[tuple[int, ...]]:
    """What each option's log-likelihood is divided by before options are compared; nothing for a free-text item.

    1 (`sum`, lm-eval's acc), its `characters` (lm-eval's acc_norm), or its `tokens`.

    Raises:
        ValueError: the scoring is none of these.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"scoring must be one of {list(SCORINGS)}, got {scoring!r}")
    if scoring != "tokens":
        return [grading.divisors(item, scoring) for item in items]
    trees = [tokenize(item, tokenizer) if item.options else Failure("free text") for item in items]
    return [() if isinstance(tree, Failure) else tuple(map(len, tree.reads)) for tree in trees]
