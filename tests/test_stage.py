from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import flow

from flows import stage


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
