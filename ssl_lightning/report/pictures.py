"""The pictures of a table: charts of the figures and of training, and the tasks' own strips."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ssl_lightning.report import label_efficiency
from ssl_lightning.report.collect import Run
from ssl_lightning.report.table import TRUNK, Row, Table
from ssl_lightning.report.writers import duration
from ssl_lightning.results import Record

MOST = 12  # rows in a picture: those with the largest first figure
POINTS = 300  # of a curve
WIDE = 1200  # pixels of a strip
ACROSS = 4  # charts side by side
COLOURS = (
    "#3b6fd4", "#d9622b", "#2f9e6b", "#b0417f", "#8a63d2", "#c79a1e", "#1f9fb5", "#a15c3e", "#6b8e23",
    "#cc4455", "#5873a8", "#7d7d33",
)  # fmt: skip
GREY = "#8a8f98"


@dataclass(frozen=True)
class Picture:
    """A picture for the page and as a file.

    Args:
        name: Of the file.
        title: Above it.
        caption: What is shown, and what is left out.
        png: It.
        width: In pixels of a page.
        chart: Whether it is line and text on white, which a dark page inverts.
    """

    name: str
    title: str
    caption: str
    png: bytes
    width: int
    chart: bool = True


def draw_all(table: Table) -> list[Picture]:
    """Draw what there is something to draw of."""
    rows = chosen_rows(table)
    left = len(table.rows) - len(rows)
    first = f"{table.columns[0]}" if table.columns else ""
    cut = f" Shown are the {MOST} of {len(table.rows)} rows with the best {first}." if left else ""
    charts = [draw(rows) for draw in (by_stage, few_labels, over_training, training, speed)]
    found = [replace(chart, caption=chart.caption + cut) for chart in charts if chart is not None]
    strips = [strip for number, row in enumerate(rows) if (strip := task_strip(row, number))]
    strips[:1] = [replace(strip, caption=strip.caption + cut) for strip in strips[:1]]
    return found + strips


def chosen_rows(table: Table) -> list[Row]:
    """The rows that are drawn, in the order of the table."""
    if len(table.rows) <= MOST:
        return table.rows

    def figure(number: int) -> float:
        return next(
            (-table.rows[number].cells[n].mean for n in table.columns if n in table.rows[number].cells), 0.0
        )

    return [table.rows[number] for number in sorted(sorted(range(len(table.rows)), key=figure)[:MOST])]


def by_stage(rows: Sequence[Row]) -> Picture | None:
    """Top-1 of the linear probe at each stage, trained and untrained, a chart for each row."""
    curves = {row.label: [stage_means(row, trained) for trained in (True, False)] for row in rows}
    curves = {label: pair for label, pair in curves.items() if any(len(curve) > 1 for curve in pair)}
    if not curves:
        return None
    figure, axes = grid(len(curves), share=True)
    for number, (axis, label) in enumerate(zip(axes, curves, strict=True)):
        for other in curves:
            if other != label:
                axis.plot(*zip(*curves[other][0].items(), strict=True) if curves[other][0] else ([], []),
                          color=GREY, alpha=0.25, linewidth=1)  # fmt: skip
        for curve, style in zip(curves[label], ("-", "--"), strict=True):
            if curve:
                colour = COLOURS[number % len(COLOURS)] if style == "-" else GREY
                axis.plot(list(curve), list(curve.values()), style, color=colour, marker="o", markersize=4)
        axis.set_title(label, loc="left", fontsize=9, fontweight="bold")
        axis.set_xticks(sorted({stage for pair in curves.values() for curve in pair for stage in curve}))
    figure.supylabel("linear probe, test top-1 in %", fontsize=9)
    figure.supxlabel("stage", fontsize=9)
    caption = (
        "Linear probe on each stage, mean over seeds: trained (solid), the same trunk untrained (dashed); "
        "pale lines are the other rows."
    )
    return chart("stages", "Accuracy by stage", caption, figure)


def stage_means(row: Row, trained: bool) -> dict[int, float]:
    """For each stage the linear probe's mean over the seeds, in %."""
    values: dict[int, list[float]] = {}
    for run in row.runs:
        shown: dict[int, float] = {}
        for record in own(run, row.branch):
            if (record["probe"], record["metric"], record["trained"]) == ("linear", "top1", trained):
                stage = str(record["stage"]).removeprefix("stage")
                if stage.isdigit():
                    shown[int(stage)] = 100 * record["value"]
        for number, value in shown.items():
            values.setdefault(number, []).append(value)
    return {number: statistics.fmean(values[number]) for number in sorted(values)}


