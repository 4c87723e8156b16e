"""Serving: a Prefect server, its deployments, runs by schedule and by its API, and what watching costs a search.

python benchmarks/serving.py [FOLDER]    # FOLDER: screenshots of the UI's pages, where Chromium is installed
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml
from figures import Figure, command_line, publish

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

import world  # noqa: E402
from conftest import byte_tokenizer, save_models  # noqa: E402

WAIT = 1800  # seconds for what takes some, on a machine that may be busy
PAGE = 30  # seconds for a page of the UI
REPEATS = 3
BUSY = 503
DEMONSTRATION = 240.0  # seconds of its search, 120 candidates, on the fastest machine it was measured on

T = TypeVar("T")


def until(what: str, found: Callable[[], T | None]) -> T:
    """Wait for something.

    Raises:
        TimeoutError: it does not come.
    """
    begin = time.monotonic()
    while time.monotonic() - begin < WAIT:
        if (value := found()) is not None:
            print(f"{what}: after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
            return value
        time.sleep(1)
    raise TimeoutError(what)


class Server:
    """A Prefect server on a free port of this machine alone, the world's deployments, and its API."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "PREFECT_RUNNER_POLL_FREQUENCY": "2",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = (folder / "log").open("w")
        self.server = self.start(folder, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))

    def start(self, folder: Path, *command: str) -> subprocess.Popen[bytes]:
        """Start a process that knows the server."""
        return subprocess.Popen(
            command, cwd=folder, env=self.environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def answers(self) -> bool:
        """Whether the server is there."""
        try:
            return httpx.get(f"{self.url}/api/health").is_success
        except httpx.TransportError:
            return False

    def post(self, path: str, **content: Any) -> Any:
        """Ask the API; again while its database is busy with a run, as Prefect's own client does."""
        while (answer := httpx.post(f"{self.url}/api/{path}", json=content, timeout=30)).status_code == BUSY:
            time.sleep(1)
        answer.raise_for_status()
        return answer.json()

    def deployments(self) -> dict[str, str]:
        """Ids of the deployments by name."""
        return {row["name"]: row["id"] for row in self.post("deployments/filter")}

    def ended(self, **chosen: Any) -> dict[str, Any] | None:
        """A run among the chosen that is completed.

        Raises:
            RuntimeError: one failed.
        """
        rows = self.post("flow_runs/filter", **chosen)
        if bad := [row for row in rows if row["state_type"] in ("FAILED", "CRASHED")]:
            raise RuntimeError(f"{bad[0]['name']}: {bad[0]['state']['message']}")
        return next((row for row in rows if row["state_type"] == "COMPLETED"), None)

    def run(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        """Start a deployment as the UI does, and wait for its end."""
        made = self.post(f"deployments/{self.deployments()[deployment]}/create_flow_run", parameters=parameters)
        chosen = {"flow_runs": {"id": {"any_": [made["id"]]}}}
        return until(f"{deployment} {parameters}", lambda: self.ended(**chosen))

    def tasks(self, run: str) -> list[dict[str, Any]]:
        """The tasks of a run."""
        return self.post("task_runs/filter", flow_runs={"id": {"any_": [run]}}, limit=200)

    def artifacts(self, run: str) -> list[dict[str, Any]]:
        """The artifacts of a run."""
        return self.post("artifacts/filter", flow_runs={"id": {"any_": [run]}}, limit=200)

    def shot(self, page: str, file: Path) -> None:
        """A screenshot of a page of the UI."""
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,1300"]
        command += [f"--user-data-dir={file.parent / 'profile'}", f"--virtual-time-budget={PAGE * 1000}"]
        command += [f"--screenshot={file}", f"{self.url}/{page}"]
        subprocess.run(command, check=True, capture_output=True, timeout=WAIT)


def changed(folder: Path, **evolve: Any) -> None:
    """Change parameters of the search."""
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["evolve"].update(evolve)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def seconds(folder: Path, environment: dict[str, str]) -> float:
    """Seconds of a search from nothing, its start left out."""
    shutil.rmtree(folder / "data/evolve", ignore_errors=True)
    code = """
import time
from flows.evolve import evolve
from flows.stage import arguments, call, read_params
values = arguments(evolve, read_params())
begin = time.perf_counter()
call(evolve, **values)
print(time.perf_counter() - begin)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return float(ended.stdout.splitlines()[-1])


def main() -> None:
    """Let everything happen, and say what did."""
    parser = command_line(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="of the screenshots")
    shots = parser.parse_args().folder
    figures: list[Figure] = []

    def check(figure: str, holds: bool) -> None:
        print(f"{'holds' if holds else 'FAILS'}  {figure}", file=sys.stderr, flush=True)
        figures.append(Figure(figure, float(holds), "", 1))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = folder / "world"
        here.mkdir()
        save_models(here / "models", byte_tokenizer())
        world.write(here, world.params({kind: Path("models", kind) for kind in ("base", "first", "second")}))
        world.repository(here)
        server = Server(folder)
        processes = [server.server]
        try:
            until("server", lambda: server.answers() or None)
            processes.append(server.start(here, sys.executable, "-m", "flows.serve"))
            until("deployments", lambda: len(server.deployments()) == 4 or None)
            check("four deployments: nightly, experiment, search, share", len(server.deployments()) == 4)
            hosts = {
                c.laddr.ip
                for p in (
                    psutil.Process(server.server.pid),
                    *psutil.Process(server.server.pid).children(recursive=True),
                )
                for c in p.net_connections()
                if c.status == psutil.CONN_LISTEN
            }
            check("the server listens on loopback alone", hosts == {"127.0.0.1"})

            nightly = server.deployments()["nightly"]
            every = {"schedule": {"interval": 3600, "anchor_date": time.strftime("%Y-%m-%dT%H:%M:%SZ", soon())}}
            scheduled = httpx.post(
                f"{server.url}/api/deployments/{nightly}/schedules", json=[{**every, "active": True}]
            )
            scheduled.raise_for_status()
            chosen = {"deployments": {"id": {"any_": [nightly]}}}
            run = until("a scheduled run", lambda: server.ended(**chosen))
            httpx.delete(f"{server.url}/api/deployments/{nightly}/schedules/{scheduled.json()[0]['id']}")
            check("a scheduled run fires and completes", run["auto_scheduled"])
            stages = {row["name"] for row in server.post("flows/filter")}
            check("every stage is a flow run", set(world.STAGES) <= stages)
            check("and a task of the pipeline's", {t["name"] for t in server.tasks(run["id"])} == set(world.STAGES))
            report = [a for a in server.post("artifacts/filter") if a["key"] == "report"]
            check("the report is an artifact", "evolved merge" in report[0]["data"])

            run = server.run("search", changes={"generations": 4})
            history = (here / "data/evolve/history.csv").read_text().splitlines()
            check("a run with changed parameters completes", len(history) == 1 + 4 * 4)
            names = Counter(task["name"].split()[0] for task in server.tasks(run["id"]))
            check("generations and candidates are tasks", names["generation"] == 4 and names["candidate"] == 16)
            finalists = Counter(task["name"] for task in server.tasks(run["id"]) if task["name"].startswith("finalist"))
            check("finalists' tasks have names of their own", set(finalists.values()) == {1} and len(finalists) > 2)
            kinds = {(a["key"], a["type"]) for a in server.artifacts(run["id"])}
            wanted = {("evolve-history", "table"), ("evolve-finalists", "table"), (None, "progress")}
            check("progress and tables are artifacts", kinds == wanted)
            again = server.run("search", changes={"generations": 4})
            states = Counter(t["state_name"] for t in server.tasks(again["id"]) if t["name"].startswith("candidate"))
            check("candidates answered before are Cached", states == {"Cached": 16})

            subprocess.run(["git", "add", "--all"], cwd=here, check=True)
            subprocess.run(["git", "commit", "--quiet", "--message", "Run"], cwd=here, check=True)
            server.run("experiment", changes={"evolve.generations": 5})
            values = yaml.safe_load((here / "params.yaml").read_text())
            check("an experiment completes", values["evolve"]["generations"] == 5)
            if shots and shutil.which("chromium"):
                shots.mkdir(parents=True, exist_ok=True)
                for page, file in (
                    (f"runs/flow-run/{run['id']}", "run"),
                    (f"runs/flow-run/{again['id']}", "cached"),
                    ("artifacts", "artifacts"),
                    ("artifacts/key/report", "report"),
                    ("deployments", "deployments"),
                    (f"deployments/deployment/{server.deployments()['search']}/run", "form"),
                ):
                    server.shot(page, shots / f"{file}.png")

            changed(here, generations=15, population=8)
            alone = {k: v for k, v in server.environment.items() if k != "PREFECT_API_URL"}
            pairs = [(seconds(here, alone), seconds(here, server.environment)) for _ in range(REPEATS)]
            added = min(b for _, b in pairs) - min(a for a, _ in pairs)
            figures.append(Figure("what watching costs a candidate, with all tasks of its search", added / 120, "s"))
            share = added / DEMONSTRATION
            figures.append(Figure("what watching adds to the demonstration's search", share, "share", 0.05, below=True))
        finally:
            for process in reversed(processes):
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)
            if shots:
                shutil.copy(folder / "log", shots / "log")
    publish("serving", figures)


def soon() -> time.struct_time:
    """A few seconds from now, in UTC."""
    return time.gmtime(time.time() + 8)


if __name__ == "__main__":
    main()
