"""Adapted networks of torchvision, timm and our own, against the networks run by hand."""

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import convnext, regnet, vgg

from ssl_lightning.artifacts.weights import load_backbone, save_backbone
from ssl_lightning.networks.adapter import as_backbone
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.timm_backbone import create_timm
from ssl_lightning.networks.torchvision_backbone import create_torchvision

models = torchvision.models


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tiny_vit() -> nn.Module:
    return models.VisionTransformer(32, 8, num_layers=6, num_heads=2, hidden_dim=16, mlp_dim=32)


def tiny_timm_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=6, embed_dim=24, num_heads=2
    )


def tiny_swin() -> nn.Module:
    return models.SwinTransformer([4, 4], 16, [1, 1], [1, 1], [4, 4], stochastic_depth_prob=0.0)


def tiny_timm_swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1), embed_dim=16, num_heads=(2, 2)
    )


def tiny_convnext() -> nn.Module:
    return models.ConvNeXt([convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)])


def tiny_regnet() -> nn.Module:
    params = regnet.BlockParams([1, 1, 1, 1], [8, 16, 24, 32], [8, 8, 8, 8], [1.0] * 4, [2] * 4)
    return models.RegNet(params, stem_width=8)


def plain_layers() -> nn.Module:
    layers = vgg.make_layers([4, "M", 8, "M", 16, "M"])
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 3))


