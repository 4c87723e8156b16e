"""The answers store: what a model answered, kept by content hash, so that no question is asked twice.

A *key* says everything that an answer depends on beside the item: the weights' identity, the protocol, the
runtime. Each key has one file, each item one line in it, with a checksum of its own. Files are written to a
temporary name and renamed under a lock, so any number of processes may write. A file with a damaged line is reported,
set aside whole and asked again, never graded: questions asked together, as they were, are answered bit for bit as they
were, which a single one of them, asked alone, need not be.
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
    """A file of the store has a line that failed its checksum."""


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
        if not isinstance(item, str) or checksum != digest([item, values]):
            return None
        if isinstance(values, dict):
            return item, Failure(**values) if "reason" in values else Reply(**values)
        return item, tuple(values)
    except (ValueError, TypeError, RecursionError):  # the last of brackets without end
        return None


class Store:
    """Answers under one folder."""

    def __init__(self, root: Path) -> None:
        """Nothing is read or written yet.

        Raises:
            NotADirectoryError: `root`, or what it is to lie in, is a file.
        """
        if file := next((place for place in (root, *root.parents) if place.is_file()), None):
            raise NotADirectoryError(f"answers are kept in a folder, and {file} is a file: name another place")
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
                except (ValueError, RecursionError):
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
            DamagedAnswers: a line failed its checksum; the file is moved to one ending in `.damaged`.
        """
        path = self.path(key)
        answers, damaged = _read(path, key)
        if damaged:
            try:
                with FileLock(path.parent / ".lock"):
                    return self._mended(path, key)
            except OSError as error:
                warnings.warn(
                    f"{path}: damaged, and passed over; it stays as it is: {error}", DamagedAnswers, stacklevel=2
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
        """The answers of a file, which is set aside where it is damaged. Under its lock."""
        answers, damaged = _read(path, key)
        if damaged:
            aside = path.with_suffix(".damaged")
            with aside.open("ab") as file:
                file.write(damaged)
            path.unlink()
            warnings.warn(
                f"{path}: damaged, and set aside in {aside.name}; what it held will be asked again",
                DamagedAnswers,
                stacklevel=3,
            )
        return answers


def _read(path: Path, key: Mapping[str, Any]) -> tuple[dict[str, Answer], bytes]:
    """The answers of a file; or none, and its content, where it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}, b""
    except PermissionError as error:
        raise PermissionError(
            f"{path} cannot be read: give it its permissions back, or remove it to have its questions asked again"
        ) from error
    answers = parsed(content, key)
    return ({}, content or b"\n") if answers is None else (answers, b"")


def parsed(content: bytes, key: Mapping[str, Any]) -> dict[str, Answer] | None:
    """The answers of a file; None where it is not the key's, or a line of it is damaged."""
    header, *lines = content.decode(errors="replace").removesuffix("\n").split("\n")  # not at Unicode's other line ends
    entries = [_parse(line) for line in lines]
    if header != canonical(key) or None in entries:
        return None
    return dict(entry for entry in entries if entry is not None)


def written(key: Mapping[str, Any], answers: Mapping[str, Answer]) -> str:
    """The text of a file."""
    return "\n".join([canonical(key), *(_line(item, answers[item]) for item in sorted(answers))]) + "\n"


def size(answers: Mapping[str, Answer]) -> int:
    """The bytes of the lines that answers take in a file."""
    return sum(len(_line(item, answer).encode()) + 1 for item, answer in answers.items())


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
