"""lm-eval's tasks: it makes the requests and grades, we answer. Needs the extra `lm-eval`.

    scores, truncated = evaluate(model, tokenizer, ["arc_easy"], batch_tokens=4096)

Scores are lm-eval's own, to the item, because requests, filters and metrics are its own; what differs is who computes:
requests of one context are one tree, a beginning that all share is computed once. Nothing is cut to fit: a request
longer than the model's context is an error, where lm-eval would drop its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merge3 import answering, generation
from merge3.answering import context_length, settled
from merge3.imports import score_of
from merge3.items import FreeText, Item
from merge3.store import Reply
from merge3.trees import Tree, beginning, encode, tree_of

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:  # pragma: no cover - which of both depends on the environment
    raise ImportError("lm-eval's tasks need lm-eval: pip install 'lm_eval[hf]'") from error

MOST_TOKENS = 256  # of a reply, where a task does not say: lm-eval's


class Answerer(LM):  # type: ignore[misc]
    """A model that lm-eval can ask, answered by packed trees and by our generation.

    `truncated` are the (task, document number) whose replies were cut off.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int,
        packed: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.batch_tokens, self.packed = batch_tokens, packed
        self.truncated: set[tuple[str, int]] = set()
        self.work = answering.Work()

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is what greedy decoding would write.

        Raises:
            ValueError: a continuation has no token, or a request does not fit the model's context.
        """
        parted = [self.parted(*request.args) for request in requests]
        contexts: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}  # context -> continuation -> its place
        for context, continuation in parted:
            own = contexts.setdefault(context, {})
            own.setdefault(continuation, len(own))
        trees = [tree_of(context, list(options)) for context, options in contexts.items()]
        self.check(trees)
        spans = [((1,) * len(tree.reads), tuple(map(len, tree.reads))) for tree in trees]
        found = settled(self.model, self.tokenizer, trees, spans, self.batch_tokens, packed=self.packed)
        self.work += found.work
        places = {context: place for place, context in enumerate(contexts)}
        answers = []
        for context, continuation in parted:
            tree, option = places[context], contexts[context][continuation]
            values = found.values[tree]
            if values is None or not np.isfinite(values).all():
                raise answering.BrokenModel(f"log-likelihoods are {values}", found.work)
            answers.append((values[option], found.greedy[tree][option]))
        return answers

    def parted(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of both, parted as lm-eval does, see `trees.tokenize`."""
        if not context:
            first, own = beginning(self.tokenizer), self.tokenizer.encode(continuation, add_special_tokens=False)
            return (first,), tuple(own[1:] if own[:1] == [first] else own)
        before = encode(context.rstrip(), self.tokenizer)
        return tuple(before), tuple(encode(context + continuation, self.tokenizer)[len(before) :])

    def check(self, trees: Sequence[Tree]) -> None:
        """Refuse what cannot be asked.

        Raises:
            ValueError: as for `loglikelihood`.
        """
        holds = context_length(self.model)
        for tree in trees:
            if not all(tree.reads) or not tree.prompt:
                raise ValueError("a request of lm-eval has a context or continuation without a token")
            if tree.depth > holds:
                raise ValueError(f"a request of lm-eval has {tree.depth} tokens; the model's context holds {holds:.0f}")

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """The greedy reply to each context.

        Raises:
            ValueError: a request asks for sampling, or does not fit the model's context.
        """
        asked = []
        for number, request in enumerate(requests):
            context, settings = request.args
            if settings.get("do_sample", bool(settings.get("temperature"))):
                raise ValueError(f"replies are greedy here; task {request.task_name!r} asks for sampling")
            until = settings.get("until") or ()
            stop = (until,) if isinstance(until, str) else tuple(until)
            free = FreeText(stop, settings.get("max_gen_toks", MOST_TOKENS), "text")
            asked.append(Item(str(number), context, expected=("",), free=free))
        found, work = generation.generate(self.model, self.tokenizer, asked, self.batch_tokens, packed=self.packed)
        self.work += work
        texts = []
        for request, answer in zip(requests, found, strict=True):
            if not isinstance(answer, Reply):
                raise ValueError(f"a request of task {request.task_name!r} cannot be asked: {answer}")
            if answer.end == "length":
                self.truncated.add((request.task_name, request.doc_id))
            texts.append(answer.text)
        return texts

    def loglikelihood_rolling(self, *_: Any, **__: Any) -> list[float]:
        """Refused: perplexity has no right answers."""
        raise ValueError("tasks that measure perplexity have no items that are right or wrong")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template itself."""
        return str(self.tokenizer.get_chat_template()) if chat_template else ""


def evaluate(
    answerer: Answerer,
    tasks: Sequence[str],
    include_path: Path | None = None,
    metric: str | None = None,
    filtering: str | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Score by item, `<task>:<document number>`: 1, 0, or NaN where a reply was cut off.

    Args:
        answerer: the model.
        tasks: names of lm-eval's tasks and groups.
        include_path: a folder with more of them.
        metric: the score of a document; None takes the first of `imports.METRICS` that a task has.
        filtering: lm-eval's filter of answers, where a task has several.
        settings: what `lm_eval.simple_evaluate` takes: `num_fewshot`, `limit`, `apply_chat_template`, ...

    Raises:
        ValueError: a task has several filters and none is named, or a score is not 0 or 1.
    """
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    results = simple_evaluate(answerer, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **settings)
    found: dict[str, float] = {}
    for task, samples in results["samples"].items():
        kinds = sorted({sample["filter"] for sample in samples})
        if filtering is None and len(kinds) > 1:
            raise ValueError(f"task {task!r} filters its answers in several ways; name one of {kinds}")
        for sample in samples:
            if sample["filter"] == (filtering or kinds[0]):
                cut = (task, sample["doc_id"]) in answerer.truncated
                found[f"{task}:{sample['doc_id']}"] = np.nan if cut else score_of(sample, metric, f"task {task!r}")
    return found


