"""Test of a full table: `train.py +benchmark=...`, killed and called again, then `report.py`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
ROWS = OmegaConf.load(ROOT / "conf/benchmark/cifar10_six.yaml").benchmark.rows
# more images than in conf/data/fake.yaml, for 200 neighbours and 16 labels a class
FAKE = ["data=fake", "data.num_train=640", "data.num_test=100", "trainer=cpu", "probe.lowshot.draws=2"]


def start(tmp_path: Path, entry: str, *overrides: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SSL_LIGHTNING_DATA": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / entry), *overrides]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=tmp_path, start_new_session=True
    )


def finished(place: Path) -> dict[str, int]:
    """Modification times of the finished results, by row."""
    found = {path.parent.parent.name: path for path in place.glob("*/seed0/results.json")}
    return {
        row: path.stat().st_mtime_ns
        for row, path in found.items()
        if json.loads(path.read_text())["run"]["status"] == "finished"
    }


@pytest.mark.slow
def test_a_killed_table_resumes(tmp_path: Path) -> None:
    place = tmp_path / "outputs/benchmark/cifar10_six/tiny"
    table = ["+benchmark=cifar10_six", "budget=tiny", *FAKE]

    first = start(tmp_path, "train.py", *table)
    deadline = time.monotonic() + 300
    while len(finished(place)) < 2 or not (place / ROWS[2]).exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = finished(place)

    other = place / "inpainting/seed0"  # this row cannot run: its folder holds another run
    other.mkdir(parents=True)
    shutil.copy(place / "random/seed0/config.yaml", other)
    second = start(tmp_path, "train.py", *table)
    out, err = second.communicate(timeout=600)
    assert second.returncode != 0
    assert f"{other} holds a run of another config:" in err
    assert "task._target_: " in err
    assert out.count("skipped: ") == len(before)
    between = finished(place)
    assert sorted(between) == sorted(set(ROWS) - {"inpainting"})
    assert before.items() <= between.items()  # no finished row was written again

    shutil.rmtree(other)
    third = start(tmp_path, "train.py", *table)
    out, err = third.communicate(timeout=600)
    assert third.returncode == 0, err
    assert out.count("skipped: ") == len(ROWS) - 1
    after = finished(place)
    assert sorted(after) == sorted(ROWS)
    assert between.items() <= after.items()

    report = start(tmp_path, "report.py", "benchmark=cifar10_six", "out=page")
    out, err = report.communicate(timeout=120)
    assert report.returncode == 0, err
    markdown = (tmp_path / "page/table.md").read_text()
    assert all(f"| {row}" in markdown for row in ROWS)
    assert (tmp_path / "page/report.html").exists()
