"""lm-eval's scores, to the item; skipped where lm-eval is not installed.

benchmarks/answering.py makes an environment that has it: `.bench/lm_eval/bin/pip install jaxtyping beartype hypothesis
pytest`, then `.bench/lm_eval/bin/python -m pytest tests/test_harness.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import PreTrainedTokenizerBase

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from merge3 import answering, grading, harness, models
from merge3.harness import Answerer, evaluate, items_of

pytestmark = pytest.mark.filterwarnings("ignore")

TASKS: dict[str, dict[str, Any]] = {
    "plain": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "shots": {
        "output_type": "multiple_choice",
        "description": "Answer the questions about numbers.\n\n",
        "num_fewshot": 3,
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "{{question}} ",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "truth": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "even",
        "metric_list": [{"metric": "acc"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{number}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 20, "do_sample": False},
        "filter_list": [
            {
                "name": "digit",
                "filter": [{"function": "regex", "regex_pattern": r"(\d)"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "greedy": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{number}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False, "temperature": 1},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": " {{number}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
}
REFUSED: dict[str, dict[str, Any]] = {  # as items: lm-eval has to grade them itself
    "own_way": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "process_results": "!function own.results",
        "metric_list": [{"metric": "acc"}],
    },
    "several": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{[answer, 1]}}",
        "metric_list": [{"metric": "acc"}],
    },
}
LENGTH = 24  # documents of each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task definitions over a local file."""
    root = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": f"What is {n} and {n % 7}?",
            "choices": [str(n + n % 7), f"{n + 1 + n % 7}", "none of them", "é"],
            "answer": n % 4,
            "number": str(n % 10),
            "even": n % 2 == 0,
        }
        for n in range(LENGTH)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(root / "data.jsonl")}}}
    (root / "own.py").write_text("def results(document, results):\n    return {'acc': 1.0}\n")
    for name, own in (TASKS | REFUSED).items():
        splits = {"test_split": "test", "fewshot_split": "test"}
        text = yaml.safe_dump({"task": name, **data, **splits, **own})
        (root / f"{name}.yaml").write_text(text.replace("'!function own.results'", "!function own.results"))
    return root


@pytest.fixture
def answerer(saved: dict[str, Path], tokenizer: PreTrainedTokenizerBase) -> Answerer:
    model = models.load(saved["base"], models.resolve_dtype("float32", "cpu"))
    return Answerer(model, tokenizer, 2048)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_lm_evals_own_scores_are_reproduced_to_the_item(
    task: str, folder: Path, saved: dict[str, Path], answerer: Answerer
) -> None:
    manager = TaskManager(include_path=str(folder))
    theirs = HFLM(pretrained=str(saved["base"]), device="cpu", dtype="float32", batch_size=4)
    both = [
        simple_evaluate(model, tasks=[task], task_manager=manager, bootstrap_iters=0)["samples"][task]
        for model in (theirs, answerer)
    ]
    assert len(both[0]) == LENGTH
    varied = set()
    for one, other in zip(*both, strict=True):
        assert one["doc_id"] == other["doc_id"]
        assert one["arguments"] == other["arguments"]
        for metric in one["metrics"]:
            assert one[metric] == other[metric]
            varied.add(one[metric])
        if TASKS[task]["output_type"] == "generate_until":
            assert one["resps"] == other["resps"]
        else:
            likelihoods = [[float(value[0]) for value in sample["filtered_resps"]] for sample in (one, other)]
            np.testing.assert_allclose(*likelihoods, rtol=1e-4)
    assert varied <= {0, 1}


def test_scores_by_item_and_cut_replies(folder: Path, answerer: Answerer) -> None:
    scores = evaluate(answerer, ["plain", "written"], folder)
    assert len(scores) == 2 * LENGTH
    assert set(scores) >= {"plain:0", f"written:{LENGTH - 1}"}
    cut = {name for name, score in scores.items() if np.isnan(score)}
    assert cut == {f"{task}:{number}" for task, number in answerer.truncated}
    assert {scores[f"plain:{n}"] for n in range(LENGTH)} <= {0.0, 1.0}
    assert answerer.work.tokens > 0


@pytest.mark.parametrize("task", ["plain", "shots", "truth"])
def test_a_task_of_multiple_choice_becomes_items_with_the_same_scores(
    task: str, folder: Path, answerer: Answerer
) -> None:
    found = items_of(task, folder)
    assert (found[0].id, len(found)) == (f"{task}:0", LENGTH)
    answers, _ = answering.loglikelihoods(answerer.model, answerer.tokenizer, found, 2048)
    for metric, scoring in (("acc", "sum"), ("acc_norm", "characters"))[: 2 if task == "plain" else 1]:
        expected = evaluate(answerer, [task], folder, metric)
        divisors = answering.divisors(found, answerer.tokenizer, scoring)
        scores, _ = grading.grades(found, answers, divisors)
        assert scores.tolist() == [expected[item.id] for item in found]


def test_what_cannot_be_asked_is_refused(folder: Path, answerer: Answerer) -> None:
    with pytest.raises(ValueError, match="is no task of multiple choice"):
        items_of("written", folder)
    with pytest.raises(ValueError, match="'own_way' grades in a way of its own: let models answer it by"):
        items_of("own_way", folder)
    with pytest.raises(ValueError, match=r"task 'several', document 0: \[0, 1\] is not one of .*respond --task"):
        items_of("several", folder)
    answerer.model.config.max_position_embeddings = 10
    with pytest.raises(ValueError, match="the model's context holds"):
        evaluate(answerer, ["plain"], folder)
    assert harness.MOST_TOKENS == 256
