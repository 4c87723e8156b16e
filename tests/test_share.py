"""Two clones, real Git and DVC, and a search that asks a question a generation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import share as sharing
from flows.lock import merged
from flows.share import OURS, STORES, THEIRS, share
from flows.stage import alone
from merge3.store import Store

ROOT = Path(__file__).parents[1]
SEARCH = """
from pathlib import Path
import yaml
from merge3.store import Store
store, n = Store(Path("data/evolve/answers")), yaml.safe_load(open("params.yaml"))["evolve"]
asked = [str(i) for i in n if str(i) not in store.get({})]
store.put({}, {i: (-float(i),) for i in asked})
Path("asked").write_text(" ".join(asked))
Path("data/evolve/history.csv").write_text(str(n))
Path("metrics.json").write_text("{}" if not n else '{"last": %d}' % n[-1])
"""


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, capture_output=True)


def dvc(*arguments: str) -> str:
    return subprocess.run(["dvc", *arguments], check=True, capture_output=True, text=True).stdout


def push() -> None:
    dvc("push", "-q")
    git("push", "-q")


def evolve(*generations: int) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"evolve": list(generations)}))
    dvc("repro")
    git("commit", "-qam", f"Ask {generations}")


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The clones of A, who ran the search and pushed it, and of B, who pulled."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@example.org")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    a, b, hub = tmp_path / "a", tmp_path / "b", tmp_path / "hub.git"
    git("init", "-q", "--bare", "--initial-branch=main", str(hub))
    git("clone", "-q", str(hub), str(a))
    monkeypatch.chdir(a)
    dvc("init", "-q")
    dvc("config", "core.analytics", "false")
    dvc("remote", "add", "-q", "--default", "shared", str(tmp_path / "remote"))
    shutil.copy(ROOT / ".gitattributes", a)
    Path("search.py").write_text(SEARCH)
    outs = [{"data/evolve": {"persist": True}}]
    stage = {"cmd": "python search.py", "params": ["evolve"], "outs": outs}
    stage["metrics"] = [{"metrics.json": {"cache": False}}]
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"evolve": stage}}))
    Path(".gitignore").write_text("asked\n")
    Path("params.yaml").write_text("evolve: []\n")
    git("add", "-A")
    git("commit", "-qm", "Begin")
    evolve(1, 2)
    git("add", "-A")
    git("commit", "-q", "--amend", "--no-edit")
    dvc("push", "-q")
    git("push", "-q", "-u", "origin", "HEAD")
    git("clone", "-q", str(hub), str(b))
    monkeypatch.chdir(b)
    dvc("pull", "-q")
    return a, b


def test_a_collaborator_pulls_and_repeats_nothing(clones: tuple[Path, Path]) -> None:
    assert "up to date" in dvc("repro")
    evolve(1, 2, 3)
    assert Path("asked").read_text() == "3"
    assert set(Store(STORES[0]).get({})) == {"1", "2", "3"}


def test_the_answers_of_two_who_worked_at_once_are_united(
    clones: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = clones
    evolve(1, 2, 5)  # B's
    monkeypatch.chdir(a)
    evolve(1, 2, 4)
    push()
    monkeypatch.chdir(b)
    with pytest.raises(ValueError, match="conflicts with this branch"):  # what is to be asked is for people to say
        share.fn()
    Path("search.py").write_text(SEARCH + "\n")
    with pytest.raises(ValueError, match="changes that are not committed"):
        share.fn()
    git("checkout", "-q", "search.py")
    evolve(1, 2)
    share.fn()
    shutil.copytree(STORES[0], OURS / STORES[0])  # as a take leaves it that is stopped in the pull
    shutil.rmtree(STORES[0])
    for clone in (b, a):
        monkeypatch.chdir(clone)
        share.fn()
        assert not OURS.exists()
        assert set(Store(STORES[0]).get({})) == {"1", "2", "4", "5"}
        assert "up to date" in dvc("repro")
    assert not (b / "asked").read_text()
    assert (a / "dvc.lock").read_bytes() == (b / "dvc.lock").read_bytes()


def test_of_dvcs_lock_a_stage_is_one_sides_whole_or_none() -> None:
    first = {name: {"cmd": name, "outs": [1]} for name in ("same", "mine", "theirs", "both", "alike", "gone")}
    ours = first | {name: {"cmd": name, "outs": [2]} for name in ("mine", "both", "alike", "new")}
    theirs = first | {name: {"cmd": name, "outs": [2]} for name in ("theirs", "alike")} | {"both": {"outs": [3]}}
    del theirs["gone"]
    found = merged(first, ours, theirs)
    assert found == {
        "same": first["same"],
        **{n: ours[n] for n in ("mine", "alike", "new")},
        "theirs": theirs["theirs"],
    }


def test_a_stage_is_run_again_by_what_both_changed(clones: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = clones
    one = "from pathlib import Path; import yaml; p = yaml.safe_load(open('params.yaml'));"
    lines = {
        "first": one + "Path('one').write_text(str(p['one']))",
        "second": one + "Path('two').write_text(Path('one').read_text() + str(p['two']))",
    }

    def work(params: dict[str, object]) -> None:
        Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        dvc("repro")
        git("add", "-A")
        git("commit", "-qm", "Work")

    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    stages["first"] = {"cmd": f'python -c "{lines["first"]}"', "params": ["one"], "outs": ["one"]}
    stages["second"] = {
        "cmd": f'python -c "{lines["second"]}"',
        **{"deps": ["one"], "params": ["two"], "outs": ["two"]},
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    begin = {"evolve": [1, 2], **{f"x{n}": 0 for n in range(5)}, "one": 1, **{f"y{n}": 0 for n in range(5)}, "two": 2}
    work(begin)
    push()
    monkeypatch.chdir(a)
    git("pull", "-q")
    dvc("pull", "-q")
    work(begin | {"one": 5})
    push()
    monkeypatch.chdir(b)
    work(begin | {"two": 7})
    share.fn()
    assert Path("two").read_text() == "57"
    assert set(Store(STORES[0]).get({})) == {"1", "2"}


@pytest.fixture
def ahead(clones: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The clones where A has searched on and pushed it."""
    a, b = clones
    monkeypatch.chdir(a)
    evolve(1, 2, 4)
    push()
    monkeypatch.chdir(b)
    return clones


