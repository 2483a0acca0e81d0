"""Number of cores that a process may use, and the CPU settings of a new process."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_lightning.core.cpu import ALLOCATOR, SPINNING, available_cores, process_environment, processor


@pytest.mark.parametrize(
    ("bound", "given", "expected"),
    [(8, None, 8), (8, "2", 2), (2, "8", 2), (8, "", 8), (8, "all", 8), (8, "0", 1)],
)
def test_cores_are_limited_by_affinity_and_slurm(
    monkeypatch: pytest.MonkeyPatch, bound: int, given: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if given is not None:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", given)
    assert available_cores() == expected


def test_the_processor_has_its_name_or_that_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC  9R14 \nmodel name\t: other\n"}
    monkeypatch.setattr(Path, "read_text", lambda self: files[str(self)])
    assert processor() == "AMD EPYC 9R14"
    files["/proc/cpuinfo"] = "processor\t: 0\n"  # as on ARM
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor() == "aarch64"


def test_a_users_own_settings_count() -> None:
    assert process_environment({"HOME": "/"}) == {"HOME": "/"} | ALLOCATOR | SPINNING
    own = {"MALLOC_TOP_PAD_": "1", "GOMP_SPINCOUNT": "7"}
    assert process_environment(own) == ALLOCATOR | own
    policy = {"OMP_WAIT_POLICY": "active"}
    assert process_environment(policy) == ALLOCATOR | policy


def test_openmp_takes_the_number_of_spins() -> None:
    environment = process_environment({"PATH": os.environ["PATH"], "OMP_DISPLAY_ENV": "verbose"})
    shown = subprocess.run(
        [sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True, check=True
    ).stderr
    spins = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", shown)
    if not spins:
        pytest.skip("torch does not use libgomp here")
    assert set(spins) == {SPINNING["GOMP_SPINCOUNT"]}
