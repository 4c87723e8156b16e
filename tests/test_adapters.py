from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, build
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PreTrainedModel

from merge3 import models
from merge3.ingredients import LowRank
from merge3.models import IncompatibleModels

pytestmark = [  # PEFT's own, of biases that it saves itself, and of what the tests below are about
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.* have invalid shape"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:.*alpha_pattern:RuntimeWarning"),
]
TARGETS = {"llama": ["q_proj", "down_proj"], "qwen2": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
BOTH = ["embed_tokens", "lm_head"]


def adapter_of(kind: str, folder: Path, rows: int | None = None, **options: object) -> PeftModel:
    """An adapter whose trained parameters are random, saved to `folder`; of a model with so many rows of tokens."""
    model = build(CONFIGS[kind], seed=1)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        settings = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS[kind], "fan_in_fan_out": kind == "gpt2"}
        made = get_peft_model(model, LoraConfig(**settings | options))
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data.normal_()
    made.save_pretrained(folder)
    return made


def merged(base: dict[str, Tensor], found: models.Changes) -> dict[str, Tensor]:
    """The parameters of the expert whole."""
    whole = dict(base)
    for name, source in found.items():
        whole[name] = base[name] + source.rows(0, len(base[name])) if isinstance(source, LowRank) else source
    return whole


