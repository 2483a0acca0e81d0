"""Writers of a table: Markdown, CSV, LaTeX, and terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape as markup
from rich.table import Table as Screen

from ssl_lightning.report.cells import Cell
from ssl_lightning.report.table import Comparison, Row, Table

NONE = "-"
FIELDS = (
    "table", "row", "branch", "column", "mean", "sd", "n_seeds", "seeds", "values", "gain", "gain_error",
    "gain_over", "stages", "published", "difference", "source", "commands", "protocols", "folders",
)  # fmt: skip
TEXTS = ("table", "row", "branch", "column", "gain_over", "stages", "source", "commands", "folders")
FORMULA = tuple("=+-@\t\r")  # first characters of a spreadsheet formula
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "·": r"$\cdot$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip

Escape = Callable[[str], str]


def format_figure(cell: Cell | None) -> str:
    """Format a mean with its deviation over seeds."""
    if cell is None:
        return NONE
    return f"{cell.mean:.1f}" + ("" if cell.sd is None else f" ± {cell.sd:.1f}")


def gain(cell: Cell | None) -> str:
    """Format a gain with its sign and standard error; "" if unknown."""
    if cell is None or cell.gain is None:
        return ""
    return signed(cell.gain) + ("" if cell.gain_error is None else f" ± {cell.gain_error:.1f}")


def signed(points: float | None) -> str:
    """Format a difference in points with its sign, never "-0.0"."""
    return NONE if points is None else f"{round(points, 1) + 0.0:+.1f}"


def published(comparison: Comparison) -> str:
    """Format a published figure with its own number of decimals, one or two."""
    text = f"{comparison.published.value:.2f}"
    return text.removesuffix("0")


def pretext(row: Row) -> tuple[str, str]:
    """Format the pretext figure; return it and its name."""
    value = row.pretext_mean()
    if row.pretext is None or value is None:
        return NONE, ""
    kind = row.pretext.removeprefix("val/")
    return (f"{100 * value:.1f} %" if is_share(kind) else f"{value:.3g}"), kind


def is_share(name: str) -> bool:
    """Tell whether a pretext figure is a fraction, shown in %."""
    return any(part in name for part in ("acc", "top1", "auc"))


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours, with two or three digits.

    >>> duration(59.7), duration(754), duration(8100)
    ('60 s', '13 min', '2.2 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def lines(table: Table, escape: Escape = str, mark: Escape = str) -> list[list[str]]:
    """Format the header and the rows as text.

    Args:
        table: The table.
        escape: Escapes a text for the output format.
        mark: Highlights the best figure of a column, which is already escaped.
    """
    shown = [["task", "seeds", "images/s", "pretext", *map(escape, table.columns)]]
    bests = {name: table.best(name) for name in table.columns}
    for row in table.rows:
        speed = NONE if row.speed is None else f"{row.speed:,.0f}"
        cells = [
            escape(text) for text in (row.label, str(len(row.seeds)), speed, " ".join(pretext(row)).rstrip())
        ]
        for name in table.columns:
            cell = row.cells.get(name)
            text = escape(format_figure(cell))
            more = f" {escape(f'({gain(cell)})')}" if gain(cell) else ""
            cells.append((mark(text) if is_best(row, cell, bests[name]) else text) + more)
        shown.append(cells)
    return shown


def is_best(row: Row, cell: Cell | None, best: float | None) -> bool:
    """Tell whether a cell holds the best figure of its column."""
    return cell is not None and best is not None and not row.labels and cell.mean == best


def comparison_lines(table: Table, escape: Escape = str) -> list[list[str]]:
    """Format the header and the rows of the published figures as text."""
    head = ["task", "figure", "measured", "published", "difference", "source"]
    rows = [
        [
            each.published.row, each.published.column, format_figure(each.cell), published(each),
            signed(each.difference), each.published.source,
        ]
        for each in table.comparisons
    ]  # fmt: skip
    return [head] + [[escape(text) for text in row] for row in rows]


def markdown(table: Table) -> str:
    """Write a table as Markdown, without times or absolute paths: it depends only on the results."""
    parts = [f"**{_markdown(table.title)}**", ""]
    parts += [_markdown(table.opening), ""] if table.opening else []
    parts += _pipes(lines(table, _markdown, lambda text: f"**{text}**")) if table.rows else []
    if table.comparisons:
        parts += [
            "",
            "Published beside measured, in %; the difference is measured - published, in points:",
            "",
        ]
        parts += _pipes(comparison_lines(table, _markdown), "llrrrl")
    parts += [""] + [
        f"- {kind}: {' '.join(map(_markdown, said))}" for kind, said in table.notes.items() if said
    ]
    return "\n".join(parts).rstrip() + "\n"


def latex(table: Table) -> str:
    """Write a table as LaTeX for the package booktabs."""
    parts = [f"% {_one_line(table.title)}; needs \\usepackage{{booktabs}}"]
    parts += [f"% {_one_line(table.opening)}"] if table.opening else []
    parts += _tabular(lines(table, _latex, lambda text: rf"\textbf{{{text}}}")) if table.rows else []
    if table.comparisons:
        parts += ["", "% published beside measured"]
        parts += _tabular(comparison_lines(table, _latex), "llrrrl")
    parts += [f"% {kind}: {_one_line(' '.join(said))}" for kind, said in table.notes.items() if said]
    return "\n".join(parts) + "\n"


def csv_text(tables: Sequence[Table]) -> str:
    """Write tables as CSV, one line per figure, with its runs, commands and protocols."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        beside = {(c.published.row, c.published.column): c for c in table.comparisons}
        for row in table.rows:
            if not row.cells:
                line = {"table": table.name, "row": row.name, "branch": row.branch} | _pretext(row)
                writer.writerow({key: _plain(key, value) for key, value in line.items()})
            for name, cell in row.cells.items():
                line = {"table": table.name, "row": row.name, "branch": row.branch, "column": name}
                line |= _measured(cell) | _published(beside.pop((row.label, name), None))
                writer.writerow({key: _plain(key, value) for key, value in line.items()})
        for (name, column), comparison in beside.items():
            line = {"table": table.name, "row": name, "column": column} | _published(comparison)
            writer.writerow({key: _plain(key, value) for key, value in line.items()})
    return text.getvalue()


