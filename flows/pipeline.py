"""The whole pipeline as one Prefect flow, for schedules: DVC decides which stages run, each a task and a flow run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from flows.stage import do, main, say, served

GRACE = 8  # seconds until a command that does not end is told again; Prefect kills a cancelled run after 30
ANSWERS = Path(".dvc", "tmp", "answers")  # of experiments, whose copies DVC removes
STAGE = re.compile(r"Running stage '([^']+)':")


@flow
def pipeline() -> None:
    """Run `dvc repro`.

    Raises:
        ValueError: a stage failed; what it said stands above.
    """
    run("dvc", "repro")


@flow
def experiment(changes: dict[str, Any]) -> None:
    """Run `dvc exp run` with changed parameters, `{"evolve.generations": 20}`; `dvc exp show` has them side by side.

    In a copy of its own: parameters and results here stay as they are. `dvc exp apply NAME` takes it over. Its answers
    are kept here, too, as they come: where it does not end well DVC removes the copy.

    Raises:
        ValueError: there is no such parameter, or a stage failed; what it said stands above.
    """
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changes.items()}
    given = (f"--set-param={name}={text}" for name, text in texts.items())
    place = os.environ.get("MERGE3_SHARED") or str(ANSWERS.resolve())
    run("dvc", "exp", "run", "--temp", *given, MERGE3_SHARED=place)


def run(*command: str, **variables: str) -> None:
    """Run a command, whose lines go to the log of the flow run if there is one; DVC's stages are tasks there.

    Its environment is this one with `variables`.

    Raises:
        ValueError: it ended with another status than 0.
    """
    environment = {**os.environ, **variables}
    if not served():
        if status := subprocess.run(command, check=False, env=environment).returncode:
            raise ValueError(f"{' '.join(command)} ended with status {status}")
        return
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, env=environment, **how) as running:
        try:
            stage = told(command, running)
            while stage:
                stage = do(stage, partial(told, command, running))
        except BaseException:  # cancelled, for instance: what it started ends with it
            end(running)
            raise


def end(running: subprocess.Popen[str]) -> None:
    """End a command and all that it started: asked as by Ctrl-C, told, killed."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(running.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            running.wait(GRACE)
            return


def told(command: Sequence[str], running: subprocess.Popen[str]) -> str | None:
    """Say what a command prints, no empty lines, until a stage of DVC begins; the stage, or None where all has ended.

    Raises:
        ValueError: it ended with another status than 0.
    """
    for line in running.stdout or ():
        if line := line.rstrip():
            say(line)
        if found := STAGE.match(line):
            return found[1]
    if status := running.wait():
        raise ValueError(f"{' '.join(command)} ended with status {status}")
    return None


if __name__ == "__main__":
    main(pipeline)
