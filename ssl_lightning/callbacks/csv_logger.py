"""Logger of metrics.csv that keeps the file on resume; Lightning's own CSV logger deletes it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from ssl_lightning.artifacts.run_folder import METRICS
from ssl_lightning.core.atomic_files import atomic_file


class CSVLogger(Logger):
    """Write a row per call of `log_metrics`: `step`, and a column per figure, empty for missing ones.

    Args:
        save_dir: Folder of `metrics.csv`.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / METRICS
        self._columns: list[str] = []
        self._pending: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing, since config.yaml holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._pending.append({"step": step, **metrics})

    def save(self) -> None:
        """Append the pending rows; rewrite the file if there is a new column."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        new = dict.fromkeys(key for row in pending for key in row if key not in self._columns)
        if new or not self.path.exists():
            self._columns += new
            self._rewrite(self.rows() + pending)
            return
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self._columns).writerows(pending)

    def finalize(self, status: str) -> None:
        self.save()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the file, as text."""
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def keep_until(self, step: int) -> None:
        """Drop rows written after the step from which the run resumes."""
        rows = [row for row in self.rows() if _is_complete(row) and int(row["step"]) <= step]
        self._columns = list(dict.fromkeys(key for row in rows for key in row)) or ["step"]
        if self.path.exists():
            self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with atomic_file(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def _is_complete(row: Mapping[str, Any]) -> bool:
    """Whether a row is complete; the last row of a killed run may be cut."""
    return None not in row and None not in row.values() and str(row.get("step", "")).isdigit()