class UNet(nn.Module):
    """An encoder with two halvings and a decoder; the stages lie in the encoder, a separate module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), nn.ReLU()) for c in (3, 6)
        )
        self.decoder = nn.ModuleList(nn.Conv2d(c, c // 2, 3, padding=1) for c in (12, 6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder:
            x = layer(x)
        for layer in self.decoder:
            x = layer(F.interpolate(x, scale_factor=2.0))
        return x


class OneSize(nn.Module):
    """A classifier whose linear head fits only images of 32 px, with one shared pooling layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5, padding=2), nn.Conv2d(6, 16, 5, padding=2)
        self.conv3, self.pool = nn.Conv2d(16, 8, 3, padding=1), nn.MaxPool2d(2)
        self.fc = nn.Linear(8 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        return self.fc(F.dropout(self.conv3(x), training=self.training).view(-1, 512))


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, list[str], list[int], list[int]]] = {
    "resnet": (
        models.resnet18, 64, ["layer1", "layer2", "layer3", "layer4"], [64, 128, 256, 512], [4, 8, 16, 32],
    ),
    "convnext": (tiny_convnext, 32, ["features.1", "features.3"], [8, 16], [4, 8]),
    "mobilenet": (
        lambda: models.mobilenet_v3_small(width_mult=0.25), 64,
        ["features.0", "features.1", "features.3", "features.8", "features.12"],
        [8, 8, 8, 16, 144], [2, 4, 8, 16, 32],
    ),
    "regnet": (
        tiny_regnet, 64, ["stem", *(f"trunk_output.block{n}" for n in (1, 2, 3, 4))],
        [8, 8, 16, 24, 32], [2, 4, 8, 16, 32],
    ),
    "layers": (plain_layers, 32, ["0.1", "0.4", "0.7", "0.8"], [4, 8, 16, 16], [1, 2, 4, 8]),
    "densenet": (
        lambda: models.DenseNet(8, (1, 1, 1, 1), 16), 64,
        ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"],
        [24, 20, 18, 17], [4, 8, 16, 32],
    ),
    "squeezenet": (
        lambda: models.squeezenet1_1(), 64, ["features.4", "features.7", "features.12"],
        [128, 256, 512], [4, 8, 16],
    ),
    "swin": (tiny_swin, 32, ["features.1", "permute"], [16, 32], [4, 8]),
    "vit": (tiny_vit, 32, [f"encoder.layers.encoder_layer_{n}" for n in (0, 2, 3, 5)], [16] * 4, [8] * 4),
    "maxvit": (
        lambda: models.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 16, 0.0), 64,
        ["stem", "blocks.0", "blocks.1"], [16, 16, 32], [2, 4, 8],
    ),
    "timm vit": (tiny_timm_vit, 32, [f"blocks.{n}" for n in (0, 2, 3, 5)], [24] * 4, [8] * 4),
    "timm swin": (tiny_timm_swin, 64, ["layers.0", "layers.1"], [16, 32], [4, 8]),
    "u-net": (UNet, 32, ["encoder.0", "encoder.1"], [6, 12], [2, 4]),
    "one image size": (OneSize, 32, ["conv1", "conv2", "conv3"], [6, 16, 8], [1, 2, 4]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_of_common_families(family: str) -> None:
    make, size, names, channels, reductions = FAMILIES[family]
    module = make()
    before = dict(module.state_dict())
    net = as_backbone(module)
    info = net.feature_info
    assert (info.module_name(), info.channels(), info.reduction()) == (names, channels, reductions)
    assert net.training
    # the contract
    maps = net(torch.rand(2, 3, size, size))
    assert isinstance(maps, list)
    assert [x.shape[:2] for x in maps] == [(2, c) for c in channels]
    for x, reduction in zip(maps, reductions, strict=True):
        assert x.shape[2] == x.shape[3]
        assert size / reduction - 1 <= x.shape[2] <= size / reduction  # fewer without padding
    # weights keep their names, and all have a gradient
    after = net.state_dict()
    assert all(before[name] is not None and torch.equal(before[name], after[name]) for name in after)
    maps[-1].square().sum().backward()
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []
    assert len(trained) == len(list(net.parameters()))  # all others were dropped
    assert set(names) <= dict(net.named_modules()).keys()


@torch.no_grad()
def test_resnet_maps_are_those_of_its_layers() -> None:
    net = models.resnet18().eval()
    images = torch.rand(2, 3, 64, 48)
    x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    maps = as_backbone(net)(images)
    for layer, got in zip((net.layer1, net.layer2, net.layer3, net.layer4), maps, strict=True):
        x = layer(x)
        assert torch.equal(got, x)


@torch.no_grad()
def test_timm_classifier_gives_the_maps_of_features_only() -> None:
    features = timm.create_model("resnet18", features_only=True).eval()
    classifier = timm.create_model("resnet18").eval()
    classifier.load_state_dict(features.state_dict(), strict=False)
    net = as_backbone(classifier)
    assert net.feature_info.channels() == features.feature_info.channels()
    assert net.feature_info.reduction() == features.feature_info.reduction()
    assert net.state_dict().keys() == features.state_dict().keys()
    images = torch.rand(2, 3, 64, 64)
    for got, expected in zip(net(images), features(images), strict=True):
        assert torch.equal(got, expected)


@torch.no_grad()
def test_vit_maps_are_its_tokens() -> None:
    images = torch.rand(2, 3, 32, 32)
    net = tiny_vit().eval()
    tokens = torch.cat([net.class_token.expand(2, -1, -1), net._process_input(images)], dim=1)
    tokens = tokens + net.encoder.pos_embedding
    blocks = []
    for block in net.encoder.layers:
        tokens = block(tokens)
        blocks.append(tokens)
    for got, block in zip(as_backbone(net)(images), (0, 2, 3, 5), strict=True):
        for row, column in ((0, 0), (1, 3), (3, 2)):
            assert torch.equal(got[:, :, row, column], blocks[block][:, 1 + 4 * row + column])


@torch.no_grad()
def test_timm_vit_maps_are_its_tokens() -> None:
    images = torch.rand(2, 3, 32, 32)
    net = tiny_timm_vit().eval()
    tokens = net.blocks(net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images)))))
    last = as_backbone(net)(images)[-1]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens[:, 1:])


@torch.no_grad()
def test_swin_maps_are_turned_to_channels_first() -> None:
    images = torch.rand(2, 3, 32, 32)
    net = tiny_swin().eval()
    expected = net.features[:2](images)  # (B, H, W, C)
    assert torch.equal(as_backbone(net)(images)[0], expected.permute(0, 3, 1, 2))


def test_what_is_a_backbone_stays_as_it_is() -> None:
    own, timms = ConvNet(), timm.create_model("resnet18", features_only=True)
    adapted = as_backbone(models.squeezenet1_1())
    for net in (own, timms, adapted):
        assert as_backbone(net) is net


@torch.no_grad()
def test_timm_backbone_that_keeps_channels_last_is_turned_once() -> None:
    net = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True, img_size=64, depths=(1, 1, 1, 1), embed_dim=16, num_heads=(2, 2, 2, 2),
    )  # fmt: skip
    assert as_backbone(as_backbone(net)) is net
    assert [tuple(x.shape[1:]) for x in net(torch.rand(1, 3, 64, 64))][:2] == [(16, 16, 16), (32, 8, 8)]


