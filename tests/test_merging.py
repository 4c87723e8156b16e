from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, build, fine_tune
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from merge3 import ingredients, kernels, models
from merge3.ingredients import BLOCK, Ingredients, LowRank, home
from merge3.kernels import Keep, Vote
from merge3.merging import LiveMerger, finite, in_threads
from merge3.methods import METHODS
from merge3.models import weights_of
from merge3.recipe import GROUPS, TRAITS, Coefficients, Recipe, check, constant

PRINTS = {"a": "A", "b": "B", "c": "C"}
MASKED = sorted(method for method, traits in TRAITS.items() if traits.masks)


def test_draws_differ_by_seed_expert_and_parameter_and_by_nothing_else() -> None:
    def draws(seed: int, expert: str, name: str) -> list[int]:
        base = torch.zeros(8, 8)
        return Ingredients(name, base, {"e": base}, {"e": expert}).draws("e", seed).flatten().tolist()

    made = [draws(seed, expert, name) for seed in (1, 2) for expert in "AB" for name in "xy"]
    assert len({tuple(m) for m in made}) == 8
    one = Ingredients("x", torch.zeros(8, 8), {"e": torch.zeros(8, 8)}, {"e": "A"})
    for seed in (1, 2, 1):  # though the last seed's are kept
        assert one.draws("e", seed).flatten().tolist() == draws(seed, "A", "x")
    code = (
        "import torch; from merge3.ingredients import Ingredients; torch.set_num_threads(1); b = torch.zeros(8, 8);"
        "print(Ingredients('x', b, {'e': b}, {'e': 'A'}).draws('e', 1).flatten().tolist())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert other.stdout.strip() == str(draws(1, "A", "x"))


class Largest(TorchDispatchMode):
    """Sees how many elements the largest tensor has that is computed meanwhile."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        made = function(*arguments, **(options or {}))
        places = {value.untyped_storage().data_ptr() for value in arguments if isinstance(value, torch.Tensor)}
        computed = isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in places
        if computed and function is not torch.ops.aten.empty.memory_format:
            self.elements = max(self.elements, made.numel())
        return made


def test_magnitudes_are_ranked_without_a_difference_of_the_whole_table() -> None:
    generator = torch.Generator().manual_seed(0)
    base, expert = torch.randn(2, 3 * BLOCK // 64, 64, generator=generator).bfloat16()
    parameter = Ingredients("w", base, {"x": expert}, {"x": "0"})
    with Largest() as largest:
        found = [parameter.magnitude("x", rank) for rank in (0, 7, base.numel() - 1)]
    every = (expert.float() - base.float()).abs().flatten().sort().values
    assert found == [float(every[rank]) for rank in (0, 7, -1)]
    assert largest.elements == BLOCK


@pytest.mark.parametrize("share", [0.3, 0.0])
def test_sce_holds_its_experts_together_a_block_at_a_time(share: float) -> None:
    """The same bits as from the variance of whole tables."""
    generator = torch.Generator().manual_seed(0)
    base, *whole = torch.randn(3, 3 * BLOCK // 64 + 5, 64, generator=generator).bfloat16()
    low = LowRank(torch.randn(len(base), 3, generator=generator), torch.randn(3, 64, generator=generator))
    parameter = Ingredients("w", base, {"a": whole[0], "b": whole[1], "c": low}, PRINTS)  # d is the base here
    differences = torch.stack([*(w.float() - base.float() for w in whole), low.up @ low.down, torch.zeros(base.shape)])
    spread = differences.var(dim=0, unbiased=False)
    cut = float(torch.topk(spread.flatten(), int(share * spread.numel())).values[-1]) if share else float("inf")
    energy = [float(d.where(spread >= cut, 0.0).double().square().mean()) for d in differences]
    with Largest() as largest:
        assert torch.equal(parameter.spread("abcd"), spread)
    assert largest.elements == 4 * BLOCK
    vote = METHODS["sce"](parameter, "abcd", Coefficients((), (), {"select_topk": share}), 0)
    assert isinstance(vote, Vote)
    assert vote.spread == cut
    assert vote.weights == tuple(e / sum(energy) if share else 0.0 for e in energy)


def test_ingredients_live_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert home("cpu", 10**15) == "cpu"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 10**9, 24 * 10**9))
    assert [home("cuda:0", gigabytes * 10**9) for gigabytes in (17, 18)] == ["cuda:0", "cpu"]


def test_draws_and_ranks_lie_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, int]]()
    monkeypatch.setattr(ingredients, "home", lambda *needed: asked.append(needed) or "meta")
    base = torch.zeros(8, 8)
    parameter = Ingredients("w", base, {"e": base + 1}, {"e": "A"})
    assert {parameter.draws("e", 0).device.type, parameter.ranks("e").device.type} == {"meta"}
    assert asked == [("cpu", 64)] * 2


def test_a_merge_fetches_draws_and_ranks_that_lie_elsewhere() -> None:
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    for keep in (Keep(draws=mask), Keep(draws=mask, ranks=mask, rise=0.5)):
        there = torch.empty(8, 8, device="meta")
        merged = torch.empty_like(there)
        parameter = Ingredients("w", there, {"e": there}, {"e": "A"})
        kernels.apply([Vote((1.0,), (keep,), elect=True, mean=True)], parameter, ["e"], [merged], 0, 8)


def test_draws_are_uniform() -> None:
    base = torch.zeros(400, 1000)
    counts = Ingredients("x", base, {"e": base}, {"e": "A"}).draws("e", 0).flatten().long().bincount(minlength=256)
    assert abs(counts.float() - 400_000 / 256).max() < 5 * (400_000 / 256) ** 0.5


# --- refusals


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (constant("average", {"a": 1.0}), "merge method must be one of"),
        (constant("linear", {}), "linear merges 1 or more experts, got 0"),
        (constant("slerp", {"a": 0.0, "b": 0.5, "c": 0.5}), "slerp merges 1 to 2 experts, got 3"),
        (constant("slerp", {"a": 0.0, "b": 1.5}), r"in \[0, 1\], got \[1.5\] for expert 'b'"),
        (constant("linear", {"a": float("nan")}), "finite, got"),
        (constant("linear", {"a": float("inf")}), "finite, got"),
        (constant("karcher", {}), "karcher merges 1 or more experts, got 0"),
        (constant("model_stock", {"a": 1.0}), "model_stock merges 2 or more experts, got 1"),
        (Recipe("linear", ("a", "a"), {}), "experts must be distinct"),
        (Recipe("ties", ("a",), {"z": {"mlp": (1.0,)}}), "weights are given for 'z'; the experts are"),
        (Recipe("ties", ("a",), {}, {"z": {"mlp": (1.0,)}}), "densities are given for 'z'"),
        (constant("ties", {"a": 1.0}, options={"gamma": 0.1}), "ties has no option 'gamma'; it has"),
        (constant("breadcrumbs", {"a": 1.0}, options={"gamma": float("nan")}), "options must be finite"),
        (constant("breadcrumbs", {"a": 1.0}, options={"gamma": -0.1}), r"'gamma' must be in \[0, 1\], got -0.1"),
        (constant("breadcrumbs_ties", {"a": 1.0}, options={"gamma": 1.5}), r"'gamma' must be in \[0, 1\], got 1.5"),
        (Recipe("sce", ("a",), {}, options={"select_topk": -0.3}), r"'select_topk' must be in \[0, 1\]"),
        (Recipe("karcher", ("a",), {}, options={"tol": -1.0}), "'tol' must be 0 or more, got -1"),
        (Recipe("karcher", ("a",), {}, options={"max_iter": -1.0}), "'max_iter' must be 0 or more, got -1"),
        (constant("ties", {"a": 1.0}, density=0.0), r"densities must be in \(0, 1\]"),
        (constant("ties", {"a": 1.0}, density=1.1), r"densities must be in \(0, 1\]"),
    ],
)
def test_recipes_that_cannot_be_merged_are_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(recipe)


# --- the live model


def live(
    architecture: str, dtype: torch.dtype = torch.float32
) -> tuple[LiveMerger, PreTrainedModel, dict[str, PreTrainedModel]]:
    """A merger, and the base and experts that it was made of."""
    base = build(CONFIGS[architecture], seed=1).to(dtype)
    experts = {name: fine_tune(build(CONFIGS[architecture], seed=1), i).to(dtype) for i, name in enumerate("abc", 2)}
    sources = {name: dict(weights_of(expert)) for name, expert in experts.items()}
    return LiveMerger(build(CONFIGS[architecture], seed=1).to(dtype), sources, PRINTS), base, experts


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_a_live_merge_is_the_model_with_merged_parameters(architecture: str) -> None:
    merger, base, experts = live(architecture)
    for _ in range(2):  # the second candidate does not build on the first
        merger.apply(constant("linear", {"a": 1.0, "b": 1.0}))
        merger.apply(constant("task_arithmetic", {"a": 0.5, "b": -0.2}))
    for name, parameter in weights_of(merger.model).items():
        start = weights_of(base)[name]
        expected = (
            start + 0.5 * (weights_of(experts["a"])[name] - start) - 0.2 * (weights_of(experts["b"])[name] - start)
        )
        torch.testing.assert_close(parameter, expected)
    ids = torch.arange(20).view(1, -1)
    before = merger.model(ids).logits
    merger.apply(constant("task_arithmetic", {"a": 0.0}))
    torch.testing.assert_close(merger.model(ids).logits, base(ids).logits, rtol=0, atol=0)
    assert not torch.equal(before, base(ids).logits)


def test_recipes_of_one_phenotype_make_one_model() -> None:
    """Random recipes in which much is zero or not said: the answers of one are kept as the other's."""
    merger, rng = live("llama")[0], np.random.default_rng(0)
    made: dict[str, tuple[Recipe, torch.Tensor]] = {}
    met = 0

    def parts(values: list[float]) -> dict[str, tuple[float, ...]]:
        chosen = [part for part in (*GROUPS, "*") if rng.random() < 0.4]
        return {part: tuple(rng.choice(values, rng.integers(1, 3)).tolist()) for part in chosen}

    for method, traits in TRAITS.items():
        for _ in range(40):
            experts = tuple(
                rng.permutation(list("abc"))[: rng.integers(traits.fewest, (traits.most or 3) + 1)].tolist()
            )
            weights = {e: parts([0.0, 0.0, 0.5, 1.0]) for e in experts} if traits.weights else {}
            densities = {e: parts([0.3, 1.0]) for e in experts} if traits.densities else {}
            flags = [name for name, value in traits.options.items() if value in (0, 1) and name != "select_topk"]
            options = {name: float(rng.integers(2)) for name in flags}
            recipe = Recipe(method, experts, weights, densities, options, int(rng.integers(2)))
            merger.apply(recipe)
            model = torch.cat([tensor.flatten() for tensor in weights_of(merger.model).values()]).clone()
            like, other = made.setdefault(recipe.phenotype(PRINTS), (recipe, model))
            met += like is not recipe
            torch.testing.assert_close(model, other, rtol=1e-4, atol=1e-5, msg=f"{like} and {recipe}")
    assert met > 100


def test_tied_weights_stay_tied() -> None:
    merger, _, _ = live("llama")
    merger.apply(constant("linear", {"a": 1.0, "b": 1.0}))
    assert merger.model.lm_head.weight.data_ptr() == merger.model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_number_of_threads_makes_the_same_model(method: str) -> None:
    count = TRAITS[method].most or 3
    weights = dict(zip("abc"[:count], (0.3, 0.5, 0.2), strict=False))
    recipe = constant(method, weights, density=0.4, mask_seed=3)
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            merger, _, _ = live("llama", torch.bfloat16)
            merger.apply(recipe)
            made.append(weights_of(merger.model))
    finally:
        torch.set_num_threads(before)
    for name in made[0]:
        assert torch.equal(made[0][name], made[1][name])
        assert torch.equal(made[0][name], made[2][name])


def low_rank(merger: LiveMerger, name: str) -> LowRank:
    """A random difference of rank 6 for a parameter."""
    out, inner = weights_of(merger.model)[name].shape
    generator = torch.Generator().manual_seed(0)
    return LowRank(torch.randn(out, 6, generator=generator), torch.randn(6, inner, generator=generator))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64]
)  # the last by torch's operations
def test_merges_made_together_are_those_made_alone(dtype: torch.dtype) -> None:
    first, base, _ = live("llama", dtype)
    name = "model.layers.1.mlp.gate_proj.weight"
    experts = {**first.experts, "c": {name: low_rank(first, name)}}
    merger = LiveMerger(build(CONFIGS["llama"], seed=1).to(dtype), experts, PRINTS, weights_of(base))
    mixtures = [(0.3, 0.5, 0.2), (0.0, 0.0, 0.0), (1.0, 0.0, 0.7), (0.0, 0.0, 1.0)]
    recipes = [constant("task_arithmetic", dict(zip("abc", weights, strict=True))) for weights in mixtures]
    recipes.insert(2, constant("ties", dict.fromkeys("abc", 1.0), density=0.4))
    alone = []
    for recipe in recipes:
        merger.apply(recipe)
        alone.append({name: value.clone() for name, value in weights_of(merger.model).items()})
    assert merger.together >= len(recipes)
    for order in (recipes, recipes[::-1], recipes[1:3]):
        for recipe, weights in zip(order, merger.make(order), strict=True):
            merger.hold(weights)
            expected = alone[recipes.index(recipe)]
            assert all(torch.equal(value, expected[name]) for name, value in weights_of(merger.model).items())
            assert merger.model.lm_head.weight.data_ptr() == merger.model.model.embed_tokens.weight.data_ptr()
    merger.apply(recipes[0])
    assert all(torch.equal(value, alone[0][name]) for name, value in weights_of(merger.model).items())


