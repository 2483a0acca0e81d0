"""Bilinear resizing against torch: values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from ssl_lightning.ops.bilinear import resize_bilinear


@pytest.mark.parametrize("size", [(12, 20), (7, 9), (5, 31), (3, 4), (6, 5)])
def test_values_and_gradients_are_those_of_torch(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for resize in (
        lambda m: resize_bilinear(m, size),
        lambda m: F.interpolate(m, size, mode="bilinear", align_corners=False),
    ):
        leaf = x.clone().requires_grad_()
        y = resize(leaf)
        (y * weight).sum().backward()
        results.append((y.detach(), leaf.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
