"""Merging: one model in memory that becomes any merge of its experts. No candidate is ever written to disk.

`methods` says what is done with each parameter, `kernels` does it; here parameters are brought together, cut into
pieces that threads share, and written into the live model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from merge3 import kernels
from merge3.ingredients import Ingredients, LowRank, matrix
from merge3.kernels import Instruction
from merge3.methods import METHODS
from merge3.models import Changes, enough_memory, free_memory, tensors_of, weights_of
from merge3.recipe import Recipe, check, layer_of, tower_of

PIECE = 2**21  # elements that a thread merges at a time
LARGE = 2**24  # off the CPU, where one thread merges; a vote holds a dozen copies of them in float32
SPARE = 0.5  # of the free memory, at most, for merges that are made together

Weights = dict[str, Tensor]  # parameter name -> values
Task = tuple[Sequence[Instruction], Ingredients, Sequence[Tensor]]  # what to do, with what, and where to put it
T = TypeVar("T")
R = TypeVar("R")


class LiveMerger:
    """One model in memory that becomes any merge of its experts.

    Parameters in which no expert differs are not touched, except by recipes that scale them. The ingredients stay
    where they are: on the model's device, or in the computer's memory (mapped from their files), from which a model on
    another device is fed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        experts: Mapping[str, Changes],
        fingerprints: Mapping[str, str],
        base: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`model` is what becomes the merge, `fingerprints` name the experts in the keys of masks.

        `base` are the base's weights as they are stored; where it is None the model holds them, and they are copied.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        self.model = model
        self.experts = experts
        self.fingerprints = fingerprints
        self._parameters = tensors_of(model)
        self._own = weights_of(model)  # where single merges are written
        self.layers: dict[str, int] = {}  # of each tower
        for name in self._own:
            tower = tower_of(name)
            self.layers[tower] = max(self.layers.get(tower, 1), 1 + (layer_of(name) or 0))
        self.changed = sorted({name for expert in experts.values() for name in expert})
        """The parameters in which some expert differs from the base."""
        self._base = base
        self._ingredients = [self._gather(name) for name in self.changed]
        self._spare: list[Weights] = []
        self.bytes_read = self.bytes_written = 0  # by all merges so far, each weight once a pass

    def _gather(self, name: str) -> Ingredients:
        stored = self._own[name].clone() if self._base is None else self._base[name]
        sources = {expert: changes[name] for expert, changes in self.experts.items() if name in changes}
        for owner, source in {"the base": stored, **sources}.items():
            parts = (source.up, source.down) if isinstance(source, LowRank) else (source,)
            if not all(finite(part) for part in parts):
                raise ValueError(f"{name!r} of {owner} holds NaN or infinite weights: it cannot be merged")
        return Ingredients(name, stored, sources, self.fingerprints)

    def apply(self, recipe: Recipe) -> None:
        """Write the merge into the model's parameters.

        Raises:
            MemoryError: the device has too little for it.
            ValueError: see `recipe.check`; or an expert of the recipe is not loaded.
        """
        check(recipe)
        if recipe.scales and len(self._ingredients) < len(self._own):  # from now on all are written
            known = {parameter.name for parameter in self._ingredients}
            self._ingredients += [self._gather(name) for name in self._own if name not in known]
        self.hold(self._own)
        self._write([recipe], [self._own])

    @property
    def together(self) -> int:
        """How many merges `make` can hold, in half of the memory that is free but for them; off the CPU 1: no gain.

        What is mapped of base and experts counts as free where it is asked for, but would have to be read again.
        """
        if any(weights.device.type != "cpu" for weights in self._own.values()):
            return 1
        size = sum(self._own[name].nbytes for name in self.changed)
        mapped = sum(parameter.nbytes(list(self.experts)) for parameter in self._ingredients)
        free = free_memory() + len(self._spare) * size - mapped
        return max(1, int(SPARE * free / max(size, 1)))

    def make(self, recipes: Sequence[Recipe]) -> list[Weights]:
        """The weights of several merges, made in one pass over base and experts, for the model to `hold`.

        Each is what `apply` makes, bit for bit. They are good until the next call.

        Raises:
            MemoryError: as `apply`.
            ValueError: as `apply`; or a recipe scales parameters that all experts share.
        """
        for recipe in recipes:
            check(recipe)
        if scaling := [recipe.method for recipe in recipes if recipe.scales]:
            raise ValueError(f"{scaling[0]} without normalisation changes every parameter: merge it alone")
        for _ in range(len(self._spare), len(recipes)):
            self._spare.append({name: torch.empty_like(self._own[name]) for name in self.changed})
        made = self._spare[: len(recipes)]
        for spare in made:
            for parameter in self._ingredients[len(self.changed) :]:  # since a recipe scaled them
                spare.setdefault(parameter.name, torch.empty_like(self._own[parameter.name]))
        self._write(recipes, made)
        return made

    def hold(self, weights: Weights) -> None:
        """Make the model the merge that `make` returned."""
        for name, values in weights.items():
            self._parameters[name].data = values

    @enough_memory("for a merge")
    @torch.inference_mode()
    def _write(self, recipes: Sequence[Recipe], outs: Sequence[Weights]) -> None:
        for recipe in recipes:
            if unknown := [expert for expert in recipe.experts if expert not in self.experts]:
                raise ValueError(f"recipe names expert {unknown[0]!r}; loaded are {sorted(self.experts)}")
            if recipe.experts != recipes[0].experts:
                raise ValueError(f"expected recipes of {list(recipes[0].experts)}, got {list(recipe.experts)}")
        experts = recipes[0].experts
        instructions = in_threads(lambda p: [self._instruct(recipe, p) for recipe in recipes], self._ingredients)
        near = list[Task]()
        for parameter, orders in zip(self._ingredients, instructions, strict=True):
            live = [weights[parameter.name] for weights in outs]
            if live[0].device == parameter.base.device:
                near.append((orders, parameter, live))
                continue
            merged = torch.empty_like(live[0], device=parameter.base.device)
            for order, target in zip(orders, live, strict=True):  # merged where the ingredients are, one at a time
                _merge(experts, [([order], parameter, [merged])])
                target.copy_(merged)
        _merge(experts, near)
        self.bytes_read += sum(parameter.nbytes(experts) for parameter in self._ingredients)
        self.bytes_written += sum(weights[parameter.name].nbytes for weights in outs for parameter in self._ingredients)

    def _instruct(self, recipe: Recipe, parameter: Ingredients) -> Instruction:
        """What the method does with one parameter."""
        coefficients = recipe.at(parameter.name, self.layers[tower_of(parameter.name)])
        return METHODS[recipe.method](parameter, recipe.experts, coefficients, recipe.mask_seed)