@torch.no_grad()
def test_stages_by_name() -> None:
    images = torch.rand(1, 3, 64, 64)
    net = as_backbone(models.resnet18().eval(), stages=["layer3", "relu"])
    assert net.feature_info.module_name() == ["relu", "layer3"]  # in the order in which they run
    assert [x.shape[1:] for x in net(images)] == [(64, 32, 32), (256, 4, 4)]
    assert not [name for name in net.state_dict() if name.startswith("layer4")]
    # timm: by forward_intermediates, or by hooks for names it does not know
    for names in (["layer1", "layer3"], ["layer1.0", "layer3"]):
        net = as_backbone(timm.create_model("resnet18").eval(), stages=names)
        assert [x.shape[1:] for x in net(images)] == [(64, 16, 16), (256, 4, 4)]
        assert not [name for name in net.state_dict() if name.startswith("layer4")]
    # other stages of a backbone
    net = as_backbone(ConvNet(), stages=["stages.1"])
    assert net.feature_info.module_name() == ["stages.1"]
    # a network that does not shrink
    net = as_backbone(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), stages=["1"])
    assert net.feature_info.reduction() == [1]


KINDS = {"hooks": tiny_convnext, "tokens": tiny_vit, "intermediates": tiny_timm_vit}


def assert_same_maps(got: list[Tensor], expected: list[Tensor]) -> None:
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_formats_and_precisions(kind: str) -> None:
    net = as_backbone(KINDS[kind]()).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = [x.detach() for x in net(images)]
    loaded = as_backbone(KINDS[kind]()).eval()
    loaded.load_state_dict(net.state_dict())
    duplicate = copy.deepcopy(net)
    for other in (loaded, duplicate, pickle.loads(pickle.dumps(net))):
        assert_same_maps(other(images), expected)
    assert_same_maps(copy.deepcopy(net).to(memory_format=torch.channels_last)(images), expected)
    with torch.no_grad():  # a copy has its own weights, and its own network around them
        for parameter in duplicate.parameters():
            parameter.zero_()
    assert not duplicate(images)[-1].equal(expected[-1])
    assert net(images)[-1].equal(expected[-1])
    with torch.autocast("cpu", torch.bfloat16):
        for got, want in zip(net(images), expected, strict=True):
            assert (got - want).abs().max() < 0.05 * want.abs().max()
    assert net.to(torch.bfloat16)(images.bfloat16())[-1].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "kind", ["hooks", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("tokens", "intermediates"))]
)
def test_compiler_tracer_and_export(kind: str) -> None:
    net = as_backbone(KINDS[kind]()).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = net(images)
    assert_same_maps(torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)(images), expected)
    assert_same_maps(torch.jit.trace(net, images, check_trace=False)(images), expected)
    assert_same_maps(torch.export.export(net, (images,)).module()(images), expected)


@pytest.mark.slow
def test_a_stopped_network_compiles() -> None:
    net = as_backbone(OneSize()).eval()
    images = torch.rand(2, 3, 32, 32)
    assert net._kept.stop
    assert_same_maps(torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)(images), net(images))


def test_network_of_one_size_takes_others_without_its_head() -> None:
    module = OneSize()
    net = as_backbone(module)
    assert net(torch.rand(1, 3, 48, 40))[-1].shape == (1, 8, 12, 10)
    net.eval()
    net(torch.rand(1, 3, 32, 32))
    assert not module.training  # `self.training` in its forward is that of the backbone
    net.train()
    net(torch.rand(1, 3, 32, 32))
    assert module.training
    assert module(torch.rand(1, 3, 32, 32)).shape == (1, 512)  # it runs as before, without its classifier


@torch.no_grad()
def test_a_stage_that_another_layer_replaces_is_still_found() -> None:
    net = as_backbone(FAMILIES["densenet"][0]()).eval()
    images = torch.rand(1, 3, 64, 64)
    expected = net(images)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(net.get_submodule(net.feature_info.module_name()[-1]), nn.SyncBatchNorm)
    assert_same_maps(net(images), expected)


