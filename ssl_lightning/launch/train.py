"""Launch a composed Hydra config as rank processes, and return one figure; imports no torch."""

from __future__ import annotations

# Every entry imports this module, so it must not import torch, which takes seconds
import contextlib
import copy
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from ssl_lightning.artifacts.results import read_results
from ssl_lightning.artifacts.run_folder import (
    CHECKPOINTS,
    CONFIG,
    HYDRA,
    LOCK,
    NEXT_CONFIG,
    RESULTS,
    discard_refused,
)
from ssl_lightning.config.composition import command_overrides, drop_unchosen, resolve
from ssl_lightning.config.types import check_special
from ssl_lightning.core.atomic_files import DiskFullError, naming_full_disk, remove_leftovers, write_file
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.cluster import (
    LOCAL,
    Place,
    check_name,
    count_devices,
    find_place,
    first_launcher_error,
    launcher_rank,
    restarts,
)
from ssl_lightning.launch.previous_runs import check_same_run, finished_facts, finished_run, read_objective
from ssl_lightning.launch.ranks import start_ranks

NEXT = "next"  # mode of the worker process: run the next config, which becomes the config after all checks
TAKEN = "another process is running in"  # before the folder


class TakenError(RunError):
    """Another run has the folder."""


def launch(cfg: DictConfig) -> float | None:
    """Run one composed job to its end.

    The Hydra process only composes. It writes the resolved config into the run folder and starts one
    `python -m ssl_lightning.run <run folder>` per device. A sweep may therefore hold runs of several
    processes; Lightning's own launcher would start the sweep again in each child.

    Returns:
        The figure named by `cfg.objective` for a sweeper, or None if there is none.

    Raises:
        RunError: The config does not resolve, the folder already holds a run, or a process failed.
    """
    hydra = HydraConfig.get()
    created = Path(hydra.runtime.output_dir).resolve()
    with removed_if_empty(created):
        folder = launch_in(created, drop_unchosen(cfg, hydra))
    return read_objective(folder, cfg.objective)


@contextlib.contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove the folder that Hydra has made for a job, if nothing ran in it."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def launch_in(folder: Path, cfg: DictConfig) -> Path:
    """Launch a run in a folder, unless it is finished or skipped; return the folder of its results."""
    overrides = command_overrides(HydraConfig.get())
    resolved = resolve(cfg)
    place = check_start(resolved)
    check_name(place, overrides)
    check_benchmark(resolved)
    if cfg.skip_finished and (done := finished_run(resolved)):
        print(f"skipped: {done} holds the finished results of this config", flush=True)
        return done
    restarted = restarts(os.environ) > 0
    if cfg.go_on and place.is_first and (folder / CONFIG).exists() and not restarted:
        check_same_run(folder, resolved)
    if cfg.go_on and finished_facts(folder):
        print(f"skipped: {folder} is finished", flush=True)
        return folder
    if not place.is_first:
        start_ranks(folder, place, NEXT)
        return folder
    with locked_new(folder, cfg, may_exist=cfg.go_on or restarted) as (folder, cfg):
        run_locked(folder, place, lambda: save_composed(cfg, with_overrides(cfg, overrides), folder), NEXT)
    return folder


def with_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """Resolve a config and add the overrides of the command line, for `resume` and the model card."""
    resolved = resolve(cfg)
    resolved.overrides = overrides
    return resolved


@contextlib.contextmanager
def locked_new(
    folder: Path, cfg: DictConfig, *, may_exist: bool, use: str = "resume it with resume="
) -> Iterator[tuple[Path, DictConfig]]:
    """Hold the lock of the folder of a new run.

    A name that follows from the time is not unique. If another run has it, this run gets the next free name:
    `<name>-2`, `<name>-3`, and so on.

    Args:
        folder: The run folder, as composed.
        cfg: Composed, not resolved.
        may_exist: Whether the folder may hold this run already.
        use: What to do with a run that has the folder, before its path.

    Yields:
        The folder, and the config with its name.

    Raises:
        TakenError: Another run has the folder.
    """
    with contextlib.ExitStack() as stack:
        for number in itertools.count(1):
            suffix = "" if number == 1 else f"-{number}"
            place = folder.with_name(folder.name + suffix)
            try:
                stack.enter_context(holding(place))
                if not may_exist and (place / CONFIG).exists():
                    raise TakenError(
                        f"error: {place} already holds a run; {use}{place}, or give another name="
                        + (", or delete the folder, which holds no checkpoint" * is_disposable(place))
                    )
                break
            except TakenError:
                if not is_named_by_time(cfg, folder):
                    raise
        yield place, renamed(cfg, place, suffix) if suffix else cfg


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; afterwards remove what a refused run left.

    Raises:
        TakenError: Another process runs in the folder.
        RunError: The folder holds a run and is read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TakenError(f"error: {TAKEN} {folder}") from None
    except OSError as error:
        if not (folder / CONFIG).exists():  # a new run; the error names its folder
            raise
        raise RunError(
            f"error: {folder} cannot be written to ({error.strerror}); copy the folder and give the copy"
        ) from None
    try:
        yield
    finally:
        discard_refused(folder)
        lock.release()


