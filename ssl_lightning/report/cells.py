"""Cells of a table: records per seed, their mean, and the gain over the untrained backbone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_lightning.artifacts.records import LESS_IS_BETTER, SPECTRAL, Record, best_stage
from ssl_lightning.artifacts.typed_json import to_json
from ssl_lightning.report.accuracy import FLAT, Figure, critical_value, gain_error, mean_of
from ssl_lightning.report.benchmark import BEST_STAGE, Column
from ssl_lightning.report.collect import ReportedRun
from ssl_lightning.report.summary import UNITS, spread_over_draws

UNTRAINED = "the same backbone before its first step"
RANDOM = "the row random of the same seed, data, test images and backbone"
TREATED = RANDOM + ", whose batch norm or input is treated otherwise"


@dataclass(frozen=True)
class Pick:
    """Record of one seed.

    Args:
        run: Run of the record.
        record: The record, at the stage of the column.
        against: Record of the untrained backbone, if measured.
        over: Kind of `against`: UNTRAINED, RANDOM, TREATED, or "".
        others: Number of other settings of the run that fit the column.
    """

    run: ReportedRun
    record: Record
    against: Record | None = None
    over: str = ""
    others: int = 0


@dataclass(frozen=True)
class Cell:
    """One cell of a table: one pick per seed. Numbers are as shown: in %, or plain for a rank and a slope."""

    picks: list[Pick]

    @property
    def percent(self) -> bool:
        return self.picks[0].record.metric not in SPECTRAL

    @property
    def accuracy(self) -> bool:
        """Whether the figure is a share of which more is better."""
        return self.percent and self.direction > 0

    @property
    def scale(self) -> float:
        return 100.0 if self.percent else 1.0

    @property
    def direction(self) -> int:
        """1 if more is better, -1 if less is."""
        return -1 if self.picks[0].record.metric in LESS_IS_BETTER else 1

    @property
    def values(self) -> list[float]:
        return [self.scale * pick.record.value for pick in self.picks]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; of one seed over the draws of its labels, if it has any."""
        if len(self.picks) > 1:
            return statistics.stdev(self.values)
        spread = spread_over_draws(self.picks[0].record)
        return None if spread is None else self.scale * spread

    @property
    def gains(self) -> list[float]:
        """Differences to the untrained backbone, one for each seed that has it."""
        return [self.scale * (pick.record.value - pick.against.value) for pick in self.picks if pick.against]

    @property
    def gain(self) -> float | None:
        return statistics.fmean(self.gains) if self.gains else None

    @property
    def figure(self) -> Figure:
        """Mean with its standard error, not in % but as measured."""
        return mean_of([pick.record for pick in self.picks])

    @property
    def pair(self) -> tuple[Figure, Figure] | None:
        """Untrained and trained figure of the seeds that have both."""
        if not (pair := self._pair_records):
            return None
        before, after = pair
        return mean_of(before), mean_of(after)

    @property
    def _pair_records(self) -> tuple[Sequence[Record], Sequence[Record]] | None:
        pairs = [(pick.against, pick.record) for pick in self.picks if pick.against]
        return tuple(zip(*pairs, strict=True)) or None  # type: ignore[return-value]

    @property
    def gain_error(self) -> float | None:
        """Standard error of the gain; None if unknown."""
        pair = self._pair_records
        error = gain_error(*pair) if pair else None
        return None if error is None else self.scale * error

    @property
    def trend(self) -> int:
        """1 for a figure better than before beyond the noise, -1 for a worse one, else 0, as for ranks."""
        pair, error = self._pair_records, self.gain_error
        noise = self.scale * FLAT if pair is None or error is None else critical_value(*pair) * error
        if self.gain is None or not self.percent or abs(self.gain) <= noise:
            return 0
        return self.direction if self.gain > 0 else -self.direction

    @property
    def over(self) -> list[str]:
        """Kinds of untrained backbones in the gains."""
        return sorted({pick.over for pick in self.picks if pick.over})

    @property
    def stages(self) -> list[str]:
        return [str(pick.record.stage) for pick in self.picks]


