"""A batch as one row of tokens: nothing is computed for padding, and no batch moves a bit.

Tokens go through the layers as one row; only where they attend to one another are they set apart, in padded rows. A
token's numbers are then the same to the bit in any batch (`tests/test_flat.py`), and nothing has to be asked twice to
find out, on two kinds of processor:

- where a product's row does not depend on the others, which a trial of the model shows (`answering.steady`);
- where matrices are multiplied in tiles (AMX). There the order of a product's sums depends on how many rows it has: in
  bfloat16 an element of 100,000 comes out otherwise in a product of 48 rows than in one of 1,040, which moves
  likelihoods by up to .5 nats. From so many rows on it mostly stays: all products are of `ROWS` rows, or of fewer that
  give the same, which a trial shows for each shape (`enough`).

Knows token rows and their masks; knows nothing of items.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from merge3.memory import rounded

ROWS = 1536  # of a product in the layers, in tiles: each token takes a quarter less than in 512, 512 as long as 256
HEAD_ROWS = 512  # of the head's, which sees few places
STEP = 16  # tokens are filled up to a multiple of, where products may have any shape: fewer are computed in another way
TILES_STEP = 64  # and in tiles, so that few shapes have to be tried
RUNG = 256  # rows that a product is filled up to a multiple of, where fewer do not give what `ROWS` give
TRIED = 2**20  # numbers of which none may differ in a trial, at least
LARGE = 2**28  # weights of a layer that is not tried: as many more would have to be held
KEYS = 32  # columns that attention looks at come in such multiples: a tile's depth in bfloat16
PRODUCTS = (nn.Linear, Conv1D)
ATTENTION = "merge3_flat"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT, LARGEST = 2**29, 2**25  # bytes of freed memory that the C library keeps, and of a buffer (it takes no more)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one row stand in a batch of padded rows.

    Args:
        places: of each token, row times `columns` and column.
        rows: of the batch.
        columns: of each of its rows.
        keys: columns that attention looks at, the last of them masked.
    """

    places: Tensor
    rows: int
    columns: int
    keys: int
    _padded: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def apart(
        self, kind: str, flat: Float[Tensor, "1 heads tokens size"], columns: int
    ) -> Float[Tensor, "rows heads columns size"]:
        """The tokens in padded rows of so many columns, which the next of this kind and shape takes."""
        _, heads, _, size = flat.shape
        name = kind, heads, size, columns, flat.dtype
        if name not in self._padded:
            places = self.places // self.columns * columns + self.places % self.columns
            self._padded[name] = flat.new_zeros(self.rows * columns, heads, size), places
        padded, places = self._padded[name]
        padded.index_copy_(0, places, flat[0].transpose(0, 1)[: len(places)])
        return padded.view(self.rows, columns, heads, size).transpose(1, 2)

    def together(
        self, padded: Float[Tensor, "rows columns heads size"], tokens: int
    ) -> Float[Tensor, "1 tokens heads size"]:
        """The padded rows' tokens as one row, of so many with what fills it up."""
        count, (*_, heads, size) = len(self.places), padded.shape
        found = padded.new_empty(tokens, heads, size)
        torch.index_select(padded.flatten(0, 1), 0, self.places, out=found[:count])
        found[count:] = 0
        return found[None]


_layout: ContextVar[Layout] = ContextVar("layout")  # of the pass that is under way


def suits(model: PreTrainedModel) -> bool:
    """Whether the model can be laid flat, and this is a processor where that may be worth it."""
    return model.device.type == "cpu" and replaceable(model)


def tiled(model: PreTrainedModel) -> bool:
    """Whether this processor multiplies the model's numbers in tiles."""
    return model.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def step(model: PreTrainedModel) -> int:
    """What a row of tokens is filled up to a multiple of."""
    return TILES_STEP if tiled(model) else STEP


def room(model: PreTrainedModel, batch_tokens: int) -> int:
    """Tokens of a batch that is to have `batch_tokens`: in tiles as many as fill whole products."""
    return rounded(batch_tokens, ROWS if tiled(model) else STEP)


def replaceable(model: PreTrainedModel) -> bool:
    """Whether attention is torch's own, by transformers' registry, and all other products are plain layers'."""
    chosen = model.config.get_text_config()._attn_implementation
    plain = all(
        weight.ndim < 2 or type(module) in (*PRODUCTS, nn.Embedding)
        for module in model.modules()
        for weight in module.parameters(recurse=False)
    )
    return bool(getattr(model, "_supports_attention_backend", False)) and chosen == "sdpa" and plain


