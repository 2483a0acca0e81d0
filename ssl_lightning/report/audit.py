"""Table of a shortcut audit: the effect of each guard, from the results.json of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ssl_lightning.artifacts.results import Results
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.report.accuracy import SIGMAS, Figure, difference, mean_figure, probe_figure
from ssl_lightning.report.summary import print_table

ALL = "all guards"
SHORTCUT = "SHORTCUT FOUND"
EASIER = "easier, features as good"
BETTER_OFF = "features better without"
NEEDED = "features need it"
NONE = "no difference"
NOTE = (
    f"A difference counts beyond {SIGMAS:g} standard errors. A shortcut: without the guard the pretext "
    "accuracy is higher and the features are worse. The network then learned how images were cut, not what "
    "they show."
)


@dataclass(frozen=True)
class Row:
    """One row of an audit.

    Args:
        name: "all guards", or the guard that is off.
        off: Overrides that switch the guard off.
        pretext: Pretext accuracy on held-out images.
        probe: Test top-1 of the linear probe (without one, of the first probe) at the stage with the best
            held-out figure; None without labels.
        untrained: The same for the untrained backbone.
        verdict: Conclusion about the guard; "" in the first row.
    """

    name: str
    off: str
    pretext: Figure
    probe: Figure | None
    untrained: Figure | None
    verdict: str = ""


def audit_rows(results: Mapping[str, Sequence[Results]], off: Mapping[str, str]) -> list[Row]:
    """Make the rows of an audit.

    Args:
        results: Results of the seeds of each row; the first row has all guards.
        off: Overrides of each row that switch a guard off.
    """
    rows: list[Row] = []
    for name, runs in results.items():
        probe, untrained = (probe_figure(runs, trained=trained) for trained in (True, False))
        row = Row(name, off[name], _pretext(runs), probe, untrained)
        verdict = verdict_on(rows[0], row) if rows else ""
        rows.append(Row(row.name, row.off, row.pretext, row.probe, row.untrained, verdict))
    return rows


def verdict_on(guarded: Row, without: Row) -> str:
    """Judge a guard by the differences that exceed the noise."""
    easier = difference(without.pretext, guarded.pretext)
    if guarded.probe is None or without.probe is None:
        return "no labels, so no verdict" if easier else NONE
    features = difference(without.probe, guarded.probe)
    if features < 0:
        return SHORTCUT if easier > 0 else NEEDED
    if features > 0:
        return BETTER_OFF
    return EASIER if easier > 0 else NONE


def _pretext(runs: Sequence[Results]) -> Figure:
    records = [r for run in runs for r in run.probes if r.metric == "top1"]
    n = min((r.protocol["labels"]["heldout"] for r in records), default=1000)
    return mean_figure([run.pretext["val/acc"] for run in runs], n)


def print_audit(rows: Sequence[Row]) -> None:
    """Print the table of an audit."""
    title = "Shortcut audit: accuracy of the pretext and of the probe in %"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column, justify in zip(HEADER, ("left", "right", "right", "right", "right", "left"), strict=True):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*_cells(rows[0], row))
    print_table(table)
    Console(highlight=False).print(NOTE)


def write_audit(path: Path, rows: Sequence[Row], command: str) -> None:
    """Write the table of an audit as Markdown, with its command."""
    lines = ["# Shortcut audit", "", f"`{command}`", ""]
    lines += [_line(HEADER), "|---|---:|---:|---:|---:|---|"]
    lines += [_line(_cells(rows[0], row)) for row in rows]
    lines += ["", f"In %. {NOTE}"]
    write_file(path, "\n".join(lines) + "\n")


HEADER = ("guard", "pretext", "gain", "probe", "gain", "verdict")


def _cells(first: Row, row: Row) -> tuple[str, ...]:
    name = row.name if row is first else f"without {row.name}"
    verdict = row.verdict
    if row is first and row.probe is not None and row.untrained is not None:
        verdict = f"untrained backbone: {100 * row.untrained.value:.1f}"
    return (
        name,
        *_pair(row.pretext, None if row is first else first.pretext),
        *_pair(row.probe, None if row is first else first.probe),
        verdict,
    )


def _pair(figure: Figure | None, against: Figure | None) -> tuple[str, str]:
    if figure is None:
        return "-", ""
    gain = "" if against is None else f"{100 * (figure.value - against.value):+.1f}"
    return f"{100 * figure.value:.1f}", gain


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
