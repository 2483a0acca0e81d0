"""Report page, report.html: one self-contained file that needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ssl_lightning.report import notes, writers
from ssl_lightning.report.canvas import Picture
from ssl_lightning.report.cells import Cell
from ssl_lightning.report.charts import row_styles
from ssl_lightning.report.collect import ReportedRun
from ssl_lightning.report.table import Table

TEMPLATE = "page.html.jinja"
MOST = 3  # data sets and backbones named in the facts
PHONE, DARK = "(max-width: 40rem)", "(prefers-color-scheme: dark)"  # as in templates/page.css
FIRST = (notes.MEASURED, notes.GAIN)  # notes shown above all others


def render(tables: Sequence[Table], pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Render the page.

    Args:
        tables: Tables, in order.
        pictures: Pictures by table name.
    """
    environment = Environment(
        loader=PackageLoader("ssl_lightning.report"),
        autoescape=True,  # names and messages come from untrusted files
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        name: getattr(writers, name)
        for name in ("format_figure", "gain", "signed", "published", "pretext", "duration", "is_best")
    }
    environment.globals |= {
        "png": png,
        "facts": facts,
        "provenance": provenance,
        "variants": variants,
        "soft": soft,
        "first_notes": FIRST,
    }
    common: dict[tuple[str, str], str] = {}
    particular: dict[tuple[str, str, str], list[str]] = {}
    bests: dict[tuple[str, str], float | None] = {}
    for table in tables:
        for name in table.columns:
            bests[table.name, name] = table.best(name)
            common[table.name, name], rest = protocols(table.column(name))
            labels = [row.label for row in table.rows if name in row.cells]
            particular |= {(table.name, label, name): of for label, of in zip(labels, rest, strict=True)}
    panels: dict[str, dict[str, list[Picture]]] = {table.name: {} for table in tables}
    for name, of_table in pictures.items():
        for picture in of_table:
            if not picture.chart:
                panels[name].setdefault(picture.title, []).append(picture)
    return environment.get_template(TEMPLATE).render(
        tables=tables,
        pictures=pictures,
        panels=panels,
        looks={table.name: row_styles(table.rows) for table in tables},
        bests=bests,
        common=common,
        particular=particular,
    )


def facts(table: Table) -> list[str]:
    """Summarise the runs of a table in a few phrases."""
    runs = {run.name: run for row in table.rows for run in row.used}.values()
    if not runs:
        return ["no finished run yet"]
    shown = [f"{len(runs)} finished run{'s' * (len(runs) != 1)}"]
    for key in ("data", "backbone"):
        values = sorted({getattr(run.facts, key) for run in runs})
        shown.append(f"{key} {', '.join(values[:MOST])}{' ...' * (len(values) > MOST)}")
    return [*shown, f"last one ended {max(run.ended for run in runs):%Y-%m-%d}"]


def provenance(run: ReportedRun) -> list[str]:
    """Describe the code, machine, versions and time of a run."""
    made = run.facts
    shown = [
        f"{made.task} on {made.data}, {made.backbone}",
        f"{made.epochs} epoch{'s' * (made.epochs != 1)}",
        writers.duration(made.wall_s),
        f"git {made.git or 'unknown'}",
        *(f"{name} {version}" for name, version in made.versions.items()),
    ]
    if made.devices is not None and made.precision is not None:
        machine = f"{made.machine}, " if made.machine else ""
        shown.insert(2, f"{made.devices} process(es), {machine}{made.precision}")
    return [*shown, f"ended {run.ended:%Y-%m-%d %H:%M} UTC"]


def soft(text: str) -> Markup:
    """Let a name wrap after underscores on a narrow screen."""
    return Markup("_<wbr>").join(text.split("_"))


def png(content: bytes) -> str:
    """Encode a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def variants(picture: Picture) -> list[tuple[str, str, Picture]]:
    """List the other versions of a chart: the media query, the data URL and the picture with its size."""
    found = []
    for shown, query in ((picture.narrow, PHONE), (picture, "")):
        for content, scheme in ((shown and shown.dark, DARK), (shown and shown.png, "")):
            media = " and ".join(filter(None, [query, scheme]))
            if shown and content and media:
                found.append((media, png(content), shown))
    return found


def protocols(cells: Sequence[Cell]) -> tuple[str, list[list[str]]]:
    """Split the protocols of a column into the common part and the rest of each pick.

    Returns:
        The common part, and the rest by cell and pick, as JSON without `heldout`, which is shown separately.
    """
    each = [[pick.record.protocol for pick in cell.picks] for cell in cells]
    everything = [protocol for of_cell in each for protocol in of_cell]
    common: dict[str, Any] = {
        key: value
        for key, value in (everything[0] if everything else {}).items()
        if all(key in other and other[key] == value for other in everything)
    }
    rest = [
        [
            compact({key: value for key, value in protocol.items() if key not in {*common, "heldout"}})
            for protocol in of_cell
        ]
        for of_cell in each
    ]
    return compact(common), rest


def compact(protocol: Mapping[str, Any]) -> str:
    """Format as JSON on one line, without braces."""
    return json.dumps(protocol, ensure_ascii=False)[1:-1]