@pytest.mark.usefixtures("ahead")
def test_a_take_that_is_stopped_after_the_merge_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    evolve(1, 2, 5)
    evolve(1, 2)  # what it asked before stays
    persist = sharing.persist

    def broken(*command: str) -> None:
        if command[:2] == ("dvc", "pull"):
            raise ValueError("the network is down")
        persist(*command)

    with monkeypatch.context() as patch:
        patch.setattr(sharing, "persist", broken)
        with pytest.raises(ValueError, match="network is down"):
            share.fn()
    assert THEIRS.exists()
    share.fn()
    assert set(Store(STORES[0]).get({})) == {"1", "2", "4", "5"}
    assert not OURS.exists()
    assert not THEIRS.exists()


def test_answers_of_a_stopped_search_outlive_a_take_that_could_not_reach_the_remote(
    ahead: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ahead[0].parent
    Store(STORES[0]).put({}, {"5": (-5.0,)})  # of a search that was stopped: neither Git nor DVC knows of it
    monkeypatch.setattr(sharing, "PAUSE", 0)
    (folder / "remote").rename(folder / "away")
    with pytest.raises(ValueError, match=r"dvc get .* ended with status"):
        share.fn()
    (folder / "away").rename(folder / "remote")
    share.fn()
    assert set(Store(STORES[0]).get({})) == {"1", "2", "4", "5"}


def test_what_git_alone_was_pulled_of_is_pulled_and_not_run_again(
    ahead: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = ahead
    git("clone", "-q", str(b.parent / "hub.git"), str(b.parent / "c"))
    git("pull", "-q")
    for clone in (b, b.parent / "c"):
        monkeypatch.chdir(clone)
        share.fn()
        assert not Path("asked").exists()
        assert set(Store(STORES[0]).get({})) == {"1", "2", "4"}


def test_where_a_search_runs_nothing_is_taken(clones: tuple[Path, Path]) -> None:
    with alone("evolve"), pytest.raises(ValueError, match="evolve runs here: do this again when it has ended"):
        share.fn()
    assert set(Store(STORES[0]).get({})) == {"1", "2"}
