"""One figure of a table: the records that it is taken from, their mean, the gain over the untrained backbone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_lightning.artifacts.results import Record, best_stage
from ssl_lightning.artifacts.typed_json import to_json
from ssl_lightning.report.benchmark import BEST_STAGE, Column
from ssl_lightning.report.collect import ReportedRun
from ssl_lightning.report.summary import UNITS

UNTRAINED = "the same backbone before its first step"
RANDOM = "the row random of the same seed, data and backbone"
TREATED = RANDOM + ", whose batch norm or input is treated otherwise"


@dataclass(frozen=True)
class Pick:
    """The record of one seed.

    Args:
        run: Where it is from.
        record: It, at the stage that the column asks for.
        against: The same of the untrained backbone, if it was measured.
        over: What that is: UNTRAINED, RANDOM, TREATED, or "".
        others: How many other figures of the run the column would fit as well.
    """

    run: ReportedRun
    record: Record
    against: Record | None = None
    over: str = ""
    others: int = 0


@dataclass(frozen=True)
class Cell:
    """One figure of a table: a pick for each seed. Numbers are as shown: in %, a rank plain."""

    picks: list[Pick]

    @property
    def percent(self) -> bool:
        return bool(self.picks[0].record.metric != "rankme")

    @property
    def scale(self) -> float:
        return 100.0 if self.percent else 1.0

    @property
    def values(self) -> list[float]:
        return [self.scale * pick.record.value for pick in self.picks]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Of the sample of seeds; None for one seed."""
        return statistics.stdev(self.values) if len(self.picks) > 1 else None

    @property
    def gains(self) -> list[float]:
        """Differences to the untrained backbone, seed by seed, for the seeds that have it."""
        return [self.scale * (pick.record.value - pick.against.value) for pick in self.picks if pick.against]

    @property
    def gain(self) -> float | None:
        return statistics.fmean(self.gains) if self.gains else None

    @property
    def over(self) -> list[str]:
        """What the gains are over."""
        return sorted({pick.over for pick in self.picks if pick.over})

    @property
    def stages(self) -> list[str]:
        return [str(pick.record.stage) for pick in self.picks]


def make_pick(run: ReportedRun, branch: str, column: Column, control: ReportedRun | None) -> Pick | None:
    """Take the figure of a run for a column.

    Of several that fit, such as those of other settings that were evaluated later, it is that of the run
    itself, else that of the last evaluation. Stages are chosen on held-out images, the untrained one's too.

    Args:
        run: Finished.
        branch: Of its backbones.
        column: Of the table.
        control: A run that trained nothing, of the same seed, data and backbone, for the gain.

    Returns:
        None where it has no such figure.
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
        if treatment(setting[0]) == treatment(record) and run.probed(setting[0]) == run.probed(record):
            return Pick(run, record, at_stage(setting, column), UNTRAINED, others)
    if control is not None and branch == "backbone":
        for alike in (True, False):
            for setting in settings(control, branch, column, trained=False):
                if what(setting[0]) == what(record) and (
                    not alike or treatment(setting[0]) == treatment(record)
                ):
                    return Pick(run, record, at_stage(setting, column), RANDOM if alike else TREATED, others)
    return Pick(run, record, others=others)


def settings(run: ReportedRun, branch: str, column: Column, *, trained: bool) -> list[list[Record]]:
    """Records that a column fits, a list for each setting that they are of; the preferred one first."""
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
    """The record at the stage of a column; of two of one stage the later one."""
    by_stage = {record.stage: record for record in records}
    return best_stage(list(by_stage.values())) if column.stage == BEST_STAGE else by_stage.get(column.stage)


def what(record: Record) -> list[Any]:
    """What was measured: figures that differ in it cannot be compared."""
    return [
        record.probe,
        record.metric,
        *(record.protocol.get(k) for k in ("k", "k_shot", "fraction")),
    ]


def treatment(record: Record) -> list[Any]:
    """What was measured, and how the backbone was prepared and fed for it."""
    return [*what(record), *(record.protocol.get(key) for key in ("input", "batch_norm"))]


def make_cell(
    runs: Sequence[ReportedRun],
    branch: str,
    column: Column,
    control: Callable[[ReportedRun], ReportedRun | None],
) -> tuple[Cell | None, list[ReportedRun]]:
    """Make the cell of a row: for each seed of the newest run that has the figure.

    Args:
        runs: Finished ones of the row.
        branch: Of their backbones.
        column: Of the table.
        control: Finds the run that trained nothing, for a gain.

    Returns:
        The cell, None where no run has the figure; and the older runs that would have had it too.
    """
    by_seed: dict[int, Pick] = {}
    older: list[ReportedRun] = []
    for run in sorted(runs, key=lambda run: (run.ended, run.name), reverse=True):
        pick = make_pick(run, branch, column, control(run))
        if pick is None:
            continue
        if run.seed in by_seed:
            older.append(run)
        else:
            by_seed[run.seed] = pick
    return (Cell([by_seed[seed] for seed in sorted(by_seed)]) if by_seed else None), older
