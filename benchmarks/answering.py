"""Answers against lm-eval's HF backend: same machine, same run, same model, items and dtype, its best batch size.

    python benchmarks/answering.py [--items 300] [--shot-items 300] [--replies 100] [--dtype bfloat16]

Needs the demonstration's base and items (the stages base and prepare). Makes an environment with lm-eval in `.bench/`
(once); its process loads the model once and is asked in turns with ours, so that both meet the same noise; a time is
that of answering alone, tokenization included, loading not. lm-eval's batch size is the fastest of `BATCHES` on the
first items.

- the demonstration's items: four options that share beginnings; and the same with options that share no token
- the first again after five solved examples, the same for all items
- short free-text answers to the first: up to a line's end, at most 32 tokens

A pick is the likeliest option by the sum of log-likelihoods. In bfloat16 lm-eval rounds these to eight bits (steps of
.06 to .25 nats): wherever two options are as close, its pick is that of the rounding. With `--dtype float32` agreement
is told, on the first items and the replies alone. The share of the peak is our operations a second (2 a weight and
token) over those of a matrix product of the model's shapes in the same minute. The figures' names say how many items
there were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from environments import Peer, environment
from figures import Figure, command_line, publish
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merge3 import items, models
from merge3.answering import TOLERANCE, Work, loglikelihoods
from merge3.generation import generate
from merge3.items import FreeText, Item
from merge3.ledger import flops

LM_EVAL = "0.4.13"
BATCHES = (4, 16, 64)
TRIED = 16  # items on which lm-eval's batch size is chosen
BATCH_TOKENS = 2048
SHOTS = 5
LEADS = ("Exactly", "Perhaps", "About", "Nearly")  # makes options that share no token
FREE = FreeText(stop=("\n",), max_tokens=32, extract="text")


def lm_eval(peer: Peer, kind: str, requests: Sequence[Any], batch: int) -> tuple[list[Any], float]:
    """lm-eval's answers and the seconds."""
    found = peer.ask(kind=kind, requests=requests, batch=batch)
    return found["answers"], found["seconds"]


def best_batch(peer: Peer, kind: str, requests: Sequence[Any]) -> int:
    """The fastest of `BATCHES`, each tried twice."""
    lm_eval(peer, kind, requests[:4], 4)  # warm
    return min(BATCHES, key=lambda batch: min(lm_eval(peer, kind, requests, batch)[1] for _ in range(2)))


def pairs(asked: Sequence[Item]) -> list[tuple[str, str]]:
    """lm-eval's requests: a context and a continuation for each option."""
    return [(item.prompt, option) for item in asked for option in item.options]


