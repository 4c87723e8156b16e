"""Ingredients: one parameter of the base and of the experts, with what does not depend on the candidate.

Inner products, order statistics of magnitudes and random draws are computed when a merge first needs them, and once.
An expert's parameter is a tensor as it is stored, or a low-rank difference from the base, kept factored.

Base and experts are all on one device; draws and ranks lie beside them as long as there is room, then in main memory.
What a device is asked for beside that is a block of rows at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LEVELS = 256  # random draws and ranks are one byte
GRID = 100  # densities that are multiples of 1/GRID are known after one sort
BLOCK = 2**18  # elements of which inner products are summed, and magnitudes ranked, at once


@dataclass(frozen=True)
class LowRank:
    """A difference from the base, `up @ down`, in float32; LoRA's scale is in `up`."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows in"]:
        """Rows of the difference."""
        return self.up[start:stop] @ self.down


Source = Tensor | LowRank


def home(device: str, needed: int) -> str:
    """Where `needed` bytes live of what merges are made of: on the model's device if they fit there, or in main memory.

    A tenth of the device is left for answering, and for a merge's blocks. From base and experts in main memory a merge
    is made by the processor, and its result alone is sent to the device.
    """
    if torch.device(device).type != "cuda":
        return "cpu"
    free, total = torch.cuda.mem_get_info(device)
    return device if needed <= free - total // 10 else "cpu"


