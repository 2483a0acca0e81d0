"""Tests of the comparison of tasks, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.compare import check_command

ROOT = Path(__file__).parent.parent
SMALL = [
    "data=fake", "data.num_train=160", "data.num_test=64", "data.heldout=32", "trainer=cpu",
    "encoding.images=32", "minutes=0.3", "compare.tasks=[rotation,jigsaw]", "compare.seeds=1",
]  # fmt: skip


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "compare.py"), f"output_dir={folder}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=folder)


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


@pytest.mark.parametrize(
    ("minutes", "tasks", "seeds", "message"),
    [
        (0, ["rotation"], 3, "minutes is 0; allowed is a number above 0"),
        (float("nan"), ["rotation"], 3, "minutes is nan"),
        (30, ["rotations"], 3, r"compare\.tasks has rotations; allowed are rotation, jigsaw"),
        (30, [], 3, r"compare\.tasks is empty"),
        (30, ["rotation"], 0, r"compare\.seeds is 0"),
    ],
)
def test_wrong_values_are_refused(minutes: float, tasks: list[str], seeds: int, message: str) -> None:
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
    assert "model = ssl_lightning.load_classifier(" in text
    assert (folder / "report/report.html").stat().st_size > 0
    (folder / "jigsaw_round_1-0/results.json").unlink()  # as after a kill
    again = compare(tmp_path, *SMALL)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("python train.py") == 1
    assert f"resume={folder}/jigsaw_round_1-0" in again.stdout
    assert (folder / "COMPARE.md").read_text() == text
    other = compare(tmp_path, *SMALL, "minutes=2")
    assert other.returncode == 1
    assert "is the comparison of another command; give another name=" in other.stderr
    assert set(json.loads((folder / "rounds.json").read_text())) == {"seconds", "rounds"}


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
    assert "Without labels nobody knows which features help" in text
    assert "load_backbone(" in text
