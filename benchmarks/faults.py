"""Faults: what becomes of a search that is killed, starved, damaged or disturbed, and of its answers.

Each fault meets the real stage, `python -m flows.evolve`, on the tiny world of the tests. An answer is lost if, after
the stage has been started again, it is not in the store as it is in that of a search that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from figures import RESULTS, Figure, command_line, publish
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

import world  # noqa: E402
from conftest import byte_tokenizer, save_models  # noqa: E402

from merge3.store import Answer, Store  # noqa: E402

KILLS = 20
EVOLVE = (sys.executable, "-m", "flows.evolve")
ANSWERS = Path("data/evolve/answers")
WAIT = 1800  # seconds for a search that takes ten, on a machine that may be busy


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    fault: str
    happened: str
    said: str
    lost: int
    same: bool  # whether the history is that of the undisturbed search


class Trial:
    """A world whose search was not run, or partly, and the undisturbed search to hold it against."""

    def __init__(self, done: Path, folder: Path) -> None:
        self.done = done
        self.folder = folder
        shutil.copytree(done, folder)

    @property
    def evolve(self) -> Path:
        """What the search writes."""
        return self.folder / "data/evolve"

    @property
    def files(self) -> list[Path]:
        """The files of the store."""
        return sorted((self.folder / ANSWERS).glob("*/*.jsonl"))

    def start(self, *before: str, **environment: str) -> subprocess.Popen[str]:
        """Start the search."""
        return subprocess.Popen(
            [*before, *EVOLVE],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *before: str, **environment: str) -> tuple[int, str]:
        """Run the search to its end: its status and what it said."""
        running = self.start(*before, **environment)
        said = running.communicate(timeout=WAIT)[1]
        return running.returncode, said

    def wait(self, running: subprocess.Popen[str], files: int) -> bool:
        """Wait until the store has so many files; False where the search ended before."""
        while running.poll() is None:
            if len(self.files) >= files:
                return True
            time.sleep(0.01)
        return False

    def outcome(self, fault: str, happened: str, said: str) -> Outcome:
        """What is left, against the undisturbed search."""
        expected, found = answers(self.done / ANSWERS), answers(self.folder / ANSWERS)
        lost = sum(found.get(question) != answer for question, answer in expected.items())
        history = "data/evolve/history.csv"
        same = (self.folder / history).read_bytes() == (self.done / history).read_bytes()
        if leftovers := list(self.evolve.rglob("*.tmp")):
            happened += f"; {len(leftovers)} unfinished files are left"
        return Outcome(fault, happened, said, lost, same)


def answers(root: Path) -> dict[tuple[str, str], Answer]:
    """All that a store keeps."""
    store = Store(root)
    return {(store.path(k).name, item): a for k in store.keys() for item, a in store.get(k).items()}  # noqa: SIM118


def line(said: str, words: str) -> str:
    """The line of what was said that has `words`."""
    return next((found.strip() for found in said.splitlines() if words in found), f"(nothing of {words!r})")


def make_world(folder: Path) -> Path:
    """The tiny world with every stage done, and a search that nothing disturbed."""
    models = save_models(folder / "models", byte_tokenizer())
    values = world.params(models)
    values["evolve"].update(generations=15, population=8)
    done = folder / "done"
    done.mkdir()
    shutil.copytree(models["first"], done / "first")
    values["experts"]["models"]["first"] = "first"  # which some faults change
    world.write(done, values)
    here = Path.cwd()
    os.chdir(done)
    world.run(values, "base", "experts", "prepare", "respond", "population", "calibrate", "extract", "estimate")
    os.chdir(here)
    subprocess.run(EVOLVE, cwd=done, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, stderr=subprocess.DEVNULL)
    return done


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own at `folder`.

    Raises:
        PermissionError: this user may not mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        raise PermissionError("not tried here: mounting a file system is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def killed(trial: Trial) -> Outcome:
    """SIGKILL at twenty moments spread over the search, started again each time."""
    shutil.rmtree(trial.evolve)
    generator, kills, goal, broken = random.Random(0), 0, 0, 0  # noqa: S311 - no secret
    total = len(list((trial.done / ANSWERS).glob("*/*.jsonl")))
    while kills < KILLS:
        running = trial.start()
        goal += generator.randrange(1, max(2, 2 * (total - goal) // (KILLS + 1 - kills)))
        if not trial.wait(running, goal):
            raise RuntimeError(f"the search ended before kill {kills}: {running.communicate()[1]}")
        time.sleep(generator.random() * 0.05)
        running.send_signal(signal.SIGKILL)
        said = running.communicate()[1]
        broken += "damaged" in said
        kills += 1
        goal = len(trial.files)
    status, said = trial.run()
    happened = f"started again it asked what was open and ended with status {status}; {broken} files damaged"
    return trial.outcome(f"SIGKILL at {kills} moments", happened, line(said, "distinct candidates"))


def damaged(what: str, damage: Callable[[Path], None], words: str) -> Callable[[Trial], Outcome]:
    """A file of the store is damaged between two runs."""

    def fault(trial: Trial) -> Outcome:
        damage(trial.files[len(trial.files) // 2])
        _, said = trial.run()
        asked = line(said, "distinct candidates").split(";")[-1].strip()
        return trial.outcome(f"a store file {what}", asked, line(said, words))

    return fault


def truncate(path: Path) -> None:
    """Cut a file in the middle of a line."""
    os.truncate(path, path.stat().st_size - 70)


def flip(path: Path) -> None:
    """Flip a bit of an answer."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    """Leave nothing in a file."""
    path.write_bytes(b"")


def unreadable(trial: Trial) -> Outcome:
    """A file of the store may not be read."""
    path = trial.files[len(trial.files) // 2]
    path.chmod(0o000)
    drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    status, said = trial.run(*drop)
    path.chmod(0o644)
    again, _ = trial.run()
    happened = f"status {status}, nothing overwritten; with its permissions back, status {again}"
    return trial.outcome("a store file unreadable", happened, line(said, "cannot be read"))


def full_disk(trial: Trial) -> Outcome:
    """The disk fills up during the search."""
    shutil.rmtree(trial.evolve)
    with small_disk(trial.evolve, "400k"):
        status, said = trial.run()
        kept = len(trial.files)
        subprocess.run(["mount", "-o", "remount,size=64m", str(trial.evolve)], check=True)
        again, _ = trial.run()
        happened = f"status {status} after {kept} candidates; with room again, status {again}"
        return trial.outcome("disk full", happened, line(said, "evolve: ["))


def read_only(trial: Trial) -> Outcome:
    """The data folder cannot be written."""
    data, copy = trial.folder / "data", trial.folder / "copy"
    data.rename(copy)
    with small_disk(data, "64m"):
        shutil.copytree(copy, data, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        begin = time.monotonic()
        status, said = trial.run()
        happened = f"status {status} after {time.monotonic() - begin:.0f} s, before a model was loaded"
        return trial.outcome("data folder read-only", happened, line(said, "evolve: ["))


def two_runs(trial: Trial) -> Outcome:
    """Two searches at once in one folder."""
    shutil.rmtree(trial.evolve)
    both = trial.start(), trial.start()
    said = [running.communicate(timeout=WAIT)[1] for running in both]
    said.sort(key=lambda text: "another process" in text)
    asked = [line(text, "distinct candidates").split(";")[-1].strip() for text in said]
    happened = f"one waits: {asked[0]}, then {asked[1]}"
    return trial.outcome("two runs at once", happened, line(said[1], "another process"))


def no_server(trial: Trial) -> Outcome:
    """The Prefect server is killed during the search."""
    shutil.rmtree(trial.evolve)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = {"PREFECT_HOME": str(trial.folder / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    server = subprocess.Popen(
        [Path(sys.executable).with_name("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, **home},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    check = [sys.executable, "-c", "import sys; from flows.stage import reachable; sys.exit(not reachable())"]
    while subprocess.run(check, env={**os.environ, **home, "PYTHONPATH": str(ROOT)}, check=False).returncode:
        time.sleep(1)
    running = trial.start(**home)
    trial.wait(running, 20)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    said = running.communicate(timeout=WAIT)[1]
    happened = f"the search went on without it and ended with status {running.returncode}"
    return trial.outcome("Prefect server killed", happened, line(said, "gone away"))


def clock(trial: Trial) -> Outcome:
    """The clock is set back by two years in the middle of a search."""
    if shutil.which("faketime") is None:
        raise PermissionError("not tried here: faketime is not installed")
    shutil.rmtree(trial.evolve)
    running = trial.start()
    trial.wait(running, 40)
    running.kill()
    running.communicate()
    kept = len(trial.files)
    status, said = trial.run("faketime", "-f", "-730d")
    asked = line(said, "distinct candidates").split(";")[-1].strip()
    return trial.outcome("clock set back two years", f"status {status}, {kept} candidates kept; {asked}", "")


def changed_before(trial: Trial) -> Outcome:
    """An expert's file is another one of the same name and size when the search is started."""
    return _changed(trial, running=False)


