"""Number of cores that a process may use."""

import os

import pytest

from ssl_lightning.core.cpu import available_cores


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
