"""Folder that `timm.create_model("local-dir:...", pretrained=True)` loads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_lightning.artifacts.export.source import TIMM, ExportSource
from ssl_lightning.artifacts.weights import write_weights
from ssl_lightning.core.atomic_files import write_json

KEPT = ("first_conv", "classifier", "fixed_input_size", "pool_size")  # of the model's own description


def write(source: ExportSource, folder: Path) -> Callable[[Tensor], list[Tensor]]:
    """Write `config.json` and `model.safetensors`; return the stage maps of timm's model.

    The model has no classifier (`num_classes` 0), because none was pretrained. A final layer norm, which a
    backbone does not have, keeps its initial weights.

    Args:
        source: A backbone of timm.
        folder: An empty folder.

    Raises:
        ValueError: timm has no such model, or it has weights that the backbone lacks.
    """
    import timm

    if source.target != TIMM:
        raise ValueError(
            f"format=timm cannot hold {source.target}, which timm does not have; formats onnx and hf work"
        )
    options = {"in_chans": source.transform.channels, **source.options}
    model: Any = timm.create_model(source.model_name, num_classes=0, **options)
    write_weights(folder / "model.safetensors", _state(source, model))
    described = {key: model.pretrained_cfg[key] for key in KEPT if model.pretrained_cfg.get(key) is not None}
    config = {
        "architecture": source.model_name,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": options,
        "pretrained_cfg": {**described, **_input(source)},
    }
    write_json(folder / "config.json", config)
    info: Any = source.backbone.feature_info
    load = partial(timm.create_model, f"local-dir:{folder}", pretrained=True, num_classes=0)
    if hasattr(info, "out_indices"):
        return source.maps_of(load(features_only=True, out_indices=info.out_indices).eval())
    return source.maps_of(load().eval(), source.stages)


def _input(source: ExportSource) -> dict[str, Any]:
    """Describe the input as timm does. L of CIE Lab is for timm a grey picture with pixels L / 100."""
    transform = source.transform
    scale = 100 if transform.colour == "L" else 1
    return {
        "num_classes": 0,
        "input_size": [transform.channels, transform.image_size, transform.image_size],
        "interpolation": "bicubic",
        "crop_pct": transform.crop_ratio,
        "crop_mode": "center",
        "mean": [value / scale for value in transform.mean],
        "std": [value / scale for value in transform.std],
    }


def _state(source: ExportSource, model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the backbone under the names of the model.

    `features_only` models wrap the network as `model`, or join the names of nested layers by underscores.

    Raises:
        ValueError: The names do not match, or the backbone lacks a matrix of the model.
    """
    own = {_joined(name): value for name, value in source.backbone.state_dict().items()}
    theirs = model.state_dict()
    state = {name: own.pop(_joined(name), None) for name in theirs}
    lacking = [name for name, value in state.items() if value is None and theirs[name].ndim > 1]
    if own or lacking:
        found = f"has no weights {lacking[0]}" if lacking else f"alone has weights {next(iter(own))}"
        raise ValueError(
            f"format=timm cannot hold this {source.model_name}, since the backbone {found}; formats onnx and "
            "hf work"
        )
    return {name: theirs[name] if value is None else value for name, value in state.items()}


def _joined(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")
