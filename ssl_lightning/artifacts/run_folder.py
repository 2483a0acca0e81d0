"""Names of the files in a run folder, and exit codes of its processes; imports no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

CONFIG = "config.yaml"  # the resolved config of the run
NEXT_CONFIG = ".next-config.yaml.tmp"  # config of a start or a resume, until it has passed all checks
EVALUATION = "evaluation.yaml"  # config of the last evaluate.py run=
NEXT_EVALUATION = ".next-evaluation.yaml.tmp"  # the same, until it has passed all checks
HYDRA = ".hydra"  # folder of the composed config and the overrides
RESULTS = "results.json"
ANSWERS = "answers.json"  # which test images the probes answered right
METRICS = "metrics.csv"
ERROR = "error.txt"  # of a failed run
EVALUATION_ERROR = ".evaluation-error.txt.tmp"  # of evaluate.py run=, until the launcher has printed it
BAD_BATCH = "bad_batch.json"
NEAR_DUPLICATES = "near_duplicates.txt"
LOCK = ".lock"  # held while a process runs in the folder
CHECKPOINTS, LAST, PREVIOUS, BEST = "checkpoints", "last.ckpt", "previous.ckpt", "best.ckpt"
BACKBONE, BACKBONE_CONFIG, MODEL_CARD = "backbone.safetensors", "backbone.json", "MODEL_CARD.md"
CLASSIFIERS = "classifier_*"  # every file of `classifier_files`
PANEL, PANELS, STRIP = "panel.png", "panels", "strip.png"

PARENT_PIPE = "SSL_LIGHTNING_PARENT_PIPE"  # environment variable: a pipe that closes when the launcher ends
REFUSED = os.EX_CONFIG  # exit code of a rank that refused the config before any work
NOT_FIRST = os.EX_TEMPFAIL  # exit code of a rank that failed after another rank, most likely because of it
UNREPORTED = os.EX_IOERR  # exit code of a rank that could not write error.txt and printed its error


def no_run_folder(path: Path) -> str:
    """Say what is wrong with a path that should be a run folder; name the run folder of a file within it."""
    if path.is_dir():
        problem = f"has no {CONFIG}, so it is not a run folder"
    elif not path.exists():
        problem = "is not there"
    elif run := next((folder for folder in path.parents if (folder / CONFIG).is_file()), None):
        return f"{path} is a file; give its run folder, {run}"
    else:
        problem = "is a file"
    return f"{path} {problem}; a run folder is outputs/<task>/<data>/<backbone>/<name>"


def classifier_files(folder: Path, probe: str, branch: str) -> tuple[Path, Path]:
    """Return the paths of the weights and of the description of a probe's classifier."""
    stem = f"classifier_{probe}_{branch}"
    return folder / f"{stem}.safetensors", folder / f"{stem}.json"


def accept_config(folder: Path) -> None:
    """Make the next config the config of the run or of its evaluation, after all checks."""
    for written, name in ((NEXT_CONFIG, CONFIG), (NEXT_EVALUATION, EVALUATION)):
        if (folder / written).exists():
            os.replace(folder / written, folder / name)


def discard_refused(folder: Path) -> None:
    """Remove the config that a worker refused and, if the folder holds no run, all that the start wrote."""
    (folder / NEXT_CONFIG).unlink(missing_ok=True)
    if (folder / CONFIG).exists():
        return
    shutil.rmtree(folder / HYDRA, ignore_errors=True)
    (folder / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder is absent, or holds other files
        folder.rmdir()
