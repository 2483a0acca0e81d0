"""Backbones of conf/backbone/*.yaml against the contract, and each network against its paper."""

import copy
import functools
import math
from pathlib import Path

import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from ssl_lightning.networks.alexnet import AlexNet
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.features import check_input_size, explaining_download
from ssl_lightning.networks.nin import NIN
from ssl_lightning.networks.resnet import create_small_resnet
from ssl_lightning.networks.timm_backbone import create_timm

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "backbone").glob("*.yaml"))
SIZES = (32, 33)


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request):
    return request.param


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Use one thread: on a busy machine, threads on such small maps wait for each other (20x slower)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def build(config, in_channels=3):
    """Build the backbone of a config in eval mode, with all normalisations active.

    timm starts the last one of a residual block at zero, which would hide its branch.
    """
    net = instantiate(OmegaConf.load(config), in_channels=in_channels).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
    return net


def expected_sizes(name, size, reductions):
    if name != "alexnet":
        return [math.ceil(size / reduction) for reduction in reductions]
    conv1 = (size + 2 * 2 - 11) // 4 + 1
    pool1 = (conv1 - 3) // 2 + 1
    pool2 = (pool1 - 3) // 2 + 1
    return [conv1, pool1, pool2, pool2, pool2]


def test_all_configs_are_here():
    names = {path.stem for path in CONFIGS}
    assert names >= {
        "convnet",
        "nin",
        "alexnet",
        "resnet18",
        "resnet50",
        "resnet18_small",
        "timm",
        "vit_tiny_small_images",
        "torchvision",
    }


@pytest.mark.parametrize("in_channels", [1, 3])
def test_contract(config, in_channels):
    net = build(config, in_channels)
    channels, reductions = net.feature_info.channels(), net.feature_info.reduction()
    assert isinstance(channels, list)
    assert isinstance(reductions, list)
    assert len(channels) == len(reductions) == len(net.feature_info.module_name())
    for size in SIZES:
        with torch.no_grad():
            maps = net(torch.rand(2, in_channels, size, size))
        assert isinstance(maps, list)
        sizes = expected_sizes(config.stem, size, reductions)
        assert [tuple(x.shape) for x in maps] == [
            (2, c, side, side) for c, side in zip(channels, sizes, strict=True)
        ]
    names = dict(net.named_modules())
    assert set(net.feature_info.module_name()) <= names.keys()


def test_every_parameter_gets_a_gradient(config):
    # eval mode: batch statistics would cancel the gradient of a preceding bias
    net = build(config)
    net(torch.rand(2, 3, 32, 32))[-1].sum().backward()
    without = [
        name
        for name, p in net.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert without == []


@torch.no_grad()
def test_features_depend_neither_on_batch_mates_nor_on_memory_format(config):
    net = build(config)
    images = torch.rand(3, 3, 32, 32)
    together = net(images)
    alone = net(images[1:2])
    channels_last = copy.deepcopy(net).to(memory_format=torch.channels_last)(
        images.to(memory_format=torch.channels_last)
    )
    for x, y, z in zip(together, alone, channels_last, strict=True):
        tolerance = {"rtol": 1e-4, "atol": 1e-4 * x.abs().max().item()}
        torch.testing.assert_close(x[1:2], y, **tolerance)
        torch.testing.assert_close(x, z, **tolerance)


def test_convnet_strides_are_those_of_the_stages():
    net = ConvNet(in_channels=1, widths=(4, 8), strides=(1, 3))
    assert net.feature_info.reduction() == [1, 3]
    assert [tuple(x.shape) for x in net(torch.rand(2, 1, 10, 7))] == [(2, 4, 10, 7), (2, 8, 4, 3)]
    assert not [name for name, _ in ConvNet().named_parameters() if name.endswith("0.bias")]


@pytest.mark.parametrize("blocks", [3, 4, 5])
def test_nin_is_the_papers(blocks):
    net = NIN(blocks=blocks)
    wide = 192 * 192
    convolutions = (3 * 25 + 160) * 192 + 160 * 96  # block 1: 5x5 3 -> 192, 1x1 192 -> 160, 1x1 160 -> 96
    convolutions += 96 * 25 * 192 + 2 * wide  # block 2
    convolutions += (blocks - 2) * (9 + 2) * wide  # the others
    norms = 2 * (192 + 160 + 96 + (blocks - 1) * 3 * 192)
    assert sum(p.numel() for p in net.parameters()) == convolutions + norms
    # the paper's non-linear classifier takes block 2, 192 x 8 x 8; later blocks keep the size
    assert net.feature_info.channels() == [96] + [192] * (blocks - 1)
    assert net.feature_info.reduction() == [2] + [4] * (blocks - 1)


def test_nin_starts_from_the_fan_out():
    for module in NIN().modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_alexnet_maps_of_224_px_and_smallest_image():
    net = AlexNet().eval()
    with torch.no_grad():
        assert [x.shape[-1] for x in net(torch.rand(1, 3, 224, 224))] == [55, 27, 13, 13, 13]
        assert net(torch.rand(1, 3, 31, 31))[-1].shape == (1, 256, 1, 1)
        with pytest.raises(ValueError, match=r"30 x 40.*at least 31"):
            net(torch.rand(1, 3, 30, 40))


def test_small_resnet_shares_its_weights_with_timm():
    small = create_small_resnet("resnet18")
    whole = timm.create_model("resnet18", num_classes=0)
    theirs, ours = whole.state_dict(), small.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name].shape != theirs[name].shape] == ["conv1.weight"]
    del ours["conv1.weight"]
    assert whole.load_state_dict(ours, strict=False).missing_keys == ["conv1.weight"]
    # the residual groups compute the same on equal input
    x = torch.rand(1, 64, 8, 8)
    small.eval(), whole.eval()
    torch.testing.assert_close(small["layer2"](small["layer1"](x)), whole.layer2(whole.layer1(x)))
    assert create_timm("resnet18").feature_info.reduction() == [2, 4, 8, 16, 32]  # unchanged


