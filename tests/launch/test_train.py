"""Rank processes: environment, failures, and the end of all ranks when one fails."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.artifacts.run_folder import NOT_FIRST, REFUSED
from ssl_lightning.core import entry
from ssl_lightning.core.cpu import ALLOCATOR, SPINNING
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch import cluster, ranks
from ssl_lightning.launch.cluster import count_devices, this_machine
from ssl_lightning.launch.ranks import start_ranks
from ssl_lightning.launch.train import check_benchmark, check_start


def config(**trainer: object) -> DictConfig:
    given = {"accelerator": "cpu", "devices": 1, "num_nodes": 1} | trainer
    return OmegaConf.create({"seed": 0, "trainer": given})


@pytest.mark.parametrize(("processes", "warns"), [(2, False), (4, True)])
def test_more_processes_than_cores_are_warned_of(
    processes: int,
    warns: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def started(*_: object, **__: object) -> None:
        raise OSError("started")

    monkeypatch.setattr(ranks, "available_cores", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(OSError, match="started"):
        start_ranks(tmp_path, this_machine(processes))
    assert ("4 processes share 2 cores here; on CPUs trainer.devices=2" in capsys.readouterr().err) == warns


@pytest.mark.parametrize("devices", [0, -2, "two", "0,1", True, 1.5, [0, 1], None])
def test_devices_that_are_not_a_count_are_refused(devices: object) -> None:
    with pytest.raises(RunError, match=r"trainer\.devices is .*; allowed is auto or a whole number"):
        check_start(config(devices=devices))


@pytest.mark.parametrize(
    ("accelerator", "devices", "expected"),
    [
        ("cpu", "auto", 1),
        ("cpu", 4, 4),
        ("gpu", "auto", 2),
        ("auto", -1, 2),
        ("auto", 1, 1),
        ("cuda", 2, 2),
        ("gpu", 3, "trainer.devices is 3, but torch sees 2 GPUs here"),
        ("auto", 3, "trainer.devices is 3, but torch sees 2 GPUs here"),
    ],
)
def test_devices_are_counted_against_the_gpus(
    accelerator: str, devices: int | str, expected: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "GPU_FILES", (str(tmp_path),))  # exists
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if isinstance(expected, int):
        assert count_devices(accelerator, devices) == expected
        return
    with pytest.raises(RunError, match=expected):
        count_devices(accelerator, devices)


def test_an_absent_gpu_is_refused_unless_it_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "GPU_FILES", (str(tmp_path),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert count_devices("auto", "auto") == 1
    assert count_devices("auto", 3) == 3  # processes on the CPU
    with pytest.raises(RunError, match="torch sees no GPU here; use trainer=cpu"):
        count_devices("gpu", "auto")


def test_only_the_first_of_several_launchers_reports_a_wrong_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "LAST_WORDS_S", 0.0)
    wrong = config(launcher="slurm", max_epochs="many")
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit):
        check_start(wrong)
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(RunError, match="max_epochs is 'many'"):
        check_start(wrong)


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
    (package.parent / "conf").mkdir()
    (package.parent / "conf/train.yaml").touch()  # as in a checkout
    monkeypatch.setattr(entry, "REPOSITORY", package.parent)


def test_each_rank_knows_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "e = os.environ\nnames = ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT', 'MALLOC_TRIM_THRESHOLD_', "
        "'MALLOC_TOP_PAD_', 'GOMP_SPINCOUNT')\n"
        "(folder / e['RANK']).write_text(' '.join(e[n] for n in names))"
    )
    stand_in(tmp_path, monkeypatch, body)
    monkeypatch.setenv("GROUP_RANK", "7")  # of a surrounding job
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")  # a user's own setting counts
    start_ranks(tmp_path, this_machine(2))
    (rank0, world0, port0, *settings), (rank1, world1, port1, *_) = (
        (tmp_path / r).read_text().split() for r in "01"
    )
    assert settings == [ALLOCATOR["MALLOC_TRIM_THRESHOLD_"], "1", SPINNING["GOMP_SPINCOUNT"]]
    assert (rank0, rank1, world0, world1) == ("0", "1", "2", "2")
    assert port0 == port1


def test_one_failure_ends_all_ranks_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_refusal_leaves_no_report_if_its_rank_ends_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "if os.environ['RANK'] == '1':\n"
        "    (folder / 'error.txt').write_text('the cause\\n\\ntraceback')\n    time.sleep(1)\n"
        f"    sys.exit({REFUSED})\n"
        "while not (folder / 'error.txt').exists():\n    time.sleep(0.05)\n"
        f"sys.exit({NOT_FIRST})"
    )
    stand_in(tmp_path, monkeypatch, body)
    with pytest.raises(RunError, match=r"error: the cause$"):
        start_ranks(tmp_path, this_machine(2))
    assert not (tmp_path / "error.txt").exists()


def test_a_killed_rank_is_named_with_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(RunError, match=r"rank 0 .*SIGKILL"):
        start_ranks(tmp_path, this_machine(1))


def test_workers_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    # a child that waits like a worker and watches the pipe of its parent
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
            return  # ended, but not yet reaped by its new parent
        time.sleep(0.05)
    os.kill(worker, 9)
    pytest.fail("the worker outlived its launcher")
