"""Handle stop signals: save a checkpoint, then exit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# `timeout` signals a process and its process group, so its signal arrives twice
REPEAT_S = 1.0  # seconds in which further signals belong to the first request; a later one exits at once


class StopRequest:
    """Request to stop this process, if a signal arrived.

    Ctrl-C (SIGINT), SIGTERM (a pre-emption, `kill`) and SIGUSR1 (SLURM's warning, `--signal=USR1@120`) are
    equivalent. Only rank 0 acts on them; the other ranks hold the same state, and the launcher ends them. A
    step always completes: while training, the request waits for the end of the batch.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False  # True while training: the checkpoint callback reads `signum` after each batch
        self._arrived_at = 0.0

    def install(self) -> None:
        """Install the signal handlers; call again when fitting starts, after Lightning's own."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def exit(self) -> None:
        """Exit with the status that a shell reports for the signal."""
        raise SystemExit(128 + (self.signum or 0))

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self.signum is not None and now - self._arrived_at > REPEAT_S
        if self.signum is None:
            self.signum, self._arrived_at = signum, now
        if int(os.environ.get("RANK", 0)) == 0 and (again or not self.deferred):
            self.exit()


STOP = StopRequest()


def requeue_if_slurm(signum: int | None) -> bool:
    """Requeue the SLURM job after SIGUSR1; return whether this succeeded.

    SIGTERM does not requeue: `scancel` sends it too, and SLURM requeues pre-empted jobs itself.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if job else os.environ.get("SLURM_JOB_ID", "")
    if signum != signal.SIGUSR1 or not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        return False
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