class Ingredients:
    """One parameter: the base's, and each expert's that differs from it."""

    def __init__(self, name: str, base: Tensor, experts: Mapping[str, Source], fingerprints: Mapping[str, str]) -> None:
        """`experts` are those that change this parameter; `fingerprints` name experts in the keys of random draws."""
        self.name = name
        self.base = base
        self.experts = experts
        self._fingerprints = fingerprints
        self._gram: dict[tuple[str, ...], np.ndarray] = {}
        self._order: dict[str, dict[int, float]] = {}
        self._ranks: dict[str, Tensor] = {}
        self._draws: dict[str, tuple[int, Tensor]] = {}

    def nbytes(self, experts: Sequence[str]) -> int:
        """The size of the base's parameter and of those of `experts` that differ from it, as they are stored."""
        sources = [self.experts[expert] for expert in experts if expert in self.experts]
        factors = [(s.up, s.down) if isinstance(s, LowRank) else (s,) for s in sources]
        return self.base.nbytes + sum(part.nbytes for parts in factors for part in parts)

    def rows(self, expert: str, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """Rows of an expert's difference from the base, in float32; a vector is one row."""
        base = matrix(self.base)[start:stop].float()
        source = self.experts.get(expert)
        if source is None:
            return torch.zeros_like(base)
        return source.rows(start, stop) if isinstance(source, LowRank) else matrix(source)[start:stop].float() - base

    def difference(self, expert: str) -> Float[Tensor, "rows columns"]:
        """An expert's whole difference from the base, in main memory."""
        source = self.experts.get(expert)
        if isinstance(source, LowRank):
            return source.up.cpu() @ source.down.cpu()  # not by blocks: its last bits depend on the shape
        found = torch.empty(matrix(self.base).shape)
        for start, stop in self._blocks():
            found[start:stop] = self.rows(expert, start, stop)
        return found

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Rows from, to: of `BLOCK` elements, or one row."""
        rows, columns = matrix(self.base).shape
        step = max(1, BLOCK // columns)
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def gram(self, experts: Sequence[str]) -> Float[np.ndarray, "vectors vectors"]:
        """Inner products of the base and of the experts' differences from it, the base first, in float64."""
        key = tuple(experts)
        if key not in self._gram:
            total = np.zeros((len(key) + 1, len(key) + 1))
            for start, stop in self._blocks():
                parts = [matrix(self.base)[start:stop], *(self.rows(expert, start, stop) for expert in key)]
                vectors = torch.stack([part.reshape(-1).double() for part in parts])
                total += (vectors @ vectors.T).cpu().numpy()
            self._gram[key] = total
        return self._gram[key]

    def magnitude(self, expert: str, rank: int, gamma: float = 0.0) -> float:
        """The magnitude of given rank, from 0 for the smallest, of an expert's difference.

        The ranks at which densities that are multiples of 1/`GRID` cut, with and without the share `gamma` of the
        largest, are found by the one sort of the first call.
        """
        known = self._order.setdefault(expert, {})
        if rank not in known:
            magnitudes = self.difference(expert).abs_().numpy().ravel()
            magnitudes.sort()
            count, top = len(magnitudes), int(gamma * len(magnitudes))
            cuts = {kept_ranks(count, share / GRID, top) for share in range(1, GRID + 1)}
            for place in {rank, *(place for cut in cuts for place in cut)}:
                known[place] = float(magnitudes[place])
        return known[rank]

    def spread(self, experts: Sequence[str]) -> Float[Tensor, "rows columns"]:
        """Variance over the experts' differences, in main memory."""
        whole = {name: self.difference(name) for name in experts if isinstance(self.experts.get(name), LowRank)}
        found = torch.empty(matrix(self.base).shape)
        for start, stop in self._blocks():
            parts = [whole[e][start:stop] if e in whole else self.rows(e, start, stop).cpu() for e in experts]
            found[start:stop] = _variance(parts)
        return found

    def variance(self, experts: Sequence[str], start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """Rows of `spread`, on the device."""
        return _variance([self.rows(expert, start, stop) for expert in experts])

    def draws(self, expert: str, seed: int) -> UInt8[Tensor, "rows columns"]:
        """Uniform integers below 256 from Philox, a counter-based generator (Salmon et al. 2011).

        The key is (seed, expert, parameter): the same draws in any order, thread, process or device.
        """
        kept = self._draws.get(expert)
        if kept is None or kept[0] != seed:
            text = f"{seed} {self._fingerprints[expert]} {self.name}"
            key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
            raw = np.random.Generator(np.random.Philox(key=key)).bytes(self.base.numel())
            drawn = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(matrix(self.base).shape)
            kept = self._draws[expert] = (seed, self._kept(drawn))
        return kept[1]

    def ranks(self, expert: str) -> UInt8[Tensor, "rows columns"]:
        """The rank of each magnitude in its row, from 0 for the smallest to 255 for the largest."""
        if expert not in self._ranks:
            table = matrix(self.base)
            levels = torch.linspace(0, LEVELS - 1, table.shape[1], device=table.device).round().to(torch.uint8)
            ranks = torch.empty(table.shape, dtype=torch.uint8, device=table.device)
            for start, stop in self._blocks():  # an order is eight bytes an element
                order = self.rows(expert, start, stop).abs().argsort(dim=1, stable=True)
                ranks[start:stop].scatter_(1, order, levels.expand_as(order))
            self._ranks[expert] = self._kept(ranks)
        return self._ranks[expert]

    def _kept(self, mask: UInt8[Tensor, "rows columns"]) -> UInt8[Tensor, "rows columns"]:
        """Draws or ranks where they are kept."""
        return mask.to(home(str(self.base.device), mask.nbytes))


def _variance(differences: Sequence[Tensor]) -> Tensor:
    """The variance of each element."""
    return torch.stack([*differences]).var(dim=0, unbiased=False)


def matrix(tensor: Tensor) -> Tensor:
    """A view with two dimensions: a vector is one row, leading dimensions are rows."""
    return tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.reshape(-1, tensor.shape[-1])


def kept_ranks(count: int, density: float, top: int) -> tuple[int, int]:
    """The ranks of the smallest and the largest magnitude kept, of `count`, where the `top` largest are dropped.

    At least one is kept; `top` gives way where the density leaves no room for it, as in mergekit.
    """
    kept = max(1, int(density * count))
    smallest = max(0, count - kept - top)
    return smallest, smallest + kept - 1
