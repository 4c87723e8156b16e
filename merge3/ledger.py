"""The ledger: what was spent, in tokens, floating-point operations, seconds and bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import PreTrainedModel

from merge3.answering import Work
from merge3.models import routed_past

_weights: WeakKeyDictionary[PreTrainedModel, tuple[int, int]] = WeakKeyDictionary()  # a token's, and those of its head


@dataclass(frozen=True)
class Cost:
    """Tokens through the model, floating-point operations, seconds of merging and of answering, and bytes.

    Merging reads the base and the experts and writes the merge, in memory: `bytes_read` and `bytes_written` count each
    weight once a pass. `bytes_kept` are the lines of the answers store that are new. Costs add up.
    """

    tokens: int = 0
    flops: int = 0
    merging_seconds: float = 0.0
    answering_seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_kept: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def seconds(self) -> float:
        """Of merging and answering."""
        return self.merging_seconds + self.answering_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def flops(model: PreTrainedModel, work: Work) -> int:
    """Operations of a forward pass: 2 a weight and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    The head counts only where logits are read; input embeddings are looked up, not multiplied; of a mixture's experts
    those count that a token is routed to. Attention scores, a few per cent at these lengths, are not counted.
    """
    if model not in _weights:
        head: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        tables = {table.data_ptr(): table.numel() for table in (head, embedding)}  # one where they are tied
        body: int = model.num_parameters() - sum(tables.values()) - routed_past(model)
        _weights[model] = body, head.numel()
    own, read = _weights[model]
    return 2 * (own * work.tokens + read * work.positions)
