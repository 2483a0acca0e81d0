"""Accuracies and gains with their errors, averaged over the seeds of a row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ssl_lightning.artifacts.records import BALANCED, Record, best_stage
from ssl_lightning.artifacts.results import Results

SIGMAS = 2.0  # a difference counts if it exceeds this many standard errors; see `critical_value`
FLAT = 0.01  # smallest difference that counts where no standard error is known


@dataclass(frozen=True)
class Figure:
    """An accuracy, averaged over seeds.

    Args:
        value: In [0, 1].
        error: Standard error, the larger of the sample's and the seeds'.
        records: The accuracies on test images, one for each seed; none for figures on held-out images.
    """

    value: float
    error: float
    records: tuple[Record, ...] = ()


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
        images = best[0].heldout_images
        of_sample = _balanced_error(best)
        if of_sample is not None:  # of the test images; held-out ones have the classes in the same proportion
            of_sample *= math.sqrt(best[0].n / images)
        return mean_figure([float(r.heldout or 0) for r in best], images, of_sample)
    return mean_of(best)


def mean_of(records: Sequence[Record]) -> Figure:
    """Average one test figure of each seed; half of `FLAT` is the error where a metric knows none."""
    of_images = _balanced_error(records)
    if all(r.standard_error is None for r in records):
        of_images = FLAT / SIGMAS
    figure = mean_figure([r.value for r in records], records[0].n, of_images)
    return replace(figure, records=tuple(records))


def _balanced_error(records: Sequence[Record]) -> float | None:
    """Return the standard error of balanced accuracies over their test images; None for other metrics."""
    errors = [r.standard_error for r in records if r.metric == BALANCED and r.standard_error is not None]
    return statistics.fmean(errors) if errors else None


def judging_metric(run: Results) -> str:
    """Return the metric that judges: top-1, or balanced accuracy if the classes are unequal in number."""
    return BALANCED if any(r.metric == BALANCED for r in run.probes) else "top1"


def difference(one: Figure, other: Figure) -> int:
    """Return 1 if `one` is larger beyond the noise, -1 if smaller, 0 otherwise."""
    gap = one.value - other.value
    if abs(gap) <= critical_value(other.records, one.records) * error_of_difference(one, other):
        return 0
    return 1 if gap > 0 else -1


def error_of_difference(one: Figure, other: Figure) -> float:
    """Return the standard error of the difference of two accuracies, see `paired_error`."""
    paired = paired_error(other.records, one.records)
    if paired is None:
        paired = draws_error(other.records, one.records)
    return math.hypot(one.error, other.error) if paired is None else paired


def gain_error(before: Sequence[Record], after: Sequence[Record]) -> float | None:
    """Return the standard error of the gain between the seeds of two backbones.

    Means over draws of labelled images have that of `draws_error`. Other accuracies without stored answers
    count as independent. None for other metrics without an error.
    """
    if any(r.standard_error is None for r in (*before, *after)):
        return draws_error(before, after)
    return error_of_difference(mean_of(after), mean_of(before))


def draws_error(before: Sequence[Record], after: Sequence[Record]) -> float | None:
    """Return the standard error of a gain that was measured on the same draws of labelled images.

    It is the root of draw^2 + seed^2 + image^2. `draw` is the standard deviation of the gain over the draws,
    averaged over the seeds, and `seed` that over the seeds, averaged over the draws, each divided by the root
    of their number. `image` is that of two accuracies on independent test images, since the answers of draws
    are not stored. For other metrics it is 0, and the error says nothing about other test images.

    Args:
        before: Record of each seed, on a share of the labelled images or on k of each class.
        after: The same of the other backbone, in the order of the seeds.

    Returns:
        None if the figures have no draws, or not the same share or k, number of draws and number of seeds.
    """
    parts = _errors_of_draws(before, after)
    return None if parts is None else math.hypot(*(error for error, _ in parts))


def critical_value(before: Sequence[Record], after: Sequence[Record]) -> float:
    """Return the number of standard errors that a gain must exceed to count.

    It is `SIGMAS`, which chance alone exceeds in 4.6 % of cases. Between means over few draws of labelled
    images it is the quantile of Student's t for the same share, with the degrees of freedom of Welch and
    Satterthwaite: 4.5 for three draws of one seed.
    """
    parts = _errors_of_draws(before, after) or []
    variance = sum(error**2 for error, _ in parts)
    if not variance:
        return SIGMAS
    from scipy.special import stdtrit  # imported here, since only few reports need it

    degrees = variance**2 / sum(error**4 / free for error, free in parts)
    return float(stdtrit(degrees, NormalDist().cdf(SIGMAS)))


def _errors_of_draws(before: Sequence[Record], after: Sequence[Record]) -> list[tuple[float, float]] | None:
    """Return the standard errors of `draws_error`, each with its degrees of freedom."""
    kinds = {
        (r.probe, r.metric, r.protocol.get("fraction"), r.protocol.get("k_shot"), len(_values(r)))
        for r in (*before, *after)
    }
    if len(before) != len(after) or len(kinds) != 1:
        return None
    *_, fraction, k_shot, draws = kinds.pop()
    if (fraction is None and k_shot is None) or draws < 2:
        return None
    gains = np.array([_values(r) for r in after]) - np.array([_values(r) for r in before])  # (seeds, draws)
    of_draws = gains.mean(0).std(ddof=1) / math.sqrt(draws)
    parts = [(of_draws, float(draws - 1))]
    if len(gains) > 1:
        parts.append((gains.mean(1).std(ddof=1) / math.sqrt(len(gains)), float(len(gains) - 1)))
    of_images = [statistics.fmean(r.image_error or 0.0 for r in records) for records in (before, after)]
    return [*parts, *((error, math.inf) for error in of_images)]


def _values(record: Record) -> Sequence[float]:
    """Return the figure of each draw of labelled images; none without draws."""
    values: Sequence[float] = record.protocol.get("values") or ()
    return values


def paired_error(before: Sequence[Record], after: Sequence[Record]) -> float | None:
    """Return the standard error of a gain in accuracy that was measured on the same test images.

    It is the root of image^2 + seed^2. `image` is the error of the bootstrap over test images, in which the
    answers of all seeds to an image stay together (`image_error`). `seed` is the standard deviation of the
    gain over the seeds, divided by the root of their number; if the two have different numbers of seeds, that
    of each accuracy. Chance that belongs to one image and one seed counts in both: the error is rather large.

    Args:
        before: Record of each seed.
        after: The same, of the better backbone; in the order of the seeds.

    Returns:
        None if answers are absent, or the test images differ.
    """
    answers = [r.answers for r in (*before, *after)]
    known = [each for each in answers if each is not None]
    metrics = {r.metric for r in (*before, *after)}
    if len(known) < len(answers) or len({each.test for each in known}) != 1 or len(metrics) != 1:
        return None
    classes = np.frombuffer(known[0].labels, "<i4")
    if metrics != {BALANCED}:
        classes = np.zeros_like(classes)  # all images count alike
    image = image_error(_mean_right(after) - _mean_right(before), classes)
    values = [[r.value for r in records] for records in (before, after)]
    if len(before) == len(after):
        values = [[new - old for old, new in zip(*values, strict=True)]]
    seed = math.hypot(*(statistics.stdev(v) / math.sqrt(len(v)) for v in values if len(v) > 1))
    return math.hypot(image, seed)


def image_error(gains: NDArray[np.float64], classes: NDArray[np.int32]) -> float:
    """Return the standard deviation of a mean over bootstraps of the images of each class.

    For one class it is sqrt(sum (g - mean g)^2) / n; for gains of -1, 0 and 1 that is
    sqrt(b + c - (b - c)^2 / n) / n with b images won and c lost. For several it is the same of each class,
    the root of the sum of squares over the number of classes.

    Args:
        gains: `(N,)` gain of each image.
        classes: `(N,)`; the mean is that of the means of the classes.
    """
    _, place, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    means = np.bincount(place, gains) / sizes
    variances = np.bincount(place, (gains - means[place]) ** 2) / sizes
    return math.sqrt((variances / sizes).sum()) / len(sizes)


def _mean_right(records: Sequence[Record]) -> NDArray[np.float64]:
    """Return for each test image the share of the seeds that answer it right, `(N,)`."""
    right = [np.frombuffer(r.answers.right, np.uint8) for r in records if r.answers is not None]
    bits: NDArray[np.float64] = np.unpackbits(right, axis=1, count=records[0].n).mean(0)
    return bits
