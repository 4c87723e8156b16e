"""A search by several workers, each with a live model of its own: candidates of a generation are asked at once.

`MERGE3_WORKERS` says who they are: a number of processes on this machine, on a card each where the device is `cuda`, or
the address of a Dask scheduler (see `flows.cluster`). Workers only answer. What is asked, and what follows from it, is
said by the one process that searches, so that a search goes the same way with any number of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import torch
from prefect.exceptions import TerminationSignal

from flows.asking import open_asker
from flows.stage import say
from merge3.asker import BROKEN, Asked, Asker
from merge3.items import Item
from merge3.recipe import Recipe

WORKERS = "MERGE3_WORKERS"

Work = tuple[Recipe, list[Item]]  # a recipe, and the items that it is to be asked


class Crew(Protocol):
    """Workers."""

    def ask(self, work: Mapping[str, Work]) -> Iterator[tuple[str, Asked]]:
        """What they asked of the work, by its name, as it comes; what does not come is for others to ask."""


def open_team(runtime: Mapping[str, Any], store: Path, names: Sequence[str]) -> Asker:
    """An asker as `open_asker` opens it, with the workers that the environment names.

    Raises:
        ValueError: as `open_asker`; or the environment names no workers, or such as differ from this process.
    """
    wanted = os.environ.get(WORKERS, "0")
    if not wanted.isdecimal() and "://" not in wanted:
        raise ValueError(f"{WORKERS} must be a number of processes, or a Dask scheduler's tcp://HOST:PORT: {wanted!r}")
    asker = open_asker(runtime, store, names)
    if wanted.isdecimal():
        return Team(asker, Processes(int(wanted), runtime, store, names)) if int(wanted) else asker
    from flows.cluster import Cluster

    return Team(asker, Cluster(wanted, runtime, names, asker))


class Team(Asker):
    """An asker that has workers ask ahead what it is told to expect. What they do not it asks itself."""

    def __init__(self, asker: Asker, crew: Crew) -> None:
        super().__init__(asker.merger, asker.tokenizer, asker.store, asker.identity, asker.batch_tokens, asker.scoring)
        self.crew = crew
        self.ahead: dict[str, Asked] = {}  # what they asked, by phenotype

    def expect(self, recipes: Sequence[Recipe], items: Sequence[Item]) -> None:
        """Have the workers ask what the store does not hold, and keep it; then as `Asker.expect`."""
        self.ahead = {}
        work: dict[str, Work] = {}
        for recipe in recipes:
            kept = self.store.get(self.key(recipe))
            new = [item for item in items if item.content_hash not in kept]
            if new and BROKEN not in kept.values():
                work[recipe.phenotype(self.merger.fingerprints)] = recipe, new
        for name, asked in self.crew.ask(work):
            recipe, new = work[name]
            answers = [BROKEN] if asked.answers is None else asked.answers
            found = dict(zip((item.content_hash for item in new), answers, strict=False))
            if not found.keys() <= self.store.get(self.key(recipe)).keys():
                self.store.put(self.key(recipe), found)
            self.ahead[name] = asked
        super().expect(recipes, items)

    def ask(self, recipe: Recipe, items: Sequence[Item], on_batch: Callable[[int], None] = lambda items: None) -> Asked:
        """As `Asker.ask`, and what a worker spent on it ahead counts."""
        asked = super().ask(recipe, items, on_batch)
        before = self.ahead.pop(recipe.phenotype(self.merger.fingerprints), None)
        return asked if before is None else Asked(asked.answers, asked.cost + before.cost, before.new)


class Processes:
    """So many processes on this machine, which share the store, and the work in equal parts."""

    def __init__(self, count: int, runtime: Mapping[str, Any], store: Path, names: Sequence[str]) -> None:
        device = runtime["device"]
        devices = [device] * count
        if device == "cuda":  # the first card has the live model of the process that searches
            devices = [f"{device}:{(n + 1) % torch.cuda.device_count()}" for n in range(count)]
        self.workers = [Process({**runtime, "device": each}, store, tuple(names)) for each in devices]

    def ask(self, work: Mapping[str, Work]) -> Iterator[tuple[str, Asked]]:
        """As `Crew.ask`; the part of a process that dies does not come."""
        count = len(self.workers)
        parts = {n: list(work)[n::count] for n in range(min(count, len(work)))}
        futures = {n: self.workers[n].ask([work[name] for name in part]) for n, part in parts.items()}
        for n, part in parts.items():
            try:
                found = futures[n].result()
            except (KeyboardInterrupt, TerminationSignal):
                for process in active_children():  # they do not hear Ctrl-C, and this process would wait for them
                    process.terminate()
                raise
            except BrokenProcessPool:
                say(f"a worker died; of its {len(part)} candidates those without answers are asked here")
                self.workers[n].start()
            else:
                yield from zip(part, found, strict=True)


class Process:
    """A process with an asker of its own, which is opened at its first work and ends with the process that made it."""

    def __init__(self, runtime: dict[str, Any], store: Path, names: tuple[str, ...]) -> None:
        self.opened = runtime, store, names
        self.start()

    def start(self) -> None:
        """Start the process, anew where it has died."""
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=self.opened)

    def ask(self, work: Sequence[Work]) -> Future[list[Asked]]:
        """Have it ask recipes, and say what it asked."""
        try:
            return self.pool.submit(_ahead, work)
        except BrokenProcessPool:  # died at rest
            self.start()
            return self.pool.submit(_ahead, work)


_own: list[Asker] = []  # a process's


def _begin(runtime: dict[str, Any], store: Path, names: tuple[str, ...]) -> None:
    parent = parent_process()
    if parent is None:
        raise RuntimeError("a worker is a child of the process that searches")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that searches
    Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    _own.append(open_asker(runtime, store, names))


def _ahead(work: Sequence[Work]) -> list[Asked]:
    asker = _own[0]
    asker.expect([recipe for recipe, _ in work], [item for _, items in work for item in items])
    return [asker.ask(recipe, items) for recipe, items in work]
