"""`merge3 init`, `check`: a clone of the pipeline set up for one's own models, and looked at before it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from types import ModuleType

import torch

from merge3 import models
from merge3.benchmark import items_of
from merge3.checks import WRONG, small
from merge3.cli.searching import named
from merge3.cli.show import as_json, ask, finding


def check(options: argparse.Namespace) -> int:
    """`merge3 check`: 1 where anything is wrong."""
    found = pipeline("check").check()
    if options.json:
        as_json([asdict(one) for one in found])
    else:
        for one in found:
            finding(one.level, one.what, one.text)
    return int(any(one.level == WRONG for one in found))


def init(options: argparse.Namespace) -> int:
    """`merge3 init`: 1 where the parameters that it wrote do not pass `merge3 check`."""
    own = pipeline("own")
    base = options.base or ask_model("--base", "base (a folder or hub id)")
    experts = options.expert or ask_experts()
    items = options.items or until("--items", "items (a .jsonl, .parquet or .yaml file, or lm-eval:<task>)", items_of)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    device = options.device or default
    if not options.device and sys.stdin.isatty():
        device = until("--device", f"device [{default}]", models.check_device) or default
    own.rewrite(base, named(experts), items, options.test_share, device)
    if options.json:
        return check(options)
    print("params.yaml is rewritten: `git diff params.yaml` shows how. It asks for this:\n")
    wrong = check(options)
    print("\nMend what is wrong, then `merge3 check`." if wrong else "\nNow: dvc repro")
    return wrong


def told(flag: str, what: str) -> str:
    """What a flag did not say, of whoever is there.

    Raises:
        ValueError: nobody is.
    """
    if not sys.stdin.isatty():
        raise ValueError(f"give {flag}: there is no terminal to ask at")
    try:
        return ask(f"{what}: ")
    except EOFError as error:
        raise ValueError(f"give {flag}: the input ended here; params.yaml is as it was") from error


def until(flag: str, what: str, check: Callable[[str], object]) -> str:
    """What was told once `check` has nothing against it, or when nothing is said; asked again until then."""
    while said := told(flag, what):
        try:
            check(said)
        except (FileNotFoundError, ValueError) as error:
            print(error, file=sys.stderr)
        else:
            break
    return said


def ask_model(flag: str, what: str) -> str:
    """A model that is there, by its source or as `name=source`."""
    return until(flag, what, lambda said: small(said.partition("=")[2] or said))


def ask_experts() -> list[str]:
    """Experts, a line each, up to an empty line."""
    found: list[str] = []
    while said := ask_model("--expert", f"expert {len(found) + 1} (name=folder or hub id; empty: no more)"):
        found.append(said)
    return found


def pipeline(name: str) -> ModuleType:
    """A module of the pipeline, which is an extra of the package.

    Raises:
        ValueError: its packages are not installed.
    """
    try:
        return import_module(f"flows.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed: the pipeline runs in the environment that `make` sets up in a clone; "
            "`merge3 run` does without"
        ) from error
