"""What a run prints: what it is about to do, and at the end how much it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssl_lightning.results import Record, best_stage


def print_header(facts: dict[str, str]) -> None:
    """Print what is about to run, a line per fact."""
    console = Console(highlight=False, soft_wrap=True)
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name:<{width}}  {value}", markup=False)


def print_summary(results: dict[str, Any], folder: Path) -> None:
    """Print stage by probe, untrained against trained, then times and the run folder."""
    console = Console(highlight=False, soft_wrap=True)
    run = results["run"]
    if results["probes"]:
        console.print(summary_table(results["probes"]))
    for name, value in results["pretext"].items():
        console.print(f"pretext {name} {value:.4f}")
    probe_s = run["probe_s"]
    if "encode_s" in probe_s:
        solving = {name: s for name, s in probe_s.items() if name != "encode_s"}
        parts = ", ".join(f"{name.removesuffix('_s')} {s:.1f} s" for name, s in solving.items())
        ratio = sum(solving.values()) / max(probe_s["encode_s"], 1e-9)
        console.print(f"probes: one encode pass {probe_s['encode_s']:.1f} s, then {parts} ({ratio:.2f}x the pass)")
    memory = ", ".join(f"{where} {gb:.2f} GB" for where, gb in run["peak_memory_gb"].items())
    console.print(f"{run['wall_s']:.0f} s in all, {run['images_per_s']:,.0f} images/s in pretraining, peak memory {memory}")
    console.print(f"run folder: {folder}", markup=False)


def summary_table(records: list[Record]) -> Table:
    """Make the table of a run: a row per branch and stage, a group of columns per probe.

    The best stage of each probe, marked with *, is the one that did best on held-out images; the
    figures shown are those of the test images.
    """
    table = Table(title="Test figures in %; * best stage, chosen on held-out images", title_justify="left")
    table.add_column("branch")
    table.add_column("stage")
    columns = list(dict.fromkeys(_column(r) for r in records))
    cells = {(r["branch"], r["stage"], _column(r), r["trained"]): r for r in records}
    states = sorted({r["trained"] for r in records})
    best = {}
    for column in columns:
        for trained in states:
            label = f"{column}\n{'trained' if trained else 'untrained'}"
            table.add_column(label, justify="right", no_wrap=True)
            for branch in {r["branch"] for r in records}:
                group = [
                    r for r in records if (_column(r), r["trained"], r["branch"]) == (column, trained, branch)
                ]
                best[column, trained, branch] = best_stage(group)
        if len(states) == 2:
            table.add_column("\ngain", justify="right", no_wrap=True)
    for branch, stage in dict.fromkeys((r["branch"], r["stage"]) for r in records):
        row = [branch, stage]
        for column in columns:
            found = [cells.get((branch, stage, column, trained)) for trained in states]
            for trained, record in zip(states, found, strict=True):
                mark = "*" if record is not None and record is best[column, trained, branch] else " "
                row.append("-" if record is None else f"{100 * record['value']:.1f}{mark}")
            if len(states) == 2:
                both = None not in found
                row.append(f"{100 * (found[1]['value'] - found[0]['value']):+.1f}" if both else "-")
        table.add_row(*row)
    return table


def _column(record: Record) -> str:
    k = record["protocol"].get("k")
    return f"{record['probe']}{'' if k is None else f' k={k}'} {record['metric']}"
