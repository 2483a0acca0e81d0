"""Identity of a config: what of it is science, its digests, and how two configs differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ABSENT = "(absent)"  # a key of a config that another has
# Targets in the configs of old runs, and their names today
RENAMED = {
    "ssl_lightning.preparation.Preparation": "ssl_lightning.features.prepare.Preparation",
    "ssl_lightning.optim.constant": "ssl_lightning.engine.optim.constant",
    "ssl_lightning.optim.cosine": "ssl_lightning.engine.optim.cosine",
    "ssl_lightning.optim.multistep": "ssl_lightning.engine.optim.multistep",
    "ssl_lightning.optim.one_cycle": "ssl_lightning.engine.optim.one_cycle",
}
# Where a run computes and writes and what it shows of itself, not what it computes
NOT_SCIENCE = (
    "name",
    "run_dir",
    "folder",
    "output_dir",
    "logger",
    "callbacks",
    "objective",
    "diverged",
    "deterministic",
    "compile",
    "cuda_graphs",
    "skip_finished",
    "go_on",
    "benchmark",
    "overrides",
)
NOT_SCIENCE_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "launcher", "log_every_n_steps")
NOT_SCIENCE_DATA = ("root", "num_workers", "device_resident")


def science(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that changes what is computed."""
    left_out = {"trainer": NOT_SCIENCE_TRAINER, "data": NOT_SCIENCE_DATA}
    kept = {key: value for key, value in config.items() if key not in NOT_SCIENCE}
    for group, keys in left_out.items():
        kept[group] = {key: value for key, value in config.get(group, {}).items() if key not in keys}
    return kept


def config_sha256(config: dict[str, Any]) -> str:
    """Digest of everything in a resolved config that changes what is computed."""
    return _digest(science(config))


def series_sha256(config: dict[str, Any]) -> str:
    """Digest of the same without the seeds: runs of a series differ in nothing else."""
    kept = science(config)
    kept["data"] = {key: value for key, value in kept["data"].items() if key != "seed"}
    return _digest({key: value for key, value in kept.items() if key != "seed"})


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two resolved configs and changes what is computed, a line per key.

    >>> differences({"seed": 0, "optimizer": {"lr": 0.1}}, {"seed": 0, "optimizer": {"lr": 0.2}})
    ['optimizer.lr: 0.1 -> 0.2']
    """
    old, new = leaves(science(before)), leaves(science(after))
    return [
        f"{key}: {old.get(key, ABSENT)} -> {new.get(key, ABSENT)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ABSENT) != new.get(key, ABSENT)
    ]


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by dotted name.

    >>> leaves({"a": {"b": 1}, "c": []})
    {'a.b': 1, 'c': []}
    """
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def rename_targets(node: Any, names: Mapping[str, str] = RENAMED) -> Any:
    """Copy a config with renamed `_target_`s; by default old names become those of today.

    >>> rename_targets({"_target_": "ssl_lightning.optim.cosine", "warmup": 0.1})
    {'_target_': 'ssl_lightning.engine.optim.cosine', 'warmup': 0.1}
    """
    if isinstance(node, Mapping):
        return {
            key: names.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else rename_targets(value, names)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [rename_targets(value, names) for value in node]
    return node


def _digest(content: dict[str, Any]) -> str:
    """Digest of a config, under the names that its targets had when the first digests were stored."""
    named = rename_targets(content, {new: old for old, new in RENAMED.items()})
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()
