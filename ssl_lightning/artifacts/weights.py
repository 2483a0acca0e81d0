"""Backbone weights: export with a config, and strict loading from many kinds of files."""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ssl_lightning.artifacts.checkpoints import MAX_BYTES, ForeignObjectError, load_checkpoint, resume_point
from ssl_lightning.artifacts.input_transform import InputTransform
from ssl_lightning.artifacts.layouts import advice, find_backbone, rename
from ssl_lightning.artifacts.run_folder import BACKBONE, BACKBONE_CONFIG, no_run_folder
from ssl_lightning.artifacts.state_dicts import mismatches, some
from ssl_lightning.config.trust import TRUST, is_trusted, known_targets
from ssl_lightning.config.types import accepted, check_values
from ssl_lightning.core.atomic_files import atomic_file, write_json
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.untrusted import check_plain, check_schema, read_json

BACKBONES = "ssl_lightning.networks."  # prefix of the allowed targets of an exported backbone
SCHEMA = 1  # of backbone.json
MAX_CONFIG = 1 << 20  # bytes of backbone.json
PLAIN = ("model", "state_dict")  # keys of dictionaries with weights that names do not repeat
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".tar")
SAVE_TENSORS = (
    "import sys, torch; from torch.utils._pytree import tree_map; "
    'c = torch.load(sys.argv[1], "cpu", weights_only=False); '
    'only = lambda x: x if torch.is_tensor(x) else x.state_dict() if hasattr(x, "state_dict") else None; '
    "torch.save(tree_map(only, c), sys.argv[2])"
)
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
    path = Path(path).expanduser()
    file = weights_file(path)
    if not path.is_file() and file.name != HF_WEIGHTS:
        check_run(path)
    beside = file.with_name(BACKBONE_CONFIG if file.name != HF_WEIGHTS else HF_CONFIG)
    try:
        content = read_json(beside, MAX_CONFIG)
        check_schema(content, SCHEMA)
        config = content["backbone"]
        if not isinstance(config, dict) or "_target_" not in config:
            raise ValueError("backbone has no _target_")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{beside} is needed beside {file.name} and cannot be read: {error}") from error
    backbone, state = build_network(config, beside), read_state(file)
    if wrong := mismatches(backbone.state_dict(), state):
        raise ValueError(f"{file} does not fit the backbone: {'; '.join(wrong)}")
    backbone.load_state_dict(state)
    attach_transform(backbone, read_transform(content, beside) if "input" in content else None)
    return backbone.eval()


def check_run(folder: Path) -> None:
    """Raise ValueError if a run folder is absent, or the run has not written its backbone yet."""
    if not folder.is_dir():
        raise ValueError(no_run_folder(folder))
    if not (folder / BACKBONE).is_file():
        raise ValueError(
            f"{folder} has no {BACKBONE}; finish the run first: {command_line('train')} resume={folder}"
        )


def weights_file(path: Path) -> Path:
    """Return the file of the weights of a backbone in a folder, or the file itself."""
    if not path.is_dir():
        return path
    hf = path / HF_WEIGHTS
    return hf if hf.exists() and not (path / BACKBONE).exists() else path / BACKBONE


