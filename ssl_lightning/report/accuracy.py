"""Accuracies with their errors, averaged over the seeds of a row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ssl_lightning.artifacts.results import BALANCED, Record, Results, best_stage

SIGMAS = 2.0  # a difference counts if it exceeds this many standard errors
FLAT = 0.01  # smallest difference that counts where no standard error is known


@dataclass(frozen=True)
class Figure:
    """An accuracy, averaged over seeds.

    Args:
        value: In [0, 1].
        error: Standard error, the larger of the sample's and the seeds'.
    """

    value: float
    error: float


def mean_figure(values: Sequence[float], n: int, of_sample: float | None = None) -> Figure:
    """Average the accuracies of the seeds, each over the same n images.

    Args:
        values: Accuracy of each seed.
        n: Number of images.
        of_sample: Standard error over the images; None: that of a plain accuracy.
    """
    mean = statistics.fmean(values)
    if of_sample is None:  # not over the seeds: all share the images
        of_sample = math.sqrt(max(mean * (1 - mean), 0.0) / n)
    of_seeds = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Figure(mean, max(of_sample, of_seeds))


def probe_figure(runs: Sequence[Results], *, trained: bool, heldout: bool = False) -> Figure | None:
    """Average the accuracy of the linear probe, or without one of the first probe, over runs.

    It is the top-1, or the balanced accuracy if the classes are unequal in number. Held-out images choose the
    stage of each run.

    Args:
        runs: One run for each seed.
        trained: Whether the backbone was pretrained.
        heldout: Whether to return the figure on held-out images, which may select, instead of test images.

    Returns:
        None if a run has no such figure.
    """
    best: list[Record] = []
    for run in runs:
        rows = [r for r in run.probes if r.trained == trained and r.metric == judging_metric(run)]
        names = dict.fromkeys(r.probe for r in rows)
        chosen = "linear" if "linear" in names else next(iter(names), None)
        record = best_stage([r for r in rows if r.probe == chosen and r.branch == "backbone"])
        if record is None or (heldout and record.heldout is None):
            return None
        best.append(record)
    if not best:
        return None
    if heldout:
        return mean_figure([float(r.heldout or 0) for r in best], best[0].heldout_images)
    return records_figure(best)


def records_figure(records: Sequence[Record]) -> Figure:
    """Average one record of each seed, all of one metric over the same test images.

    Where a metric has no standard error over the images, half of `FLAT` takes its place. Draws of few labels
    add the error of their mean.
    """
    errors = [r.standard_error for r in records if r.standard_error is not None]
    of_images = statistics.fmean(errors) if errors else FLAT / SIGMAS
    of_draws = statistics.fmean(_error_of_draws(r) for r in records)
    return mean_figure([r.value for r in records], records[0].n, math.hypot(of_images, of_draws))


def judging_metric(run: Results) -> str:
    """Return the metric that judges: top-1, or balanced accuracy if the classes are unequal in number."""
    return BALANCED if any(r.metric == BALANCED for r in run.probes) else "top1"


def difference(one: Figure, other: Figure) -> int:
    """Return 1 if `one` is larger beyond the noise, -1 if smaller, 0 otherwise."""
    gap = one.value - other.value
    if abs(gap) <= SIGMAS * math.hypot(one.error, other.error):
        return 0
    return 1 if gap > 0 else -1


def _error_of_draws(record: Record) -> float:
    deviation, draws = (record.protocol.get(key) for key in ("sd", "draws"))
    return deviation / math.sqrt(draws) if deviation and isinstance(draws, int) and draws > 0 else 0.0
