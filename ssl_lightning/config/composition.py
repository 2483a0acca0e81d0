"""Drop config keys of options that are not chosen; imports no torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from ssl_lightning.config.paths import conf_dir
from ssl_lightning.core.errors import RunError

LISTS = ("probe", "logger", "callbacks")  # groups with several chosen options
SINGLE = ("task", "data", "backbone", "optimizer", "scheduler")  # groups whose files list every key


def drop_unchosen(cfg: DictConfig, hydra: HydraConf | DictConfig) -> DictConfig:
    """Return a copy of a composed config without the keys of options that are not chosen.

    A benchmark, an experiment or a budget sets keys of the probes, the data set and the backbone that it
    names. The command line, or another of these files, may choose other options.

    Args:
        cfg: Composed, not resolved.
        hydra: Hydra's own config, with the overrides of the command line and the choices.

    Raises:
        RunError: The command line sets a key of a probe, logger or callback that is not chosen.
    """
    cfg = copy.deepcopy(cfg)
    overrides = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    choices = hydra.runtime.choices
    with open_dict(cfg):
        for group in LISTS:
            chosen = _chosen(cfg[group], group, overrides, choices)
            for name in [name for name in cfg[group] if name not in chosen]:
                _check_not_given(group, name, chosen, overrides)
                del cfg[group][name]
        for group in SINGLE:
            for key in _keys_of_others(cfg[group], group, choices.get(group)):
                if not _given(f"{group}.{key}", overrides):
                    del cfg[group][key]
    return cfg


def _chosen(
    entries: DictConfig, group: str, overrides: Sequence[Override], choices: Mapping[str, Any]
) -> list[str]:
    """Return the names of the entries with a `_target_` that no list on the command line replaces.

    An entry without a `_target_` holds keys that a file sets for an option outside the list. An option that a
    file adds under its own name (`/probe@probe.paper_conv: nonlinear`) belongs to the list of that file. A
    list on the command line replaces it.
    """
    targets = [
        str(n) for n, entry in entries.items() if isinstance(entry, DictConfig) and "_target_" in entry
    ]
    if not any(each.key_or_group == group and each.package is None for each in overrides):
        return targets
    own = {each.package for each in overrides if each.key_or_group == group}
    return [name for name in targets if f"{group}@{group}.{name}" not in choices or f"{group}.{name}" in own]


def _check_not_given(group: str, name: str, chosen: Sequence[str], overrides: Sequence[Override]) -> None:
    """Raise if the command line sets a key of an option that is not chosen.

    Raises:
        RunError: The message says how to choose the option, or lists the options.
    """
    if keys := _given(f"{group}.{name}", overrides):
        options = _options(group)
        listed = [each for each in (*chosen, name) if each in options]
        fix = (
            f"{group}=[{','.join(listed)}] chooses it"
            if name in options
            else f"options are {', '.join(options)}"
        )
        raise RunError(
            f"error: {keys[0]} is given, and {name} is not chosen in {group}=[{','.join(chosen)}]; {fix}"
        )


def _given(place: str, overrides: Sequence[Override]) -> list[str]:
    """Return the keys at or below `place` that the command line sets."""
    keys = [str(each.key_or_group) for each in overrides if not each.is_delete()]
    return [key for key in keys if f"{key}.".startswith(f"{place}.")]


def _keys_of_others(node: DictConfig, group: str, choice: str | None) -> set[str]:
    """Return keys of `node` that belong to other options of the group but not to the chosen one."""
    options = _options(group)
    if choice not in options:  # none, or the user's own option
        return set()
    keys = {str(key) for key in node} - _keys(group, choice)
    return keys & set().union(*(_keys(group, option) for option in options)) if keys else keys


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@cache
def _keys(group: str, option: str) -> frozenset[str]:
    return frozenset(str(key) for key in OmegaConf.load(conf_dir() / group / f"{option}.yaml"))
