from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge3 import kernels
from merge3.ingredients import LEVELS, Ingredients, LowRank, Source
from merge3.methods import METHODS
from merge3.recipe import TRAITS, Coefficients

NAMES = "abc"
WEIGHTLESS = {method for method, traits in TRAITS.items() if not traits.weights}
SHAPE = (16, 12)


def models(count: int, shape: tuple[int, ...] = SHAPE, spread: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """A base and experts."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    return base, [base + spread * torch.randn(shape, generator=generator) for _ in range(count)]


def merge(
    method: str,
    weights: Sequence[float],
    base: Tensor | None = None,
    experts: Sequence[Source | None] | None = None,
    density: float | Sequence[float] = 1.0,
    **options: float,
) -> Tensor:
    """One parameter, merged; None is an expert that is the base here."""
    made_base, made = models(len(weights))
    base, experts = (made_base, made) if base is None or experts is None else (base, experts)
    densities = (density,) * len(weights) if isinstance(density, float) else tuple(density)
    names = NAMES[: len(weights)]
    sources = {name: expert for name, expert in zip(names, experts, strict=True) if expert is not None}
    parameter = Ingredients("tensor", base, sources, {name: name.upper() for name in names})
    coefficients = Coefficients(tuple(weights), densities, {**TRAITS[method].options, **options})
    instruction = METHODS[method](parameter, names, coefficients, 7)
    out = torch.empty_like(base)
    kernels.apply([instruction], parameter, names, [out], 0, base.shape[0] if base.dim() > 1 else 1)
    return out


def test_every_method_says_what_it_takes() -> None:
    assert set(METHODS) == set(TRAITS)


# --- against slow, obvious references, in float64


def kept(delta: Tensor, order: Callable[[int], slice], density: float) -> Tensor:
    """The entries of which the rank by magnitude, largest first, is in a slice."""
    ranked = sorted(range(delta.numel()), key=lambda i: -abs(float(delta.flatten()[i])))
    keep = set(ranked[order(max(1, int(density * delta.numel())))])
    return torch.tensor([float(v) if i in keep else 0.0 for i, v in enumerate(delta.flatten())]).view_as(delta)


def chances(method: str, delta: Tensor, name: str, density: float, epsilon: float) -> Tensor:
    """Entries kept by chance and divided by it, an entry at a time."""
    parameter = Ingredients("tensor", torch.zeros_like(delta), {name: delta}, {name: name.upper()})
    draws = parameter.draws(name, 7)
    made = torch.zeros_like(delta)
    for row, column in itertools.product(*map(range, delta.shape)):
        level = math.ceil(max(1, round(density * LEVELS)))
        if method.startswith("della"):
            smaller = int((delta[row].abs() < delta[row, column].abs()).sum())
            rank = round(255 * smaller / (delta.shape[1] - 1))
            level = min(LEVELS, max(1, math.ceil(256 * (density - epsilon) + 512 * epsilon * rank / 255 - 1e-4)))
        if draws[row, column] < level:
            made[row, column] = delta[row, column] * LEVELS / level
    return made


def consensus(base: Tensor, parts: list[Tensor], weights: Sequence[float], elect: bool, mean: bool) -> Tensor:
    merged = []
    for i, start in enumerate(base.flatten().double()):
        votes = [(w * float(part.flatten()[i]), abs(w)) for w, part in zip(weights, parts, strict=True)]
        if elect:
            sign = 1.0 if sum(v for v, _ in votes) >= 0 else -1.0
            votes = [(v, w) for v, w in votes if v * sign > 0]
            size = sum(w for _, w in votes) if mean else 1.0
        else:
            size = sum(weights) if mean else 1.0
        merged.append(float(start) + (sum(v for v, _ in votes) / size if votes else 0.0))
    return torch.tensor(merged).view_as(base)


def slow(method: str, base: Tensor, experts: list[Tensor], weights: Sequence[float], density: float) -> Tensor:
    deltas = [expert - base for expert in experts]
    elect = method in ("ties", "dare_ties", "breadcrumbs_ties", "della")
    top = int(0.1 * base.numel())
    mean = bool(TRAITS[method].options["normalize"])
    if method == "task_arithmetic" or density == 1:
        parts = deltas
    elif method == "ties":
        parts = [kept(delta, lambda n: slice(n), density) for delta in deltas]
    elif method.startswith("breadcrumbs"):
        parts = [kept(delta, lambda n: slice(top, top + n), density) for delta in deltas]
    else:
        parts = [chances(method, delta, name, density, 0.15) for name, delta in zip(NAMES, deltas, strict=False)]
    return consensus(base, parts, weights, elect, mean)


VOTES = [
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
]


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.2, 0.4)])
@pytest.mark.parametrize("method", VOTES)
def test_sparse_methods_agree_with_the_slow_ones(method: str, weights: tuple[float, ...], density: float) -> None:
    base, experts = models(3)
    options = {"gamma": 0.1} if method.startswith("breadcrumbs") else {}
    found = merge(method, weights, base, experts, density, **options)
    torch.testing.assert_close(found, slow(method, base, experts, weights, density), rtol=1e-5, atol=1e-5)


def test_linear_is_the_weighted_mean_of_the_models() -> None:
    _, experts = models(3)
    expected = (0.5 * experts[0] + 1.0 * experts[1] + 1.5 * experts[2]) / 3.0
    torch.testing.assert_close(merge("linear", (0.5, 1.0, 1.5)), expected)
    torch.testing.assert_close(merge("linear", (0.5, 1.0, 1.5), normalize=0.0), 3 * expected)


def test_task_arithmetic_adds_weighted_differences() -> None:
    base, experts = models(2)
    expected = base + 0.5 * (experts[0] - base) - 0.25 * (experts[1] - base)
    torch.testing.assert_close(merge("task_arithmetic", (0.5, -0.25)), expected)
    torch.testing.assert_close(merge("task_arithmetic", (0.25, -0.125), **{"lambda": 2.0}), expected)


def test_slerp_keeps_the_angle_and_the_norm_of_unit_vectors() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    expected = torch.tensor([np.cos(np.pi / 6), np.sin(np.pi / 6)], dtype=torch.float32)
    torch.testing.assert_close(merge("slerp", (0.0, 1 / 3), torch.ones(2), [first, second]), expected)
    torch.testing.assert_close(merge("slerp", (1 / 3,), first, [second]), expected)
    torch.testing.assert_close(merge("nuslerp", (2.0, 1.0), torch.zeros(2), [first, second]), expected)
    around = merge("nuslerp", (2.0, 1.0), torch.ones(2), [1 + first, 1 + second])
    torch.testing.assert_close(around, 1 + expected)
    plain = merge("nuslerp", (2.0, 1.0), torch.ones(2), [first, second], around_base=0.0)
    torch.testing.assert_close(plain, expected)


def test_slerp_of_collinear_vectors_is_lerp() -> None:
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(merge("slerp", (0.0, 0.5), torch.zeros(4), [first, 3 * first]), 2 * first)
    torch.testing.assert_close(merge("slerp", (0.0, 0.5), torch.zeros(4), [first, -3 * first]), -first)


@pytest.mark.parametrize(
    ("method", "cosine", "arc"), [("slerp", 0.999, True), ("slerp", 0.9997, False), ("nuslerp", 0.9999, True)]
)
def test_nearly_collinear_vectors_are_joined_by_a_line_in_slerp_alone(method: str, cosine: float, arc: bool) -> None:
    """The middle of unit vectors lies on the sphere, or on the chord, at the cosine of half their angle."""
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([cosine, (1 - cosine**2) ** 0.5])
    middle = merge(method, (0.5, 0.5), torch.zeros(2), [first, second])
    assert float(middle.norm()) == pytest.approx(1.0 if arc else ((1 + cosine) / 2) ** 0.5, abs=1e-6)


def test_the_riemannian_mean_of_two_is_the_middle_of_the_arc() -> None:
    _, experts = models(2)
    norms = [expert.norm() for expert in experts]
    units = [expert / norm for expert, norm in zip(experts, norms, strict=True)]
    middle = (units[0] + units[1]) / (units[0] + units[1]).norm() * sum(norms) / 2
    torch.testing.assert_close(merge("karcher", (0.0, 0.0)), middle)
    torch.testing.assert_close(merge("multislerp", (1.0, 1.0), around_base=0.0), middle, rtol=1e-5, atol=1e-5)


def test_the_riemannian_mean_is_where_the_pulls_balance() -> None:
    _, experts = models(3)
    found = merge("karcher", (0.0,) * 3, max_iter=50.0, tol=1e-9)
    mean = found.double().flatten() / found.double().norm()
    pull = torch.zeros_like(mean)
    for expert in experts:
        unit = expert.double().flatten() / expert.double().norm()
        angle = torch.arccos(unit @ mean)
        pull += angle / torch.sin(angle) * (unit - (unit @ mean) * mean)
    assert float(pull.norm()) < 1e-5
    torch.testing.assert_close(found.norm(), sum(expert.norm() for expert in experts) / 3)


def test_model_stock_moves_by_the_mean_cosine() -> None:
    base, experts = models(3)
    deltas = [(expert - base).flatten() for expert in experts]
    pairs = itertools.combinations(deltas, 2)
    cosine = torch.stack([torch.cosine_similarity(x, y, dim=0) for x, y in pairs]).mean()
    t = 3 * cosine / (1 + 2 * cosine)
    torch.testing.assert_close(merge("model_stock", (0.0,) * 3), t * sum(experts) / 3 + (1 - t) * base)


def test_model_stock_of_opposite_experts_is_the_base() -> None:
    """Their cosine is -1, for which the formula divides by zero."""
    base, difference = torch.ones(SHAPE), torch.where(models(1)[0] > 0, 0.5, 0.25)
    assert torch.equal(merge("model_stock", (0.0, 0.0), base, [base + difference, base - 2 * difference]), base)


@pytest.mark.parametrize("weight", [0.3, 0.0])
def test_one_model_on_the_sphere_is_itself(weight: float) -> None:
    assert torch.equal(merge("multislerp", (weight,), normalize=0.0), models(1)[1][0])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_sce_selects_weighs_and_erases(share: float) -> None:
    base, experts = models(3)
    deltas = torch.stack([expert - base for expert in experts]).double()
    variance = deltas.var(0, unbiased=False)
    cut = variance.flatten().sort(descending=True).values[int(share * variance.numel()) - 1]
    deltas = deltas.where(variance >= cut, 0.0)
    weights = deltas.square().mean(dim=(1, 2))
    weights = (weights / weights.sum()).view(3, 1, 1)
    agrees = deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    expected = base + (deltas * weights * agrees).sum(0) / (weights * agrees).sum(0).clamp(min=1e-9)
    found = merge("sce", (0.0,) * 3, select_topk=share)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_passthrough_is_one_model_times_its_weight() -> None:
    _, (expert,) = models(1)
    assert torch.equal(merge("passthrough", (1.0,)), expert)
    torch.testing.assert_close(merge("passthrough", (0.5,)), 0.5 * expert)


# --- the edges


def test_linear_weights_that_cancel_return_the_base() -> None:
    assert torch.equal(merge("linear", (0.1, 0.2, -0.3)), models(3)[0])
    assert torch.equal(merge("linear", (0.0,) * 3, normalize=0.0), models(3)[0])


def test_weights_that_cancel_are_not_divided_by_their_sum() -> None:
    assert torch.equal(merge("task_arithmetic", (1.0, -1.0), normalize=1.0), merge("task_arithmetic", (1.0, -1.0)))
    assert torch.equal(merge("nuslerp", (1.0, -1.0)), merge("nuslerp", (1.0, 1.0)))


@pytest.mark.parametrize("around", [0.0, 1.0])
def test_weights_that_cancel_are_not_divided_by_their_sum_on_the_sphere(around: float) -> None:
    plain = merge("multislerp", (1.0, -1.0), around_base=around, normalize=0.0)
    assert plain.isfinite().all()
    assert torch.equal(merge("multislerp", (1.0, -1.0), around_base=around), plain)


def test_weights_whose_sum_is_negative_are_divided_by_it() -> None:
    base, (first, second) = models(2)
    torch.testing.assert_close(merge("linear", (-1.0, 0.5)), 2 * first - second)
    torch.testing.assert_close(merge("nuslerp", (-2.0, -1.0)), merge("nuslerp", (2.0, 1.0)))
    normalized = merge("task_arithmetic", (-1.0, 0.5), normalize=1.0)
    torch.testing.assert_close(normalized, base + 2 * (first - base) - (second - base))


def test_lambda_scales_what_was_elected_and_a_lone_negative_weight_turns_its_expert_round() -> None:
    base, experts = models(2)
    lone, twice = (merge("ties", (0.7, 0.0), density=0.5, **{"lambda": size}) for size in (1.0, 2.0))
    torch.testing.assert_close(twice - base, 2 * (lone - base))
    plain, doubled = merge("ties", (0.7, 0.4)), merge("ties", (0.7, 0.4), **{"lambda": 2.0})
    torch.testing.assert_close(doubled - base, 2 * (plain - base))
    torch.testing.assert_close(merge("ties", (-0.5, 0.0)), 2 * base - experts[0])


def test_ties_with_weights_of_both_signs_does_not_explode() -> None:
    experts = [torch.tensor([0.001]), torch.tensor([-0.001])]
    assert abs(float(merge("ties", (1.0, -0.999), torch.zeros(1), experts))) <= 0.0011  # mergekit: 2.0


def test_dare_keeps_about_density_and_divides_by_it() -> None:
    merged = merge("dare_linear", (1.0,), torch.zeros(40_000), [torch.ones(40_000)], 0.25)
    assert set(merged.unique().tolist()) == {0.0, 4.0}
    assert abs(float(merged.mean()) - 1.0) < 0.05  # 5 standard errors
    plain = merge("dare_linear", (1.0,), torch.zeros(40_000), [torch.ones(40_000)], 0.25, rescale=0.0)
    assert set(plain.unique().tolist()) == {0.0, 1.0}


def test_della_keeps_the_largest_more_often_and_divides_by_the_chance() -> None:
    delta = torch.arange(1.0, 257.0).repeat(2000, 1)
    merged = merge("della_linear", (1.0,), torch.zeros_like(delta), [delta], 0.5, epsilon=0.3)
    share = (merged != 0).float().mean(0)
    assert abs(float(share[:16].mean()) - 0.22) < 0.02
    assert abs(float(share[-16:].mean()) - 0.78) < 0.02
    torch.testing.assert_close(merged.mean(0), delta[0], rtol=0.3, atol=0)  # unbiased


def test_trim_keeps_exactly_the_largest() -> None:
    delta = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    for density, expected in ((0.5, [[3.0, 0.0], [0.0, -4.0]]), (0.01, [[0.0, 0.0], [0.0, -4.0]])):
        assert merge("ties", (1.0,), torch.zeros(2, 2), [delta], density).tolist() == expected


def test_breadcrumbs_drops_the_largest_where_there_is_room() -> None:
    delta = torch.arange(1.0, 11.0)
    dropped = merge("breadcrumbs", (1.0,), torch.zeros(10), [delta], 0.5, gamma=0.2)
    assert dropped.tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 0, 0]
    assert merge("breadcrumbs", (1.0,), torch.zeros(10), [delta], 0.95, gamma=0.2).tolist() == [*range(1, 10), 0]


def test_an_expert_that_is_the_base_here_counts_as_the_base() -> None:
    base, experts = models(2)
    for method in sorted(METHODS):
        if method == "passthrough":
            continue
        weights = (0.3, 0.4)
        as_it_is = merge(method, weights, base, [experts[0], base.clone()], 0.5)
        torch.testing.assert_close(merge(method, weights, base, [experts[0], None], 0.5), as_it_is, msg=method)


# --- properties


@pytest.mark.parametrize("method", sorted(set(METHODS) - WEIGHTLESS - {"passthrough"}))
def test_weight_one_and_zero_return_the_parent_bit_for_bit(method: str) -> None:
    for spread in (1.0, 1e-3):
        base, experts = models(2, spread=spread)
        weights = (0.0, 0.0) if method == "slerp" else (1.0, 0.0)
        found = merge(method, weights, base, experts)
        assert torch.equal(found, experts[0])


@pytest.mark.parametrize("method", sorted(set(METHODS) - WEIGHTLESS - {"slerp", "nuslerp", "passthrough"}))
def test_zero_weights_return_the_base_bit_for_bit(method: str) -> None:
    assert torch.equal(merge(method, (0.0, 0.0, 0.0), density=0.5), models(3)[0])


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"slerp", "nuslerp", "passthrough"}))
@settings(max_examples=10)
@given(order=st.permutations(range(3)), weights=st.tuples(*[st.floats(0.1, 1.0)] * 3))
def test_permuting_experts_with_their_weights_changes_nothing(
    method: str, order: list[int], weights: tuple[float, ...]
) -> None:
    base, experts = models(3)
    densities = (0.3, 0.5, 0.7)
    straight = merge(method, weights, base, experts, densities)
    if TRAITS[method].masks:  # masks are drawn by expert: the names go along
        names = "".join(NAMES[i] for i in order)
        parameter = Ingredients("tensor", base, dict(zip(NAMES, experts, strict=True)), {n: n.upper() for n in NAMES})
        given_ = Coefficients(
            tuple(weights[i] for i in order), tuple(densities[i] for i in order), TRAITS[method].options
        )
        permuted = torch.empty_like(base)
        instruction = METHODS[method](parameter, names, given_, 7)
        kernels.apply([instruction], parameter, names, [permuted], 0, len(base))
    else:
        shuffled = [tuple(values[i] for i in order) for values in (weights, experts, densities)]
        permuted = merge(method, shuffled[0], base, shuffled[1], shuffled[2])
    torch.testing.assert_close(permuted, straight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in VOTES if "ties" not in m and m != "della"])
def test_density_one_removes_the_sparsifier(method: str) -> None:
    torch.testing.assert_close(merge(method, (0.5, 0.3)), merge("task_arithmetic", (0.5, 0.3)))


# --- one kernel in torch, one compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_two_kernels_agree(method: str, dtype: torch.dtype, low_rank: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    count = TRAITS[method].most or 3
    base = (torch.randn(50, 64, generator=generator) * 0.02).to(dtype)
    sources: dict[str, Source] = {
        name: (base.float() + 1e-3 * torch.randn(50, 64, generator=generator)).to(dtype) for name in NAMES[:count]
    }
    if low_rank:
        sources["a"] = LowRank(
            0.02 * torch.randn(50, 4, generator=generator), 0.02 * torch.randn(4, 64, generator=generator)
        )
    parameter = Ingredients("tensor", base, sources, {name: name.upper() for name in NAMES})
    names = NAMES[:count]
    coefficients = Coefficients((0.4, 0.3, 0.9)[:count], (0.5, 0.3, 0.8)[:count], TRAITS[method].options)
    instruction = METHODS[method](parameter, names, coefficients, 3)
    compiled, plain = torch.full_like(base, torch.nan), torch.full_like(base, torch.nan)
    for start, stop in ((0, 17), (17, 50)):
        kernels.apply([instruction], parameter, names, [compiled], start, stop)
        kernel = kernels.combine if isinstance(instruction, kernels.Combination) else kernels.vote
        kernel(instruction, parameter, names, plain, start, stop)  # type: ignore[arg-type]
    # float32 sums differ in their last bit, by fused multiply-adds; halves then by a rounding, rarely
    close, differing = {torch.bfloat16: (1e-2, 0.002), torch.float16: (2e-3, 0.01)}.get(dtype, (1e-5, 1))
    torch.testing.assert_close(compiled, plain, rtol=close, atol=1e-7)
    assert (compiled != plain).float().mean() < differing


def test_a_merge_in_inference_mode_hinders_none_outside_it() -> None:
    """In one thread, whose buffers are kept."""
    base = torch.zeros(3, 4099)  # more than any other test's: the buffer is made here
    low = LowRank(torch.ones(3, 4), torch.ones(4, 4099))
    with torch.inference_mode():
        inside = merge("ties", (1.0,), base, [low], 0.5)
    assert torch.equal(merge("ties", (1.0,), base, [low], 0.5), inside)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_wide_differences_of_low_rank_are_merged_in_pieces(method: str) -> None:
    """Rows of several strips, a rank that is no multiple of four, and more elements than are multiplied at a time."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = 2 + kernels.BLOCK // 2**14, 2**14 + 3
    base = 0.02 * torch.randn(rows, columns, generator=generator)
    sources: dict[str, Source] = {
        name: LowRank(torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator))
        for name, rank in (("a", 5), ("b", 3))
    }
    parameter = Ingredients("tensor", base, sources, {name: name.upper() for name in NAMES})
    coefficients = Coefficients((0.4, -0.3), (0.5, 0.3), TRAITS[method].options)
    instruction = METHODS[method](parameter, "ab", coefficients, 3)
    compiled, plain = torch.full_like(base, torch.nan), torch.full_like(base, torch.nan)
    kernels.apply([instruction], parameter, "ab", [compiled], 1, rows)
    kernel = kernels.combine if isinstance(instruction, kernels.Combination) else kernels.vote
    kernel(instruction, parameter, "ab", plain, 1, rows)  # type: ignore[arg-type]
    assert compiled[0].isnan().all()
    apart = (compiled[1:] - plain[1:]).abs() > 1e-5
    assert apart.float().mean() < 1e-5  # sums differ in their last bit, and with them what a threshold keeps


