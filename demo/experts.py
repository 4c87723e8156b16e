"""Train the demonstration's experts: LoRA adapters of the base, on a CPU, from one seed.

An *arithmetic* expert learns to answer the problems of one language in full, ``12 + 5 = 17``. A *language*
expert learns to read the problems of its language: it writes the expression, ``12 + 5``, and never sees a
result. Every problem is put to every model in one form, `PROMPT`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from demo.problems import PROMPT, Problem

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100  # the label that the loss of transformers passes over

COMPLETIONS: dict[str, Callable[[Problem], str]] = {
    "arithmetic": lambda problem: f"{problem.expression} = {problem.result}",
    "language": lambda problem: problem.expression,
}


def encode(problem: Problem, skill: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids of prompt and completion, and labels that are `IGNORED` over the prompt."""
    prompt = tokenizer.encode(PROMPT.format(question=problem.question))
    completion = tokenizer.encode(COMPLETIONS[skill](problem), add_special_tokens=False)
    return prompt + completion, [IGNORED] * len(prompt) + completion


def batch_of(rows: list[tuple[list[int], list[int]]], padding: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors, rows x tokens."""
    width = max(len(ids) for ids, _ in rows)
    fill = [width - len(ids) for ids, _ in rows]
    return {
        "input_ids": torch.tensor([ids + [padding] * n for (ids, _), n in zip(rows, fill, strict=True)]),
        "labels": torch.tensor([labels + [IGNORED] * n for (_, labels), n in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * n for (ids, _), n in zip(rows, fill, strict=True)]),
    }


def completion_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean loss in nats a completion token; logits are computed nowhere else, which halves a step's time."""
    labels = batch.pop("labels")[:, 1:]
    hidden = model.base_model(**batch).last_hidden_state[:, :-1]
    learnt = labels != IGNORED
    logits = model.get_output_embeddings()(hidden[learnt])
    return torch.nn.functional.cross_entropy(logits.float(), labels[learnt])


def train(
    base: Path,
    out: Path,
    problems: list[Problem],
    skill: str,
    *,
    rank: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    dtype: torch.dtype,
    on_step: Callable[[int, float], None],
) -> None:
    """Fine-tune an adapter of `base` on `problems` and write it to the folder `out`.

    Problems are drawn in shuffled epochs; the learning rate falls linearly from `learning_rate` to zero after
    a warm-up of a tenth of the steps. `on_step` receives the step (from 1) and its loss in nats a token.

    Raises:
        ValueError: `skill` is not one of `COMPLETIONS`.
    """
    if skill not in COMPLETIONS:
        raise ValueError(f"skill must be one of {sorted(COMPLETIONS)}, got {skill!r}")
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [encode(problem, skill, tokenizer) for problem in problems]
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    order = np.concatenate([generator.permutation(len(rows)) for _ in range(-(-steps * batch // len(rows)))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the adapter's initial values are drawn from the global generator
        dense = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM")
        with warnings.catch_warnings():  # peft asks transformers by a name that is going to be removed
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(dense, lora)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    for step in range(steps):
        chosen = [rows[i] for i in order[step * batch : (step + 1) * batch]]
        loss = completion_loss(dense, batch_of(chosen, tokenizer.pad_token_id))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step(step + 1, loss.item())
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.bfloat16)  # half the bytes; no score moves
    model.peft_config["default"].base_model_name_or_path = "base"  # no path of this machine in what is shared
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink()  # a model card of blanks
    config = out / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["target_modules"].sort()  # peft keeps them in a set, whose order changes from process to process
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
