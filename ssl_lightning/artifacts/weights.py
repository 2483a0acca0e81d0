"""Backbone weights: export with a config, and strict loading from many kinds of files."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ssl_lightning.artifacts.checkpoints import MAX_BYTES, load_checkpoint, resume_point
from ssl_lightning.artifacts.run_folder import BACKBONE, BACKBONE_CONFIG
from ssl_lightning.artifacts.state_dicts import mismatches
from ssl_lightning.config.types import accepted, check_values
from ssl_lightning.core.atomic_files import atomic_file, write_json
from ssl_lightning.core.untrusted import check_plain, check_schema, read_json

BACKBONES = "ssl_lightning.networks."  # prefix of the allowed targets of an exported backbone
SCHEMA = 1  # of backbone.json
MAX_CONFIG = 1 << 20  # bytes of backbone.json


def save_backbone(folder: Path, backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Write `backbone.safetensors`, and `backbone.json` to rebuild the backbone.

    Args:
        folder: The run folder.
        backbone: The backbone.
        config: Under `backbone`, its resolved config with `_target_` and `in_channels`; further keys describe
            its input.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    with atomic_file(folder / BACKBONE) as temporary:
        temporary.write_bytes(save(state, {"format": "pt"}))
    write_json(folder / BACKBONE_CONFIG, {"schema": SCHEMA, **config})


def load_backbone(path: str | Path) -> nn.Module:
    """Rebuild an exported backbone, which maps `(B, C, H, W)` normalised floats to a list of stage maps.

    Args:
        path: `backbone.safetensors` or its run folder. `backbone.json` beside it also gives the `input`:
            colours (RGB, grey or L, the lightness of CIE Lab), mean and std.

    Returns:
        The backbone in eval mode, on the CPU.

    Raises:
        ValueError: A file is missing or broken, or its config names anything but a backbone of this package.
    """
    file = Path(path) / BACKBONE if Path(path).is_dir() else Path(path)
    beside = file.with_name(BACKBONE_CONFIG)
    try:
        content = read_json(beside, MAX_CONFIG)
        check_schema(content, SCHEMA)
        config = content["backbone"]
        target = config["_target_"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{beside} is needed beside {file.name} and cannot be read: {error}") from error
    backbone = build_backbone(
        target, {key: value for key, value in config.items() if key != "_target_"}, beside
    )
    load_weights(backbone, file)
    return backbone.eval()


def build_backbone(target: Any, arguments: dict[str, Any], source: Path) -> nn.Module:
    """Build the backbone that `source` describes; only backbones of this package are allowed.

    Args:
        target: Dotted name of the class or function.
        arguments: Its keywords.
        source: File, for the message.

    Raises:
        ValueError: The name or a keyword is not allowed, or the backbone cannot be built.
    """
    if "pretrained" in arguments:
        arguments["pretrained"] = False  # the weights are in the file: download nothing
    make = _backbone_class(target, source)
    kinds, anything = accepted(make)
    try:
        check_values(arguments, kinds, "backbone.", anything)
        backbone = make(**arguments)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{source} names a backbone that cannot be built: {error}") from error
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"{source} names {target!r}, which is not a backbone")
    return backbone


def _backbone_class(target: Any, source: Path) -> Any:
    """Find a backbone by its dotted name; other objects and names imported by its module are refused."""
    module, _, name = str(target).removeprefix(BACKBONES).partition(".")
    found = None
    if str(target).startswith(BACKBONES) and module.isidentifier() and name.isidentifier():
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(BACKBONES + module), name, None)
    if getattr(found, "__module__", None) != BACKBONES + module:
        raise ValueError(f"{source} names {target!r}; only backbones of {BACKBONES}* are built")
    return found


def load_weights(
    backbone: nn.Module,
    path: str | Path,
    *,
    prefix_map: Mapping[str, str | None] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> str:
    """Load all weights of a file into a backbone, or none.

    Args:
        backbone: The backbone.
        path: A run folder, a `.safetensors` file, a checkpoint of this project (its `backbone.*`), or a plain
            state dict of torch (also under the key `state_dict` or `model`).
        prefix_map: Prefix of names in the file -> prefix in the backbone. None drops the weights, such as a
            head's: `{"module.encoder_q.": "", "fc.": None}`. The longest matching prefix counts.
        state: Result of `read_state` for the file, if it was read before.

    Returns:
        One line that describes the loaded weights.

    Raises:
        ValueError: The file cannot be read, or names or shapes differ; the backbone is unchanged.
    """
    state = rename(read_state(Path(path)) if state is None else state, prefix_map or {})
    own = backbone.state_dict()
    report = mismatches(own, state)
    first = next((n for n, w in own.items() if n in state and w.dim() == state[n].dim() == 4), None)
    if first and (takes := own[first].shape[1]) != (taught := state[first].shape[1]):
        report.append(f"it was trained on images with {taught} channels, this backbone takes {takes}")
    if report:
        renaming = '. A prefix_map renames or drops weights: \'prefix_map={"module.":"","fc.":null}\''
        raise ValueError(
            f"{path} does not fit the backbone: it has {len(own.keys() & state.keys())} of its {len(own)} "
            f"weights; {'; '.join(report)}" + renaming * (own.keys() != state.keys())
        )
    backbone.load_state_dict(state)
    return f"{len(state)} of {len(own)} weights from {path}, none missing, none unexpected"


def rename(state: Mapping[str, Tensor], prefix_map: Mapping[str, str | None]) -> dict[str, Tensor]:
    """Replace the prefixes of names; names with a prefix mapped to None are dropped.

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
    """Read the weights of a backbone from a file or a run folder, without running code of the file.

    Raises:
        ValueError: The file is missing, torn, or holds no weights.
    """
    if path.is_dir():
        file = path / BACKBONE if (path / BACKBONE).exists() else resume_point(path)
        if file is None:
            raise ValueError(f"{path} holds neither {BACKBONE} nor a checkpoint")
        return read_state(file)
    if not os.path.lexists(path):
        raise ValueError(f"{path} is not there; give a run folder, a .safetensors, .ckpt, .pt or .pth")
    if path.suffix == ".safetensors":
        try:
            check_plain(path, MAX_BYTES)
            return load_file(path)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is torn or not a safetensors file: {error}") from error
    content: Any = load_checkpoint(path)
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content.get(key), dict) else content
    state = {n: v for n, v in content.items() if isinstance(n, str) and isinstance(v, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights")
    ours = {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}
    return ours or state
