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
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIG_NAME = "config.yaml"
ERROR_NAME = "error.txt"
PARENT_PIPE = "SSL_LIGHTNING_PARENT_PIPE"
STOP_GRACE_S = 300.0  # for the first rank to reach the end of a batch and save; a second signal cuts it
CRASH_GRACE_S = 5.0  # for the ranks that are left after one crashed: they most likely wait for it
# Set per rank below. Inherited ones (from a torchrun or SLURM job around us) would be wrong.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


# For glibc, which otherwise gives the memory of every freed batch back to the system and asks for it, page by
# page, in the next step: on a CPU a training step takes 1.1 to 1.3 times as long without. 32 MiB is a limit.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}


class RunError(CompactHydraException):
    """A run that did not finish. Hydra prints it without a traceback: the message is all."""


class Stopped(BaseException):
    """A signal asked the launcher to stop."""


def launch(cfg: DictConfig) -> float | None:
    """Run one composed job to its end.

    Returns:
        The figure named by `cfg.objective` for a sweeper, or None if there is none.

    Raises:
        RunError: The config does not resolve, the folder holds a run already, or a process failed.
    """
    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    resolved = resolve(cfg)
    resolved.overrides = list(HydraConfig.get().overrides.task)  # what resume and the model card start from
    check_devices(resolved)
    check_budget(resolved)
    if cfg.skip_finished and (done := finished_run(resolved)):
        if {entry.name for entry in folder.iterdir()} <= {".hydra"}:
            shutil.rmtree(folder)  # which Hydra has just made
        print(f"skipped: {done} holds the finished results of this config", flush=True)
        return read_objective(done, cfg.objective)
    requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    if (folder / CONFIG_NAME).exists() and not requeued:
        if not cfg.go_on:
            raise RunError(
                f"error: {folder} holds a run already; "
                f"go on with it by resume={folder}, or give another name="
            )
        check_same_run(folder, resolved)
        if finished_facts(folder):
            print(f"skipped: {folder} is finished", flush=True)
            return read_objective(folder, cfg.objective)
    run_folder(folder, resolved, lambda: save_config(resolved, folder))
    return read_objective(folder, cfg.objective)


def resolve(cfg: DictConfig) -> DictConfig:
    """Resolve every interpolation, once.

    Raises:
        RunError: One does not resolve, or a value that must be given is not.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RunError(f"error: the config is incomplete: {error}") from None
    return OmegaConf.create(container)  # type: ignore[return-value]


def save_config(cfg: DictConfig, folder: Path, name: str = CONFIG_NAME) -> None:
    """Write what will run into the folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.tmp"
    OmegaConf.save(cfg, temporary)
    os.replace(temporary, folder / name)


def run_folder(folder: Path, cfg: DictConfig, prepare: Callable[[], None], *mode: str) -> None:
    """Run the workers on a folder that no other process is running in.

    Args:
        folder: The run folder.
        cfg: Resolved.
        prepare: Writes what the workers read, once the folder is ours.
        *mode: Arguments of the worker.

    Raises:
        RunError: Another process runs in the folder, or a worker failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"error: another process is running in {folder}") from None
    try:
        prepare()
        start_ranks(folder, count_devices(cfg.trainer.accelerator, cfg.trainer.devices), *mode)
    finally:
        lock.release()


def check_devices(cfg: DictConfig) -> None:
    """Refuse more GPUs than there are, before anything is written.

    Raises:
        RunError: `trainer.devices` is not a number of devices, or there are not so many.
    """
    wanted = count_devices(cfg.trainer.accelerator, cfg.trainer.devices)
    if cfg.trainer.accelerator not in ("gpu", "cuda"):
        return
    import torch

    if not torch.cuda.is_available():
        raise RunError(
            f"error: trainer.accelerator is {cfg.trainer.accelerator!r}, but torch sees no GPU here; "
            "use trainer=cpu, or check the driver with `python -m torch.utils.collect_env`"
        )
    if wanted > torch.cuda.device_count():
        raise RunError(
            f"error: trainer.devices is {wanted}, but there are {torch.cuda.device_count()} GPUs; "
            "lower it, or use trainer=cpu"
        )


def check_same_run(folder: Path, cfg: DictConfig) -> None:
    """Refuse to go on with a run of another config than this one.

    Raises:
        RunError: It is; the message names what differs.
    """
    from ssl_lightning.results import differences

    before, after = (OmegaConf.to_container(each) for each in (OmegaConf.load(folder / CONFIG_NAME), cfg))
    if lines := differences(before, after):  # type: ignore[arg-type]
        raise RunError(
            f"error: {folder} holds a run of another config:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\n"
            "move the folder away, or give another output_dir="
        )


def finished_facts(folder: Path) -> dict[str, Any] | None:
    """What the results of a run that came to its end say of it; None if the folder holds none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent, foreign or broken
        facts = json.loads((folder / "results.json").read_text())["run"]
        return dict(facts) if facts["status"] == "finished" else None
    return None


