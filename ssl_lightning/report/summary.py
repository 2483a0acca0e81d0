"""What a run prints: what it is about to do, and at the end how much it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ssl_lightning.results import Record, best_stage

# Metrics that are shown, and what a column says of them
UNITS = {"top1": "", "miou": "mIoU", "coco_map": "COCO mAP", "ap50": "AP50", "voc07_ap50": "VOC07 AP50"}


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
    print_probes(results["probes"], run["probe_s"])
    for name, value in results["pretext"].items():
        console.print(f"pretext {name} {value:.4f}")
    memory = ", ".join(f"{where} {gb:.2f} GB" for where, gb in run["peak_memory_gb"].items())
    console.print(
        f"{run['wall_s']:.0f} s in all, {run['images_per_s']:,.0f} images/s in pretraining, "
        f"peak memory {memory}"
    )
    console.print(f"run folder: {folder}", markup=False)


def print_probes(records: list[Record], probe_s: dict[str, float]) -> None:
    """Print the table of the figures, and what they took."""
    console = Console(highlight=False, soft_wrap=True)
    if records:
        console.print(summary_table(records))
    if "encode_s" in probe_s:
        solving = {name: s for name, s in probe_s.items() if name != "encode_s"}
        parts = ", ".join(f"{name.removesuffix('_s')} {s:.1f} s" for name, s in solving.items())
        ratio = sum(solving.values()) / max(probe_s["encode_s"], 1e-9)
        console.print(
            f"probes: one encode pass {probe_s['encode_s']:.1f} s, then {parts} ({ratio:.2f}x the pass)"
        )


def summary_table(records: list[Record]) -> Table:
    """Make the table of a run: a row per branch and stage, a column per probe.

    A cell holds the test figure before and after pretraining and the gain, in points. The best stage of
    each probe, marked with *, is the one that did best on held-out images.
    """
    shown = [r for r in records if r["metric"] in UNITS]
    states = [
        name
        for name, on in (("untrained", False), ("trained", True))
        if any(r["trained"] == on for r in shown)
    ]
    what = "figures" if any(r["metric"] != "top1" for r in shown) else "top-1"
    title = f"Test {what} in %, {' → '.join(states)}; * best stage, chosen on held-out images"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("trunk", no_wrap=True)
    columns = list(dict.fromkeys(_column(r) for r in shown))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for branch, stage in dict.fromkeys((r["branch"], r["stage"]) for r in shown):
        cells = []
        for column in columns:
            of_column = [r for r in shown if (_column(r), r["branch"]) == (column, branch)]
            cells.append(_cell(of_column, stage))
        table.add_row(stage if branch == "backbone" else f"{branch} {stage}", *cells)
    return table


def _cell(of_column: list[Record], stage: str) -> str:
    values, texts = [], []
    for trained in (False, True):
        records = [r for r in of_column if r["trained"] == trained]
        best = best_stage(records)
        for record in records:
            if record["stage"] == stage:
                values.append(100 * record["value"])
                texts.append(f"{values[-1]:.1f}{'*' if record is best else ' '}")
    gain = [f"{values[1] - values[0]:+5.1f}"] if len(values) == 2 else []
    return " ".join([" → ".join(texts), *gain])


def _column(record: Record) -> str:
    k, unit = record["protocol"].get("k"), UNITS[record["metric"]]
    return " ".join([record["probe"], *([] if k is None else [f"k={k}"]), *filter(None, [unit])])
