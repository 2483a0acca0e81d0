"""The table: rows of cells, published figures beside them, and in words all that one must know of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from ssl_lightning.report.benchmark import Benchmark, Column, Published
from ssl_lightning.report.cells import Cell, make_cell
from ssl_lightning.report.collect import ReportedRun

MAIN_BRANCH = "backbone"  # the branch that every task has
PRETEXTS = (
    "val/acc",
    "val/psnr",
    "val/hole_psnr",
    "val/auc",
    "val/loss",
)  # what is shown of a pretext, if there


@dataclass
class Row:
    """One row.

    Args:
        name: Of the benchmark's rows, or of the series.
        branch: Which backbone of the runs.
        cells: By the name of the column; where there is no figure, there is no cell.
        runs: The newest finished run of each seed, by seed.
        pretext: The figure of the pretext that is shown.
    """

    name: str
    branch: str
    cells: dict[str, Cell]
    runs: list[ReportedRun]
    pretext: str | None

    @property
    def label(self) -> str:
        return self.name if self.branch == MAIN_BRANCH else f"{self.name}, {self.branch}"

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def used(self) -> list[ReportedRun]:
        """All runs that a figure of this row is of."""
        found = {pick.run.name: pick.run for cell in self.cells.values() for pick in cell.picks}
        return [found[name] for name in sorted(found, key=lambda name: (found[name].seed, name))]

    @property
    def labels(self) -> bool:
        """Whether the backbone has seen labels: such a row is a bound, not a competitor."""
        return any(run.facts.labels not in (None, "none") for run in self.used)

    @property
    def speed(self) -> float | None:
        """Images a second in pretraining, mean over the seeds; None if nothing was trained."""
        speeds = [run.facts.images_per_s for run in self.runs if run.facts.images_per_s > 0]
        return statistics.fmean(speeds) if speeds else None

    @property
    def wall_s(self) -> float:
        return statistics.fmean(run.facts.wall_s for run in self.runs)

    def pretext_mean(self) -> float | None:
        values = [run.pretext[self.pretext] for run in self.runs if self.pretext in run.pretext]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """A published figure beside the measured one, if there is one; the difference is measured - published."""

    published: Published
    cell: Cell | None

    @property
    def difference(self) -> float | None:
        return None if self.cell is None else self.cell.mean - self.published.value


@dataclass
class Table:
    """A table.

    Args:
        name: For file names and anchors.
        title: For a person.
        columns: Their names, in order.
        rows: In order.
        comparisons: With published figures.
        notes: What one must know of it, kind by kind, in sentences (`ssl_lightning.report.notes`).
    """

    name: str
    title: str
    columns: list[str]
    rows: list[Row]
    comparisons: list[Comparison] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def column(self, name: str) -> list[Cell]:
        return [row.cells[name] for row in self.rows if name in row.cells]

    def best(self, name: str) -> float | None:
        """The largest mean of a column, of rows that have seen no label; None where there is no contest."""
        cells = [row.cells[name] for row in self.rows if name in row.cells and not row.labels]
        contest = len(cells) > 1 and all(cell.percent for cell in cells)
        return max(cell.mean for cell in cells) if contest else None


Duplicates = dict[str, tuple[str, list[str]]]  # what has several runs -> the one that counts, the older ones


def make_rows(
    groups: Mapping[str, Sequence[ReportedRun]],
    columns: Sequence[Column],
    pretext: Mapping[str, str],
) -> tuple[list[Row], Duplicates]:
    """Make the rows of a table, the branches of one right after each other.

    Args:
        groups: The finished runs of each row; those of the task random are controls for all.
        columns: Of the table.
        pretext: For a row the name of the figure of its pretext.

    Returns:
        Rows, without those that have no figure; and for "row, seed" what was passed over.
    """
    controls: dict[tuple[int, str, str], ReportedRun] = {}
    for run in sorted(chain(*groups.values()), key=lambda run: (run.ended, run.name)):
        if run.facts.task == "random":
            controls[_like(run)] = run  # the newest counts
    rows: list[Row] = []
    passed: Duplicates = {}
    for name, runs in groups.items():
        for branch in branches(runs):
            cells: dict[str, Cell] = {}
            for column in columns:
                cell, older = make_cell(runs, branch, column, lambda run: controls.get(_like(run)))
                if cell is None:
                    continue
                cells[column.name] = cell
                newest = {pick.run.seed: pick.run.name for pick in cell.picks}
                for run in older:
                    _, names = passed.setdefault(f"{name}, seed {run.seed}", (newest[run.seed], []))
                    if run.name not in names:
                        names.append(run.name)
            if cells:
                shown = main_runs(cells.values())
                rows.append(Row(name, branch, cells, shown, pretext.get(name) or _pretext(shown)))
    return rows, passed


def branches(runs: Sequence[ReportedRun]) -> list[str]:
    """The backbones that the runs were probed on, the backbone first."""
    found = {record.branch for run in runs for record in run.probes}
    return sorted(found, key=lambda branch: (branch != MAIN_BRANCH, branch))


def main_runs(cells: Iterable[Cell]) -> list[ReportedRun]:
    """For each seed the run of the first column that has it: its time and pretext are those of the row."""
    found: dict[int, ReportedRun] = {}
    for cell in cells:
        for pick in cell.picks:
            found.setdefault(pick.run.seed, pick.run)
    return [found[seed] for seed in sorted(found)]


def compare(benchmark: Benchmark, rows: Sequence[Row]) -> list[Comparison]:
    """Put the measured figures beside the published ones; some have none."""
    cells = {(row.label, name): cell for row in rows for name, cell in row.cells.items()}
    return [Comparison(each, cells.get((each.row, each.column))) for each in benchmark.published]


def group_by(runs: Iterable[ReportedRun], key: Callable[[ReportedRun], str]) -> dict[str, list[ReportedRun]]:
    """Runs by a key, in the order of its first appearance."""
    found: dict[str, list[ReportedRun]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def _like(run: ReportedRun) -> tuple[int, str, str]:
    return run.seed, run.facts.data, run.facts.backbone


def _pretext(runs: Sequence[ReportedRun]) -> str | None:
    return next((name for name in PRETEXTS if any(name in run.pretext for run in runs)), None)
