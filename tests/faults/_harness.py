"""Strike commands by a signal at a random moment, run them again, and compare their results.

At a moment a process opens a file for writing, renames it or removes it. An undisturbed run logs all moments
(`hook/sitecustomize.py`). Each fault is drawn from them, with a delay up to the next moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open

from ssl_lightning.artifacts.checkpoints import is_complete, load_checkpoint
from ssl_lightning.data.io import packed
from tests.test_resume import digest, sha

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"
SEED = int(os.environ.get("SSL_LIGHTNING_FAULT_SEED", 0))  # another seed draws other moments
TIMEOUT_S = 300.0
DENSE_S = 0.005  # writes follow each other faster than this; a longer gap is work

RUN = [
    "data=fake", "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=3", "trainer.val_check_interval=0.5",
    "trainer.log_every_n_steps=3", "trainer.precision=32-true", "probe.knn.ks=[5]", "probe_untrained=true",
    "backbone.widths=[8,8]", "backbone.strides=[2,2]", "callbacks.checkpoint.every_n_steps=5", "go_on=true",
]  # fmt: skip

Command = Sequence[str]
State = Mapping[str, object]


@dataclass
class Moment:
    """Moment of a run: the number-th time that `what` happens to `file`, and the time to the next moment."""

    what: str
    file: str
    number: int
    gap: float

    @property
    def name(self) -> str:
        return f"{self.what} {self.file}"


@dataclass
class Undisturbed:
    """Undisturbed run: its folder, its moments, and its final state."""

    output: Path
    folder: Path
    moments: list[Moment]
    state: State


@dataclass
class Tally:
    """Faults by phase: their number, and those that lost something."""

    tried: dict[str, int] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)
    signals: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # measured by tests of durations

    def lines(self) -> list[str]:
        """Return the table that pytest prints at the end."""
        rows = [("phase", "tried", "survived", "lost")]
        for phase, tried in self.tried.items():
            lost = len(self.lost.get(phase, ()))
            rows.append((phase, str(tried), str(tried - lost), str(lost)))
        tried, lost = sum(self.tried.values()), sum(map(len, self.lost.values()))
        rows.append(("all", str(tried), str(tried - lost), str(lost)))
        lines = [f"{a:<34}{b:>7}{c:>10}{d:>6}" for a, b, c, d in rows]
        lines += [", ".join(f"{name} {count}" for name, count in sorted(self.signals.items()))]
        return lines + [f"{what}: {taken:.1f} s" for what, taken in self.seconds.items()]


def train(output: Path, name: str) -> list[str]:
    """Return the command of the run that these tests disturb."""
    return [str(ROOT / "train.py"), *RUN, f"output_dir={output}", f"name={name}"]


def folder_of(output: Path, name: str) -> Path:
    """Return the run folder of `train`."""
    return output / "rotation/fake/convnet" / name


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command: one thread, the hook, and no variables of another fault."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOOK)}
    return {k: v for k, v in os.environ.items() if not k.startswith("FAULT_")} | own | more


def start(command: Command, cwd: Path, **more: str) -> subprocess.Popen[str]:
    """Start a Python command in its own process group."""
    return subprocess.Popen(
        [sys.executable, *command], env=environment(**more), cwd=cwd, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; return its status and output."""
    output, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output


def run(command: Command, cwd: Path, **more: str) -> str:
    """Run a command that must succeed; return its output."""
    status, output = finish(start(command, cwd, **more))
    assert status == 0, output
    return output