def peak(dtype: torch.dtype) -> float:
    """Operations a second of a matrix product of the model's shape, the best of 20."""
    left, right = torch.randn(2048, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    times = []
    for _ in range(20):
        begin = perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(perf_counter() - begin)
    return 2 * 2048 * 576 * 1536 / min(times)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds."""
    begin = perf_counter()
    found = call()
    return found, perf_counter() - begin


def choices(
    name: str,
    asked: Sequence[Item],
    peer: Peer,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    target: float,
) -> list[Figure]:
    """Figures of one set of items with options; disagreements are printed."""
    requests, options = pairs(asked), len(asked[0].options)
    batch = best_batch(peer, "loglikelihood", requests[: TRIED * options])
    theirs, seconds, ours, spent, work = [], 0.0, [], 0.0, Work()
    half = -(-len(asked) // 2)
    for part in (asked[:half], asked[half:]):  # in turns
        found, taken = lm_eval(peer, "loglikelihood", pairs(part), batch)
        theirs, seconds = theirs + found, seconds + taken
        (values, done), taken = timed(lambda part=part: loglikelihoods(model, tokenizer, part, BATCH_TOKENS))
        ours, spent, work = ours + values, spent + taken, work + done
    table = np.array([value for value, _ in theirs]).reshape(len(asked), options)
    mine = np.array(ours)
    agree = table.argmax(1) == mine.argmax(1)
    apart = np.flatnonzero(~agree)
    exact = np.empty((0, options))
    if len(apart):
        judge = models.load(Path("data/base"), torch.float32)
        exact = np.array(loglikelihoods(judge, tokenizer, [asked[place] for place in apart], BATCH_TOKENS)[0])
    for place, truth in zip(apart, exact, strict=True):
        print(
            f"{name}: {asked[place].id}: lm-eval {table[place].round(3)}, ours {mine[place].round(3)}, "
            f"in float32 {truth.round(3)}"
        )
    ordered = np.sort(exact, axis=1)
    ties = ordered[:, -1] - ordered[:, -2] < TOLERANCE[model.dtype]
    label = f"{name}, {len(asked)} items"
    return [
        Figure(f"{label}: lm-eval's time (batches of {batch}) / ours", seconds / spent, "ratio", target),
        Figure(f"{label}: picks that agree", float(agree.mean()), "share", 0.995),
        Figure(f"{label}: disagreements", float((~agree).sum()), "items"),
        Figure(f"{label}: of them no near-tie in float32", float((~ties).sum()), "items", 0.0, below=True),
        Figure(f"{label}: of them ours is float32's", float((exact.argmax(1) == mine[apart].argmax(1)).sum()), "items"),
        Figure(
            f"{label}: of them lm-eval's is float32's",
            float((exact.argmax(1) == table[apart].argmax(1)).sum()),
            "items",
        ),
        Figure(f"{label}: greatest difference of a log-likelihood", float(np.abs(table - mine).max()), "nats"),
        Figure(f"{label}: share of the matrix-product peak", flops(model, work) / spent / peak(model.dtype), "share"),
    ]


def replies(
    asked: Sequence[Item], peer: Peer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Figure]:
    """Figures of free-text answers."""
    free = [Item(item.id, item.prompt.rstrip(), expected=("?",), free=FREE) for item in asked]
    arguments = {"until": list(FREE.stop), "max_gen_toks": FREE.max_tokens, "do_sample": False}
    requests = [(item.prompt, arguments) for item in free]
    batch = best_batch(peer, "generate_until", requests[:TRIED])
    theirs, seconds, ours, spent, work = [], 0.0, [], 0.0, Work()
    half = -(-len(free) // 2)
    for part in (slice(half), slice(half, None)):  # in turns
        found, taken = lm_eval(peer, "generate_until", requests[part], batch)
        theirs, seconds = theirs + found, seconds + taken
        (made, done), taken = timed(lambda part=part: generate(model, tokenizer, free[part], BATCH_TOKENS))
        ours, spent, work = ours + made, spent + taken, work + done
    agree = [mine.text == text for mine, text in zip(ours, theirs, strict=True)]
    leads = []
    for item, mine, text, same in zip(free, ours, theirs, agree, strict=True):
        if not same:
            leads.append(lead(model, tokenizer, item.prompt, mine.text, text))
            print(f"replies: {item.id}: lm-eval {text!r}, ours {mine.text!r}, ahead by {leads[-1]:.3f} where they part")
    label = f"short replies, {len(free)} items"
    return [
        Figure(f"{label}: lm-eval's time (batches of {batch}) / ours", seconds / spent, "ratio", 1.5),
        Figure(f"{label}: texts that agree", float(np.mean(agree)), "share", 0.995),
        Figure(f"{label}: disagreements", float(len(leads)), "items"),
        Figure(
            f"{label}: of them no near-tie",
            float((~(np.array(leads) < TOLERANCE[model.dtype])).sum()),
            "items",
            0,
            below=True,
        ),
        Figure(f"{label}: share of the matrix-product peak", flops(model, work) / spent / peak(model.dtype), "share"),
    ]


@torch.inference_mode()
def lead(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, mine: str, theirs: str) -> float:
    """By how much our token's logit is ahead of lm-eval's where two replies part, the prompt read alone.

    Where one begins with the other it ended there: by the end of text, or the likeliest token with a stop text.
    """
    ours, others = (tokenizer(prompt + text)["input_ids"] for text in (mine, theirs))
    place = next((i for i, pair in enumerate(zip(ours, others, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(ours), len(others)) if place is None else place
    logits = model(torch.tensor([ours[:place]])).logits[0, -1].float()
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    ends = [token for token, text in enumerate(texts) if any(stop in text for stop in FREE.stop)]
    ends.append(tokenizer.eos_token_id)
    mine_next, their_next = (
        logits[tokens[place]] if place < len(tokens) else logits[ends].max() for tokens in (ours, others)
    )
    return float(mine_next - their_next)


def main() -> None:
    """Measure, print a table, write the results."""
    parser = command_line(__doc__)
    for name, count in (("items", 300), ("shot-items", 300), ("replies", 100)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    sizes = parser.parse_args()
    torch.set_num_threads(sizes.threads)
    python = environment("lm_eval", f"lm_eval[hf]=={LM_EVAL}")
    model = models.load(Path("data/base"), models.resolve_dtype(sizes.dtype, "cpu"))
    tokenizer = models.load_tokenizer("data/base")
    every = items.read(Path("data/prepare/test.parquet"))
    examples, rest = every[:SHOTS], every[SHOTS:]
    count = max(sizes.items, sizes.shot_items, sizes.replies)
    chosen = [rest[place] for place in np.linspace(0, len(rest) - 1, count).round().astype(int)]
    apart = [
        replace(item, options=tuple(f"{lead} {option}" for lead, option in zip(LEADS, item.options, strict=True)))
        for item in chosen
    ]
    shots = "".join(f"{item.prompt}{item.options[item.answer]}\n\n" for item in examples)
    after = [replace(item, prompt=shots + item.prompt) for item in chosen]
    peer = Peer(python, "lm_eval_answers.py", "data/base", sizes.dtype)
    loglikelihoods(model, tokenizer, chosen[:4], BATCH_TOKENS)  # warm
    if sizes.dtype != "bfloat16":
        after, apart = [], []  # a check of agreement
    figures = [
        *choices("options that share beginnings", chosen[: sizes.items], peer, model, tokenizer, 1.5),
        *(choices("options that share no token", apart[: sizes.items], peer, model, tokenizer, 2.0) if apart else ()),
        *replies(chosen[: sizes.replies], peer, model, tokenizer),
        *(choices(f"after {SHOTS} examples", after[: sizes.shot_items], peer, model, tokenizer, 6.0) if after else ()),
    ]
    if sizes.dtype == "bfloat16":
        publish("answering", figures)
    else:
        agreement = [
            figure for figure in figures if figure.unit in ("share", "items", "nats") and "peak" not in figure.figure
        ]
        publish("answering", agreement, f"_{sizes.dtype}", f"--dtype {sizes.dtype}")


if __name__ == "__main__":
    main()
