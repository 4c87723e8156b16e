"""A tiny world for the flows: a two-layer Llama, two fine-tunes, eighty questions, parameters that run in seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from flows.stage import STAGES, arguments, call

ROOT = Path(__file__).parents[1]


def params(models: dict[str, Path]) -> dict[str, Any]:
    """Parameters of the tiny world, whose experts are called `first` and `second`."""
    return {
        "seed": 0,
        "study": "tiny",
        "studies": {"tiny": {"experts": ["first", "second"], "groups": ["x", "y"]}},
        "runtime": {"device": "cpu", "dtype": "float32", "scoring": "sum", "batch_tokens": 1024, "portable": False},
        "base": {"package": None, "model": str(models["base"]), "dtype": "float32"},
        "experts": {"models": {name: str(models[name]) for name in ("first", "second")}, "train": None},
        "prepare": {"benchmark": {"source": "items.jsonl", "test_share": 0.4}, "problems": None},
        "population": {
            "responses": None,
            "method": "task_arithmetic",
            "weights": [0.0, 1.0],
            "totals": [0.6, 1.8],
            "size": 8,
            "held_out": 3,
        },
        "calibrate": {"engine": "girth", "dimensions": 1},
        "extract": {"method": "margins", "items": 8},
        "estimate": {"method": "margin_irt"},
        "evolve": {
            "method": "task_arithmetic",
            "knots": 1,
            "weights": [0.0, 1.0],
            "densities": [0.2, 1.0],
            "strategy": "pooled",
            "objective": "mean",
            "population": 4,
            "generations": 3,
            "tokens": None,
            "hours": None,
            "sigma": 0.3,
            "warm_start": None,
            "join": 2,
            "finalists": 2,
            "finalist_items": 10,
        },
        "evaluate": {"sample": 3},
    }


def write(folder: Path, values: dict[str, Any]) -> None:
    """Write params.yaml and the benchmark into `folder`."""
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    rows = [
        {"id": f"q{n}", "prompt": f"Say {n}: ", "options": [f"{n}a", f"{n + 1}b", f"c{n}"], "answer": n % 3, "group": g}
        for g, numbers in (("x", range(40)), ("y", range(40, 80)))
        for n in numbers
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(values: dict[str, Any], *stages: str) -> None:
    """Run stages (all where none is named) in the working directory."""
    for name in stages or STAGES:
        stage = getattr(import_module(f"flows.{name}"), name)
        call(stage, **arguments(stage, values))


def repository(folder: Path) -> None:
    """Make the world in `folder` a Git repository with a pipeline: the stages of dvc.yaml, without their code."""
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for stage in pipeline["stages"].values():
        stage["deps"] = [path for path in stage["deps"] if path.startswith("data/")]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    (folder / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    shutil.copy(ROOT / ".gitattributes", folder)
    (folder / "data").mkdir()
    for command in (
        ("git", "init", "--quiet", "--initial-branch=main"),
        ("git", "config", "user.name", "tester"),
        ("git", "config", "user.email", "tester@example.org"),
        ("dvc", "init", "--quiet"),
        ("dvc", "config", "core.analytics", "false"),
        ("git", "add", "--all"),
        ("git", "commit", "--quiet", "--message", "Begin"),
    ):
        subprocess.run(command, cwd=folder, check=True)


def even(answer: str, expected: str) -> bool:
    """A match for replies that are noise: whether their length is even."""
    return len(answer) % 2 == 0
