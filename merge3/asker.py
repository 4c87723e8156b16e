"""The asker: a recipe's model answers items, each question once in the life of a store.

Knows merging and answering; knows nothing of estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from merge3 import answering, generation, grading, models, respond
from merge3.items import Item
from merge3.ledger import Cost, flops
from merge3.merging import LiveMerger, Weights
from merge3.recipe import Recipe
from merge3.store import Answer, Store, size

BROKEN: Answer = ()  # what the store keeps of an item that a model with non-finite likelihoods was asked


@dataclass(frozen=True)
class Asked:
    """The answers of one recipe to some items, in their order, and what was spent to get them now.

    `answers` is None for a broken model, whose likelihoods are not finite, now or when the store was told so.
    """

    answers: list[Answer] | None
    cost: Cost
    new: int  # items that were not in the store


class Asker:
    """Asks any merge of the experts in `merger`, each question once in the life of `store`."""

    def __init__(
        self,
        merger: LiveMerger,
        tokenizer: PreTrainedTokenizerBase,
        store: Store,
        identity: Mapping[str, Any],
        batch_tokens: int,
        scoring: str = "sum",
    ) -> None:
        """`identity` is what answers depend on beside the recipe and the item: base, dtype, runtime.

        `scoring` says what options' log-likelihoods are divided by before they are compared, see `answering.divisors`.
        """
        self.merger = merger
        self.tokenizer = tokenizer
        self.store = store
        self.identity = dict(identity)
        self._ends = generation.ends(merger.model, tokenizer)
        self.batch_tokens = batch_tokens
        answering.divisors([], tokenizer, scoring)  # is refused before anything is asked
        self.scoring = scoring
        self._costs: dict[tuple[str, ...], Cost] = {}  # by the items' content hashes
        self._packed: bool | None = None  # whether options may be packed, once the base was tried
        self._applied: str | None = None  # phenotype that the live model holds
        self._expected: dict[str, Recipe] = {}  # phenotypes that will be asked soon
        self._made: dict[str, Weights] = {}  # and those of them that are merged

    def cost(self, items: Sequence[Item]) -> Cost:
        """What a model's answers to `items` take, if none is kept; reckoned once, as all candidates are asked alike."""
        asked = tuple(item.content_hash for item in items)
        if asked not in self._costs:
            work = respond.planned(items, self.tokenizer)
            self._costs[asked] = Cost(work.tokens, flops(self.merger.model, work))
        return self._costs[asked]

    def key(self, recipe: Recipe) -> dict[str, Any]:
        """The store's key of a recipe: equal for recipes that make the same weights."""
        merge = recipe.canonical(self.merger.fingerprints)
        return {**self.identity, **self._ends, "merge": merge, "protocol": answering.PROTOCOL}

    def correct(self, items: Sequence[Item], answers: Sequence[Answer]) -> Float[np.ndarray, " items"]:
        """1 where the right option scores above every other or the reply is right, else 0; NaN: not scored."""
        return self.grades(items, answers)[0]

    def grades(self, items: Sequence[Item], answers: Sequence[Answer]) -> tuple[Float[np.ndarray, " items"], list[str]]:
        """What `correct` gives, and why an answer is not right or not scored."""
        return grading.grades(items, answers, answering.divisors(items, self.tokenizer, self.scoring))

    def margins(self, items: Sequence[Item], answers: Sequence[Answer]) -> Float[np.ndarray, " items"]:
        """The lead of each right option over the best other, in nats; see `grading.margin`."""
        return grading.margins(items, answers, answering.divisors(items, self.tokenizer, self.scoring))

    def ask(self, recipe: Recipe, items: Sequence[Item], on_batch: Callable[[int], None] = lambda items: None) -> Asked:
        """The recipe's answers to `items`; the store is asked first, and keeps what is new."""
        key = self.key(recipe)
        kept = self.store.get(key)
        new = [item for item in items if item.content_hash not in kept]
        cost = Cost()
        if new and BROKEN not in kept.values():
            kept_now, cost = self._ask(recipe, key, new, on_batch)
            kept |= kept_now
        if BROKEN in kept.values():
            return Asked(None, cost, len(new))
        return Asked([kept[item.content_hash] for item in items], cost, len(new))

    def expect(self, recipes: Sequence[Recipe], items: Sequence[Item]) -> None:
        """Say which recipes will be asked `items` next: those that are not answered are then merged together."""
        self._expected, self._made = {}, {}
        for recipe in recipes:
            kept = self.store.get(self.key(recipe))
            known = BROKEN in kept.values() or all(item.content_hash in kept for item in items)
            if not known and not recipe.scales and recipe.experts == recipes[0].experts:
                self._expected[recipe.phenotype(self.merger.fingerprints)] = recipe

    def _become(self, recipe: Recipe) -> None:
        """Make the live model the recipe's."""
        phenotype = recipe.phenotype(self.merger.fingerprints)
        if phenotype == self._applied:
            return
        self._applied = None  # until it is whole
        if phenotype in self._expected and self.merger.together > 1:
            waiting = [phenotype, *(name for name in self._expected if name != phenotype)][: self.merger.together]
            made = self.merger.make([self._expected.pop(name) for name in waiting])
            self._made = dict(zip(waiting, made, strict=True))
        if phenotype in self._made:
            self.merger.hold(self._made[phenotype])
        else:
            self.merger.apply(recipe)
        self._applied = phenotype

    def _ask(
        self, recipe: Recipe, key: Mapping[str, Any], items: Sequence[Item], on_batch: Callable[[int], None]
    ) -> tuple[dict[str, Answer], Cost]:
        merger = self.merger
        if self._packed is None:
            self._packed = answering.packable(merger.model, self.tokenizer)
        begin, before = perf_counter(), (merger.bytes_read, merger.bytes_written)
        self._become(recipe)
        models.wait_for(merger.model.device)  # or what is left of merging would count as answering
        merged = perf_counter()
        try:
            found, work = respond.respond(
                self.merger.model, self.tokenizer, items, self.batch_tokens, on_batch, self._packed
            )
            answers = {item.content_hash: answer for item, answer in zip(items, found, strict=True)}
        except answering.BrokenModel as error:
            answers, work = {items[0].content_hash: BROKEN}, error.work
        self.store.put(key, answers)
        spent = flops(self.merger.model, work)
        seconds = merged - begin, perf_counter() - merged
        moved = merger.bytes_read - before[0], merger.bytes_written - before[1]
        return answers, Cost(work.tokens, spent, *seconds, *moved, size(answers))
