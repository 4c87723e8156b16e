"""Stage experts: the models to merge, trained here or named, and a manifest that later stages read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from demo.experts import train as train_adapter
from demo.problems import generate
from flows.stage import DATA, Count, Seed, main, progress, say, section
from merge3.models import Expert, fingerprint, resolve_dtype, weights_folder, write_manifest

BASE = DATA / "base"
OUT = DATA / "experts"
TRAIN = {
    "adapters": Annotated[dict[str, dict[str, str]], Field(min_length=1)],
    "problems": Count,
    "rank": Count,
    "steps": Count,
    "batch": Count,
    "learning_rate": Annotated[float, Field(gt=0)],
    "dtype": str,
}
ADAPTER = {"language": str, "skill": str}


@flow
def experts(
    seed: Seed,
    models: Annotated[dict[str, str] | None, Field(min_length=1)],
    train: dict[str, Any] | None,
) -> None:
    """Write data/experts/manifest.json: name, source and fingerprint of the base and of every expert.

    `models` names existing fine-tunes or adapters of the base; `train` has the demonstration train LoRA adapters.

    Raises:
        ValueError: both or neither is given, a name is none, or a setting of `train` is missing, unknown or wrong.
        FileNotFoundError: an expert is not there.
    """
    if (models is None) == (train is None):
        raise ValueError("give either experts.models or experts.train, the other as null")
    settings = {} if train is None else section("experts.train", train, TRAIN)
    for name, adapter in settings.get("adapters", {}).items():
        section(f"experts.train.adapters.{name}", adapter, ADAPTER)
    names = settings["adapters"] if models is None else models
    if wrong := [name for name in names if name == "base" or not re.fullmatch(r"\w[\w.-]*", name)]:
        raise ValueError(
            "an expert's name is letters, digits, '_', '-' and '.', begins with a letter, digit or '_', and is not "
            f"'base'; got {wrong[0]!r}"
        )
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    sources = _train(seed, **settings) if models is None else dict(models)
    found = [Expert(name, source, fingerprint(weights_folder(source))) for name, source in sources.items()]
    write_manifest(OUT / "manifest.json", Expert("base", str(BASE), fingerprint(BASE)), found)


def _train(
    seed: int,
    *,
    adapters: dict[str, dict[str, str]],
    problems: int,
    steps: int,
    dtype: str,
    **hyperparameters: Any,
) -> dict[str, str]:
    """Train every adapter; the folder of each by name."""
    say(f"training {len(adapters)} adapters of {steps} steps each; about 3 minutes each on two cores")
    sources: dict[str, Path] = {}
    with progress("experts: training steps", steps * len(adapters)) as advance:
        for name, adapter in adapters.items():
            sources[name] = OUT / name
            train_adapter(
                BASE,
                sources[name],
                generate(adapter["language"], "train", problems, seed),
                adapter["skill"],
                steps=steps,
                seed=seed,
                dtype=resolve_dtype(dtype, "cpu"),
                on_step=lambda step, loss: advance(1),
                **hyperparameters,
            )
    return {name: str(folder) for name, folder in sources.items()}


if __name__ == "__main__":
    main(experts)
