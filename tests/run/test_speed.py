"""Speed of training steps: how it is counted, and what a failing task gives."""

import json
from pathlib import Path

import pytest

from ssl_lightning.run.speed import StepTimes, main

SMALL = ["data=fake", "data.num_train=96", "data.num_test=16", "data.heldout=16", "trainer=cpu"]


def test_the_first_step_and_outliers_do_not_count() -> None:
    times = StepTimes()
    times.ends = [5.0, 6.0, 9.0, 10.0]
    assert times.median() == pytest.approx(1.0)


def test_a_task_that_fails_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "rotation": [*SMALL, "task=rotation", "data.batch_size=8", "trainer.devices=2"],
        "colorization": [*SMALL, "task=colorization", "data.channels=1"],
    }
    out = tmp_path / "speeds.json"
    main([json.dumps(rows), str(out)])
    speeds = json.loads(out.read_text())
    assert list(speeds) == ["rotation"]
    assert speeds["rotation"] > 0
    assert capsys.readouterr().out == ""
