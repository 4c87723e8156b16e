"""The answers store: what a model answered, kept by content hash, so that no question is asked twice.

A *key* says everything that an answer depends on beside the item: the weights' identity, the protocol, the
runtime. Each key has one file, each item one line in it, with a checksum of its own. Files are written to a
temporary name and renamed under a lock, so any number of processes may write. A damaged line is reported, set
aside and asked again; it is never graded.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock


@dataclass(frozen=True)
class Reply:
    """What a model wrote: up to a stop text or the end-of-text token (`stop`), or cut off (`length`)."""

    text: str
    end: str
    tokens: int


@dataclass(frozen=True)
class Failure:
    """No answer, and why."""

    reason: str


Answer = tuple[float, ...] | Reply | Failure  # the tuple: log-likelihood of each option, in nats


class DamagedAnswers(UserWarning):
    """A line of the store failed its checksum."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _line(item: str, answer: Answer) -> str:
    entry = [item, list(answer) if isinstance(answer, tuple) else asdict(answer)]
    return canonical([*entry, digest(entry)])


def _parse(line: str) -> tuple[str, Answer] | None:
    """Item and answer of a line; None where it is damaged."""
    try:
        item, values, checksum = json.loads(line)
        if checksum != digest([item, values]):
            return None
        if isinstance(values, dict):
            return item, Failure(**values) if "reason" in values else Reply(**values)
        return item, tuple(values)
    except (ValueError, TypeError):
        return None


class Store:
    """Answers under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: Mapping[str, Any]) -> Path:
        """The file that holds the answers under `key`."""
        name = digest(key)
        return self.root / name[:2] / f"{name}.jsonl"

    def keys(self) -> list[dict[str, Any]]:
        """The keys under which anything is kept, in the order of their files' names."""
        found = []
        for path in sorted(self.root.glob("*/*.jsonl")):
            with path.open(encoding="utf-8", errors="replace") as file:
                try:
                    key = json.loads(file.readline())
                except ValueError:
                    continue  # whose answers these are cannot be known; `get` would set them aside
            if isinstance(key, dict) and self.path(key) == path:
                found.append(key)
        return found

    def get(self, key: Mapping[str, Any]) -> dict[str, Answer]:
        """All intact answers under `key`, by item content hash; empty where nothing is kept.

        A file is whole at any time, so it is read without a lock, and a store that cannot be written can be read.

        Raises:
            PermissionError: the file cannot be read.

        Warns:
            DamagedAnswers: lines failed their checksum; they are moved to a file ending in `.damaged`.
        """
        path = self.path(key)
        answers, damaged = _read(path, key)
        if damaged:
            try:
                with FileLock(path.parent / ".lock"):
                    return self._mended(path, key)
            except OSError as error:
                warnings.warn(
                    f"{path}: {len(damaged)} damaged line(s) are passed over, and stay as they are: {error}",
                    DamagedAnswers,
                    stacklevel=2,
                )
        return answers

    def put(self, key: Mapping[str, Any], answers: Mapping[str, Answer]) -> None:
        """Keep `answers` (by item content hash) beside those already under `key`.

        Raises:
            ValueError: a log-likelihood is not finite.
            OSError: the file cannot be written, the disk being full for instance; what was kept before still is.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            _write(path, key, self._mended(path, key) | dict(answers))

    def take(self, other: Store) -> tuple[int, int]:
        """Keep all that `other` keeps, too: how many answers were added, and how many differ from our own.

        Of two answers to one question ours stays. Equal keys promise equal answers: where two differ, one of them was
        not made by what its key says.
        """
        added = differ = 0
        for key in other.keys():  # noqa: SIM118 - no mapping
            ours, theirs = self.get(key), other.get(key)
            new = {item: answer for item, answer in theirs.items() if item not in ours}
            differ += sum(ours[item] != answer for item, answer in theirs.items() if item in ours)
            if new:
                self.put(key, new)
            added += len(new)
        return added, differ

    @staticmethod
    def _mended(path: Path, key: Mapping[str, Any]) -> dict[str, Answer]:
        """The intact answers of a file, whose damaged lines are set aside. Under its lock."""
        answers, damaged = _read(path, key)
        if damaged:
            aside = path.with_suffix(".damaged")
            with aside.open("a", encoding="utf-8") as file:
                file.write("\n".join(damaged) + "\n")
            _write(path, key, answers)
            warnings.warn(
                f"{path}: {len(damaged)} damaged line(s) set aside in {aside.name}; what they held will be asked again",
                DamagedAnswers,
                stacklevel=3,
            )
        return answers


def _read(path: Path, key: Mapping[str, Any]) -> tuple[dict[str, Answer], list[str]]:
    """The intact answers of a file, and its damaged lines."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return {}, []
    except PermissionError as error:
        raise PermissionError(
            f"{path} cannot be read: give it its permissions back, or remove it to have its questions asked again"
        ) from error
    return parsed(text, key)


def parsed(text: str, key: Mapping[str, Any]) -> tuple[dict[str, Answer], list[str]]:
    """The intact answers of a file's text, and its damaged lines: all of them where the file is not the key's."""
    header, *lines = text.removesuffix("\n").split("\n")  # not at every line end that Unicode knows
    if header != canonical(key):  # whose answers these are cannot be known
        return {}, [header, *lines]
    entries = [_parse(line) for line in lines]
    damaged = [line for line, entry in zip(lines, entries, strict=True) if entry is None]
    return dict(entry for entry in entries if entry is not None), damaged


def written(key: Mapping[str, Any], answers: Mapping[str, Answer]) -> str:
    """The text of a file."""
    return "\n".join([canonical(key), *(_line(item, answers[item]) for item in sorted(answers))]) + "\n"


def _write(path: Path, key: Mapping[str, Any], answers: Mapping[str, Answer]) -> None:
    """Write a file through a temporary name: whole or not at all, even where the disk is full or the power is cut."""
    text = written(key, answers)
    temporary = path.with_suffix(".tmp")  # one a file: a killed writer's is written over
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
