"""Any model, any items: those with options by likelihood, free-text ones by what the model writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merge3 import answering, generation, grading
from merge3.answering import BrokenModel, Work
from merge3.items import Item
from merge3.models import enough_memory
from merge3.store import Answer, Failure


@enough_memory("for an item")
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda items: None,
    packed: bool = True,
) -> tuple[list[Answer], Work]:
    """The raw answer to every item, in order, and the work it took.

    Raises:
        BrokenModel: the model's numbers are not finite.
        MemoryError: an item does not fit the device, alone.
        ValueError: an item's settings cannot grade its reply; nothing was asked yet.
    """
    for item in items:
        grading.check(item)
    chosen = [index for index, item in enumerate(items) if item.free is None]
    free = [index for index, item in enumerate(items) if item.free is not None]
    answers: list[Answer] = [Failure("not asked")] * len(items)
    work = Work()
    if chosen:
        found, work = answering.loglikelihoods(
            model, tokenizer, [items[i] for i in chosen], batch_tokens, on_batch, packed
        )
        for index, answer in zip(chosen, found, strict=True):
            answers[index] = answer
    if free:
        try:
            found, more = generation.generate(
                model, tokenizer, [items[i] for i in free], batch_tokens, on_batch, packed
            )
        except BrokenModel as error:
            raise BrokenModel(str(error), work + error.work) from None
        for index, answer in zip(free, found, strict=True):
            answers[index] = answer
        work += more
    return answers, work


def planned(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> Work:
    """What answering takes at most, near-ties aside."""
    chosen = [item for item in items if item.free is None]
    free = [item for item in items if item.free is not None]
    return answering.planned(chosen, tokenizer) + generation.planned(free, tokenizer)
