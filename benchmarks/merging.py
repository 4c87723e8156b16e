"""A candidate's merge against mergekit's, and against a plain copy of the bytes that it moves.

    python benchmarks/merging.py

Makes an environment with mergekit in `.bench/` (once), a model of 208 M parameters shaped as Qwen2 in bfloat16 with two
experts, and merges by every method of both, side by side: mergekit in a process of its own, timed within it (planning,
merging, writing); ours in the live model, the first candidate apart, since it also pays for what later ones share. The
floor is a copy of as many bytes as base, experts and result have, in the same minute. In a search the candidates of a
generation are merged together: the share of one of twelve is measured too.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml
from environments import environment
from figures import Figure, command_line, publish
from transformers import AutoModelForCausalLM, Qwen2Config

from merge3 import mergefile, models
from merge3.merging import LiveMerger
from merge3.recipe import TRAITS, Merge, Recipe

HERE = Path(__file__).parent
MERGEKIT = "0.1.5"
ROUNDS = 7
GENERATION = 12
DENSITIES = (0.5, 0.37, 0.62, 0.5, 0.45, 0.7, 0.55, 0.31)  # another for every candidate, as in a search

# at most so many times the floor, at least so many times faster than mergekit, as the project set itself
LINEAR, TRIMMED, DRAWN = (3.0, 10.0), (8.0, 50.0), (12.0, 15.0)
TARGETS = {
    **dict.fromkeys(("linear", "task_arithmetic", "slerp"), LINEAR),
    **dict.fromkeys(("ties", "breadcrumbs"), TRIMMED),
    **dict.fromkeys(("dare_linear", "dare_ties", "della", "della_linear"), DRAWN),
}
OTHERS = ("nuslerp", "breadcrumbs_ties", "model_stock", "multislerp", "karcher", "sce")


def make_models(folder: Path) -> None:
    """A base and two experts whose differences have the size that fine-tunes' have."""
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=12,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=32000,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name in ("base", "a", "b"):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for ours, start in zip(made.parameters(), base.parameters(), strict=True):
            ours.data.copy_(start + (3e-4 * torch.randn(start.shape) if name != "base" else 0.0))
        made.save_pretrained(folder / name)


def recipe_of(method: str, density: float) -> Recipe:
    """Two experts by unequal weights (slerp of the two by .4), and a density where the method takes one."""
    if method == "slerp":
        return Recipe(method, ("a", "b"), {"b": {"*": (0.4,)}})
    weights = {"a": {"*": (0.6,)}, "b": {"*": (0.3,)}} if TRAITS[method].weights else {}
    densities = {name: {"*": (density,)} for name in "ab"} if TRAITS[method].densities else {}
    return Recipe(method, ("a", "b"), weights, densities)


def ours(folder: Path, method: str, found: Any) -> None:
    """Time our candidates; run in a process of its own, whose peak of memory is then known."""
    stored = models.weights_of(models.load(folder / "base", torch.bfloat16))
    live = models.load(folder / "base", torch.bfloat16)
    changes = {name: models.changes(folder / name, stored, live.config) for name in "ab"}
    merger = LiveMerger(live, changes, {"a": "A", "b": "B"}, stored)
    seconds = []
    moved = sum(parameter.numel() for parameter in stored.values())
    source = torch.ones(2 * moved, dtype=torch.bfloat16)
    target = torch.zeros_like(source)
    floors = []
    for density in DENSITIES[: ROUNDS + 1]:
        begin = perf_counter()
        merger.apply(recipe_of(method, density))
        seconds.append(perf_counter() - begin)
        begin = perf_counter()
        target.copy_(source)  # base and experts are read, the result is written: as many bytes
        floors.append(perf_counter() - begin)
    copied = 2 * source.numel() * source.element_size()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - copied
    generation = [recipe_of(method, 0.3 + 0.03 * number) for number in range(GENERATION)]
    shares = []
    for _ in range(4):
        begin = perf_counter()
        merger.make(generation)
        shares.append((perf_counter() - begin) / GENERATION)
    figures = {"first": seconds[0], "later": statistics.median(seconds[1:]), "together": statistics.median(shares[1:])}
    found.put({**figures, "floor": min(floors), "peak": peak})


def measured_ours(folder: Path, method: str) -> dict[str, float]:
    """`ours` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=ours, args=(folder, method, answers))
    process.start()
    found: dict[str, float] = answers.get(timeout=900)
    process.join()
    return found


def measured_theirs(python: Path, folder: Path, method: str) -> dict[str, float]:
    """Mergekit's merge of the same recipe, in a fresh process."""
    merge = Merge(recipe_of(method, 0.5), str(folder / "base"), {n: str(folder / n) for n in "ab"}, "bfloat16")
    settings = yaml.safe_load(mergefile.to_mergekit(merge))
    file = folder / f"{method}.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with tempfile.TemporaryDirectory() as out:
        told = subprocess.run(
            [python, HERE / "peers" / "mergekit_merge.py", file, out], check=True, capture_output=True, text=True
        )
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print a table, write the results."""
    command_line(__doc__).parse_args()
    python = environment("mergekit", f"mergekit=={MERGEKIT}")
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        for method in (*TARGETS, *OTHERS):
            print(f"{method} ...", file=sys.stderr, flush=True)
            theirs, mine = measured_theirs(python, folder, method), measured_ours(folder, method)
            floors, faster = TARGETS.get(method, (None, None))
            figures += [
                Figure(f"{method}: time / floor", mine["later"] / mine["floor"], "ratio", floors, below=True),
                Figure(f"{method}: time / floor, {GENERATION} together", mine["together"] / mine["floor"], "ratio"),
                Figure(f"{method}: mergekit's time / ours", theirs["seconds"] / mine["later"], "ratio", faster),
                Figure(
                    f"{method}: mergekit's time / our first candidate's", theirs["seconds"] / mine["first"], "ratio"
                ),
                Figure(f"{method}: peak memory / mergekit's", mine["peak"] / theirs["peak"], "ratio", 1.0, below=True),
            ]
    publish("merging", figures)


if __name__ == "__main__":
    main()
