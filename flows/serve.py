"""Deployments for the Prefect UI: the nightly pipeline, an experiment, the search alone, and sharing.

nightly      `dvc repro` by a schedule
experiment   `dvc exp run` with parameters changed in the UI
search       the stage evolve alone, its parameters those of params.yaml unless changed in the UI
share        take what others pushed, run, give back
"""

from __future__ import annotations

import sys
from time import sleep

from prefect import serve

from flows.evolve import evolve
from flows.pipeline import experiment, pipeline
from flows.share import share
from flows.stage import arguments, reachable, read_params

NIGHTLY = "0 2 * * *"
TRIES = 30  # seconds that a server is given to start


def main() -> None:
    """Serve the deployments until interrupted; one run at a time, as there is one device.

    Raises:
        SystemExit: no server is configured, or it does not answer.
    """
    for _ in range(TRIES):
        if reachable():
            break
        sleep(1)
    else:
        sys.exit("no Prefect server: `make serve` starts one, or set PREFECT_API_URL")
    serve(
        pipeline.to_deployment("nightly", cron=NIGHTLY),
        experiment.to_deployment("experiment", parameters={"changes": {"evolve.generations": 20}}),
        evolve.to_deployment("search", parameters=arguments(evolve, read_params())),
        share.to_deployment("share"),
        limit=1,
    )


if __name__ == "__main__":
    main()
