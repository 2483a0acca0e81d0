"""Comparison of weights from a file with a network's state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SHOWN = 6  # names in a message
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def mismatches(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> list[str]:
    """List the reasons why weights cannot be loaded into a network, one phrase per kind.

    Args:
        own: `state_dict()` of the network.
        state: Weights by name, as read from a file; values may be of any type.

    Returns:
        An empty list if every name, type and shape matches and all values are finite.
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
    if not any(findings.values()):  # values are read last: a shape may promise more data than the file has
        findings["not finite"] = [name for name, value in state.items() if not value.isfinite().all()]
    return [f"{len(names)} {what}: {some(names)}" for what, names in findings.items() if names]


def some(names: list[str]) -> str:
    """Format the first few names and the number of the others."""
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
