"""Construction of the parts of a run as in `train.py`, and timers."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from ssl_lightning.config.composition import compose
from ssl_lightning.core.cpu import ALLOCATOR
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.engine.trainer import choose_precision
from ssl_lightning.run.__main__ import keep_quiet
from ssl_lightning.tasks.base import PretextTask

KINDS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # autocast dtype by precision
T = TypeVar("T")


def device(accelerator: str = "auto") -> torch.device:
    """Return the device of the benchmark: the GPU, if any, unless `trainer.accelerator` is cpu."""
    return torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")


def composed(overrides: Sequence[str], folder: Path) -> DictConfig:
    """Compose and resolve `conf/train.yaml` with overrides; files of the run go to `folder`."""
    return compose("train", [*overrides, f"output_dir='{folder}'", "folder=."])


def make_data(cfg: DictConfig) -> PairedDataModule:
    """Build the data module and set it up."""
    data: PairedDataModule = instantiate(cfg.data)
    data.prepare_data()
    data.setup()
    return data


def load_batches(data: PairedDataModule, task: PretextTask, count: int) -> list[tuple[Tensor, Tensor]]:
    """Load the first training batches in the form that `step` takes."""
    found = []
    for _, (images, labels) in zip(range(count), data.train_dataloader(), strict=False):
        found.append((task.receive(images.to(task.device)), labels.to(task.device)))
    return found


def precision_of(cfg: DictConfig) -> str:
    """Return the precision of a run; `auto` is resolved for its device."""
    return choose_precision(device(cfg.trainer.accelerator).type == "cuda", cfg.trainer.precision)


def autocast(precision: str, kind_of_device: str) -> Any:
    """Return the autocast context that Lightning uses at a precision."""
    return torch.autocast(kind_of_device, KINDS.get(precision, torch.bfloat16), enabled=precision in KINDS)


def wait() -> None:
    """Wait until the GPU, if any, is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Time a call in seconds, including its work on the device."""
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a call, after one warm-up call."""
    return statistics.median([seconds(work) for _ in range(repeats + 1)][1:])


def ratio(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the median of a measured ratio under its name, and its spread: the lowest and the highest."""
    return {name: statistics.median(values), f"{name}_lowest": min(values), f"{name}_highest": max(values)}


def in_new_process(work: Callable[..., T], *args: Any, plain: bool = False) -> T:
    """Call a function in a new process, so that its memory is the memory of this call.

    Args:
        work: A function of a module.
        *args: Its arguments.
        plain: Whether to use the C library's default allocator settings instead of the settings of a run.
    """
    kept = {name: os.environ.pop(name) for name in ALLOCATOR if plain and name in os.environ}
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), keep_quiet) as pool:
            return pool.submit(work, *args).result()
    finally:
        os.environ.update(kept)


def time_in_turns(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median seconds of calls that take turns, so that a disturbance affects all of them."""
    times = [[seconds(work) for work in works] for _ in range(repeats + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]
