"""The live model of a search: base and experts from wherever they lie, loaded once and held against one another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from merge3 import models
from merge3.asker import Asker
from merge3.merging import LiveMerger
from merge3.plan import resolve_batch_tokens
from merge3.store import Store


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
    live, tokenizer = models.load(folder, kind, device), models.load_tokenizer(folder)
    for expert in folders.values():
        models.check_vocabulary(expert, tokenizer)
    stored_dtype = models.stored_dtype(folder)
    needed = (1 + len(folders)) * live.num_parameters() * stored_dtype.itemsize
    stored = models.weights_of(models.load(folder, stored_dtype, models.home(device, needed)))
    changes = {name: models.changes(expert, stored, live.config) for name, expert in folders.items()}
    held = needed + live.num_parameters() * kind.itemsize
    batch = resolve_batch_tokens(batch_tokens, live.config, kind, device, held)
    prints = {name: models.fingerprint(expert) for name, expert in folders.items()}
    identity = {
        "base": models.fingerprint(folder),
        "dtype": str(kind).removeprefix("torch."),
        "runtime": f"{models.runtime_name(device)}, batches of {batch} tokens",
    }
    return Asker(LiveMerger(live, changes, prints, stored), tokenizer, Store(store), identity, batch, scoring)
