from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3nTextConfig, GPT2Config, LlamaConfig, MixtralConfig

from merge3 import models
from merge3.plan import (
    CPU_TOKENS,
    MOST_TOKENS,
    ROOM,
    Machine,
    adapter_parameters,
    ingredient_bytes,
    measure,
    memory,
    plan,
    resolve_batch_tokens,
    token_bytes,
)

CARD = Machine(memory=24e9, bandwidth=1e12, operations=100e12)


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven")
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000}
    LlamaConfig(**sizes, num_attention_heads=32, num_key_value_heads=8).save_pretrained(folder)
    return folder


def test_bytes_and_seconds_follow_from_the_config(seven_billion: Path) -> None:
    found = plan(seven_billion, [seven_billion] * 2, "task_arithmetic", CARD, tokens=1000)
    assert found.parameters == 7_241_732_096  # Mistral-7B's
    assert found.model == 2 * found.parameters
    assert found.ingredients == 3 * found.model
    assert found.masks == 0
    assert found.merging_seconds == 4 * found.model / 1e12
    assert found.answering_seconds == 2 * found.parameters * 1000 / 100e12
    assert found.mode == "streamed"


def test_automatic_batches_take_half_of_what_the_device_has_left() -> None:
    config = LlamaConfig(hidden_size=4096, intermediate_size=14336, vocab_size=32000)
    one = token_bytes(config, torch.bfloat16)
    assert one == (12 * 4096 + 3 * 14336) * 2 + 32000
    room = memory("meta") * (1 - ROOM)
    for left in (0.9 * room, 3e8, 1e6):  # a device that is no CPU: the same arithmetic
        found = resolve_batch_tokens("auto", config, torch.bfloat16, "meta", int(room - left), 0)
        assert math.log2(found).is_integer()
        assert found == 1 or found * one <= left / 2
        assert found == MOST_TOKENS or 2 * found * one > left / 2
        for beside in (left / 2, left + 1e8):  # the second does not fit, and is not there
            fits = left - beside if beside < left else left
            same = resolve_batch_tokens("auto", config, torch.bfloat16, "meta", int(room - fits), 0)
            parts = int(room - left), int(beside)
            assert resolve_batch_tokens("auto", config, torch.bfloat16, "meta", *parts) == same
    assert resolve_batch_tokens("auto", config, torch.bfloat16, "meta", int(2 * room), 0) == 1  # what does not fit
    assert resolve_batch_tokens("auto", config, torch.bfloat16, "cpu", 0, 0) == CPU_TOKENS
    assert resolve_batch_tokens(77, config, torch.bfloat16, "cpu", 0, 0) == 77


def test_the_widest_layer_says_what_a_token_takes() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100}
    config = Gemma3nTextConfig(**sizes, intermediate_size=[64, 128], activation_sparsity_pattern=None)
    assert token_bytes(config, torch.bfloat16) == (12 * 32 + 3 * 128) * 2 + 100


@pytest.mark.parametrize("wanted", [0, -1, True, "all"])
def test_batch_tokens_are_auto_or_a_number(wanted: str | int) -> None:
    with pytest.raises(ValueError, match="batch_tokens must be auto or a number above 0"):
        resolve_batch_tokens(wanted, LlamaConfig(), torch.float32, "cpu", 0, 0)


def test_a_batch_reads_every_weight_once(seven_billion: Path) -> None:
    def seconds(tokens: int, batch: int) -> float:
        return plan(seven_billion, [], "linear", CARD, tokens=tokens, batch_tokens=batch).answering_seconds

    reading, token = 2 * 7_241_732_096 / 1e12, 2 * 7_241_732_096 / 100e12
    assert seconds(1000, 10) == pytest.approx(100 * reading)  # so small that all wait for memory
    assert seconds(1000, 400) == pytest.approx(1000 * token)
    assert seconds(1010, 500) == pytest.approx(1000 * token + reading)  # the last has ten


