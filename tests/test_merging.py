from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CONFIGS, build, fine_tune
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from merge3.merging import METHODS, LiveMerger, Noise, check, trim
from merge3.models import weights_of
from merge3.recipe import SPARSE, Coefficients, Recipe, constant

NOISE = Noise(7, ("A", "B", "C"), "tensor")
PRINTS = {"a": "A", "b": "B", "c": "C"}


def tensors(count: int = 3, shape: tuple[int, ...] = (16, 12)) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base, *deltas = (torch.randn(shape, generator=generator) for _ in range(count + 1))
    return base, deltas


def merge(method: str, weights: tuple[float, ...], density: float = 1.0, count: int | None = None) -> Tensor:
    base, deltas = tensors(count or len(weights))
    return METHODS[method](base, deltas, Coefficients(weights, (density,) * len(weights)), NOISE)


# --- against slow, obvious references, an element at a time


def slow_ties(base: Tensor, deltas: list[Tensor], weights: tuple[float, ...], density: float) -> Tensor:
    kept = []
    for delta in deltas:
        order = sorted(range(delta.numel()), key=lambda i: -abs(delta.flatten()[i]))
        keep = set(order[: max(1, int(density * delta.numel()))])
        kept.append([float(v) if i in keep else 0.0 for i, v in enumerate(delta.flatten())])
    merged = []
    for i, start in enumerate(base.flatten()):
        votes = [(w * k[i], abs(w)) for w, k in zip(weights, kept, strict=True)]
        sign = 1.0 if sum(v for v, _ in votes) >= 0 else -1.0
        agreeing = [(v, w) for v, w in votes if v * sign > 0]
        merged.append(float(start) + (sum(v for v, _ in agreeing) / sum(w for _, w in agreeing) if agreeing else 0.0))
    return torch.tensor(merged).view_as(base)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.2, 0.4)])
def test_ties_agrees_with_the_slow_one(weights: tuple[float, ...], density: float) -> None:
    base, deltas = tensors()
    torch.testing.assert_close(merge("ties", weights, density), slow_ties(base, deltas, weights, density))


def test_linear_is_the_weighted_mean_of_the_models() -> None:
    base, deltas = tensors()
    expected = (0.5 * (base + deltas[0]) + 1.0 * (base + deltas[1]) + 1.5 * (base + deltas[2])) / 3.0
    torch.testing.assert_close(merge("linear", (0.5, 1.0, 1.5)), expected)


def test_task_arithmetic_adds_weighted_differences() -> None:
    base, deltas = tensors()
    expected = base + 0.5 * deltas[0] - 0.25 * deltas[1] + 2.0 * deltas[2]
    torch.testing.assert_close(merge("task_arithmetic", (0.5, -0.25, 2.0)), expected)


def test_slerp_keeps_the_angle_and_the_norm_of_unit_vectors() -> None:
    base = torch.zeros(2)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    third = METHODS["slerp"](base, [first, second], Coefficients((0.0, 1 / 3), (1.0, 1.0)), NOISE)
    torch.testing.assert_close(third, torch.tensor([np.cos(np.pi / 6), np.sin(np.pi / 6)], dtype=torch.float32))


def test_slerp_of_collinear_vectors_is_lerp() -> None:
    base, first = torch.zeros(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    half = METHODS["slerp"](base, [first, 3 * first], Coefficients((0.0, 0.5), (1.0, 1.0)), NOISE)
    torch.testing.assert_close(half, 2 * first)


def test_slerp_of_one_expert_is_against_the_base() -> None:
    base, (delta,) = tensors(1)
    two = METHODS["slerp"](torch.zeros_like(base), [base, base + delta], Coefficients((0.0, 0.3), (1.0, 1.0)), NOISE)
    torch.testing.assert_close(merge("slerp", (0.3,)), two)


def test_linear_weights_that_cancel_return_the_base() -> None:
    assert torch.equal(merge("linear", (0.1, 0.2, -0.3)), tensors()[0])


def test_ties_with_weights_of_both_signs_does_not_explode() -> None:
    deltas = [torch.tensor([0.001]), torch.tensor([-0.001])]
    merged = METHODS["ties"](torch.zeros(1), deltas, Coefficients((1.0, -0.999), (1.0, 1.0)), NOISE)
    assert abs(float(merged)) <= 0.0011  # mergekit: 2.0


def test_dare_keeps_about_density_and_divides_by_it() -> None:
    base, delta = torch.zeros(40_000), torch.ones(40_000)
    merged = METHODS["dare_linear"](base, [delta], Coefficients((1.0,), (0.25,)), NOISE)
    assert set(merged.unique().tolist()) == {0.0, 4.0}
    assert abs(float(merged.mean()) - 1.0) < 0.05  # 5 standard errors


def test_dare_ties_is_not_normalised() -> None:
    base, delta = torch.zeros(3), torch.tensor([1.0, -1.0, 2.0])
    merged = METHODS["dare_ties"](base, [delta, delta], Coefficients((0.5, 1.0), (1.0, 1.0)), NOISE)
    torch.testing.assert_close(merged, 1.5 * delta)


# --- properties


@pytest.mark.parametrize("method", sorted(METHODS))
def test_weight_one_and_zero_return_the_parent_bit_for_bit(method: str) -> None:
    base, deltas = tensors(2)
    weights = (0.0, 0.0) if method == "slerp" else (1.0, 0.0)
    assert torch.equal(merge(method, weights), base + deltas[0])


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"slerp"}))
def test_zero_weights_return_the_base(method: str) -> None:
    assert torch.equal(merge(method, (0.0, 0.0, 0.0)), tensors()[0])


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
@given(order=st.permutations(range(3)), weights=st.tuples(*[st.floats(0.1, 1.0)] * 3))
def test_permuting_experts_with_their_weights_changes_nothing(
    method: str, order: list[int], weights: tuple[float, ...]
) -> None:
    base, deltas = tensors()
    densities = (0.3, 0.5, 0.7)
    straight = METHODS[method](base, deltas, Coefficients(weights, densities), NOISE)
    permuted = Coefficients(tuple(weights[i] for i in order), tuple(densities[i] for i in order))
    torch.testing.assert_close(METHODS[method](base, [deltas[i] for i in order], permuted, NOISE), straight)


