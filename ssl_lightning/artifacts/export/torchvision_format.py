"""State dict for a model of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from ssl_lightning.artifacts.export.source import TIMM, TORCHVISION, ExportSource
from ssl_lightning.core.atomic_files import atomic_file, write_json

WEIGHTS, MODEL = "model.pth", "model.json"


def write(source: ExportSource, folder: Path) -> Callable[[Tensor], list[Tensor]]:
    """Write `model.pth` and `model.json`, the name and options of the model; return its stage maps.

    The state dict lacks the classifier, which was not pretrained: `load_state_dict(strict=False)` reports
    only its weights as missing.

    Args:
        source: A backbone of torchvision, or a ResNet of timm, whose names are the same.
        folder: An empty folder.

    Raises:
        ValueError: torchvision has no such model, or its weights have other names or shapes.
    """
    names = torchvision.models.list_models(torchvision.models)
    if source.target not in (TIMM, TORCHVISION) or source.model_name not in names:
        raise _unknown(source, "torchvision has no such model")
    options = {key: value for key, value in source.options.items() if source.target == TORCHVISION}
    if "image_size" in options and not source.model_name.startswith("vit_"):
        size = options.pop("image_size")
        options["input_size"] = (size, size)
    own = source.backbone.state_dict()
    _check_names(source, own, _model(source, options).state_dict())
    with atomic_file(folder / WEIGHTS) as temporary:
        torch.save({name: value.contiguous() for name, value in own.items()}, temporary)
    write_json(folder / MODEL, {"model": source.model_name, "options": options})
    model = _model(source, options)
    model.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True), strict=False)
    nodes = dict(model.named_modules())
    stages = [name for name in source.stages if name in nodes]  # the stem of timm's ResNets has another name
    return source.maps_of(model.eval(), stages)


def _model(source: ExportSource, options: dict[str, object]) -> nn.Module:
    return torchvision.models.get_model(source.model_name, weights=None, **options)


def _check_names(source: ExportSource, own: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Raise unless the model has all weights, and beside them only children that the backbone lacks."""
    if unknown := [name for name in own if name not in theirs]:
        raise _unknown(source, f"torchvision's {source.model_name} has no weights {unknown[0]}")
    for name, value in own.items():
        if value.shape != theirs[name].shape:
            here, there = tuple(value.shape), tuple(theirs[name].shape)
            raise _unknown(source, f"{name} is {here}, and {there} in torchvision")
    children = {name.partition(".")[0] for name in own}
    if missing := [name for name in theirs.keys() - own.keys() if name.partition(".")[0] in children]:
        raise _unknown(source, f"the backbone has no weights {sorted(missing)[0]}")


def _unknown(source: ExportSource, reason: str) -> ValueError:
    may = ", and timm does for most models" if source.target == TIMM else ""
    return ValueError(
        f"format=torchvision cannot hold {source.target}: {reason}; formats onnx and hf work{may}"
    )
