"""First sentence of a table: which row won and by how much, or that the best cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_lightning.artifacts.records import BALANCED
from ssl_lightning.artifacts.run_facts import UNKNOWN_LABELS
from ssl_lightning.report.accuracy import difference
from ssl_lightning.report.comparison import points
from ssl_lightning.report.table import MAIN_BRANCH, Row
from ssl_lightning.report.titles import title

NAMED = 4  # tied rows that are named


def opening(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Say which row won by its test figures, and whether it beats the backbone before pretraining.

    A row wins if it is above every other beyond the noise. Controls and rows trained with labels do not
    compete.

    Args:
        rows: Rows of a table.
        columns: Names of its columns; `judging_column` chooses one.

    Returns:
        One sentence or two, or "" if no figure tells.
    """
    trained = [row for row in rows if not all(run.control for run in row.used)]
    competing = [row for row in trained if not row.labels] or [row for row in trained if _continued(row)]
    column = judging_column(competing, columns)
    if column is None:
        return ""
    order = [row for row in competing if column in row.cells]
    order.sort(key=lambda row: -row.cells[column].mean)
    first, *others = order
    best, gain = first.cells[column], _gain(first, column)
    tied = [row for row in others if difference(best.figure, row.cells[column].figure) == 0]
    judged = [row.cells[column] for row in order if row.cells[column].pair is not None]
    if others and judged and all(cell.trend <= 0 for cell in judged):
        said = f"in {column} no task beats {_before(first)} beyond the error. The highest is "
        said += ", ".join(filter(None, [_figure(first, column), gain]))
    elif tied:
        named = ", ".join(_figure(row, column) for row in [first, *tied][:NAMED])
        more = f" and {len(tied) + 1 - NAMED} more" if len(tied) >= NAMED else ""
        said = f"the best cannot be told apart in {column}: {named}{more}"
        said += f"; {_name(first)} is {gain}" if gain else ""
    else:
        said = f"{_name(first)}{' wins' if others else ''}: {column} {best.mean:.1f} %"
        if others:
            lead = points(best.figure, others[0].cells[column].figure, sign="")
            said += f", {lead} above the next, {_name(others[0])}"
        said += f"{', and' if others else ','} {gain}" if gain else ""
    seeds = len(best.picks)
    ending = f"({seeds} seed{'s' * (seeds != 1)}; ± is the standard error)"
    return f"{said[0].upper()}{said[1:]} {ending}."


def judging_column(rows: Sequence[Row], columns: Sequence[str]) -> str | None:
    """Choose the first column of an accuracy that has the most rows, or its balanced accuracy."""

    def records(name: str) -> list[tuple[str, str]]:
        """Return the probe and the metric of each row."""
        cells = [row.cells[name] for row in rows if name in row.cells]
        return [(cell.picks[0].record.probe, cell.picks[0].record.metric) for cell in cells if cell.accuracy]

    found = {name: records(name) for name in columns}
    chosen = max(columns, key=lambda name: len(found[name]), default=None)
    if chosen is None or not found[chosen]:
        return None
    balanced = [(probe, BALANCED) for probe, _ in found[chosen]]
    return next((name for name in columns if found[name] == balanced), chosen)


def _gain(row: Row, column: str) -> str:
    """Say how far a row is from the backbone before pretraining; "" if unknown."""
    cell = row.cells[column]
    if cell.pair is None:
        return ""
    before, after = cell.pair
    if cell.trend > 0:
        return f"{points(after, before, sign='')} above {_before(row)}"
    if cell.trend < 0:
        return f"{points(before, after, sign='')} below {_before(row)}"
    return f"{points(after, before)} against {_before(row)}, within the error"


def _before(row: Row) -> str:
    return "the weights it started from" if _continued(row) else "the untrained backbone"


def _continued(row: Row) -> bool:
    return all(run.facts.labels == UNKNOWN_LABELS for run in row.used)


def _name(row: Row) -> str:
    return title(row.name) if row.branch == MAIN_BRANCH else f"{title(row.name)} ({row.branch})"


def _figure(row: Row, column: str) -> str:
    return f"{_name(row)} {row.cells[column].mean:.1f} %"
