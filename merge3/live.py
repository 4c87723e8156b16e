"""The live model of a search: base and experts from wherever they lie, loaded once and held against one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from merge3 import models
from merge3.asker import Asker
from merge3.ingredients import home
from merge3.merging import LiveMerger
from merge3.plan import ingredient_bytes, resolve_batch_tokens
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
    base: str, experts: Mapping[str, str], store: Path, *, device: str = "cpu", dtype: str = "auto"
) -> Asker:
    """An asker for merges of `experts` (folders, GGUF files or hub ids, by name), keeping answers in `store`.

    Raises:
        FileNotFoundError: a model is not there.
        MemoryError: the device has too little for base and experts.
        ValueError: an expert does not fit the base or is called `base`, or the device or dtype is not to be had here.
    """
    if "base" in experts:
        raise ValueError("an expert cannot be called 'base', which is the base's name: give it another")
    models.check_device(device)
    resolved = models.resolve_dtype(dtype, device)
    folders = {name: models.weights_folder(source) for name, source in {"base": base, **experts}.items()}
    watched = Watched(Store(store), folders, "start again")
    prints = {name: models.fingerprint(folder) for name, folder in folders.items()}
    return assembled(folders, prints, watched, device=device, dtype=resolved)


@models.enough_memory("for base and experts")
def assembled(
    folders: Mapping[str, Path],
    fingerprints: Mapping[str, str],
    store: Store,
    *,
    device: str,
    dtype: torch.dtype,
    batch_tokens: str | int = "auto",
    scoring: str = "sum",
    portable: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Asker:
    """An asker for merges of the models in `folders`, by name: `base`, and the experts.

    With `portable` answers count as given wherever they were made, else on a runtime like this one alone. `say` is told
    of experts' tokens that merges leave out.

    Raises:
        MemoryError: the device has too little for them.
        ValueError: an expert does not fit the base.
    """
    base, experts = folders["base"], {name: folder for name, folder in folders.items() if name != "base"}
    live, tokenizer = models.load(base, dtype, device), models.load_tokenizer(base)
    added = {name: models.added_tokens(folder, tokenizer) for name, folder in experts.items()}
    for name, tokens in added.items():
        if tokens:
            say(models.left_out(name, tokens))
    needed = ingredient_bytes(live, list(folders.values()), lambda source: models.written_dtype(source).itemsize)
    stored = models.weights_of(models.load_stored(base, home(device, needed)))
    changes = {name: models.changes(of, stored, live.config, added[name].values()) for name, of in experts.items()}
    own = live.num_parameters() * dtype.itemsize
    batch = resolve_batch_tokens(batch_tokens, live.config, dtype, device, own, needed)
    merger = LiveMerger(live, changes, {name: fingerprints[name] for name in experts}, stored)
    identity = {"base": fingerprints["base"], "dtype": models.dtype_name(dtype)}
    if not portable:
        identity["runtime"] = f"{models.runtime_name(device)}, batches of {batch} tokens"
    return Asker(merger, tokenizer, store, identity, batch, scoring)
