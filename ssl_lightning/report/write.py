"""Report of runs, `python report.py`: prints tables and writes them with pictures and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ssl_lightning.core.atomic_files import naming_full_disk, write_files
from ssl_lightning.report.benchmark import load_benchmark
from ssl_lightning.report.build import benchmark_tables, series_tables
from ssl_lightning.report.collect import collect
from ssl_lightning.report.page import render
from ssl_lightning.report.pictures import draw_all
from ssl_lightning.report.summary import print_table
from ssl_lightning.report.table import Table
from ssl_lightning.report.writers import csv_text, latex, markdown, screen

PAGE = "report.html"
TABLES = ("table.md", "table.csv", "table.tex")


def make_tables(outputs: Path, benchmark: Path | None, budget: str | None) -> list[Table]:
    """Read the results and make the tables.

    Args:
        outputs: Folder whose results.json files are read, at any depth.
        benchmark: A file in conf/benchmark; None makes one row per series of runs.
        budget: Budget of the benchmark; None makes one table per budget.

    Raises:
        ValueError: The folder or benchmark does not exist, or there is no finished run.
    """
    if benchmark is None:
        if budget is not None:
            raise ValueError(f"budget is {budget!r}, but budgets belong to a benchmark: give benchmark= too")
        found = collect(outputs)
        if not (found.runs or found.skipped):
            raise ValueError(f"{outputs} holds no run; train one first, or give outputs=<folder of runs>")
        return series_tables(found)
    expected = load_benchmark(benchmark)
    return benchmark_tables(collect(outputs), expected, budget)


def write_report(outputs: Path, out: Path, benchmark: Path | None, budget: str | None) -> None:
    """Print the tables and write all files of the report.

    Args:
        outputs: Folder whose results.json files are read, at any depth.
        out: Folder for table.md, table.csv, table.tex, the pictures and report.html.
        benchmark: A file in conf/benchmark; None makes one row per series of runs.
        budget: Budget of the benchmark; None makes one table per budget.

    Raises:
        ValueError: The folder or benchmark does not exist, there is no finished run, or `out` has files of
            these names that are of no report.
        DiskFullError: The disk has no room for the report.
    """
    theirs = [name for name in TABLES if (out / name).exists()]
    if theirs and not (out / PAGE).exists():
        raise ValueError(
            f"{out} has {theirs[0]} and no {PAGE}, so it is no report; give another folder: out="
        )
    write_tables(make_tables(outputs, benchmark, budget), out)


def write_tables(tables: Sequence[Table], out: Path) -> None:
    """Print tables and write all files of their report.

    Raises:
        DiskFullError: The disk has no room for the report.
    """
    pictures = {table.name: draw_all(table) for table in tables}
    texts = "\n".join(map(markdown, tables)), csv_text(tables), "\n".join(map(latex, tables))
    files: dict[str, str | bytes] = {
        **dict(zip(TABLES, texts, strict=True)),
        PAGE: render(list(tables), pictures),
    }
    for name, drawn in pictures.items():
        files |= {f"{name}-{picture.name}.png": picture.png for picture in drawn}
    out.mkdir(parents=True, exist_ok=True)
    with naming_full_disk(out, "Make room, or give another folder: out="):
        write_files(out, files)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for table in tables:
        for shown in screen(table):
            print_table(shown)
        if table.opening:
            console.print(table.opening)
        for kind, sentences in table.notes.items():
            if sentences:
                console.print(f"{kind}: {' '.join(sentences)}")
    console.print(f"page: {out / PAGE}")
