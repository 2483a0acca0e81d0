"""Launch of the report: its config, without the groups of the runs; imports no torch."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from ssl_lightning.config.plugins import conf_dirs
from ssl_lightning.core.atomic_files import DiskFullError
from ssl_lightning.core.errors import RunError
from ssl_lightning.report.write import write_report


def launch_report(cfg: DictConfig) -> None:
    """Read the results named by a composed `conf/report.yaml`, print the table, and write it with the page.

    Raises:
        RunError: The folder or the benchmark does not exist, there is no finished run, or the disk is full.
    """
    try:
        benchmark = find_benchmark(cfg.benchmark) if cfg.benchmark else None
        write_report(Path(cfg.outputs), Path(cfg.out), benchmark, cfg.budget)
    except (ValueError, DiskFullError) as error:
        raise RunError(f"error: {error}") from None


def find_benchmark(name: str) -> Path:
    """Return the file of a benchmark, from this project or a plugin package; it may not exist."""
    files = [folder / "benchmark" / f"{name}.yaml" for folder in conf_dirs()]
    return next((file for file in files if file.is_file()), files[0])
