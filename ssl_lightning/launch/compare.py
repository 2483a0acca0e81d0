"""Comparison of pretext tasks on one data set, within a given time: which task suits these images?"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ssl_lightning.config.composition import command_overrides
from ssl_lightning.config.keys import COMPARE_SETS, KEYS
from ssl_lightning.config.task_settings import SETTINGS
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.errors import RunError
from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.launch.report import find_benchmark
from ssl_lightning.launch.rounds import BEFORE, TaskComparison
from ssl_lightning.launch.rows import key_of, planned, row_folder
from ssl_lightning.launch.train import locked_new, removed_if_empty
from ssl_lightning.report.accuracy import judging_metric, probe_figure
from ssl_lightning.report.benchmark import Column, load_benchmark
from ssl_lightning.report.build import benchmark_tables, series_tables
from ssl_lightning.report.collect import collect
from ssl_lightning.report.comparison import any_helps, conclusion, contenders
from ssl_lightning.report.notes import VERDICTS
from ssl_lightning.report.table import Table
from ssl_lightning.report.titles import title
from ssl_lightning.report.write import PAGE, write_tables

FOLDERS = [key.name for key in KEYS if key.name.startswith("data.") and key.place == "read"]
OWN = ("minutes", "compare.tasks", "compare.seeds", "name", "output_dir")


def run_compare(cfg: DictConfig) -> None:
    """Run the unfinished rows of a comparison, then print its table and conclusion and write its page.

    Raises:
        RunError: A key or a task cannot be compared, the folder holds another comparison, or no task ran.
    """
    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    with removed_if_empty(folder):
        compare_in(folder, cfg, command_overrides(HydraConfig.get()))


def compare_in(folder: Path, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Run a comparison in its folder; see `run_compare`."""
    check_command(overrides, cfg.minutes, cfg.compare.tasks, cfg.compare.seeds)
    check_folders(cfg.data)
    tasks, seeds = list(cfg.compare.tasks), int(cfg.compare.seeds)
    given = [o for o in overrides if key_of(o) not in OWN]
    labelled = "train_dir" not in cfg.data or cfg.data.train_dir is not None
    given += [] if labelled else ["probe=[]"]
    plan = {"overrides": given, "tasks": tasks, "seeds": seeds, "minutes": cfg.minutes}
    with (
        locked_new(folder, cfg, may_exist=True) as (folder, _),
        planned("comparison", folder, plan),
    ):
        comparison = TaskComparison(
            folder,
            given,
            60 * float(cfg.minutes),
            seeds,
            continued=bool(cfg.init_from or cfg.backbone.get("pretrained")),
            command=command_text(o for o in overrides if key_of(o) not in ("minutes", "name")),
        )
        comparison.run(tasks)
    command = command_text(overrides)
    text = conclusion(comparison.labels_alone, comparison.rounds, comparison.refused)
    written = tables(comparison)
    for table in written:
        table.opening = text  # the page says what the command says
        table.notes[VERDICTS] = []  # which the text sums up
    write_tables(written, folder / "report")  # which prints the text below the table
    page = f"[The table](report/{PAGE}) has all figures, and how they were measured."
    code = use(comparison)
    parts = ["# Which pretext task?", f"`{command}`", text, code, page]
    write_file(folder / "COMPARE.md", "\n\n".join(parts) + "\n")
    print(f"\n{code}\n\ncomparison: {folder / 'COMPARE.md'}")


