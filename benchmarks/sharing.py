"""Sharing: two clones of the tiny world's pipeline, a remote, and the whole story of two who work together.

The remote is a folder, and where OpenSSH's server is installed one behind SSH on this machine, with keys made here.
"""

from __future__ import annotations

import csv
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from figures import Figure, command_line, publish

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

import world  # noqa: E402
from conftest import byte_tokenizer, save_models  # noqa: E402

from merge3.store import Store  # noqa: E402

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


def run(folder: Path, *command: str) -> str:
    """What a command prints, both streams.

    Raises:
        RuntimeError: it failed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    print(folder.name, *command, file=sys.stderr, flush=True)
    ended = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{command}: {ended.stdout}")
    return ended.stdout


@contextmanager
def ssh(folder: Path) -> Iterator[dict[str, str]]:
    """An SSH server on loopback; yields DVC's settings of a remote behind it."""
    folder.mkdir()
    for key in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "mine.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": folder / "pid",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it parts with its privileges
    server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    try:
        user = getpass.getuser()
        yield {
            "url": f"ssh://{user}@127.0.0.1:{port}{folder / 'kept'}",
            "keyfile": str(folder / "mine"),
            "allow_agent": "false",
        }
    finally:
        server.terminate()
        server.wait()


def content(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def search(folder: Path, **evolve: int) -> None:
    """Change the search, run the pipeline, commit."""
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["evolve"].update(evolve)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", f"Search {evolve}")


def asked(folder: Path) -> int:
    """Tokens that the last search asked."""
    return int(json.loads((folder / "data/evolve/ledger.json").read_text())["this_run"]["tokens"])


def questions(folder: Path) -> set[tuple[str, str]]:
    """What the store has answers to."""
    store = Store(folder / "data/evolve/answers")
    return {(store.path(key).name, item) for key in store.keys() for item in store.get(key)}  # noqa: SIM118


def story(folder: Path, remote: dict[str, str], kind: str) -> list[Figure]:
    """Let two work together."""
    a, b, hub = folder / "a", folder / "b", folder / "hub.git"
    found: list[Figure] = []

    def check(figure: str, holds: bool) -> None:
        print(f"{'holds' if holds else 'FAILS'}  {kind}: {figure}", file=sys.stderr, flush=True)
        found.append(Figure(f"{kind}: {figure}", float(holds), "", 1))

    a.mkdir(parents=True)
    save_models(a / "models", byte_tokenizer())
    world.write(a, world.params({name: Path("models", name) for name in ("base", "first", "second")}))
    world.repository(a)
    for option, value in remote.items():
        command = (
            ("remote", "add", "--default", "shared") if option == "url" else ("remote", "modify", "shared", option)
        )
        run(a, "dvc", *command, value)
    run(folder, "git", "init", "--quiet", "--bare", "--initial-branch=main", str(hub))
    run(a, "git", "remote", "add", "origin", str(hub))
    search(a, generations=2)
    run(a, "dvc", "push")
    run(a, "git", "push", "--quiet", "--set-upstream", "origin", "main")

    run(folder, "git", "clone", "--quiet", str(hub), str(b))
    for setting in ("user.name", "user.email"):
        run(b, "git", "config", setting, run(a, "git", "config", setting).strip())
    run(b, "dvc", "pull")
    check("repro after a pull does nothing", "up to date" in run(b, "dvc", "repro"))
    outs = ("base", "prepare", "evolve", "evaluate", "report")
    check("a pull has the files byte for byte", all(content(a / "data" / o) == content(b / "data" / o) for o in outs))

    before = asked(b)
    search(b, generations=3)  # B asks more
    whole = asked(b)
    history = (b / "data/evolve/history.csv").read_text().splitlines()
    check("a larger budget asks only new questions", 0 < whole < before * 3 / 2 and len(history) == 1 + 3 * 4)
    of_b = questions(b)
    search(b, generations=2)
    search(a, population=6)  # A, meanwhile, asks others
    of_a = questions(a)
    check("both asked what the other did not", bool(of_a - of_b) and bool(of_b - of_a))
    run(a, sys.executable, "-m", "flows.share")
    run(b, sys.executable, "-m", "flows.share")
    check("sharing unites the answers", questions(b) == of_a | of_b)
    check("and asks nothing", asked(b) == 0)
    run(a, sys.executable, "-m", "flows.share")
    check("both have the union, byte for byte", content(a / "data/evolve") == content(b / "data/evolve"))
    heads = {run(clone, "git", "rev-parse", "HEAD") for clone in (a, b)}
    check("both are at one commit, and repro does nothing", len(heads) == 1 and "up to date" in run(a, "dvc", "repro"))
    return found


def experiments(folder: Path) -> list[Figure]:
    """What DVC's commands of experiments give."""
    before = run(folder, "git", "rev-parse", "HEAD").strip()
    run(folder, "dvc", "exp", "run", "--name", "longer", "--set-param", "evolve.generations=4")
    shown = run(folder, "dvc", "exp", "show", "--csv")
    columns = next(row for row in csv.DictReader(shown.splitlines()) if "longer" in row.values())
    metrics = json.loads(run(folder, "dvc", "metrics", "diff", "--json", before))
    changes = json.loads(run(folder, "dvc", "params", "diff", "--json", before))
    run(folder, "dvc", "plots", "show", "data/evolve/history.csv", "-x", "generation", "-y", "estimate")
    plots = list((folder / "dvc_plots").glob("*.html"))
    checks = {
        "dvc exp run changes a parameter and runs": columns.get("evolve.generations") == "4",
        "dvc exp show has parameters and metrics": any("winner.accuracy" in name for name in columns),
        "dvc metrics diff has the metrics": "data/evaluate/metrics.json" in json.dumps(metrics),
        "dvc params diff has the change": "evolve.generations" in json.dumps(changes),
        "dvc plots show plots the history": len(plots) == 1,
    }
    for figure, holds in checks.items():
        print(f"{'holds' if holds else 'FAILS'}  {figure}", file=sys.stderr, flush=True)
    return [Figure(figure, float(holds), "", 1) for figure, holds in checks.items()]


def main() -> None:
    """Tell the story with each remote that is possible here."""
    command_line(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = story(folder / "folder", {"url": str(folder / "kept")}, "folder")
        figures += experiments(folder / "folder" / "a")
        if SSHD is None:
            print("ssh: not tried here: sshd is not installed", file=sys.stderr)
        else:
            with ssh(folder / "server") as remote:
                figures += story(folder / "ssh", remote, "ssh")
    publish("sharing", figures)


if __name__ == "__main__":
    main()
