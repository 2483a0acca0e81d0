"""Shortcut audit: a task with all its guards against shortcuts, then without each guard in turn."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig

from ssl_lightning.artifacts.results import Results, read_results
from ssl_lightning.artifacts.run_folder import CONFIG, RESULTS
from ssl_lightning.config.keys import KEYS
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.entry import child_environment, command_line
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.previous_runs import finished_facts
from ssl_lightning.launch.train import locked_new
from ssl_lightning.report.audit import ALL, Row, audit_rows, print_audit, write_audit

PLAN_NAME = "audit.json"
OWN = "audit."  # prefix of the audit's own keys
SET = tuple(key.name for key in KEYS if key.audit_sets)  # keys that the audit sets for each row
INSTEAD = {key.name: key.audit_use for key in KEYS if key.audit_use}  # refused keys and their replacements


def run_audit(cfg: DictConfig) -> list[Row]:
    """Run the unfinished rows of an audit, then print its table and write it to the folder.

    Raises:
        RunError: An audit refuses an override, the task lacks a guard, the folder holds another audit, or a
            run failed.
    """
    overrides = list(HydraConfig.get().overrides.task)
    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    for key in map(_key, overrides):
        if key in INSTEAD:
            raise RunError(f"error: {key}= cannot be given to an audit; use {INSTEAD[key]}")
    given = [o for o in overrides if not o.lstrip("+").startswith(OWN) and _key(o) not in SET]
    rows = {ALL: [], **guards_off(cfg.task._target_, cfg.audit.guards)}
    plan = {"overrides": given, "rows": rows, "seeds": list(cfg.audit.seeds)}
    with locked_new(folder, cfg, may_exist=True) as (folder, _), planned(folder / PLAN_NAME, plan):
        found = {
            name: [run_row(folder, name, seed, [*given, *off]) for seed in cfg.audit.seeds]
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
        raise RunError(f"error: {target.rpartition('.')[2]} has no guards; audit a patch task: task=jigsaw")
    if wrong := [name for name in chosen or () if name not in guards]:
        raise RunError(f"error: audit.guards has {', '.join(wrong)}; the task has {', '.join(guards)}")
    return {
        name: [f"task.{key}={'null' if value is None else value}" for key, value in guards[name].items()]
        for name in (chosen or guards)
    }


@contextlib.contextmanager
def planned(path: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Remember the plan of an audit, and forget it if the first run is refused, so that its name is free."""
    remember(path, plan)
    try:
        yield
    finally:
        if not any(path.parent.glob(f"*/{CONFIG}")):
            path.unlink()


def remember(path: Path, plan: dict[str, Any]) -> None:
    """Write the plan of an audit, or check it against an existing one.

    Raises:
        RunError: The folder holds another plan.
    """
    if path.exists():
        if json.loads(path.read_text()) != plan:
            raise RunError(f"error: {path.parent} holds an audit of another command; give another name=")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(plan, indent=1) + "\n")


def run_row(folder: Path, row: str, seed: int, overrides: Sequence[str]) -> Results:
    """Run or resume one row unless it is finished; return its results.

    A row is a plain training command in a separate process, so that a user can repeat it by hand.

    Raises:
        RunError: The run failed; earlier rows are kept.
    """
    place = folder / f"{row.replace(' ', '_')}-{seed}"
    if finished_facts(place) is None:
        if (place / CONFIG).exists():
            arguments = [f"resume={place}"]
        else:
            own = [f"seed={seed}", f"output_dir={folder}", f"folder={place.name}", "probe_untrained=true"]
            arguments = [*overrides, *own]
        print(f"\n{row}, seed {seed}: {command_line('train')} {shlex.join(arguments)}", flush=True)
        command = [sys.executable, "-P", "-m", "ssl_lightning", "train", *arguments]
        done = subprocess.run(command, env=child_environment(), check=False)
        if done.returncode:
            raise RunError(
                f"error: the run {row!r} with seed {seed} failed (exit status {done.returncode}); "
                f"the same command with name={folder.name} continues the audit"
            )
    return read_results(place / RESULTS)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
