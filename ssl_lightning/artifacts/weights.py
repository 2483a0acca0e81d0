"""Backbone weights: export with a config, and strict loading from many kinds of files."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ssl_lightning.artifacts.checkpoints import MAX_BYTES, load_checkpoint, resume_point
from ssl_lightning.artifacts.input_transform import InputTransform
from ssl_lightning.artifacts.run_folder import BACKBONE, BACKBONE_CONFIG
from ssl_lightning.artifacts.state_dicts import mismatches
from ssl_lightning.config.trust import TRUST, is_trusted, known_targets
from ssl_lightning.config.types import accepted, check_values
from ssl_lightning.core.atomic_files import atomic_file, write_json
from ssl_lightning.core.untrusted import check_plain, check_schema, read_json

BACKBONES = "ssl_lightning.networks."  # prefix of the allowed targets of an exported backbone
SCHEMA = 1  # of backbone.json
MAX_CONFIG = 1 << 20  # bytes of backbone.json
HF_WEIGHTS, HF_CONFIG = "model.safetensors", "config.json"  # files of an export for the Hugging Face Hub


def save_backbone(folder: Path, backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Write `backbone.safetensors`, and `backbone.json` to rebuild the backbone.

    Args:
        folder: The run folder.
        backbone: The backbone.
        config: Under `backbone`, its resolved config with `_target_` and `in_channels`; further keys describe
            its input.
    """
    write_weights(folder / BACKBONE, backbone.state_dict())
    write_json(folder / BACKBONE_CONFIG, {"schema": SCHEMA, **config})


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write weights to a `.safetensors` file, atomically."""
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic_file(path) as temporary:
        temporary.write_bytes(save(plain, {"format": "pt"}))


def load_backbone(path: str | Path) -> nn.Module:
    """Rebuild an exported backbone, which maps `(B, C, H, W)` normalised floats to a list of stage maps.

    Its attribute `transform` converts PIL images and tensors to this input (`InputTransform`); it is None if
    `backbone.json` describes no input. A backbone of your own package is built if the environment variable
    `SSL_LIGHTNING_TRUST` names the package.

    Args:
        path: A run folder, its `backbone.safetensors` with `backbone.json` beside it, or a folder that
            `export` wrote in the format `hf`.

    Returns:
        The backbone in eval mode, on the CPU.

    Raises:
        ValueError: A file is missing or broken, or its config names anything but a backbone of this package
            or of a trusted one.

    Example:
        >>> from PIL import Image
        >>> backbone = load_backbone("tests/fixtures/run_8a5cf39")
        >>> images = backbone.transform(Image.new("RGB", (100, 80)))[None]
        >>> images.shape, len(backbone(images))
        (torch.Size([1, 3, 32, 32]), 2)
    """
    file = weights_file(Path(path))
    beside = file.with_name(BACKBONE_CONFIG if file.name != HF_WEIGHTS else HF_CONFIG)
    try:
        content = read_json(beside, MAX_CONFIG)
        check_schema(content, SCHEMA)
        config = content["backbone"]
        if not isinstance(config, dict) or "_target_" not in config:
            raise ValueError("backbone has no _target_")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{beside} is needed beside {file.name} and cannot be read: {error}") from error
    backbone = build_network(config, beside)
    load_weights(backbone, file)
    attach_transform(backbone, read_transform(content, beside) if "input" in content else None)
    return backbone.eval()


def weights_file(path: Path) -> Path:
    """Return the file of the weights of a backbone in a folder, or the file itself."""
    if not path.is_dir():
        return path
    hf = path / HF_WEIGHTS
    return hf if hf.exists() and not (path / BACKBONE).exists() else path / BACKBONE


def read_transform(content: Mapping[str, Any], source: Path) -> InputTransform:
    """Make the transform that the `input` of an exported config describes; `source` is for the message."""
    try:
        return InputTransform.from_config(content["input"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} describes no input of a backbone: {error}") from error


def attach_transform(module: nn.Module, transform: InputTransform | None) -> None:
    """Set the attribute `transform`, not as a submodule: `state_dict` and `modules` stay as they are."""
    object.__setattr__(module, "transform", transform)


def build_network(config: Mapping[str, Any], source: Path) -> nn.Module:
    """Build the network that `_target_` names from the other values, as arguments, without weights.

    Args:
        config: Of a network of this package, or of a trusted one.
        source: File of the config, for messages.

    Raises:
        ValueError: The target is not allowed, or refuses its arguments.
    """
    target = config["_target_"]
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    if "pretrained" in arguments:
        arguments["pretrained"] = False  # the weights are in the file: download nothing
    make = _network_class(target, source)
    kinds, anything = accepted(make)
    try:
        check_values(arguments, kinds, "backbone.", anything)
        network = make(**arguments)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{source} names a backbone that cannot be built: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{source} names {target!r}, which is not a backbone")
    if str(target).startswith(BACKBONES):
        return network
    adapter = importlib.import_module(f"{BACKBONES}adapter")
    return adapter.as_backbone(network, in_channels=arguments.get("in_channels", 3))


def _network_class(target: Any, source: Path) -> Any:
    """Find a network by its dotted name; other objects and names imported by its module are refused."""
    module, _, name = str(target).rpartition(".")
    ours = module.startswith(BACKBONES) and module.removeprefix(BACKBONES).isidentifier()
    found = None
    # the last: of a plugin package
    trusted = ours or is_trusted(str(target)) or str(target) in known_targets()["backbone"]
    if trusted and name.isidentifier():
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            if not ours:
                raise ValueError(f"{source} names {target!r}, which cannot be imported: {error}") from error
    if found is None or (ours and getattr(found, "__module__", None) != module):
        raise ValueError(
            f"{source} names {target!r}; only backbones of {BACKBONES}* are built, and of your own packages "
            f"that the environment variable {TRUST} names: {TRUST}=<package>"
        )
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
        file = weights_file(path) if weights_file(path).exists() else resume_point(path)
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
