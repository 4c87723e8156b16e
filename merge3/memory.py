"""Keys and values of tokens that were computed already, in forms that the attention of transformers accepts.

`Prefix` holds a beginning that all rows of a batch share, once. `Slots` holds what each row has written so far; the
column of a token is its place in the text, for every row, so that a row's numbers do not depend on its neighbours. Both
show attention `looked_at` columns, whatever is in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

FEW = 128  # keys that are summed in one part
LANES = 16  # columns come in such multiples: vector instructions then treat every column alike, see `merge3.answering`


def rounded(columns: int, lanes: int = LANES) -> int:
    """The least multiple of `lanes` that holds so many columns."""
    return -(-columns // lanes) * lanes


def looked_at(columns: int) -> int:
    """The columns of keys that attention looks at where so many are in use, the rest being masked.

    A processor sums over more than `FEW` keys in parts, whose size depends on their number: a token's sums are the same
    to the bit where it looks at as many columns (seen in bfloat16 on a CPU: no change in 40 draws, against one in
    100,000 elements).
    """
    return rounded(columns) if columns <= FEW else -(-columns // 256) * 256


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """What both forms share: no limit, and masks that are always given."""

    keys: Tensor | None
    values: Tensor | None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else int(self.keys.shape[-2])

    def get_max_length(self) -> int:
        return -1


class _PrefixLayer(_Layer):  # type: ignore[no-untyped-call]
    """Puts what is stored before what comes, for each row, and zeros after it, up to `width` columns at least."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width, self.stores = width, False

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if self.stores:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return self._shown(None, key_states), self._shown(None, value_states)
        return self._shown(self.keys, key_states), self._shown(self.values, value_states)

    def _shown(self, before: Tensor | None, states: Tensor) -> Tensor:
        rows, heads, columns, size = states.shape
        parts = [states] if before is None else [before.expand(rows, -1, -1, -1), states]
        columns += 0 if before is None else before.shape[-2]
        return torch.cat((*parts, states.new_zeros(rows, heads, max(self.width - columns, 0), size)), -2)


class Prefix(Cache):
    """A beginning of one row, computed once and seen by all rows of later passes; empty until something is kept."""

    def __init__(self, layers: int, width: int) -> None:
        """Attention will look at `width` columns; at as many as there are, if these are more."""
        self.width = width
        self.parts = [_PrefixLayer(width) for _ in range(layers)]
        super().__init__(layers=[*self.parts])

    @contextmanager
    def keeping(self, columns: int) -> Iterator[None]:
        """Keep the first so many columns of the pass within; what it computes beyond is padding."""
        for layer in self.parts:
            layer.stores = True
        yield
        for layer in self.parts:
            layer.stores = False
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[..., :columns, :], layer.values[..., :columns, :]


class _SlotsLayer(_Layer):  # type: ignore[no-untyped-call]
    """Writes at the places that `Slots` says, and shows the columns that are in use."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = slots

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        rows, places, width = len(key_states), self.slots.places, self.slots.width
        if self.keys is None or self.values is None:
            shape = (rows, key_states.shape[1], self.slots.capacity)
            self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
            self.values = value_states.new_zeros(*shape, value_states.shape[-1])
            self.is_initialized = True
        row = torch.arange(rows, device=key_states.device).unsqueeze(1)
        self.keys[row, :, places] = key_states.transpose(1, 2)
        self.values[row, :, places] = value_states.transpose(1, 2)
        return self.keys[:, :, :width], self.values[:, :, :width]


class Slots(Cache):
    """What each row has written; rows leave by `keep`. Say `at` before every pass where its tokens stand."""

    def __init__(self, layers: int, capacity: int, prefix: Prefix | None, rows: int) -> None:
        """`capacity` columns for each row, of which those of `prefix` are filled."""
        self.capacity = looked_at(capacity)
        self.width = self.capacity
        self.places = torch.empty(0, 0, dtype=torch.long)
        self.parts = [_SlotsLayer(self) for _ in range(layers)]
        super().__init__(layers=[*self.parts])
        for layer, shared in zip(self.parts, prefix.parts if prefix else (), strict=False):
            layer.keys, layer.values = self._filled(shared.keys, rows), self._filled(shared.values, rows)
            layer.is_initialized = True

    def _filled(self, shared: Tensor | None, rows: int) -> Tensor | None:
        if shared is None:  # a layer that keeps nothing
            return None
        filled = shared.new_zeros(rows, shared.shape[1], self.capacity, shared.shape[-1])
        filled[:, :, : shared.shape[-2]] = shared
        return filled

    def at(self, places: Tensor, width: int) -> None:
        """The coming tokens stand in columns `places` (rows x tokens); `width` columns are looked at."""
        self.places, self.width = places, width

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for layer in self.parts:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