def changed_during(trial: Trial) -> Outcome:
    """An expert's file is replaced while the search runs."""
    return _changed(trial, running=True)


def _changed(trial: Trial, *, running: bool) -> Outcome:
    weights, other = (trial.folder / name / "model.safetensors" for name in ("first", "../models/second"))
    original = weights.read_bytes()
    shutil.rmtree(trial.evolve)
    search = trial.start() if running else None
    if search:
        trial.wait(search, 20)
    swapped = weights.with_name("new")
    shutil.copy(other, swapped)
    swapped.replace(weights)
    said = search.communicate(timeout=WAIT)[1] if search else trial.run()[1]
    kept = len(trial.files)
    weights.write_bytes(original)
    again, _ = trial.run()
    when = "while it ran" if running else "before the run"
    happened = (
        f"refused with {kept} candidates kept, none of them of the new file; with the old one back, status {again}"
    )
    return trial.outcome(f"an expert's file changed {when}", happened, line(said, "changed"))


FAULTS: tuple[Callable[[Trial], Outcome], ...] = (
    damaged("truncated", truncate, "damaged"),
    damaged("with a flipped bit", flip, "damaged"),
    damaged("emptied", empty, "damaged"),
    unreadable,
    full_disk,
    read_only,
    two_runs,
    no_server,
    clock,
    changed_before,
    changed_during,
    killed,
)


def main() -> None:
    """Let every fault happen, and print what became of it."""
    command_line(__doc__).parse_args()
    table = Table("fault", "what happened", "what was said", "answers lost", "same history", show_lines=True)
    figures, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        done = make_world(Path(folder))
        for number, fault in enumerate(FAULTS):
            try:
                found = fault(Trial(done, Path(folder) / f"trial{number}"))
            except PermissionError as error:
                table.add_row(fault.__name__, str(error), "", "", "")
                continue
            print(found, file=sys.stderr, flush=True)
            found = replace(found, said=found.said.replace(folder, "").replace(f"{ROOT}/", ""))
            rows.append(asdict(found))
            table.add_row(found.fault, found.happened, found.said, str(found.lost), "yes" if found.same else "NO")
            figures.append(Figure(f"{found.fault}: answers lost", found.lost, "answers", 0, below=True))
            figures.append(Figure(f"{found.fault}: history the same", float(found.same), "", 1))
    Console(width=200).print(table)
    (RESULTS / "faults_table.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    publish("faults", figures)


if __name__ == "__main__":
    main()
