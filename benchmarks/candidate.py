"""One candidate from end to end, its merge and twenty items, against mergekit and lm-eval.

    python benchmarks/candidate.py

Needs the demonstration's base, experts and items (the stages base, experts and prepare). The experts of the transfer
study are written out as whole models, which both sides merge. Makes an environment with both tools in `.bench/` (once).

- as whole processes: mergekit writes the merge, then lm-eval loads it and is asked
- in one Python process: the same two called one after the other, the process and its imports not counted
- ours: a candidate of a generation of twelve, as a search asks it; and one alone

All answer the same items in the same dtype, and take turns; lm-eval's batch is the fastest of `BATCHES`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from environments import environment
from figures import Figure, publish

from flows.known import items_of, study_of
from flows.stage import read_params
from merge3 import export, mergefile, models
from merge3.items import Item
from merge3.live import open_asker
from merge3.recipe import TRAITS, Merge, Recipe, constant

HERE = Path(__file__).parent
BASE, EXPERTS = "data/base", Path("data/experts")
METHODS = ("task_arithmetic", "ties", "dare_ties")
ITEMS, GENERATION, ROUNDS = 20, 12, 3
BATCHES = (4, 16, 64)
DTYPE = "bfloat16"  # of the files, and of the merges
TARGETS = {"whole processes": 20.0, "one process": 8.0}


class Peer:
    """Both tools in one process."""

    def __init__(self, python: Path, dtype: str) -> None:
        command = [python, HERE / "peers" / "candidate.py", BASE, dtype, str(torch.get_num_threads())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, recipe: Path, requests: Sequence[Any], batch: int) -> dict[str, Any]:
        """The answers, and the seconds of merging, of loading and of answering."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the process has no pipes")
        asked = {"recipe": str(recipe.resolve()), "requests": requests, "batch": batch}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


def candidates(method: str, experts: Sequence[str]) -> list[Recipe]:
    """A generation: weights about the uniform average, half of every difference kept where a method drops some."""
    densities = {name: {"*": (0.5,)} for name in experts} if TRAITS[method].densities else {}
    return [
        Recipe(
            method,
            tuple(experts),
            {name: {"*": (round(0.2 + 0.02 * (number + place), 2),)} for place, name in enumerate(experts)},
            densities,
        )
        for number in range(GENERATION)
    ]


def whole(python: Path, recipe: Path, requests: Sequence[Any], batch: int, dtype: str) -> float:
    """The seconds of two processes, one after the other."""
    with tempfile.TemporaryDirectory() as out:
        begin = perf_counter()
        subprocess.run([python, HERE / "peers" / "mergekit_merge.py", recipe, out], check=True, capture_output=True)
        merged = perf_counter() - begin
        models.save_tokenizer(models.load_tokenizer(BASE), Path(out))  # mergekit was asked for weights alone
        line = json.dumps({"kind": "loglikelihood", "requests": requests, "batch": batch}) + "\n"
        command = [python, HERE / "peers" / "lm_eval_answers.py", out, dtype, str(torch.get_num_threads())]
        begin = perf_counter()
        subprocess.run(command, input=line, text=True, check=True, capture_output=True)
        return merged + perf_counter() - begin


def ours(
    sources: Mapping[str, str], recipes: Sequence[Recipe], asked: list[Item], dtype: str
) -> tuple[list[int], float]:
    """The first candidate's picks, and the seconds of each: a search's, which is open and has asked before."""
    with tempfile.TemporaryDirectory() as store:
        asker = open_asker(BASE, sources, Path(store), dtype=dtype)
        warm = constant(recipes[0].method, dict.fromkeys(sources, 0.5), density=0.5)
        asker.ask(warm, asked)
        begin = perf_counter()
        asker.expect(recipes, asked)
        answers = [asker.ask(recipe, asked).answers for recipe in recipes]
        seconds = (perf_counter() - begin) / len(recipes)
    if None in answers:
        raise ValueError("a merge is broken")
    return [max(range(len(values)), key=values.__getitem__) for values in answers[0]], seconds


def measured(method: str, sources: Mapping[str, str], asked: list[Item], python: Path, dtype: str) -> list[Figure]:
    """The figures of a method."""
    recipes = candidates(method, list(sources))
    requests = [(item.prompt, option) for item in asked for option in item.options]
    peer = Peer(python, dtype)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(mergefile.to_mergekit(Merge(recipes[0], BASE, dict(sources), DTYPE)), encoding="utf-8")
        batch = min(BATCHES, key=lambda batch: peer.ask(file, requests, batch)["answering"])
        times: dict[str, list[float]] = {name: [] for name in ("whole processes", "one process", "ours", "alone")}
        for _ in range(ROUNDS):
            times["whole processes"].append(whole(python, file, requests, batch, dtype))
            told = peer.ask(file, requests, batch)
            times["one process"].append(told["merging"] + told["loading"] + told["answering"])
            picks, seconds = ours(sources, recipes, asked, dtype)
            times["ours"].append(seconds)
            times["alone"].append(ours(sources, recipes[:1], asked, dtype)[1])
    peer.process.kill()
    peer.process.wait()
    middle = {name: statistics.median(values) for name, values in times.items()}
    width = len(asked[0].options)
    rows = [told["answers"][place : place + width] for place in range(0, len(requests), width)]
    theirs = [max(range(width), key=lambda option, row=row: row[option]) for row in rows]
    return [
        *(
            Figure(f"{method}: {name} (batches of {batch}) / ours", middle[name] / middle["ours"], "ratio", target)
            for name, target in TARGETS.items()
        ),
        Figure(f"{method}: one process / ours alone", middle["one process"] / middle["alone"], "ratio"),
        Figure(f"{method}: ours", middle["ours"], "s"),
        Figure(f"{method}: picks that agree", sum(map(int.__eq__, picks, theirs)) / len(asked), "share"),
    ]


def main() -> None:
    """Measure, print a table, write the results."""
    python = environment("mergekit_lm_eval", "mergekit==0.1.5", "lm_eval[hf]==0.4.13")
    params = read_params()
    names, groups = study_of("transfer", params["studies"])
    every = items_of(groups, "search")
    asked = every[:: len(every) // ITEMS][:ITEMS]
    dtype = str(models.resolve_dtype("auto", "cpu")).removeprefix("torch.")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: str(Path(folder) / name) for name in names}
        for name, out in sources.items():
            merge = Merge(constant("task_arithmetic", {name: 1.0}), BASE, {name: str(EXPERTS / name)}, DTYPE)
            export.export(merge, Path(out))
        for method in METHODS:
            figures += measured(method, sources, asked, python, dtype)
    publish("candidate", figures)


if __name__ == "__main__":
    main()
