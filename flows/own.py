"""params.yaml for one's own models: the sections that name base, experts, items and device, the rest as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from yaml import YAMLError, safe_load

from flows.stage import PARAMS, read_params
from merge3 import checks, models
from merge3.benchmark import items_of, settings_of, with_share

STUDY = "mine"
SECTIONS = ("runtime", "base", "experts", "prepare", "evolve")  # that are rewritten in part
NULL = "tag:yaml.org,2002:null"


def rewrite(base: str, experts: Mapping[str, str], source: str, test_share: float | None, device: str) -> None:
    """Rewrite params.yaml, comments kept where what they speak of stays.

    Raises:
        FileNotFoundError: there is no params.yaml here, or no such base or items.
        ValueError: the items or params.yaml cannot be read, or a section is not there.
    """
    if not PARAMS.exists():
        raise FileNotFoundError(
            "there is no params.yaml here: run it in a clone of the repository, or use `merge3 run`, which needs none"
        )
    settings = with_share(settings_of(source), test_share, source)
    found = sorted({item.group for item in items_of(source)})
    roundtrip = YAML()  # keeps comments; safe: it makes plain values
    roundtrip.preserve_quotes, roundtrip.width = True, 160
    roundtrip.representer.add_representer(type(None), lambda made, _: made.represent_scalar(NULL, "null"))
    read_params()  # says what is no YAML, and no section
    params = roundtrip.load(PARAMS.read_text(encoding="utf-8"))
    if lacking := [name for name in SECTIONS if not isinstance(params.get(name), Mapping)]:
        raise ValueError(
            f"params.yaml has no section {lacking[0]!r}: `git checkout params.yaml` brings the one of the clone"
        )
    params["study"] = STUDY
    params["studies"] = CommentedMap(
        {STUDY: CommentedMap({"experts": _flow(_texts(list(experts))), "groups": _flow(_texts(found))})}
    )
    params["base"].update({"package": None, "model": base, "dtype": stored(base)})
    params["experts"].update({"models": CommentedMap(_texts(dict(experts))), "train": None})
    params["prepare"].update({"benchmark": CommentedMap(_texts(settings)), "problems": None})
    params["evolve"]["objective"] = "mean"  # there may be many groups, and the worst of them be of few items
    params["evolve"].yaml_add_eol_comment("of all items; or gain, worst, weights of groups, pareto", "objective")
    params["runtime"]["device"] = device
    if device.startswith("cuda"):
        params["runtime"]["batch_tokens"] = "auto"
    written = StringIO()
    roundtrip.dump(params, written)
    temporary = PARAMS.with_suffix(".tmp")
    temporary.write_text(written.getvalue(), encoding="utf-8")
    temporary.replace(PARAMS)


def stored(base: str) -> str:
    """The dtype in which a local base is stored, so that nothing of it is rounded; bfloat16, as most are, on a hub."""
    if not Path(base).exists():
        checks.small(base)
        return "bfloat16"
    return models.dtype_name(models.stored_dtype(base))


def _texts(value: Any) -> Any:
    """The same, with quotes around texts that would be read back as something else: yes, no, 1."""
    if isinstance(value, Mapping):
        return {_texts(key): _texts(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(one) for one in value]
    if not isinstance(value, str):
        return value
    try:
        same = safe_load(value) == value
    except YAMLError:
        same = False
    return value if same else DoubleQuotedScalarString(value)


def _flow(values: list[Any]) -> CommentedSeq:
    made = CommentedSeq(values)
    made.fa.set_flow_style()
    return made
