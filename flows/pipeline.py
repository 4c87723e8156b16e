"""The whole pipeline as one Prefect flow, for schedules: DVC decides which stages run, each a task and a flow run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from functools import partial
from typing import Any

from prefect import flow

from flows.stage import do, main, say, served

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

    Raises:
        ValueError: there is no such parameter, or a stage failed; what it said stands above.
    """
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changes.items()}
    run("dvc", "exp", "run", *(f"--set-param={name}={text}" for name, text in texts.items()))


def run(*command: str) -> None:
    """Run a command, whose lines go to the log of the flow run if there is one; DVC's stages are tasks there.

    Raises:
        ValueError: it ended with another status than 0.
    """
    if not served():
        if status := subprocess.run(command, check=False).returncode:
            raise ValueError(f"{' '.join(command)} ended with status {status}")
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        stage = told(command, running)
        while stage:
            stage = do(stage, partial(told, command, running))


def told(command: Sequence[str], running: subprocess.Popen[str]) -> str | None:
    """Say what a command prints until a stage of DVC begins; the stage, or None where the command has ended.

    Raises:
        ValueError: it ended with another status than 0.
    """
    for line in running.stdout or ():
        say(line.rstrip())
        if found := STAGE.match(line):
            return found[1]
    if status := running.wait():
        raise ValueError(f"{' '.join(command)} ended with status {status}")
    return None


if __name__ == "__main__":
    main(pipeline)
