"""A batch as one row of tokens: nothing is computed for padding, and no batch moves a bit.

Tokens go through the layers as one row; only where they attend to one another are they set apart, in padded rows. A
token's numbers are then the same to the bit in any batch (`tests/test_flat.py`), and nothing has to be asked twice to
find out.

The order of a product's sums may depend on how many rows it has. Where matrices are multiplied in tiles (AMX) one
element of 100,000 comes out otherwise, in bfloat16, in a product of 48 rows than in one of 1,040, which moves
likelihoods by up to .5 nats; elsewhere a trial of the model tells (`answering.steady`). From some hundred rows on the
order is mostly the same. So products are then made in parts of `ROWS` rows, or of as many others as give the same,
whichever is fastest: a trial of each shape shows both (`paces`).

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
from functools import cache, cached_property, partial
from itertools import groupby
from time import perf_counter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from merge3.memory import looked_at, rounded

ROWS = 1536  # of a product in the layers, in parts: what fewer are held against, and a batch is filled up to
HEAD_ROWS = 512  # of the head's, which sees few places
STEP = 16  # tokens are filled up to a multiple of, where products may have any shape: fewer are computed in another way
PARTS_STEP = 64  # and in parts; numbers of rows that are tried are its multiples
TRIED = 2**20  # numbers of which none may differ in a trial, at least
SLACK = 1.25  # times the shortest, which parts that are fewer may take
SECONDS = 0.1  # that products are timed, each once at least; of each the shortest counts
LARGE = 2**28  # weights of a layer that is not tried: as many more would have to be held
KEYS = 32  # columns that attention looks at come in such multiples: a tile's depth in bfloat16
PRODUCTS = (nn.Linear, Conv1D)
ATTENTION = "merge3_flat"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT, LARGEST = 2**29, 2**25  # bytes of freed memory that the C library keeps, and of a buffer (it takes no more)


@dataclass(frozen=True)
class Block:
    """Rows next to one another that are of like length: where their tokens stand when they are set apart.

    Args:
        tokens: theirs, of the batch as one row.
        rows: theirs, of the batch.
        lengths: of each of its rows, in tokens.
        columns: of each of its rows, set apart.
        keys: columns that attention looks at, the last of them masked.
        before: of these, those of the beginning that all rows share.
        mask: of the beginning itself, which is no row of the batch.
    """

    tokens: slice
    rows: slice
    lengths: tuple[int, ...]
    columns: int
    keys: int
    before: int = 0
    mask: Float[Tensor, "1 1 columns keys"] | None = None
    _padded: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def apart(
        self, kind: str, flat: Float[Tensor, "1 heads tokens size"], columns: int, before: int = 0, start: int = 0
    ) -> Float[Tensor, "rows heads columns size"]:
        """The block's tokens in padded rows of so many columns, which the next of this kind and shape takes.

        Each row begins with the first `before` of all tokens; those of the batch stand from `start` on. A row is filled
        up with its own last token, which nothing looks at there.
        """
        _, heads, _, size = flat.shape
        name = kind, heads, size, columns, flat.dtype
        if name not in self._padded:
            lengths, places = torch.tensor(self.lengths)[:, None], torch.arange(columns)
            firsts = start + self.tokens.start + lengths.cumsum(0) - lengths
            own = firsts + torch.minimum((places - before).clamp(min=0), lengths - 1)
            sources = own.where(places >= before, places).flatten()
            self._padded[name] = flat.new_empty(len(sources), heads, size), sources
        padded, sources = self._padded[name]
        torch.index_select(flat[0].transpose(0, 1), 0, sources, out=padded)
        return padded.view(-1, columns, heads, size).transpose(1, 2)

    def together(
        self, padded: Float[Tensor, "rows columns heads size"], flat: Float[Tensor, "tokens heads size"]
    ) -> None:
        """Write the padded rows' tokens where they stand in the row of all."""
        torch.index_select(padded.flatten(0, 1), 0, self.places, out=flat[self.tokens])

    @cached_property
    def places(self) -> Tensor:
        """Of each token, its row times `columns` and its column."""
        return _places(self.lengths, self.columns)


Layout = tuple[Block, ...]  # of a batch, in the order of its rows
Inputs = dict[str, Tensor]  # what a model is given

_layout: ContextVar[Layout] = ContextVar("layout")  # of the pass that is under way
_logits: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()  # where each head writes its product
_products: WeakKeyDictionary[PreTrainedModel, list[nn.Linear | Conv1D] | None] = WeakKeyDictionary()  # of each model


def suits(model: PreTrainedModel) -> bool:
    """Whether the model can be laid flat, and this is a processor where that may be worth it."""
    return model.device.type == "cpu" and replaceable(model)


def tiled(model: PreTrainedModel) -> bool:
    """Whether this processor multiplies the model's numbers in tiles."""
    return model.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def step(parts: bool) -> int:
    """What a row of tokens is filled up to a multiple of."""
    return PARTS_STEP if parts else STEP


