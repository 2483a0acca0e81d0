"""Discriminator against the paper's table, and its frozen state in generator steps."""

import copy

import pytest
import torch
from torch import nn

from ssl_lightning.networks.discriminator import Discriminator, discriminator_stages, frozen, unrecorded
from ssl_lightning.networks.features import deepest_map_size
from ssl_lightning.networks.heads import FlattenedClassifier


def test_four_stages_of_width_64_are_srgans() -> None:
    net = Discriminator(stages=4, width=64)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    found = [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions]
    paper = [(64, 3, 1), (64, 3, 2), (128, 3, 1), (128, 3, 2), (256, 3, 1), (256, 3, 2), (512, 3, 1)]
    assert found == [*paper, (512, 3, 2)]  # "k3n64s1" to "k3n512s2" of figure 4
    assert [c.bias is None for c in convolutions] == [False] + [True] * 7  # batch norm from the second on
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 7
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert net.feature_info.reduction() == [2, 4, 8, 16]
    assert [tuple(x.shape) for x in net(torch.rand(2, 3, 96, 96))][-1] == (2, 512, 6, 6)


@pytest.mark.parametrize("size", [4, 8, 15, 16, 28, 32, 64, 96, 128, 224, 512])
def test_the_stages_follow_the_size(size: int) -> None:
    stages = discriminator_stages(size)
    side = Discriminator(stages=stages)(torch.rand(2, 3, size, size))[-1].shape[-1]
    assert side >= 4 or (stages == 1 and size < 8)
    # one more stage would leave fewer than 4 cells, except for the largest images
    assert side <= 8 or stages == 5


def test_frozen_weights_let_gradients_pass() -> None:
    net = Discriminator(stages=2, width=4).eval()
    net.stages[1][0].weight.requires_grad_(False)  # frozen before: stays frozen
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    net(images)[-1].sum().backward()
    expected, images.grad = images.grad, None
    net.zero_grad()
    with frozen(net):
        net(images)[-1].sum().backward()
    assert torch.equal(images.grad, expected)
    assert all(p.grad is None for p in net.parameters())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["stages.1.0.weight"]


def test_unrecorded_batches_are_normalised_alike_and_leave_no_statistics() -> None:
    net = Discriminator(stages=2, width=4)
    other, before = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    images = torch.rand(4, 3, 8, 8)
    with unrecorded(net):
        found = net(images)
    assert all(torch.equal(x, y) for x, y in zip(found, other(images), strict=True))
    kept = {name: value for name, value in net.state_dict().items() if "running" in name}
    assert len(kept) == 6
    assert all(torch.equal(value, before[name]) for name, value in kept.items())
    net(images)  # recorded again afterwards
    assert torch.equal(net.stages[0][3].running_mean, other.stages[0][3].running_mean)


def test_spectral_norm_makes_the_largest_singular_value_one() -> None:
    torch.manual_seed(0)
    net = Discriminator(stages=2, width=8, norm="spectral")
    for _ in range(200):  # each pass is an iteration of the power method
        net(torch.rand(1, 3, 8, 8))
    net.eval()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    for each in convolutions:
        assert each.bias is not None
        largest = torch.linalg.svdvals(each.weight.detach().flatten(1)).max().item()
        assert largest == pytest.approx(1, rel=1e-3)


def test_unrecorded_passes_leave_the_singular_vectors() -> None:
    net = Discriminator(stages=2, width=8, norm="spectral")
    before, images = copy.deepcopy(net.state_dict()), torch.rand(4, 3, 8, 8)
    with unrecorded(net):
        net(images)[-1].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is not None for p in net.parameters())
    net(images)
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all(name.endswith(("_u", "_v")) for name in changed)


def test_without_norm_the_convolutions_have_a_bias() -> None:
    net = Discriminator(stages=2, width=4, norm="none")
    assert [type(m) for m in net.stages[0]] == [nn.Conv2d, nn.LeakyReLU] * 2
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))
    with pytest.raises(ValueError, match="norm of a discriminator is 'layer'; allowed are batch"):
        Discriminator(norm="layer")


def test_a_flattened_head_tells_places_apart() -> None:
    net = Discriminator(stages=2, width=4)
    head = FlattenedClassifier(net, deepest_map_size(net, 3, 16), 2)
    maps, weights = torch.rand(3, 8, 4, 4), [p.detach() for p in head.parameters()]
    expected = [
        [sum((each.flatten() * row).tolist()) + float(bias) for row, bias in zip(*weights, strict=True)]
        for each in maps
    ]
    torch.testing.assert_close(head([maps]), torch.tensor(expected))
    assert (head([maps.flip(3)]) - head([maps])).abs().min() > 1e-4


@pytest.mark.parametrize("options", [{"stages": 0}, {"stages": 6}, {"width": 0}, {"max_width": 0}])
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="allowed are 1 to 5 stages"):
        Discriminator(**options)
    with pytest.raises(ValueError, match="in_channels is 0"):
        Discriminator(in_channels=0)
