"""metrics.csv in the run folder, which a resumed run goes on with (Lightning's own logger deletes it)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from ssl_lightning.artifacts.run_folder import METRICS
from ssl_lightning.core.atomic_files import atomic_file


class CSVLogger(Logger):
    """A row per call of `log_metrics`: `step`, and a column per figure, empty where it has none.

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
        """Nothing: config.yaml holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._pending.append({"step": step, **metrics})

    def save(self) -> None:
        """Append what is pending; a new column rewrites the file."""
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
        """The rows of the file, as text."""
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def keep_until(self, step: int) -> None:
        """Drop what a run wrote after the step that it is resumed from."""
        rows = [row for row in self.rows() if _whole(row) and int(row["step"]) <= step]
        self._columns = list(dict.fromkeys(key for row in rows for key in row)) or ["step"]
        if self.path.exists():
            self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with atomic_file(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def _whole(row: Mapping[str, Any]) -> bool:
    """Whether a row was written to its end: the last one of a killed run may not be."""
    return None not in row and None not in row.values() and str(row.get("step", "")).isdigit()
