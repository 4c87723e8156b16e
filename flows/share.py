"""Working together: take what others pushed, run what is out of date, give it back. Git has the names, DVC the files.

The answers stores of two who worked at the same time are united: each question has one answer, whoever asked it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from time import sleep

from prefect import flow

from flows.pipeline import run
from flows.stage import DATA, alone, do, main, say
from merge3.store import Store

OURS, THEIRS = Path(".dvc", "tmp", "ours"), Path(".dvc", "tmp", "theirs")  # answers, until a pull is done
STORES = (DATA / "evolve" / "answers", DATA / "evaluate" / "answers")
TRIES, PAUSE = 3, 10  # of what goes over a network, and seconds between them
DRIVERS = {  # how .gitattributes has both sides' results merged: dvc repro makes them anew from the united answers
    "dvc-lock": f"'{sys.executable}' -m flows.lock %O %A %B",
    "ours": "true",
}


@flow
def share() -> None:
    """Merge the branch's upstream, unite the answers, `dvc repro`, commit the results, push.

    Raises:
        ValueError: there are changes that are not committed, no upstream, sources that conflict, a stage that failed,
            a search that runs here, or someone pushed meanwhile.
    """
    if told("git", "status", "--porcelain", "--untracked-files=no"):
        raise ValueError("there are changes that are not committed: commit or stash them, and share again")
    do("take", take)
    do("repro", lambda: run("dvc", "repro"))
    do("give", give)


def take() -> None:
    """Merge what the upstream has, and unite its answers with ours. A take that was stopped is finished before.

    Raises:
        ValueError: there is no upstream, sources conflict, or a search runs here, whose answers a pull would remove.
    """
    with ExitStack() as stack:
        for store in STORES:
            stack.enter_context(alone(store.parent.name, wait=False))
        if OURS.exists() or THEIRS.exists():
            say("an earlier take was stopped: its answers are united first")
            unite()
        persist("git", "fetch")
        try:
            upstream = told("git", "rev-parse", "--abbrev-ref", "@{upstream}")
        except ValueError as error:
            raise ValueError(
                "this branch has no upstream: git push --set-upstream origin HEAD, and share again"
            ) from error
        if told("git", "rev-list", "--count", f"HEAD..{upstream}") == "0":
            say(f"{upstream} has nothing new")
            unite()  # what a clone or a `git pull` brought the names of alone
            return
        for store in (store for store in STORES if store.exists()):  # what is not here comes with the pull, whole
            (THEIRS / store).parent.mkdir(parents=True, exist_ok=True)
            persist("dvc", "get", ".", str(store), "--rev", upstream, "--out", str(THEIRS / store), "--force")
        drivers = [part for name, line in DRIVERS.items() for part in ("-c", f"merge.{name}.driver={line}")]
        try:
            run("git", *drivers, "merge", "--no-edit", upstream)
        except ValueError as error:
            run("git", "merge", "--abort")
            forget()
            raise ValueError(f"{upstream} conflicts with this branch: git merge {upstream}, and share again") from error
        unite()


def unite() -> None:
    """Pull what Git names now, and put both sides' answers into it. Ours are set aside before: it removes them."""
    for store in STORES:
        Store(OURS / store).take(Store(store))
    persist("dvc", "pull", "--force", "--allow-missing")  # a stage that both ran has no results: it is run again
    for store, (whose, place) in product(STORES, {"ours": OURS, "theirs": THEIRS}.items()):
        if (place / store).exists():
            added, differ = Store(store).take(Store(place / store))
            if added:
                say(f"{store}: {added} answers added from {whose}")
            if differ:
                say(f"{differ} of {whose} are others than those kept here: one was not made as its key says")
    forget()


def forget() -> None:
    """Remove what a take set aside."""
    for place in (OURS, THEIRS):
        shutil.rmtree(place, ignore_errors=True)


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
