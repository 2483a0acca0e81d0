"""Terminal output of a run: the header at its start, the table of figures at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ssl_lightning.artifacts.records import BALANCED, SPECTRAL, Record, best_stage
from ssl_lightning.artifacts.results import Results
from ssl_lightning.artifacts.run_facts import UNKNOWN_LABELS, Verdict
from ssl_lightning.artifacts.run_folder import MODEL_CARD
from ssl_lightning.core.progress import span
from ssl_lightning.core.untrusted import printable
from ssl_lightning.report.accuracy import gain_error

# Metrics in the summary and their name in a column; all but those of `SPECTRAL` are in %
UNITS = {
    "top1": "",
    BALANCED: BALANCED,
    "map": "mAP",
    "miou": "mIoU",
    "miou_learned": "mIoU of learned classes",
    "coco_map": "COCO mAP",
    "ap50": "AP50",
    "voc07_ap50": "VOC07 AP50",
    "rankme": "(rank)",
    "alpha_req": "alpha-ReQ",
    "lidar": "LiDAR",
}
# Names and formats of the metrics in a line below the table
RELIABILITY = {"ece": ("calibration error", ".1%"), "nll": ("negative log-likelihood", ".2f")}
CORRUPTED = "top1_"  # begins the metrics on corrupted images

PRETRAINED = ("untrained", "trained")  # names of the figures before and after pretraining
CONTINUED = ("as it came", "continued")  # the same for a backbone that started from given weights


def print_header(facts: dict[str, str]) -> None:
    """Print the facts of a run, one per line."""
    console = Console(highlight=False, soft_wrap=True)
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(printable(f"{name:<{width}}  {value}"), markup=False)


def print_summary(results: Results, folder: Path, phases: dict[str, float]) -> None:
    """Print stage by probe, untrained against trained, then times and the run folder."""
    console = Console(highlight=False, soft_wrap=True)
    run = results.run
    continues = run.labels == UNKNOWN_LABELS and len({r.trained for r in results.probes}) == 2
    print_probes(results.probes, run.probe_s, CONTINUED if continues else PRETRAINED)
    for name, value in results.pretext.items():
        console.print(f"pretext {name} {value:.4f}")
    memory = ", ".join(f"{where} {gb:.2f} GB" for where, gb in run.peak_memory_gb.items())
    starts = f" of {run.resumed + 1} starts" if run.resumed else ""  # the times below are of this one
    speed = f", {run.images_per_s:,.0f} images/s in pretraining" if run.images_per_s else ""
    console.print(f"{run.wall_s:.0f} s in total{starts}{speed}, peak memory {memory}")
    print_times(phases)
    console.print(f"run folder: {folder}", markup=False)
    print_verdict(run.verdict)


def print_verdict(verdict: Verdict | None) -> None:
    """Print a line with the verdict on a run, if there is one."""
    if verdict is not None:
        Console(highlight=False, soft_wrap=True).print(printable(f"verdict: {verdict}"), markup=False)


def print_brief(results: Results, folder: Path) -> None:
    """Print the verdict of a run, or its table if it has none, and which file holds its figures."""
    console = Console(highlight=False, soft_wrap=True)
    if results.run.verdict is None:
        print_probes(results.probes, {})
    print_verdict(results.run.verdict)
    console.print(f"{span(results.run.wall_s)}; all figures: {folder / MODEL_CARD}", markup=False)


def print_probes(
    records: list[Record], probe_s: dict[str, float], states: tuple[str, str] = PRETRAINED
) -> None:
    """Print the table of figures, and the seconds of the encode pass and of each probe."""
    console = Console(highlight=False, soft_wrap=True)
    for table in summary_tables(records, console, states):
        print_table(table)
    for line in [*unequal_classes(records), *reliability_lines(records)]:
        console.print(line)
    if probe_s:
        encode_first = sorted(probe_s.items(), key=lambda item: item[0] != "encode_s")
        parts = ", ".join(f"{name.removesuffix('_s')} {s:.1f} s" for name, s in encode_first)
        console.print(f"probes: {parts}")


def print_times(phases: dict[str, float]) -> None:
    """Print the seconds of each phase of a run."""
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items())
    Console(highlight=False, soft_wrap=True).print(f"time: {parts}")


def unequal_classes(records: Iterable[Record]) -> list[str]:
    """Return a sentence for each test set with unequal classes, with the share of the largest one."""
    sets = {(r.n, share) for r in records if r.metric == BALANCED and (share := r.protocol.get("majority"))}
    return [
        f"Unequal classes: always answering the largest one is right on {share:.1%} of {n:,} test images; "
        "balanced is the mean accuracy over the classes."
        for n, share in sorted(sets)
    ]


def reliability_lines(records: Sequence[Record]) -> list[str]:
    """Return a line for each branch: calibration and accuracies on corrupted images, before and after."""
    lines = []
    measured = [r for r in records if r.metric in RELIABILITY or r.metric.startswith(CORRUPTED)]
    for probe, branch in dict.fromkeys((r.probe, r.branch) for r in measured):
        of = [r for r in measured if (r.probe, r.branch) == (probe, branch)]
        parts = []
        for metric in dict.fromkeys(r.metric for r in of):
            name, form = RELIABILITY.get(metric, (metric.removeprefix(CORRUPTED).replace("_", " "), ".1%"))
            values = [f"{r.value:{form}}" for r in of if r.metric == metric]
            parts.append(f"{name} {' → '.join(values)}")
        lines.append(f"{probe} on {branch}, best stage: {', '.join(parts)}")
    return lines


def cross_validated(record: Record) -> bool:
    """Tell whether a figure is that of all folds of the labelled images, without a test split."""
    return "cross_validated" in record.protocol


def print_table(table: Table) -> None:
    """Print a table at its full width, so that no column is cut; a terminal may wrap it."""
    console = Console(highlight=False)
    if table.title is not None:
        console.print(table.title, soft_wrap=True)  # rich would wrap it to the width of the table
        table.title = None
    wanted = console.measure(table, options=console.options.update(width=500)).maximum
    console.width = max(console.width, wanted)
    console.print(table)


def summary_tables(
    records: list[Record], console: Console, states: tuple[str, str] = PRETRAINED
) -> list[Table]:
    """Make the table of a run, split into parts that fit the width of the console."""
    parts: list[Table] = []
    group: list[str] = []
    shown, unbound = headline(records), console.options.update(width=10_000)
    for name in dict.fromkeys(map(column, shown)):
        wider = summary_table([r for r in shown if column(r) in [*group, name]], states)
        if group and console.measure(wider, options=unbound).maximum > console.width:
            group, wider = [], summary_table([r for r in shown if column(r) == name], states)
            wider.title = None
            parts.append(wider)
        elif parts:
            wider.title = parts[-1].title
            parts[-1] = wider
        else:
            parts.append(wider)
        group.append(name)
    return parts


def summary_table(records: list[Record], states: tuple[str, str] = PRETRAINED) -> Table:
    """Make the table of a run: one row per branch and stage, one column per probe.

    A cell holds the test figure before and after pretraining and the gain, in points; a mean over draws of
    labels has its standard deviation beside it. A * marks the stage
    with the best held-out figure of each probe; without held-out figures, no stage is marked.
    """
    shown = headline(records)
    there = [name for on, name in enumerate(states) if any(r.trained == on for r in shown)]
    what = "figures" if any(r.metric != "top1" for r in shown) else "top-1"
    measured, chosen = f"Test {what}", "chosen on held-out images"
    if any(cross_validated(r) for r in shown):
        measured, chosen = f"Cross-validated {what}", "chosen in each fold"
    title = f"{measured} in %, {' → '.join(there)}; * best stage, {chosen}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("backbone", no_wrap=True)
    columns = list(dict.fromkeys(column(r) for r in shown))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    branches = list(dict.fromkeys(r.branch for r in shown))
    rows = {(r.branch, r.stage) for r in shown}
    for branch, stage in sorted(rows, key=lambda row: (branches.index(row[0]), row[1])):
        cells = [
            cell([r for r in shown if (column(r), r.branch) == (name, branch)], stage) for name in columns
        ]
        table.add_row(stage if branch == "backbone" else f"{branch} {stage}", *cells)
    return table


def headline(records: list[Record]) -> list[Record]:
    """Select the records for columns; of a low-shot curve the fewest, the middle and the most labels."""
    shown = [r for r in records if r.metric in UNITS]
    curves: dict[str, set[int]] = {}
    for record in shown:
        if "k_shot" in record.protocol:
            curves.setdefault(record.probe, set()).add(record.protocol["k_shot"])
    ends = {probe: {min(ks), sorted(ks)[len(ks) // 2], max(ks)} for probe, ks in curves.items()}
    return [r for r in shown if r.protocol.get("k_shot") in ends.get(r.probe, {None})]


def column(record: Record) -> str:
    """Name the column of a record: the probe with its k, labels and metric."""
    protocol, parts = record.protocol, [record.probe]
    if "k" in protocol:
        parts.append(f"k={protocol['k']}")
    if "k_shot" in protocol:
        parts.append(f"{protocol['k_shot']}-shot")
    if "fraction" in protocol:
        parts.append(f"{100 * protocol['fraction']:g} %")
    return " ".join([*parts, *filter(None, [UNITS[record.metric]])])


def spread_over_draws(record: Record) -> float | None:
    """Return the deviation over the draws of a share of the labels; None if there are none."""
    return record.protocol.get("sd") if "fraction" in record.protocol else None


def cell(of_column: list[Record], stage: str) -> str:
    """Format the figures of a stage before and after training, and the gain with its standard error.

    Args:
        of_column: Records of one branch, probe and metric, untrained and trained, of all stages.
        stage: The stage.
    """
    shown, texts = [], []
    for trained in (False, True):
        records = [r for r in of_column if r.trained == trained]
        best = best_stage(records)
        for record in records:
            if record.stage == stage:
                shown.append(record)
                chosen = record is best and record.heldout is not None
                spread = spread_over_draws(record)
                drawn = "" if spread is None else f" ± {_scale(record) * spread:.1f}"
                texts.append(f"{_scale(record) * record.value:.1f}{drawn}{'*' if chosen else ' '}")
    if len(shown) != 2:
        return " → ".join(texts)
    before, after = shown
    error = gain_error([before], [after])
    gain = f"{_scale(after) * (after.value - before.value):+5.1f}"
    return f"{' → '.join(texts)} {gain}" + ("" if error is None else f" ± {100 * error:.1f}")


def _scale(record: Record) -> int:
    return 1 if record.metric in SPECTRAL else 100
