"""Exports to other libraries: loaded by these libraries, with the outputs of our backbone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

import ssl_lightning
from ssl_lightning.artifacts.export.write import Exported, export
from ssl_lightning.artifacts.weights import save_backbone
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.export import run_export

NETWORKS = "ssl_lightning.networks."
INPUT = {
    "image_size": 64,
    "colour": "RGB",
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.2, 0.3],
    "crop_ratio": 0.875,
}
CONVNET = {"_target_": f"{NETWORKS}convnet.ConvNet", "widths": [4, 8], "strides": [2, 2]}
SMALL_VIT = {"_target_": f"{NETWORKS}vit.create_small_vit", "width": 16, "depth": 2, "heads": 2, "stages": 2}
SMALL_RESNET = {"_target_": f"{NETWORKS}resnet.create_small_resnet", "model_name": "resnet18"}


def timm_model(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{NETWORKS}timm_backbone.create_timm", "model_name": name, **options}


def torchvision_model(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{NETWORKS}torchvision_backbone.create_torchvision", "model_name": name, **options}


def make_run(folder: Path, config: dict[str, Any], **described: Any) -> nn.Module:
    """Export a backbone with random weights and statistics as a run would; return it."""
    folder.mkdir(exist_ok=True)
    shown = {**INPUT, **described}
    config = {**config, "in_channels": len(shown["mean"])}
    torch.manual_seed(0)
    backbone = instantiate(config)
    for name, value in backbone.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    save_backbone(folder, backbone, {"backbone": config, "input": shown})
    return backbone.eval()


def images(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [timm_model("resnet18"), timm_model("vit_tiny_patch16_224", img_size=64), timm_model("convnext_atto")],
    ids=lambda config: config["model_name"],
)
def test_timm_loads_the_folder(tmp_path: Path, config: dict[str, Any]) -> None:
    backbone = make_run(tmp_path, config)
    done = export(tmp_path, "timm")
    assert done.folder == tmp_path / "export/timm"
    assert done.difference <= 1e-4 * max(1, done.largest)
    for keywords in ({}, {"num_classes": 0}):
        model = timm.create_model(f"local-dir:{done.folder}", pretrained=True, **keywords).eval()
        maps = model.forward_intermediates(images(), indices=1, intermediates_only=True)
        torch.testing.assert_close(maps[-1], backbone(images())[-1], rtol=1e-4, atol=1e-4)
        assert model.num_classes == 0
    shown = timm.data.resolve_model_data_config(model)
    assert (list(shown["mean"]), shown["input_size"], shown["crop_pct"]) == (
        [0.4, 0.5, 0.6],
        (3, 64, 64),
        0.875,
    )


def test_timm_loads_maps_whose_channels_come_last(tmp_path: Path) -> None:
    make_run(tmp_path, timm_model("swin_tiny_patch4_window7_224", img_size=64, embed_dim=24))
    done = export(tmp_path, "timm")
    assert done.difference <= 1e-4 * max(1, done.largest)


def test_timm_gets_the_lightness_as_a_grey_picture(tmp_path: Path) -> None:
    make_run(tmp_path, timm_model("resnet18"), colour="L", mean=[50.0], std=[50.0])
    folder = export(tmp_path, "timm").folder
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.conv1.in_channels == 1
    described = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (described["mean"], described["std"]) == ([0.5], [0.5])


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "head", "classes"),
    [
        (timm_model("resnet18"), {"fc.weight", "fc.bias"}, 10),
        (torchvision_model("resnet18"), {"fc.weight", "fc.bias"}, 7),
        (torchvision_model("squeezenet1_1"), {"classifier.1.weight", "classifier.1.bias"}, 7),
    ],
)
def test_torchvision_loads_all_but_the_classifier(
    tmp_path: Path, config: dict[str, Any], head: set[str], classes: int
) -> None:
    backbone = make_run(tmp_path, config)
    folder = export(tmp_path, "torchvision").folder
    model = torchvision.models.get_model(config["model_name"], num_classes=classes)
    found = model.load_state_dict(torch.load(folder / "model.pth", weights_only=True), strict=False)
    assert set(found.missing_keys) == head
    assert not found.unexpected_keys
    deepest: list[torch.Tensor] = []
    last = model.layer4 if hasattr(model, "layer4") else model.features
    last.register_forward_hook(lambda _module, _inputs, output: deepest.append(output))
    model.eval()(images())
    torch.testing.assert_close(deepest[0], backbone(images())[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("config", [CONVNET, SMALL_RESNET, SMALL_VIT, torchvision_model("squeezenet1_1")])
def test_the_hub_folder_is_loaded_offline(tmp_path: Path, config: dict[str, Any]) -> None:
    backbone = make_run(tmp_path / "run", config)
    done = export(tmp_path / "run", "hf", tmp_path / "mine")
    assert done.difference == 0
    loaded = ssl_lightning.load_backbone(tmp_path / "mine")
    for ours, theirs in zip(backbone(images()), loaded(images()), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.transform.config == INPUT
    assert (tmp_path / "mine/README.md").read_text().startswith("---\nlibrary_name: ssl-lightning\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [CONVNET, SMALL_RESNET, timm_model("resnet18"), torchvision_model("resnet18"),
     timm_model("vit_tiny_patch16_224", img_size=64), {"_target_": f"{NETWORKS}alexnet.AlexNet"},
     {"_target_": f"{NETWORKS}nin.NIN"}, SMALL_VIT],
    ids=lambda config: config["_target_"].rpartition(".")[2],
)  # fmt: skip
def test_onnxruntime_agrees(tmp_path: Path, config: dict[str, Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'ssl-lightning[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'ssl-lightning[export]'")
    backbone = make_run(tmp_path, config)
    done = export(tmp_path, "onnx")
    assert done.difference <= 1e-4 * max(1, done.largest)
    session = onnxruntime.InferenceSession(done.folder / "model.onnx", providers=["CPUExecutionProvider"])
    batch = torch.cat([images(), images()[:1]])  # another size than the exported one
    found = session.run(["features"], {"images": batch.numpy()})[0]
    with torch.no_grad():
        expected = backbone(batch)[-1].mean((2, 3))
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "format", "works"),
    [
        (CONVNET, "timm", "onnx and hf work"),
        (SMALL_RESNET, "timm", "onnx and hf work"),
        (CONVNET, "torchvision", "onnx and hf work"),
        (SMALL_RESNET, "torchvision", "onnx and hf work"),
        (timm_model("convnext_atto"), "torchvision", "onnx and hf work, and timm does for most models"),
        (CONVNET, "keras", "allowed are timm, torchvision, onnx, hf"),
    ],
)
def test_a_format_that_cannot_hold_it_names_those_that_can(
    tmp_path: Path, config: dict[str, Any], format: str, works: str
) -> None:
    make_run(tmp_path, config)
    with pytest.raises(ValueError, match=works):
        export(tmp_path, format)
    assert not list(tmp_path.glob("export/*")) + list(tmp_path.glob("export/.*"))


def test_grey_images_do_not_fit_torchvision(tmp_path: Path) -> None:
    make_run(tmp_path, torchvision_model("resnet18"), colour="grey", mean=[0.5], std=[0.2])
    with pytest.raises(ValueError, match=r"conv1.weight is \(64, 1, 7, 7\), and \(64, 3, 7, 7\) in"):
        export(tmp_path, "torchvision")


def test_different_outputs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, CONVNET)

    def wrong(source: Any, folder: Path) -> Any:
        return lambda inputs: [each + 1e-2 for each in source.backbone(inputs)]

    monkeypatch.setitem(sys.modules["ssl_lightning.artifacts.export.write"].FORMATS, "hf", wrong)
    with pytest.raises(ValueError, match=r"differs from the backbone by 1.0e-02.*Nothing was written"):
        export(tmp_path, "hf")
    assert not (tmp_path / "export/hf").exists()


def test_only_an_export_is_replaced(tmp_path: Path) -> None:
    make_run(tmp_path, CONVNET)
    assert isinstance(export(tmp_path, "hf"), Exported)
    assert isinstance(export(tmp_path, "hf"), Exported)
    with pytest.raises(ValueError, match="is no export"):
        export(tmp_path, "hf", tmp_path)
    with pytest.raises(ValueError, match="finish the run first"):
        export(tmp_path / "export", "hf")
    with pytest.raises(ValueError, match="nowhere is not there; a run folder is outputs/"):
        export(tmp_path / "nowhere", "hf")


def test_the_command_prints_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, CONVNET)
    cfg = {"run": str(tmp_path), "format": "hf", "folder": None}
    run_export(OmegaConf.create(cfg))
    printed = capsys.readouterr().out
    assert printed.startswith(f"hf: {tmp_path}/export/hf (largest difference 0.0e+00")
    with pytest.raises(RunError, match="error: format=timm cannot hold"):
        run_export(OmegaConf.create(cfg | {"format": "timm"}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: format must be given"),
        pytest.param(["format=timm"], "error: format=timm cannot hold", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_the_command_is_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    make_run(tmp_path, CONVNET)
    command = [sys.executable, "export.py", f"run={tmp_path}", *words]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode
    assert message in done.stderr
    assert "Traceback" not in done.stderr
