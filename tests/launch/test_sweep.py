"""Sweeps: every failed job is named at the end."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from ssl_lightning.launch import sweep
from ssl_lightning.launch.sweep import Jobs

ROOT = Path(__file__).parents[2]


def test_all_failed_jobs_are_listed_with_what_sets_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = SimpleNamespace(mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=[]))
    monkeypatch.setattr(sweep.HydraConfig, "get", staticmethod(lambda: hydra))

    def work(cfg: Any) -> Any:
        if cfg:
            raise cfg
        return 3.5

    jobs = Jobs()
    watched = jobs.watch(work)
    assert watched.__module__ == work.__module__  # Hydra names the job after it
    for seed, error in enumerate([None, ValueError("error: too\x1b large\n(details)"), None, KeyError()]):
        hydra.overrides.task = OmegaConf.create(["data=fake", f"seed={seed}"])
        if error is None:
            assert watched(None) == 3.5
        else:
            with pytest.raises(type(error)):
                watched(error)
    assert jobs.summary() == [
        "2 of 4 jobs of the sweep failed:",
        "  job 1, seed=1: too\\x1b large",
        "  job 3, seed=3: KeyError",
    ]
    hydra.mode = RunMode.RUN
    with pytest.raises(ValueError, match="alone"):
        watched(ValueError("alone"))
    assert len(jobs.failures) == 2


def test_a_sweep_names_them_at_its_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ssl_lightning", "train", "-m", "data=fake", "trainer.max_epochs=0,-7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-3] == "2 of 2 jobs of the sweep failed:"
    for line, value in zip(done.stderr.splitlines()[-2:], (0, -7), strict=True):
        assert f"trainer.max_epochs={value}: trainer.max_epochs is {value}; allowed is" in line
