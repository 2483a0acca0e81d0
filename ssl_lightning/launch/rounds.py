"""Rounds of a comparison: how long each task trains, and which tasks go on, within a given time."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_lightning.artifacts.results import Results
from ssl_lightning.config.task_settings import SETTINGS, length, seen_images
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.errors import RunError
from ssl_lightning.core.progress import span
from ssl_lightning.launch.rows import RefusedRowError, key_of, run_row, run_stoppable
from ssl_lightning.launch.train import TakenError
from ssl_lightning.report.comparison import TaskRound, contenders

ROUNDS_NAME = "rounds.json"
BEFORE = "before"  # name of the row with the untrained backbone
SHARES = {1: 0.3, 2: 0.35, 3: 0.95}  # share of the time left that a round plans for
FEWEST_STEPS = 20  # of a training; fewer change a backbone too little to compare tasks
LONGER = 1.5  # times the images of its last run that a task must see in a longer one
LABELS_ALONE = 2  # images that the network trained on labels alone sees, relative to a task in round 1
MOST_EPOCHS, MOST_STEPS, BATCH = 20, 500, 64  # as in conf/probe/finetune.yaml


def labels_length(first: int, labels: int) -> list[str]:
    """Return the overrides for the length of the training on the labels alone.

    Args:
        first: Images that each task sees in round 1.
        labels: Labelled training images.

    >>> labels_length(8000, 100)
    ['probe.finetune.epochs=20', 'probe.finetune.min_steps=250']
    >>> labels_length(8000, 5000)
    ['probe.finetune.epochs=3', 'probe.finetune.min_steps=250']
    """
    seen = LABELS_ALONE * first
    epochs = min(MOST_EPOCHS, max(1, seen // labels))
    return [
        f"probe.finetune.epochs={epochs}",
        f"probe.finetune.min_steps={min(MOST_STEPS, max(1, seen // BATCH))}",
    ]


@dataclass
class TaskComparison:
    """State of a comparison: finished runs, and the lengths that were decided.

    Decisions are stored before their runs start, so an interrupted comparison continues with them.

    Args:
        folder: Folder of all runs.
        given: Overrides of all runs.
        seconds: Planned length.
        seeds: Runs of each finalist.
        continued: Whether the backbone starts from given weights.
        command: Shell command of the comparison without `minutes` and `name`, to suggest.
    """

    folder: Path
    given: list[str]
    seconds: float
    seeds: int
    continued: bool = False
    command: str = ""
    images: int = 0  # of an epoch
    probed: bool = False  # whether there are labels
    labels_alone: Results | None = None
    rounds: list[TaskRound] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # the reason of each refused row
    said: set[str] = field(default_factory=set)  # warnings, which are printed once

    def __post_init__(self) -> None:
        path = self.folder / ROUNDS_NAME
        self.stored: dict[str, Any] = {"seconds": {}, "rounds": {}}
        if path.exists():
            self.stored = json.loads(path.read_text())

    def run(self, tasks: Sequence[str]) -> None:
        """Run all rounds; beside given weights no network is trained on the labels alone."""
        before = self.row(BEFORE, 0, ["task=random"])
        self.images, self.probed = before.run.pretrain_images or 0, bool(before.probes)
        print(f"{self.images:,} images to pretrain on", flush=True)
        first = self.first_round(tasks, before)
        if self.tunes:
            number = before.probes[0].protocol["labels"]["train"]
            tuning = ["task=random", "probe=[finetune]", "probe.finetune.fractions=[1.0]"]
            self.labels_alone = self.tried("labels alone", 0, [*tuning, *labels_length(first, number)])
        self.run_round(dict.fromkeys(tasks, first), 1)
        if not self.rounds[0].runs:
            raise RunError("error: no task could be trained, for the reasons above")
        self.later_round(2, 1)
        if self.probed:
            self.later_round(3, self.seeds)

    @property
    def tunes(self) -> bool:
        """Whether a network is trained on the labels alone."""
        return self.probed and not self.continued

    @property
    def used(self) -> float:
        """Seconds of the finished runs, and of the measurement of speeds."""
        return sum(self.stored["seconds"].values())

    def first_round(self, tasks: Sequence[str], before: Results) -> int:
        """Return the images that each task sees in round 1; a new comparison measures and stores them."""
        stored = self.stored["rounds"].get("1")
        if stored is None:
            speeds = self.speeds(tasks)
            stored = {"seeds": 1, "images": dict.fromkeys(tasks, self.first_images(speeds, before))}
            self.stored["rounds"]["1"] = stored
            self.store()
        return int(max(stored["images"].values()))

    def speeds(self, tasks: Sequence[str]) -> dict[str, float]:
        """Measure images per second of each task on one device; a task that fails is left out."""
        print(f"\nmeasuring the speed of {', '.join(tasks)}", flush=True)
        began = time.monotonic()
        facts = ["+benchmark=compare", "benchmark.row=speed", *self.given]
        rows = {task: [*facts, *self.settings(task)] for task in tasks}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "speeds.json"
            command = [sys.executable, "-P", "-m", "ssl_lightning.run.speed", json.dumps(rows), str(out)]
            same = f"the same command with name={self.folder.name} continues the comparison"
            run_stoppable(command, same, self.said)
            found = json.loads(out.read_text()) if out.exists() else {}
        self.stored["seconds"]["speed 0"] = time.monotonic() - began
        return dict(found)

    def first_images(self, speeds: Mapping[str, float], before: Results) -> int:
        """Return how many images each task sees in round 1; print a line if even the fewest take too long.

        The fewest may take all the time left: one round that tells something beats three that tell nothing.

        Args:
            speeds: Images per second of each task.
            before: Results of the untrained backbone, whose run has all fixed costs of a task.
        """
        fewest = FEWEST_STEPS * max(map(self.batch_size, speeds), default=BATCH)
        if not speeds:
            return fewest
        fixed = self.stored["seconds"][f"{BEFORE} 0"] + before.run.wall_s * self.probed  # probes run twice
        fixed *= len(speeds) + self.tunes
        image = sum(1 / speed for speed in speeds.values()) + LABELS_ALONE * self.tunes / max(speeds.values())
        left, least = self.seconds - self.used, fixed + fewest * image
        if least > left:
            minutes = math.ceil((self.used + least / SHARES[1]) / 60)
            print(
                f"minutes={self.seconds / 60:g} is too short here: round 1 takes about {span(least)}, at the "
                f"fewest steps that tell anything, {FEWEST_STEPS} a task; it starts all the same, and longer "
                f"rounds need: {self.command} minutes={minutes} name={self.folder.name}_longer",
                flush=True,
            )
        return max(fewest, int((SHARES[1] * left - fixed) / image))

    def later_round(self, number: int, seeds: int) -> None:
        """Train the tasks that are not behind for longer, with as many seeds as the time left allows.

        Where it does not suffice for all of them, the last round takes the first ones on held-out images.

        Args:
            number: Number of the round; it is left out if there is no time for longer runs.
            seeds: Largest number of seeds.
        """
        stored = self.stored["rounds"].get(str(number))
        if stored is None:
            tasks = contenders(self.rounds[-1])
            fewest = min(2, len(tasks)) if self.probed and number == max(SHARES) else len(tasks)
            stored = self.plan(tasks, fewest, seeds, SHARES[number])
            self.stored["rounds"][str(number)] = stored
            self.store()
        if stored["seeds"]:
            self.run_round(stored["images"], number, stored["seeds"])
        else:
            print(f"\nround {number} is left out: the time does not suffice for longer trainings", flush=True)

    def plan(self, tasks: Sequence[str], fewest: int, seeds: int, share: float) -> dict[str, Any]:
        """Plan longer runs of as many tasks as the time allows, then of as many seeds.

        Args:
            tasks: The tasks, best first.
            fewest: Fewest tasks of a round.
            seeds: Most seeds.
            share: Share of the time left to plan for.

        Returns:
            The number of seeds, and the images that each task sees; no seeds if there is no time.
        """
        left = (self.seconds - self.used) * share
        for count in range(len(tasks), fewest - 1, -1):
            for runs in range(seeds, 0, -1):
                seen = {task: self.affordable(task, left / (count * runs)) for task in tasks[:count]}
                if all(images >= LONGER * self.rounds[-1].seen[task] for task, images in seen.items()):
                    return {"seeds": runs, "images": seen}
        return {"seeds": 0}

    def run_round(self, seen: Mapping[str, int], number: int, seeds: int = 1) -> None:
        """Train tasks on so many images each; a task that fails in the first round is out."""
        start = self.tried if number == 1 else self.row
        print(f"\nround {number}: {', '.join(seen)}", flush=True)
        found: dict[str, list[Results]] = {}
        for place, (task, images) in enumerate(seen.items()):
            self.tell_time(number, place * seeds, len(seen) * seeds)
            for seed in range(seeds):
                done = start(f"{task} round {number}", seed, self.overrides(task, images))
                if done is None:
                    break
                found.setdefault(task, []).append(done)
        saw = {task: seen_images(seen[task], self.images, self.batch_size(task)) for task in found}
        self.rounds.append(TaskRound(saw, found, number))

    def tell_time(self, number: int, done: int, trainings: int) -> None:
        """Print how much of the time is used, and how long the rest of the round takes at its pace."""
        text = f"round {number}: {done} of {trainings} trainings done, "
        text += f"{self.used / self.seconds:.0%} of the time used"
        taken = [value for name, value in self.stored["seconds"].items() if f" round {number} " in name]
        if done and taken:
            text += f", about {span((trainings - done) * sum(taken) / len(taken))} to the end of the round"
        print(text, flush=True)

    def settings(self, task: str) -> list[str]:
        """Return the overrides of a task, but for its length."""
        return [f"task={task}", *SETTINGS[task].overrides(self.images, continued=self.continued)]

    def batch_size(self, task: str) -> int:
        return next(int(o.partition("=")[2]) for o in self.settings(task) if key_of(o) == "data.batch_size")

    def overrides(self, task: str, seen: int) -> list[str]:
        """Return the overrides of a task that sees so many images."""
        return [*self.settings(task), *length(seen, self.images, self.batch_size(task))]

    def affordable(self, task: str, seconds: float) -> int:
        """Return how many images a task can see in this time, by its last run."""
        last = self.rounds[-1]
        done = last.runs[task][0].run
        fixed = max(0.0, self.stored["seconds"][f"{task} round {last.number} 0"] - self.training(task))
        return max(1, round(done.images_per_s * (seconds - fixed)))

    def training(self, task: str) -> float:
        """Return the seconds of the training steps of a task's last run."""
        speed = self.rounds[-1].runs[task][0].run.images_per_s
        return self.rounds[-1].seen[task] / speed if speed else 0.0

    def tried(self, name: str, seed: int, overrides: Sequence[str]) -> Results | None:
        """Run or resume one row; note it if it fails, such as a task that these images do not allow."""
        try:
            return self.row(name, seed, overrides)
        except TakenError:
            raise
        except RunError as error:  # the run has printed its reason
            task = name.removesuffix(" round 1")
            reason = error.reason if isinstance(error, RefusedRowError) else ""
            self.refused[task] = reason or "the run failed"
            print(f"{task} is left out, for the reason above", flush=True)
            return None

    def row(self, name: str, seed: int, overrides: Sequence[str]) -> Results:
        """Run or resume one row, and store its seconds."""
        began = time.monotonic()
        facts = ["+benchmark=compare", "hydra.mode=RUN", f"benchmark.row={name}"]
        facts += [] if name == BEFORE else ["summary=brief"]  # whose header holds for all rows
        run = [*facts, *self.given, *overrides]
        done = run_row("comparison", self.folder, name, seed, run, self.said)
        key = f"{name} {seed}"
        if key not in self.stored["seconds"]:
            self.stored["seconds"][key] = max(time.monotonic() - began, done.run.wall_s)
            self.store()
        return done

    def store(self) -> None:
        write_file(self.folder / ROUNDS_NAME, json.dumps(self.stored, indent=1) + "\n")
