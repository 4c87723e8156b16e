"""A store that lies in a second place as well, which several machines share: a folder, S3, whatever fsspec reaches.

There each key has a folder of files, each file holds answers in the form of the store's, and is named by its own
SHA-256. It is written once and never changed, so machines need no lock, and what is shared is the union of the files.
A file that is not what its name says is refused. The local store is complete without the other: where that cannot be
reached the work goes on, and what it lacks is given when a key is touched again.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from fsspec.core import url_to_fs

from merge3.store import Answer, Store, digest, parsed, written

NAME = re.compile(r"([0-9a-f]{64})\.jsonl")
WHOLE = {"abfs", "gs", "memory", "s3"}  # file systems that show a file only when it is whole
PAUSE = 60  # seconds in which a place that failed is left alone


class NotShared(UserWarning):
    """Answers could not be taken from the shared place, or given to it."""


class Shared(Store):
    """Answers under one folder, and all that is at `url`."""

    def __init__(self, root: Path, url: str) -> None:
        """`url` is fsspec's: file:///mnt/team/answers, s3://bucket/answers, ...

        Raises:
            ValueError: nothing can be written there.
        """
        super().__init__(root)
        self.url = url
        self._there: dict[str, set[str]] = {}  # by key: what is kept there
        self._seen: set[str] = set()  # files that were read, or refused
        self._rest = 0.0  # when a place that failed is tried again
        try:
            self._fs, self._place = url_to_fs(url, use_listings_cache=False)
            self._write(f"{self._place}/README", b"Answers of merge3, by key; see docs/workers.md.\n")
        except Exception as error:  # of any file system, or of the package that it lacks
            raise ValueError(f"answers cannot be shared at {url}: {_line(error)}") from error

    def get(self, key: Mapping[str, Any]) -> dict[str, Answer]:
        """All intact answers under `key`, here or there; see `Store.get`.

        Warns:
            NotShared: a file there is damaged, or the place cannot be reached.
        """
        return self._united(key, super().get(key))

    def put(self, key: Mapping[str, Any], answers: Mapping[str, Answer]) -> None:
        """Keep answers here and there; see `Store.put`.

        Warns:
            NotShared: the place cannot be reached. Here they are kept.
        """
        super().put(key, answers)
        self._united(key, super().get(key))

    def _united(self, key: Mapping[str, Any], ours: dict[str, Answer]) -> dict[str, Answer]:
        """Take what is new there, give what is new here."""
        if monotonic() < self._rest:
            return ours
        name = digest(key)
        there = self._there.setdefault(name, set())
        try:
            theirs, read = self._new(name, key)
            if new := {item: answer for item, answer in theirs.items() if item not in ours}:
                super().put(key, new)
            self._seen |= read
            there.update(theirs)
            if lacking := {item: answer for item, answer in ours.items() if item not in there}:
                content = written(key, lacking).encode()
                self._write(f"{self._folder(name)}/{hashlib.sha256(content).hexdigest()}.jsonl", content)
                there.update(lacking)
        except Exception as error:  # each file system has its own
            self._rest = monotonic() + PAUSE
            _warn(f"{self.url} cannot be reached, answers are kept here alone for now: {_line(error)}")
            return ours
        if differ := sum(ours[item] != answer for item, answer in theirs.items() if item in ours):
            _warn(f"{self.url}: {differ} answers are others than those here: one was not made as its key says")
        return theirs | ours

    def _new(self, name: str, key: Mapping[str, Any]) -> tuple[dict[str, Answer], set[str]]:
        """The answers of the files under a key that were not read before, and the files."""
        found: dict[str, Answer] = {}
        read = set[str]()
        try:
            paths = sorted(self._fs.ls(self._folder(name), detail=False))
        except FileNotFoundError:
            return found, read
        for path in paths:
            named = NAME.fullmatch(path.rsplit("/", 1)[-1])
            if named is None or path in self._seen:
                continue
            content = self._fs.cat_file(path)
            read.add(path)
            answers = parsed(content, key)
            if answers is None or hashlib.sha256(content).hexdigest() != named[1]:
                _warn(f"{self.url}: {path} is damaged, and not used; what it held is given again once it is asked")
                continue
            found |= answers
        return found, read

    def _folder(self, name: str) -> str:
        return f"{self._place}/{name[:2]}/{name}"

    def _write(self, path: str, content: bytes) -> None:
        """Write a file: whole, or not under its name."""
        protocol = self._fs.protocol
        if WHOLE & set([protocol] if isinstance(protocol, str) else protocol):
            self._fs.pipe_file(path, content)
            return
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        temporary = f"{path}.{uuid4().hex}.tmp"
        self._fs.pipe_file(temporary, content)
        self._fs.mv(temporary, path)


def _warn(text: str) -> None:
    warnings.warn(text, NotShared, stacklevel=4)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
