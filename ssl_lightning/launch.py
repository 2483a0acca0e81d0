"""From a composed Hydra config to rank processes, and back to one figure.

The Hydra process only composes. It writes the resolved config into the run folder and starts one
fresh `python -m ssl_lightning.worker <run folder>` per device, so that a sweep may hold runs of
several processes (Lightning's own launcher would start the whole sweep again in each child).
This module is imported by every entry: it must not import torch, which takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIG_NAME = "config.yaml"
ERROR_NAME = "error.txt"
PARENT_PIPE = "SSL_LIGHTNING_PARENT_PIPE"
GRACE_S = 20.0
# Set per rank below. Inherited ones (from a torchrun or SLURM job around us) would be wrong.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


class RunError(CompactHydraException):
    """A run that did not finish. Hydra prints it without a traceback: the message is all."""


def launch(cfg: DictConfig) -> float | None:
    """Run one composed job to its end.

    Returns:
        The figure named by `cfg.objective` for a sweeper, or None if there is none.

    Raises:
        RunError: The config does not resolve, or a process of the run failed.
    """
    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    write_config(cfg, folder)
    start_ranks(folder, count_devices(cfg.trainer.accelerator, cfg.trainer.devices))
    return read_objective(folder, cfg.objective)


def write_config(cfg: DictConfig, folder: Path) -> None:
    """Resolve every interpolation once, here, and write what will run to `folder/config.yaml`."""
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RunError(f"error: the config is incomplete: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(resolved), folder / CONFIG_NAME)


def count_devices(accelerator: str, devices: Any) -> int:
    """Number of processes on this machine for `trainer.devices`: a count, or "auto" for every GPU.

    >>> count_devices("cpu", "auto"), count_devices("cpu", 2)
    (1, 2)
    """
    if isinstance(devices, int) and not isinstance(devices, bool) and devices > 0:
        return devices
    if devices not in ("auto", -1):
        raise RunError(
            f"error: trainer.devices is {devices!r}; allowed are a number above 0 and 'auto'. "
            "To choose GPUs, set CUDA_VISIBLE_DEVICES."
        )
    # torch is asked only where there can be a GPU: importing it costs seconds
    has_gpu = any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/kfd"))
    if accelerator == "cpu" or not has_gpu:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def start_ranks(folder: Path, count: int) -> None:
    """Start `count` worker processes on a run folder and wait for all of them.

    The first one that fails ends the others. If this process dies, they notice the closed pipe and
    end too, so that no orphan goes on writing into the folder.

    Raises:
        RunError: A worker failed; the message is the worker's own.
    """
    (folder / ERROR_NAME).unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // count)))
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
    )
    read_end, write_end = os.pipe()
    environment[PARENT_PIPE] = str(read_end)
    # -P: no file of the current folder stands in for a module
    command = [sys.executable, "-P", "-m", "ssl_lightning.worker", str(folder)]
    workers: list[subprocess.Popen[bytes]] = []
    previous = signal.signal(signal.SIGTERM, _raise_terminated) if _in_main_thread() else None
    try:
        for rank in range(count):
            rank_environment = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            workers.append(subprocess.Popen(command, env=rank_environment, pass_fds=[read_end]))
        failed = wait_for_all(workers)
    except KeyboardInterrupt:  # Ctrl-C reached the workers too: let them write down how far they came
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(GRACE_S)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        end_all(workers)
        os.close(read_end)
        os.close(write_end)
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    if failed is not None:
        raise RunError(failure_message(folder, failed, workers[failed].returncode))


def wait_for_all(workers: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all workers ended well (None) or one failed (its rank)."""
    while True:
        codes = [worker.poll() for worker in workers]
        for rank, code in enumerate(codes):
            if code not in (None, 0):
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)


def end_all(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the workers that still run to stop; after the grace time make them."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    deadline = time.monotonic() + GRACE_S
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def failure_message(folder: Path, rank: int, code: int) -> str:
    """Say why a rank failed: its own one-line error where it left one, else how it ended."""
    report = folder / ERROR_NAME
    if report.exists():
        message, _, _ = report.read_text().partition("\n\n")
        return f"error: {message}\n(details: {report})"
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return f"error: rank {rank} of the run ended with {how}. Run folder: {folder}"


def read_objective(folder: Path, objective: str | None) -> float | None:
    """Read the figure that a sweeper optimises (`ssl_lightning.results.objective_value`), if any."""
    results = folder / "results.json"
    if objective is None or not results.exists():
        return None
    from ssl_lightning.results import objective_value

    try:
        return objective_value(json.loads(results.read_text()), objective)
    except ValueError as error:
        raise RunError(f"error: {error}") from None


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _raise_terminated(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