def is_disposable(folder: Path) -> bool:
    """Whether a run folder has no checkpoint and no finished results, as after an early crash."""
    if any((folder / CHECKPOINTS).glob("*.ckpt")):
        return False
    try:
        return read_results(folder / RESULTS).run.status != "finished"
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # broken, or of a newer version
        return False


def is_named_by_time(cfg: DictConfig, folder: Path) -> bool:
    """Whether the name of a run folder follows from the time, as by default."""
    name = OmegaConf.to_container(cfg)["name"]  # type: ignore[call-overload, index]
    return "${now:" in str(name) and str(cfg.name) in folder.name


def renamed(cfg: DictConfig, folder: Path, suffix: str) -> DictConfig:
    """Return a copy of a config, not resolved, whose run has another folder and a longer name."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.name, cfg.run_dir = f"{cfg.name}{suffix}", str(folder)
    return cfg


def save_config(cfg: DictConfig | ListConfig, folder: Path, name: str = CONFIG) -> None:
    """Write a config into the folder atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / name, OmegaConf.to_yaml(cfg))


def save_composed(cfg: DictConfig, resolved: DictConfig, folder: Path) -> None:
    """Write the resolved config, and Hydra's own files in `.hydra`.

    Hydra itself would write them before the lock is taken, possibly into the folder of another run.
    """
    save_config(resolved, folder, NEXT_CONFIG)
    hydra = HydraConfig.get()
    save_config(cfg, folder / HYDRA)
    save_config(OmegaConf.create({"hydra": hydra}), folder / HYDRA, "hydra.yaml")
    save_config(OmegaConf.create(hydra.overrides.task), folder / HYDRA, "overrides.yaml")


def start_run(folder: Path, cfg: DictConfig, prepare: Callable[[], None], *mode: str) -> None:
    """Lock and prepare the folder of an existing run, then run the workers on it.

    On several machines only the first launcher locks and prepares the folder. The workers of the other
    launchers wait for its worker, and get the config from it.

    Args:
        folder: The run folder.
        cfg: Resolved.
        prepare: Writes the files that the workers read, after the folder is locked.
        *mode: Arguments of the worker.

    Raises:
        RunError: Another process runs in the folder, or a worker failed.
    """
    place = check_start(cfg)
    if not place.is_first:
        return start_ranks(folder, place, *mode)
    with holding(folder):
        run_locked(folder, place, prepare, *mode)


def run_locked(folder: Path, place: Place, prepare: Callable[[], None], *mode: str) -> None:
    """Prepare a locked run folder, then run the workers on it; see `start_run`."""
    try:
        remove_leftovers(folder)
        with naming_full_disk(folder, "Make room, then run the same command again"):
            prepare()
    except DiskFullError as error:
        raise RunError(f"error: {error}") from None
    start_ranks(folder, place, *mode)


def check_start(cfg: DictConfig) -> Place:
    """Check a config as far as the launcher can, before it writes any file.

    Returns:
        The processes that this launcher starts.

    Raises:
        RunError: A special key (`config.keys`) has a wrong value, the machine has too few GPUs, or
            `trainer.launcher` started a wrong number of processes.
    """
    launcher = cfg.trainer.get("launcher", LOCAL)
    try:
        check_special(cast(dict[str, Any], OmegaConf.to_container(cfg)))
    except ValueError as error:
        raise first_launcher_error(launcher_rank(launcher, os.environ), f"error: {error}") from None
    devices = count_devices(cfg.trainer.accelerator, cfg.trainer.devices)
    return find_place(launcher, cfg.trainer.num_nodes, devices, os.environ)


def check_benchmark(cfg: DictConfig) -> None:
    """Raise if a benchmark gets a budget of another benchmark, or data that no column shows.

    Raises:
        RunError: The budget would change its backbone or length, or every column shows other data.
    """
    table = cfg.get("benchmark")
    if not table:
        return
    if table.budget not in table.budgets:
        raise RunError(
            f"error: budget is {table.budget!r}; benchmark {table.name} allows {', '.join(table.budgets)}"
        )
    shown = {column.get("data", cfg.choices.data) for column in table.columns}
    if cfg.choices.data not in shown:
        raise RunError(
            f"error: data is {cfg.choices.data!r}; benchmark {table.name} has columns for "
            f"{', '.join(sorted(shown))}"
        )
