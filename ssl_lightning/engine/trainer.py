"""Trainer of one rank: precision, devices and strategy for the machine."""

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
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ssl_lightning.artifacts.checkpoints import AtomicCheckpointIO
from ssl_lightning.artifacts.run_folder import PARENT_PIPE
from ssl_lightning.core.errors import first_line
from ssl_lightning.engine.fsdp import PRECISIONS, FullySharded

T = TypeVar("T")
FSDP = "fsdp"  # trainer.strategy: `engine.fsdp`, not Lightning's strategy of this name


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
        accelerator: "auto", "cpu", "gpu", or another name of Lightning's.
        devices: Processes on this machine; the launcher has checked the number of GPUs. "auto" and -1 mean
            the number of processes that it started.
        num_nodes: Number of machines.
        strategy: "fsdp", or Lightning's name; "auto" is DDP for several processes.
        precision: Lightning's name, or "auto"; see `choose_precision`.
        find_unused_parameters: Whether a backward pass may skip parameters, as when several networks train in
            turns; DDP must know.
        callbacks: Callbacks of the run.
        logger: Loggers of the run.
        **options: Further keywords of `pytorch_lightning.Trainer`.

    Raises:
        ValueError: "fsdp" does not support the precision or the kind of training, or Lightning refuses an
            option.
    """
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if devices in ("auto", -1):
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    processes = int(devices) * num_nodes
    if find_unused_parameters and strategy in ("auto", "ddp") and processes > 1:
        strategy = "ddp_find_unused_parameters_true"
    precision = choose_precision(on_gpu, precision)
    chosen: str | Strategy = strategy
    if strategy == FSDP:
        chosen = sharded(processes, precision, several=find_unused_parameters)
    watching = list(callbacks)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if PARENT_PIPE in os.environ:  # else Lightning would use the ranks of a surrounding SLURM job
        plugins.append(LightningEnvironment())
    try:
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
            use_distributed_sampler=False,  # our loaders split every batch by rank
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in watching),
            **options,
        )
    except (MisconfigurationException, ImportError) as error:
        raise ValueError(f"Lightning's Trainer refuses its options: {first_line(error)}") from error


def sharded(processes: int, precision: str, *, several: bool) -> Strategy:
    """Build the strategy of `trainer=fsdp`.

    Args:
        processes: Number of processes of the run.
        precision: Lightning's name.
        several: Whether several networks train in turns.

    Raises:
        ValueError: FSDP does not support `several` or the precision.
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
    """Join the process group of this run before Lightning does, since the probes need it too."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # a backend per device type, since trainer=cpu must work on a machine with GPUs
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")


def of_first_process(read: Callable[[], T]) -> T:
    """Call `read` on rank 0 and broadcast its plain result to all processes of the run."""
    join_processes()
    found: list[Any] = [read() if int(os.environ.get("RANK", 0)) == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return cast(T, found[0])


def choose_precision(on_gpu: bool, named: str = "auto") -> str:
    """Return the named precision; for auto, bf16-mixed if the hardware computes in bfloat16.

    Else auto is 16-mixed on a GPU and 32-true on a CPU. A CPU without bfloat16 instructions (AMX or AVX-512
    BF16) emulates them, many times slower than fp32.
    """
    if named != "auto":
        return named
    if on_gpu:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if _cpu_has_bf16() else "32-true"


def _cpu_has_bf16() -> bool:
    # Linux lists the instructions of x86 as flags; torch has no public query for them
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the memory format of weights and images."""
    return torch.channels_last if channels_last else torch.contiguous_format


def peak_memory_gb() -> dict[str, float]:
    """Return the peak memory of this process in GB, on the host and on the GPU if there is one."""
    peak = {"host": _peak_resident() / 1e9}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 1e9
    return peak


def _peak_resident() -> int:
    try:  # not ru_maxrss: on Linux it includes the parent's peak from before exec
        with open("/proc/self/status") as file:
            kib = next(line.split()[1] for line in file if line.startswith("VmHWM:"))
        return int(kib) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