def test_float16_is_read_and_rounded_as_torch_does() -> None:
    every = torch.arange(2**16).to(torch.uint16).view(torch.float16)
    every = every[every.isfinite()].sort().values
    middles = (every[:-1].float() + every[1:].float()) / 2
    far = torch.tensor([65519.0, 65520.0, 65536.0, 1e9])
    numbers = torch.cat([every.float(), middles, middles.nextafter(far[3]), middles.nextafter(-far[3]), far, -far])
    one = kernels.Combination(1.0, ())
    for source, kind in ((every, torch.float32), (numbers, torch.float16)):
        out = torch.empty(len(source), dtype=kind)
        kernels.combine_compiled([one], Ingredients("tensor", source, {}, {}), [], [out], 0, 1)
        assert torch.equal(out, source.to(kind))


@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "slerp", "nuslerp", "multislerp", "karcher", "model_stock"]
)
def test_bfloat16_is_the_float32_result_rounded_for_every_element(method: str) -> None:
    generator = torch.Generator().manual_seed(2)
    count = TRAITS[method].most or 3
    base = (torch.randn(64, 3000, generator=generator) * 0.02).bfloat16()
    experts = [(base.float() + 3e-4 * torch.randn(base.shape, generator=generator)).bfloat16() for _ in range(count)]
    names = NAMES[:count]
    parameter = Ingredients("tensor", base, dict(zip(names, experts, strict=True)), {n: n for n in names})
    coefficients = Coefficients((0.45, 0.3, 0.15)[:count], (1.0,) * count, TRAITS[method].options)
    instruction = METHODS[method](parameter, names, coefficients, 0)
    assert isinstance(instruction, kernels.Combination)
    out = torch.empty_like(base)
    kernels.apply([instruction], parameter, names, [out], 0, len(base))
    exact = torch.zeros(base.shape)
    for tensor, weight in zip([base, *experts], (instruction.base, *instruction.weights), strict=True):
        exact = exact + tensor.float() * np.float32(weight)
    assert torch.equal(out, exact.bfloat16())
