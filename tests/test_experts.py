"""The demonstration's training, on a tiny Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from demo.experts import IGNORED, LINEAR_LAYERS, encode, train
from demo.problems import PROMPT, generate
from merge3 import models
from merge3.ingredients import LowRank

PROBLEMS = generate("en", "train", 16, 0)


def trained(base: Path, out: Path, **changes: Any) -> list[float]:
    """Train an adapter in a few steps; its losses."""
    losses: list[float] = []
    settings: dict[str, Any] = {"rank": 4, "steps": 12, "batch": 4, "learning_rate": 0.02, "seed": 0}
    settings |= {"dtype": torch.float32, "on_step": lambda step, loss: losses.append(loss)}
    train(base, out, PROBLEMS, "arithmetic", **(settings | changes))
    return losses


def test_training_lowers_the_loss_and_leaves_an_adapter_of_the_base(saved: dict[str, Path], tmp_path: Path) -> None:
    losses = trained(saved["base"], tmp_path)
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    base = models.load(saved["base"], torch.float32)
    found = models.changes(tmp_path, models.weights_of(base), base.config)
    assert {name.split(".")[-2] for name in found} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert all(isinstance(source, LowRank) and source.up.any() for source in found.values())
    config = (tmp_path / "adapter_config.json").read_text()
    assert str(saved["base"]) not in config
    assert json.loads(config)["target_modules"] == sorted(LINEAR_LAYERS)  # a set has another order in every process


def test_one_seed_one_adapter(saved: dict[str, Path], tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(saved["base"], tmp_path / name, seed=seed, steps=3)
    prints = [models.fingerprint(tmp_path / name) for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_global_random_state_is_left_alone(saved: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    trained(saved["base"], tmp_path, steps=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("skill", "text"), [("arithmetic", "{0.expression} = {0.result}"), ("language", "{0.expression}")]
)
def test_loss_is_on_the_completion_alone(tokenizer: PreTrainedTokenizerBase, skill: str, text: str) -> None:
    problem = PROBLEMS[0]
    ids, labels = encode(problem, skill, tokenizer)
    assert tokenizer.decode(ids) == PROMPT.format(question=problem.question) + text.format(problem)
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == text.format(problem)


def test_a_language_expert_never_sees_a_result(tokenizer: PreTrainedTokenizerBase) -> None:
    for problem in PROBLEMS:
        assert "=" not in tokenizer.decode(encode(problem, "language", tokenizer)[0])


def test_an_unknown_skill_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of \['arithmetic', 'language'\], got 'poetry'"):
        train(
            saved["base"],
            tmp_path,
            PROBLEMS,
            "poetry",
            rank=1,
            steps=1,
            batch=1,
            learning_rate=1.0,
            seed=0,
            dtype=torch.float32,
            on_step=print,
        )
