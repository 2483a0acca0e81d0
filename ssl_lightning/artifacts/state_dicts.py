"""Whether weights from a file fit a network, and building one no larger than the file that fills it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SHOWN = 6  # names in a message
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SLACK = 1 << 30  # bytes that building a network may take beyond its weights, for tables and fixed networks

MAX_TENSORS = 50_000  # of a network from elsewhere; the deepest of timm have some thousands


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> list[str]:
    """Say what keeps weights from filling a network, a phrase for each kind.

    Args:
        own: `state_dict()` of the network.
        state: Weights by name, as they were read; nothing is taken for granted.

    Returns:
        Nothing where all fit, and all values are finite.
    """
    common = [name for name in own if name in state]
    kinds = [name for name in common if not _same_kind(own[name], state[name])]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in common
        if name not in kinds and own[name].shape != state[name].shape
    ]
    findings = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another kind": [f"{name} {_kind(state[name])} for {_kind(own[name])}" for name in kinds],
        "of another shape": shapes,
    }
    if not any(findings.values()):  # values are looked at last: a shape may promise more than there is
        findings["not finite"] = [name for name, value in state.items() if not value.isfinite().all()]
    return [f"{len(names)} {what}: {some(names)}" for what, names in findings.items() if names]


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = [str(name)[:100] for name in names[:SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _same_kind(own: Tensor, value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type == "meta":
        return False
    if value.is_quantized or value.is_complex():
        return own.dtype == value.dtype
    return own.dtype == value.dtype or (own.dtype in FLOATS and value.dtype in FLOATS)


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    odd = [str(value.layout)] * (value.layout != torch.strided) + ["meta"] * (value.device.type == "meta")
    return " ".join([str(value.dtype), *odd]).replace("torch.", "")


class AllocationLimit(TorchDispatchMode):
    """Within this context tensors are only made up to a number of bytes in all: asked for, not yet taken.

    A config from elsewhere may ask for a network of any size, and a machine ends processes that take all
    memory, whichever they are.

    Args:
        max_bytes: Of the tensors that the network is made of.
        source: What the weights come from, for the message.
    """

    def __init__(self, max_bytes: int, source: str) -> None:
        super().__init__()
        self.left, self.max_bytes, self.source = max_bytes + SLACK, max_bytes, source
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        size = next((a for a in args if isinstance(a, (list, torch.Size))), None)
        if size and all(isinstance(n, int) for n in size) and _makes_new(func):
            kind = kwargs.get("dtype") or torch.get_default_dtype()
            self.count += 1
            if self.count > MAX_TENSORS:
                raise ValueError(f"the config asks for a network of more than {MAX_TENSORS:,} tensors")
            self.left -= math.prod(size) * kind.itemsize
            if self.left < 0:
                raise ValueError(
                    f"the config asks for a network with a tensor of {list(size)}, and {self.source} has no "
                    f"more than {self.max_bytes:,} bytes of weights; they do not belong together"
                )
        return func(*args, **kwargs)


def _makes_new(func: Any) -> bool:
    """Whether an operation of torch makes a tensor of a size that it is given."""
    name = func.overloadpacket.__name__
    return name.removeprefix("new_").split("_")[0] in ("empty", "zeros", "ones", "full", "rand", "randn")
