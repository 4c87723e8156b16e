"""Git's merge driver of dvc.lock, for `flows.share`: a stage's entry is one side's whole, or none.

What one side alone changed is taken. Where both did, no side has run what is merged: the entry is dropped, and `dvc
repro` runs the stage.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml


def merged(base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The entries by stage of two sides that began from `base`."""
    found = {}
    for stage in {**ours, **theirs}:
        first, mine, other = (side.get(stage) for side in (base, ours, theirs))
        if other in (mine, first):
            other = mine
        elif mine != first:
            continue
        if other is not None:
            found[stage] = other
    return found


def main(base: str, ours: str, theirs: str) -> None:
    """Write the merge of three files into `ours`."""
    files = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {} for path in (base, ours, theirs)]
    stages = merged(*(file.get("stages", {}) for file in files))
    text = yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False, allow_unicode=True, width=10**6)
    Path(ours).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
