"""Soak test: memory and file descriptors stay flat over a long run of short epochs.

`make soak`, or `python -m tests.faults.soak --help`.

The run trains on a folder of JPEGs, with loader processes, a validation, a checkpoint and a panel in every
epoch. After each epoch a CSV gets the resident memory (RSS) and the open descriptors of the launcher, the
rank and its loader processes. At the end the script prints the slopes and a curve of the memory.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.faults._data import paint

ROOT = Path(__file__).parents[2]
MAX_GROWTH = 0.02  # of memory, over the run after its first tenth
MAX_DESCRIPTORS = 4  # more than after the first tenth
EPOCH = re.compile(r"^epoch (\d+): val")
BARS, WIDTH = 24, 50  # rows and width of the curve in characters


def family(process: int) -> list[int]:
    """Return a process and all its descendants."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], stdout=subprocess.PIPE, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, lines.splitlines())}
    found = [process]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def measure(process: int) -> tuple[float, int, int]:
    """Return resident memory in MB, open descriptors, and number of a process and its descendants."""
    memory, descriptors, count = 0.0, 0, 0
    for pid in family(process):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:  # it has just ended, like `ps` itself
            continue
        if resident := re.search(r"VmRSS:\s+(\d+) kB", status):
            memory += int(resident[1]) / 1024
            count += 1
    return memory, descriptors, count


def curve(epochs: np.ndarray, memory: np.ndarray) -> list[str]:
    """Draw memory over epochs as text, with a bar for the median of each part, starting at the lowest."""
    parts = [part for part in np.array_split(np.arange(len(memory)), BARS) if len(part)]
    medians = [float(np.median(memory[part])) for part in parts]
    low, span = 0.98 * min(medians), max(medians) - 0.98 * min(medians)
    return [
        f"epoch {int(epochs[part[0]]):>6}  {median:8.1f} MB  {'#' * round(WIDTH * (median - low) / span)}"
        for part, median in zip(parts, medians, strict=True)
    ]


def report(rows: list[tuple[float, int, float, int, int]], log: Path) -> int:
    """Print slopes and curve of the measurements; return the exit status."""
    if len(rows) < 20:
        print(f"only {len(rows)} epochs: too few to tell")
        return 1
    settled = np.array(rows[len(rows) // 10 :])
    epochs, memory, descriptors = settled[:, 1], settled[:, 2], settled[:, 3]
    slope = float(np.polyfit(epochs, memory, 1)[0])
    growth = slope * (epochs[-1] - epochs[0]) / memory[0]
    more = int(np.median(descriptors[-10:]) - np.median(descriptors[:10]))
    print("\n".join(curve(np.array(rows)[:, 1], np.array(rows)[:, 2])))
    print(f"{len(rows)} epochs in {rows[-1][0] / 60:.1f} minutes, {int(rows[-1][4])} processes, {log}")
    print(
        f"memory: {100 * slope:+.2f} MB per 100 epochs ({growth:+.2%} from epoch {int(epochs[0])} to the end)"
    )
    print(f"descriptors: {int(np.median(descriptors[-10:]))}, {more:+d} since epoch {int(epochs[0])}")
    grown = growth > MAX_GROWTH or more > MAX_DESCRIPTORS
    verdict = "GROWING" if grown else "flat"
    print(f"{verdict}: allowed are {MAX_GROWTH:+.0%} of the memory and {MAX_DESCRIPTORS:+d} descriptors")
    return int(grown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--log", type=Path, default=Path("soak.csv"))
    parser.add_argument("--images", type=int, default=128, help="of an epoch")
    parser.add_argument("overrides", nargs="*", help="of train.py, such as data.num_workers=0")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name, open(given.log, "w", newline="") as file:
        place = Path(name)
        paint(place / "images", given.images, size=96)
        command = [
            sys.executable, str(ROOT / "train.py"), f"output_dir={place}", "name=soak", "data=folder",
            f"data.pretrain_dir={place}/images", f"data.root={place}/cache", "data.image_size=32",
            "data.batch_size=16", "data.num_workers=2", "trainer=cpu", "trainer.max_epochs=1000000",
            "scheduler=constant", "optimizer.lr=0.001", "probe=[]", "callbacks.panel.keep=false",
            "backbone.widths=[8,8]", "backbone.strides=[2,2]", *given.overrides,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        writer = csv.writer(file)
        writer.writerow(["seconds", "epoch", "rss_mb", "descriptors", "processes"])
        rows: list[tuple[float, int, float, int, int]] = []
        began = time.monotonic()
        for line in process.stdout:
            if found := EPOCH.match(line):
                rows.append((time.monotonic() - began, int(found[1]), *measure(process.pid)))
                writer.writerow(rows[-1])
                if rows[-1][0] > 60 * given.minutes:
                    break
        process.send_signal(signal.SIGTERM)
        process.communicate()
    if process.returncode != 128 + signal.SIGTERM:
        print(f"the run ended by itself, with status {process.returncode}")
        return 1
    return report(rows, given.log)


if __name__ == "__main__":
    sys.exit(main())
