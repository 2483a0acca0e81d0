"""Weights of a trunk: exported with the config beside them, and read from many kinds of file, strictly."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ssl_lightning.checkpoints import load_checkpoint, resume_point
from ssl_lightning.files import atomic_file
from ssl_lightning.results import write_json

EXPORT, EXPORT_CONFIG = "backbone.safetensors", "backbone.json"
TRUNKS = "ssl_lightning.networks."  # where the target of an exported trunk may lie
SHOWN = 6  # names in a message


def save_backbone(folder: Path, trunk: nn.Module, config: Mapping[str, Any]) -> None:
    """Write `backbone.safetensors` and, beside it, what rebuilds the trunk.

    Args:
        folder: The run folder.
        trunk: The trunk.
        config: Its resolved config with `_target_` and `in_channels`, under `backbone`; and anything else
            that a user needs to feed it.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in trunk.state_dict().items()}
    with atomic_file(folder / EXPORT) as temporary:
        temporary.write_bytes(save(state, {"format": "pt"}))
    write_json(folder / EXPORT_CONFIG, {"schema": 1, **config})


def load_backbone(path: str | Path) -> nn.Module:
    """Rebuild an exported trunk: `(B, C, H, W)` normalised floats in, the list of stage maps out.

    Args:
        path: `backbone.safetensors`, or the run folder that holds it; `backbone.json` lies beside it
            and also says, under `input`, which colours the trunk takes (RGB, grey or L, the lightness of CIE
            Lab) and by which mean and std they are normalised.

    Returns:
        The trunk in eval mode, on the CPU.

    Raises:
        ValueError: A file is absent or broken, or its config asks for anything but a trunk of ours.
    """
    file = Path(path) / EXPORT if Path(path).is_dir() else Path(path)
    beside = file.with_name(EXPORT_CONFIG)
    try:
        config = json.loads(beside.read_text())["backbone"]
        target = str(config["_target_"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{beside} is needed beside {file.name} and cannot be read: {error}") from error
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    trunk = _trunk_class(target, beside)(**arguments)
    if not isinstance(trunk, nn.Module):
        raise ValueError(f"{beside} asks for {target!r}, which is no trunk")
    load_weights(trunk, file)
    return trunk.eval()


def _trunk_class(target: str, source: Path) -> Any:
    """Find a trunk by its dotted name; the file may name nothing else, nor anything only imported there."""
    module, _, name = target.removeprefix(TRUNKS).partition(".")
    found = None
    if target.startswith(TRUNKS) and module.isidentifier() and name.isidentifier():
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(TRUNKS + module), name, None)
    if getattr(found, "__module__", None) != TRUNKS + module:
        raise ValueError(f"{source} asks for {target!r}; only trunks of {TRUNKS}* are built")
    return found


def load_weights(
    trunk: nn.Module, path: str | Path, *, prefix_map: Mapping[str, str | None] | None = None
) -> str:
    """Load weights from elsewhere into a trunk, all of them or none.

    Args:
        trunk: The trunk.
        path: A run folder, an exported or any other `.safetensors`, a checkpoint of this project (its
            `backbone.*`), or a plain state dict of torch (also under the key `state_dict` or `model`).
        prefix_map: What the names in the file begin with -> what the trunk calls it; None drops these
            weights, as for a head: `{"module.encoder_q.": "", "fc.": None}`. The longest that fits counts.

    Returns:
        One line that says what was loaded.

    Raises:
        ValueError: The file cannot be read, or names or shapes differ; nothing was loaded then.
    """
    state = rename(read_state(Path(path)), prefix_map or {})
    own = trunk.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    findings = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    report = [f"{len(names)} {what}: {_some(names)}" for what, names in findings.items() if names]
    first = next((n for n in own if n in state and own[n].dim() == state[n].dim() == 4), None)
    if first and (takes := own[first].shape[1]) != (taught := state[first].shape[1]):
        report.append(f"it was trained on images of {taught} channels, this trunk takes {takes}")
    if report:
        raise ValueError(
            f"{path} does not fit the trunk, of whose {len(own)} weights it has "
            f"{len(own) - len(missing)}; {'; '.join(report)}. A prefix_map renames or drops weights: "
            '\'prefix_map={"module.":"","fc.":null}\''
        )
    trunk.load_state_dict(state)
    return f"{len(state)} of {len(own)} weights from {path}, none missing, none unexpected"


def rename(state: Mapping[str, Tensor], prefix_map: Mapping[str, str | None]) -> dict[str, Tensor]:
    """Exchange the prefixes of names; those mapped to None are dropped.

    >>> rename({"net.a": 1, "fc.b": 2, "c": 3}, {"net.": "", "fc.": None})
    {'a': 1, 'c': 3}
    """
    renamed = {}
    for name, value in state.items():
        prefix = max((p for p in prefix_map if name.startswith(p)), key=len, default="")
        new = prefix_map.get(prefix, "")
        if new is not None:
            renamed[new + name[len(prefix) :]] = value
    return renamed


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the weights of a trunk from a file or a run folder, without running any code of it.

    Raises:
        ValueError: There is no such file, or it holds no weights.
    """
    if path.is_dir():
        file = path / EXPORT if (path / EXPORT).exists() else resume_point(path)
        if file is None:
            raise ValueError(f"{path} holds neither {EXPORT} nor a checkpoint")
        return read_state(file)
    if not path.exists():
        raise ValueError(f"{path} is not there; give a run folder, a .safetensors, .ckpt, .pt or .pth")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is torn or no safetensors file: {error}") from error
    content: Any = load_checkpoint(path)
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content.get(key), dict) else content
    state = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights")
    ours = {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}
    return ours or state


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
