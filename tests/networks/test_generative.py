"""Parts of generators: channel-wise bottleneck, SRResNet, pixel shuffle, VGG19 features."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg19

from ssl_lightning.networks.channelwise import ChannelwiseLinear
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.features import deepest_map_size
from ssl_lightning.networks.pixel_shuffle import PixelShuffleHead
from ssl_lightning.networks.srresnet import SRResNet
from ssl_lightning.networks.vgg import CONV5_4, VGGFeatures


def test_the_bottleneck_is_a_linear_layer_in_each_channel() -> None:
    net = ChannelwiseLinear(3, (2, 5)).eval()
    net.across = nn.Sequential()
    x = torch.randn(4, 3, 2, 5)
    found = net(x)
    for image in range(4):
        for channel in range(3):
            expected = x[image, channel].flatten() @ net.weight[channel]
            torch.testing.assert_close(found[image, channel].flatten(), expected)
    assert ChannelwiseLinear(3, (2, 5)).weight.numel() == 3 * 10**2  # m n^4 of the paper, n x n cells


def test_every_place_reaches_every_other() -> None:
    net = ChannelwiseLinear(4, (3, 3)).eval()
    net.across[-1] = nn.Identity()
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    for place in range(9):
        (grad,) = torch.autograd.grad(net(x)[0, 0].flatten()[place], x)
        assert grad.ne(0).all()


def test_a_bottleneck_that_does_not_fit_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"have 33 x 32 cells.*allowed are 1024 cells: choose a backbone"):
        ChannelwiseLinear(64, (33, 32))


def test_the_map_size_is_found_without_a_trace() -> None:
    backbone = ConvNet()
    backbone.stages[0].eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert deepest_map_size(backbone, 3, 30) == (8, 8)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not backbone.stages[0].training
    assert backbone.training
    assert backbone.stages[1].training


def test_srresnet_is_the_papers() -> None:
    net = SRResNet()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size[0] for c in convolutions].count(3) == 2 * 16 + 1
    assert net.first[0].kernel_size == (9, 9)
    weights = 3 * 64 * 81 + 64 + 33 * 64 * 64 * 9  # the first has a bias
    norms, slopes = 33 * 2 * 64, 17
    assert sum(p.numel() for p in net.parameters()) == weights + norms + slopes
    assert net.feature_info.reduction() == [1] * 4


def test_the_long_skip_goes_around_all_blocks() -> None:
    net = SRResNet(blocks=2, num_stages=2, width=8).eval()
    images = torch.rand(2, 3, 9, 9)
    nn.init.zeros_(net.stages[-1][-1][1].weight)  # the blocks add nothing
    assert torch.equal(net(images)[-1], net.first(images))
    with pytest.raises(ValueError, match="blocks is 5 and num_stages 2"):
        SRResNet(blocks=5, num_stages=2)


@pytest.mark.parametrize("scale", [2, 4])
def test_pixel_shuffle_enlarges_by_the_scale(scale: int) -> None:
    backbone = SRResNet(blocks=1, num_stages=1, width=8)
    head = PixelShuffleHead(backbone, 3, scale)
    assert head(backbone(torch.rand(2, 3, 8, 6))).shape == (2, 3, 8 * scale, 6 * scale)
    assert sum(isinstance(m, nn.PixelShuffle) for m in head.modules()) == {2: 1, 4: 2}[scale]
    with pytest.raises(ValueError, match=r"1/4 of its input.*backbone=srresnet.*task.input=enlarged"):
        PixelShuffleHead(ConvNet(), 3, scale)


def test_vgg_features_are_those_of_conv5_4(tmp_path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        whole = vgg19(weights=None, init_weights=False).features
    whole.to_empty(device="cpu")
    for p in whole.parameters():
        nn.init.normal_(p, std=0.02)
    path = tmp_path / "vgg19.pth"
    torch.save({f"features.{name}": value for name, value in whole.state_dict().items()}, path)
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    net = VGGFeatures(str(path))
    with torch.no_grad():
        expected = whole[:-1]((images - mean) / std)  # all but the last pooling
    torch.testing.assert_close(net(images), expected)
    assert isinstance(whole[CONV5_4], nn.MaxPool2d)
    assert not [p for p in net.parameters() if p.requires_grad]
    assert net(images[:, :1]).shape == (2, 512, 2, 2)  # grey
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not hold the weights of torchvision's vgg19"):
        VGGFeatures(str(path))
    with pytest.raises(ValueError, match="is not there"):
        VGGFeatures(str(tmp_path / "nowhere"))
