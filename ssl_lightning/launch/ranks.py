"""Start, watch and end the rank processes of a run; imports no torch."""

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

from ssl_lightning.artifacts.run_folder import (
    ERROR,
    EVALUATION_ERROR,
    NOT_FIRST,
    PARENT_PIPE,
    REFUSED,
    UNREPORTED,
)
from ssl_lightning.core.cpu import available_cores, process_environment
from ssl_lightning.core.entry import child_environment
from ssl_lightning.core.errors import RunError
from ssl_lightning.core.stop_signals import REPEAT_S, SIGNALS
from ssl_lightning.launch.cluster import AGENT_STORE, Place
from ssl_lightning.launch.previous_runs import finished_facts

STOP_GRACE_S = 300.0  # for the first rank to finish a batch and save; a second signal ends the wait
CRASH_GRACE_S = 5.0  # for ranks that likely wait for a crashed one
# Set per rank below; values inherited from a surrounding torchrun or SLURM job would be wrong
RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", AGENT_STORE,
)  # fmt: skip


class Stopped(BaseException):
    """A signal asked the launcher to stop."""


def start_ranks(folder: Path, place: Place, *mode: str) -> None:
    """Start the worker processes of this launcher on a run folder and wait for all of them.

    The first failure ends the other workers. If this process dies, the workers notice the closed pipe and
    exit, so that no orphan keeps writing into the folder. A stop signal goes to the first rank, which saves a
    checkpoint.

    Raises:
        RunError: A worker failed; the message comes from the worker.
    """
    report = folder / (EVALUATION_ERROR if any(each.endswith("evaluate") for each in mode) else ERROR)
    if place.is_first:
        report.unlink(missing_ok=True)
    if place.port is None:
        place = replace(place, port=free_port())
    environment = {name: value for name, value in child_environment().items() if name not in RANK_VARIABLES}
    cores = available_cores()
    if place.count > cores:
        print(shared_cores(place.count, cores), file=sys.stderr, flush=True)
    threads = place.threads or max(1, cores // place.per_node)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment = process_environment(environment)
    read_end, write_end = os.pipe()
    environment[PARENT_PIPE] = str(read_end)
    # -P: files of the current folder must not shadow modules
    command = [sys.executable, "-P", "-m", "ssl_lightning.run", str(folder), *mode]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with signals_raised():
            try:
                for number in range(place.count):
                    ranked = environment | place.variables(number)
                    # in its own process group: a signal to our group (`timeout`, Ctrl-C) would end its
                    # loader processes before the batch after which it saves
                    worker = subprocess.Popen(command, env=ranked, pass_fds=[read_end], process_group=0)
                    workers.append(worker)
                failed = wait_for_all(workers)
            except Stopped as request:
                end_all(workers[:1], request.args[0], STOP_GRACE_S)  # the other ranks would only wait for it
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
        raise SystemExit(1)  # the launcher of the first failure reports it
    if any(worker.returncode == REFUSED for worker in workers):
        raise RunError(taken_refusal(report))
    raise RunError(failure_message(report, place.first + failed, code))


def shared_cores(processes: int, cores: int) -> str:
    """Return the warning that a launcher starts more processes than it has cores.

    >>> shared_cores(4, 2)
    'warning: trainer.devices=4 processes share 2 cores here; on CPUs trainer.devices=2 is faster'
    """
    noun = "core" if cores == 1 else "cores"
    return (
        f"warning: trainer.devices={processes} processes share {cores} {noun} here; "
        f"on CPUs trainer.devices={cores} is faster"
    )


def wait_for_all(workers: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all workers succeed (None) or one fails (its number, counted from 0 here).

    A killed rank makes the others fail within moments, so the killed one is returned. A rank that failed
    after another one may end before it, so the cause gets time to end too.
    """
    while True:
        codes = [worker.poll() for worker in workers]
        if any(code not in (None, 0) for code in codes):
            break
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)
    time.sleep(0.2)
    deadline = time.monotonic() + CRASH_GRACE_S
    codes = [worker.poll() for worker in workers]
    while None in codes and not any(map(is_cause, codes)) and time.monotonic() < deadline:
        time.sleep(0.05)
        codes = [worker.poll() for worker in workers]
    killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    causes = [rank for rank, code in enumerate(codes) if is_cause(code)]
    return next(rank for rank in [*killed, *causes, *range(len(codes))] if codes[rank] not in (None, 0))


def is_cause(code: int | None) -> bool:
    """Whether an exit status, None while a worker runs, is of a failure of its own."""
    return code not in (None, 0, NOT_FIRST)


def end_all(workers: Sequence[subprocess.Popen[bytes]], signum: int, grace_s: float) -> None:
    """Send a signal to the running workers; kill those that outlive the grace time."""
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
    """Raise `Stopped` on a stop signal; repeated signals within a second count as one request."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    arrivals: list[float] = []

    def stop(signum: int, frame: object) -> None:
        arrivals.append(time.monotonic())
        if len(arrivals) == 1 or arrivals[-1] - arrivals[0] > REPEAT_S:
            raise Stopped(signum)

    previous = {signum: signal.signal(signum, stop) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def taken_refusal(report: Path) -> str:
    """Return why the first rank refused the config, and remove its report: nothing ran, so nothing stays."""
    message, _, _ = report.read_text().partition("\n\n")
    report.unlink()
    return f"error: {message}"


def failure_message(report: Path, rank: int, code: int) -> str:
    """Return why a rank failed: its own one-line error if it left one, else its exit status.

    Only a failed run keeps the report: not one that finished before, and not one that was evaluated.
    """
    folder = report.parent
    if code >= 0 and report.exists():
        message, _, _ = report.read_text().partition("\n\n")
        if report.name == ERROR and not finished_facts(folder):
            return f"error: {message}\n(details: {report})"
        report.unlink(missing_ok=True)
        return f"error: {message}"
    if code == UNREPORTED:
        return f"rank {rank} printed its error above; the disk had no room for {report}"
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return f"error: rank {rank} of the run ended with {how}. Run folder: {folder}"


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