def config_beside(path: Path) -> Path:
    """Return where the `backbone.json` of a folder, or of a file of weights, would be."""
    return (path if path.is_dir() else path.parent) / BACKBONE_CONFIG


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
    """Load all weights of a backbone from a file, or none.

    The names in the file may have any prefix (`layouts.find_backbone`). Heads and copies are left out.

    Args:
        backbone: The backbone.
        path: A run folder, a `.safetensors` file, a checkpoint of this project, or any file of torch with
            weights in dictionaries.
        prefix_map: Prefix of names in the file, as `read_state` returns them -> prefix in the backbone. None
            drops the weights: `{"module.encoder_q.": "", "fc.": None}`. The longest matching prefix counts.
        state: Result of `read_state` for the file, if it was read before.

    Returns:
        One line that describes the loaded weights.

    Raises:
        ValueError: The file cannot be read, several backbones of it fit, or names or shapes differ; the
            backbone is unchanged.
    """
    state = read_state(Path(path)) if state is None else state
    renamed = rename(state, prefix_map or {})
    own = backbone.state_dict()
    found = find_backbone(own, renamed, renamed.keys() - state.keys())
    beside = {name: renamed[name] for name in found.unexpected}
    if report := mismatches(own, found.state | beside):
        filled = found.state.keys() - found.reading.names.keys()  # counters that the file may lack
        raise ValueError(
            f"{path} does not fit the backbone: it has {len(found.reading.names)} of its "
            f"{len(own) - len(filled)} weights; "
            + "; ".join([*_network_of(Path(path)), *report, *advice(own, renamed, found)])
        )
    if found.rivals:
        prefixes = [found.reading.prefix, *found.rivals]
        raise ValueError(
            f"{path} holds {len(prefixes)} backbones that fit, below {' and '.join(prefixes)}; choose one: "
            f"'prefix_map={{{prefixes[0]}:\"\"}}'"
        )
    backbone.load_state_dict(found.state)
    layout = f" ({found.reading.layout})" if found.reading.layout else ""
    left_out = f"; left out {len(found.left_out)}: {some(found.left_out)}" if found.left_out else ""
    return f"{len(own)} of {len(own)} weights from {path}{layout}{left_out}"


def _network_of(path: Path) -> list[str]:
    """Name the backbone of the run folder or export that holds some weights, if its `backbone.json` does."""
    try:
        config = dict(read_json(config_beside(path), MAX_CONFIG)["backbone"])
        name = str(config.pop("_target_")).rpartition(".")[2]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [f"they are of {name}({', '.join(f'{key}={value}' for key, value in config.items())})"]


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file or a run folder, without running code of the file.

    Returns:
        The weights by name. Names in nested dictionaries begin with the keys of these, joined by dots, but
        for the keys `state_dict` and `model`.

    Raises:
        ValueError: The file is missing, torn, holds no weights, or would run code.
    """
    path = path.expanduser()
    if path.is_dir():
        file = weights_file(path) if weights_file(path).exists() else resume_point(path)
        if file is None:
            raise ValueError(f"{path} holds neither {BACKBONE} nor a checkpoint{_files_of(path)}")
        return read_state(file)
    if not os.path.lexists(path):
        raise ValueError(f"{path} is not there; give a run folder, a .safetensors, .ckpt, .pt or .pth")
    if path.suffix == ".safetensors":
        try:
            check_plain(path, MAX_BYTES)
            return load_file(path)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is torn or not a safetensors file: {error}") from error
    try:
        content = load_checkpoint(path)
    except ForeignObjectError as error:
        raise ValueError(f"{error}; if you trust the file, {_save_tensors(path)}") from error
    try:
        state = dict(_tensors(content, "", {id(content)}))
    except RecursionError:
        raise ValueError(f"{path} holds dictionaries that are nested too deeply") from None
    if not state:
        raise ValueError(f"{path} holds no weights; its keys are {some(list(map(str, content)))}")
    return state


def _tensors(content: Mapping[Any, Any], prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dictionaries with their names; `seen` has the ids of read dictionaries."""
    for key, value in content.items():
        if isinstance(value, Tensor) and isinstance(key, str):
            yield prefix + key, value
        elif isinstance(value, Mapping) and isinstance(key, str) and id(value) not in seen:
            below = prefix if key in PLAIN else f"{prefix}{key}."
            seen.add(id(value))
            yield from _tensors(value, below, seen)


def _files_of(folder: Path) -> str:
    """Name the files of weights in a folder, for a message."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    return f"; give one of its files: {some(found)}" if found else ""


def _save_tensors(path: Path) -> str:
    """Return the command that saves the tensors of a file without the objects beside them."""
    alone = path.with_suffix(".tensors.pth")
    files = shlex.join([str(path), str(alone)])
    return f"save its tensors alone, then give {alone}: python -c '{SAVE_TENSORS}' {files}"