@pytest.mark.parametrize(("sparse", "dense"), [("dare_linear", "task_arithmetic")])
def test_density_one_removes_the_sparsifier(sparse: str, dense: str) -> None:
    assert torch.equal(merge(sparse, (0.5, 0.3)), merge(dense, (0.5, 0.3)))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_is_given_is_not_changed(method: str) -> None:
    count = 2 if method == "slerp" else 3
    base, deltas = tensors(count)
    METHODS[method](base, deltas, Coefficients((0.3,) * count, (0.5,) * count), NOISE)
    fresh_base, fresh_deltas = tensors(count)
    assert torch.equal(base, fresh_base)
    assert all(torch.equal(a, b) for a, b in zip(deltas, fresh_deltas, strict=True))


def test_trim_keeps_exactly_the_largest() -> None:
    delta = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    assert trim(delta, 0.5).tolist() == [[3.0, 0.0], [0.0, -4.0]]
    assert trim(delta, 0.01).tolist() == [[0.0, 0.0], [0.0, -4.0]]
    assert trim(delta, 1.0).tolist() == delta.tolist()


def test_masks_differ_by_seed_expert_and_tensor_and_by_nothing_else() -> None:
    def mask(seed: int, expert: str, tensor: str) -> list[bool]:
        return Noise(seed, (expert,), tensor).keep(0, 0.5, torch.Size([64])).tolist()

    made = [mask(*key) for key in itertools.product((1, 2), "AB", "xy")]
    assert len({tuple(m) for m in made}) == 8
    code = (
        "import torch; from merge3.merging import Noise; torch.set_num_threads(1);"
        "print(Noise(1, ('A',), 'x').keep(0, 0.5, torch.Size([64])).tolist())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert other.stdout.strip() == str(mask(1, "A", "x"))


# --- refusals


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (constant("average", {"a": 1.0}), "merge method must be one of"),
        (constant("linear", {}), "at least one expert"),
        (constant("slerp", {"a": 0.0, "b": 0.5, "c": 0.5}), "one or two experts, got 3"),
        (constant("slerp", {"a": 0.0, "b": 1.5}), r"in \[0, 1\], got \[1.5\] for expert 'b'"),
        (constant("linear", {"a": float("nan")}), "finite, got"),
        (constant("linear", {"a": float("inf")}), "finite, got"),
        (Recipe("ties", ("a",), {"mpl": {"a": (1.0,)}}, {}), "got group 'mpl'"),
        (Recipe("ties", ("a",), {"mlp": {"z": (1.0,)}}, {}), r"with \['z'\]"),
        (constant("ties", {"a": 1.0}, density=0.0), r"densities must be in \(0, 1\]"),
    ],
)
def test_recipes_that_cannot_be_merged_are_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(recipe)


# --- the live model


def live(
    architecture: str, dtype: torch.dtype = torch.float32
) -> tuple[LiveMerger, PreTrainedModel, dict[str, PreTrainedModel]]:
    base = build(CONFIGS[architecture], seed=1)
    experts = {"a": fine_tune(base, 2), "b": fine_tune(base, 3), "c": fine_tune(base, 4)}
    deltas = {
        name: {key: value - weights_of(base)[key] for key, value in weights_of(expert).items()}
        for name, expert in experts.items()
    }
    return LiveMerger(build(CONFIGS[architecture], seed=1).to(dtype), deltas, PRINTS), base, experts


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


def test_tied_weights_stay_tied() -> None:
    merger, _, _ = live("llama")
    merger.apply(constant("linear", {"a": 1.0, "b": 1.0}))
    assert merger.model.lm_head.weight.data_ptr() == merger.model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_bfloat16_is_the_float32_result_rounded_once(method: str) -> None:
    merger, base, _ = live("llama", torch.bfloat16)
    start = {name: value.to(torch.bfloat16).float() for name, value in weights_of(base).items()}
    merger.apply(constant(method, {"a": 0.3, "b": 0.6}))
    for name, parameter in weights_of(merger.model).items():
        exact = start[name].double()
        for expert, weight in (("a", 0.3), ("b", 0.6)):
            delta = merger.experts[expert][name].double()
            exact = exact + delta * weight / (0.9 if method == "linear" else 1.0)
        # correctly rounded: no neighbour in bfloat16 is nearer than float32 can tell
        off = (parameter.double() - exact).abs()
        for towards in (-torch.inf, torch.inf):
            neighbour = torch.nextafter(parameter, torch.full_like(parameter, towards)).double()
            assert (off <= (neighbour - exact).abs() + 1e-6 * exact.abs() + 1e-9).all()


def test_groups_and_depth_reach_their_parameters_alone() -> None:
    merger, base, _ = live("llama")
    merger.apply(Recipe("task_arithmetic", ("a",), {"mlp": {"a": (0.0, 1.0)}}, {}))
    start = weights_of(base)
    moved = {name for name, value in weights_of(merger.model).items() if not torch.equal(value, start[name])}
    assert moved == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


@pytest.mark.parametrize("method", sorted(SPARSE))
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