def screen(table: Table) -> list[Screen]:
    """Make the tables for the terminal: the measured one, and published figures beside."""
    shown = (
        [_screen(table.title, lines(table, markup, lambda text: f"[bold]{text}[/]"))] if table.rows else []
    )
    if table.comparisons:
        shown.append(_screen("Published beside measured", comparison_lines(table, markup)))
    return shown


def _measured(cell: Cell) -> dict[str, str]:
    return {
        "mean": f"{cell.mean:.4f}",
        "sd": "" if cell.sd is None else f"{cell.sd:.4f}",
        "n_seeds": str(len(cell.picks)),
        "seeds": " ".join(str(pick.run.seed) for pick in cell.picks),
        "values": " ".join(f"{value:.4f}" for value in cell.values),
        "gain": "" if cell.gain is None else f"{cell.gain:.4f}",
        "gain_error": "" if cell.gain_error is None else f"{cell.gain_error:.4f}",
        "gain_over": "; ".join(cell.over),
        "stages": " ".join(cell.stages),
        "commands": "\n".join(pick.run.facts.command or "" for pick in cell.picks),
        "protocols": json.dumps([pick.record.protocol for pick in cell.picks]),
        "folders": "\n".join(pick.run.name for pick in cell.picks),
    }


def _pretext(row: Row) -> dict[str, str]:
    """Return the fields of a row without cells: the pretext figure, as the task logs it."""
    mean = row.pretext_mean()
    return {
        "column": row.pretext or "",
        "mean": "" if mean is None else f"{mean:.4f}",
        "n_seeds": str(len(row.runs)),
        "seeds": " ".join(map(str, row.seeds)),
        "commands": "\n".join(run.facts.command or "" for run in row.runs),
        "folders": "\n".join(run.name for run in row.runs),
    }


def _published(comparison: Comparison | None) -> dict[str, str]:
    if comparison is None:
        return {}
    found = {"published": f"{comparison.published.value:g}", "source": comparison.published.source}
    if comparison.difference is not None:
        found["difference"] = f"{comparison.difference:.4f}"
    return found


def _pipes(shown: Sequence[Sequence[str]], align: str = "") -> list[str]:
    align = align or "l" + "r" * (len(shown[0]) - 1)
    rule = "|".join({"l": "---", "r": "---:"}[side] for side in align)
    head, *body = [f"| {' | '.join(line)} |" for line in shown]
    return [head, f"|{rule}|", *body]


def _tabular(shown: Sequence[Sequence[str]], align: str = "") -> list[str]:
    align = align or "l" + "r" * (len(shown[0]) - 1)
    head, *body = [" & ".join(line) + r" \\" for line in shown]
    return [
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _screen(title: str, shown: Sequence[Sequence[str]]) -> Screen:
    table = Screen(title=markup(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in shown[0]:
        left = name in ("task", "figure", "source")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for line in shown[1:]:
        table.add_row(*line)
    return table


def _markdown(text: str) -> str:
    """Escape the special characters of Markdown and HTML; `_` within a word is plain."""
    text = re.sub(r"([\\|`*\[\]$~]|(?<!\w)_|_(?!\w))", r"\\\1", _one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _plain(field: str, text: str) -> str:
    """Keep spreadsheets from running a foreign text as a formula."""
    return f"'{text}" if field in TEXTS and text[:1] in FORMULA else text


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
