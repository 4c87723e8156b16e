"""dvc.yaml against the flows: what a stage declares is what it imports, reads and writes."""

from __future__ import annotations

import ast
import inspect
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import world
import yaml
from test_flows import done  # noqa: F401 - a fixture

from flows.stage import SHARED, STAGES, arguments

ROOT = Path(__file__).parents[1]
PIPELINE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
SHOWS = "flows/stage.py"  # reads parameters and shows progress: no result depends on it, so no stage reruns for it


def paths(entries: list[Any]) -> list[str]:
    """Paths of a deps, outs or metrics list, whose entries may carry options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def reads(stage: str) -> list[str]:
    """The files of other stages that a stage declares."""
    return [path for path in paths(PIPELINE[stage]["deps"]) if path.startswith("data/")]


def link(files: list[str], source: Path, folder: Path) -> None:
    """Put `files` of the folder `source` into `folder`."""
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(source / path)


def imported(file: Path, seen: set[str]) -> set[str]:
    """The project's modules that a module imports, with those that they import."""
    seen.add(str(file.relative_to(ROOT)))
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            other = ROOT / f"{name.replace('.', '/')}.py"
            if other.exists() and str(other.relative_to(ROOT)) not in seen:
                imported(other, seen)
    return seen


def test_the_stages_are_those_of_the_flows_in_order() -> None:
    assert tuple(PIPELINE) == STAGES
    assert set(PARAMS) - set(SHARED) <= set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_imports(stage: str) -> None:
    declared = {path for path in paths(PIPELINE[stage]["deps"]) if not path.startswith("data/")}
    expected = imported(ROOT / "flows" / f"{stage}.py", {SHOWS}) - {SHOWS}
    shipped = {"merge3/report.html"} if "merge3/report.py" in expected else set()
    assert declared == expected | shipped


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_the_arguments(stage: str) -> None:
    flow = getattr(import_module(f"flows.{stage}"), stage)
    wanted = list(inspect.signature(flow.fn).parameters)
    own = [stage] if set(wanted) - set(SHARED) else []
    assert sorted(PIPELINE[stage].get("params", [])) == sorted([*own, *(name for name in wanted if name in SHARED)])
    assert set(arguments(flow, PARAMS)) == set(wanted)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_from_what_it_declares_and_writes_what_it_declares(
    stage: str,
    done: Path,  # noqa: F811
    saved: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    world.write(tmp_path, world.params(saved))
    link(reads(stage), done, tmp_path)
    world.run(world.params(saved), stage)
    written = {path.relative_to(tmp_path) for path in (tmp_path / "data" / stage).rglob("*") if path.is_file()}
    outs = paths(PIPELINE[stage]["outs"]) + paths(PIPELINE[stage].get("metrics", []))
    scratch = f"data/{stage}/answers"
    for path in written:
        declared = [out for out in outs if path.is_relative_to(out)]
        assert declared or path.is_relative_to(scratch), f"{path} is written and not declared"
    assert all((tmp_path / out).exists() for out in outs)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_needs_each_of_the_files_that_it_declares(
    stage: str,
    done: Path,  # noqa: F811
    saved: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = reads(stage)
    if stage == "experts":
        needs = []  # where experts are named and not trained, the base is only fingerprinted
    for missing in needs:
        folder = tmp_path / missing.replace("/", "-")
        folder.mkdir()
        monkeypatch.chdir(folder)
        world.write(folder, world.params(saved))
        link([path for path in needs if path != missing], done, folder)
        with pytest.raises((FileNotFoundError, ValueError)):
            world.run(world.params(saved), stage)
        shutil.rmtree(folder)
