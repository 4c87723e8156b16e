"""Licences: what the cards of models state, and what follows for a merge of them.

Reads cards; gives no legal advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download

OPEN = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense", "isc"})
CARD = "README.md"
NOTICE = "cc-by-"  # credit is due; -nc forbids commercial use, -sa asks for the same licence, -nd forbids derivatives


def front(source: str | Path) -> dict[str, Any]:
    """The YAML at the head of a model's card; empty where no card can be had, or there is none in it."""
    path = Path(source) / CARD
    if not Path(source).exists():
        try:
            path = Path(hf_hub_download(str(source), CARD))
        except (OSError, ValueError):
            return {}
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        found = yaml.safe_load(text[4 : text.index("\n---", 4)])
    except yaml.YAMLError:
        return {}
    return dict(found) if isinstance(found, Mapping) else {}


def licence(source: str | Path) -> str | None:
    """The licence that the card of a folder or hub id states, as the hub writes it; its name where that is `other`.

    None where no card can be had, or it states none.
    """
    found = front(source)
    stated = found.get("license")
    if stated == "other":
        stated = found.get("license_name") or stated
    return stated.lower() if isinstance(stated, str) else None


def consequences(stated: Mapping[str, str | None]) -> list[str]:
    """What follows for who publishes a merge of models with these licences; empty where all state one open licence."""
    found = []
    if silent := [source for source, value in stated.items() if value is None]:
        found.append(f"No licence is known of {', '.join(silent)}: find out before you publish a merge.")
    known = sorted({value for value in stated.values() if value})
    if len(known) > 1:
        found.append(f"The licences differ ({', '.join(known)}): the terms of all of them bind this model.")
    for value in known:
        of = ", ".join(source for source, other in stated.items() if other == value)
        parts = set(value.split("-"))
        if "nd" in parts and value.startswith(NOTICE):
            found.append(f"{value} ({of}) forbids to share derivatives, and a merge is one.")
        if "nc" in parts:
            found.append(f"{value} ({of}) forbids commercial use, of a merge too.")
        if "sa" in parts and value.startswith(NOTICE):
            found.append(f"{value} ({of}) asks that a merge is shared under the same licence.")
        if value not in OPEN and not value.startswith(NOTICE):
            found.append(f"{value} ({of}) has terms of its own: read them before you publish a merge.")
    return found
