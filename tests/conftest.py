"""Tiny but real models, built once a session: two layers, random weights, a byte-level tokenizer."""

from __future__ import annotations

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")  # `dvc init` would report before it can be told not to

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

settings.register_profile("same", derandomize=True)  # what passes once passes again
settings.load_profile("same")

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=259, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, vocab_size=259, tie_word_embeddings=False),
    "gpt2": GPT2Config(n_embd=32, n_inner=64, n_layer=2, n_head=4, n_positions=256, vocab_size=259),
}


def stretching(tokens: int) -> PretrainedConfig:
    """A Phi-3 that tells all positions otherwise in texts of more than so many tokens."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 7.0]}
    lengths = {"original_max_position_embeddings": tokens, "max_position_embeddings": 512}
    return Phi3Config(**SIZES, **lengths, num_key_value_heads=2, vocab_size=259, pad_token_id=2, rope_parameters=rope)


def build(config: PretrainedConfig, seed: int, spread: float = 0.3) -> PreTrainedModel:
    """A random model with a config of its own; a wide spread keeps its likelihoods apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data.normal_(0.0, spread)
    return model.eval().requires_grad_(False)


def fine_tune(model: PreTrainedModel, seed: int, spread: float = 0.1) -> PreTrainedModel:
    """A copy with every tensor that a merge changes moved a little."""
    from merge3.models import tensors_of  # not above: what is imported before pytest starts is not type-checked

    copy = build(model.config, 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for ours, theirs in zip(tensors_of(copy).values(), tensors_of(model).values(), strict=True):
            ours.copy_(theirs + spread * torch.randn(theirs.shape, generator=generator))
    return copy


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A token a byte, which no text can escape."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2} | {letter: i + 3 for i, letter in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def save_models(root: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Path]:
    """Write a tiny Llama base and two fine-tunes of it into folders: `base`, `first`, `second`."""
    base = build(CONFIGS["llama"], seed=1)
    for name, made in (("base", base), ("first", fine_tune(base, 2)), ("second", fine_tune(base, 3))):
        made.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ("base", "first", "second")}


def with_tokens(source: Path, out: Path, *tokens: str) -> Path:
    """A copy of a saved model that has further tokens, and rows for them."""
    from merge3 import models as loading  # not above: what is imported before pytest starts is not type-checked

    tokenizer, model = loading.load_tokenizer(source), loading.load(source, torch.float32)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A token a byte, which no text can escape."""
    return byte_tokenizer()


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of each architecture. Tests do not change it."""
    return build(CONFIGS[request.param], seed=1)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """The tiny Llama. Tests do not change it."""
    return build(CONFIGS["llama"], seed=1)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> dict[str, Path]:
    """Folders of a tiny Llama base and two fine-tunes of it: `base`, `first`, `second`."""
    return save_models(tmp_path_factory.mktemp("models"), tokenizer)
