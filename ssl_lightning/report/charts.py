"""Charts of a table; each function returns None if it has nothing to draw."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_lightning.artifacts.records import BALANCED, Record
from ssl_lightning.artifacts.results import Results
from ssl_lightning.report import label_efficiency
from ssl_lightning.report.canvas import WIDE, Picture, chart, columns, grid
from ssl_lightning.report.collect import ReportedRun
from ssl_lightning.report.colours import GREY, Style, styles
from ssl_lightning.report.table import MAIN_BRANCH, Row
from ssl_lightning.report.training_log import epochs, read_metrics, smooth, thin_points
from ssl_lightning.report.writers import duration, is_share

Looks = Mapping[str, Style]  # style of each row, by label
MakeCurve = Callable[[Results], label_efficiency.Curve | None]


def row_styles(rows: Sequence[Row]) -> dict[str, Style]:
    """Return the style of each row, the same in all charts of a table."""
    chosen = styles([row.used[0].facts.task for row in rows])
    return dict(zip((row.label for row in rows), chosen, strict=True))


def by_stage(rows: Sequence[Row], looks: Looks, width: float) -> Picture | None:
    """Draw the linear probe at each stage, trained and untrained, one chart per row.

    They are of balanced accuracy where a run has it, and of top-1 otherwise.
    """
    linear = {
        r.metric for row in rows for run in row.runs for r in own(run, row.branch) if r.probe == "linear"
    }
    metric = BALANCED if BALANCED in linear else "top1"
    curves = {row.label: [stage_means(row, trained, metric) for trained in (True, False)] for row in rows}
    curves = {label: pair for label, pair in curves.items() if any(len(curve) > 1 for curve in pair)}
    if not curves:
        return None
    figure, axes = grid(len(curves), width, share=True)
    for axis, label in zip(axes, curves, strict=True):
        for other in curves:
            if other != label:
                axis.plot(*zip(*curves[other][0].items(), strict=True) if curves[other][0] else ([], []),
                          color=GREY, alpha=0.35, linewidth=1)  # fmt: skip
        for curve, style in zip(curves[label], ("-", "--"), strict=True):
            if curve:
                its = looks[label].colour if style == "-" else GREY
                axis.plot(list(curve), list(curve.values()), style, color=its, marker="o", markersize=4)
        name_chart(axis, label, width / columns(len(curves), width))
        axis.set_xticks(sorted({stage for pair in curves.values() for curve in pair for stage in curve}))
    shown = "balanced accuracy" if metric == BALANCED else "top-1"
    figure.supylabel(f"linear probe, test {shown} in %", fontsize=9)
    figure.supxlabel("stage", fontsize=9)
    caption = (
        "Linear probe at each stage, mean over seeds: trained (solid) and untrained backbone (dashed); pale "
        "lines are the other rows."
    )
    return chart("stages", "Accuracy by stage", caption, figure)


def stage_means(row: Row, trained: bool, metric: str) -> dict[int, float]:
    """Average a metric of the linear probe over seeds, by stage, in %."""
    values: dict[int, list[float]] = {}
    for run in row.runs:
        shown: dict[int, float] = {}
        for record in own(run, row.branch):
            if (record.probe, record.metric, record.trained) == ("linear", metric, trained):
                stage = str(record.stage).removeprefix("stage")
                if stage.isdigit():
                    shown[int(stage)] = 100 * record.value
        for number, value in shown.items():
            values.setdefault(number, []).append(value)
    return {number: statistics.fmean(values[number]) for number in sorted(values)}


def own(run: ReportedRun, branch: str) -> list[Record]:
    """Return the records of the run itself, without later evaluations."""
    return [r for r in run.probes if r.branch == branch and r.evaluation is None]


def few_labels(rows: Sequence[Row], looks: Looks, width: float) -> Picture | None:
    """Draw the label-efficiency curves of the backbones."""
    caption = (
        "Linear SVMs on few labels: mean and standard deviation over seeds; with one seed, over its draws."
    )
    figure = label_curves(rows, looks, width, label_efficiency.curve)
    return None if figure is None else chart("labels", "Accuracy with few labels", caption, figure)


def all_classes(rows: Sequence[Row], looks: Looks, width: float) -> Picture | None:
    """Draw mIoU over all classes against the labelled pictures."""
    caption = (
        "Segmentation on shares of the labels: mean and standard deviation over seeds; with one, over draws."
    )
    figure = label_curves(rows, looks, width, partial(label_efficiency.share_curve, metric="miou"))
    return None if figure is None else chart("shares", "Segmentation by labelled pictures", caption, figure)


def learned_classes(rows: Sequence[Row], looks: Looks, width: float) -> Picture | None:
    """Draw mIoU over the learned classes against the labelled pictures."""
    caption = "The same over the classes that some row learns, as held-out pictures tell."
    figure = label_curves(rows, looks, width, partial(label_efficiency.share_curve, metric="miou_learned"))
    return (
        None
        if figure is None
        else chart("shares_learned", "Segmentation of the learned classes", caption, figure)
    )


def detection(rows: Sequence[Row], looks: Looks, width: float) -> Picture | None:
    """Draw AP50 against the labelled pictures."""
    caption = (
        "Detection on shares of the labels: mean and standard deviation over seeds; with one, over draws."
    )
    figure = label_curves(rows, looks, width, partial(label_efficiency.share_curve, metric="ap50"))
    if figure is None:
        return None
    return chart("shares_detection", "Detection by labelled pictures", caption, figure)


def label_curves(rows: Sequence[Row], looks: Looks, width: float, make: MakeCurve) -> Figure | None:
    """Draw the curve of each row over the labels, as far as the rows have one metric on one data set."""
    found = []
    for row in rows:
        of_seeds = seed_curves(row, make) if row.branch == MAIN_BRANCH else []
        if of_seeds:
            label = wrapped(row.label, 40 if width == WIDE else 18)
            found.append((replace(label_efficiency.mean_curve(of_seeds), name=label), looks[row.label]))
    kinds = [(curve.metric, curve.data) for curve, _ in found]
    if not kinds:
        return None
    kind = max(kinds, key=kinds.count)
    shown = [each for each, its in zip(found, kinds, strict=True) if its == kind and len(each[0].ks) > 1]
    if not shown:
        return None
    curves, their_looks = zip(*shown, strict=True)
    return label_efficiency.draw_curves(curves, their_looks, width)


def seed_curves(row: Row, make: MakeCurve) -> list[label_efficiency.Curve]:
    """Return the curve of each seed on the data of the run, from its newest run that has one."""
    found: dict[int, label_efficiency.Curve] = {}
    for run in sorted(row.used, key=lambda run: run.ended):
        records = [r for r in run.probes if run.probed(r) == run.facts.data]
        try:
            curve = make(Results(run.facts, run.pretext, records))
        except (ValueError, KeyError, TypeError):  # no low-shot figures, or another version
            continue
        if curve is not None:
            found[run.seed] = curve
    return list(found.values())


def over_training(rows: Sequence[Row], looks: Looks, width: float) -> Picture | None:
    """Draw the online probe against the pretext figure, one dot per epoch."""
    found = []
    for row in rows:
        for run in row.runs:
            log = read_metrics(run.path)
            probe, pretext = f"online/{row.branch}/knn_top1", row.pretext or ""
            scale = 100 if is_share(pretext) else 1
            points = [
                (epoch + 1, 100 * both[probe], scale * both[pretext])
                for epoch, both in epochs(log, (probe, pretext))
            ]
            if len(points) > 1:
                found.append((row, points))
                break
    if not found:
        return None
    figure, axes = grid(len(found), width)
    for axis, (row, points) in zip(axes, found, strict=True):
        its = looks[row.label].colour
        _, probes, pretexts = zip(*points, strict=True)
        axis.plot(pretexts, probes, color=its, alpha=0.5, linewidth=1.2)
        sizes = [14 + 22 * place / len(points) for place in range(len(points))]
        axis.scatter(pretexts, probes, s=sizes, color=its, zorder=3)
        axis.margins(0.14)
        for place in (0, -1):
            axis.annotate(str(points[place][0]), (pretexts[place], probes[place]), fontsize=7,
                          xytext=(4, 4), textcoords="offset points")  # fmt: skip
        name_chart(axis, row.label, width / columns(len(found), width))
        axis.set_xlabel(pretext_name(row), fontsize=8)
        if "loss" in (row.pretext or ""):
            axis.invert_xaxis()
    figure.supylabel("online 20-NN, held-out top-1 in %", fontsize=9)
    caption = (
        "Each dot is an epoch; the first and the last are numbered. Pretext figures improve to the right. "
        "One seed per row."
    )
    return chart("pretext", "Does a better pretext make better features?", caption, figure)


def training(rows: Sequence[Row], looks: Looks, width: float) -> Picture | None:
    """Draw the training loss by step."""
    found = []
    for row in rows:
        log = read_metrics(row.runs[0].path) if row.branch == MAIN_BRANCH else []
        points = thin_points(
            [(float(line["step"]), line["train/loss"]) for line in log if "train/loss" in line]
        )
        if len(points) > 1:
            found.append((row, points))
    if not found:
        return None
    figure, axes = grid(len(found), width)
    for axis, (row, points) in zip(axes, found, strict=True):
        steps, losses = zip(*points, strict=True)
        its = looks[row.label].colour
        axis.plot(steps, losses, color=its, alpha=0.3, linewidth=0.8)
        axis.plot(steps, smooth(losses), color=its, linewidth=1.5)
        name_chart(axis, row.label, width / columns(len(found), width))
        axis.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 1000 else f"{step:g}")
    figure.supylabel("training loss", fontsize=9)
    figure.supxlabel("step", fontsize=9)
    caption = "As logged (pale) and smoothed; each loss has its own scale. One seed per row."
    return chart("training", "Training", caption, figure)


def speed(rows: Sequence[Row], looks: Looks, width: float) -> Picture | None:
    """Draw the time of a run and images/s, one bar per row."""
    rows = [row for row in rows if row.branch == MAIN_BRANCH]
    if not rows:
        return None
    beside = width == WIDE
    height = 0.7 + 0.3 * len(rows)
    figure = Figure(figsize=(width, height * (1 if beside else 2)), layout="constrained")
    left, right = figure.subplots(*((1, 2) if beside else (2, 1)), sharey=beside)
    kinds: tuple[tuple[Axes, list[float], Callable[[float], str], str], ...] = (
        (left, [row.wall_s for row in rows], duration, "run time, with probes"),
        (
            right,
            [row.speed or 0.0 for row in rows],
            lambda v: f"{v:,.0f}" if v else "-",
            "images/s in pretraining",
        ),
    )
    for axis, values, text, title in kinds:
        labels = [wrapped(row.label, 40 if beside else 16) for row in rows]
        colours = [looks[row.label].colour for row in rows]
        bars = axis.barh(range(len(rows)), values, color=colours, height=0.62)
        axis.set_yticks(range(len(rows)), labels)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.bar_label(bars, [text(value) for value in values], padding=4, fontsize=8)
        axis.set_title(title, loc="left", fontsize=9)
        axis.margins(x=0.22)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(length=0, labelsize=9)
    return chart(
        "speed",
        "Time",
        "Mean over seeds; times on different machines are not comparable.",
        figure,
        folded=True,
    )


def name_chart(axis: Axes, label: str, width: float) -> None:
    """Write the name of a row above its chart, which is `width` inches wide."""
    axis.set_title(wrapped(label, int(10 * width)), loc="left", fontsize=8.5, fontweight="bold")


def wrapped(label: str, width: int) -> str:
    """Wrap a name to about three lines; a longer name loses its middle, since the end is distinctive.

    >>> wrapped("rotation", 10), wrapped("jigsaw of so many names, lr=0.1", 10)
    ('rotation', 'jigsaw of\\n... es,\\nlr=0.1')
    """
    if len(label) > 3 * width:
        label = f"{label[:width]} ... {label[-(2 * width - 10) :]}"
    return "\n".join(textwrap.wrap(label, width)).replace("$", r"\$")  # $ begins a formula


def pretext_name(row: Row) -> str:
    """Return the axis label of a pretext figure."""
    name = (row.pretext or "").removeprefix("val/")
    return f"pretext {name}{' in %' * is_share(name)}"
