"""Tests of the rows of an audit or a comparison: what a stop signal does to them."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ssl_lightning.core.errors import RunError
from ssl_lightning.launch import rows
from ssl_lightning.launch.train import TakenError

ROOT = Path(__file__).parents[2]
ROW = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
CALLER = """
import sys
from ssl_lightning.launch.rows import run_to_end
run_to_end([sys.executable, "-c", *sys.argv[1:]], set())
"""


@pytest.mark.parametrize("to_all", [False, True])
def test_a_row_that_is_stopped_saves_its_state_first(to_all: bool, tmp_path: Path) -> None:
    """A shell signals the whole group (Ctrl-C), `kill` the command alone."""
    command = [sys.executable, "-c", CALLER, ROW, str(tmp_path / "state")]
    with subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "ready\n"
        if to_all:
            os.killpg(caller.pid, signal.SIGTERM)
        else:
            caller.terminate()
        assert caller.wait(30) != 0
        assert (tmp_path / "state").read_text() == "saved"


def test_a_row_that_still_runs_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rows, "run_stoppable", lambda *_: (1, f"another process is running in {tmp_path}/x-0")
    )
    with pytest.raises(
        TakenError, match=r"x-0; once it has ended, the same command .* continues the comparison"
    ):
        rows.run_row("comparison", tmp_path, "x", 0, ["task=random"], set())


@pytest.mark.parametrize(("started", "told"), [(False, "cannot start"), (True, r"failed \(exit status 1\)")])
def test_a_refused_row_is_told_from_a_failed_one(
    started: bool, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Sequence[str], same: str, said: set[str]) -> tuple[int, str]:
        if started:
            (tmp_path / "before-0").mkdir()
            (tmp_path / "before-0/config.yaml").write_text("")
        return 1, "the pictures are grey"

    monkeypatch.setattr(rows, "run_stoppable", run)
    with pytest.raises(RunError, match=f"error: the run 'before'.* {told}") as raised:
        rows.run_row("comparison", tmp_path, "before", 0, ["task=random"], set())
    assert ("continues the comparison" in str(raised.value)) == started
    assert getattr(raised.value, "reason", "") == ("" if started else "the pictures are grey")


def test_the_last_error_message_of_a_command_is_kept_and_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import sys; print('error: first\\nerror: second\\nmore', file=sys.stderr); sys.exit(3)"
    assert rows.run_to_end([sys.executable, "-c", script], set()) == (3, "second")
    assert capfd.readouterr().err == "error: first\nerror: second\nmore\n"


def test_a_warning_is_passed_on_once_and_an_error_each_time(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import sys; print(*sys.argv[1:], sep='\\n', file=sys.stderr)"
    said: set[str] = set()
    rows.run_to_end([sys.executable, "-c", script, "warning: grey", "warning: grey", "error: full"], said)
    rows.run_to_end([sys.executable, "-c", script, "warning: grey", "error: full", "warning: small"], said)
    told = ["warning: grey", "warning: grey", "error: full", "error: full", "warning: small"]
    assert capfd.readouterr().err.splitlines() == told
    crash = ["warning: grey", "Traceback (most recent call last):", "  File x", "KeyError: 'y'"]
    for _ in range(2):
        rows.run_to_end([sys.executable, "-c", script, *crash], said)
        assert capfd.readouterr().err.splitlines() == crash[1:]


@pytest.mark.slow
def test_a_stopped_comparison_tells_how_it_continues(tmp_path: Path) -> None:
    small = ["data=fake", "data.num_train=6400", "data.num_test=64", "data.heldout=32", "trainer=cpu"]
    command = [sys.executable, str(ROOT / "compare.py"), f"output_dir={tmp_path}", *small, "minutes=60"]
    folder = tmp_path / "compare/fake/convnet/first/rotation_round_1-0"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as comparison:
        assert comparison.stdout is not None
        while not comparison.stdout.readline().startswith("epoch 1"):  # of the first task
            assert comparison.poll() is None
        comparison.terminate()
        _, said = comparison.communicate(timeout=60)
    assert comparison.returncode == 143
    assert said.endswith("stopped by a signal; the same command with name=first continues the comparison\n")
    assert (folder / "checkpoints/last.ckpt").exists()
