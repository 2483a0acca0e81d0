"""Names of the files in a run folder, and what its processes tell each other; imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG = "config.yaml"  # resolved: exactly what ran
NEXT_CONFIG = ".next-config.yaml.tmp"  # of a run that is being resumed, until it has passed every check
EVALUATION = "evaluation.yaml"  # the config of the last evaluate.py run=
RESULTS = "results.json"
METRICS = "metrics.csv"
ERROR = "error.txt"
BAD_BATCH = "bad_batch.json"
LOCK = ".lock"  # held while a process runs in the folder
CHECKPOINTS, LAST, PREVIOUS, BEST = "checkpoints", "last.ckpt", "previous.ckpt", "best.ckpt"
BACKBONE, BACKBONE_CONFIG, MODEL_CARD = "backbone.safetensors", "backbone.json", "MODEL_CARD.md"
PANEL, PANELS, STRIP = "panel.png", "panels", "strip.png"

PARENT_PIPE = "SSL_LIGHTNING_PARENT_PIPE"  # environment variable: a pipe that closes when the launcher ends
NOT_FIRST = os.EX_TEMPFAIL  # exit status of a rank that failed after another, most likely because of it
UNREPORTED = os.EX_IOERR  # exit status of a rank that had no room for error.txt and printed its error


def accept_config(folder: Path) -> None:
    """Replace the config of a resumed run by the next one, which has passed every check."""
    os.replace(folder / NEXT_CONFIG, folder / CONFIG)