def make_pick(
    run: ReportedRun, branch: str, column: Column, controls: Sequence[ReportedRun] = ()
) -> Pick | None:
    """Select the record of a run for a column.

    If several settings fit, the run's own record comes first, then the last evaluation's. Held-out images
    choose the stage, also for the untrained backbone.

    Args:
        run: A finished run.
        branch: One of its branches.
        column: Column of the table.
        controls: Runs without training with the same seed, data and backbone, for the gain; the first that
            was measured on the same images counts.

    Returns:
        None if the run has no such figure.
    """
    groups = settings(run, branch, column, trained=not run.control)
    if not groups:
        return None
    chosen = groups[0]
    record = at_stage(chosen, column)
    if record is None:
        return None
    others = len(groups) - 1
    if run.control:
        return Pick(run, record, others=others)
    for setting in settings(run, branch, column, trained=False):
        alike = treatment(setting[0]) == treatment(record) and on_same_images(setting[0], record)
        if alike and run.probed(setting[0]) == run.probed(record):
            return Pick(run, record, at_stage(setting, column), UNTRAINED, others)
    if branch == "backbone":
        found = [each for control in controls for each in settings(control, branch, column, trained=False)]
        fitting = [setting for setting in found if comparable(setting[0], record)]
        fitting.sort(key=lambda setting: treatment(setting[0]) != treatment(record))
        if fitting:
            over = RANDOM if treatment(fitting[0][0]) == treatment(record) else TREATED
            return Pick(run, record, at_stage(fitting[0], column), over, others)
    return Pick(run, record, others=others)


def settings(run: ReportedRun, branch: str, column: Column, *, trained: bool) -> list[list[Record]]:
    """Group the records that fit a column by setting, the preferred setting first."""
    groups: dict[str, list[Record]] = {}
    for record in run.probes:
        fits = (record.branch, record.trained) == (branch, trained)
        if fits and column.matches(record, run.probed(record), run.facts.data):
            key = json.dumps([to_json(record.evaluation), treatment(record)], sort_keys=True)
            groups.setdefault(key, []).append(record)
    metrics = list(UNITS)

    def preference(numbered: tuple[int, list[Record]]) -> tuple[bool, int, int]:
        number, (first, *_) = numbered
        later = first.evaluation is not None
        metric = metrics.index(first.metric) if first.metric in UNITS else len(metrics)
        return later, metric, -number if later else number

    return [group for _, group in sorted(enumerate(groups.values()), key=preference)]


def at_stage(records: Sequence[Record], column: Column) -> Record | None:
    """Return the record at the stage of a column; for equal stages, the later one."""
    by_stage = {record.stage: record for record in records}
    return best_stage(list(by_stage.values())) if column.stage == BEST_STAGE else by_stage.get(column.stage)


def quantity(record: Record) -> list[Any]:
    """Identify the measured quantity; figures of different quantities cannot be compared."""
    backbone = str(record.protocol.get("backbone")).split(",")[0]  # frozen or fine-tuned
    settings = ("k", "k_shot", "fraction", "steps", "hidden", "classifier")
    return [record.probe, record.metric, backbone, *(record.protocol.get(key) for key in settings)]


def treatment(record: Record) -> list[Any]:
    """Identify the measured quantity and the preparation of the backbone and its input."""
    return [*quantity(record), *(record.protocol.get(key) for key in ("input", "batch_norm"))]


def comparable(one: Record, other: Record) -> bool:
    """Whether two records are of the same quantity on the same images."""
    return quantity(one) == quantity(other) and on_same_images(one, other)


def on_same_images(one: Record, other: Record) -> bool:
    """Whether as many images were labelled and tested, and the test images have the same labels, if known.

    Pictures with masks or boxes are the same only at the same size, and with the same classes.
    """
    tests = {record.answers.test for record in (one, other) if record.answers is not None}
    images = [
        [record.n, record.protocol.get("labels"), record.protocol.get("image_size"), _classes(record)]
        for record in (one, other)
    ]
    return images[0] == images[1] and len(tests) < 2


def _classes(record: Record) -> set[str]:
    """Return the names of the classes of masks or boxes; none for other records."""
    return set(record.protocol.get("per_class") or ())


def make_cell(
    runs: Sequence[ReportedRun],
    branch: str,
    column: Column,
    controls: Callable[[ReportedRun], Sequence[ReportedRun]],
) -> tuple[Cell | None, list[ReportedRun]]:
    """Make a cell from the newest run of each seed that has the figure.

    Args:
        runs: Finished runs of the row.
        branch: One of their branches.
        column: Column of the table.
        controls: Finds the runs without training that a gain may refer to, the newest first.

    Returns:
        The cell (None if no run has the figure), and the older runs that have the figure too.
    """
    by_seed: dict[int, Pick] = {}
    older: list[ReportedRun] = []
    for run in sorted(runs, key=lambda run: (run.ended, run.name), reverse=True):
        pick = make_pick(run, branch, column, controls(run))
        if pick is None:
            continue
        if run.seed in by_seed:
            older.append(run)
        else:
            by_seed[run.seed] = pick
    return (Cell([by_seed[seed] for seed in sorted(by_seed)]) if by_seed else None), older
