"""Identity of a config: its scientific keys, their digests, and differences between two configs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ssl_lightning.config.keys import KEYS

ABSENT = "(absent)"  # value of a key that only the other config has
# `_target_`s in configs of old runs, and their current names
RENAMED = {
    "ssl_lightning.preparation.Preparation": "ssl_lightning.features.prepare.Preparation",
    "ssl_lightning.optim.constant": "ssl_lightning.engine.optim.constant",
    "ssl_lightning.optim.cosine": "ssl_lightning.engine.optim.cosine",
    "ssl_lightning.optim.multistep": "ssl_lightning.engine.optim.multistep",
    "ssl_lightning.optim.one_cycle": "ssl_lightning.engine.optim.one_cycle",
}
# Keys in configs of old runs, and their current names, by the `_target_` that has them
RENAMED_KEYS = {
    "ssl_lightning.probes.segmentation.SegmentationProbe": {"trunk_lr": "backbone_lr"},
    "ssl_lightning.probes.detection.DetectionProbe": {"trunk_lr": "backbone_lr"},
}
# Keys that old configs lack, with the values that change nothing, the default first
ADDED: dict[str, tuple[Any, ...]] = {
    "data.value_range": (None,),
    "data.near_duplicates": ("ignore", "report"),
    "task.on": ("tiles",),
    "task.freeze_until": (0.0,),
    "task.backbone_lr_factor": (1.0,),
    "task.adversarial_loss": ("non_saturating",),
    "task.discriminator_norm": ("batch",),
    "task.discriminator_head": ("average",),
    "task.discriminator_steps": (1,),
    "task.discriminator_augment": ([],),
    "task.discriminator_sees": (None,),
    "task.r1": (0.0,),
    "task.discriminator_rotation": (0.0,),
    "task.generator_rotation": (0.2,),
    "task.input_noise": (0.0,),
    "probe.rankme.lidar_images": (1000,),
    "probe.rankme.lidar_views": (10,),
    "probe.segmentation.fractions": (None,),
    "probe.segmentation.draws": (3,),
    "probe.detection.fractions": (None,),
    "probe.detection.draws": (3,),
    "probe.linear.calibration": (False,),
    "probe.linear.corruptions": ([],),
}
# Keys of these tasks whose default has changed since; a config without them ran with the first value above
CHANGED = ("adversarial_loss", "discriminator_norm", "discriminator_head")
ADVERSARIAL = (
    "ssl_lightning.tasks.inpainting.Inpainting",
    "ssl_lightning.tasks.super_resolution.SuperResolution",
)
NOT_SCIENCE = tuple(key.name for key in KEYS if not key.science)  # keys of where and how a run computes
SPLIT = ("trainer", "data")  # groups where only some keys are science


def science(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved config that affects results."""
    kept = {key: value for key, value in config.items() if key not in NOT_SCIENCE}
    for group in SPLIT:
        values = config.get(group, {})
        kept[group] = {key: value for key, value in values.items() if f"{group}.{key}" not in NOT_SCIENCE}
    return _without_added(kept)


def _without_added(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leave out the keys of `ADDED` at values that change nothing."""
    return {
        key: _without_added(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in node.items()
        if value not in ADDED.get(f"{prefix}{key}", ())
    }


def config_sha256(config: dict[str, Any]) -> str:
    """Return the digest of the part of a resolved config that affects results."""
    return _digest(science(config))


def series_sha256(config: dict[str, Any]) -> str:
    """Return the digest without the seeds, equal for all runs of a series."""
    kept = science(config)
    kept["data"] = {key: value for key, value in kept["data"].items() if key != "seed"}
    return _digest({key: value for key, value in kept.items() if key != "seed"})


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the differences between two resolved configs that affect results, one line per key.

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
    """Return the leaves of nested dictionaries by dotted name.

    >>> leaves({"a": {"b": 1}, "c": []})
    {'a.b': 1, 'c': []}
    """
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def with_current_names(node: Any) -> Any:
    """Copy a config of an old run with the current names of its keys and `_target_`s.

    >>> with_current_names({"_target_": "ssl_lightning.optim.cosine", "warmup": 0.1})
    {'_target_': 'ssl_lightning.engine.optim.cosine', 'warmup': 0.1}
    """
    return _renamed(node, RENAMED, RENAMED_KEYS)


def _renamed(node: Any, targets: Mapping[str, str], keys: Mapping[str, Mapping[str, str]]) -> Any:
    if isinstance(node, Mapping):
        target = node.get("_target_")
        names = keys.get(target, {}) if isinstance(target, str) else {}
        return {
            names.get(key, key): targets.get(value, value)
            if key == "_target_" and isinstance(value, str)
            else _renamed(value, targets, keys)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_renamed(value, targets, keys) for value in node]
    return node


def with_former_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return a stored config with the keys it lacks whose default has changed since, at their values then.

    >>> task = {"_target_": "ssl_lightning.tasks.inpainting.Inpainting", "discriminator_norm": "none"}
    >>> found = with_former_defaults({"task": task})["task"]
    >>> found["adversarial_loss"], found["discriminator_norm"]
    ('non_saturating', 'none')
    """
    if config["task"].get("_target_") not in ADVERSARIAL:
        return config
    former = {key: ADDED[f"task.{key}"][0] for key in CHANGED}
    return config | {"task": former | config["task"]}


def _digest(content: dict[str, Any]) -> str:
    """Return the digest of a config under its old names, so that stored digests stay valid."""
    keys = {target: _inverse(names) for target, names in RENAMED_KEYS.items()}
    named = _renamed(content, _inverse(RENAMED), keys)
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}