def moments_of(command: Command, cwd: Path, watch: Path) -> list[Moment]:
    """Run a command undisturbed; return its moments in order."""
    log = cwd / "moments.jsonl"
    run(command, cwd, FAULT_WATCH=str(watch), FAULT_LOG=str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.unlink()
    lines = [line for line in lines if line[4] in (None, "0")]
    times = [line[3] for line in lines] + [lines[-1][3]]
    return [Moment(*line[:3], gap=after - line[3]) for line, after in zip(lines, times[1:], strict=True)]


def draw(phase: str, trial: int, moments: Sequence[Moment], within: float | None = None) -> dict:
    """Draw the fault of a trial: moment and delay from the seed, signals in turn.

    Args:
        phase: Name of the phase, part of the seed.
        trial: Number of the trial.
        moments: Moments of the phase.
        within: Longest delay after the moment, s; None for the time to the next moment.
    """
    assert moments, f"{phase} has no moments"
    random_ = random.Random(f"{SEED} {phase} {trial}")
    chosen = random_.choice(moments)
    longest = chosen.gap if within is None else min(within, chosen.gap)
    delay = 0.0 if trial % 4 == 0 and within is not None else random_.uniform(0, longest)
    number = (signal.SIGKILL, signal.SIGTERM)[trial % 2]
    return {
        "moment": [chosen.what, chosen.file, chosen.number],
        "delay": delay,
        "signal": int(number),
        "to": random_.choice(["launcher", "rank"]),
    }


def fill_at(moment: Moment, ballast: Path, watch: Path) -> dict[str, str]:
    """Return the environment of a command whose disk is full from a moment on, filled by `ballast`."""
    fault = {"moment": [moment.what, moment.file, moment.number], "fill": str(ballast)}
    return {"FAULT_WATCH": str(watch), "FAULT_AT": json.dumps(fault)}


def strike(command: Command, cwd: Path, watch: Path, fault: dict) -> str:
    """Run a command with a fault, and check that its moment came; return the output."""
    came = cwd / ".came.lock"  # the hook ignores locks
    came.unlink(missing_ok=True)
    fault_at = {"FAULT_AT": json.dumps(fault), "FAULT_CAME": str(came)}
    status, output = finish(start(command, cwd, FAULT_WATCH=str(watch), **fault_at))
    late = status == 0 and came.exists()  # the command ended within the delay after its last moments
    assert status != 0 or late, f"the moment {fault} did not come:\n{output}"
    return output


def survive(
    tally: Tally,
    phase: str,
    trial: int,
    command: Command,
    cwd: Path,
    watch: Path,
    fault: dict,
    state: Callable[[], State],
    expected: State,
) -> None:
    """Strike a command, check for torn files, run it again, and compare with the undisturbed end state."""
    tally.tried[phase] = tally.tried.get(phase, 0) + 1
    name = signal.Signals(fault["signal"]).name
    tally.signals[name] = tally.signals.get(name, 0) + 1
    lost = tally.lost.setdefault(phase, [])
    lost.append(f"trial {trial}: {fault}")  # removed below once it has survived
    strike(command, cwd, watch, fault)
    assert torn(watch) == [], fault
    run(command, cwd)
    assert torn(watch) == [], fault
    assert leftovers(watch) == [], fault
    assert differing(state(), expected) == [], fault
    lost.pop()


def differing(state: State, expected: State) -> list[str]:
    """Return the entries of an end state that differ from the undisturbed one."""
    return sorted(k for k in state.keys() | expected.keys() if state.get(k) != expected.get(k))


def torn(folder: Path) -> list[str]:
    """Return the torn files below a folder, among those with a final name."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and not is_readable(path):
            found.append(str(path))
    return found


def is_readable(path: Path) -> bool:
    """Whether a reader for the type of a file accepts it."""
    try:
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".yaml":
                return bool(OmegaConf.load(path))
            case ".ckpt":
                return is_complete(path)
            case ".safetensors":
                with safe_open(path, "pt") as file:
                    return all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118
            case ".png":
                with Image.open(path) as image:
                    image.load()
            case ".npy":
                np.load(path)
            case ".npz":
                with np.load(path) as arrays:
                    return all(arrays[name] is not None for name in arrays)
            case ".bin":
                return packed.is_complete_pack(path)
            case ".html":
                return path.read_text().rstrip().endswith("</html>")
            case ".md" | ".tex":
                return path.read_text().endswith("\n")
    except Exception:  # readers raise nearly everything on broken files
        return False
    return True


def contents(folder: Path) -> State:
    """Return the digests of the files with a final name below a folder."""
    paths = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def leftovers(folder: Path) -> list[str]:
    """Return temporary files that nothing will remove."""
    return [str(path) for path in folder.rglob(".*") if ".tmp" in path.name]


def end_state(folder: Path) -> State:
    """Return everything of a finished run that must be bit-equal to an undisturbed one."""
    best = load_checkpoint(folder / "checkpoints/best.ckpt")
    card = (folder / "MODEL_CARD.md").read_text()
    others = [folder / "backbone.json", folder / "panel.png", *sorted(folder.glob("panels/*"))]
    return {
        **digest(folder),
        "best": sha(best["state_dict"]),
        "card": card.replace(str(folder), "<folder>"),
        "others": {str(path.relative_to(folder)): path.read_bytes() for path in others},
        "error": (folder / "error.txt").exists(),
    }


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], pause: float = 0.02) -> None:
    """Wait until `what` is true, while a command runs."""
    deadline = time.monotonic() + TIMEOUT_S
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(pause)
