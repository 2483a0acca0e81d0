"""Pictures of a table: charts of figures and training, and the tasks before and after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ssl_lightning.artifacts.run_folder import PANEL, PANELS, STRIP
from ssl_lightning.core.untrusted import check_plain
from ssl_lightning.report.canvas import NARROW, WIDE, Picture, pack
from ssl_lightning.report.charts import (
    Looks,
    all_classes,
    by_stage,
    detection,
    few_labels,
    learned_classes,
    over_training,
    row_styles,
    speed,
    training,
)
from ssl_lightning.report.table import MAIN_BRANCH, Row, Table

MOST = 12  # upper bound for the rows in a picture; the largest first figures are shown
MAX_PIXELS = 50_000_000  # of a strip or panel
PANEL_WIDTH = 900  # largest width of a strip or panel in pixels

Draw = Callable[[Sequence[Row], Looks, float], Picture | None]


def draw_all(table: Table) -> list[Picture]:
    """Draw all charts that have data, and the pictures of the tasks."""
    rows, looks = chosen_rows(table), row_styles(table.rows)
    first = f"{table.columns[0]}" if table.columns else ""
    left = len(table.rows) - len(rows)
    cut = f" Only the {MOST} of {len(table.rows)} rows with the best {first} are shown." if left else ""
    draws: list[Draw] = [
        by_stage,
        few_labels,
        all_classes,
        learned_classes,
        detection,
        over_training,
        training,
        speed,
    ]
    charts = [chart for draw in draws if (chart := both_widths(draw, rows, looks))]
    found = [replace(chart, caption=chart.caption + cut) for chart in charts]
    panels = [picture for number, row in enumerate(rows) for picture in task_pictures(row, number)]
    return found + panels


def both_widths(draw: Draw, rows: Sequence[Row], looks: Looks) -> Picture | None:
    """Draw a chart for a wide page and for a phone."""
    wide = draw(rows, looks, WIDE)
    return None if wide is None else replace(wide, narrow=draw(rows, looks, NARROW))


def chosen_rows(table: Table) -> list[Row]:
    """Return the rows to draw, in the order of the table."""
    if len(table.rows) <= MOST:
        return table.rows

    def figure(number: int) -> float:
        return next(
            (-table.rows[number].cells[n].mean for n in table.columns if n in table.rows[number].cells), 0.0
        )

    return [table.rows[number] for number in sorted(sorted(range(len(table.rows)), key=figure)[:MOST])]


def task_pictures(row: Row, number: int) -> list[Picture]:
    """Return pictures of the task on real images, of the first seed that has any.

    They are the panels of the first and the last epoch, or else the strip over the epochs, or the last panel.
    """
    for run in row.runs if row.branch == MAIN_BRANCH else ():
        name, title = f"task-{number:02d}", f"{row.label}, seed {run.seed}"
        epochs = kept_panels(run.path / PANELS)
        sides = [(epochs[0], "first"), (epochs[-1], "last")] if len(epochs) > 1 else []
        pair = [read_panel(path, f"{name}-{side}", title, f"epoch {epoch}") for (epoch, path), side in sides]
        found = [picture for picture in pair if picture]
        if len(found) == 2:
            return found
        for file, what in ((STRIP, "over the epochs"), (PANEL, "after the last epoch")):
            if picture := read_panel(run.path / file, name, title, what):
                return [picture]
    return []


def kept_panels(folder: Path) -> list[tuple[int, Path]]:
    """List the panels of a run by epoch."""
    found = [(path.stem.removeprefix("epoch_"), path) for path in folder.glob("epoch_*.png")]
    return sorted((int(epoch), path) for epoch, path in found if epoch.isdecimal() and len(epoch) < 10)


def read_panel(path: Path, name: str, title: str, caption: str) -> Picture | None:
    """Read a panel or strip and make it small; None if it is absent, torn or no PNG."""
    try:
        check_plain(path)
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            shown = image.convert("RGB")
    except Exception:  # Pillow raises many kinds of errors; the report works without the picture
        return None
    shown.thumbnail((PANEL_WIDTH, 2 * PANEL_WIDTH), Image.Resampling.LANCZOS)
    return Picture(name, title, caption, pack(shown), *shown.size)