def items_of(task: str, include_path: Path | None = None, **settings: Any) -> list[Item]:
    """The items of a multiple-choice task, few-shot examples and description as lm-eval writes them.

    `settings` are `apply_chat_template`'s and others of `Task.build_all_requests`.

    Raises:
        ValueError: the task is a group or of another kind, whose answers lm-eval itself must grade (see `evaluate`).
    """
    elsewhere = "let models answer it by `merge3 respond --task`"
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    loaded: Mapping[str, Any] = manager.load([task])["tasks"]
    if list(loaded) != [task] or loaded[task].OUTPUT_TYPE != "multiple_choice":
        raise ValueError(f"{task!r} is no task of multiple choice: {elsewhere}")
    made = loaded[task]
    if made.config.process_results is not None:
        raise ValueError(f"{task!r} grades in a way of its own: {elsewhere}")
    made.build_all_requests(rank=0, world_size=1, **settings)
    documents: dict[int, list[Any]] = {}
    for instance in made.instances:
        documents.setdefault(instance.doc_id, []).append(instance)
    found = []
    for number, instances in documents.items():
        texts = [instance.args for instance in sorted(instances, key=lambda instance: instance.idx)]
        choices = made.doc_to_choice(instances[0].doc)
        texts = texts[: len(choices)]  # beyond them, acc_mutual_info asks choices without their context
        gold = made.doc_to_target(instances[0].doc)
        answer = choices.index(gold) if gold in choices else gold
        if not isinstance(answer, int) or not 0 <= answer < len(choices):  # lm-eval takes false and true as 0 and 1
            raise ValueError(f"task {task!r}, document {number}: {gold!r} is not one of {choices}; {elsewhere}")
        between = texts[0][1].removesuffix(choices[0])
        prompts = {context + between for context, _ in texts}
        if len(prompts) > 1:
            raise ValueError(f"task {task!r}: its choices are in the contexts: {elsewhere}")
        options = tuple(continuation.removeprefix(between) for _, continuation in texts)
        found.append(Item(f"{task}:{number}", prompts.pop(), options, int(answer)))
    return found
