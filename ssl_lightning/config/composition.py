"""Drop what config files say of options that are not chosen.

A benchmark, an experiment or a budget sets keys of the probes, the data set and the backbone that it names.
The command line, or another of these files, may choose others. Like `launch`, without torch.
"""

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

LISTS = ("probe", "logger", "callbacks")  # groups of which several options are chosen at once
SINGLE = ("task", "data", "backbone", "optimizer", "scheduler")  # whose files list every key


def drop_unchosen(cfg: DictConfig, hydra: HydraConf | DictConfig) -> DictConfig:
    """Return a composed config without what its files say of options that are not chosen.

    Args:
        cfg: Composed, not resolved, not changed.
        hydra: Hydra's own part of it, with the overrides of the command line and the choices.

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
    """Names of the entries that build something, and that no list on the command line replaces.

    An entry without a `_target_` is what a file says of an option that is not in the list. An option that a
    file adds under a name of its own (`/probe@probe.paper_conv: nonlinear`) is of the list that the file
    chooses, which a list on the command line replaces.
    """
    targets = [
        str(n) for n, entry in entries.items() if isinstance(entry, DictConfig) and "_target_" in entry
    ]
    if not any(each.key_or_group == group and each.package is None for each in overrides):
        return targets
    own = {each.package for each in overrides if each.key_or_group == group}
    return [name for name in targets if f"{group}@{group}.{name}" not in choices or f"{group}.{name}" in own]


def _check_not_given(group: str, name: str, chosen: Sequence[str], overrides: Sequence[Override]) -> None:
    """Refuse keys of an option that the command line does not choose.

    Raises:
        RunError: One is given; the message says how the option is chosen, or which options there are.
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
    """Keys at or under a place of the config that the command line sets."""
    keys = [str(each.key_or_group) for each in overrides if not each.is_delete()]
    return [key for key in keys if f"{key}.".startswith(f"{place}.")]


def _keys_of_others(node: DictConfig, group: str, choice: str | None) -> set[str]:
    """Keys that the file of the chosen option has not, and that of another option has."""
    options = _options(group)
    if choice not in options:  # none, or one of the user's own
        return set()
    keys = {str(key) for key in node} - _keys(group, choice)
    return keys & set().union(*(_keys(group, option) for option in options)) if keys else keys


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@cache
def _keys(group: str, option: str) -> frozenset[str]:
    return frozenset(str(key) for key in OmegaConf.load(conf_dir() / group / f"{option}.yaml"))
