"""Texts that people write, YAML and JSON, in which a key stands once: of two of one name the last would be taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError


def from_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: it is no YAML in UTF-8, or a key stands twice in a mapping; the file and the line are named.
    """
    try:
        return _Once(path.read_text(encoding="utf-8")).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{path} cannot be read as YAML: {where}{error.problem}") from error
    except (ValueError, yaml.YAMLError) as error:  # the former of bytes that are no text, and of days that are none
        raise ValueError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as YAML: its brackets are nested too deep") from error


def from_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        JSONDecodeError: it is no JSON.
        ValueError: a key stands twice in an object, or brackets are nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return made


class _Once(yaml.SafeLoader):
    """A key stands once in a mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key.value, str)):
            if key.value in seen:
                raise ComposerError(problem=f"{key.value!r} stands twice in a mapping", problem_mark=key.start_mark)
            seen.add(key.value)
        return node