def room(batch_tokens: int, parts: bool) -> int:
    """Tokens of a batch that is to have `batch_tokens`: in parts as many as fill whole products."""
    return rounded(batch_tokens, ROWS if parts else STEP)


def replaceable(model: PreTrainedModel) -> bool:
    """Whether attention is torch's own, by transformers' registry, and all other products are plain layers'."""
    chosen = model.config.get_text_config()._attn_implementation
    registered = bool(getattr(model, "_supports_attention_backend", False))
    return registered and chosen == "sdpa" and products(model) is not None


def products(model: PreTrainedModel) -> list[nn.Linear | Conv1D] | None:
    """The layers that multiply matrices, found once for a model; None where not all of them are plain."""
    if model not in _products:
        plain = all(
            weight.ndim < 2 or type(module) in (*PRODUCTS, nn.Embedding)
            for module in model.modules()
            for weight in module.parameters(recurse=False)
        )
        found = [module for module in model.modules() if isinstance(module, PRODUCTS)]
        _products[model] = found if plain else None
    return _products[model]


def laid_flat(
    inputs: Inputs, lengths: Sequence[int], step: int, before: int = 0, beginning: Inputs | None = None
) -> tuple[Layout, Inputs]:
    """Padded rows that hold so many tokens each, what follows them being padding, as one row; and where all stood.

    `inputs` are `input_ids` and `position_ids`, rows x columns, and `attention_mask`, rows x 1 x columns x keys, which
    stays as it is. The rows share `before` tokens, which stand before them: those of `beginning`, a row of its own that
    goes first, or what an earlier pass remembers. All is filled up to a multiple of `step`.
    """
    *_, width, keys = inputs["attention_mask"].shape
    layout, row, token, names = list[Block](), 0, 0, ("input_ids", "position_ids")
    parts = {name: [inputs[name].flatten()[_places(lengths, width)]] for name in names}
    if beginning is not None:
        mask, token = beginning["attention_mask"], before
        layout.append(Block(slice(0, before), slice(0, 0), (before,), mask.shape[-2], keys, mask=mask))
        parts = {name: [beginning[name][0, :before], *parts[name]] for name in names}
    for seen, together in groupby(lengths, lambda length: min(rounded(looked_at(before + length), KEYS), keys)):
        own = tuple(together)
        tokens = slice(token, token + sum(own))
        columns = min(rounded(max(own)), width)
        layout.append(Block(tokens, slice(row, row + len(own)), own, columns, seen, before))
        row, token = row + len(own), tokens.stop
    given = {name: pad(torch.cat(parts[name]), (0, -token % step))[None] for name in names}
    return tuple(layout), given | {"attention_mask": inputs["attention_mask"]}


def _places(lengths: Sequence[int], columns: int) -> Tensor:
    """Where the tokens of padded rows stand: row times `columns` and column."""
    return torch.cat([torch.arange(length) + row * columns for row, length in enumerate(lengths)])


@cache
def keep_buffers() -> None:
    """Have the C library (glibc) keep what a layer frees for the next: it would be given back, and paged in anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


@contextmanager
def passing(model: PreTrainedModel, layout: Layout, parts: bool) -> Iterator[None]:
    """Meanwhile a model that `suits` takes one row of tokens laid out so, its products made in parts or whole."""
    keep_buffers()
    config = model.config.get_text_config()
    before, token = config._attn_implementation, _layout.set(layout)
    config._attn_implementation = ATTENTION
    try:
        with in_parts(model) if parts else nullcontext():
            yield
    finally:
        config._attn_implementation = before
        _layout.reset(token)


@contextmanager
def in_parts(model: PreTrainedModel) -> Iterator[None]:
    """Meanwhile the model's matrix products give what they give of `ROWS` rows, its head's of `HEAD_ROWS`."""
    head, changed = model.get_output_embeddings(), products(model) or []  # type: ignore[no-untyped-call]
    for module in changed:
        module.forward = partial(_product, module, module is head)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _product(module: nn.Linear | Conv1D, head: bool, inputs: Float[Tensor, "... size"]) -> Float[Tensor, "... width"]:
    """A layer's product, in parts of as many rows as are fastest.

    The head's is written where that of the pass before stands: the C library keeps no buffer as large.
    """
    flat = inputs.flatten(0, -2)
    weight = module.weight if isinstance(module, Conv1D) else module.weight.T
    size, width = weight.shape
    shape = Shape(size, width, isinstance(module, Conv1D), module.bias is not None, flat.dtype, torch.get_num_threads())
    part = pace(len(flat), HEAD_ROWS if head else ROWS, shape)
    filled = pad(flat, (0, 0, 0, part - len(flat))) if len(flat) < part else flat
    made = multiplied(filled, weight, module.bias, part, _logits_of(module, filled) if head else None)
    return made[: len(flat)].view(*inputs.shape[:-1], -1)


def _logits_of(head: nn.Linear | Conv1D, inputs: Float[Tensor, "rows size"]) -> Float[Tensor, "rows width"]:
    """Where the head's product of these is written."""
    held = _logits.get(head)
    if held is None or len(held) < len(inputs):
        width = head.weight.shape[isinstance(head, Conv1D)]
        held = _logits[head] = inputs.new_empty(len(inputs), width)
    return held[: len(inputs)]


