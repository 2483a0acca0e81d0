"""Speed of training steps, measured in a process of its own: `python -m ssl_lightning.run.speed`."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import open_dict
from pytorch_lightning.callbacks import Callback

from ssl_lightning.config.composition import compose
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.run.__main__ import keep_quiet
from ssl_lightning.run.execute import pretrain
from ssl_lightning.run.parts import build_parts

STEPS = 20  # most steps that are timed, after the first one
LONGEST_S = 4.0  # no step begins later, but a second one is always taken
ALONE = (
    "probe_untrained=false",
    "trainer.max_epochs=-1",
    f"trainer.max_steps={STEPS + 1}",
    "trainer.limit_val_batches=0",
    "trainer.devices=1",
    "trainer.strategy=auto",
    "data.near_duplicates=ignore",  # a pass over all images
)


class StepTimes(Callback):
    """Time the steps of a training, and end it after enough of them."""

    def __init__(self) -> None:
        self.ends: list[float] = []  # seconds

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        trainer.should_stop = len(self.ends) > 1 and self.ends[-1] - self.ends[0] > LONGEST_S

    def median(self) -> float:
        """Return the median seconds of a step, without the first one, which prepares the device."""
        return statistics.median(later - earlier for earlier, later in pairwise(self.ends))


def images_per_s(overrides: Sequence[str]) -> float:
    """Train for up to 20 steps or 4 seconds; return the images per second of one process.

    Args:
        overrides: Overrides of the run, as on the command line of `train.py`.

    Raises:
        ValueError: The parts do not fit each other.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose("train", [*overrides, *ALONE, f"output_dir='{folder}'", "folder=."])
        with open_dict(cfg):
            cfg.callbacks, cfg.logger = {}, {}
        parts = build_parts(cfg, Path(folder))
        times = StepTimes()
        parts.trainer.callbacks.append(times)  # type: ignore[attr-defined]
        pretrain(parts)
    return parts.data.batch_size / times.median()


def main(arguments: Sequence[str]) -> None:
    """Write the speeds of several runs, and leave out those that fail: their own run says why.

    Args:
        arguments: JSON of the overrides by name, and the file to write: JSON of images per second by name.
    """
    rows, out = arguments
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command that waits for this process speaks for both
    keep_quiet()
    found = {}
    for name, overrides in json.loads(rows).items():
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            found[name] = images_per_s(overrides)
    write_file(Path(out), json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
