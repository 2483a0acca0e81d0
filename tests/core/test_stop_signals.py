"""Stop signals: which rank acts on them, and when."""

import signal

import pytest

from ssl_lightning.core.stop_signals import StopRequest, requeue_if_slurm


def test_a_request_is_deferred_while_training_and_immediate_otherwise() -> None:
    request = StopRequest()
    request.deferred = True
    request._handle(signal.SIGTERM, None)
    assert request.signum == signal.SIGTERM
    request._handle(signal.SIGTERM, None)  # the second signal of `timeout`: the same request
    request._arrived_at -= 2
    with pytest.raises(SystemExit) as again:  # a later signal exits at once
        request._handle(signal.SIGINT, None)
    assert again.value.code == 128 + signal.SIGTERM
    with pytest.raises(SystemExit) as at_once:
        StopRequest()._handle(signal.SIGUSR1, None)
    assert at_once.value.code == 128 + signal.SIGUSR1


def test_only_rank_0_acts_on_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    request = StopRequest()
    request._handle(signal.SIGTERM, None)
    request._handle(signal.SIGTERM, None)
    assert request.signum == signal.SIGTERM


@pytest.mark.parametrize(
    ("signum", "environment", "asked"),
    [
        (signal.SIGUSR1, {"SLURM_JOB_ID": "7"}, "requeue 7"),
        (signal.SIGUSR1, {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "requeue 7_2"),
        (signal.SIGUSR1, {}, None),
        (signal.SIGUSR1, {"SLURM_JOB_ID": "7; rm -rf /"}, None),
        (signal.SIGTERM, {"SLURM_JOB_ID": "7"}, None),  # as scancel sends it
    ],
)
def test_only_slurms_warning_requeues(tmp_path, monkeypatch, signum, environment, asked) -> None:
    log = tmp_path / "asked"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\nprintf "%s" "$*" > {log}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert requeue_if_slurm(signum) == (asked is not None)
    assert (log.read_text() if log.exists() else None) == asked
