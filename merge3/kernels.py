"""Kernels: a merge of some rows of one parameter in one pass over memory, in float32, rounded once.

Each instruction has two kernels that do the same: one in plain torch operations for any device and dtype, and one
compiled for the CPU by numba, which keeps a few thousand elements in the nearest cache from the first read to the last
write. (torch makes a pass over memory of every operation: TIES takes 27 times a copy of its bytes, this 3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import local
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from merge3.ingredients import LEVELS, Ingredients, LowRank, Source, matrix

BLOCK = 2**20  # elements of a low-rank product that are made at a time
KINDS = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 1}  # as the compiled kernels call them
STRIP = 2048  # elements that a compiled kernel works on at a time; some 80 kB in all, of a core's cache


@dataclass(frozen=True)
class Combination:
    """base_weight b + sum(w_i x_i), of the base b and the experts x_i themselves."""

    base: float
    weights: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Keep:
    """Which entries of a difference are kept: magnitudes from `low` to `high`; and draws below floor + rise * rank.

    With `rescale` a kept entry is divided by its chance, the share of the 256 draws that keep it.
    """

    low: float = 0.0
    high: float = float("inf")
    draws: Tensor | None = None
    ranks: Tensor | None = None
    floor: float = float(LEVELS)
    rise: float = 0.0
    rescale: bool = False

    @property
    def everything(self) -> bool:
        """Whether nothing is dropped."""
        return self.draws is None and self.low == 0 and self.high == float("inf")


@dataclass(frozen=True)
class Vote:
    """b + scale * sum(w_i d_i) over the kept entries of differences d_i.

    With `elect` only the entries whose sign is the elected one, that of sum(w_i d_i), + where it is zero (of sum(d_i)
    with `plain_signs`). With `mean` divided by the sum of |w_i| of what was added. With `spread` entries whose
    variance over the experts is below it are dropped first.
    """

    weights: tuple[float, ...]
    keep: tuple[Keep, ...]
    elect: bool
    mean: bool
    scale: float = 1.0
    spread: float = 0.0
    plain_signs: bool = False

    @property
    def ballots(self) -> tuple[float, ...]:
        """What each difference is multiplied by to elect the sign."""
        return (1.0,) * len(self.weights) if self.plain_signs else self.weights


Instruction = Combination | Vote


def apply(
    instructions: Sequence[Instruction],
    parameter: Ingredients,
    experts: Sequence[str],
    outs: Sequence[Tensor],
    start: int,
    stop: int,
) -> None:
    """Write rows `start` to `stop` of the merged parameter, one of each instruction, into those of its `out`.

    Several merges cost little more than one: base and experts are read once for all. What a merge becomes does not
    depend on the others.
    """
    tensors = [parameter.base, *outs, *(s for s in parameter.experts.values() if isinstance(s, Tensor))]
    usual = all(t.dtype in KINDS and t.is_contiguous() for t in tensors)
    compiled = usual and parameter.base.device.type == "cpu"
    sums = [(i, out) for i, out in zip(instructions, outs, strict=True) if isinstance(i, Combination)]
    if sums and compiled:
        combine_compiled([i for i, _ in sums], parameter, experts, [out for _, out in sums], start, stop)
    for instruction, out in zip(instructions, outs, strict=True):
        if isinstance(instruction, Vote):
            plain = not compiled or instruction.spread > 0
            (vote if plain else vote_compiled)(instruction, parameter, experts, out, start, stop)
        elif not compiled:
            combine(instruction, parameter, experts, out, start, stop)


# --- in torch


def combine(
    instruction: Combination, parameter: Ingredients, experts: Sequence[str], out: Tensor, start: int, stop: int
) -> None:
    """A `Combination` in torch operations."""
    sources, weights = _terms(instruction, parameter, experts)
    target = matrix(out)[start:stop]
    merged = torch.zeros(target.shape, device=parameter.base.device)
    for source, weight in zip(sources, weights, strict=True):
        if weight:
            term = source.rows(start, stop) if isinstance(source, LowRank) else matrix(source)[start:stop].float()
            merged.add_(term * weight)
    target.copy_(merged)


def vote(instruction: Vote, parameter: Ingredients, experts: Sequence[str], out: Tensor, start: int, stop: int) -> None:
    """A `Vote` in torch operations."""
    base = matrix(parameter.base)[start:stop].float()
    varies = parameter.variance(experts, start, stop) >= instruction.spread if instruction.spread else None
    total, added = torch.zeros_like(base), torch.zeros_like(base)
    up, weight_up, weight_down = (torch.zeros_like(base) for _ in range(3))
    for expert, w, ballot, keep in zip(
        experts, instruction.weights, instruction.ballots, instruction.keep, strict=True
    ):
        if expert not in parameter.experts or (not w and not ballot):
            continue
        kept = _kept(parameter.rows(expert, start, stop), keep, start, stop)
        if varies is not None:
            kept = kept.where(varies, 0.0)
        weighted, cast = kept * w, kept * ballot
        total, added = total + cast, added + weighted
        up += weighted.where(cast > 0, 0.0)
        weight_up += torch.where(cast > 0, abs(w), 0.0)
        weight_down += torch.where(cast < 0, abs(w), 0.0)
    if instruction.elect:
        elected = total >= 0
        added = torch.where(elected, up, added - up)
        if instruction.mean:
            share = torch.where(elected, weight_up, weight_down)
            added = added / share.where(share > 0, 1.0)
    matrix(out)[start:stop].copy_(base + added * instruction.scale)


def _terms(
    instruction: Combination, parameter: Ingredients, experts: Sequence[str]
) -> tuple[list[Source], list[float]]:
    """The base and the experts that differ from it here, and the weight of each.

    An expert that equals the base here, or is a difference from it, adds its weight to the base's.
    """
    base, sources, weights = instruction.base, list[Source](), list[float]()
    for expert, w in zip(experts, instruction.weights, strict=True):
        source = parameter.experts.get(expert)
        if not isinstance(source, Tensor):
            base += w
        if source is not None:
            sources.append(source)
            weights.append(w)
    if abs(base) < 1e-12:  # what is left of 1 - .3 - .7 + .3 + .7
        base = 0.0
    return [parameter.base, *sources], [base, *weights]


def _kept(difference: Tensor, keep: Keep, start: int, stop: int) -> Tensor:
    magnitude = difference.abs()
    mask = (magnitude >= keep.low) & (magnitude <= keep.high)
    if keep.draws is None:
        return difference.where(mask, 0.0)
    cut = torch.full_like(difference, keep.floor)
    if keep.ranks is not None:
        cut = keep.floor + keep.rise * keep.ranks[start:stop].to(difference.device).float()
    cut = cut.ceil().clamp(1, LEVELS)
    draws = keep.draws[start:stop].to(difference.device)  # where there was no room for them
    kept = difference.where(mask & (draws.float() < cut), 0.0)
    return kept * (LEVELS / cut) if keep.rescale else kept


# --- compiled


def combine_compiled(
    instructions: Sequence[Combination],
    parameter: Ingredients,
    experts: Sequence[str],
    outs: Sequence[Tensor],
    start: int,
    stop: int,
) -> None:
    """`Combination`s by the compiled kernel; of `KINDS`, on the CPU."""
    terms = [_terms(instruction, parameter, experts) for instruction in instructions]
    weights = np.array([weights for _, weights in terms], np.float32)
    used = np.flatnonzero(weights.any(axis=0))  # what weighs nothing in any merge is not read
    sources = [terms[0][0][i] for i in used]
    targets = [matrix(out)[start:stop] for out in outs]
    rows, columns = targets[0].shape
    read = [matrix(source.up if isinstance(source, LowRank) else source)[start:stop] for source in sources]
    downs = [source.down if isinstance(source, LowRank) else None for source in sources]
    if not any(isinstance(source, LowRank) for source in sources):
        rows, columns = 1, rows * columns  # one long row: fewer, fuller strips
    _compiled().combine(
        *(_addresses(read), _kinds(read), _addresses(downs)),
        np.array([0 if down is None else len(down) for down in downs], np.int64),
        *(np.ascontiguousarray(weights[:, used]), _addresses(targets), _kinds(targets), rows, columns),
    )


def vote_compiled(
    instruction: Vote, parameter: Ingredients, experts: Sequence[str], out: Tensor, start: int, stop: int
) -> None:
    """A `Vote` by the compiled kernel; of `KINDS`, on the CPU."""
    voters, figures = list[tuple[Source, Keep]](), list[list[float]]()
    for expert, w, ballot, keep in zip(
        experts, instruction.weights, instruction.ballots, instruction.keep, strict=True
    ):
        source = parameter.experts.get(expert)
        if source is not None and (w or ballot):
            voters.append((source, keep))
            model = isinstance(source, Tensor)
            figures.append([w, ballot, keep.low, keep.high, keep.floor, keep.rise, keep.rescale, model])
    table = np.array(figures, np.float32).reshape(-1, 8)
    mapped = all(isinstance(source, Tensor) for source, _ in voters)
    for first, last in [(0, stop - start)] if mapped else blocks(stop - start, matrix(out).shape[1]):
        here = slice(start + first, start + last)
        base, target = matrix(parameter.base)[here], matrix(out)[here]
        rows = [
            torch.mm(source.up[here], source.down, out=_scratch(number, *target.shape))
            if isinstance(source, LowRank)
            else matrix(source)[here]
            for number, (source, _) in enumerate(voters)
        ]
        draws = [None if keep.draws is None else keep.draws[here] for _, keep in voters]
        ranks = [None if keep.ranks is None else keep.ranks[here] for _, keep in voters]
        _compiled().vote(
            *(base.data_ptr(), _kind(base), _addresses(rows), _kinds(rows), _addresses(draws), _addresses(ranks)),
            *(table, instruction.elect, instruction.mean, np.float32(instruction.scale)),
            *(target.data_ptr(), _kind(target), target.numel()),
        )


def blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Rows from, to: so many at a time that a low-rank product stays in the cache."""
    step = max(1, BLOCK // columns)
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def _scratch(number: int, rows: int, columns: int) -> Tensor:
    """One of this thread's float32 buffers: fresh memory costs as much as the product that is put there."""
    buffers: dict[int, Tensor] = _thread.__dict__.setdefault("buffers", {})
    count = rows * columns
    if number not in buffers or buffers[number].numel() < count:
        with torch.inference_mode(False):  # a tensor of that mode could not be written outside it
            buffers[number] = torch.empty(count)
    return buffers[number][:count].view(rows, columns)


_thread = local()


def _addresses(tensors: Sequence[Tensor | None]) -> np.ndarray:
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], np.int64)


