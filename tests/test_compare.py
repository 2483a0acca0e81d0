"""Tests of the comparison of tasks, run as a user runs it."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.artifacts.results import Results, read_results, write_results
from ssl_lightning.artifacts.run_facts import BenchmarkRow
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.compare import check_command, check_folders, tables
from ssl_lightning.launch.rounds import TaskComparison
from ssl_lightning.report.comparison import TaskRound
from tests.artifacts.test_results import FACTS, record

ROOT = Path(__file__).parent.parent
SMALL = [
    "data=fake", "data.num_train=160", "data.num_test=64", "data.heldout=32", "trainer=cpu",
    "encoding.images=32", "minutes=0.3", "compare.tasks=[rotation,jigsaw]", "compare.seeds=1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "fewest", "expected"),
    [
        (900, 2, {"seeds": 3, "images": {"rotation": 100, "jigsaw": 100, "inpainting": 100}}),
        (500, 2, {"seeds": 1, "images": {"rotation": 166, "jigsaw": 166, "inpainting": 166}}),
        (180, 2, {"seeds": 1, "images": {"rotation": 90, "jigsaw": 90}}),
        (180, 3, {"seeds": 0}),
        (100, 2, {"seeds": 0}),
    ],
)
def test_the_time_left_decides_on_tasks_and_seeds(
    seconds: int, fewest: int, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = TaskComparison(tmp_path, [], seconds, 3)
    tasks = ["rotation", "jigsaw", "inpainting"]
    comparison.rounds = [TaskRound(dict.fromkeys(tasks, 60), {})]
    monkeypatch.setattr(comparison, "affordable", lambda task, seconds: int(seconds))
    assert comparison.plan(tasks, fewest, 3, 1.0) == expected


def measured(seconds: float, folder: Path) -> TaskComparison:
    command = "python compare.py data=folder data.pretrain_dir=/photos"
    comparison = TaskComparison(folder / "first", [], seconds, 3, command=command)
    comparison.images, comparison.probed = 45_000, True  # batches of 16 and 64: 20 steps are 1,280 images
    comparison.stored["seconds"] = {"before 0": 10.0, "speed 0": 10.0}
    return comparison


@pytest.mark.parametrize(
    ("seconds", "labels", "expected", "said"),
    [
        # an image takes 1/100 + 1/50 s, and 2/100 s on labels alone; three runs take 10 + 4 s without them
        (600, True, 2640, ""),  # (0.3 * 580 - 3 * 14) / 0.05
        (600, False, 5133, ""),  # (0.3 * 580 - 2 * 10) / 0.03
        (360, True, 1280, ""),
        (100, True, 1280, "minutes=1.66667 is too short here: round 1 takes about 106 s"),
    ],
)
def test_the_measured_speed_decides_on_the_first_round(
    seconds: float, labels: bool, expected: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = measured(seconds, tmp_path)
    comparison.probed = labels
    before = Results(replace(FACTS, wall_s=4.0), {}, [])
    found = comparison.first_images({"rotation": 100.0, "jigsaw": 50.0}, before)
    assert found == pytest.approx(expected, abs=1)
    printed = capsys.readouterr().out
    assert printed.startswith(said)
    assert bool(printed) == bool(said)
    if said:  # 20 s are used, and 106 s are three tenths of the rest
        command = "python compare.py data=folder data.pretrain_dir=/photos minutes=7 name=first_longer\n"
        assert printed.endswith(f" {command}")


def test_a_continued_comparison_keeps_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Results(replace(FACTS, wall_s=4.0), {}, [])
    (tmp_path / "first").mkdir()
    comparison = measured(600, tmp_path)
    monkeypatch.setattr(TaskComparison, "speeds", lambda self, tasks: {"jigsaw": 50.0})
    first = comparison.first_round(["jigsaw"], before)
    monkeypatch.setattr(TaskComparison, "speeds", lambda self, tasks: {"jigsaw": 1.0})
    assert measured(600, tmp_path).first_round(["jigsaw"], before) == first


def test_a_task_that_cannot_be_measured_gets_the_fewest_steps(tmp_path: Path) -> None:
    assert measured(600, tmp_path).first_images({}, Results(FACTS, {}, [])) == 20 * 64


def test_a_round_tells_when_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = TaskComparison(tmp_path, [], 600, 3)
    comparison.stored["seconds"] = {"before 0": 30.0, "rotation round 1 0": 100.0, "jigsaw round 1 0": 200.0}
    comparison.tell_time(1, 2, 6)
    text = "round 1: 2 of 6 trainings done, 55% of the time used, about 10 min to the end of the round\n"
    assert capsys.readouterr().out == text  # four of 150 s
    comparison.tell_time(2, 0, 4)
    assert capsys.readouterr().out == "round 2: 0 of 4 trainings done, 55% of the time used\n"


def test_a_round_without_time_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = measured(600, tmp_path)
    comparison.stored["rounds"]["2"] = {"seeds": 0}
    comparison.later_round(2, 1)
    text = "\nround 2 is left out: the time does not suffice for longer trainings\n"
    assert capsys.readouterr().out == text
    assert comparison.rounds == []


@pytest.mark.parametrize(
    ("metrics", "columns"),
    [
        (["top1"], ["linear", "kNN", "fine-tuned"]),
        (["top1", "balanced"], ["linear balanced", "kNN balanced", "fine-tuned balanced"]),
    ],
)
def test_the_table_has_the_metric_that_judges(metrics: list[str], columns: list[str], tmp_path: Path) -> None:
    facts = replace(FACTS, benchmark=BenchmarkRow("compare", "rotation round 1"))
    values = dict(zip(metrics, (0.9, 0.4), strict=False))
    records = [
        replace(record("linear", "stage1", value, 0.5), metric=metric) for metric, value in values.items()
    ]
    (tmp_path / "run").mkdir()
    write_results(tmp_path / "run/results.json", Results(facts, {}, records))
    comparison = TaskComparison(tmp_path, [], 60, 3, probed=True)
    comparison.rounds = [TaskRound({"rotation": 60}, {"rotation": [Results(facts, {}, records)]})]
    (table,) = tables(comparison)
    assert table.columns == columns
    assert table.rows[0].cells[columns[0]].mean == 100 * values[metrics[-1]]


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "compare.py"), f"output_dir={folder}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=folder)


def probes(folder: Path) -> dict[str, object]:
    return {path.parent.name: read_results(path).probes for path in folder.glob("*/results.json")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=rotation", r"task= cannot be given to a comparison, .* choose tasks by compare\.tasks"),
        ("optimizer.lr=1", r"optimizer\.lr= cannot be given"),
        ("+task.copies=1", r"task\.copies= cannot be given"),
        ("data.batch_size=8", r"data\.batch_size= cannot be given"),
        ("seed=1", "seed= cannot be given"),
        ("trainer.max_epochs=3", r"trainer\.max_epochs= cannot be given"),
    ],
)
def test_keys_of_single_tasks_are_refused(override: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        check_command([override], 30, ["rotation"], 3)


@pytest.mark.parametrize("key", ["dir", "pretrain_dir", "train_dir", "test_dir"])
def test_an_absent_folder_is_named_before_the_first_run(key: str, tmp_path: Path) -> None:
    given = dict.fromkeys(("pretrain_dir", "train_dir", "test_dir"), str(tmp_path))
    check_folders(given | {"train_dir": None})
    with pytest.raises(RunError, match=rf"folder /no/where does not exist; data\.{key} is this folder"):
        check_folders(given | {key: "/no/where"})


@pytest.mark.parametrize(
    ("minutes", "tasks", "seeds", "message"),
    [
        (0, ["rotation"], 3, "minutes is 0; allowed is a number above 0"),
        (float("nan"), ["rotation"], 3, "minutes is nan"),
        ("half", ["rotation"], 3, "minutes is half; allowed is a number above 0"),
        (30, "rotation", 3, r"compare\.tasks is rotation; a list is needed: compare\.tasks=\[rotation\]"),
        (30, ["rotation"], "two", r"compare\.seeds is two; allowed is a whole number"),
        (30, ["rotations"], 3, r"compare\.tasks has rotations; allowed are rotation, jigsaw"),
        (30, [], 3, r"compare\.tasks is empty"),
        (30, ["rotation"], 0, r"compare\.seeds is 0"),
    ],
)
def test_wrong_values_are_refused(minutes: object, tasks: object, seeds: object, message: str) -> None:
    with pytest.raises(RunError, match=message):
        check_command([], minutes, tasks, seeds)


@pytest.mark.slow
def test_a_comparison_ends_with_a_sentence_and_continues_after_a_kill(tmp_path: Path) -> None:
    done = compare(tmp_path, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "compare/fake/convnet/first"
    text = (folder / "COMPARE.md").read_text()
    assert "linear probe" in text
    assert "The labels alone reach" in text
    assert "classifier = ssl_lightning.load_classifier(" in text
    assert "print(classifier.class_names[scores.argmax()])" in text
    assert done.stdout.count("The labels alone reach") == 1  # in the paragraph below the table
    assert done.stdout.count("ssl_lightning.load_classifier(") == 1
    assert (folder / "report/report.html").stat().st_size > 0
    (folder / "jigsaw_round_1-0/results.json").unlink()  # as after a kill
    again = compare(tmp_path, *SMALL)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count(", seed 0") == 1  # only this row runs
    assert "\njigsaw round 1, seed 0, resumed\n" in again.stdout
    assert (folder / "COMPARE.md").read_text() == text
    other = compare(tmp_path, *SMALL, "minutes=2")
    assert other.returncode == 1
    assert "of another command (there minutes=0.3; here minutes=2); give another name=" in other.stderr
    assert set(json.loads((folder / "rounds.json").read_text())) == {"seconds", "rounds"}


@pytest.mark.slow
def test_a_comparison_killed_at_random_moments_ends_with_the_same_page(tmp_path: Path) -> None:
    """Give both comparisons the same lengths of later rounds, since those follow from measured times."""
    folder = tmp_path / "compare/fake/convnet/first"
    done = compare(tmp_path, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    text, figures = (folder / "COMPARE.md").read_text(), probes(folder)
    rounds = json.loads((folder / "rounds.json").read_text())["rounds"]
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "rounds.json").write_text(json.dumps({"seconds": {}, "rounds": rounds}))
    draws = random.Random(0)
    command = [sys.executable, str(ROOT / "compare.py"), f"output_dir={tmp_path}", *SMALL]
    for _ in range(8):
        with subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as killed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                killed.wait(draws.uniform(3, 20))
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(killed.pid, signal.SIGKILL)
    done = compare(tmp_path, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "COMPARE.md").read_text() == text
    assert probes(folder) == figures
    assert (folder / "report/report.html").stat().st_size > 0


@pytest.mark.slow
def test_without_labels_the_pretext_tasks_are_compared(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        pixels = draws.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    given = [f"data.pretrain_dir={tmp_path}/photos", f"data.root={tmp_path}/cache", "data.image_size=32"]
    options = ["data=folder", *given, *SMALL[4:]]
    done = compare(tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "compare/folder/convnet/first/COMPARE.md").read_text()
    assert "\n36 images to pretrain on\n" in done.stdout  # a tenth is held out
    assert done.stdout.count("\nhardware  ") == 1  # the trainings are brief
    assert "Without labels nobody knows which features help" in text
    assert "load_backbone(" in text