def test_the_mode_of_the_module_stays() -> None:
    assert not any(part.training for part in as_backbone(plain_layers().eval()).modules())
    assert all(part.training for part in as_backbone(plain_layers()).modules())


def test_a_failed_pass_keeps_no_maps() -> None:
    net = as_backbone(models.squeezenet1_1())
    with pytest.raises(RuntimeError):
        net(torch.rand(1, 1, 64, 64))
    assert not net._kept.outputs
    assert not net._kept.running
    assert all(not part._forward_hooks for part in as_backbone(tiny_timm_vit()).modules())


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (
            models.squeezenet1_1,
            {"stages": ["layer9"]},
            "stages names 'layer9', .*SqueezeNet .* has features,",
        ),
        (models.squeezenet1_1, {"stages": []}, r"stages is \[\]; allowed is a list of node names"),
        (models.squeezenet1_1, {"stages": "features"}, "stages is 'features'; allowed is a list"),
        (models.squeezenet1_1, {"in_channels": 0}, "in_channels is 0"),
        (
            models.squeezenet1_1,
            {"in_channels": 1},
            "takes no images of 1 channel and 64 or 224 .*px: its first convolution takes 3; build it for 1",
        ),
        (
            tiny_vit,
            {"image_size": 64},
            "VisionTransformer takes no images of 3 channels and 64 px: .*Expected 32",
        ),
        (tiny_timm_vit, {"image_size": 64}, "takes no images of 3 channels and 64 px: .*32"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), {}, "does not shrink the image; .* from 0, 1"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)),
            {},
            "no node .*; its nodes are 0, 1",
        ),
    ],
)
def test_refusals(module: Callable[[], nn.Module], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        as_backbone(module(), **options)
    assert "\n" not in str(error.value)


def test_torchvision_backbone_of_any_channels(tmp_path) -> None:
    net = create_torchvision("squeezenet1_1", in_channels=1)
    theirs = models.squeezenet1_1().features[0].weight
    weight = net.state_dict()["features.0.weight"]
    assert weight.shape == (64, 1, 3, 3)
    assert weight.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
    assert create_torchvision("mobilenet_v2", width_mult=0.1).feature_info.channels()[0] == 8
    config = {
        "_target_": "ssl_lightning.networks.torchvision_backbone.create_torchvision",
        "model_name": "squeezenet1_1", "in_channels": 1, "pretrained": True, "stages": None,
    }  # fmt: skip
    save_backbone(tmp_path, net, {"backbone": config})
    images = torch.rand(1, 1, 64, 64)
    assert torch.equal(load_backbone(tmp_path)(images)[-1], net.eval()(images)[-1])


@pytest.mark.slow
def test_torchvision_vit_of_a_size() -> None:
    net = create_torchvision("vit_b_16", image_size=32, in_channels=2)
    assert [x.shape for x in net(torch.rand(1, 2, 32, 32))] == [(1, 768, 2, 2)] * 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "'resnet81', which torchvision does not have; did you mean resnet18"),
        ("fcn_resnet50", {}, "which torchvision does not have"),
        ("resnet18", {"colour": 1}, "cannot build 'resnet18' with {'colour': 1}"),
        ("resnet18", {"weights": "DEFAULT"}, "backbone.pretrained=true"),
        ("resnet18", {"pretrained": True, "in_channels": 1}, "1 channels and published weights take 3"),
        ("resnet18", {"in_channels": 0}, "in_channels is 0"),
        ("vit_b_16", {"image_size": 30}, "cannot build 'vit_b_16' with {'image_size': 30}"),
    ],
)
def test_torchvision_refusals(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_torchvision(name, **options)


@torch.no_grad()
def test_timm_models_without_features_only(monkeypatch) -> None:
    create_model = timm.create_model

    def refuse(*args, features_only=False, **options):  # as timm does for some of its models
        if features_only:
            raise RuntimeError("features_only not implemented")
        return create_model(*args, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    net = create_timm("levit_128s", img_size=64, out_indices=[1, 2]).eval()
    assert net.feature_info.module_name() == ["stages.1", "stages.2"]
    assert [x.shape for x in net(torch.rand(1, 3, 64, 64))] == [(1, 256, 2, 2), (1, 384, 1, 1)]
    with pytest.raises(ValueError, match="features_only not implemented"):
        create_timm("levit_128s", img_size=64, out_indices=[9])