def check_command(overrides: Sequence[str], minutes: object, tasks: Any, seeds: object) -> None:
    """Check the command line of a comparison, whose keys may have values of any type.

    Raises:
        RunError: The message names the key, and what is allowed.
    """
    keys = [key_of(override) for override in overrides]
    if fixed := [key for key in keys if f"{key}.".startswith(tuple(f"{each}." for each in COMPARE_SETS))]:
        raise RunError(
            f"error: {fixed[0]}= cannot be given to a comparison, which sets it for each task; "
            "choose tasks by compare.tasks=[...]"
        )
    if not isinstance(minutes, int | float) or not 0 < minutes < math.inf:
        raise RunError(f"error: minutes is {minutes}; allowed is a number above 0")
    if not isinstance(seeds, int) or seeds < 1:
        raise RunError(f"error: compare.seeds is {seeds}; allowed is a whole number, 1 or more")
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise RunError(f"error: compare.tasks is {tasks}; a list is needed: compare.tasks=[{tasks}]")
    if wrong := [task for task in tasks if task not in SETTINGS]:
        raise RunError(
            f"error: compare.tasks has {', '.join(wrong)}; allowed are {', '.join(SETTINGS)}; for another, "
            "add its settings to SETTINGS in ssl_lightning/config/task_settings.py"
        )
    if not tasks:
        raise RunError(f"error: compare.tasks is empty; allowed are {', '.join(SETTINGS)}")


def check_folders(data: Mapping[str, Any]) -> None:
    """Check that the folders of images exist, before the first run starts.

    Raises:
        RunError: One does not exist; the message names its key.
    """
    for key in FOLDERS:
        if folder := data.get(key.removeprefix("data.")):
            try:
                check_folder(Path(folder), f"; {key} is this folder")
            except OSError as error:
                raise RunError(f"error: {error}") from None


def command_text(overrides: Iterable[str]) -> str:
    """Return the shell command of a comparison with these overrides."""
    return " ".join([command_line("compare"), *map(shlex.quote, overrides)])


def use(comparison: TaskComparison) -> str:
    """Return lines of Python that use the backbone of the winner; without labels, of the first task."""
    last = comparison.rounds[-1]
    winner = contenders(last)[0]
    run = str(comparison.folder / row_folder(f"{winner} round {last.number}", 0))
    lines = ["import ssl_lightning", "from PIL import Image", 'image = Image.open("photo.jpg")']
    if last.runs[winner][0].probes:
        lines += [
            f"classifier = ssl_lightning.load_classifier({run!r})",
            "scores = classifier(classifier.transform(image)[None])  # one for each class",
            "print(classifier.class_names[scores.argmax()])",
        ]
    lines += [
        f"backbone = ssl_lightning.load_backbone({run!r})",
        "maps = backbone(backbone.transform(image)[None])  # of each stage, (1, C, H, W)",
    ]
    if figure := probe_figure(last.runs[winner][:1], trained=True):
        stage = figure.records[0].stage
        place = int(stage.removeprefix("stage")) - 1
        lines.append(f"features = maps[{place}].mean((2, 3))  # (1, C) of {stage}, which the probe chose")
    code = "\n".join(f"    {line}" for line in lines)
    return f"{'Use' if any_helps(comparison.rounds) else 'Try'} the backbone of {title(winner)}:\n\n{code}"


def tables(comparison: TaskComparison) -> list[Table]:
    """Make the table: the backbone before training, the labels alone, then each task round by round.

    The metric that judges gives the figures; without labels, the scores of the pretext tasks do.
    """
    if not comparison.probed:
        return series_tables(collect(comparison.folder))
    first = [BEFORE, "labels alone"]
    rows = [f"{task} round {each.number}" for each in comparison.rounds for task in each.runs]
    benchmark = load_benchmark(find_benchmark("compare"))
    metric = judging_metric(next(iter(comparison.rounds[0].runs.values()))[0])
    suffix = "" if metric == "top1" else f" {metric}"
    columns = [
        replace(column, name=f"{column.name}{suffix}", where={**column.where, "metric": metric})
        for column in (*benchmark.columns, Column("fine-tuned", where={"probe": "finetune"}))
    ]
    benchmark = replace(benchmark, rows=[*first, *sorted(rows)], columns=columns)
    made = benchmark_tables(collect(comparison.folder), benchmark, None)
    for table in made:
        table.title = benchmark.title
    return made
