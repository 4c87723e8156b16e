"""The recipes: parameters that every stage takes, merges of the same models, and figures that `merge3 plan` gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import MistralConfig

from flows import check
from merge3 import mergefile
from merge3.benchmark import TASK, Form, to_items
from merge3.plan import GIGABYTE, Machine, plan

ROOT = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.parent.name for path in ROOT.glob("*/params.yaml"))
CARD = Machine(24 * GIGABYTE, 1000 * GIGABYTE, 70e12)


def params(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name / "params.yaml").read_text())
    return found


def test_each_recipe_is_listed() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(NAMES) == 3
    for name in NAMES:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert all(source in row for source in params(name)["experts"]["models"].values())


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_are_in_their_range(name: str) -> None:
    found = params(name)
    assert [*check.stages(found), *check.values(found)] == []
    assert "Not run here" in (ROOT / name / "params.yaml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_its_merge_is_of_the_same_models(name: str) -> None:
    merge, found = mergefile.read(ROOT / name / "merge.yaml"), params(name)
    assert (merge.base, dict(merge.experts)) == (found["base"]["model"], found["experts"]["models"])
    assert merge.recipe.method == found["evolve"]["method"]


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("japanese_mathematics", {"question": "1足す1は?", "answer_number": 2}, "2"),
        ("romanian_mathematics", {"question": "Cât fac 1 și 1?", "answer": "1 + 1 = 2\n#### 2"}, "2"),
    ],
)
def test_its_template_makes_items(name: str, row: dict[str, Any], expected: str) -> None:
    asked = params(name)["prepare"]["benchmark"]
    where = ("source", "name", "split", "test_split", "test_share")
    (item,) = to_items([row], Form(**{key: value for key, value in asked.items() if key not in where}))
    assert item.expected == (expected,)
    assert row["question"] in item.prompt
    assert not asked["source"].startswith(TASK)


def test_the_questions_of_arc_are_grouped_by_language() -> None:
    spec = importlib.util.spec_from_file_location("questions", ROOT / "multilingual_arc" / "questions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    row = {"id": "A_1", "question": "1 + 1?", "choices": {"text": ["2", "3"], "label": ["1", "2"]}, "answerKey": "2"}
    found = [item for language in module.WORDS for item in module.questions(language, [row])]
    assert sorted(item.group for item in found) == params("multilingual_arc")["studies"]["multilingual_arc"]["groups"]
    assert {item.options[item.answer] for item in found} == {"3"}
    assert found[0].prompt == "Frage: 1 + 1?\nAntwort: "
    assert len({item.id for item in found}) == 4


def test_the_figures_are_those_of_plan(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000}
    MistralConfig(**sizes, num_attention_heads=32, num_key_value_heads=8).save_pretrained(tmp_path)
    lines = (ROOT / "README.md").read_text().splitlines()
    two, three = (plan(tmp_path, [tmp_path] * count, "ties", CARD, tokens=2000) for count in (2, 3))
    assert [found.mode for found in (two, three)] == ["streamed", "streamed"]

    def row(label: str, *figures: str) -> None:
        assert f"| {label} | {' | '.join(figures)} |" in lines

    row("live model and answering, on the card", *(f"{found.streamed / GIGABYTE:.2f} GB" for found in (two, three)))
    row("base and experts, in main memory", *(f"{found.ingredients / GIGABYTE:.2f} GB" for found in (two, three)))
    seconds = [found.merging_seconds + found.answering_seconds for found in (two, three)]
    row("a candidate, at best", *(f"{second:.3f} s" for second in seconds))
    row("200 candidates, at best", *(f"{200 * second / 60:.1f} min" for second in seconds))
    assert "14.48 GB for each: 512 tokens are 7.4 s" in " ".join(lines)
    assert (round(two.model / GIGABYTE, 2), round(512 * two.model / CARD.bandwidth, 1)) == (14.48, 7.4)
