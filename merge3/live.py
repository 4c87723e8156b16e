"""The live model of a search: base and experts from wherever they lie, loaded once and held against one another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge3 import models
from merge3.asker import Asker
from merge3.merging import LiveMerger
from merge3.plan import resolve_batch_tokens
from merge3.store import Answer, Store


class Watched(Store):
    """A store that takes no answer after a file of the models changed: weights are mapped from their files."""

    def __init__(self, store: Store, sources: Mapping[str, Path], mend: str) -> None:
        """`sources` are folders or files by their name for the reader; `mend` says what to do where one changed."""
        super().__init__(store.root)
        self.store = store
        self.sources, self.mend = dict(sources), mend
        self.stamps = {name: models.stamp(source) for name, source in self.sources.items()}

    def get(self, key: Mapping[str, Any]) -> dict[str, Answer]:
        """What is kept, see `Store.get`."""
        return self.store.get(key)

    def put(self, key: Mapping[str, Any], answers: Mapping[str, Answer]) -> None:
        """Keep answers, see `Store.put`.

        Raises:
            ValueError: a model's files are not those that were loaded.
        """
        for name, source in self.sources.items():
            if models.stamp(source) != self.stamps[name]:
                raise ValueError(f"the files of {name!r} in {source} changed while it was asked; {self.mend}")
        self.store.put(key, answers)


def open_asker(
    base: str,
    experts: Mapping[str, str],
    store: Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    batch_tokens: str | int = "auto",
    scoring: str = "sum",
) -> Asker:
    """An asker for merges of `experts` (folders, GGUF files or hub ids, by name), keeping answers in `store`.

    Raises:
        FileNotFoundError: a model is not there.
        ValueError: an expert does not fit the base, or the device or dtype is not to be had here.
    """
    models.check_device(device)
    kind = models.resolve_dtype(dtype, device)
    folder = models.weights_folder(base)
    folders = {name: models.weights_folder(source) for name, source in experts.items()}
    watched = Watched(Store(store), {"base": folder, **folders}, "start again")
    prints = {name: models.fingerprint(expert) for name, expert in folders.items()}
    identity = {"base": models.fingerprint(folder), "dtype": str(kind).removeprefix("torch.")}
    live, tokenizer = models.load(folder, kind, device), models.load_tokenizer(folder)
    added = {name: models.added_tokens(expert, tokenizer).values() for name, expert in folders.items()}
    stored_dtype = models.stored_dtype(folder)
    needed = (1 + len(folders)) * live.num_parameters() * stored_dtype.itemsize
    stored = models.weights_of(models.load(folder, stored_dtype, models.home(device, needed)))
    changes = {name: models.changes(expert, stored, live.config, added[name]) for name, expert in folders.items()}
    held = needed + live.num_parameters() * kind.itemsize
    batch = resolve_batch_tokens(batch_tokens, live.config, kind, device, held)
    identity["runtime"] = f"{models.runtime_name(device)}, batches of {batch} tokens"
    return Asker(LiveMerger(live, changes, prints, stored), tokenizer, watched, identity, batch, scoring)
