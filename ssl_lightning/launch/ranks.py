"""The processes of a run: started together, watched, and ended together. Without torch, as `launch` is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_lightning.artifacts.run_folder import ERROR, NOT_FIRST, PARENT_PIPE, UNREPORTED
from ssl_lightning.core.cpu import available_cores
from ssl_lightning.core.errors import RunError
from ssl_lightning.core.stop_signals import REPEAT_S, SIGNALS
from ssl_lightning.launch.cluster import AGENT_STORE, Place

STOP_GRACE_S = 300.0  # for the first rank to reach the end of a batch and save; a second signal cuts it
CRASH_GRACE_S = 5.0  # for the ranks that are left after one crashed: they most likely wait for it
# Set per rank below. Inherited ones (from a torchrun or SLURM job around us) would be wrong.
RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", AGENT_STORE,
)  # fmt: skip

# For glibc, which otherwise gives the memory of every freed batch back to the system and asks for it, page by
# page, in the next step: on a CPU a training step takes 1.1 to 1.3 times as long without. 32 MiB is a limit.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}


class Stopped(BaseException):
    """A signal asked the launcher to stop."""


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


def start_ranks(folder: Path, place: Place, *mode: str) -> None:
    """Start the worker processes of this launcher on a run folder and wait for all of them.

    The first one that fails ends the others. If this process dies, they notice the closed pipe and
    end too, so that no orphan goes on writing into the folder. A signal to stop is passed on: the first
    rank saves where it stands.

    Raises:
        RunError: A worker failed; the message is the worker's own.
    """
    if place.is_first:
        (folder / ERROR).unlink(missing_ok=True)
    if place.port is None:
        place = replace(place, port=free_port())
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    threads = place.threads or max(1, available_cores() // place.per_node)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment = ALLOCATOR | environment
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    )
    read_end, write_end = os.pipe()
    environment[PARENT_PIPE] = str(read_end)
    # -P: no file of the current folder stands in for a module
    command = [sys.executable, "-P", "-m", "ssl_lightning.run", str(folder), *mode]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with signals_raised():
            try:
                for number in range(place.count):
                    ranked = environment | place.variables(number)
                    # in a group of its own: a signal to our whole group (`timeout`, Ctrl-C) would end its
                    # loader processes in the middle of the batch after which it is to save
                    worker = subprocess.Popen(command, env=ranked, pass_fds=[read_end], process_group=0)
                    workers.append(worker)
                failed = wait_for_all(workers)
            except Stopped as request:
                end_all(workers[:1], request.args[0], STOP_GRACE_S)  # the others would only wait for it
                raise
    except Stopped as request:
        raise SystemExit(128 + request.args[0]) from None
    finally:
        end_all(workers, signal.SIGTERM, CRASH_GRACE_S)
        os.close(read_end)
        os.close(write_end)
    if failed is None:
        return
    code = workers[failed].returncode
    if code == NOT_FIRST and not place.is_alone:
        raise SystemExit(1)  # the launcher of the first one says why
    raise RunError(failure_message(folder, place.first + failed, code))


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
    """Turn a signal to stop into `Stopped`; what comes again within a second is the same request."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    came_at: list[float] = []

    def stop(signum: int, frame: object) -> None:
        came_at.append(time.monotonic())
        if len(came_at) == 1 or came_at[-1] - came_at[0] > REPEAT_S:
            raise Stopped(signum)

    previous = {signum: signal.signal(signum, stop) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def failure_message(folder: Path, rank: int, code: int) -> str:
    """Say why a rank failed: its own one-line error where it left one, else how it ended."""
    report = folder / ERROR
    if code >= 0 and report.exists():
        message, _, _ = report.read_text().partition("\n\n")
        return f"error: {message}\n(details: {report})"
    if code == UNREPORTED:
        return f"rank {rank} said above why; there was no room for {report}"
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return f"error: rank {rank} of the run ended with {how}. Run folder: {folder}"


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
