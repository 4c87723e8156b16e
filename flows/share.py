"""Working together: take what others pushed, run what is out of date, give it back. Git has the names, DVC the files.

The answers stores of two who worked at the same time are united: each question has one answer, whoever asked it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from time import sleep

from prefect import flow

from flows.pipeline import run
from flows.stage import DATA, do, main, say
from merge3.store import Store

OURS = Path(".dvc", "tmp", "ours")  # our answers, while a pull puts the upstream's in their place
STORES = (DATA / "evolve" / "answers", DATA / "evaluate" / "answers")
TRIES, PAUSE = 3, 10  # of what goes over a network, and seconds between them
DRIVERS = {  # how .gitattributes has both sides' results merged: dvc repro makes them anew from the united answers
    "dvc-lock": "git merge-file --ours %A %O %B",
    "ours": "true",
}


@flow
def share() -> None:
    """Merge the branch's upstream, unite the answers, `dvc repro`, commit the results, push.

    Raises:
        ValueError: there are changes that are not committed, no upstream, sources that conflict, a stage that failed,
            or someone pushed meanwhile.
    """
    if told("git", "status", "--porcelain", "--untracked-files=no"):
        raise ValueError("there are changes that are not committed: commit or stash them, and share again")
    do("take", take)
    do("repro", lambda: run("dvc", "repro"))
    do("give", give)


def take() -> None:
    """Merge what the upstream has, and unite its answers with ours.

    Raises:
        ValueError: there is no upstream, or sources conflict.
    """
    restore()
    persist("git", "fetch")
    try:
        upstream = told("git", "rev-parse", "--abbrev-ref", "@{upstream}")
    except ValueError as error:
        raise ValueError("this branch has no upstream: git push --set-upstream origin HEAD, and share again") from error
    if told("git", "rev-list", "--count", f"HEAD..{upstream}") == "0":
        say(f"{upstream} has nothing new")
        return
    with tempfile.TemporaryDirectory() as folder:
        both = [store for store in STORES if store.exists()]  # what is not here comes with the pull, whole
        for store in both:
            shutil.copytree(store, OURS / store)
            persist("dvc", "get", ".", str(store), "--rev", upstream, "--out", str(Path(folder, "theirs", store)))
        drivers = [part for name, line in DRIVERS.items() for part in ("-c", f"merge.{name}.driver={line}")]
        try:
            run("git", *drivers, "merge", "--no-edit", upstream)
        except ValueError as error:
            run("git", "merge", "--abort")
            raise ValueError(f"{upstream} conflicts with this branch: git merge {upstream}, and share again") from error
        persist("dvc", "pull", "--force")
        for store, (whose, place) in product(both, {"ours": OURS, "theirs": Path(folder, "theirs")}.items()):
            added, differ = Store(store).take(Store(place / store))
            say(f"{store}: {added} answers added from {whose}")
            if differ:
                say(f"{differ} of {whose} are others than those kept here: one was not made as its key says")
    shutil.rmtree(OURS, ignore_errors=True)


def restore() -> None:
    """Put answers back that a take set aside which was stopped before it had united them."""
    for store in STORES:
        if (OURS / store).exists():
            added, _ = Store(store).take(Store(OURS / store))
            say(f"{store}: {added} answers back from a take that was stopped")
    shutil.rmtree(OURS, ignore_errors=True)


def give() -> None:
    """Commit what the stages wrote, and push it.

    Raises:
        ValueError: someone pushed meanwhile, or a remote cannot be reached.
    """
    if told("git", "status", "--porcelain", "--untracked-files=no"):
        run("git", "commit", "--quiet", "--all", "--message", "Run the pipeline")
    persist("dvc", "push")
    persist("git", "push")


def persist(*command: str) -> None:
    """Run what goes over a network, and again where it fails.

    Raises:
        ValueError: it failed each time.
    """
    for _ in range(TRIES - 1):
        try:
            run(*command)
        except ValueError:
            sleep(PAUSE)
        else:
            return
    run(*command)


def told(*command: str) -> str:
    """What a command prints.

    Raises:
        ValueError: it ended with another status than 0.
    """
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(f"{' '.join(command)}: {ended.stderr.strip()}")
    return ended.stdout.strip()


if __name__ == "__main__":
    main(share)
