"""Packed token trees against one sequence an option, on the demonstration's base and test items.

    python benchmarks/answering.py

Both ways answer the same items in one run, in turns; the figure is the ratio of their times. The plain way is batched
too, with the same token budget, and reads the logits at every position, as harnesses do.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from figures import Figure, publish
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merge3 import items, models
from merge3.answering import loglikelihoods
from merge3.items import Item

ITEMS, ROUNDS, BATCH_TOKENS = 96, 5, 4096


@torch.inference_mode()
def plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Item]) -> list[list[float]]:
    """A sequence an option, right-padded batches sorted by length."""
    rows = [
        (i, o, tokenizer.encode(item.prompt + option), len(tokenizer.encode(item.prompt.rstrip())))
        for i, item in enumerate(asked)
        for o, option in enumerate(item.options)
    ]
    rows.sort(key=lambda row: -len(row[2]))
    scores = [[0.0] * len(item.options) for item in asked]
    while rows:
        count = max(1, BATCH_TOKENS // len(rows[0][2]))
        batch, rows = rows[:count], rows[count:]
        width = len(batch[0][2])
        ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for _, _, ids, _ in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for _, _, ids, _ in batch])
        logs = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        for row, (i, o, option, start) in enumerate(batch):
            scores[i][o] = sum(float(logs[row, p - 1, option[p]]) for p in range(start, len(option)))
    return scores


def main() -> None:
    """Measure, print a table, write the results."""
    model = models.load(Path("data/base"), models.resolve_dtype("auto", "cpu"))
    tokenizer = models.load_tokenizer("data/base")
    asked = items.read(Path("data/prepare/test.parquet"))
    asked = asked[:: len(asked) // ITEMS][:ITEMS]
    ratios, packed_rates = [], []
    for _ in range(ROUNDS):
        begin = perf_counter()
        slow = plain(model, tokenizer, asked)
        middle = perf_counter()
        fast, work = loglikelihoods(model, tokenizer, asked, BATCH_TOKENS)
        end = perf_counter()
        ratios.append((middle - begin) / (end - middle))
        packed_rates.append(work.tokens / (end - middle))
    agreeing = np.mean([np.argmax(a) == np.argmax(b) for a, b in zip(slow, fast, strict=True)])
    publish(
        "answering",
        [
            Figure("time of one sequence an option / time of packed trees", statistics.median(ratios), "ratio", 2.0),
            Figure("answers that agree", float(agreeing), "share", 0.97),
            Figure("packed tokens a second", statistics.median(packed_rates), "tokens/s"),
        ],
    )


if __name__ == "__main__":
    main()
