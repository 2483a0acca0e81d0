"""A run folder that may come from someone else: what its config may say, and what may lie in it.

Nothing of it names code but this project's, looks into the environment, or makes a run write elsewhere.
Imports no torch.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_lightning.config.identity import leaves, rename_targets
from ssl_lightning.config.targets import check_targets
from ssl_lightning.core.cache import cache_root
from ssl_lightning.core.untrusted import MAX_DEPTH, read_text

MAX_BYTES = 1 << 20  # of a config; those of this project have some 5 kB
MAX_FILES = 100_000  # of a run folder
GROUPS = ("task", "data", "backbone", "optimizer", "scheduler", "trainer", "choices")
READ_ONLY = ("data", "init_from", "weights", "checkpoint", "prefix_map", "overrides")  # not written to
READ_ONLY_KEYS = ("probe.embedding.folder", "task.vgg_weights")
CACHES = ("data.root", "task.cache_dir")
UNUSED = ("output_dir", "folder", "name", "resume", "run")  # a run that exists goes by its own folder
PLACE = re.compile(r"(dir|dirpath|folder|path)$")  # keys of what is written to
CHOICE = re.compile(r"[\w./+-]{1,100}")
CACHED = (
    "cifar10", "stl10", "fashion_mnist", "voc2007", "voc2012", "folders", "packed", "permutations",
    "ab_priors",
)  # fmt: skip


def load_config(path: Path) -> DictConfig:
    """Read a config that is resolved: of plain values, without references, aliases, or classes of YAML.

    Its `overrides` are texts of the command line, and may hold what looks like a reference: read them by
    `given_overrides`, which leaves them alone.

    Raises:
        ValueError: It is something else; names the file.
    """
    try:
        text = read_text(path, MAX_BYTES)
        _check_events(text)
        config = OmegaConf.create(text)
        content = cast(dict[str, Any], OmegaConf.to_container(config))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read as a config: {reason}") from None
    groups = [content.get(key) for key in GROUPS] if isinstance(content, dict) else [None]
    whole = all(isinstance(group, dict) for group in groups) and "overrides" in content
    if not whole or not isinstance(content.get("run_dir"), str):
        raise ValueError(f"{path} is not the config of a run of this project")
    overrides = content.pop("overrides")
    if not isinstance(overrides, list) or not all(isinstance(each, str) for each in overrides):
        raise ValueError(f"{path}: overrides is not a list of texts")
    for key, value in leaves(content).items():
        for word in (key, *map(str, value if isinstance(value, list) else [value])):
            if "${" in word or word == "???":
                raise ValueError(
                    f"{path}: {key} is {word!r}; a run folder holds a config that is resolved, and nothing "
                    "of it is looked up in the environment of whoever reads it"
                )
    named = cast(DictConfig, OmegaConf.create(rename_targets(content)))
    named.overrides = overrides
    return named


def given_overrides(cfg: DictConfig) -> list[str]:
    """The overrides that a run was composed with, as they were given."""
    return cast(list[str], OmegaConf.to_container(cfg.overrides))


def check_config(config: Mapping[str, Any], folder: Path, source: Path, given: Iterable[str] = ()) -> None:
    """Refuse a config that names foreign code, would write outside of its folder, or would fetch weights.

    Args:
        config: Of plain dictionaries and lists.
        folder: The run folder.
        source: The file that the config is from.
        given: Dotted keys that whoever runs it gave on the command line: they know what they want.

    Raises:
        ValueError: Names the key.
    """
    check_targets(config, source)
    for key, value in config["choices"].items():
        if value is not None and not CHOICE.fullmatch(str(value)):
            raise ValueError(f"{source}: choices.{key} is {value!r}, which is no name of a choice")
    home = os.path.realpath(folder)
    for key, value in leaves(dict(config)).items():
        group = key.partition(".")[0]
        if (
            group in (*READ_ONLY, *UNUSED)
            or key in (*READ_ONLY_KEYS, *CACHES, *given)
            or not isinstance(value, str)
        ):
            continue
        parts = Path(value).parts
        elsewhere = os.path.isabs(value) or value.startswith("~") or ".." in parts or PLACE.search(key)
        if elsewhere and not _inside(value, home):
            raise ValueError(
                f"{source} would write to {value!r} ({key}), which is not in {folder}; if that is "
                f"meant, give {key}= on the command line"
            )
    trained = any((folder / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))
    if config["backbone"].get("pretrained") and not trained and "backbone.pretrained" not in given:
        raise ValueError(
            f"{source} would fetch published weights (backbone.pretrained); if that is meant, give "
            "backbone.pretrained=true on the command line, of train.py resume= or of evaluate.py without run="
        )
    for key in CACHES:
        group, _, name = key.partition(".")
        root = config[group].get(name)
        if root is not None and key not in given and not is_cache(root):
            raise ValueError(
                f"{source} names the cache {root!r} ({key}), which is not here, or is no cache of this "
                f"project; give {key}= on the command line"
            )


def check_folder(folder: Path) -> None:
    """Refuse a run folder out of which links lead, which writing would follow, or that holds more than files.

    Raises:
        ValueError: Names the first such entry.
    """
    home, count = os.path.realpath(folder), 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path, count = os.path.join(place, name), count + 1
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode) and not _inside(path, home):
                raise ValueError(
                    f"{path} is a link that leads out of the run folder, and a run writes there; put what it "
                    "leads to in its place"
                )
            if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(f"{path} is a pipe, socket or device; remove it")
            if count > MAX_FILES:
                raise ValueError(f"{folder} holds more than {MAX_FILES:,} files, which no run leaves")


def moved(node: Any, old: str, new: str) -> Any:
    """Write the folder's new place into every path that begins with its old one."""
    if isinstance(node, dict):
        return {key: moved(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [moved(value, old, new) for value in node]
    if isinstance(node, str) and (node == old or node.startswith(old + "/")):
        return new + node[len(old) :]
    return node


def _check_events(text: str) -> None:
    """Refuse aliases, by which a small file makes a large config, and deep nesting; nothing is built yet."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias (*{event.anchor}), which no config of a run has")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _inside(path: str, home: str) -> bool:
    real = os.path.realpath(path)
    return os.path.isabs(path) and (real == home or real.startswith(home + os.sep))


def is_cache(root: Any) -> bool:
    """Whether a folder is where this user keeps data, or one where this project has put some."""
    place = Path(str(root)).expanduser()
    return place.absolute() == cache_root() or any((place / name).is_dir() for name in CACHED)
