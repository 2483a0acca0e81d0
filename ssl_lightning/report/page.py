"""report.html: one file that needs nothing else, not even a network."""

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
from ssl_lightning.report.collect import ReportedRun
from ssl_lightning.report.table import Table

TEMPLATE = "page.html.jinja"
MOST = 3  # data sets and backbones that are named
FIRST = (notes.MEASURED, notes.GAIN)  # said above all other notes


def render(tables: Sequence[Table], pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Make the page.

    Args:
        tables: In order.
        pictures: For the name of each table.
    """
    environment = Environment(
        loader=PackageLoader("ssl_lightning.report"),
        autoescape=True,  # names and messages are of files from anywhere
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        name: getattr(writers, name)
        for name in ("figure", "gain", "signed", "published", "pretext", "duration", "is_best")
    }
    environment.globals |= {
        "png": png,
        "facts": facts,
        "provenance": provenance,
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
    return environment.get_template(TEMPLATE).render(
        tables=tables, pictures=pictures, bests=bests, common=common, particular=particular
    )


def facts(table: Table) -> list[str]:
    """What all figures of a table have in common, in a few words."""
    runs = {run.name: run for row in table.rows for run in row.used}.values()
    if not runs:
        return ["no finished run yet"]
    shown = [f"{len(runs)} finished run{'s' * (len(runs) != 1)}"]
    for key in ("data", "backbone"):
        values = sorted({run.facts[key] for run in runs})
        shown.append(f"{key} {', '.join(values[:MOST])}{' ...' * (len(values) > MOST)}")
    return [*shown, f"last one ended {max(run.ended for run in runs):%Y-%m-%d}"]


def provenance(run: ReportedRun) -> list[str]:
    """By what code, on what, and when a run was made."""
    made = run.facts
    shown = [
        f"{made['task']} on {made['data']}, {made['backbone']}",
        f"{made['epochs']} epoch{'s' * (made['epochs'] != 1)}",
        writers.duration(made["wall_s"]),
        f"git {made['git'] or 'unknown'}",
        *(f"{name} {version}" for name, version in made["versions"].items()),
    ]
    if "devices" in made and "precision" in made:
        shown.insert(2, f"{made['devices']} process(es), {made['precision']}")
    return [*shown, f"ended {run.ended:%Y-%m-%d %H:%M} UTC"]


def soft(text: str) -> Markup:
    """A name that may be broken after an underscore, where a screen is narrow."""
    return Markup("_<wbr>").join(text.split("_"))


def png(picture: Picture) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(picture.png).decode()


def protocols(cells: Sequence[Cell]) -> tuple[str, list[list[str]]]:
    """Split the protocols of a column into what they have in common and what each pick has of its own.

    Returns:
        The common part, and for each cell and pick the rest, as JSON; heldout has a place of its own.
    """
    each = [[pick.record["protocol"] for pick in cell.picks] for cell in cells]
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
    """JSON on one line, without its braces."""
    return json.dumps(protocol, ensure_ascii=False)[1:-1]
