"""Shortcut audit: a task with all its guards against shortcuts, then without each guard in turn."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig

from ssl_lightning.config.composition import command_overrides
from ssl_lightning.config.keys import KEYS
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.rows import key_of, planned, run_row
from ssl_lightning.launch.train import locked_new, removed_if_empty
from ssl_lightning.report.audit import ALL, Row, audit_rows, print_audit, write_audit

OWN = "audit."  # prefix of the audit's own keys
SET = tuple(key.name for key in KEYS if key.audit_sets)  # keys that the audit sets for each row
INSTEAD = {key.name: key.audit_use for key in KEYS if key.audit_use}  # refused keys and their replacements


def run_audit(cfg: DictConfig) -> list[Row]:
    """Run the unfinished rows of an audit, then print its table and write it to the folder.

    Raises:
        RunError: An audit refuses an override, the task lacks a guard, the folder holds another audit, or a
            run failed.
    """
    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    with removed_if_empty(folder):
        return audit_in(folder, cfg, command_overrides(HydraConfig.get()))


def audit_in(folder: Path, cfg: DictConfig, overrides: Sequence[str]) -> list[Row]:
    """Run an audit in its folder; see `run_audit`."""
    for key in map(key_of, overrides):
        if key in INSTEAD:
            raise RunError(f"error: {key}= cannot be given to an audit; use {INSTEAD[key]}")
    seeds = cfg.audit.seeds
    if not isinstance(seeds, Sequence) or not seeds or any(type(seed) is not int for seed in seeds):
        raise RunError(f"error: audit.seeds is {seeds}; a list of whole numbers is needed: audit.seeds=[0,1]")
    given = [o for o in overrides if not o.lstrip("+").startswith(OWN) and key_of(o) not in SET]
    rows = {ALL: [], **guards_off(cfg.task._target_, cfg.audit.guards)}
    plan = {"overrides": given, "rows": rows, "seeds": list(seeds)}
    with locked_new(folder, cfg, may_exist=True) as (folder, _), planned("audit", folder, plan):
        said: set[str] = set()
        found = {
            name: [
                run_row("audit", folder, name, seed, [*given, *off, "probe_untrained=true"], said)
                for seed in seeds
            ]
            for name, off in rows.items()
        }
    table = audit_rows(found, {name: " ".join(off) for name, off in rows.items()})
    command = " ".join([command_line("audit"), *map(shlex.quote, overrides)])
    write_audit(folder / "AUDIT.md", table, command)
    print_audit(table)
    print(f"audit: {folder / 'AUDIT.md'}")
    return table


def guards_off(target: str, chosen: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the overrides that switch off each guard of a task.

    Args:
        target: Class of the task.
        chosen: Names of guards; None for all.

    Raises:
        RunError: The task has no guards, or lacks one of `chosen`.
    """
    guards: Mapping[str, Mapping[str, Any]] = getattr(get_class(target), "guards", {})
    if not guards:
        name = target.rpartition(".")[2]
        raise RunError(
            f"error: {name} has no guards; audit a patch task: task=jigsaw, or declare them: "
            f'{name}.guards = {{"<guard>": {{"<key>": <value that switches it off>}}}}'
        )
    if isinstance(chosen, str):
        raise RunError(f"error: audit.guards is {chosen}; a list is needed: audit.guards=[{chosen}]")
    if wrong := [name for name in chosen or () if name not in guards]:
        raise RunError(f"error: audit.guards has {', '.join(wrong)}; the task has {', '.join(guards)}")
    return {
        name: [f"task.{key}={'null' if value is None else value}" for key, value in guards[name].items()]
        for name in (chosen or guards)
    }
