from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, build, fine_tune
from transformers import (
    DeepseekV2Config,
    Gemma4TextConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2MoeConfig,
)

from merge3 import answering, models
from merge3.asker import Asker
from merge3.estimate import ESTIMATORS, Z90, Estimate, Known
from merge3.evolve import FRONTS, SEARCHES, Genes
from merge3.finalists import combined, finals, on_common, own_variance, paired, whole
from merge3.fitness import TIE, Evaluation, Fitness
from merge3.genome import Genome
from merge3.grouped import Objective
from merge3.history import History, Joining, average, generation, joins
from merge3.irt import ItemParameters
from merge3.items import FreeText, Item
from merge3.ledger import Cost, flops
from merge3.merging import LiveMerger
from merge3.models import weights_of
from merge3.recipe import AVERAGE, Recipe, constant, standard_merges
from merge3.store import Store
from merge3.surface import UNSEEN
from merge3.surface import best as highest
from merge3.trees import tokenize

ITEMS = [Item(f"i{n}", f"What is {n} + {n}? ", (str(2 * n), str(2 * n + 1), "no"), 0) for n in range(8)]
RECIPE = constant("task_arithmetic", {"a": 0.5, "b": 0.3})


@pytest.fixture(scope="module")
def merger() -> LiveMerger:
    base = build(CONFIGS["llama"], seed=1)
    experts = {name: weights_of(fine_tune(base, seed)) for name, seed in (("a", 2), ("b", 3))}
    last = "model.norm.weight"
    experts["ruined"] = {last: torch.full_like(weights_of(base)[last], 3e38)}  # finite, but its logits overflow
    return LiveMerger(base, experts, {"a": "A", "b": "B", "ruined": "R"})


def asker(merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, root: Path, **identity: str) -> Asker:
    return Asker(merger, tokenizer, Store(root), {"base": "0", **identity}, 512)