def laid_flat(inputs: dict[str, Tensor], lengths: Sequence[int], step: int) -> tuple[Layout, dict[str, Tensor]]:
    """Padded rows that hold so many tokens each, what follows them being padding, as one row; and where all stood.

    `inputs` are `input_ids` and `position_ids`, rows x columns, and `attention_mask`, rows x 1 x columns x keys, which
    stays as it is. The row is filled up to a multiple of `step`.
    """
    mask = inputs["attention_mask"]
    count, _, width, keys = mask.shape
    layout = Layout(torch.cat([torch.arange(n) + row * width for row, n in enumerate(lengths)]), count, width, keys)
    fill = -len(layout.places) % step
    names = "input_ids", "position_ids"
    given = {name: pad(inputs[name].flatten()[layout.places], (0, fill))[None] for name in names}
    return layout, given | {"attention_mask": mask}


@cache
def keep_buffers() -> None:
    """Have the C library (glibc) keep what a layer frees for the next: it would be given back, and paged in anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


@contextmanager
def passing(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """Meanwhile a model that `suits` takes one row of tokens laid out so, in whatever products give the same."""
    keep_buffers()
    config = model.config.get_text_config()
    before, token = config._attn_implementation, _layout.set(layout)
    config._attn_implementation = ATTENTION
    try:
        with in_tiles(model) if tiled(model) else nullcontext():
            yield
    finally:
        config._attn_implementation = before
        _layout.reset(token)


@contextmanager
def in_tiles(model: PreTrainedModel) -> Iterator[None]:
    """Meanwhile the model's matrix products give what they give of `ROWS` rows, its head's of `HEAD_ROWS`."""
    products = [module for module in model.modules() if type(module) in PRODUCTS]
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in products:
        module.forward = partial(_in_parts, module, HEAD_ROWS if module is head else ROWS)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module in products:
            del module.forward


def _in_parts(module: nn.Linear | Conv1D, most: int, inputs: Float[Tensor, "... size"]) -> Float[Tensor, "... width"]:
    """A layer's product, `most` rows at a time, the last by as many as are `enough`."""
    flat = inputs.flatten(0, -2)
    weight = module.weight if isinstance(module, Conv1D) else module.weight.T
    size, width = weight.shape
    shape = Shape(size, width, isinstance(module, Conv1D), module.bias is not None, flat.dtype, torch.get_num_threads())
    last = len(flat) % most
    fill = enough(last, most, shape) - last if last else 0
    padded = pad(flat, (0, 0, 0, fill)) if fill else flat
    made = multiplied(padded, weight, module.bias, most)
    return made[: len(flat)].view(*inputs.shape[:-1], -1)


def multiplied(
    inputs: Float[Tensor, "rows size"], weight: Float[Tensor, "size width"], bias: Tensor | None, most: int
) -> Float[Tensor, "rows width"]:
    """The product, `most` rows at a time."""
    made = inputs.new_empty(len(inputs), weight.shape[1])
    for start in range(0, len(inputs), most):
        part = slice(start, start + most)
        if bias is None:
            torch.mm(inputs[part], weight, out=made[part])
        else:
            torch.addmm(bias, inputs[part], weight, out=made[part])
    return made


@dataclass(frozen=True)
class Shape:
    """All that a product's order of sums may depend on, beside its rows."""

    size: int
    width: int
    by_size: bool  # whether its weights are stored a row for each input
    biased: bool
    dtype: torch.dtype
    threads: int  # that share it


@cache
def enough(rows: int, most: int, shape: Shape) -> int:
    """The fewest rows from `rows` on that have, to the bit, the numbers that they have among `most`: a trial.

    A processor multiplies matrices of one shape in one way, whatever the numbers, so random ones are multiplied, so
    many rows at a time.
    """
    if shape.size * shape.width > LARGE:
        return most
    noise = torch.randn(2**16 + 1, generator=torch.Generator().manual_seed(0)).to(shape.dtype)

    def random(*sizes: int) -> Tensor:
        """Drawn numbers over and over: as many as weights have take long to draw."""
        count = math.prod(sizes)
        return noise.repeat(count // len(noise) + 1)[:count].view(sizes)

    weight = random(shape.size, shape.width) if shape.by_size else random(shape.width, shape.size).T
    bias = random(shape.width) if shape.biased else None
    inputs = random(TRIED // (most * shape.width) + 1, most, shape.size)
    rungs: list[int] = [rows, *range(rounded(rows + 1, RUNG), most, RUNG)]
    for few in rungs:
        some = most // few * few  # the rest would be a product of other rows
        if all(
            torch.equal(multiplied(x[:some], weight, bias, few), multiplied(x, weight, bias, most)[:some])
            for x in inputs
        ):
            return few
    return most


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Attention within the padded rows of the layout."""
    layout = _layout.get()
    queries = layout.apart("query", query, layout.columns)
    keys, values = (layout.apart(*part, layout.keys) for part in (("key", key), ("value", value)))
    if given.get("softcap") is None and given.get("position_bias") is None:  # the same, without copying shared heads
        found = scaled_dot_product_attention(
            queries, keys, values, attention_mask, scale=given.get("scaling"), enable_gqa=True
        ).transpose(1, 2)
    else:
        found, _ = sdpa_attention_forward(module, queries, keys, values, attention_mask, **given)
    return layout.together(found, query.shape[2]), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
