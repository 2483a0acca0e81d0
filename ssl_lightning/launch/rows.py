"""Rows of an audit or a comparison: complete runs in one folder, each a separate process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_lightning.artifacts.results import Results, read_results
from ssl_lightning.artifacts.run_folder import CONFIG, RESULTS
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.entry import child_environment
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.previous_runs import finished_facts
from ssl_lightning.launch.ranks import STOP_GRACE_S, Stopped, end_all, signals_raised
from ssl_lightning.launch.train import TAKEN, TakenError

ERROR = "error: "  # at the start of a message that ends a run
TRACEBACK = "Traceback "
PLANS = {"comparison": "compare.json", "audit": "audit.json"}  # file beside the rows that holds their plan


class RefusedRowError(RunError):
    """A run that cannot start, as its images or its settings do not allow it.

    Args:
        message: The message.
        reason: What the run said.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextlib.contextmanager
def planned(what: str, folder: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Remember the plan of the rows, and forget it if the first run is refused, so that its name is free."""
    path = folder / PLANS[what]
    remember(what, path, plan)
    try:
        yield
    finally:
        if not any(folder.glob(f"*/{CONFIG}")):
            path.unlink()


def remember(what: str, path: Path, plan: dict[str, Any]) -> None:
    """Write a plan, or check it against the existing one.

    Args:
        what: Noun of the plan for messages, such as "audit".
        path: Its file.
        plan: Its content; "overrides" is a list.

    Raises:
        RunError: The folder holds another plan.
    """
    if path.exists():
        before = json.loads(path.read_text())
        if before != plan:
            differing = plan_differences(before, plan) or "in another order"
            raise RunError(
                f"error: {path.parent} is the {what} of another command ({differing}); give another name="
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(plan, indent=1) + "\n")


def plan_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Say which words of two plans differ; "" if none does.

    >>> plan_differences({"overrides": ["a=1"], "minutes": 5}, {"overrides": ["a=1", "b=2"], "minutes": 9})
    'there minutes=5; here b=2, minutes=9'
    """
    old, new = ([w for key, value in plan.items() for w in _words(key, value)] for plan in (before, after))
    only = {"there": [w for w in old if w not in new], "here": [w for w in new if w not in old]}
    return "; ".join(f"{place} {', '.join(words)}" for place, words in only.items() if words)


def _words(key: str, value: Any) -> list[str]:
    return list(value) if key == "overrides" else [f"{key}={value}"]


def run_row(
    what: str, folder: Path, row: str, seed: int, overrides: Sequence[str], said: set[str]
) -> Results:
    """Run or resume one row unless it is finished; return its results.

    A row is a plain training command in a separate process. Its model card names the command, so that a user
    can repeat it by hand.

    Args:
        what: Noun of the plan for messages, such as "audit".
        folder: Folder of all rows.
        row: Name of the row.
        seed: Seed of the run.
        overrides: All other overrides of the run.
        said: Warnings of earlier rows, which are not printed again; this row adds its own.

    Raises:
        RefusedRowError: The run cannot start.
        TakenError: Another process runs in the folder of the row, such as one that a killed command left.
        RunError: The run failed; earlier rows are kept.
        SystemExit: A signal asked to stop; the run has saved its state.
    """
    place = folder / row_folder(row, seed)
    if finished_facts(place) is None:
        if resumed := (place / CONFIG).exists():
            arguments = [f"resume={place}"]
        else:
            arguments = [*overrides, f"seed={seed}", f"output_dir={folder}", f"folder={place.name}"]
        print(f"\n{row}, seed {seed}{', resumed' * resumed}", flush=True)
        command = [sys.executable, "-P", "-m", "ssl_lightning", "train", *arguments]
        same = f"the same command with name={folder.name} continues the {what}"
        code, reason = run_stoppable(command, same, said)
        if code and reason.startswith(TAKEN):
            raise TakenError(f"error: {reason}; once it has ended, {same}")
        if code and not (place / CONFIG).exists():
            raise RefusedRowError(f"error: the run {row!r} cannot start, for the reason above", reason)
        if code:
            raise RunError(f"error: the run {row!r} with seed {seed} failed (exit status {code}); {same}")
    return read_results(place / RESULTS)


def run_stoppable(command: Sequence[str], same: str, said: set[str]) -> tuple[int, str]:
    """Call `run_to_end`; after a stop signal, say how the rows continue.

    Raises:
        SystemExit: A signal asked to stop. The command has ended.
    """
    try:
        return run_to_end(command, said)
    except Stopped as request:
        print(f"stopped by a signal; {same}", file=sys.stderr, flush=True)
        raise SystemExit(128 + request.args[0]) from None


def run_to_end(command: Sequence[str], said: set[str]) -> tuple[int, str]:
    """Run a command; it gets a stop signal too, and time to save its state.

    Args:
        command: The command.
        said: Lines of earlier commands on stderr, which are not printed again; errors and tracebacks are.

    Returns:
        Its exit status, and its last error message, "" without one.

    Raises:
        Stopped: A signal asked to stop. The command has ended.
    """
    errors, new = [""], list[str]()

    def pass_on(lines: Iterable[str]) -> None:
        whole = False  # a traceback and what follows it
        for line in lines:
            whole = whole or line.startswith(TRACEBACK)
            if line.startswith(ERROR):
                errors.append(line.removeprefix(ERROR).strip())
            elif line in said and not whole:
                continue
            new.append(line)
            print(line, end="", file=sys.stderr, flush=True)

    piped: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "errors": "backslashreplace"}
    with subprocess.Popen(command, env=child_environment(), **piped) as child, signals_raised():
        reader = threading.Thread(target=pass_on, args=[child.stderr], daemon=True)
        reader.start()
        try:
            code = child.wait()
        except Stopped as request:
            end_all([child], request.args[0], STOP_GRACE_S)
            raise
        finally:
            reader.join(STOP_GRACE_S)  # a process that the command left behind may hold its stderr open
            said.update(new)
    return code, errors[-1]


def rows_of(folder: Path) -> str | None:
    """Return whether a run is a row of a "comparison" or an "audit", or None."""
    return next((what for what, name in PLANS.items() if (folder.parent / name).exists()), None)


def row_folder(row: str, seed: int) -> str:
    """Return the name of the run folder of a row."""
    return f"{row.replace(' ', '_')}-{seed}"


def key_of(override: str) -> str:
    """Return the key of an override.

    >>> key_of("+task.gap=false")
    'task.gap'
    """
    return override.lstrip("+~").partition("=")[0]
