"""Workers on any machines, by a Dask scheduler's address, each with a live model of its own.

A worker is `dask worker ADDRESS --nthreads 1`, started in a clone of the repository that has the data. It answers by
the driver's parameters, and only where its code, its models, and what else answers depend on are the driver's. A
candidate is one task: of a worker that dies Dask gives it to another. The answers come to the driver, which keeps them.

`distributed` itself and not prefect-dask: its task runner runs Prefect tasks alone, which need a Prefect server, and a
search works without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from flows.asking import open_asker
from flows.stage import say
from merge3.asker import Asked, Asker
from merge3.items import Item
from merge3.recipe import Recipe

PATIENCE = 10  # seconds: for the scheduler to answer, and for a worker to come back where none is left
PACKAGES = ("numba", "numpy", "tokenizers", "transformers")  # torch is in the identity, where it counts


def _code() -> dict[str, str]:
    root, total = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for folder in ("flows", "merge3") for path in (root / folder).rglob("*.py")):
        total.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return {"code": total.hexdigest()[:12], **{name: version(name) for name in PACKAGES}}


CODE = _code()  # as it was when this process read it


@dataclass(frozen=True)
class Driver:
    """What a worker must be like to answer in the driver's place."""

    runtime: dict[str, Any]
    names: tuple[str, ...]
    threads: int
    code: dict[str, str]
    models: dict[str, str]  # fingerprints of base and experts
    identity: dict[str, Any]  # what answers depend on beside, see `Asker`


class Cluster:
    """The workers of a Dask scheduler; those that come while the search runs, too."""

    def __init__(self, address: str, runtime: Mapping[str, Any], names: Sequence[str], asker: Asker) -> None:
        """Have every worker open its models, and be what `asker` is.

        Raises:
            ValueError: Dask is not installed, the scheduler does not answer or has no workers, or some are refused.
        """
        try:
            import distributed
        except ImportError as error:
            raise ValueError(f"{address} needs Dask: pip install distributed") from error
        self.dask = distributed
        self.driver = Driver(dict(runtime), tuple(names), torch.get_num_threads(), CODE, _models(asker), asker.identity)
        try:
            self.client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"no Dask scheduler answers at {address}: start it with `dask scheduler`") from error
        if not (workers := self._workers()):
            raise ValueError(f"{address} has no workers: start them with `dask worker {address} --nthreads 1`")
        opening = {self.client.submit(_open, self.driver, workers=[worker], pure=False): worker for worker in workers}
        refused = {opening[future]: error for future, error in self._ended(list(opening)) if error is not None}
        if refused:
            raise ValueError("; ".join(f"Dask worker {name} is refused: {refused[name]}" for name in sorted(refused)))
        say(f"{len(workers)} Dask workers at {address}")

    def ask(self, work: Mapping[str, tuple[Recipe, list[Item]]]) -> Iterator[tuple[str, Asked]]:
        """As `team.Crew.ask`; what kills every worker that is asked it does not come.

        Raises:
            ValueError: a worker that came later is refused.
        """
        if self.client.status != "running":
            return
        futures = {self.client.submit(_ask, self.driver, *each, pure=False): name for name, each in work.items()}
        for future, error in self._ended(list(futures)):
            if error is None:
                yield futures[future], future.result()
            elif isinstance(error, self.dask.scheduler.KilledWorker):
                say(f"candidate {futures[future][:8]} ended every worker that was asked it; it is asked here")
            else:
                raise ValueError(f"a Dask worker could not answer: {error}") from error

    def _workers(self) -> list[str]:
        return list(self.client.scheduler_info(n_workers=-1)["workers"])

    def _ended(self, futures: Sequence[Any]) -> Iterator[tuple[Any, BaseException | None]]:
        """Tasks as they end, with their errors; none any more where no worker is left to do them."""
        pending, idle = set(futures), 0
        try:
            while pending:
                try:
                    with self.client.as_current():
                        done, pending = self.dask.wait(list(pending), PATIENCE, return_when="FIRST_COMPLETED")
                except self.dask.TimeoutError:
                    done = set()
                yield from ((future, future.exception() if future.status == "error" else None) for future in done)
                idle = 0 if done or self._workers() else idle + 1
                if idle > 1:
                    say(f"no Dask worker is left; {len(pending)} candidates are asked here")
                    self.client.cancel(list(pending))
                    return
        except (OSError, self.dask.CancelledError, self.dask.client.FutureCancelledError):
            say("the Dask scheduler has gone away; the work goes on here")
            self.client.close()


_own: dict[str, Asker] = {}  # a worker's one asker, by its driver
_LOCK = Lock()  # there is one live model, also where a worker has several threads


def _open(driver: Driver) -> None:
    """Be a worker of this driver.

    Raises:
        ValueError: this process would not answer as the driver does.
    """
    with _LOCK:
        _asker(driver)


def _ask(driver: Driver, recipe: Recipe, items: list[Item]) -> Asked:
    """Ask a recipe.

    Raises:
        ValueError: as `_open`.
    """
    with _LOCK:
        return _asker(driver).ask(recipe, items)


def _asker(driver: Driver) -> Asker:
    from distributed import get_worker

    if (name := repr(driver)) not in _own:
        _own.clear()
        _same(CODE, driver.code, "update both to one commit and one requirements.lock")
        torch.set_num_threads(driver.threads)
        made = open_asker(driver.runtime, Path(get_worker().local_directory, "answers"), driver.names)
        _same(_models(made), driver.models, "dvc pull brings those of the repository")
        _same(made.identity, driver.identity, "take the same kind of machine, or runtime.portable: true")
        _own[name] = made
    return _own[name]


def _same(here: Mapping[str, Any], there: Mapping[str, Any], remedy: str) -> None:
    """Refuse to be another than the driver.

    Raises:
        ValueError: something differs.
    """
    for name in [name for name in here if here[name] != there.get(name)]:
        raise ValueError(f"its {name} is {here[name]}, the driver's {there.get(name)}; {remedy}")


def _models(asker: Asker) -> dict[str, str]:
    return {"base": asker.identity["base"], **asker.merger.fingerprints}
