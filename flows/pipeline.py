"""The whole pipeline as one Prefect flow, for schedules: DVC decides which stages run, each as a flow run."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from prefect import flow

from flows.stage import main, say, served


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
    """Run a command, whose lines go to the log of the flow run if there is one.

    Raises:
        ValueError: it ended with another status than 0.
    """
    if served():
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            for line in running.stdout or ():
                say(line.rstrip())
        status = running.returncode
    else:
        status = subprocess.run(command, check=False).returncode
    if status:
        raise ValueError(f"{' '.join(command)} ended with status {status}")


if __name__ == "__main__":
    main(pipeline)
