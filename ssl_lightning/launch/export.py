"""Launch of `python export.py`: the backbone of a run for another library; imports no torch by itself."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ssl_lightning.core.errors import RunError
from ssl_lightning.core.messages import showing_messages
from ssl_lightning.core.progress import watched


def run_export(cfg: DictConfig) -> Path:
    """Export the backbone of a run as a composed `conf/export.yaml` says; print and return its folder.

    Raises:
        RunError: A key is missing, the format cannot hold the backbone, or the outputs differ.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise RunError(f"error: {' and '.join(missing)} must be given: run=<run folder> format=onnx")
    from ssl_lightning.artifacts.export.write import export  # imports torch

    try:
        with showing_messages(sys.stdout), watched(f"export to {cfg.format}"):
            done = export(Path(cfg.run).expanduser(), str(cfg.format), cfg.folder)
    except (OSError, ValueError) as error:
        raise RunError(f"error: {error}") from None
    print(done)
    return done.folder
