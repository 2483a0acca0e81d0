"""What one must know of a table, in sentences: how it was measured, what lacks, what was passed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssl_lightning.report.benchmark import BEST_STAGE, Column
from ssl_lightning.report.collect import ReportedRun
from ssl_lightning.report.table import Duplicates, Row

MEASURED, GAIN, MISSING, SEEDS = "How it was measured", "Gains", "Missing", "Seeds"
UNFINISHED, DUPLICATES, SEVERAL = "Not finished", "Duplicates", "Several figures"
OTHERS, SKIPPED = "Left out", "Not read"


def measured(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """How the figures came about."""
    if not rows:
        return []
    records = [pick.record for row in rows for cell in row.cells.values() for pick in cell.picks]
    sizes = sorted({record.n for record in records if record.metric != "rankme"})
    of = f" of {' or '.join(f'{n:,}' for n in sizes)} images" if sizes else ""
    ranks = (
        "; ranks are plain numbers, of the deepest stage"
        if any(record.metric == "rankme" for record in records)
        else ""
    )
    lines = [f"Test figures{of} in %{ranks}; mean ± standard deviation over seeds where there are several."]
    if any(column.stage == BEST_STAGE for column in columns):
        lines.append("The stage is the one that did best on held-out images, for each seed, never on test.")
    if any(row.labels for row in rows):
        lines.append("Bold: the best of the rows whose backbone has seen no label.")
    return lines


def gains(rows: Sequence[Row]) -> list[str]:
    """What the gains are over; of the fewer kinds of them it says in which figures."""
    places: dict[str, dict[str, list[str]]] = {}
    partly: list[str] = []
    for row in rows:
        for name, cell in row.cells.items():
            for over in cell.over:
                places.setdefault(over, {}).setdefault(row.label, []).append(name)
            if 0 < len(cell.gains) < len(cell.picks):
                partly.append(f"{row.label}: {name} ({len(cell.gains)} of {len(cell.picks)} seeds)")
    if not places:
        return []
    lines = []
    for number, (over, of) in enumerate(sorted(places.items(), key=lambda item: -len(item[1]))):
        where = "; ".join(f"{label} ({', '.join(names)})" for label, names in of.items())
        where = f" for {where}" if number else ""
        lines.append(f"In points over {over}, seed by seed{where}.")
    return lines + ([f"Not of all seeds: {'; '.join(partly)}."] if partly else [])


def missing(expected: Sequence[str], columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Rows and columns that are expected and have no figure; rows that have one and are not expected."""
    there = {row.name for row in rows}
    lacking = [name for name in expected if name not in there]
    more = sorted(there - set(expected))
    empty = [name for name in columns if rows and not any(name in row.cells for row in rows)]
    lines = [f"No figure of a finished run: {', '.join(lacking)}."] if lacking else []
    lines += [f"Columns without a figure: {', '.join(empty)}."] if empty else []
    return lines + ([f"Not among the rows of the benchmark: {', '.join(more)}."] if more else [])


def seeds(rows: Sequence[Row]) -> list[str]:
    """Rows and figures that have fewer seeds than others."""
    most = max((len(row.seeds) for row in rows), default=0)
    fewer = [f"{row.label} {len(row.seeds)}" for row in rows if len(row.seeds) < most]
    lines = [f"Fewer than {most}: {', '.join(fewer)}."] if fewer else []
    partly = [
        f"{row.label}: {name} ({len(cell.picks)} of {len(row.seeds)})"
        for row in rows
        for name, cell in row.cells.items()
        if len(cell.picks) < len(row.seeds)
    ]
    return lines + ([f"Figures of fewer seeds than their row: {'; '.join(partly)}."] if partly else [])


def unfinished(named: Mapping[str, Sequence[ReportedRun]]) -> list[str]:
    """Runs that were broken off or failed, by row, and whether a finished one stands for them."""
    lines = []
    for name, runs in named.items():
        finished = {run.seed for run in runs if run.finished}
        for run in runs:
            if not run.finished:
                also = "; another one of this seed is finished" if run.seed in finished else ""
                lines.append(f"{name}, seed {run.seed}: {run.facts.status}, in {run.name}{also}.")
    return lines


def duplicates(passed: Duplicates) -> list[str]:
    """Which of several finished runs of one row and seed counts: the newest."""
    return [
        f"{what}: the newest finished run counts, {newest}; passed over: {', '.join(older)}."
        for what, (newest, older) in passed.items()
    ]


def several(rows: Sequence[Row]) -> list[str]:
    """Where a run has more than one figure that a column fits."""
    found = [
        (f"{row.label}, seed {pick.run.seed}", name)
        for row in rows
        for name, cell in row.cells.items()
        for pick in cell.picks
        if pick.others
    ]
    if not found:
        return []
    columns: dict[str, list[str]] = {}
    for where, name in found:
        columns.setdefault(where, []).append(name)
    listed = "; ".join(f"{where}: {', '.join(names)}" for where, names in columns.items())
    return [
        "Where a run has figures of several settings, those of the run itself are shown, else those of its "
        f"last evaluation: {listed}."
    ]


def left_out(count: int, reason: str) -> list[str]:
    """How many runs have no place in the table."""
    return [f"{count} run{'s' * (count != 1)} {reason}."] if count else []


def skipped(found: Mapping[str, str]) -> list[str]:
    """Files that are no results.json of this version."""
    return [f"{name}/results.json: {reason}." for name, reason in found.items()]
