"""A search by several processes, one of which dies: it goes the way it goes alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from test_flows import done, here  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[1]
WRITTEN = ("history.csv", "finalists.csv", "winner.json")


def test_two_workers_of_which_one_is_killed_search_as_one_does(here: Path) -> None:  # noqa: F811
    alone = {name: (here / "data/evolve" / name).read_bytes() for name in WRITTEN}
    ledger = json.loads((here / "data/evolve/ledger.json").read_text())
    shutil.rmtree(here / "data/evolve")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MERGE3_WORKERS": "2"}
    search = subprocess.Popen(
        [sys.executable, "-m", "flows.evolve"], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not list(here.glob("data/evolve/answers/*/*.jsonl")):
        assert search.poll() is None, search.communicate()[1]
        time.sleep(0.005)
    workers = [p for p in psutil.Process(search.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    said = search.communicate()[1]
    assert search.returncode == 0, said
    assert {name: (here / "data/evolve" / name).read_bytes() for name in WRITTEN} == alone
    assert not any(worker.is_running() for worker in workers)
    spent = json.loads((here / "data/evolve/ledger.json").read_text())["this_run"]["tokens"]
    assert 0 < spent <= ledger["this_run"]["tokens"]
