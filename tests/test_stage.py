from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Annotated

import psutil
import pytest
from filelock import FileLock
from prefect import flow
from pydantic import Field

from flows import stage
from merge3.estimate import Estimate
from merge3.fitness import Evaluation
from merge3.ledger import Cost


@flow
def example(seed: int, size: int) -> None:
    """A stage with one parameter of its own."""


@flow
def search(seed: int, sigma: float, tokens: int | None, weights: list[float]) -> None:
    """A stage with parameters of several types."""


@flow
def ranges(
    seed: stage.Seed,
    count: stage.Count,
    hours: Annotated[float | None, Field(gt=0)],
    sigma: Annotated[float, Field(gt=0, le=1)],
    models: Annotated[dict[str, str] | None, Field(min_length=1)],
) -> None:
    """A stage whose parameters have ranges."""


def test_arguments_are_the_section_and_the_shared_ones_that_are_named() -> None:
    assert stage.arguments(example, {"seed": 1, "study": "x", "example": {"size": 2}}) == {"seed": 1, "size": 2}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"seed": 1, "example": {"size": 2, "sise": 3}}, "example has no parameter 'sise'; it has \\['size'\\]"),
        ({"seed": 1, "example": {}}, "example.size is missing"),
        ({"seed": 1}, "example.size is missing"),
        ({"example": {"size": 2}}, "seed is missing"),
        ({"seed": 1, "example": 2}, r"example must be a section with \['size'\], got 2"),
        ({"seed": 1, "example": {1: 2, "more": 3}}, "example has no parameter 1;"),
    ],
)
def test_parameters_too_many_or_too_few_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage.arguments(example, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "1"}, "params.yaml: seed must be int, got '1'"),
        ({"seed": True}, "seed must be int, got True"),
        ({"sigma": "2e-1"}, "search.sigma must be float, got '2e-1'"),  # YAML wants a point before the e
        ({"sigma": float("nan")}, "search.sigma must be float, got nan"),
        ({"tokens": 1.5}, r"search.tokens must be int \| null, got 1.5"),
        ({"weights": ["a"]}, r"search.weights must be list\[float\], got \['a'\]"),
        ({"weights": 1.0}, r"search.weights must be list\[float\], got 1.0"),
    ],
)
def test_a_parameter_of_another_type_is_named(changes: dict[str, object], message: str) -> None:
    given = {"seed": 1, "sigma": 1, "tokens": None, "weights": [0, 1.5]}
    assert stage.arguments(search, {"seed": 1, "search": {k: v for k, v in given.items() if k != "seed"}}) == given
    values = given | changes
    with pytest.raises(ValueError, match=message):
        stage.arguments(search, {"seed": values.pop("seed"), "search": values})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "params.yaml: seed must be 0 or more, got -1"),
        ({"count": 0}, "ranges.count must be 1 or more, got 0"),
        ({"count": "1"}, "ranges.count must be int, got '1'"),
        ({"hours": -1}, "ranges.hours must be above 0, got -1"),
        ({"hours": "1"}, r"ranges.hours must be float \| null, got '1'"),
        ({"sigma": 1.5}, "ranges.sigma must be 1 or less, got 1.5"),
        ({"models": {}}, "ranges.models must be 1 entry or more, got {}"),
    ],
)
def test_a_parameter_out_of_its_range_is_named(changes: dict[str, object], message: str) -> None:
    for given in ({"hours": None, "models": None}, {"hours": 0.5, "models": {"a": "b"}}):
        values = {"seed": 0, "count": 1, "sigma": 1, **given}
        assert stage.typed(ranges, values) == values
    with pytest.raises(ValueError, match=message):
        stage.typed(ranges, values | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 0\nextratc: {}\n", "unknown section 'extratc'"),
        (b"1: {}\nextratc: {}\n", "unknown section 1"),
        (b"", "must have sections, among"),
        (b"- seed", "must have sections, among"),
        (b"seed: [", "cannot be read as YAML: line 1, column 8: "),
        (b"seed: 0\nevolve: {sigma: 1,\n  sigma: 2}", "cannot be read as YAML: line 3, column 3: 'sigma' stands twice"),
        (b"seed: \xff", "cannot be read as YAML: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_no_parameters_is_refused(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=f"params.yaml.* {message}"):
        stage.read_params()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("params.yaml", "extract: {items: 3}", "its parameters in params.yaml were changed while it ran"),
        ("params.yaml", "extract: {items: 2}\nseed: 7", ""),
        ("code.py", "changed", "code.py, which it depends on, was changed while it ran"),
        ("data/items/new", "", "data/items/new, which it depends on, was changed while it ran"),
        ("data/extract", "", ""),
    ],
)
def test_a_stage_whose_parameters_or_dependencies_were_changed_while_it_ran_has_failed(
    file: str, text: str, said: str, tmp_path: Path
) -> None:
    """DVC notes both after a stage has ended, as if it had run by them."""
    (tmp_path / "params.yaml").write_text("extract: {items: 2}")
    (tmp_path / "dvc.yaml").write_text("stages: {extract: {deps: [code.py, data/items]}}")
    (tmp_path / "data" / "items").mkdir(parents=True)
    (tmp_path / "code.py").write_text("")
    code = (
        "from pathlib import Path; from prefect import flow; from flows.stage import main\n"
        f"@flow(name='extract')\ndef work(items: int): Path({file!r}).write_text({text!r})\n"
        "main(work)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert ended.returncode == bool(said)
    assert not said or f"extract: {said}; run it again" in ended.stderr


def test_a_stage_that_runs_out_of_memory_ends_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(made: object) -> None:
        raise MemoryError("not enough memory for a merge")

    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("evolve: {}")
    monkeypatch.setattr(stage, "call", call)
    monkeypatch.setattr(sys, "argv", ["flows.evolve"])
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    with pytest.raises(SystemExit, match="1"):
        stage.main(flow(name="evolve")(lambda: None))
    assert capsys.readouterr().err.startswith("evolve: not enough memory for a merge\n")


def test_where_there_are_no_parameters_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no params.yaml in {tmp_path}: run this in a clone"):
        stage.read_params()


def test_json_is_complete_or_not_there(tmp_path: Path) -> None:
    stage.write_json(tmp_path / "a" / "b.json", {"é": [1, None]})
    assert stage.read_json(tmp_path / "a" / "b.json") == {"é": [1, None]}
    with pytest.raises(TypeError):
        stage.write_json(tmp_path / "a" / "b.json", {"x": object()})
    assert stage.read_json(tmp_path / "a" / "b.json") == {"é": [1, None]}


@pytest.mark.parametrize(("name", "expected"), [("respond", True), ("pipeline", False)])
def test_a_stage_is_alone_on_its_data_folder(
    name: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone() -> bool:
        try:
            with stage.alone(name, wait=False):
                return False
        except ValueError:
            return True

    monkeypatch.chdir(tmp_path)
    assert stage.call(flow(alone, name=name)) is expected
    assert not alone()


def test_progress_prints_few_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with stage.progress("work", 200) as advance:
        for _ in range(200):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == stage.LINES
    assert lines[0].startswith("work: 20/200, ")
    assert lines[-1].startswith("work: 200/200, ")


TOLD = "generation 4, highest estimate 61.0 % [56.0, 66.0], 50 tokens/s, 1 kept"


def generation() -> None:
    """A generation of three candidates, the second kept from before."""

    def candidate(score: float, tokens: int) -> None:
        estimate = Estimate(score, score - 0.05, score + 0.05, 0.03)
        made = Evaluation(estimate, Cost(tokens, answering_seconds=tokens / 50))
        stage.do("candidate", lambda: made, lambda made: made.cost.tokens == 0)
        advance(1)

    with stage.progress("evolve: candidates", 3) as advance:
        stage.do("generation 4", lambda: [candidate(0.61, 100), candidate(0.58, 0), candidate(0.5, 400)])


def test_plain_lines_tell_generation_best_speed_and_what_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    generation()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[0] for line in lines] == [f"evolve: candidates: {n}/3" for n in (1, 2, 3)]
    assert lines[-1].endswith(f"; {TOLD}")


def test_a_terminal_shows_the_same_under_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        generation()
        terminal.flush()
        os.set_blocking(screen.fileno(), False)
        seen = b"".join(iter(lambda: screen.read(100_000), None)).decode()  # a read gives a page at most
    assert "3/3" in seen
    assert "highest estimate 61.0 % [56.0, 66.0], 50 tokens/s, 1 kept" in seen


def test_a_progress_on_a_server_ends_whole_though_less_was_done_than_might_have_been(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[float] = []
    monkeypatch.setattr(stage, "served", lambda: True)
    monkeypatch.setattr(stage, "PAUSE", 0)
    monkeypatch.setattr(stage, "create_progress_artifact", lambda share, description: shown.append(share) or "artifact")
    monkeypatch.setattr(stage, "update_progress_artifact", lambda artifact, share: shown.append(share))
    with stage.progress("work", 8) as advance:
        advance(2)
        advance(4)
    assert shown == [0, 25, 75, 100]
    with pytest.raises(KeyboardInterrupt), stage.progress("work", 8) as advance:
        raise KeyboardInterrupt(advance(4))
    assert shown[4:] == [0, 50]


def test_a_table_on_a_server_has_four_decimals_eight_letters_and_null_where_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(stage, "served", lambda: True)
    monkeypatch.setattr(stage, "create_table_artifact", lambda rows, key, description: shown.append(rows))
    stage.show_table("key", [{"phenotype": "abcdefghij", "score": 0.123456, "low": float("nan")}], "what it is")
    assert shown == [[{"phenotype": "abcdefgh", "score": 0.1235, "low": None}]]


def test_what_a_stage_tells_begins_again_with_each_progress() -> None:
    for _ in range(2):
        with stage.progress("work", 1):
            assert str(stage.WATCH) == ""
            stage.do("part", lambda: 1, lambda made: True)
            assert str(stage.WATCH) == "1 kept"


def test_of_parts_within_parts_the_outermost_is_told() -> None:
    with stage.progress("work", 1):
        assert stage.do("outer", lambda: stage.do("inner", lambda: str(stage.WATCH))) == "outer"


def test_a_part_that_fails_is_no_longer_at_work() -> None:
    with stage.progress("work", 1), pytest.raises(ZeroDivisionError):
        stage.do("part", lambda: 1 / 0)
    assert str(stage.WATCH) == ""


def test_without_a_server_a_stage_starts_none() -> None:
    code = (
        "import flows.stage as s; from prefect import flow\n"
        "@flow\ndef quick(): return 7\n"
        "assert not s.served(); assert s.call(quick) == 7\n"
        "print('done')"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API")}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**environment, "PYTHONPATH": "."}
    )
    assert ended.stdout.strip() == "done"
    assert "server" not in ended.stderr.lower()


class Other(BaseHTTPRequestHandler):
    """No Prefect server: it says that it is well, and knows nothing else."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - the library's name

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def other() -> Iterator[str]:
    """The address of a server that is not Prefect's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_a_stage_goes_on_where_what_answers_is_no_prefect_server(other: str, tmp_path: Path) -> None:
    code = (
        "import flows.stage as s; from prefect import flow\n"
        "@flow\ndef quick(): assert not s.served(); return 7\n"
        "assert s.call(quick) == 7\n"
    )
    home = {"PREFECT_API_URL": other, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": "."}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **home}
    )
    assert ended.returncode == 0, ended.stderr
    assert "the Prefect server does not take this run (" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_is_no_prefect_server_is_served_no_deployments(other: str, tmp_path: Path) -> None:
    home = {"PREFECT_API_URL": other, "PREFECT_HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "flows.serve"], capture_output=True, text=True, check=False, env={**os.environ, **home}
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith(
        f"what answers at {other} takes no deployments (404 Not Found): is it a Prefect server, and yours?\n"
    )
    assert "Traceback" not in ended.stderr


def test_who_serves_is_alone_as_either_of_two_would_take_the_others_runs(other: str, tmp_path: Path) -> None:
    home = {"PREFECT_API_URL": other, "PREFECT_HOME": str(tmp_path)}
    with FileLock(tmp_path / "merge3.lock"):
        ended = subprocess.run(
            [sys.executable, "-m", "flows.serve"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **home},
        )
    assert ended.returncode == 1
    assert ended.stderr.endswith("served already, from this clone or another: end that `make serve` first\n")


def test_a_server_of_ones_own_asks_nothing_in_a_terminal_and_ends_runs_that_were_lost(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    code = f"""
from prefect import Task, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Running
from flows import serve
serve.PORT = {port}
end, ends = serve.end_lost_runs, []
serve.end_lost_runs = lambda url: (ends.append(url), end(url))
with serve.own_server() as url, temporary_settings({{PREFECT_API_URL: url}}):
    assert len(ends) == 1
    place = serve.search.to_deployment("search").apply()
    with get_client(sync_client=True) as client:
        given = {{"parameters": {{"changes": {{}}}}}}
        runs = [client.create_flow_run_from_deployment(place, **given), client.create_flow_run(serve.search, **given)]
        within = client.create_task_run(Task(serve.evolve.fn), runs[0].id, "0")  # as a flow that a flow calls
        runs.append(client.create_flow_run(serve.evolve, parent_task_run_id=within.id))
        for run in runs:
            client.set_flow_run_state(run.id, Running(), force=True)
        killed = client.create_flow_run_from_deployment(place, **given)  # alone, which its server saw
        within = client.create_task_run(Task(serve.evolve.fn), killed.id, "0")
        called = client.create_flow_run(serve.evolve, parent_task_run_id=within.id)
        part = client.create_task_run(Task(serve.evolve.fn), called.id, "0", state=Running())
        client.set_flow_run_state(killed.id, Crashed(message="seen"), force=True)
        at_once, later = serve.search.on_crashed_hooks, [lambda *_: end(url)]
        for state, end_its in (Running(), at_once), (Running(), later), (Crashed(message="said"), later):
            client.set_flow_run_state(called.id, state, force=True)
            client.set_task_run_state(part.id, Running(), force=True)
            for hook in end_its:
                hook(serve.search, killed, killed.state)
            print("parts", client.read_flow_run(called.id).state_name, client.read_task_run(part.id).state_name)
            for run in runs:
                client.set_flow_run_state(run.id, Running(), force=True)
serve.end_lost_runs = lambda url: None
with serve.own_server() as url, temporary_settings({{PREFECT_API_URL: url}}):
    with get_client(sync_client=True) as client:
        print("up at", url, *(client.read_flow_run(run.id).state_name for run in runs))
"""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    environment = {**bare, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": ".", "TERM": "xterm"}
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "wb") as end:
        started = subprocess.Popen([sys.executable, "-c", code], stdin=end, stdout=end, stderr=end, env=environment)
    said = b""
    with os.fdopen(ours, "rb", buffering=0) as screen, suppress(OSError):  # at its end Linux has an error
        while part := screen.read(100_000):
            said += part
    assert started.wait() == 0, said.decode()
    assert f"up at http://127.0.0.1:{port}/api Crashed Running Crashed".encode() in said
    assert said.count(b"parts Crashed Crashed") == 3


def test_a_server_that_a_kill_left_ends_with_the_next_start_and_a_closed_terminal_ends_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    code = f"from flows import serve; serve.PORT = {port}; serve.serve = lambda *_, **__: print('up', flush=True) or "
    code += "serve.sleep(60); serve.main()"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    environment = {**bare, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": "."}

    def started() -> tuple[subprocess.Popen[str], str]:
        with (tmp_path / "said").open("w+") as file:
            serving = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file, env=environment)
            while serving.poll() is None and "up\n" not in (said := Path(file.name).read_text()):
                time.sleep(0.1)
        assert serving.poll() is None, said
        return serving, said

    first, _ = started()
    first.kill()
    first.wait()
    left = psutil.Process(int((tmp_path / "merge3.server").read_text()))
    assert stage.unreachable(f"http://127.0.0.1:{port}/api") is None
    second, said = started()
    assert "was killed, and its server still runs: it is ended first" in said
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    second.send_signal(signal.SIGHUP)
    second.wait()
    assert stage.unreachable(f"http://127.0.0.1:{port}/api")


def test_no_tool_reports_to_anyone() -> None:
    names = ["PREFECT_SERVER_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"]
    code = f"import flows, os; print(*(os.environ[name] for name in {names}))"
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": "."}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert ended.stdout.split() == ["false", "1", "1"]
    assert "analytics = false" in Path(".dvc/config").read_text()
