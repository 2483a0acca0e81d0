"""Launch a composed Hydra config as rank processes, and return one figure; imports no torch."""

from __future__ import annotations

# Every entry imports this module, so it must not import torch, which takes seconds
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from ssl_lightning.artifacts.run_folder import CONFIG, LOCK
from ssl_lightning.config.composition import drop_unchosen, resolve
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
    folder = Path(hydra.runtime.output_dir).resolve()
    cfg = drop_unchosen(cfg, hydra)
    resolved = resolve(cfg)
    resolved.overrides = list(hydra.overrides.task)  # for resume and the model card
    place = check_start(resolved)
    check_name(place, resolved.overrides)
    check_benchmark(resolved)
    if cfg.skip_finished and (done := finished_run(resolved)):
        with contextlib.suppress(OSError):
            folder.rmdir()  # Hydra has just created it
        print(f"skipped: {done} holds the finished results of this config", flush=True)
        return read_objective(done, cfg.objective)
    if place.is_first and (folder / CONFIG).exists() and not restarts(os.environ):
        if not cfg.go_on:
            raise RunError(
                f"error: {folder} already holds a run; resume it with resume={folder}, or give another name="
            )
        check_same_run(folder, resolved)
    if cfg.go_on and finished_facts(folder):
        print(f"skipped: {folder} is finished", flush=True)
        return read_objective(folder, cfg.objective)
    start_run(folder, resolved, lambda: save_composed(cfg, resolved, folder))
    return read_objective(folder, cfg.objective)


def save_config(cfg: DictConfig | ListConfig, folder: Path, name: str = CONFIG) -> None:
    """Write a config into the folder atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / name, OmegaConf.to_yaml(cfg))


def save_composed(cfg: DictConfig, resolved: DictConfig, folder: Path) -> None:
    """Write the resolved config, and Hydra's own files in `.hydra`.

    Hydra itself would write them before the lock is taken, possibly into the folder of another run.
    """
    save_config(resolved, folder)
    hydra = HydraConfig.get()
    save_config(cfg, folder / ".hydra")
    save_config(OmegaConf.create({"hydra": hydra}), folder / ".hydra", "hydra.yaml")
    save_config(OmegaConf.create(hydra.overrides.task), folder / ".hydra", "overrides.yaml")


def start_run(folder: Path, cfg: DictConfig, prepare: Callable[[], None], *mode: str) -> None:
    """Lock and prepare a run folder, then run the workers on it.

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
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"error: another process is running in {folder}") from None
    try:
        remove_leftovers(folder)
        with naming_full_disk(folder, "Make room, then run the same command again"):
            prepare()
        start_ranks(folder, place, *mode)
    except DiskFullError as error:
        raise RunError(f"error: {error}") from None
    finally:
        lock.release()


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
