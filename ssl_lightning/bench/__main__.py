"""Command line of the benchmark: it prints tables and writes one JSON file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ssl_lightning.artifacts.provenance import git_revision, versions
from ssl_lightning.config.misspelled import CONFIG_ERRORS, explained
from ssl_lightning.core.atomic_files import write_json
from ssl_lightning.core.cpu import process_environment, processor
from ssl_lightning.core.entry import child_environment, command_line
from ssl_lightning.core.errors import RunError, cause_of, print_error
from ssl_lightning.core.progress import span
from ssl_lightning.report.summary import print_table
from ssl_lightning.run.__main__ import keep_quiet

Rows = list[dict[str, Any]]


def bench_steps(options: argparse.Namespace, task: str, repeats: int) -> Rows:
    """Images/s of the framework as a share of a bare loop's."""
    from ssl_lightning.bench.steps import BLOCK, framework_against_bare

    block = options.block or BLOCK
    return [{"task": task, **framework_against_bare(task_overrides(task, options), repeats, block)}]


def bench_parts(options: argparse.Namespace, task: str, repeats: int) -> Rows:
    """Milliseconds of the parts of a step, share of the peak matrix product, and peak memory."""
    from ssl_lightning.bench.build import in_new_process
    from ssl_lightning.bench.steps import matmul_peak, step_parts

    peak = matmul_peak(task_overrides(task, options))
    row = in_new_process(step_parts, task_overrides(task, options), repeats)
    return [{"task": task, **row, "of_matmul": row["gflops"] / peak}]


def bench_defaults(options: argparse.Namespace, task: str, repeats: int) -> Rows:
    """Images/s of bare steps with the defaults, in times of fp32 NCHW."""
    from ssl_lightning.bench.steps import defaults_against_fp32

    return [{"task": task, **defaults_against_fp32(task_overrides(task, options), repeats)}]


def bench_ops(options: argparse.Namespace, task: str, repeats: int) -> Rows:
    """Speed of batched pretext ops, in times of one image at a time."""
    from ssl_lightning.bench.ops import ops_against_loops

    return ops_against_loops(64, repeats)


def bench_probes(options: argparse.Namespace, task: str, repeats: int) -> Rows:
    """Seconds of the linear and the kNN probe over seconds of one encode pass."""
    from ssl_lightning.bench.probing import probes_against_encoding

    found = probes_against_encoding(["task=random", *options.overrides], repeats)
    return [{"probes": "linear and kNN", **found}]


def bench_reencoding(options: argparse.Namespace, task: str, repeats: int) -> Rows:
    """Seconds of linear heads that encode in every epoch, in times of encoding once; measured once."""
    from ssl_lightning.bench.probing import probes_against_reencoding

    return [{"probes": "linear", **probes_against_reencoding(["task=random", *options.overrides])}]


def bench_files(options: argparse.Namespace, task: str, repeats: int) -> Rows:
    """Images/s of epochs from the packed cache and from shards, in times of JPEG files."""
    from ssl_lightning.bench.files import files_against_pack

    return files_against_pack(1200, repeats)


def bench_peers(options: argparse.Namespace, task: str, repeats: int) -> Rows:
    """Images/s of SimCLR, in times of lightly's example of it; on request time to a kNN accuracy."""
    from ssl_lightning.bench.peers import BLOCK, against_lightly

    given = options.overrides, repeats, options.block or BLOCK
    return [
        against_lightly(*given, workers, options.peers_knn, options.peers_epochs)
        for workers in options.peers_workers
    ]


@dataclass(frozen=True)
class Section:
    """A kind of measurement.

    Args:
        measure: Returns rows of figures for the options, a task and a number of repeats.
        repeats: Blocks of steps, calls, or pairs of fits, per figure.
        seconds: Rough time on two cores, by which the time left is told.
        each_task: Whether it is measured for each task.
        default: Whether it runs if no section is named.
    """

    measure: Callable[[argparse.Namespace, str, int], Rows]
    repeats: int
    seconds: int
    each_task: bool = False
    default: bool = True

    @property
    def about(self) -> str:
        """One line about it."""
        return (self.measure.__doc__ or "").strip()


SECTIONS = {
    "steps": Section(bench_steps, 8, 20, each_task=True),
    "defaults": Section(bench_defaults, 4, 75, each_task=True),
    "ops": Section(bench_ops, 4, 60),
    "probes": Section(bench_probes, 3, 35),
    "files": Section(bench_files, 3, 70),
    "peers": Section(bench_peers, 2, 120),
    "parts": Section(bench_parts, 10, 20, each_task=True, default=False),
    "reencoding": Section(bench_reencoding, 1, 75, default=False),
}
DEFAULT_TASKS = ("rotation", "jigsaw")  # full images, and tiles


def task_overrides(task: str, options: argparse.Namespace) -> list[str]:
    """Return the overrides of the command line for a task."""
    return [f"task={task}", *options.overrides]