def check_budget(cfg: DictConfig) -> None:
    """Refuse a benchmark with a budget that is made for another, and would change its trunk or its length.

    Raises:
        RunError: It is.
    """
    table = cfg.get("benchmark")
    if table and table.budget not in table.budgets:
        raise RunError(
            f"error: budget is {table.budget!r}; benchmark {table.name} allows {', '.join(table.budgets)}"
        )


def finished_run(cfg: DictConfig) -> Path | None:
    """A folder under `output_dir` whose finished results come from the same config, if there is one."""
    from ssl_lightning.results import FILE_NAME, config_sha256

    digest = config_sha256(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    place = Path(cfg.output_dir) / cfg.choices.task / cfg.choices.data / cfg.choices.backbone
    for path in sorted(place.glob(f"*/{FILE_NAME}")):
        facts = finished_facts(path.parent)
        if facts and facts.get("config_sha256") == digest:
            return path.parent
    return None


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


def start_ranks(folder: Path, count: int, *mode: str) -> None:
    """Start `count` worker processes on a run folder and wait for all of them.

    The first one that fails ends the others. If this process dies, they notice the closed pipe and
    end too, so that no orphan goes on writing into the folder. A signal to stop is passed on: the first
    rank saves where it stands.

    Raises:
        RunError: A worker failed; the message is the worker's own.
    """
    (folder / ERROR_NAME).unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // count)))
    environment = ALLOCATOR | environment
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
    )
    read_end, write_end = os.pipe()
    environment[PARENT_PIPE] = str(read_end)
    # -P: no file of the current folder stands in for a module
    command = [sys.executable, "-P", "-m", "ssl_lightning.worker", str(folder), *mode]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with signals_raised():
            for rank in range(count):
                ranked = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                workers.append(subprocess.Popen(command, env=ranked, pass_fds=[read_end]))
            failed = wait_for_all(workers)
    except (Stopped, KeyboardInterrupt) as request:
        signum = request.args[0] if isinstance(request, Stopped) else signal.SIGINT
        end_all(workers[:1], signum, STOP_GRACE_S)  # the others would only wait for the first
        raise SystemExit(128 + signum) from None
    finally:
        end_all(workers, signal.SIGTERM, CRASH_GRACE_S)
        os.close(read_end)
        os.close(write_end)
    if failed is not None:
        raise RunError(failure_message(folder, failed, workers[failed].returncode))


def wait_for_all(workers: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all workers ended well (None) or one failed (its rank).

    A rank that was killed makes the others fail within moments: it is the one to name.
    """
    while True:
        codes = [worker.poll() for worker in workers]
        if any(code not in (None, 0) for code in codes):
            break
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)
    time.sleep(0.2)
    codes = [worker.poll() for worker in workers]
    killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    return killed[0] if killed else next(rank for rank, code in enumerate(codes) if code not in (None, 0))


def end_all(workers: Sequence[subprocess.Popen[bytes]], signum: int, grace_s: float) -> None:
    """Ask the workers that still run to stop; after the grace time make them."""
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signum)
    deadline = time.monotonic() + grace_s
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """Turn SIGTERM and SIGUSR1 into `Stopped`; Ctrl-C is a KeyboardInterrupt already."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(signum: int, frame: object) -> None:
        raise Stopped(signum)

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def failure_message(folder: Path, rank: int, code: int) -> str:
    """Say why a rank failed: its own one-line error where it left one, else how it ended."""
    report = folder / ERROR_NAME
    if code >= 0 and report.exists():
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
