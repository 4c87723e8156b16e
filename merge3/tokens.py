"""Tokens: a base with the tokenizer of one of its fine-tunes, so that merges keep the tokens which that one added.

A chat tune of a plain base has tokens that the base lacks (`<|im_end|>`), and a chat template. A merge has its base's
tokenizer, and leaves both out; this makes a base that has them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from merge3 import licences, models
from merge3.export import SHARD, begun, finished

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def give(base: str, expert: str, out: Path) -> dict[str, int]:
    """Write `base` with the tokenizer of `expert`: its added tokens, with their rows, its chat template and its ends.

    How to generate (generation_config.json) is the expert's, too. Where the base has rows for none of these tokens,
    they are the expert's, which a merge then has unless other experts have rows for them, too. Everything else is the
    base's.

    Args:
        base: a folder, GGUF file or hub id.
        expert: the same, a whole model; an adapter has to be merged into its base first.
        out: a new folder.

    Returns:
        The tokens that the base lacked, or had by other numbers, and their numbers.

    Raises:
        FileExistsError: `out` holds something.
        FileNotFoundError: a model cannot be found, or the expert has no tokenizer.
        ValueError: the expert is an adapter, or does not fit the base.
        OSError: nothing can be written there.
    """
    folder, donor = models.weights_folder(base), models.weights_folder(expert)
    if models.is_adapter(donor):
        raise ValueError(
            f"{expert!r} is an adapter: merge it into its base first, by PEFT's `merge_and_unload` (`merge3 merge` "
            "leaves its tokens out)"
        )
    if not models.has_tokenizer(donor):
        raise FileNotFoundError(f"{expert!r} has no tokenizer")
    begun(out).rmdir()
    models.check_config(donor, models.config_of(folder))
    added = models.added_tokens(donor, models.load_tokenizer(folder))
    model, other = (models.load(source, models.stored_dtype(source)) for source in (folder, donor))
    written = models.written_dtype(folder)
    for tensor in models.tensors_of(model).values():  # loaded in the widest dtype of its files
        if torch.equal(tensor, narrow := tensor.to(written).to(tensor.dtype)):
            tensor.data = narrow.to(written)
    tokenizer = models.stored_tokenizer(donor)
    embedding, *_ = models.token_parameters(model)
    rows = len(models.weights_of(model)[embedding])
    if (wanted := 1 + max(tokenizer.get_vocab().values())) > rows:  # more than tokens where numbers are left out
        model.resize_token_embeddings(wanted, mean_resizing=False)
    ours, theirs = models.weights_of(model), models.weights_of(other)
    for name in ours.keys() & set(models.token_parameters(model)):
        ours[name][rows:] = 0.0
        numbers = [n for n in {*added.values(), *range(rows, len(ours[name]))} if n < len(theirs[name])]
        ours[name][numbers] = theirs[name][numbers].to(ours[name].dtype)
    for field in ENDS:
        setattr(model.config, field, getattr(other.config, field, None))
    model.generation_config = other.generation_config
    partial = begun(out)
    model.save_pretrained(partial, max_shard_size=SHARD)
    models.save_tokenizer(tokenizer, partial)
    models.copy_files(donor, models.SENTENCEPIECE, partial)
    models.copy_files(folder, models.PROCESSORS, partial)
    (partial / "README.md").write_text(_card(base, expert, out.name, added), encoding="utf-8")
    finished(partial, out)
    return added


def _card(base: str, expert: str, name: str, added: dict[str, int]) -> str:
    """A card that states the base's licence."""
    stated = licences.front(base)
    front = {key: stated[key] for key in ("license", "license_name", "license_link") if key in stated}
    head = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" if front else ""
    return (
        f"{head}# {name}\n\n{base} with the tokenizer of {expert}: {len(added)} tokens that it lacked, with the rows "
        "that they have there. Made with merge3, to be the base of merges.\n"
    )
