"""Two processes against one, each on a core of its own: whole runs, in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_lightning.config.targets import CONF

TRAIN = CONF.parent / "train.py"
BATCH = 64  # images of a step of each process
TWO = ["trainer.devices=2", f"data.batch_size={2 * BATCH}"]
WAYS = {
    "one process": ["trainer.devices=1", f"data.batch_size={BATCH}"],
    "two, ddp": [*TWO, "trainer.strategy=ddp"],
    "two, ddp, own batch norms": [*TWO, "trainer.strategy=ddp", "trainer.sync_batchnorm=false"],
    "two, fsdp": [*TWO, "trainer.strategy=fsdp"],
}


def scaling(overrides: Sequence[str], repeats: int, steps: int = 60) -> list[dict[str, Any]]:
    """Images/s of every way to run, and its share of as many times one process.

    Args:
        overrides: Of every run.
        repeats: Turns; figures are medians.
        steps: Of a run.
    """
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, own in WAYS.items():
            found[way].append(images_per_s([*own, f"trainer.max_steps={steps}", *overrides]))
    one = statistics.median(found["one process"])
    return [
        {
            "way": way,
            "images_per_s": (median := statistics.median(each)),
            "efficiency": median / one / (1 if way == "one process" else 2),
        }
        for way, each in found.items()
    ]


def images_per_s(overrides: Sequence[str]) -> float:
    """Images/s in the training steps of a run of `train.py` on CPU processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        quick = ["trainer=cpu", "trainer.max_epochs=-1", "trainer.limit_val_batches=0", "probe=[]"]
        quick += ["callbacks=[]", "logger=[]", f"output_dir={folder}"]
        command = [sys.executable, str(TRAIN), *quick, *overrides]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            raise ValueError(f"a run of the benchmark failed: {done.stderr}")
        (results,) = Path(folder).rglob("results.json")
        return float(json.loads(results.read_text())["run"]["images_per_s"])
