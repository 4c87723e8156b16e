"""The whole pipeline as one Prefect flow, for schedules: every stage a subflow of one run, on one server.

DVC decides what has to run (`dvc repro`); this runs everything, and the answers stores make what is known cheap.
"""

from __future__ import annotations

from importlib import import_module

from prefect import flow

from flows.stage import STAGES, arguments, call, main, read_params


@flow
def pipeline() -> None:
    """Run all stages in order with the parameters of params.yaml."""
    params = read_params()
    for name in STAGES:
        stage = getattr(import_module(f"flows.{name}"), name)
        call(stage, **arguments(stage, params))


if __name__ == "__main__":
    main(pipeline)
