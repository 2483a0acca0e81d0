"""Tables: rows of cells, published figures for comparison, and notes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from ssl_lightning.report.accuracy import difference
from ssl_lightning.report.benchmark import Benchmark, Column, Published
from ssl_lightning.report.cells import Cell, make_cell
from ssl_lightning.report.collect import ReportedRun

MAIN_BRANCH = "backbone"  # the branch that every task has
# pretext figures by preference: the first that exists is shown
PRETEXTS = ("val/acc", "val/psnr", "val/hole_psnr", "val/auc", "val/loss")


@dataclass
class Row:
    """One row.

    Args:
        name: Name of the benchmark's row, or label of the series.
        branch: Branch of the runs.
        cells: Cells by column name; columns without a figure are absent.
        runs: Newest finished run of each seed, by seed.
        pretext: Name of the pretext figure to show.
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
        """All runs of this row."""
        found = {run.name: run for run in self.runs}
        found |= {pick.run.name: pick.run for cell in self.cells.values() for pick in cell.picks}
        return [found[name] for name in sorted(found, key=lambda name: (found[name].seed, name))]

    @property
    def labels(self) -> bool:
        """Whether the backbone was trained with labels; such a row is a bound, not a competitor."""
        return any(run.facts.labels not in (None, "none") for run in self.used)

    @property
    def speed(self) -> float | None:
        """Images/s in pretraining, mean over the seeds; None without training."""
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
    """A published figure and the measured one, if any; the difference is measured - published."""

    published: Published
    cell: Cell | None

    @property
    def difference(self) -> float | None:
        return None if self.cell is None else self.cell.mean - self.published.value


@dataclass
class Table:
    """A table.

    Args:
        name: Name for files and anchors.
        title: Title for the reader.
        columns: Names of the columns, in order.
        rows: Rows, in order.
        comparisons: Comparisons with published figures.
        notes: Sentences by kind, from `ssl_lightning.report.notes`.
        opening: First sentence, which says who won; "" if nothing tells.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[Row]
    comparisons: list[Comparison] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    opening: str = ""

    def column(self, name: str) -> list[Cell]:
        return [row.cells[name] for row in self.rows if name in row.cells]

    def best(self, name: str) -> float | None:
        """Return the best mean of a column over rows without labels.

        None if fewer than two compete, or if another cannot be told apart from the first.
        """
        cells = [row.cells[name] for row in self.rows if name in row.cells and not row.labels]
        if len(cells) < 2 or not all(cell.percent for cell in cells):
            return None
        better = cells[0].direction
        first, *others = sorted(cells, key=lambda cell: -better * cell.mean)
        ahead = [better * difference(first.figure, each.figure) > 0 for each in others]
        return first.mean if all(ahead) else None


Duplicates = dict[str, tuple[str, list[str]]]  # "row, seed" -> the run that counts, the older ones


def make_rows(
    groups: Mapping[str, Sequence[ReportedRun]],
    columns: Sequence[Column],
    pretext: Mapping[str, str],
) -> tuple[list[Row], Duplicates]:
    """Make the rows of a table; the branches of a row follow each other.

    Args:
        groups: Finished runs of each row; runs of the task random are controls for all rows.
        columns: Columns of the table.
        pretext: Name of the pretext figure, by row.

    Returns:
        Rows that have a figure, and the duplicates that were ignored.
    """
    controls: dict[tuple[int, str, str], list[ReportedRun]] = {}  # the newest first
    for run in sorted(chain(*groups.values()), key=lambda run: (run.ended, run.name), reverse=True):
        if run.facts.task == "random":
            controls.setdefault(_like(run), []).append(run)
    rows: list[Row] = []
    passed: Duplicates = {}
    for name, runs in groups.items():
        for branch in branches(runs):
            cells: dict[str, Cell] = {}
            for column in columns:
                cell, older = make_cell(runs, branch, column, lambda run: controls.get(_like(run), []))
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


def pretext_rows(groups: Mapping[str, Sequence[ReportedRun]]) -> tuple[list[Row], Duplicates]:
    """Make a row without cells for each group, of the newest run of each seed; see `make_rows`."""
    rows: list[Row] = []
    passed: Duplicates = {}
    for name, runs in groups.items():
        newest = {run.seed: run for run in sorted(runs, key=lambda run: (run.ended, run.name))}
        for run in runs:
            if run is not newest[run.seed]:
                passed.setdefault(f"{name}, seed {run.seed}", (newest[run.seed].name, []))[1].append(run.name)
        shown = [newest[seed] for seed in sorted(newest)]
        if shown:
            rows.append(Row(name, MAIN_BRANCH, {}, shown, _pretext(shown)))
    return rows, passed


def branches(runs: Sequence[ReportedRun]) -> list[str]:
    """Return the probed branches of the runs, the main branch first."""
    found = {record.branch for run in runs for record in run.probes}
    return sorted(found, key=lambda branch: (branch != MAIN_BRANCH, branch))


def main_runs(cells: Iterable[Cell]) -> list[ReportedRun]:
    """Return, for each seed, the run of its first column; it gives the time and pretext of the row."""
    found: dict[int, ReportedRun] = {}
    for cell in cells:
        for pick in cell.picks:
            found.setdefault(pick.run.seed, pick.run)
    return [found[seed] for seed in sorted(found)]


def compare(benchmark: Benchmark, rows: Sequence[Row]) -> list[Comparison]:
    """Pair each published figure with the measured one, if any."""
    cells = {(row.label, name): cell for row in rows for name, cell in row.cells.items()}
    return [Comparison(each, cells.get((each.row, each.column))) for each in benchmark.published]


def group_by(runs: Iterable[ReportedRun], key: Callable[[ReportedRun], str]) -> dict[str, list[ReportedRun]]:
    """Group runs by a key, in the order of first appearance."""
    found: dict[str, list[ReportedRun]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def _like(run: ReportedRun) -> tuple[int, str, str]:
    return run.seed, run.facts.data, run.facts.backbone


def _pretext(runs: Sequence[ReportedRun]) -> str | None:
    return next((name for name in PRETEXTS if any(name in run.pretext for run in runs)), None)
