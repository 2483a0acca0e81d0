"""Checks of an untrusted run folder: its config and its links."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_lightning.config.identity import with_current_names, with_former_defaults
from ssl_lightning.config.keys import KEYS
from ssl_lightning.config.plugins import conf_dirs
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.untrusted import MAX_DEPTH, read_text

MAX_BYTES = 1 << 20  # of a config; a run writes about 5 kB
GROUPS = ("task", "data", "backbone", "optimizer", "scheduler", "trainer", "choices")
NOT_WRITTEN = {key.name for key in KEYS if key.place != "written"}  # groups and keys
CACHES = tuple(key.name for key in KEYS if key.place == "cache")
WRITTEN = re.compile(r"(dir|dirpath|folder|path)$")  # keys of paths that are written to
TRUST = "SSL_LIGHTNING_TRUST"  # environment variable: trusted packages, separated by commas
SPECIAL_KEYS = ("_target_", "_partial_")  # keys of Hydra that this project uses
TARGET = re.compile(r"^\s*_target_:\s*(\S+)", re.MULTILINE)


def load_config(path: Path) -> DictConfig:
    """Read the resolved config of a run, with current names of keys and `_target_`s, and former defaults.

    `overrides` holds the command line as given, which may contain `${`: read it with `given_overrides`.

    Raises:
        ValueError: The file is too large, nested too deeply, or not the config of a run, or it has aliases or
            interpolations.
    """
    try:
        text = read_text(path, MAX_BYTES)
        _check_bounded(text)
        content: Any = OmegaConf.to_container(OmegaConf.create(text))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read as a config: {reason}") from None
    complete = isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in GROUPS)
    if not complete or not isinstance(content.get("run_dir"), str):
        raise ValueError(f"{path} is not the config of a run of this project")
    overrides = content.pop("overrides", None)
    if not isinstance(overrides, list) or not all(isinstance(each, str) for each in overrides):
        raise ValueError(f"{path}: overrides is not a list of texts")
    for key, value in _walk(content):
        word = value if isinstance(value, str) else ""
        if "${" in key + word or word == "???":
            raise ValueError(f"{path}: {key} is {word!r}; a stored config holds resolved values only")
    config = OmegaConf.create(with_former_defaults(with_current_names(content)))
    config.overrides = overrides
    return config


def given_overrides(cfg: DictConfig) -> list[str]:
    """Return the command-line overrides that a run was composed with, unresolved."""
    return cast(list[str], OmegaConf.to_container(cfg.overrides))


def check_trusted(config: Mapping[str, Any], folder: Path, source: Path, given: Collection[str] = ()) -> None:
    """Raise if a stored config names unknown code, writes outside its folder or downloads weights.

    Args:
        config: Resolved, of plain dictionaries and lists.
        folder: The run folder.
        source: File of the config, for the message.
        given: Dotted keys from the command line. The user chose their values, so they are allowed.

    Raises:
        ValueError: The message names the key.
    """
    check_targets(config, source)
    for key, value in _walk(config):
        used = not {key, key.partition(".")[0]} & NOT_WRITTEN
        if used and key not in given and _leads_out(key, value, folder):
            raise ValueError(
                f"{source} would write to {value!r} ({key}), which is not in {folder}; to allow it, "
                f"give {key}= on the command line"
            )
    trained = any((folder / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))
    if config["backbone"].get("pretrained") and not trained and "backbone.pretrained" not in given:
        raise ValueError(
            f"{source} would fetch published weights (backbone.pretrained); to allow it, give "
            f"backbone.pretrained=true on the command line, of {command_line('train')} resume= or of "
            f"{command_line('evaluate')} without run="
        )


def check_targets(config: Any, source: Path) -> None:
    """Raise if a config names code that no known config names and that lies in no trusted package.

    Hydra calls any function of any module by `_target_`. Allowed are the targets that `conf/` of this project
    or of an installed plugin has for the same group, and packages in the variable `SSL_LIGHTNING_TRUST`.

    Args:
        config: Nested dictionaries and lists.
        source: File of the config, for the message.

    Raises:
        ValueError: The message names the first such target and its key.
    """
    known = known_targets()
    for place, value in _walk(config):
        key = place.rpartition(".")[2]
        if key.startswith("_") and key not in SPECIAL_KEYS:
            raise ValueError(
                f"{source} has {place}, which Hydra would act on; allowed are {' and '.join(SPECIAL_KEYS)}"
            )
        allowed = known[place.partition(".")[0]]
        fine = isinstance(value, str) and (value in allowed or is_trusted(value))
        if key == "_target_" and not fine:
            raise ValueError(
                f"{source} would run {value!r} ({place}), which is not in conf/ for that group. "
                f"Trust a package of your own by {TRUST}=<package>; else the file may be malicious"
            )


def is_trusted(target: str) -> bool:
    """Whether a dotted name lies in a package that the environment variable `SSL_LIGHTNING_TRUST` names."""
    return target.startswith(
        tuple(f"{name.strip()}." for name in os.environ.get(TRUST, "").split(",") if name.strip())
    )


def check_links(folder: Path) -> None:
    """Raise if a symbolic link leads out of a run folder, since a run would write through it.

    Raises:
        ValueError: The message names the first such link.
    """
    for path in folder.rglob("*"):
        if path.is_symlink() and not _is_inside(path, folder):
            raise ValueError(f"{path} is a link that leads out of the run folder; replace it by its target")


def known_targets() -> dict[str, set[str]]:
    """Collect the `_target_`s of all configs by group; files directly in `conf/` have `encoding` only."""
    known = defaultdict(set)
    for conf in conf_dirs():
        for path in conf.rglob("*.yaml"):
            group = path.parent.name if path.parent != conf else "encoding"
            known[group].update(TARGET.findall(path.read_text()))
    return known


def _check_bounded(text: str) -> None:
    """Raise ValueError if YAML has aliases or deep nesting, which let a small file take long."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has YAML aliases, which let a small file expand without bound")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _walk(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every node; entries of a list share the key of the list."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{place}.{key}" if place else str(key)
            yield here, value
            yield from _walk(value, here)
    elif isinstance(node, list):
        for value in node:
            yield place, value
            yield from _walk(value, place)


def _leads_out(key: str, value: Any, folder: Path) -> bool:
    """Whether a value is a path outside the folder, or relative to the working directory."""
    if not isinstance(value, str):
        return False
    path = Path(value)
    is_place = path.is_absolute() or value.startswith("~") or ".." in path.parts or WRITTEN.search(key)
    return bool(is_place) and not (path.is_absolute() and _is_inside(path, folder))


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
