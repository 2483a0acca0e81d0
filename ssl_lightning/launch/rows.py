"""Rows of an audit or a comparison: complete runs in one folder, each a separate process."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssl_lightning.artifacts.results import Results, read_results
from ssl_lightning.artifacts.run_folder import CONFIG, RESULTS
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.entry import child_environment, command_line
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.previous_runs import finished_facts
from ssl_lightning.launch.ranks import STOP_GRACE_S, Stopped, end_all, signals_raised


@contextlib.contextmanager
def planned(what: str, path: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Remember the plan of the rows, and forget it if the first run is refused, so that its name is free."""
    remember(what, path, plan)
    try:
        yield
    finally:
        if not any(path.parent.glob(f"*/{CONFIG}")):
            path.unlink()


def remember(what: str, path: Path, plan: dict[str, Any]) -> None:
    """Write a plan, or check it against the existing one.

    Args:
        what: Noun of the plan for messages, such as "audit".
        path: Its file.
        plan: Its content.

    Raises:
        RunError: The folder holds another plan.
    """
    if path.exists():
        if json.loads(path.read_text()) != plan:
            raise RunError(f"error: {path.parent} is the {what} of another command; give another name=")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(plan, indent=1) + "\n")


def run_row(what: str, folder: Path, row: str, seed: int, overrides: Sequence[str]) -> Results:
    """Run or resume one row unless it is finished; return its results.

    A row is a plain training command in a separate process, so that a user can repeat it by hand.

    Args:
        what: Noun of the plan for messages, such as "audit".
        folder: Folder of all rows.
        row: Name of the row.
        seed: Seed of the run.
        overrides: All other overrides of the run.

    Raises:
        RunError: The run was refused or failed; earlier rows are kept.
        SystemExit: A signal asked to stop; the run has saved its state.
    """
    place = folder / row_folder(row, seed)
    if finished_facts(place) is None:
        if (place / CONFIG).exists():
            arguments = [f"resume={place}"]
        else:
            arguments = [*overrides, f"seed={seed}", f"output_dir={folder}", f"folder={place.name}"]
        print(f"\n{row}, seed {seed}: {command_line('train')} {shlex.join(arguments)}", flush=True)
        command = [sys.executable, "-P", "-m", "ssl_lightning", "train", *arguments]
        same = f"the same command with name={folder.name} continues the {what}"
        code = run_stoppable(command, same)
        if code and not (place / CONFIG).exists():
            raise RunError(f"error: the run {row!r} cannot start, for the reason above")
        if code:
            raise RunError(f"error: the run {row!r} with seed {seed} failed (exit status {code}); {same}")
    return read_results(place / RESULTS)


def run_stoppable(command: Sequence[str], same: str) -> int:
    """Run a command and return its exit status; after a stop signal, say how the rows continue.

    Raises:
        SystemExit: A signal asked to stop. The command has ended.
    """
    try:
        return run_to_end(command)
    except Stopped as request:
        print(f"stopped by a signal; {same}", file=sys.stderr, flush=True)
        raise SystemExit(128 + request.args[0]) from None


def run_to_end(command: Sequence[str]) -> int:
    """Run a command and return its exit status; it gets a stop signal too, and time to save its state.

    Raises:
        Stopped: A signal asked to stop. The command has ended.
    """
    with subprocess.Popen(command, env=child_environment()) as child, signals_raised():
        try:
            return child.wait()
        except Stopped as request:
            end_all([child], request.args[0], STOP_GRACE_S)
            raise


def row_folder(row: str, seed: int) -> str:
    """Return the name of the run folder of a row."""
    return f"{row.replace(' ', '_')}-{seed}"


def key_of(override: str) -> str:
    """Return the key of an override.

    >>> key_of("+task.gap=false")
    'task.gap'
    """
    return override.lstrip("+~").partition("=")[0]
