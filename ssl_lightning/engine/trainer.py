"""Choices that follow from the machine: precision, devices, and the Trainer built from them."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import Strategy

from ssl_lightning.artifacts.checkpoints import AtomicCheckpointIO
from ssl_lightning.artifacts.run_folder import PARENT_PIPE
from ssl_lightning.engine.fsdp import PRECISIONS, FullySharded

T = TypeVar("T")
FSDP = "fsdp"  # trainer.strategy; ours, not the one that Lightning knows by this name


def make_trainer(
    *,
    accelerator: str = "auto",
    devices: int | str = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: str = "auto",
    find_unused_parameters: bool = False,
    callbacks: Iterable[Callback] = (),
    logger: Iterable[Logger] = (),
    **options: Any,
) -> pl.Trainer:
    """Build the Trainer of one rank process.

    Args:
        accelerator: "auto", "cpu", "gpu", or any of Lightning's.
        devices: Processes on this machine; "auto" and -1 take as many as the launcher started.
        num_nodes: Machines.
        strategy: "fsdp", or Lightning's name; "auto" is DDP for several processes.
        precision: Lightning's name, or "auto": see `choose_precision`.
        find_unused_parameters: Whether a backward pass may leave some parameters out, as each of several
            networks that are trained by turns does; several processes must know.
        callbacks: What watches the run.
        logger: Where figures go.
        **options: Further keywords of `pytorch_lightning.Trainer`.

    Raises:
        ValueError: A GPU is asked for and there is none, or "fsdp" cannot do what is asked for.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator is {accelerator!r}, but torch sees no GPU here; "
            "use trainer=cpu, or check the driver with `python -m torch.utils.collect_env`"
        )
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if devices in ("auto", -1):
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if on_gpu and int(devices) > torch.cuda.device_count():
        raise ValueError(
            f"trainer.devices is {devices}, but there are {torch.cuda.device_count()} GPUs; "
            "lower it, or use trainer=cpu"
        )
    processes = int(devices) * num_nodes
    if find_unused_parameters and strategy in ("auto", "ddp") and processes > 1:
        strategy = "ddp_find_unused_parameters_true"
    precision = choose_precision(on_gpu, precision)
    chosen: str | Strategy = strategy
    if strategy == FSDP:
        chosen = sharded(processes, precision, several=find_unused_parameters)
    watching = list(callbacks)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if PARENT_PIPE in os.environ:  # or Lightning would take the numbers of a SLURM job around us for ours
        plugins.append(LightningEnvironment())
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=chosen,
        precision=precision,  # type: ignore[arg-type]
        plugins=plugins,
        callbacks=watching,
        logger=list(logger),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our loaders cut every batch by rank themselves
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in watching),
        **options,
    )


def sharded(processes: int, precision: str, *, several: bool) -> Strategy:
    """The strategy of `trainer=fsdp`.

    Args:
        processes: Of the run.
        precision: Lightning's name.
        several: Whether several networks are trained by turns.

    Raises:
        ValueError: It cannot do that.
    """
    if several:
        raise ValueError(
            "trainer.strategy is 'fsdp', which cannot train two networks against each other; "
            "use trainer.strategy=ddp, or task.adversarial_weight=0"
        )
    if precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision is {precision!r}; trainer.strategy=fsdp allows {' and '.join(PRECISIONS)}"
        )
    return FullySharded(processes)


def join_processes() -> None:
    """Join the other ranks of this run, before Lightning would: the probes need them too."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # both, each for its kind of tensor: trainer=cpu must work on a machine with GPUs
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")


def of_first_process(read: Callable[[], T]) -> T:
    """Wait for all processes of the run, and return what the first of them reads, plain values."""
    join_processes()
    found: list[Any] = [read() if int(os.environ.get("RANK", 0)) == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return cast(T, found[0])


def choose_precision(on_gpu: bool, named: str = "auto") -> str:
    """The one named; for auto bf16-mixed where the hardware computes in bfloat16, else 32-true.

    A CPU without bfloat16 instructions (AMX or AVX-512 BF16) emulates them, many times slower than fp32.
    """
    if named != "auto":
        return named
    if on_gpu:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if _cpu_has_bf16() else "32-true"


def _cpu_has_bf16() -> bool:
    # x86: the flags of Linux name the instructions; torch has no public question for them
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def memory_format(channels_last: bool) -> torch.memory_format:
    """The memory format of weights and images."""
    return torch.channels_last if channels_last else torch.contiguous_format


def peak_memory_gb() -> dict[str, float]:
    """Highest memory held by this process so far, in GB: on the host, and on the GPU if there is one."""
    peak = {"host": _peak_resident() / 1e9}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 1e9
    return peak


def _peak_resident() -> int:
    try:  # not ru_maxrss: on Linux a process has that of its parent, from before it was another program
        with open("/proc/self/status") as file:
            kib = next(line.split()[1] for line in file if line.startswith("VmHWM:"))
        return int(kib) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
