"""Pictures of a table: charts of figures and training, and strips of the tasks."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image

from ssl_lightning.artifacts.run_folder import PANEL, STRIP
from ssl_lightning.core.untrusted import check_plain
from ssl_lightning.report.canvas import Picture
from ssl_lightning.report.charts import by_stage, few_labels, over_training, speed, training
from ssl_lightning.report.table import MAIN_BRANCH, Row, Table

MOST = 12  # upper bound for the rows in a picture; the largest first figures are shown
MAX_PIXELS = 50_000_000  # of a strip or panel
WIDE = 900  # width of a strip in pixels


def draw_all(table: Table) -> list[Picture]:
    """Draw all charts and strips that have data."""
    rows = chosen_rows(table)
    left = len(table.rows) - len(rows)
    first = f"{table.columns[0]}" if table.columns else ""
    cut = f" Only the {MOST} of {len(table.rows)} rows with the best {first} are shown." if left else ""
    charts = [draw(rows) for draw in (by_stage, few_labels, over_training, training, speed)]
    found = [replace(chart, caption=chart.caption + cut) for chart in charts if chart is not None]
    strips = [strip for number, row in enumerate(rows) if (strip := task_strip(row, number))]
    strips[:1] = [replace(strip, caption=strip.caption + cut) for strip in strips[:1]]
    return found + strips


def chosen_rows(table: Table) -> list[Row]:
    """Return the rows to draw, in the order of the table."""
    if len(table.rows) <= MOST:
        return table.rows

    def figure(number: int) -> float:
        return next(
            (-table.rows[number].cells[n].mean for n in table.columns if n in table.rows[number].cells), 0.0
        )

    return [table.rows[number] for number in sorted(sorted(range(len(table.rows)), key=figure)[:MOST])]


def task_strip(row: Row, number: int) -> Picture | None:
    """Return a picture of the task on real images: the strip over the epochs, or else the last panel."""
    for run in row.runs if row.branch == MAIN_BRANCH else ():
        for name, what in ((STRIP, "over the epochs"), (PANEL, "after the last epoch")):
            try:
                check_plain(run.path / name)
                with Image.open(run.path / name, formats=("PNG",)) as image:
                    if image.width * image.height > MAX_PIXELS:
                        continue
                    shown = image.convert("RGB")
            except Exception:  # Pillow raises many kinds of errors; the report works without the picture
                continue
            shown.thumbnail((WIDE, 2 * WIDE), Image.Resampling.LANCZOS)
            data = io.BytesIO()
            shown.quantize(256, dither=Image.Dither.NONE).save(data, format="png", optimize=True)
            caption = f"{row.label}, {what}, seed {run.seed}."
            return Picture(
                f"strip-{number:02d}", row.label, caption, data.getvalue(), shown.width, chart=False
            )
    return None