@torch.no_grad()
def test_timm_options_reach_the_model():
    assert create_timm("resnet18", out_indices=[1, 2]).feature_info.reduction() == [4, 8]
    assert create_timm("resnet18", output_stride=8).eval()(torch.rand(1, 3, 32, 32))[-1].shape[-1] == 4


@torch.no_grad()
def test_timm_models_that_keep_channels_last_meet_the_contract():
    net = create_timm("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1))
    shapes = [tuple(x.shape) for x in net(torch.rand(1, 3, 64, 64))]
    assert shapes == [(1, 96, 16, 16), (1, 192, 8, 8), (1, 384, 4, 4), (1, 768, 2, 2)]


def test_unknown_timm_model_names_the_closest():
    with pytest.raises(ValueError, match=r"'resnet81'.*did you mean.*resnet18"):
        create_timm("resnet81")
    with pytest.raises(ValueError, match="timm does not have"):
        create_timm("")


def test_timm_model_without_stage_maps(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ValueError, match=r"cannot build 'resnet18' .*: RuntimeError: .*not implemented"):
        create_timm("resnet18")


@pytest.mark.parametrize("options", [{"out_indices": (0, 9)}, {"colour": "red"}, {"output_stride": 7}])
def test_timm_option_refused(options):
    with pytest.raises(ValueError, match=f"features_only=True and .*{next(iter(options))}"):
        create_timm("resnet18", **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet(widths=(8, 8), strides=(1,)), "one number of at least 1 for each stage"),
        (lambda: ConvNet(widths=(), strides=()), "one number of at least 1 for each stage"),
        (lambda: ConvNet(widths=(8, 0), strides=(1, 1)), "one number of at least 1 for each stage"),
        (lambda: NIN(blocks=2), "blocks is 2; allowed are 3, 4, 5"),
        (lambda: create_small_resnet("resnet18d"), "'resnet18d', which has no plain ResNet stem"),
        (lambda: create_small_resnet("mobilenetv3_small_050"), "no plain ResNet stem"),
        *((lambda make=make: make(in_channels=0), "in_channels is 0") for make in (ConvNet, NIN, AlexNet)),
        (lambda: create_timm("resnet18", in_channels=0), "in_channels is 0"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_smaller_than_the_stride_are_refused():
    check_input_size(ConvNet(), 4)
    with pytest.raises(ValueError, match=r"image_size is 3 px.*stride 4"):
        check_input_size(ConvNet(), 3)
    with pytest.raises(ValueError, match=r"image_size is 28 px.*stride 32.*at least 32 px"):
        check_input_size(create_timm("resnet18"), 28)
    with pytest.raises(ValueError, match=r"image_size is 28 px.*stride 16.*at least 31 px"):
        check_input_size(AlexNet(), 28)


def test_published_weights_that_cannot_be_fetched_are_named() -> None:
    answer = (
        r"weights of resnet18 .*\(no route to host\); give a file by init_from= and backbone.pretrained=false"
    )
    with pytest.raises(ValueError, match=answer), explaining_download("resnet18"):
        raise OSError("no route to host\nat all")
