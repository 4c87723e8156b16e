"""What is planted is not opened, what is named does not lead out of its folder, what is shown is not run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import world
import yaml
from prefect.settings import get_current_settings

from flows import serve
from flows.experts import experts
from flows.stage import read_params
from merge3 import benchmark, export, imports, items, mergefile, models
from merge3.store import DamagedAnswers, Store

ROOT = Path(__file__).parents[1]
UP = "../../planted"


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that a bomb leaves."""
    return tmp_path / "exploded"


@pytest.fixture
def bomb(mark: Path) -> bytes:
    """A pickle; it works."""
    made = pickle.dumps(Bomb(mark))
    pickle.loads(made)
    assert mark.exists()
    mark.unlink()
    return made


def everything(folder: Path) -> set[Path]:
    """All that lies under a folder."""
    return set(folder.rglob("*"))


# --- pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_not_opened(
    saved: dict[str, Path], tmp_path: Path, bomb: bytes, mark: Path, name: str
) -> None:
    planted = tmp_path / "planted"
    shutil.copytree(saved["first"], planted)
    (planted / "model.safetensors").unlink()
    (planted / name).write_bytes(bomb)
    base = models.load(saved["base"], models.stored_dtype(saved["base"]))
    for use in (
        lambda: models.load(planted, models.stored_dtype(saved["base"])),
        lambda: models.changes(planted, models.weights_of(base), base.config),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match="planted"):
            use()
    assert not mark.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickled_adapter_is_not_opened(
    saved: dict[str, Path], tmp_path: Path, bomb: bytes, mark: Path, name: str
) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}))
    (planted / name).write_bytes(bomb)
    base = models.load(saved["base"], models.stored_dtype(saved["base"]))
    with pytest.raises((ValueError, FileNotFoundError), match="planted"):
        models.changes(planted, models.weights_of(base), base.config)
    assert not mark.exists()


def test_a_pickled_store_file_is_not_opened(tmp_path: Path, bomb: bytes, mark: Path) -> None:
    store = Store(tmp_path / "answers")
    store.put({}, {"a": (-1.0,)})
    store.path({}).write_bytes(bomb)
    with pytest.warns(DamagedAnswers):
        assert store.get({}) == {}
    assert not mark.exists()


@pytest.mark.parametrize("name", ["board.csv", "board.parquet", "board.pkl", "board.pickle"])
def test_a_pickled_leaderboard_is_not_opened(tmp_path: Path, bomb: bytes, mark: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bomb)
    with pytest.raises(ValueError, match=r"board|codec|Parquet|expected"):
        imports.matrix(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.pkl", "rows.py"])
def test_a_pickled_benchmark_is_not_opened(tmp_path: Path, bomb: bytes, mark: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bomb)
    for read in (lambda path: items.read(path), lambda path: benchmark.rows(str(path), None, None)):
        with pytest.raises((ValueError, FileNotFoundError, RuntimeError)):  # the last is datasets', of scripts
            read(tmp_path / name)
    assert not mark.exists()


def test_yaml_makes_no_objects(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(f"seed: !!python/object/apply:pathlib.Path.touch [{mark}]\n")
    for read in (read_params, lambda: mergefile.read(Path("params.yaml"))):
        with pytest.raises((ValueError, yaml.YAMLError), match="python/object"):
            read()
    assert not mark.exists()


# --- names that lead elsewhere


@pytest.mark.parametrize("name", [UP, "..", ".", "/tmp/planted", "a/b", "base", "-rf"])
def test_an_experts_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    numbers = dict.fromkeys(("problems", "steps", "rank", "batch", "learning_rate"), 1)
    train = {"adapters": {name: {"language": "en", "skill": "arithmetic"}}, "dtype": "auto", **numbers}
    for source in ({"models": {name: "m"}, "train": None}, {"models": None, "train": train}):
        with pytest.raises(ValueError, match="an expert's name is"):
            experts.fn(0, **source)
    assert everything(tmp_path) == {here.parent, here}


@pytest.mark.parametrize("name", [UP, "/planted"])
def test_a_merge_files_names_write_nothing_outside(saved: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    values = {"base": str(saved["base"]), "experts": {name: str(saved["first"])}, "method": "linear"}
    (folder / "merge.yaml").write_text(yaml.safe_dump({**values, "weights": {name: 1.0}}))
    before = everything(tmp_path)
    export.export(mergefile.read(folder / "merge.yaml"), folder / "out")
    assert {path for path in everything(tmp_path) - before if not path.is_relative_to(folder / "out")} == set()
    assert not Path("/planted").exists()


def test_a_benchmarks_names_write_nothing_outside(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    values = world.params(saved)
    world.write(here, values)
    rows = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"id": f"{UP}/{row['id']}", "group": f"/planted/{row['group']}"}
    Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = everything(tmp_path)
    world.run(values, "base", "experts", "prepare", "respond")
    assert {path for path in everything(tmp_path) - before if not path.is_relative_to(here / "data")} == set()
    assert not Path("/planted").exists()


# --- servers


def test_servers_listen_on_this_machine_alone() -> None:
    assert get_current_settings().server.api.host == "127.0.0.1"
    assert serve.HOST == "127.0.0.1"