def multiplied(
    inputs: Float[Tensor, "rows size"],
    weight: Float[Tensor, "size width"],
    bias: Tensor | None,
    part: int,
    out: Float[Tensor, "rows width"] | None = None,
) -> Float[Tensor, "rows width"]:
    """The product, `part` rows at a time, the last of which may have been multiplied before."""
    made = inputs.new_empty(len(inputs), weight.shape[1]) if out is None else out
    for start in range(0, len(inputs), part):
        here = slice(min(start, len(inputs) - part), start + part)
        if bias is None:
            torch.mm(inputs[here], weight, out=made[here])
        else:
            torch.addmm(bias, inputs[here], weight, out=made[here])
    return made


class Shape(NamedTuple):
    """All that a product's order of sums may depend on, beside its rows."""

    size: int
    width: int
    by_size: bool  # whether its weights are stored a row for each input
    biased: bool
    dtype: torch.dtype
    threads: int  # that share it


@cache
def pace(rows: int, most: int, shape: Shape) -> int:
    """How many rows at a time multiply so many fastest, of those in `paces`; where all are more, the fewest.

    Each part reads the weights anew, which a trial, where they stay in the processor's cache, does not show: fewer
    parts are taken where they seem slower by less than `SLACK`.
    """
    known = paces(most, shape)
    parts = {part: -(-rows // part) for part in known if part <= rows}
    if not parts:
        return min(known)
    seconds = {part: parts[part] * known[part] for part in parts}
    fast = [part for part in parts if seconds[part] <= SLACK * min(seconds.values())]
    return min(fast, key=lambda part: (parts[part], seconds[part]))


@cache
def paces(most: int, shape: Shape) -> dict[int, float]:
    """The numbers of rows whose product gives, to the bit, what `most` rows give, and its seconds: a trial.

    A processor multiplies matrices of one shape in one way, whatever the numbers, so random ones are multiplied. Which
    are fastest depends on the moment, too; whichever are taken, the numbers are the same.
    """
    if shape.size * shape.width > LARGE:
        return {most: 1.0}
    noise = torch.randn(2**16 + 1, generator=torch.Generator().manual_seed(0)).to(shape.dtype)

    def random(*sizes: int) -> Tensor:
        """Drawn numbers over and over: as many as weights have take long to draw."""
        count = math.prod(sizes)
        return noise.repeat(count // len(noise) + 1)[:count].view(sizes)

    weight = random(shape.size, shape.width) if shape.by_size else random(shape.width, shape.size).T
    bias = random(shape.width) if shape.biased else None
    tables = random(TRIED // (most * shape.width) + 1, most, shape.size)
    whole = [multiplied(table, weight, bias, most) for table in tables]
    found = dict[int, float]()
    for part in range(most, 0, -PARTS_STEP):
        enough = -(-TRIED // (part * shape.width))
        some = min(most // part, enough) * part  # the rest would be a product of other rows
        if all(
            torch.equal(multiplied(table[:some], weight, bias, part), expected[:some])
            for table, expected in zip(tables, whole, strict=True)
        ):
            found[part] = math.inf
    end = perf_counter() + SECONDS
    while perf_counter() < end:
        for part in found:
            begin = perf_counter()
            multiplied(tables[0, :part], weight, bias, part)
            found[part] = min(found[part], perf_counter() - begin)
    return found


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **given: Any
) -> tuple[Tensor, None]:
    """Attention within the padded rows of the layout, block by block."""
    _, heads, tokens, _ = query.shape
    layout, found = _layout.get(), query.new_empty(tokens, heads, value.shape[-1])
    remembered = key.shape[2] - tokens  # of an earlier pass
    for block in layout:
        queries = block.apart("query", query, block.columns)
        keys, values = (
            block.apart(*part, block.keys, block.before, remembered) for part in (("key", key), ("value", value))
        )
        mask = attention_mask[block.rows, :, : block.columns, : block.keys] if block.mask is None else block.mask
        if given.get("softcap") is None and given.get("position_bias") is None:  # the same, shared heads not copied
            apart = scaled_dot_product_attention(
                queries, keys, values, mask, scale=given.get("scaling"), enable_gqa=True
            ).transpose(1, 2)
        else:
            apart, _ = sdpa_attention_forward(module, queries, keys, values, mask, **given)
        block.together(apart, found)
    found[layout[-1].tokens.stop :] = 0  # what fills the row up
    return found[None], None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
