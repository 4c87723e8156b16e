"""One candidate from end to end, its merge and twenty items, against mergekit and lm-eval.

    python benchmarks/candidate.py

Needs the demonstration's base, experts and items (the stages base, experts and prepare). The experts of the transfer
study are written out as whole models, which both sides merge. Makes an environment with both tools in `.bench/` (once).

- as whole processes: mergekit writes the merge, then lm-eval loads it and is asked
- in one Python process: the same two called one after the other, the process and its imports not counted
- ours: a candidate of a generation of twelve, as a search asks it, after an earlier generation; and one alone

All answer the same items in the same dtype, and take turns; lm-eval's batch is the fastest of `BATCHES`, chosen once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from answering import pairs
from environments import PEERS, Peer, environment
from figures import Figure, command_line, publish

from flows.known import items_of, study_of
from flows.stage import read_params
from merge3 import export, mergefile, models
from merge3.items import Item
from merge3.live import open_asker
from merge3.recipe import TRAITS, Merge, Recipe, constant

BASE, EXPERTS = "data/base", Path("data/experts")
METHODS = ("task_arithmetic", "ties", "dare_ties")
ITEMS, GENERATION, ROUNDS = 20, 12, 3
BATCHES = (4, 16, 64)
DTYPE = "bfloat16"  # of the files, and of the merges
TARGETS = {"whole processes": 20.0, "one process": 8.0}


def candidates(method: str, experts: Sequence[str], generation: int = 1) -> list[Recipe]:
    """A generation: weights about the uniform average, half of every difference kept where a method drops some."""
    densities = {name: {"*": (0.5,)} for name in experts} if TRAITS[method].densities else {}
    return [
        Recipe(
            method,
            tuple(experts),
            {
                name: {"*": (round(0.2 + 0.02 * (number + place) + 0.001 * generation, 3),)}
                for place, name in enumerate(experts)
            },
            densities,
        )
        for number in range(GENERATION)
    ]


def written(recipe: Recipe, sources: Mapping[str, str], folder: Path) -> Path:
    """A file of the recipe, for mergekit."""
    file = folder / "recipe.yaml"
    file.write_text(mergefile.to_mergekit(Merge(recipe, BASE, dict(sources), DTYPE)), encoding="utf-8")
    return file


def whole(python: Path, recipe: Path, requests: Sequence[Any], batch: int, dtype: str) -> float:
    """The seconds of two processes, one after the other."""
    with tempfile.TemporaryDirectory() as out:
        begin = perf_counter()
        subprocess.run([python, PEERS / "mergekit_merge.py", recipe, out], check=True, capture_output=True)
        merged = perf_counter() - begin
        models.save_tokenizer(models.load_tokenizer(BASE), Path(out))  # mergekit was asked for weights alone
        line = json.dumps({"kind": "loglikelihood", "requests": requests, "batch": batch}) + "\n"
        command = [python, PEERS / "lm_eval_answers.py", out, dtype, str(torch.get_num_threads())]
        begin = perf_counter()
        subprocess.run(command, input=line, text=True, check=True, capture_output=True)
        return merged + perf_counter() - begin


def ours(
    sources: Mapping[str, str], recipes: Sequence[Recipe], asked: list[Item], dtype: str
) -> tuple[np.ndarray, float]:
    """The first candidate's picks, and the seconds of each: a search's, which has asked a generation before."""
    with tempfile.TemporaryDirectory() as store:
        asker = open_asker(BASE, sources, Path(store), dtype=dtype)
        for generation in (candidates(recipes[0].method, list(sources), 0)[: len(recipes)], recipes):
            begin = perf_counter()
            asker.expect(generation, asked)
            answers = [asker.ask(recipe, asked).answers for recipe in generation]
            seconds = (perf_counter() - begin) / len(generation)
    if None in answers:
        raise ValueError("a merge is broken")
    return np.array(answers[0]).argmax(axis=1), seconds


def measured(
    method: str, sources: Mapping[str, str], asked: list[Item], python: Path, peer: Peer, dtype: str, batch: int
) -> list[Figure]:
    """The figures of a method."""
    recipes, requests = candidates(method, list(sources)), pairs(asked)
    times: dict[str, list[float]] = {name: [] for name in ("whole processes", "one process", "ours", "alone")}
    with tempfile.TemporaryDirectory() as folder:
        file = written(recipes[0], sources, Path(folder))
        for _ in range(ROUNDS):
            times["whole processes"].append(whole(python, file, requests, batch, dtype))
            theirs = peer.ask(recipe=str(file), requests=requests, batch=batch)
            times["one process"].append(theirs["merging"] + theirs["loading"] + theirs["answering"])
            picks, seconds = ours(sources, recipes, asked, dtype)
            times["ours"].append(seconds)
            times["alone"].append(ours(sources, recipes[:1], asked, dtype)[1])
            print(method, {name: round(values[-1], 2) for name, values in times.items()}, file=sys.stderr, flush=True)
    middle = {name: statistics.median(values) for name, values in times.items()}
    agree = np.reshape(theirs["answers"], (len(asked), -1)).argmax(axis=1) == picks
    return [
        *(
            Figure(f"{method}: {name} (batches of {batch}) / ours", middle[name] / middle["ours"], "ratio", target)
            for name, target in TARGETS.items()
        ),
        Figure(f"{method}: one process / ours alone", middle["one process"] / middle["alone"], "ratio"),
        Figure(f"{method}: ours", middle["ours"], "s"),
        Figure(f"{method}: picks that agree", float(agree.mean()), "share"),
    ]


def main() -> None:
    """Measure, print a table, write the results."""
    command_line(__doc__).parse_args()
    python = environment("mergekit_lm_eval", "mergekit==0.1.5", "lm_eval[hf]==0.4.13")
    params = read_params()
    names, groups = study_of("transfer", params["studies"])
    every = items_of(groups, "search")
    asked = every[:: len(every) // ITEMS][:ITEMS]
    dtype = models.dtype_name(models.resolve_dtype("auto", "cpu"))
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: str(Path(folder) / name) for name in names}
        for name, out in sources.items():
            merge = Merge(constant("task_arithmetic", {name: 1.0}), BASE, {name: str(EXPERTS / name)}, DTYPE)
            export.export(merge, Path(out))
        peer = Peer(python, "candidate.py", BASE, dtype)
        file, requests = written(candidates(METHODS[0], names)[0], sources, Path(folder)), pairs(asked)
        tried = {size: peer.ask(recipe=str(file), requests=requests, batch=size)["answering"] for size in BATCHES}
        batch = min(tried, key=tried.__getitem__)
        for method in METHODS:
            figures += measured(method, sources, asked, python, peer, dtype, batch)
        peer.end()
    publish("candidate", figures)


if __name__ == "__main__":
    main()