def main(arguments: Sequence[str]) -> int:
    """Run the chosen sections; print one table of ratios and write all figures as JSON."""
    from ssl_lightning.bench.peers import EPOCHS, WORKERS
    from ssl_lightning.bench.steps import TASKS

    keep_quiet()
    listed = [f"  {name:<11} {section.about}" for name, section in SECTIONS.items()]
    parser = argparse.ArgumentParser(
        prog=command_line("bench"),
        description="Measure speed against plain PyTorch: a table of ratios with their spread, in less than "
        "ten minutes on two idle cores, and a JSON file of all figures.",
        epilog="\n".join(["sections:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = [name for name, section in SECTIONS.items() if section.default]
    for option, names, default in (("sections", list(SECTIONS), usual), ("tasks", TASKS, DEFAULT_TASKS)):
        about = f"any of {', '.join(names)}; default: {' '.join(default)}"
        name = option.removesuffix("s")
        parser.add_argument(
            f"--{option}", nargs="+", choices=names, default=default, metavar=name, help=about
        )
    numbers = ", ".join(f"{section.repeats} of {name}" for name, section in SECTIONS.items())
    about = f"blocks of steps, calls, or pairs of fits, per figure; default: {numbers}"
    parser.add_argument("--repeats", type=int, help=about)
    about = "training steps per block; default: 10, of peers 32; use more on a GPU, such as 100"
    parser.add_argument("--block", type=int, help=about)
    about = f"peers: processes of lightly's loader, a row each; default: {WORKERS}, as in its example"
    parser.add_argument("--peers-workers", nargs="+", type=int, default=[WORKERS], metavar="N", help=about)
    about = "peers: also train both until this held-out kNN accuracy, such as 0.45"
    parser.add_argument("--peers-knn", type=float, metavar="SHARE", help=about)
    about = f"peers: most epochs of that training; default: {EPOCHS}"
    parser.add_argument("--peers-epochs", type=int, default=EPOCHS, metavar="N", help=about)
    about = "also print a table of all figures of each section"
    parser.add_argument("--details", action="store_true", help=about)
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="file for all figures")
    about = "overrides of a run, such as backbone=nin data.batch_size=128"
    parser.add_argument("overrides", nargs="*", help=about)
    # overrides first: an option with several values would take them too
    options = parser.parse_args(sorted(arguments, key=lambda each: "=" not in each or each.startswith("-")))
    try:
        return run_sections(options)
    except (ValueError, OSError, *CONFIG_ERRORS) as error:
        cause = cause_of(error)
        of_config = isinstance(cause, CONFIG_ERRORS)
        return print_error(RunError(f"error: {explained(cause)}") if of_config else cause)


def run_sections(options: argparse.Namespace) -> int:
    """Run the sections of the options, print their tables and write the JSON file; return 0."""
    figures: dict[str, Any] = {
        "machine": machine(),
        "git": git_revision(),
        "versions": versions(),
        "overrides": options.overrides,
    }
    for name, rows in measurements(options):
        figures.setdefault(name, []).extend(rows)
        write_json(options.out, figures)
    found = {name: figures[name] for name in options.sections}
    for name, rows in found.items():
        if options.details or not ratios({name: rows}):
            print_table(as_table(f"{name}: {SECTIONS[name].about}", rows))
    if rows := ratios(found):
        for name in found:
            print(f"{name}: {SECTIONS[name].about}")
        print_table(as_table("", rows))
    print(f"figures: {options.out}")
    return 0


def measurements(options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """Measure section by section, and tell after each measurement how long the rest takes."""
    jobs = [
        (name, task)
        for name in options.sections
        for task in (options.tasks if SECTIONS[name].each_task else [""])
    ]
    planned = [SECTIONS[name].seconds for name, _ in jobs]
    began = time.monotonic()
    for number, (name, task) in enumerate(jobs, 1):
        section = SECTIONS[name]
        yield name, section.measure(options, task, options.repeats or section.repeats)
        spent = time.monotonic() - began
        left = spent * sum(planned[number:]) / sum(planned[:number])
        print(f"{number} of {len(jobs)}: {f'{name} {task}'.strip()}; about {span(left)} left", flush=True)


def ratios(figures: Mapping[str, Rows]) -> Rows:
    """Return a row for each ratio of the figures, by section, with its median and spread."""
    return [
        {
            "section": name,
            "of": str(next(iter(row.values()))),
            "ratio": key,
            "median": row[key],
            "lowest": row[f"{key}_lowest"],
            "highest": row[f"{key}_highest"],
        }
        for name, rows in figures.items()
        for row in rows
        for key in row
        if f"{key}_lowest" in row
    ]


def machine() -> dict[str, Any]:
    """Describe the machine of the measurements."""
    found: dict[str, Any] = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def as_table(title: str, rows: Rows) -> Table:
    """Format rows as a table; floats below 100 have three digits."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for key in rows[0]:
        table.add_column(key.replace("_", " "), justify="left" if isinstance(rows[0][key], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) and v < 100 else _plain(v) for v in row.values()))
    return table


def _plain(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def start(arguments: Sequence[str]) -> int:
    """Run with the CPU settings of a training run."""
    environment = process_environment(child_environment())
    if not environment.keys() <= os.environ.keys():  # the C library reads them at process start
        again = [sys.executable, "-P", "-m", "ssl_lightning.bench", *arguments]
        os.execve(sys.executable, again, environment)
    return main(arguments)


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