MERGED: list[tuple[str, dict[str, object]]] = [
    ("llama", {}),
    ("llama", {"use_rslora": True}),
    ("llama", {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3, "q_proj": 5}}),
    (
        "llama",
        {"rank_pattern": {r".*\.1\..*": 2}, "alpha_pattern": {r"model\.layers\.1\..*": 3}, "use_rslora": True},
    ),
    ("llama", {"target_modules": "all-linear", "use_dora": True}),
    ("llama", {"modules_to_save": ["norm"]}),
    ("qwen2", {"bias": "all"}),
    ("qwen2", {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
    ("qwen2", {"modules_to_save": BOTH}),
    ("qwen2", {"target_modules": ["q_proj", *BOTH]}),
    ("llama", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ("llama", {"trainable_token_indices": [3, 7]}),
    ("qwen2", {"trainable_token_indices": {"embed_tokens": [3, 7]}}),
    ("gpt2", {}),
    ("gpt2", {"use_dora": True, "bias": "all"}),
    ("llama", {"alpha_pattern": {"q": 3, "self_attn": 5, "proj": 7}}),  # which are no module's whole name
    ("qwen2", {"trainable_token_indices": {"model.embed_tokens": [3, 7]}}),
]
TIED = ("llama", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True})  # which PEFT merges twice


@pytest.mark.parametrize(("kind", "options"), MERGED)
def test_an_adapter_changes_what_peft_merges(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    made = adapter_of(kind, tmp_path, **options)
    model = build(CONFIGS[kind], seed=1)
    base = models.weights_of(model)
    found = models.changes(tmp_path, base, model.config)
    theirs = dict(made.merge_and_unload().named_parameters())
    assert {name for name in base if not torch.equal(base[name], theirs[name])} == set(found)
    for name, ours in merged(base, found).items():
        torch.testing.assert_close(ours, theirs[name].data, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("kind", "options"), [*MERGED, TIED])
def test_an_adapted_model_answers_as_by_peft(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    made = adapter_of(kind, tmp_path, **options).eval()
    model = build(CONFIGS[kind], seed=1)
    base = models.weights_of(model)
    tokens = torch.arange(20)[None]
    theirs, before = made(tokens).logits, model(tokens).logits
    for name, ours in merged(base, models.changes(tmp_path, base, model.config)).items():
        base[name].copy_(ours)
    assert not torch.allclose(before, theirs, atol=0.1)
    torch.testing.assert_close(model(tokens).logits, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is `torch.nn.Linear`")
def test_matrices_of_both_kinds_in_one_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's outputs are columns, and square; its head's are rows, and last: PEFT then writes no fan_in_fan_out."""
    monkeypatch.setitem(CONFIGS, "gpt2", GPT2Config(**CONFIGS["gpt2"].to_dict() | {"tie_word_embeddings": False}))
    made = adapter_of("gpt2", tmp_path, target_modules=["attn.c_proj", "lm_head"])
    model = build(CONFIGS["gpt2"], seed=1)
    base = models.weights_of(model)
    found = models.changes(tmp_path, base, model.config)
    assert {name.split(".")[-2] for name in found} == {"c_proj", "lm_head"}
    theirs = made.merge_and_unload()
    for name, ours in merged(base, found).items():
        torch.testing.assert_close(ours, theirs.get_parameter(name), rtol=1e-5, atol=2e-5)


def test_what_has_low_rank_stays_so(tmp_path: Path, llama: PreTrainedModel) -> None:
    adapter_of("llama", tmp_path)
    found = models.changes(tmp_path, models.weights_of(llama), llama.config)
    assert found
    assert all(isinstance(source, LowRank) for source in found.values())


def test_a_scale_that_is_not_said_is_pefts(tmp_path: Path, llama: PreTrainedModel) -> None:
    adapter_of("llama", tmp_path, lora_alpha=8)
    base, config = models.weights_of(llama), tmp_path / models.ADAPTER_CONFIG
    said = merged(base, models.changes(tmp_path, base, llama.config))
    settings = json.loads(config.read_text())
    del settings["lora_alpha"]
    config.write_text(json.dumps(settings))
    silent = merged(base, models.changes(tmp_path, base, llama.config))
    assert all(torch.equal(silent[name], tensor) for name, tensor in said.items())


def test_tokens_that_an_adapter_added_are_left_out(tmp_path: Path) -> None:
    made = adapter_of("qwen2", tmp_path, rows=262, modules_to_save=BOTH)
    model = build(CONFIGS["qwen2"], seed=1)
    base = models.weights_of(model)
    ours = merged(base, models.changes(tmp_path, base, model.config, added=[258, 259, 261]))
    theirs = dict(made.merge_and_unload().named_parameters())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(ours[name][:258], theirs[name][:258])
        assert torch.equal(ours[name][258], base[name][258])


def test_rows_of_tokens_that_an_adapter_added_are_left_out(tmp_path: Path) -> None:
    made = adapter_of("qwen2", tmp_path, rows=262, trainable_token_indices=[5, 258, 261])
    model = build(CONFIGS["qwen2"], seed=1)
    base = models.weights_of(model)
    name = "model.embed_tokens.weight"
    ours = merged(base, models.changes(tmp_path, base, model.config, added=[258, 259, 261]))[name]
    theirs = made.merge_and_unload().get_parameter(name)
    assert torch.equal(ours[5], theirs[5])
    assert not torch.equal(ours[5], base[name][5])
    assert torch.equal(ours[6:], base[name][6:])
    config = tmp_path / models.ADAPTER_CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"trainable_token_indices": [1]}))
    with pytest.raises(IncompatibleModels, match=r"names 1 tokens of 'model\.embed_tokens', got 3"):
        models.changes(tmp_path, base, model.config)


def test_embedding_and_head_in_one(tmp_path: Path, llama: PreTrainedModel) -> None:
    base = models.weights_of(llama)
    adapter_of("llama", tmp_path, modules_to_save=BOTH)
    weights = tmp_path / models.ADAPTER_WEIGHTS
    kept = load_file(weights)
    with pytest.raises(IncompatibleModels, match="embedding and head are one parameter in the base"):
        models.changes(tmp_path, base, llama.config)
    head = kept["base_model.model.lm_head.weight"]
    save_file(kept | {"base_model.model.model.embed_tokens.weight": head.clone()}, weights)
    found = models.changes(tmp_path, base, llama.config)
    assert torch.equal(found["model.embed_tokens.weight"], head)
    assert "lm_head.weight" not in found
    adapter_of("llama", tmp_path / "low", target_modules=["embed_tokens"])
    with pytest.raises(IncompatibleModels, match="trains them apart"):
        models.changes(tmp_path / "low", base, llama.config)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}])
def test_an_adapter_is_loaded_in_its_base_without_peft(
    saved: dict[str, Path], tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    made = get_peft_model(models.load(saved["base"], torch.float32), LoraConfig(target_modules=["q_proj"], **options))
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    made.save_pretrained(adapter)
    tokens = torch.arange(20)[None]
    theirs = made.eval()(tokens).logits
    monkeypatch.setitem(sys.modules, "peft", None)  # as where it is not installed
    torch.testing.assert_close(models.load(adapter, torch.float32)(tokens).logits, theirs, rtol=1e-3, atol=1e-3)
    assert models.load(adapter, torch.bfloat16).dtype == torch.bfloat16
    config = adapter / models.ADAPTER_CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(IncompatibleModels, match="names no base_model_name_or_path"):
        models.load(adapter, torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"alora_invocation_tokens": [1, 2]},
        {"init_lora_weights": "pissa"},
        {"peft_type": "IA3"},
    ],
)
def test_what_cannot_be_merged_is_refused(llama: PreTrainedModel, tmp_path: Path, change: dict[str, object]) -> None:
    adapter_of("llama", tmp_path)
    config = tmp_path / models.ADAPTER_CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(IncompatibleModels, match=next(iter(change))):
        models.changes(tmp_path, models.weights_of(llama), llama.config)


@pytest.mark.parametrize("text", ["{", "", "[1]", "3"])
def test_a_damaged_config_is_named(llama: PreTrainedModel, tmp_path: Path, text: str) -> None:
    adapter_of("llama", tmp_path)
    (tmp_path / models.ADAPTER_CONFIG).write_text(text)
    with pytest.raises(IncompatibleModels, match=r"adapter_config\.json( is no JSON: |: expected a JSON object)"):
        models.changes(tmp_path, models.weights_of(llama), llama.config)
    with pytest.raises(IncompatibleModels, match=r"adapter_config\.json"):
        models.adapted(tmp_path)


def test_an_adapter_without_weights_is_said_to_have_none(llama: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / models.ADAPTER_CONFIG).write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"has no weights: expected adapter_model\.safetensors beside its config"
    ):
        models.changes(tmp_path, models.weights_of(llama), llama.config)


QUERY = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda kept: {k.replace("layers.1", "layers.9"): v for k, v in kept.items()},
            r"no parameter 'model\.layers\.9",
        ),
        (lambda kept: {k: v for k, v in kept.items() if "lora_B" not in k}, "has no lora_B"),
        (lambda kept: {"base_model.model.model.norm.weight": torch.ones(32)}, "no LoRA matrices"),
        (lambda kept: kept | {f"{QUERY}lora_E": torch.ones(4)}, "lora_E, which cannot be merged"),
        (lambda kept: kept | {f"{QUERY}lora_B.bias": torch.ones(32)}, r"no parameter '.*q_proj\.bias'"),
        (
            lambda kept: kept | {f"{QUERY}lora_B.weight": torch.ones(16, 4)},
            r"has shape \(16, 32\), the base's \(32, 32\)",
        ),
    ],
)
def test_files_that_are_not_of_the_base_are_refused(
    llama: PreTrainedModel, tmp_path: Path, edit: object, message: str
) -> None:
    adapter_of("llama", tmp_path)
    weights = tmp_path / models.ADAPTER_WEIGHTS
    assert callable(edit)
    save_file(edit(load_file(weights)), weights)
    with pytest.raises(IncompatibleModels, match=message):
        models.changes(tmp_path, models.weights_of(llama), llama.config)


@pytest.mark.parametrize(
    ("down", "up"),
    [((3, 32), (32, 4)), ((4, 32), (32, 5)), ((32,), (32, 4)), ((4, 32), (32, 4, 1)), ((0, 32), (32, 0))],
)
def test_factors_that_are_of_no_one_rank_are_refused(
    llama: PreTrainedModel, tmp_path: Path, down: tuple[int, ...], up: tuple[int, ...]
) -> None:
    adapter_of("llama", tmp_path)
    weights = tmp_path / models.ADAPTER_WEIGHTS
    given = {f"{QUERY}lora_A.weight": torch.ones(down), f"{QUERY}lora_B.weight": torch.ones(up)}
    save_file(load_file(weights) | given, weights)
    expected = f"expected lora_A of shape (rank, inputs) and lora_B of (outputs, rank), got {down} and {up}"
    with pytest.raises(IncompatibleModels, match=rf"'.*\.0\.self_attn\.q_proj': {re.escape(expected)}"):
        models.changes(tmp_path, models.weights_of(llama), llama.config)


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    adapter_of("qwen2", tmp_path, modules_to_save=BOTH)
    narrow = build(LlamaConfig(**CONFIGS["qwen2"].to_dict() | {"hidden_size": 16, "model_type": "llama"}), seed=1)
    with pytest.raises(IncompatibleModels, match="has shape"):
        models.changes(tmp_path, models.weights_of(narrow), narrow.config)
