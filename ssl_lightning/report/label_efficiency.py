"""Label-efficiency curves: accuracy of backbones with few labels."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ssl_lightning.artifacts.records import Record, best_stage
from ssl_lightning.artifacts.results import Results, read_results
from ssl_lightning.artifacts.run_folder import RESULTS
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.untrusted import printable
from ssl_lightning.report.cells import treatment
from ssl_lightning.report.colours import Style, styles

PROBE = "lowshot"
SHARES = ("miou", "miou_learned", "ap50")  # metrics of shares of the labels
METRICS = {
    "top1": "top-1 in %",
    "map": "mean average precision in %",
    "miou": "mIoU over all classes in %",
    "miou_learned": "mIoU over learned classes in %",
    "ap50": "AP50 in %",
}
PER_CLASS, IN_ALL = "labelled images per class", "labelled images"


@dataclass(frozen=True)
class Curve:
    """Curve of one backbone.

    Args:
        name: Name of the task, or of the row of a benchmark.
        ks: Labelled images, per class or in all, rising.
        values: Mean over the draws, in [0, 1], at the stage with the best held-out figure.
        deviations: Standard deviation over the draws.
        metric: A key of `METRICS`.
        data: Name of the probed data set.
        counted: What `ks` counts.
    """

    name: str
    ks: list[int]
    values: list[float]
    deviations: list[float]
    metric: str
    data: str
    counted: str = PER_CLASS


def curve(results: Results) -> Curve:
    """Return the curve of the trained backbone of a run; without training, of the untrained backbone.

    Raises:
        ValueError: The run has no low-shot figures; the message gives a command to add them.
    """
    run = results.run
    rows = [r for r in results.probes if (r.probe, r.branch) == (PROBE, "backbone")]
    trained = any(r.trained for r in rows)
    rows = [r for r in rows if r.trained == trained]
    rows = _of_one_setting([r for r in rows if r.metric in METRICS])
    if not rows:
        raise ValueError(
            f"the run of {run.task} on {run.data} has no low-shot figures; "
            f"add them with: {command_line('evaluate')} run=<its folder> probe=[{PROBE}]"
        )
    ks = sorted({r.protocol["k_shot"] for r in rows})
    best = [best for k in ks if (best := best_stage([r for r in rows if r.protocol["k_shot"] == k]))]
    return Curve(
        run.task,
        ks,
        [r.value for r in best],
        [r.protocol["sd"] for r in best],
        rows[0].metric,
        (rows[0].evaluation or run).data,
    )


def share_curve(results: Results, metric: str) -> Curve | None:
    """Return the curve of a run over shares of the labels, likewise of the trained backbone if there is one.

    Args:
        results: Results of the run.
        metric: One of `SHARES`.

    Returns:
        None if the run has no such figures.
    """
    rows = [r for r in results.probes if r.metric == metric and r.branch == "backbone"]
    rows = [r for r in rows if "class_draws" in r.protocol]
    trained = any(r.trained for r in rows)
    rows = _of_one_setting([r for r in rows if r.trained == trained])
    by_labels = {r.protocol["labels"]["train"]: r for r in rows}
    if not by_labels:
        return None
    shown = [by_labels[labels] for labels in sorted(by_labels)]
    return Curve(
        results.run.task,
        sorted(by_labels),
        [r.value for r in shown],
        [r.protocol["sd"] or 0.0 for r in shown],
        metric,
        (shown[0].evaluation or results.run).data,
        IN_ALL,
    )


def _of_one_setting(rows: Sequence[Record]) -> list[Record]:
    """Return a run's own figures; without any, all with the data and the setting of the last evaluation."""

    def setting(record: Record) -> tuple[Any, ...]:
        all_labels = replace(record, protocol=record.protocol | {"k_shot": None, "fraction": None})
        return record.evaluation and record.evaluation.data, treatment(all_labels)

    own = [r for r in rows if r.evaluation is None]
    return own or [r for r in rows if setting(r) == setting(rows[-1])]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average the curves of several seeds, at the numbers of labels that all have.

    Returns:
        A curve whose deviations are over the seeds. One curve is returned as it is.
    """
    if len(curves) == 1:
        return curves[0]
    ks = sorted(set.intersection(*(set(each.ks) for each in curves)))
    by_k = [[each.values[each.ks.index(k)] for each in curves] for k in ks]
    means, deviations = [statistics.fmean(of) for of in by_k], [statistics.stdev(of) for of in by_k]
    return replace(curves[0], ks=ks, values=means, deviations=deviations)


def draw_curves(curves: Sequence[Curve], looks: Sequence[Style] | None = None, width: float = 8.4) -> Figure:
    """Draw curves over a logarithmic axis of labels, each with a band of one standard deviation.

    Args:
        curves: The curves.
        looks: Style of each curve; None: by their names.
        width: Width of the figure in inches; a narrow one has its legend below.

    Raises:
        ValueError: There are no curves, or they differ in metric or data set.
    """
    kinds = {(c.metric, c.data) for c in curves}
    if len(kinds) != 1:
        raise ValueError(
            f"curves show {sorted(kinds) or 'nothing'}; all must show one metric on one data set"
        )
    metric, data = kinds.pop()
    narrow = width < 6
    figure = Figure(figsize=(width, 4 + 0.12 * len(curves) if narrow else 4.4), layout="constrained")
    axis = figure.subplots()
    by_end = sorted(
        zip(curves, looks or styles([c.name for c in curves]), strict=True), key=lambda c: -c[0].values[-1]
    )
    for each, look in by_end:  # the legend follows the ends of the curves
        percent = [100 * value for value in each.values]
        axis.plot(
            each.ks, percent, look.line, color=look.colour, marker=look.marker, markersize=5, label=each.name
        )
        low, high = (
            [p + sign * 100 * sd for p, sd in zip(percent, each.deviations, strict=True)] for sign in (-1, 1)
        )
        axis.fill_between(each.ks, low, high, color=look.colour, alpha=0.2, linewidth=0)
    ks = sorted({k for each in curves for k in each.ks})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.minorticks_off()
    axis.set_xlabel(curves[0].counted)
    axis.set_ylabel(f"{data}: test {METRICS[metric]}".replace("$", r"\$"))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if narrow:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    else:
        figure.legend(loc="outside right upper", title="pretrained by", frameon=False, fontsize=9)
    return figure


def main(arguments: Sequence[str]) -> int:
    """Draw the runs named on the command line; return the exit status.

    `python -m ssl_lightning.report.label_efficiency curve.png <run folder> <run folder> ...` draws the
    figures in the results.json of each run: on shares of the labels (`probe=[segmentation]` or
    `probe=[detection]`), or else of `probe=[lowshot]`.
    """
    if len(arguments) < 2:
        print(f"usage: python -m {__spec__.name} <picture> <run folder> ...", file=sys.stderr)
        return 2
    try:
        found = [read_results(Path(folder) / RESULTS) for folder in arguments[1:]]
        curves = [share_curve(each, "miou") or share_curve(each, "ap50") or curve(each) for each in found]
        looks = styles([each.name for each in curves])
        rows = [each.run.benchmark for each in found]  # a row tells runs of one task apart
        named = [replace(each, name=row.row) if row else each for each, row in zip(curves, rows, strict=True)]
        draw_curves(named, looks).savefig(arguments[0], dpi=130)
    except (OSError, ValueError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