def test_merges_are_made_together_after_one_that_scaled_what_no_expert_changes() -> None:
    whole = live("llama")[0]
    experts = {
        expert: {name: values for name, values in of.items() if name != "model.norm.weight"}
        for expert, of in whole.experts.items()
    }
    merger = LiveMerger(whole.model, experts, PRINTS)
    recipes = [constant("linear", {"a": weight, "b": 1.0}) for weight in (0.5, 2.0)]
    alone = []
    for recipe in recipes:
        merger.apply(recipe)
        alone.append({name: value.clone() for name, value in weights_of(merger.model).items()})
    merger.make(recipes)
    merger.apply(constant("linear", {"a": 0.25, "b": 0.25}, options={"normalize": 0.0}))
    for made, expected in zip(merger.make(recipes), alone, strict=True):
        merger.hold(made)
        assert all(torch.equal(value, expected[name]) for name, value in weights_of(merger.model).items())


def test_merges_that_are_made_together_do_not_take_half_of_what_is_left_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merger = live("llama")[0]
    size = sum(value.nbytes for value in weights_of(merger.model).values())
    mapped = 3 * size  # base and two experts

    def free() -> SimpleNamespace:
        return SimpleNamespace(available=mapped + (11 - len(merger._spare)) * size)

    monkeypatch.setattr(models.psutil, "virtual_memory", free)
    for count in (3, merger.together):
        merger.make([constant("linear", {"a": 0.1 * k, "b": 1.0}) for k in range(count)])
        assert merger.together == 5
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert live("llama")[0].together == 1


