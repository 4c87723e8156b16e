"""Make the models, recipes and expected merges of `test_parity.py`, with mergekit itself.

    python -m venv mergekit && mergekit/bin/pip install mergekit==0.1.5 torch==2.13.0 transformers==5.23.0
    mergekit/bin/python tests/parity/make.py

The models are tiny, float32 and without ties between magnitudes (which mergekit breaks by an unstable sort).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config

HERE = Path(__file__).parent
SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 32}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=False),
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=4),
    "gpt2": GPT2Config(n_embd=8, n_inner=12, n_layer=3, n_head=2, n_positions=16, vocab_size=32),
}


def two(first: object, second: object, name: str = "weight", **more: tuple[object, object]) -> list[dict[str, object]]:
    """Models a and b with a parameter each, or several."""
    values = {name: (first, second), **more}
    return [
        {"model": model, "parameters": {key: pair[i] for key, pair in values.items()}} for i, model in enumerate("ab")
    ]


BY_PART = [{"filter": "attn", "value": [0.1, 0.9]}, {"filter": "mlp", "value": 0.4}, {"value": [0.2, 0.3, 0.7]}]
HALF = {"density": (0.3, 0.6)}
RECIPES: dict[str, dict[str, object]] = {
    "linear": {"merge_method": "linear", "models": two(0.3, 0.5)},
    "linear_by_part": {"merge_method": "linear", "models": two(BY_PART, 0.5)},
    "linear_of_three": {
        "merge_method": "linear",
        "models": [*two(0.3, 0.5), {"model": "base"}],
        "parameters": {"weight": 0.9},
    },
    "linear_as_it_is": {"merge_method": "linear", "models": two(0.3, 0.5), "parameters": {"normalize": False}},
    "slerp": {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}], "parameters": {"t": BY_PART}},
    "slerp_slices": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [{"sources": [{"model": m, "layer_range": [0, 3]} for m in "ab"]}],
        "parameters": {"t": 0.35},
    },
    "nuslerp": {"merge_method": "nuslerp", "models": two(0.3, 0.5)},
    "nuslerp_around_base": {"merge_method": "nuslerp", "base_model": "base", "models": two(0.3, BY_PART)},
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": two(BY_PART, -0.2),
        "parameters": {"lambda": 0.7},
    },
    "task_arithmetic_mean": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": two(0.3, 0.9),
        "parameters": {"normalize": True},
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "models": two(0.6, BY_PART, **HALF),
        "parameters": {"lambda": 1.2},
    },
    "ties_sum": {
        "merge_method": "ties",
        "base_model": "base",
        "models": two(0.6, 0.3, **HALF),
        "parameters": {"normalize": False, "int8_mask": True},
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "base_model": "base",
        "models": two(0.6, 0.3, **HALF),
        "parameters": {"gamma": 0.05},
    },
    "breadcrumbs_ties": {
        "merge_method": "breadcrumbs_ties",
        "base_model": "base",
        "models": two(0.6, 0.3, **HALF),
        "parameters": {"gamma": 0.05, "normalize": True},
    },
    # what is drawn by chance cannot be compared: all is kept
    "dare_linear": {"merge_method": "dare_linear", "base_model": "base", "models": two(0.6, 0.3)},
    "dare_ties": {"merge_method": "dare_ties", "base_model": "base", "models": two(0.6, 0.3)},
    "della": {"merge_method": "della", "base_model": "base", "models": two(0.6, 0.3)},
    "della_linear": {"merge_method": "della_linear", "base_model": "base", "models": two(0.6, 0.3)},
    "model_stock": {"merge_method": "model_stock", "base_model": "base", "models": [{"model": "a"}, {"model": "b"}]},
    "multislerp": {"merge_method": "multislerp", "models": two(0.6, 0.3)},
    "multislerp_around_base": {"merge_method": "multislerp", "base_model": "base", "models": two(0.6, 0.3)},
    "karcher": {"merge_method": "karcher", "models": [{"model": "a"}, {"model": "b"}, {"model": "base"}]},
    "sce": {"merge_method": "sce", "base_model": "base", "models": [{"model": "a"}, {"model": "b"}]},
    "sce_selected": {
        "merge_method": "sce",
        "base_model": "base",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"select_topk": 0.4},
    },
    "passthrough": {"merge_method": "passthrough", "models": [{"model": "a", "parameters": {"scale": 0.5}}]},
    "stack": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "b", "layer_range": [1, 3]}]},
        ],
    },
}


def main() -> None:
    """Write a folder an architecture: base, a, b, and expected.safetensors with a tensor a recipe and parameter."""
    recipes = HERE / "recipes"
    shutil.rmtree(recipes, ignore_errors=True)
    recipes.mkdir()
    for name, recipe in RECIPES.items():
        text = yaml.safe_dump({**recipe, "dtype": "float32"}, sort_keys=False, default_flow_style=None)
        (recipes / f"{name}.yaml").write_text(text)
    for architecture, config in CONFIGS.items():
        folder = HERE / architecture
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        start = {name: 0.3 * torch.randn(p.shape) for name, p in model.named_parameters()}
        for name in ("base", "a", "b"):
            for key, parameter in model.named_parameters():
                parameter.data = start[key] + (0.1 * torch.randn(parameter.shape) if name != "base" else 0.0)
            model.save_pretrained(folder / name)
            (folder / name / "generation_config.json").unlink(missing_ok=True)
        expected = {}
        for name in RECIPES:
            if name == "stack" and hasattr(config, "layer_types"):
                continue  # mergekit fails: it leaves layer_types as they were
            settings = yaml.safe_load((recipes / f"{name}.yaml").read_text().replace("model: ", f"model: {folder}/"))
            with tempfile.TemporaryDirectory() as out:
                run_merge(MergeConfiguration.model_validate(settings), out, MergeOptions(copy_tokenizer=False))
                for file in Path(out).glob("*.safetensors"):
                    expected |= {f"{name}/{key}": value.float() for key, value in load_file(file).items()}
        save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
