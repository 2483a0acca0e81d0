"""Precision, strategy and memory figures for a machine."""

import builtins
import io

import pytest
import torch

from ssl_lightning.engine import trainer as trainer_module


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 fma", "32-true"),
        ("fpu avx512f avx512_bf16", "bf16-mixed"),
        ("fpu amx_bf16 amx_tile", "bf16-mixed"),
        ("fpu avx512f", "32-true"),
    ],
)
def test_bf16_if_the_processor_supports_it(monkeypatch, flags: str, expected: str) -> None:
    cpuinfo = f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\n"
    real = builtins.open

    def fake(name, *args, **kwargs):
        return io.StringIO(cpuinfo) if name == "/proc/cpuinfo" else real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", fake)
    assert trainer_module.choose_precision(on_gpu=False) == expected


def test_fp32_on_a_machine_without_cpuinfo(monkeypatch) -> None:
    def absent(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", absent)
    assert trainer_module.choose_precision(on_gpu=False) == "32-true"


@pytest.mark.parametrize(
    ("find", "devices", "expected"), [(True, 2, True), (False, 2, None), (True, 1, None)]
)
def test_several_processes_find_unused_parameters(find, devices, expected) -> None:
    trainer = trainer_module.make_trainer(accelerator="cpu", devices=devices, find_unused_parameters=find)
    assert getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters") is expected


def test_peak_memory_is_in_gigabytes() -> None:
    before = trainer_module.peak_memory_gb()["host"]
    block = torch.ones(2**28, dtype=torch.uint8)  # 0.27 GB, touched
    after = trainer_module.peak_memory_gb()["host"]
    del block
    assert 0.05 < before < 64
    assert before <= after <= before + 0.3


def test_peak_memory_without_linux_comes_from_getrusage(monkeypatch) -> None:
    known = trainer_module.peak_memory_gb()["host"]

    def absent(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", absent)
    assert trainer_module.peak_memory_gb()["host"] == pytest.approx(known, rel=0.5)
