"""Weights under the names of other projects: what is recognised, refused, and advised."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import Tensor, nn

from ssl_lightning.artifacts.layouts import find_backbone
from ssl_lightning.artifacts.weights import load_weights, read_state
from ssl_lightning.networks.timm_backbone import create_timm
from ssl_lightning.networks.torchvision_backbone import create_torchvision

ROOT = Path(__file__).parents[2]
State = dict[str, Tensor]


def resnet(seed: int, head: bool = True) -> State:
    torch.manual_seed(seed)
    state = torchvision.models.resnet18().state_dict()
    return {name: value for name, value in state.items() if head or not name.startswith("fc.")}


def below(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: value for name, value in state.items()}


def numbered(state: Mapping[str, Tensor]) -> State:
    """Name the children as `nn.Sequential(*resnet.children())` does."""
    order = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    parts = ((name.partition("."), value) for name, value in state.items())
    return {f"{order.index(child)}.{rest}": value for (child, _, rest), value in parts}


def narrow(content: Any) -> Any:
    """Keep at most 8 channels of all tensors in nested dictionaries, so that their files are small."""
    if isinstance(content, Tensor):
        return content[(slice(8),) * min(content.ndim, 2)].clone()
    return {name: narrow(value) for name, value in content.items()} if isinstance(content, dict) else content


WANTED, COPY = resnet(0), resnet(1)
BARE = {name: value for name, value in WANTED.items() if not name.startswith("fc.")}
QUEUE = {"module.queue": torch.zeros(8, 4), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
PROJECTOR = {"projector.0.weight": torch.zeros(4, 4), "projector.0.bias": torch.zeros(4)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
FILES: dict[str, tuple[Any, str]] = {  # content of a file, and what is recognised
    "torchvision, with head": (WANTED, ""),
    "torchvision, without head": (BARE, ""),
    "torchvision before 0.4": ({n: v for n, v in BARE.items() if "num_batches_tracked" not in n}, ""),
    "DDP": ({"state_dict": below("module.", WANTED)}, "DistributedDataParallel, below module."),
    "torch.compile": (below("_orig_mod.", WANTED), "torch.compile, below _orig_mod."),
    "DDP of torch.compile": ({"model": below("module._orig_mod.", WANTED)}, "below module._orig_mod."),
    "a compiled stage": ({n.replace("layer2.", "layer2._orig_mod."): v for n, v in WANTED.items()}, ""),
    "MoCo": (
        {"state_dict": below("module.encoder_k.", COPY) | below("module.encoder_q.", WANTED) | QUEUE},
        "MoCo's query encoder, below module.encoder_q.",
    ),
    "MoCo v3": (
        {"state_dict": below("module.momentum_encoder.", COPY) | below("module.base_encoder.", WANTED)},
        "MoCo v3's encoder, below module.base_encoder.",
    ),
    "SimSiam": (
        {"state_dict": below("module.encoder.", WANTED) | {"module.predictor.0.weight": torch.zeros(1)}},
        "below module.encoder.",
    ),
    "BYOL": (
        below("target_network.", COPY) | below("online_network.", WANTED),
        "BYOL's online network, below online_network.",
    ),
    "BYOL, a dictionary each": (
        {"online_network_state_dict": WANTED, "target_network_state_dict": COPY, "optimizer": OPTIMIZER},
        "BYOL's online network, below online_network_state_dict.",
    ),
    "DINO": (
        {"student": below("module.backbone.", COPY), "teacher": below("backbone.", WANTED), "epoch": 3},
        "the teacher of DINO or iBOT, below teacher.backbone.",
    ),
    "DINO in Lightly": (
        {"state_dict": below("student_backbone.", COPY) | below("teacher_backbone.", WANTED)},
        "below teacher_backbone.",
    ),
    "SwAV": (below("module.", WANTED) | {"module.prototypes.weight": torch.zeros(3, 4)}, "below module."),
    "Barlow Twins": ({"model": below("module.backbone.", WANTED) | below("module.", PROJECTOR)}, "backbone."),
    "mmselfsup": (
        {"meta": {"epoch": 1}, "state_dict": below("backbone.", BARE) | {"neck.fc0.weight": torch.zeros(2)}},
        "mmselfsup, solo-learn, Lightly and here, below backbone.",
    ),
    "MoCo of mmselfsup": (
        {"state_dict": below("encoder_q.0.", BARE) | below("encoder_k.0.", COPY) | {"queue": torch.zeros(1)}},
        "below encoder_q.0.",
    ),
    "solo-learn": (
        {"state_dict": below("momentum_backbone.", COPY) | below("backbone.", BARE) | PROJECTOR},
        "below backbone.",
    ),
    "Lightly, numbered children": (
        {"state_dict": below("backbone_momentum.", numbered(COPY)) | below("backbone.", numbered(WANTED))},
        "below backbone., children by number",
    ),
    "Lightly's own ResNet, without layers between": (
        {f"{['conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4'].index(n.split('.')[0])}"
         f".{n.partition('.')[2]}": v for n, v in BARE.items()},
        "children by number",
    ),
    "nn.Sequential": (numbered(WANTED), "children by number"),
    "VISSL": (
        {"classy_state_dict": {"base_model": {"model": {"trunk": below("_feature_blocks.", BARE)}}}},
        "VISSL's trunk, below classy_state_dict.base_model.trunk._feature_blocks.",
    ),
    "SimCLR": (
        {"state_dict": below("backbone.", BARE) | {"backbone.fc.0.weight": torch.zeros(2, 2)}},
        "below backbone.",
    ),
    "a detector of torchvision": (
        below("backbone.body.", {n: v for n, v in BARE.items() if "num_batches" not in n})
        | {"backbone.fpn.inner_blocks.0.0.weight": torch.zeros(1), "rpn.head.conv.weight": torch.zeros(1)},
        "the backbone of a torchvision detector, below backbone.body.",
    ),
    "EMA beside the weights": ({"state_dict": WANTED, "state_dict_ema": COPY}, ""),
    "any other wrapper": ({"nets": {"encoder": {"net": WANTED}}, "epoch": 1}, "below nets.encoder.net."),
    "16-bit floats": ({name: v.half() if v.is_floating_point() else v for name, v in BARE.items()}, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    return create_timm("resnet18")


@pytest.fixture(scope="module")
def narrow_backbone() -> nn.Module:
    net = create_timm("resnet18")
    for value in (*net.parameters(), *net.buffers()):
        value.data = narrow(value.data)
    return net


@pytest.mark.parametrize("name", FILES)
def test_a_layout_is_recognised(name: str, tmp_path: Path, narrow_backbone: nn.Module) -> None:
    content, layout = FILES[name]
    torch.save(narrow(content), tmp_path / "file.pth")
    report = load_weights(narrow_backbone, tmp_path / "file.pth")
    assert f"120 of 120 weights from {tmp_path / 'file.pth'}" in report
    assert layout in report
    loaded = narrow_backbone.state_dict()
    wanted = narrow({n: v.half().float() if name == "16-bit floats" else v for n, v in BARE.items()})
    assert all(torch.equal(loaded[n], v) for n, v in wanted.items() if "num_batches" not in n)


def test_a_file_of_an_old_torch_is_read(tmp_path: Path, narrow_backbone: nn.Module) -> None:
    path = tmp_path / "resnet18-5c106cde.pth"
    torch.save(narrow(WANTED), path, _use_new_zipfile_serialization=False)
    assert "left out 2: fc.weight, fc.bias" in load_weights(narrow_backbone, path)
    assert torch.equal(narrow_backbone.state_dict()["conv1.weight"], narrow(WANTED["conv1.weight"]))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_state(path)


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050", "levit_128s"]
)
@pytest.mark.parametrize("classes", [0, 10])
def test_a_model_of_timm_gives_the_same_maps(name: str, classes: int) -> None:
    model, backbone = timm.create_model(name, num_classes=classes).eval(), create_timm(name).eval()
    found = find_backbone(backbone.state_dict(), model.state_dict())
    assert (found.unexpected, found.rivals) == ([], [])
    backbone.load_state_dict(found.state)
    images = torch.rand(2, 3, 224, 224)
    maps: Any = model.forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(backbone(images)[-1], maps[-1])


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "densenet121",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit_b_16", "convnext_tiny", "swin_t")),
    ],
)
def test_a_model_of_torchvision_loads_with_its_head(name: str) -> None:
    own = create_torchvision(name).state_dict()
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    found = find_backbone(own, state)
    assert (found.unexpected, found.state.keys()) == ([], own.keys())
    assert all(re.match(r"head|classifier|norm|encoder\.ln", each) for each in found.left_out)


# --- what does not fit, and what helps ---


def advised(error: object) -> dict[str, str | None]:
    """Return the map that a message suggests, as Hydra reads it."""
    (written,) = re.findall(r"'(prefix_map=\{.*?\})'", str(error))
    value: Any = OverridesParser.create().parse_override(written).value()
    return dict(value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra", "answer"),
    [
        (
            "MoCo",
            [],
            "weights   120 of 120 weights from epoch=9 (1).ckpt (MoCo's query encoder, below module.",
        ),
        (
            "MoCo",
            ['prefix_map={module.encoder_q.:"",module.encoder_q.fc.:null}'],
            "weights   120 of 120 weights from epoch=9 (1).ckpt; left out 124: module.encoder_k.conv1.weight",
        ),
        (
            "nn.Sequential",
            ['prefix_map={0.:"conv1.",1.:bn1.,4.:layer1.,5.:layer2.,6.:layer3.,7.:layer4.,9.:null}'],
            "weights   120 of 120 weights from epoch=9 (1).ckpt\n",
        ),
    ],
)
def test_a_file_is_evaluated(name: str, extra: list[str], answer: str, tmp_path: Path) -> None:
    torch.save(FILES[name][0], tmp_path / "epoch=9 (1).ckpt")
    data = ["data=fake", "data.num_train=96", "data.num_test=32", "data.heldout=16"]
    given = [*data, "backbone=resnet18", "trainer=cpu", "probe=[linear]", "weights=epoch=9 (1).ckpt", *extra]
    command = [sys.executable, str(ROOT / "evaluate.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout


@pytest.mark.parametrize(
    ("content", "message", "map"),
    [
        (
            below("one.", WANTED) | below("two.", COPY),
            "holds 2 backbones that fit, below one. and two.; choose one",
            {"one.": ""},
        ),
        (
            WANTED | {"norm_pre.weight": torch.zeros(3), "gate": torch.zeros(1)},
            "2 unexpected: norm_pre.weight, gate; drop them, if the backbone does not need them",
            {"norm_pre.": None, "gate": None},
        ),
        (
            {n.replace("layer", "block"): v for n, v in BARE.items()},
            "6 of its 101 weights; 95 missing: .*114 unexpected: block1.0.conv1.weight, .*rename them",
            {f"block{k}.": f"layer{k}." for k in (1, 2, 3, 4)},
        ),
    ],
)
def test_a_suggested_map_loads_the_file(
    content: State, message: str, map: dict[str, str | None], tmp_path: Path, narrow_backbone: nn.Module
) -> None:
    backbone = narrow_backbone
    torch.save(narrow(content), tmp_path / "file.pth")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refused:
        load_weights(backbone, tmp_path / "file.pth")
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert advised(refused.value) == map
    load_weights(backbone, tmp_path / "file.pth", prefix_map=map)
    assert torch.equal(backbone.state_dict()["layer4.1.bn2.weight"], narrow(WANTED["layer4.1.bn2.weight"]))


def test_the_map_chooses(tmp_path: Path, narrow_backbone: nn.Module) -> None:
    torch.save(narrow(FILES["MoCo"][0]), tmp_path / "moco.pth")
    for chosen, wanted in (("encoder_q", WANTED), ("encoder_k", COPY)):
        map = {f"module.{chosen}.": "", "fc.": None}
        load_weights(narrow_backbone, tmp_path / "moco.pth", prefix_map=map)
        assert torch.equal(narrow_backbone.state_dict()["conv1.weight"], narrow(wanted["conv1.weight"]))


def test_the_map_takes_the_names_of_the_file(tmp_path: Path, backbone: nn.Module) -> None:
    torch.save({"state_dict": below("backbone.net.", BARE)}, tmp_path / "file.pth")
    assert min(read_state(tmp_path / "file.pth")) == "backbone.net.bn1.bias"
    report = load_weights(backbone, tmp_path / "file.pth", prefix_map={"backbone.net.": ""})
    assert "below" not in report
    with pytest.raises(ValueError, match=r"gives the name 'conv1\.weight' to two weights"):
        load_weights(
            backbone,
            tmp_path / "file.pth",
            state=FILES["BYOL"][0],
            prefix_map=dict.fromkeys(("online_network.", "target_network."), ""),
        )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: torchvision.models.resnet34().state_dict(), "96 unexpected: layer1.2.conv1.weight"),
        (lambda: numbered(torchvision.models.resnet34().state_dict()), "96 unexpected: 4.2.conv1.weight"),
        (
            lambda: torchvision.models.resnet50().state_dict(),
            r"of another shape: layer1.0.conv1.weight \(64, 64",
        ),
        (
            lambda: below("net.", torchvision.models.squeezenet1_1().state_dict()),
            "1 of its 100 weights; 99 missing: ",
        ),
        (
            lambda: BARE | {"conv1.weight": torch.zeros(64, 13, 7, 7)},
            "images with 13 channels, this .* takes 3",
        ),
    ],
)
def test_another_network_is_refused(other: Any, message: str, backbone: nn.Module) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        load_weights(backbone, "file.pth", state=other())
    assert "prefix_map" not in str(refused.value)
    assert len(str(refused.value)) < 1500


def test_a_vit_of_other_images_names_their_size() -> None:
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    message = r"pos_embed \(1, 197, 192\) for .*: backbone.img_size=224 data.image_size=224"
    with pytest.raises(ValueError, match=message):
        load_weights(create_timm("vit_tiny_patch16_224", img_size=64), "dino.pth", state=state)
    load_weights(create_timm("vit_tiny_patch16_224", img_size=224), "dino.pth", state=state)


def test_a_file_without_weights_names_its_keys(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="holds no weights; its keys are epoch, args"):
        read_state(tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"nor a checkpoint; give one of its files: file\.pth"):
        read_state(tmp_path)


def test_dictionaries_that_hold_each_other_are_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.ones(2)}
    content |= {"self": content, "nested": {"back": content, "weight": torch.zeros(2)}}
    torch.save(content, tmp_path / "file.pth")
    assert read_state(tmp_path / "file.pth").keys() == {"weight", "nested.weight"}


def test_dictionaries_nested_too_deeply_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content: dict[str, Any] = {"weight": torch.ones(2)}
    for _ in range(5000):
        content = {"a": content}
    monkeypatch.setattr("ssl_lightning.artifacts.weights.load_checkpoint", lambda path: content)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_state(Path(__file__))


@pytest.mark.parametrize(
    "content",
    [
        {"teacher": below("backbone.", WANTED), "args": argparse.Namespace(arch="resnet18"), "epoch": 3},
        {"model": torchvision.models.resnet18(), "epoch": 3},
        torchvision.models.resnet18(),
    ],
    ids=["a namespace beside tensors", "a module in a dictionary", "a module"],
)
def test_the_line_that_saves_the_tensors_alone_works(
    content: Any, tmp_path: Path, backbone: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "a file.pth")
    with pytest.raises(
        ValueError, match=r"it would run \S+, and code .* then give a file.tensors.pth: "
    ) as refused:
        read_state(Path("a file.pth"))
    line = str(refused.value).partition("a file.tensors.pth: ")[2]
    assert line.startswith("python -c ")
    assert "\n" not in line
    _, _, code, *files = shlex.split(line)
    monkeypatch.setattr(sys, "argv", ["-c", *files])
    exec(compile(code, "the line", "exec"), {})
    assert "120 of 120 weights" in load_weights(backbone, "a file.tensors.pth")
