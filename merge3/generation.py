"""Generation: what a model writes after a prompt, its likeliest token each time.

Prompts of like length are read together, what all begin with once for all; then a token a row and pass. Rows that have
ended leave the batch. A row ends at the end-of-text token, at a stop text, when more could not change its answer, or,
truncated, at its limit.

Batch shape decides nothing, as in `merge3.answering`: a token keeps its column whatever stands beside it. The reply to
the shortest prompt is written alone, and again in every batch: where it, or the lead of its tokens, moved by a bit,
replies of that batch with a token whose logit was ahead by less than `TOLERANCE` are written again, alone.

Models with layers that are not attention, and texts beyond a sliding window or where positions are stretched, are left
to transformers' own generation, a reply at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from merge3 import grading
from merge3.answering import (
    TOLERANCE,
    BrokenModel,
    Work,
    context_length,
    logits_at,
    remember,
    stretches,
    window,
)
from merge3.items import Item
from merge3.memory import Prefix, Slots, looked_at, rounded
from merge3.store import Answer, Failure, Reply
from merge3.trees import Tree, alike, batches, beginning, common, encode, longest

LEAVING = 0.125  # share of a batch's rows that have ended, from which on it is worth to copy the others together


@dataclass
class _Row:
    """One reply while it is written."""

    index: int
    item: Item
    prompt: tuple[int, ...]
    written: list[int] = field(default_factory=list)
    text: str = ""
    end: str = ""  # how it ended, once it has
    lead: float = float("inf")  # least lead of a chosen token's logit

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.written)

    def take(self, token: int, lead: float, ends: set[int], tokenizer: PreTrainedTokenizerBase) -> None:
        """Write one more token, and see whether the reply has ended."""
        free = self.item.free
        assert free is not None
        self.lead = min(self.lead, lead)
        if token in ends:
            self.end = "stop"
            return
        self.written.append(token)
        self.text = _text(self.written, tokenizer)
        whole = _text(self.written, tokenizer, special=True) if free.marked else ""
        places = [place for place in (self.text.find(stop) for stop in free.stop) if place >= 0]
        if places:
            self.text, self.end = self.text[: min(places)], "stop"
        elif any(stop in whole for stop in free.stop):
            self.text, self.end = _before(self.written, free.stop, tokenizer), "stop"
        elif grading.ended(self.text, free.extract):
            self.end = "answer"
        elif len(self.written) >= free.max_tokens:
            self.end = "length"


def _text(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, special: bool = False) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=not special, clean_up_tokenization_spaces=False))


def _before(written: Sequence[int], stops: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of what was written up to the first special token of a stop text."""
    for length in range(len(written)):
        rest = _text(written[length:], tokenizer, special=True)
        if any(rest.startswith(stop) for stop in stops):
            return _text(written[:length], tokenizer)
    return _text(written, tokenizer)


