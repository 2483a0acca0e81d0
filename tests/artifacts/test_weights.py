"""Export and import of backbones: exact round trips, refusal of misfits and of files with code."""

import importlib
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import ssl_lightning
from ssl_lightning.artifacts.weights import load_backbone, load_weights, read_state, save_backbone
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.timm_backbone import create_timm

CONFIG = {"_target_": "ssl_lightning.networks.convnet.ConvNet", "widths": [4, 8], "strides": [2, 1]}


def small() -> ConvNet:
    return ConvNet(widths=[4, 8], strides=[2, 1])


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_an_exported_backbone_comes_back_exactly(tmp_path: Path) -> None:
    backbone = small().to(memory_format=torch.channels_last)
    save_backbone(tmp_path, backbone, {"backbone": {**CONFIG, "in_channels": 3}})
    for path in (tmp_path, tmp_path / "backbone.safetensors", str(tmp_path)):
        loaded = ssl_lightning.load_backbone(path)
        assert equal(loaded, backbone)
        assert not loaded.training
    x = torch.randn(2, 3, 16, 16)
    for got, expected in zip(loaded(x), backbone.eval()(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_an_absent_and_an_unfinished_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for load in (ssl_lightning.load_backbone, ssl_lightning.load_classifier):
        with pytest.raises(ValueError, match="gone is not there; a run folder is outputs/"):
            load(tmp_path / "gone")
        with pytest.raises(ValueError, match=r"finish the run first: python train\.py resume=.*run$"):
            load(tmp_path / "run")


def test_weights_of_another_network_name_it(tmp_path: Path) -> None:
    config = {"_target_": "ssl_lightning.networks.convnet.ConvNet", "widths": [8, 8], "strides": [2, 2]}
    save_backbone(tmp_path, ConvNet(widths=(8, 8), strides=(2, 2)), {"backbone": config})
    other = create_timm("resnet18")
    for path in (tmp_path, tmp_path / "backbone.safetensors"):
        with pytest.raises(ValueError, match=r"they are of ConvNet\(widths=\[8, 8\], strides=\[2, 2\]\)"):
            load_weights(other, path)


def test_an_exported_timm_backbone_loads_into_timm(tmp_path: Path) -> None:
    backbone = create_timm("resnet18")
    config = {"_target_": "ssl_lightning.networks.timm_backbone.create_timm", "model_name": "resnet18"}
    save_backbone(tmp_path, backbone, {"backbone": {**config, "in_channels": 3}})
    plain = timm.create_model("resnet18", num_classes=0)
    plain.load_state_dict(read_state(tmp_path / "backbone.safetensors"))  # strict
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(plain.eval().forward_features(x), load_backbone(tmp_path)(x)[-1])


@pytest.mark.parametrize(
    "backbone",
    [
        {"_target_": "os.system", "command": "touch hacked"},
        {"_target_": "torch.hub.load", "repo_or_dir": "x"},
        {
            "_target_": "ssl_lightning.networks.timm_backbone.get_close_matches",
            "word": "a",
            "possibilities": [],
        },
        {"_target_": "ssl_lightning.networks.convnet.accumulate", "iterable": []},
        {"_target_": "ssl_lightning.networks.features.nn.Module"},
        "nothing",
    ],
)
def test_a_config_that_asks_for_anything_but_a_backbone_is_refused(tmp_path: Path, backbone: object) -> None:
    save_backbone(tmp_path, small(), {"backbone": CONFIG})
    (tmp_path / "backbone.json").write_text(json.dumps({"backbone": backbone}))
    with pytest.raises(ValueError, match=r"backbone\.json"):
        load_backbone(tmp_path)


def test_nested_targets_are_not_built(tmp_path: Path) -> None:
    evil = {**CONFIG, "widths": {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "hacked")}}
    save_backbone(tmp_path, small(), {"backbone": evil})
    with pytest.raises(Exception):  # noqa: B017, PT011 - any error of the constructor
        load_backbone(tmp_path)
    assert not (tmp_path / "hacked").exists()


def test_weights_come_from_many_kinds_of_file(tmp_path: Path) -> None:
    source = small()
    state = source.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}}, tmp_path / "moco.pth")
    ours = {f"backbone.{k}": v for k, v in state.items()} | {"head.weight": torch.zeros(1)}
    torch.save({"state_dict": ours, "epoch": 1}, tmp_path / "last.ckpt")
    maps = {"moco.pth": {"module.encoder_q.": ""}}
    for name in ("a.safetensors", "plain.pth", "moco.pth", "last.ckpt"):
        backbone = small()
        assert not equal(backbone, source)
        report = load_weights(backbone, tmp_path / name, prefix_map=maps.get(name))
        assert equal(backbone, source)
        assert f"{len(state)} of {len(state)} weights" in report


def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    backbone = small()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    state = dict(small().state_dict())
    removed = next(iter(state))
    del state[removed]
    state["gate.weight"] = torch.zeros(10, 8)
    state["stages.1.0.0.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="does not fit") as error:
        load_weights(backbone, tmp_path / "odd.pth")
    for part in (
        f"1 missing: {removed}",
        "1 unexpected: gate.weight",
        "1 of another shape: stages.1.0.0.weight (2, 2)",
    ):
        assert part in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"12345678abc")
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04 cut")
    torch.save({"epoch": 1}, tmp_path / "none.ckpt")
    for name, message in (
        ("torn.safetensors", "torn"),
        ("torn.ckpt", "torn"),
        ("none.ckpt", "holds no weights"),
        ("absent.pt", "is not there"),
        (".", "holds neither"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(small(), tmp_path / name)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/ssl_lightning_hacked"),))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_state(tmp_path / "evil.ckpt")
    assert not Path("/tmp/ssl_lightning_hacked").exists()


def test_a_backbone_of_an_own_package_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, in_channels: int = 3, width: int = 4):\n"
        "        super().__init__()\n"
        "        self.one = nn.Sequential(nn.Conv2d(in_channels, width, 3, 2, 1), nn.ReLU())\n"
        "        self.two = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())\n"
        "    def forward(self, x):\n"
        "        return self.two(self.one(x))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("mynets").Net()
    save_backbone(tmp_path, net, {"backbone": {"_target_": "mynets.Net", "in_channels": 3}})
    with pytest.raises(ValueError, match=r"'mynets.Net'; only backbones of .* SSL_LIGHTNING_TRUST=<package>"):
        load_backbone(tmp_path)
    monkeypatch.setenv("SSL_LIGHTNING_TRUST", "other, mynets")
    images = torch.randn(2, 3, 16, 16)
    maps = load_backbone(tmp_path)(images)
    assert [tuple(each.shape[1:]) for each in maps] == [(4, 8, 8), (8, 4, 4)]
    torch.testing.assert_close(maps[-1], net(images))
    save_backbone(tmp_path, net, {"backbone": {"_target_": "other.Net"}})
    with pytest.raises(ValueError, match=r"'other.Net', which cannot be imported"):
        load_backbone(tmp_path)
