"""Label-efficiency curves: accuracy of backbones with few labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ssl_lightning.artifacts.results import Results, best_stage, read_results
from ssl_lightning.artifacts.run_folder import RESULTS
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.untrusted import printable

PROBE = "lowshot"
METRICS = {"top1": "top-1 in %", "map": "mean average precision in %"}


@dataclass(frozen=True)
class Curve:
    """Curve of one backbone.

    Args:
        name: Name of the task.
        ks: Labelled images per class, rising.
        values: Mean over the draws, in [0, 1], at the stage with the best held-out figure.
        deviations: Standard deviation over the draws.
        metric: "top1" or "map".
        data: Name of the probed data set.
    """

    name: str
    ks: list[int]
    values: list[float]
    deviations: list[float]
    metric: str
    data: str


def curve(results: Results) -> Curve:
    """Return the curve of the trained backbone of a run; without training, of the untrained backbone.

    Raises:
        ValueError: The run has no low-shot figures; the message gives a command to add them.
    """
    run = results.run
    rows = [r for r in results.probes if (r.probe, r.branch) == (PROBE, "backbone")]
    trained = any(r.trained for r in rows)
    rows = [r for r in rows if r.trained == trained]
    rows = [r for r in rows if r.metric in METRICS]
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


def draw_curves(curves: Sequence[Curve]) -> Figure:
    """Draw curves over a logarithmic axis of labels, each with a band of one standard deviation.

    Raises:
        ValueError: There are no curves, or they differ in metric or data set.
    """
    kinds = {(c.metric, c.data) for c in curves}
    if len(kinds) != 1:
        raise ValueError(
            f"curves show {sorted(kinds) or 'nothing'}; all must show one metric on one data set"
        )
    metric, data = kinds.pop()
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for each in sorted(curves, key=lambda c: -c.values[-1]):  # orders the legend by the ends of the curves
        percent = [100 * value for value in each.values]
        (line,) = axis.plot(each.ks, percent, marker="o", markersize=4, label=each.name)
        low, high = (
            [p + sign * 100 * sd for p, sd in zip(percent, each.deviations, strict=True)] for sign in (-1, 1)
        )
        axis.fill_between(each.ks, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ks = sorted({k for each in curves for k in each.ks})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.minorticks_off()
    axis.set_xlabel("labelled images per class")
    axis.set_ylabel(f"{data}: test {METRICS[metric]}".replace("$", r"\$"))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, title="pretrained by")
    return figure


def main(arguments: Sequence[str]) -> int:
    """Draw the runs named on the command line; return the exit status.

    `python -m ssl_lightning.report.label_efficiency curve.png <run folder> <run folder> ...` draws the
    figures of `probe=[lowshot]` in the results.json of each run.
    """
    if len(arguments) < 2:
        print(f"usage: python -m {__spec__.name} <picture> <run folder> ...", file=sys.stderr)
        return 2
    try:
        curves = [curve(read_results(Path(folder) / RESULTS)) for folder in arguments[1:]]
        draw_curves(curves).savefig(arguments[0], dpi=130)
    except (OSError, ValueError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