def ending(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text, by tokenizer and generation config."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = [own] if isinstance(own, int) else list(own or [])
    return {token for token in (*found, tokenizer.eos_token_id) if token is not None}


def ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """What keys of answers say of the tokens that end a text: nothing where the tokenizer alone tells it."""
    found = ending(model, tokenizer)
    return {} if found <= {tokenizer.eos_token_id} else {"ends": sorted(found)}


def planned(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> Work:
    """What writing replies takes at most: every reply of its full length."""
    prompts = [encode(item.prompt, tokenizer) for item in items]
    trees = [Tree(len(prompt), tuple(prompt), (), ()) for prompt in prompts]
    limits = sum(item.free.max_tokens for item in items if item.free)
    read = sum(map(len, prompts))
    for group in alike(trees):
        read -= common([trees[place].tokens for place in group]) * (len(group) - 1)
    return Work(read + limits, limits)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda items: None,
    packed: bool = True,
) -> tuple[list[Answer], Work]:
    """The reply to every free-text item, and the work it took.

    Without `packed`, beyond a sliding window, or where positions are stretched, every reply is written by itself.

    Raises:
        BrokenModel: a logit is not finite.
        torch.OutOfMemoryError: a single item does not fit; batches that do not are halved.
    """
    holds = context_length(model)
    answers: list[Answer | None] = [None] * len(items)
    rows = []
    for index, item in enumerate(items):
        if item.free is None:
            raise ValueError(f"item {item.id!r} has options: it is no free-text item")
        prompt = tuple(encode(item.prompt, tokenizer)) or (beginning(tokenizer),)
        needed = len(prompt) + item.free.max_tokens
        packed = packed and needed <= min(window(model), stretches(model))
        if needed > holds:
            answers[index] = Failure(f"{needed} tokens with the reply; the model's context holds {holds:.0f}")
        else:
            rows.append(_Row(index, item, prompt))
    on_batch(len(items) - len(rows))
    work = Work()
    try:
        for row, more in _written(model, tokenizer, rows, batch_tokens, on_batch, packed):
            answers[row.index] = Reply(row.text, "length" if row.end == "length" else "stop", len(row.written))
            work += more
    except BrokenModel as error:
        raise BrokenModel(str(error), work + error.work) from None
    return [Failure("not asked") if answer is None else answer for answer in answers], work


def _written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[_Row],
    batch_tokens: int,
    on_batch: Callable[[int], None],
    packed: bool,
) -> Iterator[tuple[_Row, Work]]:
    """Every row with its reply, and what it took since the row before."""
    padding, ends = tokenizer.pad_token_id or 0, ending(model, tokenizer)
    ordered = sorted(rows, key=lambda row: (-len(row.prompt), row.prompt, row.item.content_hash))
    if not packed:
        for row in reversed(ordered):
            yield row, _write_by_transformers(model, tokenizer, row, padding, ends)
            on_batch(1)
        return
    trees = [Tree(len(row.prompt), row.prompt, (), ()) for row in ordered]
    for group in alike(trees):
        own, prompts = [ordered[place] for place in group], [trees[place] for place in group]
        yield from _written_alike(model, tokenizer, own, prompts, padding, ends, batch_tokens, on_batch)


def _written_alike(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ordered: list[_Row],
    trees: list[Tree],
    padding: int,
    ends: set[int],
    batch_tokens: int,
    on_batch: Callable[[int], None],
) -> Iterator[tuple[_Row, Work]]:
    """`_written` of rows, longest first, whose prompts are `alike`."""
    width, shared = looked_at(longest(trees)), common([row.prompt for row in ordered])
    shortest = ordered.pop()  # first: a broken model is found by it
    work = _write(model, tokenizer, [shortest], padding, ends, None, 0)
    yield shortest, work
    on_batch(1)
    if not ordered:
        return
    memory = remember(model, shortest.prompt[:shared], padding, width) if shared else None
    work = Work(checks=shared)
    queue = batches(trees[:-1], batch_tokens, shared)
    while queue:
        batch = queue.pop(0)
        fresh = [replace(ordered[place], written=[]) for place in batch]
        again = replace(shortest, written=[], text="", end="", lead=float("inf"))
        try:
            work += _write(model, tokenizer, [*fresh, again], padding, ends, memory, shared, again)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            queue = [part[i : i + half] for part in (batch, *queue) for i in range(0, len(part), half)]
            continue
        moved = (again.written, again.lead) != (shortest.written, shortest.lead)
        for row in fresh:
            if moved and row.lead < TOLERANCE.get(model.dtype, 0.0):
                alone = _Row(row.index, row.item, row.prompt)
                taken = _write(model, tokenizer, [alone], padding, ends, None, 0)
                work += Work(near_ties=1, checks=taken.tokens)
                row = alone
            yield row, work
            work = Work()
        on_batch(len(batch))


