"""Reading of metrics.csv, which may be torn or from any version."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_lightning.artifacts.run_folder import METRICS
from ssl_lightning.core.untrusted import check_plain

MAX_BYTES = 1 << 27  # of the file
POINTS = 300  # upper bound for the points of a curve


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read the numbers of each row of metrics.csv; torn rows and texts are skipped."""
    try:
        check_plain(folder / METRICS, MAX_BYTES)
        with open(folder / METRICS, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []
    rows = [
        {key: value for key, text in line.items() if (value := number(text)) is not None} for line in lines
    ]
    return [row for row in rows if "step" in row]


def number(text: Any) -> float | None:
    """Parse a finite number; None for other texts."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def epochs(log: Sequence[dict[str, float]], names: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """Return the last value of each named figure per epoch, for epochs that have all of them."""
    found: dict[int, dict[str, float]] = {}
    for row in log:
        if "epoch" in row:
            found.setdefault(int(row["epoch"]), {}).update({key: row[key] for key in names if key in row})
    return [(epoch, figures) for epoch, figures in sorted(found.items()) if len(figures) == len(set(names))]


def thin_points(points: Sequence[Any]) -> Sequence[Any]:
    """Keep at most POINTS points, evenly spaced."""
    step = max(1, math.ceil(len(points) / POINTS))
    return points[::step]


def smooth(values: Sequence[float]) -> list[float]:
    """Average over a centred window, one fifteenth of all values wide."""
    half = max(1, len(values) // 30)
    return [statistics.fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
