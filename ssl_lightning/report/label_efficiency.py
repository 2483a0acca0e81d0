"""The label-efficiency curve: how good a backbone's features are with few labels, run by run.

`python -m ssl_lightning.report.label_efficiency curve.png <run folder> <run folder> ...` draws what
`probe=[lowshot]` left in the results.json of each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ssl_lightning.artifacts.results import Results, best_stage, read_results
from ssl_lightning.artifacts.run_folder import RESULTS
from ssl_lightning.core.untrusted import printable

PROBE = "lowshot"
METRICS = {"top1": "top-1 in %", "map": "mean average precision in %"}


@dataclass(frozen=True)
class Curve:
    """Figures of one backbone.

    Args:
        name: Of the task.
        ks: Labelled images a class, rising.
        values: Mean over the draws, in [0, 1], at the stage that did best on held-out images.
        deviations: Standard deviation over the draws.
        metric: "top1" or "map".
        data: Name of the data that was probed on.
    """

    name: str
    ks: list[int]
    values: list[float]
    deviations: list[float]
    metric: str
    data: str


def curve(results: Results) -> Curve:
    """Take the curve of the trained backbone out of the results of a run.

    Of a control that trains nothing it is that of the untrained one.

    Raises:
        ValueError: The run has no low-shot figures; says how to get them.
    """
    run = results.run
    rows = [r for r in results.probes if (r.probe, r.branch) == (PROBE, "backbone")]
    trained = any(r.trained for r in rows)
    rows = [r for r in rows if r.trained == trained]
    rows = [r for r in rows if r.metric in METRICS]
    if not rows:
        raise ValueError(
            f"the run of {run.task} on {run.data} has no figures with few labels; "
            f"get them by: python evaluate.py run=<its folder> probe=[{PROBE}]"
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
    """Draw curves over a logarithmic axis of labels, each with a band of one deviation over the draws.

    Raises:
        ValueError: There are none, or they do not show the same figure of the same data.
    """
    kinds = {(c.metric, c.data) for c in curves}
    if len(kinds) != 1:
        raise ValueError(
            f"curves of one figure on one data set are needed; these are {sorted(kinds) or 'none'}"
        )
    metric, data = kinds.pop()
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for each in sorted(curves, key=lambda c: -c.values[-1]):  # the legend is in the order of the ends
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
    axis.set_xlabel("labelled images a class")
    axis.set_ylabel(f"{data}: test {METRICS[metric]}".replace("$", r"\$"))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, title="pretrained by")
    return figure


def main(arguments: Sequence[str]) -> int:
    """Draw the runs named on the command line; return the exit status."""
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