def _write_by_transformers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: _Row, padding: int, ends: set[int]
) -> Work:
    """Write one reply by transformers' greedy generation, whose cache knows every kind of layer.

    How the model's files say that it is to write (no word again, and the like) is not heeded, as in batches.
    """
    ids = torch.tensor([row.prompt], device=model.device)
    logits = logits_at(model, {"input_ids": ids}, [0], [len(row.prompt) - 1])
    if not torch.isfinite(logits.amax(-1)).all():
        raise BrokenModel(f"logits after item {row.item.id!r} are not finite", Work(len(row.prompt), 1))
    limit = row.item.free.max_tokens if row.item.free else 0
    own = model.generation_config
    settings = {"max_new_tokens": limit, "pad_token_id": padding, "eos_token_id": sorted(ends) or None}
    model.generation_config = GenerationConfig(do_sample=False, **settings)  # type: ignore[no-untyped-call]
    try:
        out = model.generate(ids, attention_mask=torch.ones_like(ids))  # type: ignore[operator]
    finally:
        model.generation_config = own
    tokens = out[0, len(row.prompt) :].tolist()
    for token in tokens:
        if not row.end:
            row.take(token, float("inf"), ends, tokenizer)
    return Work(len(row.prompt) + len(tokens) - 1, len(tokens))  # the last is not read


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[_Row],
    padding: int,
    ends: set[int],
    memory: Prefix | None,
    shared: int,
    again: _Row | None = None,
) -> Work:
    """Write the replies of one batch into its rows; one of them may be a repetition, written `again`."""
    limits = [row.item.free.max_tokens for row in rows if row.item.free]
    room = max(len(row.prompt) + limit for row, limit in zip(rows, limits, strict=True))
    slots = Slots(model.config.get_text_config().num_hidden_layers, room, memory, len(rows))
    logits = _read(model, slots, [row.prompt for row in rows], padding, shared)
    work = _took(rows, [len(row.prompt) - shared for row in rows], again)
    kept = list(rows)  # rows that have columns in `slots`, ended or not
    while True:
        best = logits.float().topk(2, -1)
        if not torch.isfinite(logits.amax(-1)).all():
            raise BrokenModel(f"logits after item {kept[0].item.id!r} are not finite", work)
        # of equal logits the lowest token, whatever order topk gives
        tokens = (logits == best.values[:, :1].to(logits.dtype)).int().argmax(-1).tolist()
        leads = (best.values[:, 0] - best.values[:, 1]).tolist()
        for row, token, lead in zip(kept, tokens, leads, strict=True):
            if not row.end:
                row.take(token, lead, ends, tokenizer)
        live = [place for place, row in enumerate(kept) if not row.end]
        if not live:
            return work
        if len(live) <= (1 - LEAVING) * len(kept):
            slots.keep(torch.tensor(live, device=model.device))
            kept = [kept[place] for place in live]
        logits = _step(model, slots, kept, padding)
        work += _took([row for row in kept if not row.end], [1] * len(live), again)


def _took(rows: Sequence[_Row], tokens: Sequence[int], again: _Row | None) -> Work:
    """What so many tokens of each row take; those of the repetition are checks."""
    own = [count for row, count in zip(rows, tokens, strict=True) if row is not again]
    return Work(sum(own), len(own), checks=sum(tokens) - sum(own))


def _read(
    model: PreTrainedModel, slots: Slots, prompts: Sequence[Sequence[int]], padding: int, shared: int
) -> torch.Tensor:
    """Read the prompts beyond what is shared; the logits after each, rows x vocabulary."""
    device, most = model.device, max(map(len, prompts))
    width, columns = looked_at(most), rounded(most)
    ids = torch.tensor([[*prompt[shared:], *[padding] * (columns - len(prompt))] for prompt in prompts], device=device)
    places = torch.arange(shared, columns, device=device).expand(len(prompts), -1)
    slots.at(places, width)
    seen = torch.ones(columns, width, dtype=torch.bool, device=device).tril()[shared:]
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=device).masked_fill_(~seen, torch.finfo(model.dtype).min)
    numbers = places.clamp(max=most - 1)  # padding has none of its own: a table of positions may end here
    inputs = {"input_ids": ids, "position_ids": numbers, "attention_mask": mask.expand(len(prompts), 1, -1, -1)}
    last = [len(prompt) - 1 - shared for prompt in prompts]
    return logits_at(model, inputs, range(len(prompts)), last, slots)


def _step(model: PreTrainedModel, slots: Slots, rows: Sequence[_Row], padding: int) -> torch.Tensor:
    """One token more for each row; the logits after it. A row that has ended stays where it is."""
    device = model.device
    ids = torch.tensor([[row.written[-1] if row.written else padding] for row in rows], device=device)
    places = torch.tensor([[row.length - 1] for row in rows], device=device)
    width = looked_at(int(places.max()) + 1)
    slots.at(places, width)
    seen = torch.arange(width, device=device) <= places
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=device).masked_fill_(~seen, torch.finfo(model.dtype).min)
    inputs = {"input_ids": ids, "position_ids": places, "attention_mask": mask[:, None, None]}
    return logits_at(model, inputs, range(len(rows)), [0] * len(rows), slots)
