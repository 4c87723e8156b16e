"""The whole pipeline as one Prefect flow, for schedules: DVC decides which stages run, each as a flow run."""

from __future__ import annotations

import subprocess

from prefect import flow

from flows.stage import main


@flow
def pipeline() -> None:
    """Run `dvc repro`.

    Raises:
        ValueError: a stage failed; what it said stands above.
    """
    ended = subprocess.run(["dvc", "repro"], check=False)  # noqa: S607 - the one of this environment
    if ended.returncode:
        raise ValueError(f"dvc repro ended with status {ended.returncode}")


if __name__ == "__main__":
    main(pipeline)