def _merge(experts: tuple[str, ...], tasks: Sequence[Task]) -> None:
    """Follow the instructions, in pieces of rows that threads share; off the CPU in larger ones, one by one."""
    pieces, near = [], True
    for instructions, parameter, outs in tasks:
        rows, columns = matrix(outs[0]).shape
        near = near and outs[0].device.type == "cpu"
        step = max(1, (PIECE if near else LARGE) // columns)
        for start in range(0, rows, step):
            pieces.append((instructions, parameter, experts, outs, start, min(start + step, rows)))
    if near:
        in_threads(lambda piece: kernels.apply(*piece), pieces)
        return
    for piece in pieces:
        kernels.apply(*piece)


def finite(tensor: Tensor) -> bool:
    """Whether every element is a number and not infinite."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def in_threads(function: Callable[[T], R], values: Sequence[T]) -> list[R]:
    """`function` of every value, in as many threads as torch uses, each of which uses torch alone."""
    results: list[Any] = [None] * len(values)
    places = iter(range(len(values)))  # shared: a thread takes the next

    @torch.inference_mode()
    def work() -> None:
        for place in places:
            results[place] = function(values[place])

    count = torch.get_num_threads()
    if count == 1 or len(values) < 2:
        work()
        return results
    for future in [_pool(count).submit(work) for _ in range(count)]:
        future.result()
    return results


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Threads whose torch operations are not shared out again."""
    alone = Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # else the first operation would take the number that is set below
        alone.wait()

    pool = ThreadPoolExecutor(count, "merge", initializer=start)
    for _ in range(count):
        pool.submit(int)
    alone.wait()
    torch.set_num_threads(count)  # which threads that start later take
    return pool