def test_a_question_is_asked_once(merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    first = asker(merger, tokenizer, tmp_path).ask(RECIPE, ITEMS)
    assert (first.new, first.cost.tokens > 0) == (8, True)
    again = asker(merger, tokenizer, tmp_path).ask(RECIPE, ITEMS)
    assert (again.new, again.cost, again.answers) == (0, Cost(), first.answers)


def test_the_bytes_of_a_question_are_those_of_the_weights_and_of_the_file(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    it, recipes = asker(merger, tokenizer, tmp_path), [constant("linear", {"a": w, "b": 1 - w}) for w in (0.2, 0.6)]
    a, b = (sum(value.nbytes for value in merger.experts[name].values()) for name in "ab")
    written = sum(weights_of(merger.model)[name].nbytes for name in merger.changed)
    it.expect(recipes, ITEMS)
    first, second = (it.ask(recipe, ITEMS).cost for recipe in recipes)
    assert first.bytes_read == written + a + b  # the base's, too, once for both
    assert (first.bytes_written, second.bytes_read, second.bytes_written) == (2 * written, 0, 0)
    for recipe, cost in zip(recipes, (first, second), strict=True):
        _, lines = it.store.path(it.key(recipe)).read_bytes().split(b"\n", 1)
        assert cost.bytes_kept == len(lines) > 0
    alone = asker(merger, tokenizer, tmp_path).ask(constant("linear", {"a": 1.0}), ITEMS).cost
    assert (alone.bytes_read, alone.bytes_written) == (written + a, written)


def test_the_scoring_is_checked_before_anything_is_asked(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="scoring must be one of"):
        Asker(merger, tokenizer, Store(tmp_path), {}, 512, "acc")


def test_what_is_known_needs_no_merge(merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    asker(merger, tokenizer, tmp_path).ask(RECIPE, ITEMS)
    merger.apply(constant("linear", {"a": 1.0}))
    before = {name: value.clone() for name, value in weights_of(merger.model).items()}
    asker(merger, tokenizer, tmp_path).ask(RECIPE, ITEMS)
    assert all(torch.equal(before[name], value) for name, value in weights_of(merger.model).items())


def test_more_items_cost_only_those(merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    it = asker(merger, tokenizer, tmp_path)
    few = it.ask(RECIPE, ITEMS[:3])
    more = it.ask(RECIPE, ITEMS)
    assert (few.new, more.new) == (3, 5)
    assert more.answers[:3] == few.answers
    assert few.cost.tokens + more.cost.tokens == sum(len(tokenize(i, tokenizer).tokens) for i in ITEMS)
    assert it.cost(ITEMS).tokens == few.cost.tokens + more.cost.tokens
    assert it.cost(list(ITEMS)) is it.cost(ITEMS)  # reckoned once for all who are asked the same


def test_whether_options_are_packed_is_tried_once_and_of_the_base(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build(CONFIGS["llama"], seed=1)
    merger = LiveMerger(base, {"a": weights_of(fine_tune(base, 2))}, {"a": "A"})
    before = {name: value.clone() for name, value in weights_of(base).items()}
    tried, packable = list[bool](), answering.packable

    def of_the_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
        tried.append(all(torch.equal(before[name], value) for name, value in weights_of(model).items()))
        return packable(model, tokenizer)

    monkeypatch.setattr(answering, "packable", of_the_base)
    it = asker(merger, tokenizer, tmp_path)
    for weight in (40.0, 0.5):
        it.ask(constant("task_arithmetic", {"a": weight}), ITEMS)
    assert tried == [True]


def test_answers_are_those_of_the_merged_model(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    it = asker(merger, tokenizer, tmp_path)
    it.ask(constant("linear", {"b": 1.0}), ITEMS)  # the live model holds another candidate first
    answers = it.ask(RECIPE, ITEMS).answers
    merger.apply(RECIPE)
    assert answers == answering.loglikelihoods(merger.model, tokenizer, ITEMS, 512)[0]


def test_what_is_expected_is_answered_as_if_it_were_not(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    recipes = [constant("task_arithmetic", {"a": weight, "b": 0.3}) for weight in (0.1, 0.2, 0.3)]
    plain = asker(merger, tokenizer, tmp_path / "plain")
    answers = [plain.ask(recipe, ITEMS).answers for recipe in recipes]
    it = asker(merger, tokenizer, tmp_path / "together")
    it.expect([*recipes[:2], constant("linear", {"a": 1.0}, options={"normalize": 0.0}), recipes[0]], ITEMS)
    for n in (1, 2, 0, 1):  # in another order, with a stranger between, and again
        assert it.ask(recipes[n], ITEMS).answers == answers[n]
    it.expect(recipes, ITEMS)
    assert [it.ask(recipe, ITEMS).new for recipe in recipes] == [0, 0, 0]


def test_what_ends_a_reply_is_in_the_key_where_the_tokenizer_does_not_tell_it(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merger.model.generation_config, "eos_token_id", tokenizer.eos_token_id)
    plain = asker(merger, tokenizer, tmp_path).key(RECIPE)
    assert "ends" not in plain
    monkeypatch.setattr(merger.model.generation_config, "eos_token_id", [tokenizer.eos_token_id, 7])
    assert asker(merger, tokenizer, tmp_path).key(RECIPE) == plain | {"ends": sorted([tokenizer.eos_token_id, 7])}


@pytest.mark.parametrize("change", ["runtime", "dtype", "base"])
def test_another_identity_is_another_model(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, change: str
) -> None:
    asker(merger, tokenizer, tmp_path).ask(RECIPE, ITEMS[:2])
    assert asker(merger, tokenizer, tmp_path, **{change: "other"}).ask(RECIPE, ITEMS[:2]).new == 2


def test_one_model_by_two_recipes_is_asked_once(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    it = asker(merger, tokenizer, tmp_path)
    it.ask(constant("linear", {"a": 1.0, "b": 1.0}), ITEMS)
    assert it.ask(constant("linear", {"b": 0.5, "a": 0.5}), ITEMS).new == 0


def test_a_broken_model_is_remembered_and_never_graded(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    recipe = constant("task_arithmetic", {"ruined": 1.0})
    first, again = (asker(merger, tokenizer, tmp_path).ask(recipe, ITEMS) for _ in range(2))
    assert (first.answers, again.answers) == (None, None)
    assert first.cost.tokens > 0  # what it took to find out is in the ledger
    assert again.cost == Cost()
    known = Known(
        ItemParameters(np.ones((8, 1)), np.zeros(8)), np.arange(4), np.full(4, 0.25), np.tile([[0.0], [1.0]], (1, 8))
    )
    evaluation = Fitness(asker(merger, tokenizer, tmp_path), ITEMS, ESTIMATORS["mean"], known)(recipe)
    assert (evaluation.estimate, evaluation.fitness, evaluation.cost) == (None, -np.inf, Cost())
    assert evaluation.failed == 4
    assert asker(merger, tokenizer, tmp_path).ask(RECIPE, ITEMS).new == 8  # the live model is whole again


def test_fitness_is_the_estimate_of_the_subsets_answers(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    known = Known(
        ItemParameters(np.ones((8, 1)), np.zeros(8)),
        np.array([1, 4, 6]),
        np.full(3, 1 / 3),
        np.tile([[0.0], [1.0]], (1, 8)),
    )
    it = asker(merger, tokenizer, tmp_path)
    fitness = Fitness(it, ITEMS, ESTIMATORS["mean"], known)
    chosen = [ITEMS[i] for i in (1, 4, 6)]
    expected = it.correct(chosen, it.ask(RECIPE, chosen).answers).mean()
    margins = it.margins(chosen, it.ask(RECIPE, chosen).answers or [])
    assert fitness(RECIPE).estimate.score == pytest.approx(expected)
    assert fitness(RECIPE).fitness == pytest.approx(expected + TIE * np.tanh(margins).mean())
    assert fitness(RECIPE) == fitness(RECIPE)
    assert fitness.judge(it.correct(chosen, it.ask(RECIPE, chosen).answers or []), margins) == fitness(RECIPE)


def test_an_estimator_of_margins_is_not_told_them_twice(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    relatives = np.random.default_rng(0).normal(size=(5, 8))
    items = ItemParameters(np.ones((8, 1)), np.zeros(8))
    known = Known(items, np.array([1, 4, 6]), np.full(3, 1 / 3), np.ones((1, 8)), relatives=relatives)
    found = Fitness(asker(merger, tokenizer, tmp_path), ITEMS, ESTIMATORS["margin_irt"], known)(RECIPE)
    assert found.margin != 0
    assert found.fitness == found.value


@pytest.mark.parametrize("wanted", [None, "pareto"])
def test_a_search_knows_what_merges_answered_in_full_are_worth(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, wanted: str | None
) -> None:
    questions = [replace(item, group="xy"[n % 2]) for n, item in enumerate(ITEMS)]
    items = ItemParameters(np.ones((8, 1)), np.zeros(8))
    known = Known(items, np.array([1, 4, 6]), np.full(3, 1 / 3), np.tile([[0.0], [1.0]], (1, 8)))
    mean, it = ESTIMATORS["weighted_mean"], asker(merger, tokenizer, tmp_path)

    def fitness_of(part: Known) -> Fitness:
        objective = Objective(wanted, mean, part, [item.group for item in questions]) if wanted else None
        return Fitness(it, questions, mean, part, objective)

    genome = Genome(("task_arithmetic",), ("a", "b"), ("attention", "mlp"), 1, (0.0, 1.0), (0.2, 1.0), 0)
    genes = Genes(len(genome.names))
    start = np.full(genes.count, 0.5)
    search = FRONTS["pooled"](genes, start, 0.2, 4, 0, 2) if wanted else SEARCHES["pooled"](genes, start, 0.2, 4, 0)
    generator = np.random.default_rng(0)
    merges = [genome.draw((0.5, 1.5), generator) for _ in range(6)]
    far = replace(merges[0], method="ties")  # no merge of this search
    evaluations = [fitness_of(whole(known))(recipe) for recipe in [*merges, far]]
    merges_and_more, told = [*merges, far, merges[0]], [*evaluations, Evaluation(None, Cost())]  # the last is broken
    few = History(fitness_of(known), genome)
    few.know(search, merges_and_more, told)
    assert not few.known  # its candidates' estimates are at another level
    history = History(fitness_of(whole(known)), genome)
    history.know(search, merges_and_more, told)
    truths = [it.correct(questions, it.ask(recipe, questions).answers or []).mean() for recipe in merges]
    assert [one.score for one in history.known] == pytest.approx(truths)
    assert len(history.rows) == history.spent.tokens == 0  # they are none of its candidates
    generation(search, history, lambda count: None)
    assert len(history.surface().scores) == 6 + len(history.told)
    if wanted:
        assert len(search.surfaces) == 2
        assert set(history.front(9)) <= set(history.recipes)
    else:
        assert history.best["phenotype"] in history.recipes
        leaders = history.leaders(20, search)
        assert {history.phenotype(recipe) for recipe in merges}.isdisjoint(leaders)
        heights = np.array([mean for _, mean, _ in leaders.values()])
        first, after = np.flatnonzero(np.isnan(heights))[[0, -1]]  # the standard merges, of which it knows nothing
        assert 0 < first <= 4
        assert heights[0] == np.nanmax(heights)
        assert (np.diff(heights[after + 1 :]) <= 0).all()
        assert len(heights) > after + 1


GENOME = Genome(("task_arithmetic",), ("a", "b"), ("attention", "mlp"), 1, (0.0, 1.0), (0.2, 1.0), 0)


def family(it: Asker, wanted: str | None) -> tuple[list[Recipe], Known, Callable[..., Fitness]]:
    """Six merges, what is known by their margins, and the fitness by what is known, by margins or in full."""
    questions = [replace(item, group="xy"[n % 2]) for n, item in enumerate(ITEMS)]
    generator = np.random.default_rng(0)
    merges = [GENOME.draw((0.5, 1.5), generator) for _ in range(6)]
    relatives = np.stack([it.margins(questions, it.ask(recipe, questions).answers or []) for recipe in merges])
    items = ItemParameters(np.ones((8, 1)), np.zeros(8))
    known = Known(items, np.array([1, 4, 6]), np.full(3, 1 / 3), np.ones((1, 8)), relatives=relatives)

    def fitness_of(part: Known, estimator: str = "margin_irt") -> Fitness:
        chosen, labels = ESTIMATORS[estimator], [item.group for item in questions]
        return Fitness(it, questions, chosen, part, Objective(wanted, chosen, part, labels) if wanted else None)

    return merges, known, fitness_of


@pytest.mark.parametrize("wanted", [None, "worst", "pareto"])
def test_a_leader_that_joins_the_relatives_tells_of_all_candidates(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, wanted: str | None
) -> None:
    it = asker(merger, tokenizer, tmp_path)
    merges, known, fitness_of = family(it, wanted)
    everything = fitness_of(whole(known), "weighted_mean")
    genes = Genes(len(GENOME.names))
    start = np.full(genes.count, 0.5)
    front = wanted == "pareto"
    search = FRONTS["pooled"](genes, start, 0.2, 4, 0, 2) if front else SEARCHES["pooled"](genes, start, 0.2, 4, 0)
    history = History(fitness_of(known), GENOME)
    history.know(search, merges, [everything(recipe) for recipe in merges])
    assert len(history.known) == 6
    generation(search, history, lambda count: None)
    assert history.cost.tokens == history.spent.tokens > 0  # nothing was kept from before
    before, leader = dict(history.told), history.best["phenotype"]
    top = GENOME.decode(highest(history.surface(), search.seed))  # where the surface is highest, which was not asked
    assert history.phenotype(top) not in history.told

    def choose(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([0, 3, 5]), np.full(3, 1 / 3)

    history.join(search, Joining(1, everything, fitness_of, choose), lambda count: None)
    assert history.cost.tokens == history.spent.tokens + history.relatives_tokens
    joined = history.fitness.known
    assert joined.relatives is not None
    assert known.relatives is not None
    answered = [it.ask(recipe, ITEMS).answers or [] for recipe in (top, history.recipes[leader])]
    np.testing.assert_array_equal(joined.relatives, [*known.relatives, *(it.margins(ITEMS, own) for own in answered)])
    assert joined.subset.tolist() == [0, 3, 5]
    rest = [item for place, item in enumerate(ITEMS) if place not in known.subset]
    assert history.relatives_tokens == it.cost(ITEMS).tokens + it.cost(rest).tokens  # the leader was asked some before
    assert list(history.proven) == [history.phenotype(top)]
    proven = history.proven[history.phenotype(top)]
    assert (proven.score, proven.error) == (everything(top).value, 0.0)
    highest_of_all = replace(proven, score=9.0, groups=(9.0,) * len(proven.groups), genotype=np.zeros(genes.count))
    history.proven[history.phenotype(top)] = highest_of_all
    assert history.best == {"phenotype": history.phenotype(top)} | {
        name: getattr(everything(top).estimate, part)
        for name, part in (("estimate", "score"), ("low", "low"), ("high", "high"))
    }
    if front:
        assert history.phenotype(GENOME.decode(highest_of_all.genotype)) in history.front(99)
    history.proven[history.phenotype(top)] = proven
    exact = history.told[leader]
    assert (exact.score, exact.error) == (everything(history.recipes[leader]).value, 0.0)
    then = fitness_of(replace(known, relatives=joined.relatives))  # of those that were asked the first items
    for name, told in history.told.items():
        assert (told.genotype == before[name].genotype).all()
        if name != leader:
            assert told.score == then(history.recipes[name]).fitness
    now = {name: then(history.recipes[name]).estimate for name in history.told} | {
        leader: everything(history.recipes[leader]).estimate
    }
    for row in history.rows:
        estimate = now[row["phenotype"]]
        assert (row["estimate"], row["low"], row["high"]) == (estimate.score, estimate.low, estimate.high)
        assert row["items"] == (8 if row["phenotype"] == leader else 3)
    both = [*history.known, *history.proven.values(), *history.told.values()]
    scores = np.array([one.groups or (one.score,) for one in both])
    np.testing.assert_array_equal([surface.scores for surface in search.surfaces], scores.T)
    name, told = next(iter(history.told.items()))
    again = history.evaluate(told.genotype, history.recipes[name], {})
    assert (again.cost, history.rows[-1]["tokens"]) == (Cost(), 0)  # not asked the new items
    assert again.value == told.score
    met = history.evaluate(proven.genotype, top, {})  # a candidate that was proven before
    assert (met.cost, met.value, history.rows[-1]["tokens"]) == (Cost(), proven.score, 0)
    generation(search, history, lambda count: None)
    for _ in range(2):  # each candidate once, and then no more
        history.join(search, Joining(1, everything, fitness_of, choose, 99), lambda count: None)
    assert {one.error for one in history.told.values()} == {0.0}
    spent = history.spent.tokens + history.relatives_tokens
    assert spent == len(history.joined) * it.cost(ITEMS).tokens  # no question is counted twice
    assert len(history.joined) <= len(history.told) + 3  # and where the surface was highest, each time


def test_leaders_join_before_as_many_generations_as_are_planned(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, known, fitness_of = family(asker(merger, tokenizer, tmp_path), None)
    for every in (1, 2, 3, 7):
        joining = Joining(every, fitness_of(whole(known)), fitness_of, None)
        for generations in range(1, 20):
            assert sum(joining.due(number) for number in range(generations)) == joins(every, generations)


def test_the_uniform_average_is_that_where_no_search_can_begin_there() -> None:
    narrow = Genome(("task_arithmetic",), ("a", "b"), ("attention", "mlp"), 1, (0.0, 0.2), (0.2, 1.0), 0)
    assert average(narrow) == standard_merges(("a", "b"))[AVERAGE]
    knots = [by_group.values() for by_group in average(GENOME).weights.values()]
    assert {value for values in knots for several in values for value in several} == {0.5}


def test_a_generation_is_asked_where_what_is_left_will_do_for_it_and_for_leaders_that_join_before(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, known, fitness_of = family(asker(merger, tokenizer, tmp_path), None)
    search = SEARCHES["pooled"](Genes(len(GENOME.names)), GENOME.start, 0.2, 4, 0)
    history = History(fitness_of(known), GENOME)
    joining = Joining(2, fitness_of(whole(known), "weighted_mean"), fitness_of, None)

    def goes_on(left: int) -> bool:
        return generation(search, history, lambda count: None, joining, float(left))

    assert goes_on(0)  # the first is asked whatever it takes
    enough = 4 * history.fitness.cost.tokens
    assert not goes_on(enough - 1)
    assert goes_on(enough)
    assert not goes_on(enough + joining.tokens - 1)
    assert not history.joined
    assert goes_on(enough + joining.tokens)
    assert len(history.joined) == joining.count
    assert {row["generation"] for row in history.rows} == {0, 1, 2}


def test_a_broken_candidate_is_kept_from_where_the_search_goes_and_asked_once(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    it = asker(merger, tokenizer, tmp_path)
    _, known, fitness_of = family(it, None)
    search = SEARCHES["pooled"](Genes(len(GENOME.names)), GENOME.start, 0.2, 4, 0)
    history = History(fitness_of(known), GENOME)
    generation(search, history, lambda count: None)
    place, broken = np.full(len(GENOME.names), 0.9), constant("task_arithmetic", {"a": 0.5, "ruined": 1.0})
    first, again = (history.evaluate(place, broken, {}) for _ in range(2))
    assert (first.estimate, again.estimate) == (None, None)
    assert first.cost.tokens > 0
    assert (again.cost, history.rows[-1]["tokens"]) == (Cost(), 0)
    assert [one.tolist() for one in history.failed] == [place.tolist()]
    history.join(search, Joining(1, fitness_of(whole(known), "weighted_mean"), fitness_of, None), lambda count: None)
    genes = search.surfaces[0].genes  # of the search that was told all anew
    assert len(genes) == len(history.told) + len(history.proven) + 1
    assert genes[-1].tolist() == place.tolist()


def test_a_search_is_told_what_a_candidate_is_worth_with_its_margins(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, known, fitness_of = family(asker(merger, tokenizer, tmp_path), None)
    history = History(fitness_of(known, "mean"), GENOME)
    made = history.evaluate(GENOME.start, GENOME.decode(GENOME.start), {})
    (told,) = history.told.values()
    assert made.tie != 0
    assert told.score == made.value + made.tie


def test_a_leader_that_leaves_an_item_open_joins_nothing_and_is_not_asked_again(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    asked, it = [*ITEMS[:7], *written(1, 1)], asker(merger, tokenizer, tmp_path)  # the last is cut off
    items, relatives = ItemParameters(np.ones((8, 1)), np.zeros(8)), np.random.default_rng(0).normal(size=(6, 8))
    known = Known(items, np.array([1, 4, 6]), np.full(3, 1 / 3), np.ones((1, 8)), relatives=relatives)

    def fitness_of(part: Known, estimator: str = "margin_irt") -> Fitness:
        return Fitness(it, asked, ESTIMATORS[estimator], part)

    search = SEARCHES["pooled"](Genes(len(GENOME.names)), GENOME.start, 0.2, 4, 0)
    history = History(fitness_of(known), GENOME)
    generation(search, history, lambda count: None)
    before, told = dict(history.told), list[int]()
    for _ in range(2):
        history.join(search, Joining(1, fitness_of(whole(known), "weighted_mean"), fitness_of, None), told.append)
    assert sum(told) == 8 * len(history.joined) > 0
    assert history.fitness.known is known
    assert (history.exact, history.proven, history.told) == ({}, {}, before)


@pytest.mark.parametrize("wanted", [None, "worst"])
def test_the_best_of_all_that_answered_everything_wins(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, wanted: str | None
) -> None:
    _, known, fitness_of = family(asker(merger, tokenizer, tmp_path), wanted)
    everything = fitness_of(whole(known), "weighted_mean")
    search = SEARCHES["pooled"](Genes(len(GENOME.names)), GENOME.start, 0.2, 4, 0)
    history = History(fitness_of(known), GENOME)
    generation(search, history, lambda count: None)
    history.join(search, Joining(1, everything, fitness_of, None), lambda count: None)
    leaders = history.leaders(5, search)
    assert set(history.leaders(99, search)).isdisjoint(history.exact)  # what they are worth is known
    part = replace(known, subset=np.array([0, 3]), weights=np.full(2, 0.5))
    fair = [fitness_of(part, "weighted_mean")]
    told = list[int]()
    winner = history.verify(leaders, fair, told.append, everything)
    assert set(history.exact) == {*history.joined, *list(history.exact)[-3:]}  # the two best, the uniform average
    truths = {name: everything(history.recipes[name]).value for name in history.exact}
    assert truths[winner["phenotype"]] == max(truths.values())
    rows = {row["phenotype"]: row for row in history.finalists}
    assert {rows[name]["items"] for name in history.exact} == {8}
    assert rows[history.phenotype(history.average)]["merge"] == AVERAGE
    assert sum(told) <= finals(5, [2], 8) + 8
    lost = next(name for name in truths if name != winner["phenotype"])
    history.exact[lost] = replace(history.exact[lost], estimate=Estimate(2.0, 2.0, 2.0, 0.0), objective=2.0)
    assert history.verify(leaders, fair, told.append, everything)["phenotype"] == lost  # whether asked before or not
    for name, one in history.exact.items():
        history.exact[name] = replace(one, estimate=Estimate(1.0, 1.0, 1.0, 0.0), objective=1.0)
    even = history.verify(leaders, fair, told.append, everything)
    assert even["phenotype"] == history.phenotype(history.average)  # of equals what is made by hand


def test_the_better_half_of_the_leaders_goes_on_by_surface_and_fresh_items(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, known, fitness_of = family(asker(merger, tokenizer, tmp_path), None)
    said, told = list[str](), list[int]()
    history = History(fitness_of(known), GENOME, lambda name, work: (said.append(name), work())[1])
    recipes = [constant("task_arithmetic", {"a": weight, "b": 0.2}) for weight in (0.1, 0.3, 0.5, 0.7, 0.9)]
    means = [0.2, 0.6, 0.4, 0.8, np.nan]
    leaders = {history.phenotype(one): (one, mean, mean / 9) for one, mean in zip(recipes, means, strict=True)}
    rounds = [
        fitness_of(replace(known, subset=np.arange(n), weights=np.full(n, 1 / n)), "weighted_mean") for n in (3, 5, 7)
    ]
    winner = history.verify(leaders, rounds, told.append)
    left = list(leaders)
    for number, (fitness, count) in enumerate(zip(rounds, (5, 3, 2), strict=True)):
        assert [name for name in said if name.startswith(f"finalist {number}-")] == [
            f"finalist {number}-{name[:8]}" for name in left
        ]
        assert len(left) == count
        made = [fitness(leaders[name][0]) for name in left]
        surface = np.array([leaders[name][1:] for name in left]).T
        scores = combined(*surface, np.array([one.value for one in made]), own_variance(made, fitness))
        left = [left[place] for place in np.argsort(-scores, kind="stable")][: (count + 1) // 2]
    assert winner["phenotype"] == left[0]
    assert sum(told) == finals(5, [3, 5, 7])


def test_who_leaves_hard_questions_unfinished_is_compared_on_the_others_alone(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, known, fitness_of = family(asker(merger, tokenizer, tmp_path), None)
    fitness = fitness_of(whole(known), "weighted_mean")
    honest = np.array([1, 1, 1, 1, 1, 0, 0, 0], dtype=float)
    rambling = np.array([1, 1, 1, 0, 1, np.nan, np.nan, np.nan])
    silent = np.array([1, *[np.nan] * 3, 0, 0, 0, 0])
    made = {n: fitness.judge(row, row) for n, row in (("honest", honest), ("rambling", rambling), ("silent", silent))}
    assert made["rambling"].value > made["honest"].value
    two = on_common(fitness, {name: made[name] for name in ("honest", "rambling")})
    assert {name: one.value for name, one in two.items()} == {"honest": 1.0, "rambling": 0.8}
    three = on_common(fitness, made)  # all three have two in common, which are too few: a rambler is out
    assert set(three) < set(made)
    assert "honest" in three
    assert on_common(fitness, {"honest": made["honest"]}) == {"honest": made["honest"]}
    assert on_common(fitness, {"broken": Evaluation(None, Cost())}) == {}


def test_finalists_are_told_by_the_questions_that_all_of_them_have_scored(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    half = FreeText(stop=tuple(map(chr, range(64, 127))), max_tokens=2, extract="text", match="contains")
    asked = [*ITEMS, *(Item(f"w{n}", f"Write {n}", expected=("",), free=half) for n in range(6))]
    it, items = asker(merger, tokenizer, tmp_path), ItemParameters(np.ones((14, 1)), np.zeros(14))
    known = Known(items, np.array([1, 4, 6]), np.full(3, 1 / 3), np.ones((1, 14)))
    few, everything = (
        Fitness(
            it,
            asked,
            ESTIMATORS["weighted_mean"],
            replace(known, subset=part, weights=np.full(len(part), 1 / len(part))),
        )
        for part in (np.arange(2, 14), np.arange(14))
    )
    recipes = [constant("task_arithmetic", {"a": weight, "b": 0.2}) for weight in (0.1, 0.5, 0.9)]
    history = History(few, GENOME)
    leaders = {history.phenotype(recipe): (recipe, np.nan, np.nan) for recipe in recipes}
    own = {name: few(recipe) for name, (recipe, _, _) in leaders.items()}
    assert len({one.failed for one in own.values()}) == 2
    history.verify(leaders, [few], lambda count: None)
    common = ~np.isnan([one.correct for one in own.values()]).any(axis=0)
    for row in history.finalists:
        correct = own[row["phenotype"]].correct
        assert correct is not None
        assert (row["estimate"], row["items"]) == (pytest.approx(correct[common].mean()), common.sum())
    history = History(few, GENOME)
    history.exact = {name: everything(recipe) for name, (recipe, _, _) in leaders.items()}
    history.verify({}, [few], lambda count: None, everything)
    common = ~np.isnan([one.correct for one in history.exact.values()]).any(axis=0)
    assert len(history.finalists) == 4  # with the uniform average
    assert {row["items"] for row in history.finalists} == {common.sum()}


def test_the_two_best_that_are_left_answer_everything_and_are_counted(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    it = asker(merger, tokenizer, tmp_path)
    items = ItemParameters(np.ones((8, 1)), np.zeros(8))
    known = Known(items, np.array([1, 4, 6]), np.full(3, 1 / 3), np.ones((1, 8)))
    mean, said = ESTIMATORS["weighted_mean"], list[str]()
    history = History(Fitness(it, ITEMS, mean, known), GENOME, lambda name, work: (said.append(name), work())[1])
    recipes = [constant("task_arithmetic", {"a": weight, "b": 0.2}) for weight in (0.1, 0.3, 0.7)]
    leaders = {history.phenotype(recipe): (recipe, np.nan, np.nan) for recipe in recipes}
    rounds = [Fitness(it, ITEMS, mean, replace(known, subset=np.arange(n), weights=np.full(n, 1 / n))) for n in (3, 5)]
    history.verify(leaders, rounds, lambda count: None, Fitness(it, ITEMS, mean, whole(known)))
    assert [sum(name.startswith(f"finalist {number}-") for name in said) for number in range(3)] == [3, 2, 3]
    assert history.finalists_tokens == history.cost.tokens > 0  # nothing was kept from before


def test_where_all_leaders_are_broken_the_best_that_was_asked_wins(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, known, fitness_of = family(asker(merger, tokenizer, tmp_path), None)
    search = SEARCHES["pooled"](Genes(len(GENOME.names)), GENOME.start, 0.2, 4, 0)
    history = History(fitness_of(known), GENOME)
    generation(search, history, lambda count: None)
    broken = constant("task_arithmetic", {"a": 0.5, "ruined": 1.0})
    fair = [fitness_of(replace(known, subset=np.array([0, 3]), weights=np.full(2, 0.5)), "weighted_mean")]
    winner = history.verify({history.phenotype(broken): (broken, 0.9, 0.1)}, fair, lambda count: None)
    assert winner["phenotype"] == history.best["phenotype"]
    assert len(history.finalists) == 2
    whole_ones, far = history.surface(), np.full(len(GENOME.names), 0.9)
    history.failed.append(far)
    np.testing.assert_array_equal(history.surface().genes, [*whole_ones.genes, far])
    np.testing.assert_array_equal(history.surface().scores, [*whole_ones.scores, whole_ones.scores.min()])


def test_a_front_stands_on_the_level_of_the_fresh_items(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, known, fitness_of = family(asker(merger, tokenizer, tmp_path), "pareto")
    search = FRONTS["pooled"](Genes(len(GENOME.names)), GENOME.start, 0.2, 4, 0, 2)
    history = History(fitness_of(known), GENOME)
    generation(search, history, lambda count: None)
    fresh = fitness_of(replace(known, subset=np.array([0, 2, 3, 5]), weights=np.full(4, 0.25)), "weighted_mean")
    flattered = {name: (recipe, np.full(2, 0.8), np.full(2, 0.01)) for name, (recipe, _, _) in history.front(4).items()}
    rows = history.verify_front(flattered, fresh, lambda count: None)
    for group in "xy":
        made = [fresh(history.recipes[row["phenotype"]]).groups[group] for row in rows]
        found, own = np.array([one.score for one in made]), np.mean([one.standard_error**2 for one in made])
        share = UNSEEN**2 / (UNSEEN**2 + own)
        scores, half = (1 - share) * found.mean() + share * found, Z90 * np.sqrt(share * own + own / len(rows))
        assert [row[f"score {group}"] for row in rows] == pytest.approx(scores)
        assert [row[f"low {group}"] for row in rows] == pytest.approx(np.maximum(scores - half, 0))
        assert [row[f"high {group}"] for row in rows] == pytest.approx(np.minimum(scores + half, 1))
    bent = [[0.5, 0.5], [0.8, 0.8], [0.9, 0.1]]  # by the surface; by fresh items all are alike
    named = zip(flattered.items(), bent, strict=True)
    rows = history.verify_front(
        {n: (one[0], np.array(at), one[2]) for (n, one), at in named}, fresh, lambda count: None
    )
    assert [(row["front"], row["knee"]) for row in rows] == [(False, False), (True, True), (True, False)]


def test_leaders_are_weighed_by_the_variance_of_what_is_searched_for(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    questions = [replace(item, group="xy"[n % 2]) for n, item in enumerate(ITEMS)]
    items = ItemParameters(np.ones((8, 1)), np.zeros(8))
    known = Known(items, np.arange(6), np.full(6, 1 / 6), np.tile([[0.0], [1.0]], (1, 8)))
    mean, it = ESTIMATORS["mean"], asker(merger, tokenizer, tmp_path)
    correct = np.array([[1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 0]], dtype=float)
    leaders = [Evaluation(None, Cost(), correct=row) for row in correct]
    worst = Objective("worst", mean, known, [item.group for item in questions])
    apart = [paired(correct[:, first::2], 4) for first in (0, 1)]  # of each group, of whose four items three are asked
    assert own_variance(leaders, Fitness(it, questions, mean, known, worst)) == pytest.approx(np.mean(apart))
    assert own_variance(leaders, Fitness(it, questions, mean, known)) == paired(correct, 8)


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_flops_are_two_a_weight_and_token(architecture: str) -> None:
    made = build(CONFIGS[architecture], seed=1)
    vocabulary = 259 * 32
    tables = vocabulary * (2 if architecture == "qwen2" else 1)
    body = sum(p.numel() for p in made.parameters()) - tables
    assert flops(made, answering.Work(10, 3)) == 2 * (10 * body + 3 * vocabulary)


def test_a_token_goes_through_the_experts_that_it_is_routed_to() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=259, num_local_experts=8, num_experts_per_tok=2)
    alone = MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=259, num_local_experts=2, num_experts_per_tok=2)
    routers = 2 * (8 - 2) * 32  # that choose among more
    spent = [flops(build(one, seed=1), answering.Work(10, 3)) for one in (config, alone)]
    assert spent[0] == spent[1] + 2 * 10 * routers


@pytest.mark.parametrize(
    "config",
    [
        Qwen2MoeConfig(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16),
        DeepseekV2Config(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=0),
        Gemma4TextConfig(enable_moe_block=True, num_experts=8, top_k_experts=2, moe_intermediate_size=16),
    ],
    ids=lambda config: config.model_type,
)
def test_mixtures_tell_their_experts_by_several_names(config: PretrainedConfig) -> None:
    made = models.skeleton(config)
    experts = sum(tensor.numel() for name, tensor in made.named_parameters() if ".experts." in name)
    assert models.routed_past(made) == experts * 6 // 8 > 0


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3.0, 4.0, 5, 6, 7) + Cost(10, 20, 30.0, 40.0, 50, 60, 70) == Cost(11, 22, 33.0, 44.0, 55, 66, 77)
    assert set(Cost().to_dict().values()) == {0}


# --- failures


def written(count: int, limit: int) -> list[Item]:
    """Free-text items of which all but the first `limit` may be as long as they like."""
    free = FreeText(stop=tuple(map(chr, range(32, 127))), max_tokens=200, extract="text", match="contains")
    short = FreeText(stop=("\0",), max_tokens=1, extract="text")
    return [Item(f"w{n}", f"Write {n}", expected=("",), free=short if n < limit else free) for n in range(count)]


def test_answers_that_failed_are_left_out_and_never_wrong(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    asked = [*written(4, 2), *ITEMS[:4]]  # two are truncated, two are right whatever they say
    known = Known(
        ItemParameters(np.ones((8, 1)), np.zeros(8)), np.arange(8), np.full(8, 1 / 8), np.tile([[0.0], [1.0]], (1, 8))
    )
    it = asker(merger, tokenizer, tmp_path)
    scores, reasons = it.grades(asked, it.ask(RECIPE, asked).answers)
    assert (np.isnan(scores).tolist(), reasons[:2]) == ([True] * 2 + [False] * 6, ["truncated"] * 2)
    evaluation = Fitness(it, asked, ESTIMATORS["mean"], known)(RECIPE)
    assert evaluation.failed == 2
    assert evaluation.estimate.score == pytest.approx(scores[2:].mean())
    assert asker(merger, tokenizer, tmp_path).ask(RECIPE, asked).new == 0  # a failure is kept like an answer


def test_what_is_estimated_of_a_candidate_that_left_questions_open(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    items = ItemParameters(np.ones((8, 1)), np.zeros(8))
    known = Known(items, np.arange(8), np.full(8, 1 / 8), np.tile([[0.0], [1.0]], (1, 8)))
    it, mean = asker(merger, tokenizer, tmp_path), ESTIMATORS["mean"]
    correct = np.array([1.0, 0.0, 1.0, 1.0, *[np.nan] * 4])
    margins = np.where(np.isnan(correct), np.nan, np.linspace(-0.5, 3.0, 8))
    made = Fitness(it, ITEMS, mean, known).judge(correct, margins, Cost(tokens=5))
    assert made.estimate is not None  # half of them suffice
    assert (made.estimate.score, made.failed) == (0.75, 4)
    assert made.margin == pytest.approx(np.tanh(margins[:4]).mean())
    assert made.fitness == pytest.approx(0.75 + TIE * made.margin)
    fewer = Fitness(it, ITEMS, mean, known).anew(made, np.arange(8) != 1)
    assert (fewer.estimate, fewer.failed, fewer.cost) == (None, 5, made.cost)
    np.testing.assert_array_equal(fewer.correct, [1.0, np.nan, 1.0, 1.0, *[np.nan] * 4])
    silent = Fitness(it, ITEMS, mean, known, Objective("worst", mean, known, ["x"] * 4 + ["y"] * 4))
    assert silent.judge(correct, margins).estimate is None  # of one group nothing is known


def test_a_broken_model_is_the_worst_in_every_group_and_zero_is_a_value() -> None:
    broken = Evaluation(None, Cost())
    assert broken.front("xy") == (-np.inf, -np.inf)
    assert np.isnan(broken.errors("xy")).tolist() == [True, True]
    one, other = Estimate(0.4, 0.3, 0.5, 0.06), Estimate(0.6, 0.5, 0.7, 0.05)
    made = Evaluation(Estimate(0.5, 0.4, 0.6, 0.05), Cost(), tie=0.01, objective=0.0, groups={"x": one, "y": other})
    assert (made.value, made.fitness) == (0.0, 0.01)  # a gain may be nothing
    assert made.front("yx") == pytest.approx((0.61, 0.41))
    assert made.errors("yx") == (0.05, 0.06)


def test_a_candidate_that_leaves_most_questions_open_has_no_estimate(
    merger: LiveMerger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    known = Known(
        ItemParameters(np.ones((8, 1)), np.zeros(8)), np.arange(8), np.full(8, 1 / 8), np.tile([[0.0], [1.0]], (1, 8))
    )
    evaluation = Fitness(asker(merger, tokenizer, tmp_path), written(8, 5), ESTIMATORS["mean"], known)(RECIPE)
    assert (evaluation.estimate, evaluation.failed, evaluation.fitness) == (None, 5, -np.inf)
