"""Rank processes: environment, failures, and the end of all when one ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ssl_lightning.core.errors import RunError
from ssl_lightning.launch import ranks
from ssl_lightning.launch.cluster import this_machine
from ssl_lightning.launch.ranks import count_devices, start_ranks
from ssl_lightning.launch.train import check_benchmark


@pytest.mark.parametrize("devices", [0, -2, "two", "0,1", True, 1.5])
def test_devices_that_are_no_count_are_refused(devices: object) -> None:
    with pytest.raises(RunError, match=r"trainer\.devices is .*allowed"):
        count_devices("cpu", devices)


def test_a_budget_of_another_benchmark_is_refused() -> None:
    table = {"name": "rotnet_cifar10", "budget": "gpu", "budgets": ["tiny", "full"]}
    with pytest.raises(RunError, match="budget is 'gpu'; benchmark rotnet_cifar10 allows tiny, full"):
        check_benchmark(OmegaConf.create({"benchmark": table}))
    fine = table | {"budget": "tiny", "columns": [{"name": "linear"}]}
    check_benchmark(OmegaConf.create({"benchmark": fine, "choices": {"data": "fake"}}))
    check_benchmark(OmegaConf.create({"seed": 0}))  # no benchmark, any budget


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a stand-in for the worker module on the path of the rank processes."""
    package = tmp_path / "stand_in" / "ssl_lightning"
    (package / "run").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "run/__main__.py").write_text(
        f"import os, sys, time, pathlib\nfolder = pathlib.Path(sys.argv[1])\n{body}"
    )
    monkeypatch.setattr(ranks, "__file__", str(package / "launch/ranks.py"))


def test_each_rank_knows_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "e = os.environ\nnames = ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT', 'MALLOC_TRIM_THRESHOLD_', "
        "'MALLOC_TOP_PAD_')\n"
        "(folder / e['RANK']).write_text(' '.join(e[n] for n in names))"
    )
    stand_in(tmp_path, monkeypatch, body)
    monkeypatch.setenv("GROUP_RANK", "7")  # of some job around us
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")  # a user's own setting counts
    start_ranks(tmp_path, this_machine(2))
    (rank0, world0, port0, *memory), (rank1, world1, port1, *_) = (
        (tmp_path / r).read_text().split() for r in "01"
    )
    assert memory == [ranks.ALLOCATOR["MALLOC_TRIM_THRESHOLD_"], "1"]
    assert (rank0, rank1, world0, world1) == ("0", "1", "2", "2")
    assert port0 == port1


def test_one_failure_ends_all_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "if os.environ['RANK'] == '1':\n"
        "    (folder / 'error.txt').write_text('the cause\\n\\ntraceback')\n    sys.exit(1)\n"
        "time.sleep(60)"
    )
    stand_in(tmp_path, monkeypatch, body)
    began = time.monotonic()
    with pytest.raises(RunError, match="error: the cause\n"):
        start_ranks(tmp_path, this_machine(2))
    assert time.monotonic() - began < 30


def test_a_killed_rank_is_named_with_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(RunError, match=r"rank 0 .*SIGKILL"):
        start_ranks(tmp_path, this_machine(1))


def test_workers_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    # the real worker module, held up by a config that opens a pipe which nobody writes to
    code = (
        "import pathlib, subprocess, sys, os\n"
        "from ssl_lightning.launch import ranks\n"
        "r, w = os.pipe()\n"
        "child = 'import time, os; from ssl_lightning.run.__main__ import die_with_parent; '\n"
        "child += 'die_with_parent(); "
        "print(os.getpid(), flush=True); time.sleep(120)'\n"
        "env = os.environ | {ranks.PARENT_PIPE: str(r)}\n"
        "subprocess.run([sys.executable, '-c', child], env=env, pass_fds=[r])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if (
            Path(f"/proc/{worker}/stat").exists()
            and Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z"
        ):
            return  # ended; whoever adopted it has not reaped it yet
        time.sleep(0.05)
    os.kill(worker, 9)
    pytest.fail("the worker outlived its launcher")
