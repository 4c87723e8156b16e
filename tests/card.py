"""A graphics card that is none, for tests: tensors that say `cuda:0`, lie in main memory, and do not meet others.

What CUDA refuses is refused: an operation on tensors of both devices, an index on the card into a tensor that is not,
numpy's view of a tensor on the card. So the code that a card would run runs whole, by the processor's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import isdatadescriptor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GIGABYTE = 10**9
TOTAL = 24 * GIGABYTE
NUMPY = {Tensor.numpy, Tensor.__array__}
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
VIEWS = ("T", "mT", "H", "mH", "real", "imag")
ABOUT = {  # the tensor, not its numbers
    *(getattr(Tensor, name) for name in ("size", "stride", "dim", "numel", "__len__", "element_size", "__hash__")),
    *(getattr(Tensor, name) for name in ("is_floating_point", "requires_grad_")),
    *(
        member.__get__
        for name, member in vars(torch._C.TensorBase).items()
        if isdatadescriptor(member) and name not in VIEWS
    ),
}


class OnCard(Tensor):
    """A tensor on the card; its numbers are in `here`."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> OnCard:
        like = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made = Tensor._make_wrapper_subclass(cls, here.size(), device=torch.device("cuda:0"), **like)
        made.here = here
        return made

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, arguments: Sequence[Any] = (), options: Any = None
    ) -> Any:
        return _act(function, arguments, options or {})

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: object, arguments: Sequence[Any] = (), options: Any = None
    ) -> Any:
        assert function is torch.ops.aten.detach.default, f"{function} is not known to the card"
        return OnCard(arguments[0].here.detach())


def _is_card(device: object) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


def _bare(value: Any) -> Any:
    """A value as the processor takes it."""
    return value.here if isinstance(value, OnCard) else torch.device("cpu") if _is_card(value) else value


def _act(function: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What a torch function makes of tensors on the card, or for it."""
    tensors = [value for value in tree_leaves((arguments, options)) if isinstance(value, Tensor)]
    cards = [value for value in tensors if isinstance(value, OnCard)]
    if function == Tensor.data.__set__:
        return _set_data(*arguments)
    if function in ABOUT:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*arguments, **options)
    if function in NUMPY:
        raise TypeError("a tensor on the card has no numpy view")
    if function is torch._has_compatible_shallow_copy_type:
        return False
    if function is Tensor.copy_:
        _bare(arguments[0]).copy_(_bare(arguments[1]))
        return arguments[0]
    wanted = [value for value in (*arguments[1:], *options.values()) if isinstance(value, str | torch.device)]
    out = bool(cards)  # whether what is made is on the card
    if function is Tensor.cpu:
        out = False
    elif function in INDEXING:
        out = _indexes(*arguments)
    elif wanted and (function is Tensor.to or "device" in options):
        out = _is_card(wanted[0])
    elif any(tensor.dim() and not isinstance(tensor, OnCard) for tensor in tensors) and cards:
        raise RuntimeError(f"{function} of tensors on two devices: {[(t.device, t.shape) for t in tensors]}")
    made = function(*tree_map(_bare, tuple(arguments)), **tree_map(_bare, dict(options)))
    known = {id(card.here): card for card in cards}
    given = {id(_bare(tensor)) for tensor in tensors}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if out and id(value) in known:
            return known[id(value)]
        value = value.clone() if id(value) in given else value  # nothing on the card shares memory with what is not
        return OnCard(value) if out else value

    return tree_map(placed, made)


def _set_data(tensor: Tensor, data: Tensor) -> None:
    if isinstance(tensor, OnCard) != isinstance(data, OnCard):
        raise RuntimeError("data of another device")
    with torch._C.DisableTorchFunctionSubclass():
        tensor.data = data
    if isinstance(tensor, OnCard) and isinstance(data, OnCard):
        tensor.here = data.here


def _indexes(tensor: Tensor, index: Any, *value: Any) -> bool:
    """Whether an indexed tensor is on the card."""
    card = isinstance(tensor, OnCard)
    by_tensor = [part for part in (index if isinstance(index, tuple) else (index,)) if isinstance(part, Tensor)]
    apart = any(isinstance(v, Tensor) and v.dim() and isinstance(v, OnCard) != card for v in value)
    if any(isinstance(part, OnCard) and not card for part in by_tensor) or (by_tensor and apart):
        raise RuntimeError("an index or values of another device")
    return card


class _Mode(TorchFunctionMode):
    """Makes for the card what is asked for by its name, and lets through what has nothing to do with it."""

    def __torch_function__(
        self, function: Any, types: object, arguments: Sequence[Any] = (), options: Any = None
    ) -> Any:
        options = options or {}
        to = arguments[1:] if function is Tensor.to else ()
        meant = _is_card(options.get("device")) or any(map(_is_card, to))
        if meant or any(isinstance(leaf, OnCard) for leaf in tree_leaves((arguments, options))):
            return _act(function, arguments, options)
        return function(*arguments, **options)


@contextmanager
def card(free: Iterable[int] = (20 * GIGABYTE,)) -> Iterator[None]:
    """A machine that has one card, of which so many bytes are free when it is asked for the first time, and so on."""
    left = iter(free)
    last = 0

    def memory(device: object = None) -> tuple[int, int]:
        nonlocal last
        last = next(left, last)
        return last, TOTAL

    module_to = torch.nn.Module.to

    def to(module: torch.nn.Module, *where: Any, **how: Any) -> torch.nn.Module:
        """Parameters of several names stay one, as they do on a real card."""
        names: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        made = module_to(module, *where, **how)
        for first, *others in names.values():
            for name in others:
                owner, _, last = name.rpartition(".")
                setattr(made.get_submodule(owner), last, made.get_parameter(first))
        return made

    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(torch.nn.Module, "to", to)
        for name, found in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "mem_get_info": memory,
            "get_device_name": lambda device=None: "None",
            "is_bf16_supported": lambda including_emulation=True: True,
            "empty_cache": lambda: None,
            "device": lambda device: nullcontext(),
        }.items():
            patch.setattr(torch.cuda, name, found)
        patch.setattr(torch.accelerator, "synchronize", lambda device=None: None)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
