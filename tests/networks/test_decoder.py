"""Decoder: output sizes for all kinds of backbones, and the stages it reads."""

import pytest
import torch

from ssl_lightning.networks.alexnet import AlexNet
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.decoder import Decoder


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(("size", "reduction"), [((32, 32), 1), ((33, 47), 1), ((32, 32), 2), ((30, 31), 4)])
def test_the_result_has_the_size_that_is_wanted(size: tuple[int, int], reduction: int, skips: bool) -> None:
    backbone = ConvNet()
    decoder = Decoder(backbone, 2, reduction=reduction, skips=skips)
    out = decoder(backbone(torch.randn(2, 3, *size)), size)
    assert out.shape == (2, 2, -(-size[0] // reduction), -(-size[1] // reduction))


@pytest.mark.parametrize("skips", [False, True])
def test_an_unpadded_backbone_is_decoded_too(skips: bool) -> None:
    backbone = AlexNet()
    assert Decoder(backbone, 3, skips=skips)(backbone(torch.randn(2, 3, 64, 64)), (64, 64)).shape == (
        2,
        3,
        64,
        64,
    )


@pytest.mark.parametrize(("skips", "seen"), [(False, [False, False, True]), (True, [True, False, True])])
def test_without_skips_only_the_deepest_stage_is_seen(skips: bool, seen: list[bool]) -> None:
    backbone = ConvNet()  # reductions 2, 4, 4: the second stage has no step
    stages = [stage.detach().requires_grad_() for stage in backbone(torch.randn(2, 3, 32, 32))]
    Decoder(backbone, 2, skips=skips)(stages, (32, 32)).square().sum().backward()
    assert [stage.grad is not None for stage in stages] == seen


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed are 1 to 4"):
        Decoder(ConvNet(), 2, reduction=8)
    with pytest.raises(ValueError, match="at least 1"):
        Decoder(ConvNet(), 0)
