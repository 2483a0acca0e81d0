"""Two runs in one folder, killed ranks and loader processes, and a signal to all processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults._data import paint
from tests.faults._harness import (
    ROOT,
    Tally,
    Undisturbed,
    contents,
    differing,
    end_state,
    finish,
    folder_of,
    start,
    torn,
    train,
    wait_for,
)
from tests.test_train import rank_process

pytestmark = pytest.mark.slow
BOUND_S = 30.0  # for a run to end after one of its processes ended
SAVED_S = 0.5  # for a run to train its next batch after a checkpoint appears
LONG = ["trainer.max_epochs=1000", "probe=[]", "logger=[]"]


def test_of_two_runs_in_one_folder_one_is_refused(undisturbed: Undisturbed) -> None:
    output = undisturbed.output
    folder = folder_of(output, "both")
    both = [start(train(output, "both"), output) for _ in range(2)]
    ended = sorted(map(finish, both))
    assert [status for status, _ in ended] == [0, 1]
    printed = ended[1][1]
    assert f"error: another process is running in {folder}\n" in printed
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed
    assert differing(end_state(folder), undisturbed.state) == []


def test_a_run_of_another_config_changes_nothing_in_a_folder_that_is_in_use(
    undisturbed: Undisturbed,
) -> None:
    output = undisturbed.output
    folder = folder_of(output, "used")
    first = start(train(output, "used"), output)
    wait_for(lambda: (folder / "checkpoints/last.ckpt").exists(), first)
    hydra = contents(folder / ".hydra")
    assert len(hydra) == 3
    status, printed = finish(start([*train(output, "used"), "seed=1"], output))
    assert status == 1
    assert "holds a run of another config:\n" in printed
    assert "\n  seed: 0 -> 1\n" in printed
    assert contents(folder / ".hydra") == hydra
    assert finish(first)[0] == 0
    assert differing(end_state(folder), undisturbed.state) == []


def long_run(tmp_path: Path, *overrides: str, task: str = "rotation") -> tuple[subprocess.Popen[str], Path]:
    """Start an endless run; return it after it has trained for a while."""
    images = any("data=folder" in override for override in overrides)
    folder = tmp_path / task / ("folder" if images else "fake") / "convnet/run"
    command = [str(ROOT / "train.py"), f"output_dir={tmp_path}", "name=run", "trainer=cpu", *LONG]
    process = start([*command, *([] if images else ["data=fake"]), *overrides], tmp_path)
    wait_for(lambda: (folder / "checkpoints/last.ckpt").exists(), process)
    time.sleep(SAVED_S)
    return process, folder


def ended_within(tally: Tally, what: str, process: subprocess.Popen[str], began: float) -> str:
    output, _ = process.communicate(timeout=120)
    tally.seconds[what] = time.monotonic() - began
    assert process.returncode != 0, output
    assert tally.seconds[what] < BOUND_S
    return output


@pytest.mark.parametrize(("devices", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_a_killed_rank_ends_the_run_and_is_named(
    tmp_path: Path, tally: Tally, devices: int, rank: int
) -> None:
    process, folder = long_run(tmp_path, f"trainer.devices={devices}")
    began = time.monotonic()
    os.kill(rank_process(folder, rank), signal.SIGKILL)
    output = ended_within(tally, f"rank {rank} of {devices} killed", process, began)
    assert output.count("error: ") == 1
    assert f"error: rank {rank} of the run ended with signal SIGKILL" in output
    assert torn(folder) == []


def loaders_of(rank: int) -> list[int]:
    """Return the loader processes of a rank."""
    command = ["ps", "-o", "pid=", "--ppid", str(rank)]
    return [int(pid) for pid in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()]


def test_a_killed_loader_process_ends_the_run_and_is_named(tmp_path: Path, tally: Tally) -> None:
    process, folder = folder_run(tmp_path)
    began = time.monotonic()
    victim = loaders_of(rank_process(folder, 0))[0]
    os.kill(victim, signal.SIGKILL)
    output = ended_within(tally, "loader process killed", process, began)
    assert re.search(r"error: .*DataLoader worker .*", output), output
    assert torn(folder) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_every_process_saves_the_last_batch(tmp_path: Path, signum: signal.Signals) -> None:
    process, folder = folder_run(
        tmp_path
    )  # with loader processes, which must survive until the checkpoint is saved
    before = (folder / "checkpoints/last.ckpt").stat().st_mtime_ns
    process.send_signal(signum)
    os.killpg(process.pid, signum)  # as `timeout` does
    status, output = finish(process)
    assert status == 128 + signum, output
    assert "holds the run up to here" in output
    assert (folder / "checkpoints/last.ckpt").stat().st_mtime_ns > before


def folder_run(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    images = paint(tmp_path / "images", size=40)
    data = [f"data.pretrain_dir={images}", "data.image_size=32", "data.batch_size=8", "data.num_workers=2"]
    return long_run(tmp_path, "data=folder", f"data.root={tmp_path / 'cache'}", *data)
