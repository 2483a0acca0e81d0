"""`PaddedConv2d` against torch's own convolution."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_lightning.networks.small_maps import PaddedConv2d, _joins

SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (3, 2), (3, 3), (3, 4), (5, 4), (8, 8)]


def with_gradients(forward: Callable[[Tensor], Tensor], maps: Tensor, weight: Tensor) -> list[Tensor]:
    """Return a layer's output and the gradients of a weighted sum of it."""
    given = maps.clone(memory_format=torch.preserve_format).requires_grad_()
    result = forward(given)
    loss = (torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result) * result).sum()
    return [result, *torch.autograd.grad(loss, (given, weight))]


def channels_last(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2), (5, 3)])
def test_result_and_gradients_are_those_of_a_convolution(size, kernel, stride):
    torch.manual_seed(0)
    layer = PaddedConv2d(3, 5, kernel, stride).double()
    maps = channels_last(4, 3, *size, dtype=torch.float64)
    ours = with_gradients(layer, maps, layer.weight)
    theirs = with_gradients(
        lambda x: F.conv2d(x, layer.weight, stride=stride, padding=kernel // 2), maps, layer.weight
    )
    assert ours[0].shape[2:] == tuple(-(-cells // stride) for cells in size)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("size", "stride"), [((2, 2), 1), ((4, 4), 2), ((3, 4), 2)])
def test_in_bfloat16_it_is_as_near_to_the_exact_result_as_a_convolution_is(size, stride):
    torch.manual_seed(0)
    layer = PaddedConv2d(64, 32, 3, stride).to(memory_format=torch.channels_last)
    maps = channels_last(16, 64, *size, dtype=torch.bfloat16)
    with torch.no_grad():  # numbers that bfloat16 represents exactly
        layer.weight.copy_(layer.weight.bfloat16())
    exact = F.conv2d(maps.double(), layer.weight.double(), stride=stride, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(maps)
        theirs = F.conv2d(maps, layer.weight, stride=stride, padding=1)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).abs().max() <= 1.01 * (theirs - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("size", [(2, 2), (2, 3), (4, 4), (4, 6), (8, 8)])
def test_only_small_maps_in_channels_last_go_without_a_convolution(monkeypatch, size, last, stride, dtype):
    calls = []
    convolve = PaddedConv2d._conv_forward
    monkeypatch.setattr(PaddedConv2d, "_conv_forward", lambda *given: calls.append(1) or convolve(*given))
    maps = torch.randn(2, 3, *size, dtype=dtype)
    maps = maps.contiguous(memory_format=torch.channels_last) if last else maps
    PaddedConv2d(3, 5, 3, stride).to(dtype)(maps)
    without = {(2, 2, 1), (2, 2, 2)}
    if dtype == torch.bfloat16:
        without |= {(2, 3, 2), (4, 4, 2)}
    assert (not calls) == (last and (*size, stride) in without)


def test_training_goes_on_after_a_validation_that_came_first():
    _joins.cache_clear()
    layer = PaddedConv2d(3, 5, 3)
    maps = channels_last(2, 3, 2, 2, dtype=torch.float32)
    with torch.inference_mode():
        before = layer(maps)
    after, _, gradient = with_gradients(layer, maps, layer.weight)
    assert torch.equal(before, after)
    assert gradient.abs().sum() > 0