def test_what_cannot_be_merged_together_is_refused() -> None:
    merger = live("llama")[0]
    with pytest.raises(ValueError, match="linear without normalisation changes every parameter: merge it alone"):
        merger.make([constant("linear", {"a": 1.0}, options={"normalize": 0.0})])
    with pytest.raises(ValueError, match=r"expected recipes of \['a'\], got \['b'\]"):
        merger.make([constant("linear", {"a": 1.0}), constant("linear", {"b": 1.0})])
    base = weights_of(build(CONFIGS["llama"], seed=1))
    assert LiveMerger(build(CONFIGS["llama"], seed=1).to("meta"), merger.experts, PRINTS, base).together == 1


def test_a_model_elsewhere_is_fed_a_parameter_at_a_time() -> None:
    here, _, _ = live("llama")
    base = dict(weights_of(build(CONFIGS["llama"], seed=1)))
    away = LiveMerger(build(CONFIGS["llama"], seed=1).to("meta"), here.experts, PRINTS, base)
    away.apply(constant("ties", {"a": 0.5, "b": 0.5}, density=0.4))  # nothing to see on `meta`, but the way is gone
    assert all(parameter.device.type == "meta" for parameter in weights_of(away.model).values())


def test_memory_that_runs_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_device(*piece: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.20 GiB free. Of the")

    def here(*piece: object) -> None:
        torch.empty(2**60)

    merger, recipe = live("llama")[0], constant("ties", {"a": 1.0}, density=0.4)
    for merge in (lambda: merger.apply(recipe), lambda: merger.make([recipe])):
        for fails, said in ((on_a_device, "CUDA out of memory.* GPU 0 has 1.20 GiB free"), (here, "can't allocate")):
            monkeypatch.setattr(kernels, "apply", fails)
            with pytest.raises(MemoryError, match=f"not enough memory for a merge: .*{said}.*; end what else uses it"):
                merge()
        monkeypatch.setattr(kernels, "apply", lambda *piece: torch.ones(2) @ torch.ones(3))
        with pytest.raises(RuntimeError, match="inconsistent tensor size"):
            merge()


def test_the_pool_leaves_torch_its_threads() -> None:
    before = torch.get_num_threads()
    assert in_threads(lambda value: value + 1, list(range(20))) == list(range(1, 21))
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda value: 1 // value, [1, 0, 1])


def test_each_thread_of_the_pool_uses_torch_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert in_threads(lambda _: torch.get_num_threads(), list(range(8))) == [1] * 8
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(wrong: float) -> None:
    base = build(CONFIGS["llama"], seed=1)
    expert = dict(weights_of(fine_tune(base, 2)))
    expert["model.norm.weight"] = expert["model.norm.weight"].clone()
    expert["model.norm.weight"][3] = wrong
    assert not finite(expert["model.norm.weight"])
    with pytest.raises(ValueError, match=r"'model.norm.weight' of a holds NaN or infinite weights"):
        LiveMerger(base, {"a": expert}, PRINTS)


def test_parameters_that_all_share_are_scaled_where_weights_need_not_sum_to_one() -> None:
    base = build(CONFIGS["llama"], seed=1)
    start = {name: value.clone() for name, value in weights_of(base).items()}
    norm = "model.norm.weight"
    merger = LiveMerger(base, {"a": {norm: start[norm] + 1}}, PRINTS)
    merger.apply(constant("linear", {"a": 0.5}, options={"normalize": 0.0}))
    for name, parameter in weights_of(merger.model).items():
        torch.testing.assert_close(parameter, 0.5 * (start[name] + (name == norm)))
    merger.apply(constant("task_arithmetic", {"a": 0.0}))
    assert all(torch.equal(value, start[name]) for name, value in weights_of(merger.model).items())
    merger.apply(constant("passthrough", {"a": 2.0}))
    torch.testing.assert_close(weights_of(merger.model)[norm], 2 * (start[norm] + 1))


def test_groups_and_depth_reach_their_parameters_alone() -> None:
    merger, base, _ = live("llama")
    merger.apply(Recipe("task_arithmetic", ("a",), {"a": {"mlp": (0.0, 1.0)}}))
    start = weights_of(base)
    moved = {name for name, value in weights_of(merger.model).items() if not torch.equal(value, start[name])}
    assert moved == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


@pytest.mark.parametrize("method", MASKED)
def test_sparse_methods_are_the_same_in_another_merger(method: str) -> None:
    recipe = constant(method, {"a": 0.5, "c": 0.7}, density=0.4, mask_seed=3)
    first, second = live("gpt2")[0], live("gpt2")[0]
    second.apply(constant("linear", {"b": 1.0}))
    first.apply(recipe)
    second.apply(recipe)
    for name, parameter in weights_of(first.model).items():
        assert torch.equal(parameter, weights_of(second.model)[name])


def test_an_expert_that_is_not_loaded_is_named() -> None:
    with pytest.raises(ValueError, match="names expert 'z'"):
        live("llama")[0].apply(constant("linear", {"z": 1.0}))
