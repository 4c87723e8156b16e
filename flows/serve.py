"""Deployments for the Prefect UI: the nightly pipeline, an experiment, the search alone, and sharing.

Where no server is configured (`PREFECT_API_URL`) one is started on this machine alone, and ends with this process.

nightly      `dvc repro` at 2:00 UTC
experiment   `dvc exp run` with parameters changed in the UI
search       the stage evolve alone, its parameters those of params.yaml at that time unless changed in the UI
share        take what others pushed, run, give back
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import psutil
from filelock import FileLock, Timeout
from prefect import Flow, flow, get_client, serve
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import Crashed

from flows.evolve import evolve
from flows.pipeline import experiment, pipeline
from flows.share import share
from flows.stage import arguments, call, read_params, typed, unreachable

NIGHTLY = "0 2 * * *"  # UTC
HOST, PORT = "127.0.0.1", 4200
WAIT = 60  # seconds that a server is given to start
NO_END = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
GOING = FlowRunFilterState(type=FlowRunFilterStateType(any_=NO_END))
UNDERWAY = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=NO_END)))


def main() -> None:
    """Serve the deployments until interrupted; one run at a time, as there is one device.

    Raises:
        SystemExit: another process serves them, the configured server does not answer or refuses, or none can be
            started.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # a closed terminal is as Ctrl-C; under nohup it is ignored
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGINT))
    configured = get_current_settings().api.url
    with only_one(), nullcontext(configured) if configured else own_server() as url:
        if fault := unreachable(url):
            sys.exit(f"the Prefect server at {url} does not answer ({fault}): start it, or unset PREFECT_API_URL")
        try:
            with temporary_settings({PREFECT_API_URL: url}):
                serve(
                    pipeline.to_deployment("nightly", cron=NIGHTLY),
                    experiment.to_deployment("experiment", parameters={"changes": {"evolve.generations": 20}}),
                    search.to_deployment("search", parameters={"changes": {"generations": 30}}),
                    share.to_deployment("share"),
                    limit=1,
                )
        except httpx.HTTPStatusError as error:
            refused = f"{error.response.status_code} {error.response.reason_phrase}"
            sys.exit(f"what answers at {url} takes no deployments ({refused}): is it a Prefect server, and yours?")


def end_parts(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:  # noqa: ARG001  # as Prefect's hooks are
    """Say of the flows and tasks that a run had underway when it died that they are no more: they cannot say it."""
    with get_client(sync_client=True) as client:
        runs = [flow_run.id]
        while runs:
            parents = FlowRunFilterParentFlowRunId(any_=runs)
            within = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=GOING, parent_flow_run_id=parents))
            for run in within:
                client.set_flow_run_state(run.id, ended(), force=True)
            theirs = FlowRunFilter(id=FlowRunFilterId(any_=runs))
            for part in client.read_task_runs(flow_run_filter=theirs, task_run_filter=UNDERWAY):
                client.set_task_run_state(part.id, ended(), force=True)
            runs = [run.id for run in within]


def ended() -> State:
    """The state, from now on, of what could not say itself that it ended."""
    return Crashed(message="It ended with what served it; its answers are kept.")


@flow(on_crashed=[end_parts])
def search(changes: dict[str, Any]) -> None:
    """Run the stage evolve with the parameters of params.yaml and these changed, `{"generations": 30}`.

    Raises:
        ValueError: there is no such parameter, or it is of another type.
    """
    given = arguments(evolve, read_params())
    if unknown := sorted(set(changes) - set(given)):
        raise ValueError(f"evolve has no parameter {unknown[0]!r}; it has {sorted(given)}")
    call(evolve, **typed(evolve, given | changes))


@contextmanager
def only_one() -> Iterator[None]:
    """Be the only process that serves on this machine: of two, in one clone or two, either would take any run.

    Raises:
        SystemExit: another serves.
    """
    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(home / "merge3.lock").acquire(blocking=False)
    except Timeout:
        sys.exit("the deployments are served already, from this clone or another: end that `make serve` first")
    with held:
        yield


@contextmanager
def own_server() -> Iterator[str]:
    """A Prefect server on loopback; yields its API's address. Another's that answers there is taken, and stays.

    Raises:
        SystemExit: it does not start.
    """
    url, noted = f"http://{HOST}:{PORT}/api", get_current_settings().home / "merge3.server"
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]  # else it asks in a terminal which profile to change
    command = [*prefect, "server", "start", "--host", HOST, "--port", str(PORT)]
    end_left_server(noted, command)
    if unreachable(url) is None:
        yield url
        return
    server = subprocess.Popen(command, start_new_session=True)  # an interrupt ends it after what it serves
    try:
        noted.write_text(str(server.pid))
        begin = monotonic()
        while unreachable(url):
            if server.poll() is not None or monotonic() - begin > WAIT:
                sys.exit("the Prefect server does not start; what it said stands above")
            sleep(0.5)
        end_lost_runs(url)
        try:
            yield url
        finally:
            if unreachable(url) is None:
                end_lost_runs(url)
    finally:
        server.terminate()
        server.wait()
        noted.unlink(missing_ok=True)


def end_left_server(noted: Path, command: Sequence[str]) -> None:
    """End the server that was noted by an earlier `only_one`, killed since: nobody else would."""
    with suppress(FileNotFoundError, ValueError, psutil.Error):  # there is none, or it ends meanwhile
        server = psutil.Process(int(noted.read_text()))
        if server.cmdline()[1:] != list(command[1:]):  # another process has its number by now
            return
        print("an earlier `make serve` was killed, and its server still runs: it is ended first", flush=True)
        parts, begin = [server, *server.children(recursive=True)], monotonic()
        server.terminate()
        while monotonic() - begin < WAIT and server.status() != psutil.STATUS_ZOMBIE:  # nobody may reap it
            sleep(0.1)
        for part in parts:  # where it did not end
            with suppress(psutil.NoSuchProcess):
                part.kill()


def end_lost_runs(url: str) -> None:
    """Say of the deployments' runs that went on when what serves them ended, and of their parts, that they are no more.

    They could not say it themselves.
    """
    deployed = FlowRunFilterDeploymentId(is_null_=False)
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        lost = client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=deployed, state=GOING))
        for run in lost:
            client.set_flow_run_state(run.id, ended(), force=True)
        crashed = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])))
        for run in client.read_flow_runs(flow_run_filter=crashed, task_run_filter=UNDERWAY):
            end_parts(search, run, ended())
    for run in lost:
        print(f"run {run.name} had not ended when what serves it did: it is shown as Crashed, its answers are kept")


if __name__ == "__main__":
    main()
