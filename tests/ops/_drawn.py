"""Strategies of tensors with random sizes, types and memory layouts for property tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
ALL = (*FLOATS, torch.uint8)
LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "strided")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2}

SEEDS = st.integers(0, 2**32 - 1)


def drawn(examples: int = 60) -> Any:
    """Use the same examples in every run and no deadline, so that a busy machine fails no test."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=slow
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw values uniform in [0, 1), or all 256 levels."""
    if dtype == torch.uint8:
        return torch.randint(256, shape, generator=generator(seed), dtype=dtype)
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Copy values to another memory layout; all but the first are not contiguous."""
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and x.ndim > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":  # starts inside its storage
        wider = x.new_zeros([size + 2 for size in x.shape])
        view = wider[tuple(slice(1, size + 1) for size in x.shape)]
        return view.copy_(x)
    if layout == "strided":
        return x.repeat_interleave(2, -1)[..., ::2]
    return x.contiguous()


@st.composite
def tensors(draw: Any, shape: Any, dtypes: tuple[torch.dtype, ...] = FLOATS) -> Tensor:
    """Draw a tensor with a shape from strategies of sizes, a type and a layout."""
    x = values(tuple(draw(shape)), draw(SEEDS), draw(st.sampled_from(dtypes)))
    return laid_out(x, draw(st.sampled_from(LAYOUTS)))


@st.composite
def pictures(
    draw: Any,
    *,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    batch: tuple[int, int] = (0, 4),
    channels: tuple[int, int] = (1, 4),
    size: tuple[int, int] = (1, 12),
    square: bool = False,
) -> Tensor:
    """Draw images `(B, C, H, W)`."""
    height = draw(st.integers(*size))
    width = height if square else draw(st.integers(*size))
    shape = st.tuples(st.integers(*batch), st.integers(*channels), st.just(height), st.just(width))
    return draw(tensors(shape, dtypes))


@contextmanager
def unchanged(*given: Tensor) -> Iterator[None]:
    """Check that an operation leaves its inputs unchanged, in values and in memory."""
    before = [(x.clone(), x.stride(), x.data_ptr()) for x in given]
    yield
    for x, (clone, stride, pointer) in zip(given, before, strict=True):
        assert torch.equal(x, clone)
        assert (x.stride(), x.data_ptr()) == (stride, pointer)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None, scale: float = 1.0) -> None:
    """Check equality within the precision of a type for values near `scale`."""
    tolerance = TOLERANCE[dtype or found.dtype]
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True
    )
