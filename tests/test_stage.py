from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from prefect import flow

from flows import stage
from merge3.estimate import Estimate
from merge3.fitness import Evaluation
from merge3.ledger import Cost


@flow
def example(seed: int, size: int) -> None:
    """A stage with one parameter of its own."""


def test_arguments_are_the_section_and_the_shared_ones_that_are_named() -> None:
    assert stage.arguments(example, {"seed": 1, "study": "x", "example": {"size": 2}}) == {"seed": 1, "size": 2}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"seed": 1, "example": {"size": 2, "sise": 3}}, "example has no parameter 'sise'; it has \\['size'\\]"),
        ({"seed": 1, "example": {}}, "example.size is missing"),
        ({"seed": 1}, "example.size is missing"),
        ({"example": {"size": 2}}, "seed is missing"),
    ],
)
def test_parameters_too_many_or_too_few_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage.arguments(example, params)


def test_an_unknown_section_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("seed: 0\nextratc: {}\n")
    with pytest.raises(ValueError, match="unknown section 'extratc'"):
        stage.read_params()


def test_json_is_complete_or_not_there(tmp_path: Path) -> None:
    stage.write_json(tmp_path / "a" / "b.json", {"é": [1, None]})
    assert stage.read_json(tmp_path / "a" / "b.json") == {"é": [1, None]}
    with pytest.raises(TypeError):
        stage.write_json(tmp_path / "a" / "b.json", {"x": object()})
    assert stage.read_json(tmp_path / "a" / "b.json") == {"é": [1, None]}


def test_progress_prints_few_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with stage.progress("work", 200) as advance:
        for _ in range(200):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == stage.LINES
    assert lines[0].startswith("work: 20/200, ")
    assert lines[-1].startswith("work: 200/200, ")


TOLD = "generation 4, best estimate 61.0 % [56.0, 66.0], 50 tokens/s, 1 kept"


def search() -> None:
    """A generation of three candidates, the second kept from before."""

    def candidate(score: float, tokens: int) -> None:
        estimate = Estimate(score, score - 0.05, score + 0.05, 0.03)
        made = Evaluation(estimate, Cost(tokens, answering_seconds=tokens / 50))
        stage.do("candidate", lambda: made, lambda made: made.cost.tokens == 0)
        advance(1)

    with stage.progress("evolve: candidates", 3) as advance:
        stage.do("generation 4", lambda: [candidate(0.61, 100), candidate(0.58, 0), candidate(0.5, 400)])


def test_plain_lines_tell_generation_best_speed_and_what_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    search()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[0] for line in lines] == [f"evolve: candidates: {n}/3" for n in (1, 2, 3)]
    assert lines[-1].endswith(f"; {TOLD}")


def test_a_terminal_shows_the_same_under_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        search()
        terminal.flush()
        os.set_blocking(screen.fileno(), False)
        seen = b"".join(iter(lambda: screen.read(100_000), None)).decode()  # a read gives a page at most
    assert "3/3" in seen
    assert "best estimate 61.0 % [56.0, 66.0], 50 tokens/s, 1 kept" in seen


def test_what_a_stage_tells_begins_again_with_each_progress() -> None:
    for _ in range(2):
        with stage.progress("work", 1):
            assert str(stage.WATCH) == ""
            stage.do("part", lambda: 1, lambda made: True)
            assert str(stage.WATCH) == "1 kept"


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


def test_no_tool_reports_to_anyone() -> None:
    names = ["PREFECT_SERVER_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"]
    code = f"import flows, os; print(*(os.environ[name] for name in {names}))"
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": "."}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert ended.stdout.split() == ["false", "1", "1"]
    assert "analytics = false" in Path(".dvc/config").read_text()
