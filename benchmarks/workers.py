"""Workers: what of a search is not shared among them, and what a Dask worker's candidate costs on its way.

A search that was answered before asks nothing: run again, it is its serial share alone (drawing candidates, fitting
the surface, estimating, reading the store, writing the history). Its seconds, less those of opening the models, are
measured on searches of several lengths with the demonstration's numbers: four experts, twelve genes, 480 items of which
20 are asked, 12 candidates a generation. `merge3 plan --workers` counts with them (`merge3.scaling.OWN`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # or a processor's seconds are no seconds

import numpy as np
from figures import Figure, command_line, publish

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

import world  # noqa: E402
from conftest import byte_tokenizer, fine_tune, save_models  # noqa: E402

from flows.asking import open_asker  # noqa: E402
from flows.cluster import Cluster  # noqa: E402
from flows.evolve import evolve  # noqa: E402
from flows.stage import arguments  # noqa: E402
from merge3 import items, models  # noqa: E402
from merge3.recipe import constant  # noqa: E402

EXPERTS = ("first", "second", "third", "fourth")
LENGTHS = (1, 10, 20, 30)  # generations of 12
TASKS = 120


def make_world(folder: Path) -> dict[str, Any]:
    """The tiny world in the working directory with four experts and 800 items, calibrated."""
    saved = save_models(folder / "models", byte_tokenizer())
    base = models.load(saved["base"], models.stored_dtype(saved["base"]))
    for seed, name in enumerate(EXPERTS[2:], 5):
        saved[name] = folder / "models" / name
        fine_tune(base, seed).save_pretrained(saved[name])
        byte_tokenizer().save_pretrained(saved[name])
    values = world.params(saved)
    values["studies"]["tiny"]["experts"] = list(EXPERTS)
    values["experts"]["models"] = {name: str(saved[name]) for name in EXPERTS}
    values["population"] |= {"size": 18, "held_out": 6}
    values["extract"]["items"] = 20
    values["evolve"] |= {"population": 12, "finalists": 9, "finalist_items": 300}
    world.write(folder, values)
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    more = [row | {"id": f"{n}-{row['id']}", "prompt": f"{n}: {row['prompt']}"} for n in range(10) for row in rows]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    world.run(values, "base", "experts", "prepare", "respond", "population", "calibrate", "extract", "estimate")
    return values


def replay(values: dict[str, Any], generations: int) -> float:
    """Processor seconds of a search whose questions are all answered, less those of opening the models.

    Raises:
        RuntimeError: it asked something.
    """
    values["evolve"]["generations"] = generations
    given = arguments(evolve, values)
    evolve.fn(**given)
    begin = time.process_time()
    open_asker(values["runtime"], Path("data/evolve/answers"), EXPERTS)
    opened = time.process_time()
    evolve.fn(**given)
    ended = time.process_time()
    if json.loads(Path("data/evolve/ledger.json").read_text())["this_run"]["tokens"]:
        raise RuntimeError("the search that was run again asked something")
    return ended - opened - (opened - begin)


@contextmanager
def dask_worker(folder: Path) -> Iterator[str]:
    """The address of a Dask scheduler on loopback with one worker."""
    file = folder / "scheduler.json"
    place = ("--host", "127.0.0.1", "--no-dashboard")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = (
        ("dask_scheduler", "--port", "0", "--scheduler-file", str(file)),
        ("dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny"),
    )
    started = []
    for what, *options in commands:
        command = [sys.executable, "-m", f"distributed.cli.{what}", *options, *place]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while not file.exists():
            time.sleep(0.1)
    time.sleep(15)  # until the worker has come
    try:
        yield json.loads(file.read_text())["address"]
    finally:
        for process in started:
            process.kill()
            process.wait()


def way(values: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Seconds of a candidate at a Dask worker, and what comes on top until its answers are here."""
    asker = open_asker(values["runtime"], folder / "answers", EXPERTS)
    questions = items.read(Path("data/prepare/search.parquet"))[:20]
    generator = np.random.default_rng(0)
    recipes = [
        constant("task_arithmetic", dict(zip(EXPERTS, generator.random(4).tolist(), strict=True))) for _ in range(TASKS)
    ]
    with dask_worker(folder) as address:
        crew = Cluster(address, values["runtime"], EXPERTS, asker)
        begin = time.perf_counter()
        found = dict(crew.ask({str(n): (recipe, questions) for n, recipe in enumerate(recipes)}))
        whole = time.perf_counter() - begin
        crew.client.close()
    if len(found) != TASKS:
        raise RuntimeError(f"{len(found)} of {TASKS} candidates came")
    working = sum(asked.cost.seconds for asked in found.values())
    return working / TASKS, (whole - working) / TASKS


def main() -> None:
    """Measure the serial share."""
    command_line(__doc__).parse_args()
    figures = []
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        values = make_world(folder)
        for generations in LENGTHS:
            figure = f"the search's own seconds, {12 * generations} candidates"
            figures.append(Figure(figure, replay(values, generations), "s"))
        work, transport = way(values, folder)
        figures.append(Figure("a Dask worker's candidate: merging and answering in the tiny world", work, "s"))
        figures.append(Figure("a Dask worker's candidate: the way there and back", transport, "s"))
        os.chdir(here)
    publish("workers", figures)


if __name__ == "__main__":
    main()
