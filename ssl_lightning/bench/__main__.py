"""Command line of the benchmark: it prints tables and writes one JSON file."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ssl_lightning.artifacts.provenance import git_revision, versions
from ssl_lightning.core.atomic_files import write_json
from ssl_lightning.core.cpu import process_environment
from ssl_lightning.core.entry import child_environment, command_line
from ssl_lightning.report.summary import print_table
from ssl_lightning.run.__main__ import keep_quiet

Rows = list[dict[str, Any]]


def bench_steps(options: argparse.Namespace) -> Rows:
    """Images/s of the framework against a bare loop."""
    from ssl_lightning.bench.steps import BLOCK, framework_against_bare

    block = options.block or BLOCK
    return [
        {"task": task, **framework_against_bare(task_overrides(task, options), options.repeats, block)}
        for task in options.tasks
    ]


def bench_parts(options: argparse.Namespace) -> Rows:
    """Milliseconds of the parts of a step, share of the peak matrix product, and peak memory."""
    from ssl_lightning.bench.build import in_new_process
    from ssl_lightning.bench.steps import matmul_peak, step_parts

    peak = matmul_peak(task_overrides(options.tasks[0], options))
    rows = [
        {"task": task, **in_new_process(step_parts, task_overrides(task, options), options.repeats)}
        for task in options.tasks
    ]
    return [row | {"of_matmul": row["gflops"] / peak} for row in rows]


def bench_defaults(options: argparse.Namespace) -> Rows:
    """Defaults against fp32 NCHW."""
    from ssl_lightning.bench.steps import defaults_against_fp32

    return [
        {"task": task, **defaults_against_fp32(task_overrides(task, options), options.repeats)}
        for task in options.tasks
    ]


def bench_ops(options: argparse.Namespace) -> Rows:
    """Batched pretext ops against one image at a time."""
    from ssl_lightning.bench.ops import ops_against_loops

    return ops_against_loops(64, options.repeats)


def bench_probes(options: argparse.Namespace) -> Rows:
    """Probes against one encode pass, and against encoding in every epoch."""
    from ssl_lightning.bench.probing import probes_against_encoding

    return [probes_against_encoding(["task=random", *options.overrides])]


def bench_files(options: argparse.Namespace) -> Rows:
    """Epochs of JPEG files against the packed cache and shards."""
    from ssl_lightning.bench.files import files_against_pack

    return files_against_pack(2400, options.repeats)


def bench_peers(options: argparse.Namespace) -> Rows:
    """SimCLR against lightly's example of it: images/s in pairs, time to a kNN accuracy."""
    from ssl_lightning.bench.peers import BLOCK, against_lightly

    given = options.overrides, options.repeats, options.block or BLOCK
    return [
        against_lightly(*given, workers, options.peers_knn, options.peers_epochs)
        for workers in options.peers_workers
    ]


SECTIONS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "steps": bench_steps,
    "parts": bench_parts,
    "defaults": bench_defaults,
    "ops": bench_ops,
    "probes": bench_probes,
    "files": bench_files,
    "peers": bench_peers,
}


def task_overrides(task: str, options: argparse.Namespace) -> list[str]:
    """Return the overrides of the command line for a task."""
    return [f"task={task}", *options.overrides]


def main(arguments: Sequence[str]) -> int:
    """Run the chosen sections; print a table of each and write all figures as JSON."""
    from ssl_lightning.bench.peers import EPOCHS, WORKERS
    from ssl_lightning.bench.steps import TASKS

    keep_quiet()
    about = "Measure speed against plain PyTorch, print tables, and write one JSON file."
    about += "\nAll sections and tasks take long; a short one: --sections steps --tasks rotation"
    listed = [f"  {name:<9} {(section.__doc__ or '').strip()}" for name, section in SECTIONS.items()]
    parser = argparse.ArgumentParser(
        prog=command_line("bench"),
        description=about,
        epilog="\n".join(["sections:", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, names in (("sections", SECTIONS), ("tasks", TASKS)):
        about = f"any of {', '.join(names)}; default: all"
        name, default = option.removesuffix("s"), list(names)
        parser.add_argument(
            f"--{option}", nargs="+", choices=names, default=default, metavar=name, help=about
        )
    about = "blocks of steps, calls, or pairs of fits, per figure"
    parser.add_argument("--repeats", type=int, default=20, help=about)
    about = "training steps per block; default: 10, of peers 32; use more on a GPU, such as 100"
    parser.add_argument("--block", type=int, help=about)
    about = f"peers: processes of lightly's loader, a row each; default: {WORKERS}, as in its example"
    parser.add_argument("--peers-workers", nargs="+", type=int, default=[WORKERS], metavar="N", help=about)
    about = "peers: also train both until this held-out kNN accuracy, such as 0.45"
    parser.add_argument("--peers-knn", type=float, metavar="SHARE", help=about)
    about = f"peers: most epochs of that training; default: {EPOCHS}"
    parser.add_argument("--peers-epochs", type=int, default=EPOCHS, metavar="N", help=about)
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="file for all figures")
    about = "overrides of a run, such as backbone=nin data.batch_size=128"
    parser.add_argument("overrides", nargs="*", help=about)
    # overrides first: an option with several values would take them too
    options = parser.parse_args(sorted(arguments, key=lambda each: "=" not in each or each.startswith("-")))
    figures: dict[str, Any] = {
        "machine": machine(),
        "git": git_revision(),
        "versions": versions(),
        "overrides": options.overrides,
    }
    for name in options.sections:
        figures[name] = SECTIONS[name](options)
        print_table(as_table(f"{name}: {(SECTIONS[name].__doc__ or '').strip()}", figures[name]))
        write_json(options.out, figures)
    print(f"figures: {options.out}")
    return 0


def machine() -> dict[str, Any]:
    """Describe the machine of the measurements."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    found: dict[str, Any] = {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


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
