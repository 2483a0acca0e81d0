"""The parts of a run, built as `train.py` builds them, for a benchmark to time."""

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
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ssl_lightning.config.composition import drop_unchosen
from ssl_lightning.config.paths import conf_dir
from ssl_lightning.core.cpu import ALLOCATOR
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.engine.trainer import choose_precision
from ssl_lightning.launch.train import resolve
from ssl_lightning.run.__main__ import keep_quiet
from ssl_lightning.tasks.base import PretextTask

KINDS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # of products, by Lightning's precision
T = TypeVar("T")


def device(accelerator: str = "auto") -> torch.device:
    """Where is computed: the GPU if there is one, unless `trainer.accelerator` is cpu."""
    return torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")


def composed(overrides: Sequence[str], folder: Path) -> DictConfig:
    """Compose `conf/train.yaml` with overrides, resolved, for steps that keep their files in `folder`."""
    names = "choices={task: bench, data: bench, backbone: bench}"  # the command's, else
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("train", [*overrides, f"run_dir='{folder}'", names], return_hydra_config=True)
    cfg = drop_unchosen(cfg, cfg.hydra)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return resolve(cfg)


def made_data(cfg: DictConfig) -> PairedDataModule:
    """Make the data module ready to give batches."""
    data: PairedDataModule = instantiate(cfg.data)
    data.prepare_data()
    data.setup()
    return data


def batches_of(data: PairedDataModule, task: PretextTask, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first training batches, as `step` gets them."""
    found = []
    for _, (images, labels) in zip(range(count), data.train_dataloader(), strict=False):
        found.append((task.receive(images.to(task.device)), labels.to(task.device)))
    return found


def precision_of(cfg: DictConfig) -> str:
    """The precision of a run: what its config names, or what `auto` is where it computes."""
    return choose_precision(device(cfg.trainer.accelerator).type == "cuda", cfg.trainer.precision)


def autocast(precision: str, kind_of_device: str) -> Any:
    """The context in which Lightning runs a step at some precision."""
    return torch.autocast(kind_of_device, KINDS.get(precision, torch.bfloat16), enabled=precision in KINDS)


def wait() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Seconds of a call, to the end of what it gave the device to do."""
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one that warms up."""
    return statistics.median([seconds(work) for _ in range(repeats + 1)][1:])


def alone(work: Callable[..., T], *args: Any, plain: bool = False) -> T:
    """Call a function of a module in a process of its own, whose memory is that of this call.

    Args:
        work: The function.
        *args: What it is given.
        plain: Whether the process has the C library's own memory allocator settings, not those of our runs.
    """
    kept = {name: os.environ.pop(name) for name in ALLOCATOR if plain and name in os.environ}
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), keep_quiet) as pool:
            return pool.submit(work, *args).result()
    finally:
        os.environ.update(kept)


def time_in_turns(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of several calls that take turns, so that a disturbance falls on all of them."""
    times = [[seconds(work) for work in works] for _ in range(repeats + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]