def _kind(tensor: Tensor) -> int:
    return KINDS[tensor.dtype]


def _kinds(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.array([_kind(tensor) for tensor in tensors], np.int64)


@dataclass(frozen=True)
class _Compiled:
    combine: Any
    vote: Any


@no_type_check
@cache
def _compiled() -> _Compiled:
    """The compiled kernels: made at first use (seconds), kept for the process, never written to disk.

    Arrays come as addresses, with their `KINDS`, so that one compilation serves any number of experts. Terms are added
    in their order; only low-rank products use fused multiply-adds.
    """
    njit = numba.njit(error_model="numpy", nogil=True)
    zero, one = np.float32(0), np.float32(1)

    @intrinsic
    def pointer(context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return types.voidptr(types.int64), generate

    shift = np.uint32(112 << 23)  # the difference of the exponents' biases, of float32 and float16
    lift = np.float32(2.0**112)
    lowest = np.uint32(113 << 23)  # float32's bits of the smallest float16 that is not subnormal
    beyond = np.uint32(143 << 23)  # of 65536, which is infinite there
    grid = np.float32(0.5)  # added to a smaller number, its last bits are multiples of the smallest float16
    grid_bits = np.uint32(126 << 23)
    sign = np.uint32(0x8000)

    @njit
    def widen(address, kind, first, out):
        """Read elements from `first` on as the bits of float32."""
        if kind == 2:
            half = numba.carray(pointer(address + 2 * first), out.size, np.uint16)
            for j in range(out.size):
                out[j] = np.uint32(half[j]) << np.uint32(16)
        elif kind == 1:
            half = numba.carray(pointer(address + 2 * first), out.size, np.uint16)
            number = out.view(np.float32)
            for j in range(out.size):
                out[j] = (np.uint32(half[j]) & np.uint32(0x7FFF)) << np.uint32(13)
            for j in range(out.size):
                number[j] *= lift
            for j in range(out.size):
                out[j] |= (np.uint32(half[j]) & sign) << np.uint32(16)
        else:
            whole = numba.carray(pointer(address + 4 * first), out.size, np.uint32)
            for j in range(out.size):
                out[j] = whole[j]

    @njit
    def narrow(bits, address, kind, first):
        """Write float32, rounded to the nearest, ties to even, where bfloat16 or float16 is wanted."""
        if kind == 2:
            half = numba.carray(pointer(address + 2 * first), bits.size, np.uint16)
            for j in range(bits.size):
                u = bits[j]
                half[j] = np.uint16((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
        elif kind == 1:
            half = numba.carray(pointer(address + 2 * first), bits.size, np.uint16)
            small = (np.abs(bits.view(np.float32)) + grid).view(np.uint32)
            for j in range(bits.size):
                u = bits[j] & np.uint32(0x7FFFFFFF)
                odd = (u >> np.uint32(13)) & np.uint32(1)
                usual = np.uint32(u - shift + np.uint32(0xFFF) + odd) >> np.uint32(13)
                rounded = usual if u >= lowest else small[j] - grid_bits
                rounded = rounded if u < beyond else np.uint32(0x7C00)
                half[j] = np.uint16(rounded | ((bits[j] >> np.uint32(16)) & sign))
        else:
            whole = numba.carray(pointer(address + 4 * first), bits.size, np.uint32)
            for j in range(bits.size):
                whole[j] = bits[j]

    @njit
    def scale(w, x, out):
        for j in range(out.size):
            out[j] = w * x[j]

    @njit
    def add(w, x, out):
        for j in range(out.size):
            out[j] += w * x[j]

    @numba.njit(error_model="numpy", nogil=True, fastmath={"contract"})
    def product(up, down, stride, out):
        """One row of a low-rank difference: the sum of `up.size` rows, four at a time."""
        out[:] = zero
        whole = up.size // 4 * 4
        for k in range(0, whole, 4):
            a = numba.carray(pointer(down + 4 * stride * k), out.size, np.float32)
            b = numba.carray(pointer(down + 4 * stride * (k + 1)), out.size, np.float32)
            c = numba.carray(pointer(down + 4 * stride * (k + 2)), out.size, np.float32)
            d = numba.carray(pointer(down + 4 * stride * (k + 3)), out.size, np.float32)
            for j in range(out.size):
                out[j] += up[k] * a[j] + up[k + 1] * b[j] + up[k + 2] * c[j] + up[k + 3] * d[j]
        for k in range(whole, up.size):
            a = numba.carray(pointer(down + 4 * stride * k), out.size, np.float32)
            for j in range(out.size):
                out[j] += up[k] * a[j]

    @njit
    def combine(sources, kinds, downs, ranks, weights, targets, target_kinds, rows, columns):
        table = np.empty((sources.size + 1, STRIP), np.float32)
        height, width = max(1, STRIP // columns), min(STRIP, columns)  # of a strip: some rows, or a part of one
        for row in range(0, rows, height):
            for column in range(0, columns, width):
                first = row * columns + column
                high, wide = min(height, rows - row), min(width, columns - column)
                size = high * wide
                for s in range(sources.size):
                    if ranks[s] == 0:
                        widen(sources[s], kinds[s], first, table[s, :size].view(np.uint32))
                        continue
                    for i in range(high):
                        up = numba.carray(pointer(sources[s] + 4 * (row + i) * ranks[s]), ranks[s], np.float32)
                        product(up, downs[s] + 4 * column, columns, table[s, i * wide : (i + 1) * wide])
                merged = table[sources.size, :size]
                for m in range(targets.size):
                    empty = True
                    for s in range(sources.size):
                        if weights[m, s] != 0:
                            if empty:
                                scale(weights[m, s], table[s, :size], merged)
                            else:
                                add(weights[m, s], table[s, :size], merged)
                            empty = False
                    if empty:
                        merged[:] = zero
                    narrow(merged.view(np.uint32), targets[m], target_kinds[m], first)

    @njit
    def subtract(x, base):
        for j in range(x.size):
            x[j] -= base[j]

    @njit
    def between(d, low, high):
        for j in range(d.size):
            a = abs(d[j])
            d[j] = d[j] if (a >= low) & (a <= high) else zero

    @njit
    def chance(d, draws, floor, rescale):
        cut = min(max(np.ceil(floor), one), np.float32(LEVELS))
        factor = np.float32(LEVELS) / cut if rescale else one
        level = np.int32(cut)
        for j in range(d.size):
            d[j] = d[j] * factor if np.int32(draws[j]) < level else zero

    @njit
    def ranked_chance(d, draws, ranks, floor, rise, rescale):
        most = np.float32(LEVELS)
        for j in range(d.size):
            cut = np.ceil(floor + rise * np.float32(ranks[j]))
            cut = max(cut, one)
            cut = min(cut, most)
            kept = d[j] * (most / cut) if rescale else d[j]
            d[j] = kept if np.float32(draws[j]) < cut else zero

    @njit
    def cast(d, w, ballot, total, added, up, weight_up, weight_down):
        size = abs(w)
        for j in range(d.size):
            v = w * d[j]
            voice = ballot * d[j]
            total[j] += voice
            added[j] += v
            up[j] += v if voice > zero else zero
            weight_up[j] += size if voice > zero else zero
            weight_down[j] += size if voice < zero else zero

    @njit
    def settle(total, added, up, weight_up, weight_down, mean):
        for j in range(total.size):
            elected = total[j] >= zero
            share = weight_up[j] if elected else weight_down[j]
            share = share if mean & (share > zero) else one
            added[j] = (up[j] if elected else added[j] - up[j]) / share

    @njit
    def vote(base, base_kind, sources, kinds, draws, ranks, figures, elect, mean, scale_by, target, kind, count):
        table = np.empty((7, STRIP), np.float32)
        for first in range(0, count, STRIP):
            size = min(STRIP, count - first)
            b, d, total, added, up, weight_up, weight_down = (
                table[0, :size],
                table[1, :size],
                table[2, :size],
                table[3, :size],
                table[4, :size],
                table[5, :size],
                table[6, :size],
            )
            widen(base, base_kind, first, b.view(np.uint32))
            table[2:, :size] = zero
            for e in range(sources.size):
                w, ballot, low, high = figures[e, 0], figures[e, 1], figures[e, 2], figures[e, 3]
                floor, rise, rescale, model = figures[e, 4], figures[e, 5], figures[e, 6] > 0, figures[e, 7] > 0
                widen(sources[e], kinds[e], first, d.view(np.uint32))
                if model:
                    subtract(d, b)
                if low > 0 or high < np.inf:
                    between(d, low, high)
                if ranks[e] != 0:
                    drawn = numba.carray(pointer(draws[e] + first), size, np.uint8)
                    ranked = numba.carray(pointer(ranks[e] + first), size, np.uint8)
                    ranked_chance(d, drawn, ranked, floor, rise, rescale)
                elif draws[e] != 0:
                    chance(d, numba.carray(pointer(draws[e] + first), size, np.uint8), floor, rescale)
                if elect:
                    cast(d, w, ballot, total, added, up, weight_up, weight_down)
                else:
                    add(w, d, added)
            if elect:
                settle(total, added, up, weight_up, weight_down, mean)
            add(scale_by, added, b)
            narrow(b.view(np.uint32), target, kind, first)

    return _Compiled(combine, vote)