def test_a_mixtures_tokens_take_the_operations_of_their_experts(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 4, "vocab_size": 32000}
    mixture = MixtralConfig(**sizes, num_attention_heads=16, num_key_value_heads=4)  # two of eight experts a token
    mixture.save_pretrained(tmp_path)
    found = plan(tmp_path, [], "linear", CARD, tokens=4096)
    routed = 4 * 8 * 3 * 1024 * 3584
    assert found.answering_seconds == 2 * (found.parameters - routed * 6 // 8) * 4096 / 100e12
    assert found.model == 2 * found.parameters


def test_masks_are_a_byte_an_element_and_ranks_another(seven_billion: Path) -> None:
    masks = {
        m: plan(seven_billion, [seven_billion] * 2, m, CARD, tokens=1).masks for m in ("ties", "dare_ties", "della")
    }
    count = 7_241_732_096
    assert masks == {"ties": 0, "dare_ties": 2 * count, "della": 4 * count}


@pytest.mark.parametrize(("memory", "mode"), [(80e9, "resident"), (24e9, "streamed"), (12e9, "too large")])
def test_the_mode_is_what_fits(seven_billion: Path, memory: float, mode: str) -> None:
    assert plan(seven_billion, [seven_billion], "ties", Machine(memory, 1.0, 1.0), tokens=1).mode == mode


def test_a_tenth_of_a_device_is_left_for_its_own_needs(seven_billion: Path) -> None:
    found = plan(seven_billion, [seven_billion], "ties", CARD, tokens=1)
    modes = {"resident": found.resident, "streamed": found.streamed}
    for mode, size in modes.items():
        assert replace(found, memory=1.001 * size / 0.9).mode == mode
        assert replace(found, memory=0.999 * size / 0.9).mode != mode


def test_a_config_without_an_inner_width_has_four_hidden_ones() -> None:
    config = GPT2Config(n_embd=32, vocab_size=259)
    assert config.n_inner is None
    assert token_bytes(config, torch.float32) == (12 * 32 + 3 * 4 * 32) * 4 + 259


def test_an_adapter_of_directions_weighs_whole_matrices(saved: dict[str, Path], tmp_path: Path) -> None:
    base = models.load(saved["base"], torch.float32)
    whole = sum(p.numel() for name, p in base.named_parameters() if "q_proj" in name)
    made = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    made.save_pretrained(tmp_path)
    factors = sum(p.numel() for name, p in made.named_parameters() if "lora_" in name)
    assert adapter_parameters(tmp_path, models.load(saved["base"], torch.float32)) == factors + whole


def test_an_adapter_weighs_its_factors(saved: dict[str, Path], tmp_path: Path) -> None:
    base = models.load(saved["base"], torch.float32)
    made = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    made.save_pretrained(tmp_path)
    factors = sum(p.numel() for name, p in made.named_parameters() if "lora_" in name)
    assert adapter_parameters(tmp_path, models.load(saved["base"], torch.float32)) == factors
    found = plan(saved["base"], [tmp_path], "ties", CARD, tokens=1)
    assert found.ingredients == found.model + 4 * factors
    own = models.load(saved["base"], torch.float32)
    half = ingredient_bytes(own, [saved["base"], tmp_path, saved["first"]], lambda _: 2)
    assert half == 2 * 2 * own.num_parameters() + 4 * factors
    with pytest.raises(ValueError, match=f"^{tmp_path} is an adapter: a base is the model that it changes"):
        plan(tmp_path, [saved["first"]], "ties", CARD, tokens=1)


def test_this_machine_is_measured() -> None:
    found = measure("cpu", torch.float32)
    assert min(found.memory, found.bandwidth, found.operations) > 1e6


def test_what_cannot_be_planned_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no config of a model at"):
        plan(tmp_path, [], "ties", CARD, tokens=1)
    with pytest.raises(ValueError, match="merge method must be one of"):
        plan(saved["base"], [], "mean", CARD, tokens=1)
