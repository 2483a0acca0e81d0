"""Signals that ask a run to stop: it saves where it stands first, and can be resumed.

Ctrl-C (SIGINT), SIGTERM (a pre-emption, `kill`) and SIGUSR1 (SLURM's warning, `--signal=USR1@120`) are
one request. `timeout`, for one, sends it to a process and to its whole group, so that it comes twice: what
comes within a second is the same request, a later one cuts. Only the first process acts on it; the others
hold the same state and are ended by whoever started them. A step is never cut: while training, the request
waits for the end of the batch.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REPEAT_S = 1.0


class StopRequest:
    """The request of this process, if one came."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False  # True while training: somebody will look at `signum` soon
        self._came_at = 0.0

    def install(self) -> None:
        """Take over the signals. Lightning installs its own when fitting starts: call again then."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def exit(self) -> None:
        """End the process with the status that a shell gives to a signal."""
        raise SystemExit(128 + (self.signum or 0))

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self.signum is not None and now - self._came_at > REPEAT_S
        if self.signum is None:
            self.signum, self._came_at = signum, now
        if int(os.environ.get("RANK", 0)) == 0 and (again or not self.deferred):
            self.exit()


STOP = StopRequest()


def requeue_if_slurm(signum: int | None) -> bool:
    """Put the SLURM job back into the queue after SIGUSR1; return whether that was done.

    Not after SIGTERM: that is how `scancel` ends a job, and a pre-empted one SLURM requeues itself.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if job else os.environ.get("SLURM_JOB_ID", "")
    if signum != signal.SIGUSR1 or not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        return False
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