def own(run: Run, branch: str) -> list[Record]:
    """The records of the run itself, not of later evaluations in other settings."""
    return [r for r in run.probes if r["branch"] == branch and "evaluation" not in r]


def few_labels(rows: Sequence[Row]) -> Picture | None:
    """The label-efficiency curves of the backbones."""
    curves = []
    for row in rows:
        for run in row.used[:: 1 if row.branch == TRUNK else len(row.used) + 1]:
            records = [r for r in run.probes if run.probed(r) == run.facts["data"]]
            try:
                curve = label_efficiency.curve({"run": run.facts, "probes": records})
            except (ValueError, KeyError, TypeError):  # none, or of another version
                continue
            curves.append(replace(curve, name=row.label))
            break
    kinds = [(curve.metric, curve.data) for curve in curves]
    if not kinds:
        return None
    kind = max(kinds, key=kinds.count)
    shown = [curve for curve, its in zip(curves, kinds, strict=True) if its == kind and len(curve.ks) > 1]
    if not shown:
        return None
    caption = "Linear SVMs on few labels: mean and standard deviation over the draws; one seed of each row."
    return chart("labels", "How far few labels go", caption, label_efficiency.draw(shown))


def over_training(rows: Sequence[Row]) -> Picture | None:
    """The pretext's figure against that of the online probe, epoch by epoch."""
    found = []
    for row in rows:
        for run in row.runs:
            log = read_metrics(run.path)
            probe, pretext = f"online/{row.branch}/knn_top1", row.pretext or ""
            points = [
                (e, by_epoch[probe], by_epoch[pretext]) for e, by_epoch in epochs(log, (probe, pretext))
            ]
            if len(points) > 1:
                found.append((row, points))
                break
    if not found:
        return None
    figure, axes = grid(len(found))
    for number, (axis, (row, points)) in enumerate(zip(axes, found, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        _, probes, pretexts = zip(*points, strict=True)
        axis.plot(pretexts, [100 * p for p in probes], color=colour, alpha=0.5, linewidth=1.2)
        sizes = [14 + 22 * place / len(points) for place in range(len(points))]
        axis.scatter(pretexts, [100 * p for p in probes], s=sizes, color=colour, zorder=3)
        for place in (0, -1):
            axis.annotate(str(points[place][0] + 1), (pretexts[place], 100 * probes[place]), fontsize=7,
                          xytext=(4, 4), textcoords="offset points")  # fmt: skip
        axis.set_title(row.label, loc="left", fontsize=9, fontweight="bold")
        axis.set_xlabel(f"pretext {(row.pretext or '').removeprefix('val/')}", fontsize=8)
        if "loss" in (row.pretext or ""):
            axis.invert_xaxis()
    figure.supylabel("online 20-NN, held-out top-1 in %", fontsize=9)
    caption = (
        "Each dot is an epoch, its number at the first and the last; to the right the pretext is solved "
        "better. One seed of each row."
    )
    return chart("pretext", "Does a better pretext make better features?", caption, figure)


def training(rows: Sequence[Row]) -> Picture | None:
    """The training loss by step."""
    found = []
    for row in rows:
        log = read_metrics(row.runs[0].path) if row.branch == TRUNK else []
        points = thin([(float(line["step"]), line["train/loss"]) for line in log if "train/loss" in line])
        if len(points) > 1:
            found.append((row.label, points))
    if not found:
        return None
    figure, axes = grid(len(found))
    for number, (axis, (label, points)) in enumerate(zip(axes, found, strict=True)):
        steps, losses = zip(*points, strict=True)
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(steps, smooth(losses), color=colour, linewidth=1.5)
        axis.set_title(label, loc="left", fontsize=9, fontweight="bold")
        axis.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 1000 else f"{step:g}")
    figure.supylabel("training loss", fontsize=9)
    figure.supxlabel("step", fontsize=9)
    caption = "As logged (pale) and smoothed; each loss has a scale of its own. One seed of each row."
    return chart("training", "Training", caption, figure)


def speed(rows: Sequence[Row]) -> Picture | None:
    """Time of a run and images a second, a bar for each row."""
    rows = [row for row in rows if row.branch == TRUNK]
    if not rows:
        return None
    figure = Figure(figsize=(8.4, 0.9 + 0.3 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    kinds: tuple[tuple[Axes, list[float], Callable[[float], str], str], ...] = (
        (left, [row.wall_s for row in rows], duration, "whole run, probes included"),
        (
            right,
            [row.speed or 0.0 for row in rows],
            lambda v: f"{v:,.0f}" if v else "-",
            "images/s in pretraining",
        ),
    )
    for axis, values, text, title in kinds:
        bars = axis.barh([row.label for row in rows], values, color=COLOURS[0], height=0.62)
        axis.bar_label(bars, [text(value) for value in values], padding=4, fontsize=8)
        axis.set_title(title, loc="left", fontsize=9)
        axis.margins(x=0.22)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(length=0, labelsize=9)
    left.invert_yaxis()
    return chart("speed", "Time", "Mean over seeds; of different machines they do not compare.", figure)


def task_strip(row: Row, number: int) -> Picture | None:
    """What the task did to real images: the strip over the epochs, else the last panel."""
    for run in row.runs if row.branch == TRUNK else ():
        for name, what in (("strip.png", "over the epochs"), ("panel.png", "after the last epoch")):
            try:
                with Image.open(run.path / name) as image:
                    shown = image.convert("RGB")
            except (OSError, ValueError, Image.DecompressionBombError):
                continue
            shown.thumbnail((WIDE, 2 * WIDE), Image.Resampling.LANCZOS)
            data = io.BytesIO()
            shown.quantize(256, dither=Image.Dither.NONE).save(data, format="png", optimize=True)
            caption = f"{row.label}, {what}, seed {run.seed}."
            return Picture(
                f"strip-{number:02d}", row.label, caption, data.getvalue(), shown.width, chart=False
            )
    return None


def chart(name: str, title: str, caption: str, figure: Figure) -> Picture:
    """Make a picture of a figure, at twice the pixels that it takes on a page."""
    data = io.BytesIO()
    figure.savefig(data, dpi=200, format="png")
    with Image.open(data) as image:
        shown = image.convert("RGB")
    width = shown.width // 2
    packed = io.BytesIO()
    shown.quantize(128, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
    return Picture(name, title, caption, packed.getvalue(), width)


def grid(count: int, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of so many small charts."""
    across = min(count, ACROSS)
    down = math.ceil(count / across)
    figure = Figure(figsize=(0.5 + 2.15 * max(across, 2), 0.5 + 1.9 * down), layout="constrained")
    axes = list(figure.subplots(down, across, sharex=share, sharey=share, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for number, axis in enumerate(axes[:count]):
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, labelbottom=not share or number + across >= count)
    return figure, axes[:count]


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv: the figures that each has. Torn rows and words are left out."""
    try:
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    rows = [
        {key: value for key, text in line.items() if (value := number(text)) is not None} for line in lines
    ]
    return [row for row in rows if "step" in row]


def number(text: Any) -> float | None:
    """A finite number out of a text, if it is one."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def epochs(log: Sequence[dict[str, float]], names: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """For each epoch that has all the named figures the last of each."""
    found: dict[int, dict[str, float]] = {}
    for row in log:
        if "epoch" in row:
            found.setdefault(int(row["epoch"]), {}).update({key: row[key] for key in names if key in row})
    return [(epoch, figures) for epoch, figures in sorted(found.items()) if len(figures) == len(set(names))]


def thin(points: Sequence[Any]) -> Sequence[Any]:
    """At most POINTS of them, evenly spaced."""
    step = max(1, math.ceil(len(points) / POINTS))
    return points[::step]


def smooth(values: Sequence[float]) -> list[float]:
    """The mean over a window around each value, a fifteenth of all wide."""
    half = max(1, len(values) // 30)
    return [statistics.fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
