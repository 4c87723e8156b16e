"""A search by several workers, one of which dies: it goes the way it goes alone. Workers that differ are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import world
from test_flows import done, here  # noqa: F401 - fixtures

from flows.team import open_team

ROOT = Path(__file__).parents[1]
WRITTEN = ("history.csv", "finalists.csv", "winner.json")


def test_four_workers_of_which_one_is_killed_search_as_one_does(here: Path) -> None:  # noqa: F811
    alone = {name: (here / "data/evolve" / name).read_bytes() for name in WRITTEN}
    ledger = json.loads((here / "data/evolve/ledger.json").read_text())
    shutil.rmtree(here / "data/evolve")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MERGE3_WORKERS": "4"}
    search = subprocess.Popen(
        [sys.executable, "-m", "flows.evolve"], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not list(here.glob("data/evolve/answers/*/*.jsonl")):
        assert search.poll() is None, search.communicate()[1]
        time.sleep(0.005)
    workers = [p for p in psutil.Process(search.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 4
    workers[0].kill()
    said = search.communicate()[1]
    assert search.returncode == 0, said
    assert {name: (here / "data/evolve" / name).read_bytes() for name in WRITTEN} == alone
    assert not any(worker.is_running() for worker in workers)
    spent = json.loads((here / "data/evolve/ledger.json").read_text())["this_run"]["tokens"]
    assert 0 < spent <= ledger["this_run"]["tokens"]


SLOW = """\
import os, signal, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from flows.team import Process, Processes

class Slow(Process):
    def start(self):
        self.pool = ProcessPoolExecutor(1, get_context("spawn"))
    def ask(self, work):
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return self.pool.submit(time.sleep, 600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    team = object.__new__(Processes)
    team.workers = [Slow({}, Path("."), ())]
    list(team.ask({"a": None}))
"""


def test_a_search_that_is_interrupted_does_not_wait_for_its_workers(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command, environment = [sys.executable, str(tmp_path / "slow.py")], {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "KeyboardInterrupt" in ended.stderr
    assert ended.returncode != 0


# --- on other machines


class Dask:
    """A scheduler on loopback, and workers that are started in folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self.start("dask_scheduler", folder, ROOT, "--port", "0", "--scheduler-file", str(file))
        while not file.exists():
            time.sleep(0.02)
        self.address = json.loads(file.read_text())["address"]

    def start(self, what: str, folder: Path, code: Path, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{what}", *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        with (self.folder / "log").open("a") as log:
            environment = {**os.environ, "PYTHONPATH": str(code)}
            self.processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
        return self.processes[-1]

    def worker(self, folder: Path, code: Path = ROOT) -> subprocess.Popen[bytes]:
        place = ("--local-directory", str(self.folder), "--no-nanny", "--nthreads", "1")
        return self.start("dask_worker", folder, code, self.address, *place)

    @property
    def registered(self) -> list[str]:
        """The lines in which a worker said that it had found the scheduler."""
        return [line for line in (self.folder / "log").read_text().splitlines() if "Registered to:" in line]

    def ready(self, count: int) -> None:
        """Wait for so many workers, since the scheduler began."""
        while len(self.registered) < count:
            time.sleep(0.02)

    def search(self, folder: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MERGE3_WORKERS": self.address}
        command = [sys.executable, "-m", "flows.evolve"]
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    if find_spec("distributed") is None:
        pytest.skip("Dask is not installed: pip install distributed")
    made = Dask(tmp_path_factory.mktemp("dask"))
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def test_two_dask_workers_of_which_one_is_killed_search_as_one_process_does(dask: Dask, here: Path) -> None:  # noqa: F811
    alone = {name: (here / "data/evolve" / name).read_bytes() for name in WRITTEN}
    ledger = json.loads((here / "data/evolve/ledger.json").read_text())
    shutil.rmtree(here / "data/evolve")
    first, second = dask.worker(here), dask.worker(here)
    dask.ready(2)
    search = dask.search(here)
    while not list(here.glob("data/evolve/answers/*/*.jsonl")):
        assert search.poll() is None, search.communicate()[1]
        time.sleep(0.005)
    first.kill()
    said = search.communicate()[1]
    assert search.returncode == 0, said
    assert "2 Dask workers at" in said
    assert {name: (here / "data/evolve" / name).read_bytes() for name in WRITTEN} == alone
    spent = json.loads((here / "data/evolve/ledger.json").read_text())["this_run"]["tokens"]
    assert 0 < spent <= ledger["this_run"]["tokens"]
    for process in (first, second, search):
        process.kill()
        process.wait()


def test_workers_of_other_code_or_models_are_refused(
    dask: Dask,
    here: Path,  # noqa: F811
    saved: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = tmp_path / "code"
    for folder in ("flows", "merge3"):
        shutil.copytree(ROOT / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (code / "merge3" / "grading.py").open("a") as module:
        module.write("# another\n")
    other = tmp_path / "other"
    shutil.copytree(here, other)
    monkeypatch.chdir(other)
    values = world.params(saved | {"second": saved["base"]})
    world.run(values, "experts")
    monkeypatch.chdir(here)
    before = len(dask.registered)
    workers = dask.worker(here, code), dask.worker(other)
    dask.ready(before + 2)
    search = dask.search(here)
    said = search.communicate()[1]
    assert search.returncode == 1
    assert said.count("is refused: ") == 2
    assert "its code is " in said
    assert "its second is " in said
    assert "Traceback" not in said
    for process in workers:
        process.kill()
        process.wait()


@pytest.mark.parametrize("wanted", ["many", "-1", "127.0.0.1"])
def test_workers_are_a_number_or_an_address(wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGE3_WORKERS", wanted)
    with pytest.raises(ValueError, match=f"MERGE3_WORKERS must be a number of processes, or .*{wanted}"):
        open_team({}, tmp_path, [])


def test_a_second_machine_asks_nothing_again(
    here: Path,  # noqa: F811
    saved: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = (here / "data/evolve/history.csv").read_bytes()
    monkeypatch.setenv("MERGE3_SHARED", f"file://{tmp_path / 'shared'}")
    world.run(world.params(saved), "evolve")
    shutil.rmtree("data/evolve")
    with warnings.catch_warnings(action="error"):
        world.run(world.params(saved), "evolve")
    assert (here / "data/evolve/history.csv").read_bytes() == before
    assert json.loads((here / "data/evolve/ledger.json").read_text())["this_run"]["tokens"] == 0
