"""Benchmark of training steps: framework against bare loop, parts of a step, defaults against fp32."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.callbacks import Callback
from torch.utils.flop_counter import FlopCounterMode

from ssl_lightning.bench.bare import BareLoop
from ssl_lightning.bench.build import (
    KINDS,
    composed,
    device,
    in_new_process,
    load_batches,
    make_data,
    median_seconds,
    precision_of,
    ratio,
    seconds,
    wait,
)
from ssl_lightning.bench.graphed import GraphedLoop
from ssl_lightning.config.paths import conf_dir
from ssl_lightning.engine.optim import use_fused_kernels
from ssl_lightning.engine.trainer import peak_memory_gb
from ssl_lightning.run.build import build_task
from ssl_lightning.run.execute import pretrain
from ssl_lightning.run.parts import build_parts
from ssl_lightning.tasks._adversarial import AdversarialTask
from ssl_lightning.tasks.base import PretextTask

TASKS = sorted({path.stem for path in conf_dir().glob("task/*.yaml")} - {"random"})  # which does not train
PREPARED = 8  # number of prepared batches
BLOCK = 10  # steps per timed block
LOOPS = {"bare": BareLoop, "graphed": GraphedLoop}  # graphed: only on GPUs


class TakeTurns(Callback):
    """Run other loops between blocks of the framework's steps, and time all of them.

    Args:
        loops: Other loops; their time does not count as the framework's.
        block: Steps per block.
    """

    def __init__(self, loops: Sequence[BareLoop], block: int) -> None:
        self.loops, self.block = loops, block
        self.ours: list[float] = []
        self.theirs: list[list[float]] = [[] for _ in loops]
        self._began, self._done = 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._done += 1
        if self._done % self.block:
            return
        wait()
        now = time.perf_counter()
        if self._began:  # the first block warms up
            self.ours.append(now - self._began)
        for loop, times in zip(self.loops, self.theirs, strict=True):
            now = time.perf_counter()
            for _ in range(self.block):
                loop.step()
            wait()
            if self._began:
                times.append(time.perf_counter() - now)
        self._began = time.perf_counter()


def bare_task(cfg: Any, data: Any, channels_last: bool = True) -> tuple[PretextTask, list[Any]]:
    """Build an equal task with its optimizers, without a Trainer."""
    task, _ = build_task(cfg, data)
    task = task.to(device(cfg.trainer.accelerator))
    if not channels_last:
        task.image_format = torch.contiguous_format
        task = task.to(memory_format=torch.contiguous_format)

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = instantiate(cfg.optimizer)(parameters)
        use_fused_kernels(optimizer)
        return optimizer

    if not (isinstance(task, AdversarialTask) and task.adversarial):
        return task, [make(task.parameters())]
    task.warm = True  # as in the first step after the warm-up
    judging = task.second_parameters()
    known = set(map(id, judging))
    return task, [make([p for p in task.parameters() if id(p) not in known]), make(judging)]


def framework_against_bare(overrides: Sequence[str], blocks: int, block: int = BLOCK) -> dict[str, float]:
    """Time the steps of a run of `train.py`, with callbacks and logging, against bare steps.

    The loops take turns in one process; a GPU adds the bare loop as a CUDA graph. Validation and checkpoints
    are off.

    Args:
        overrides: Overrides of the run.
        blocks: Number of timed blocks.
        block: Steps per block. A block ends with a wait for the device, which slows short blocks on a GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        steps = (blocks + 1) * block
        quick = [
            f"trainer.max_steps={steps}",
            "trainer.max_epochs=-1",
            "trainer.limit_val_batches=0",
        ]
        # only the progress bar: panels and checkpoints are not part of a step
        cfg = composed([*overrides, *quick, "callbacks=[progress]", "probe=[]"], Path(folder))
        job = build_parts(cfg, Path(folder))
        loops: dict[str, BareLoop] = {}
        for name, kind in LOOPS.items():
            if name == "graphed" and device(cfg.trainer.accelerator).type != "cuda":
                continue
            task, optimizers = bare_task(cfg, job.data)
            prepared = load_batches(job.data, task, PREPARED)
            loops[name] = kind(task, prepared, optimizers, job.trainer.precision)
        turns = TakeTurns(list(loops.values()), block)
        job.trainer.callbacks.append(turns)  # type: ignore[attr-defined]
        with contextlib.redirect_stdout(io.StringIO()):  # progress is computed but not shown
            pretrain(job)
    images = job.data.batch_size * block
    found = {"images_per_s": images / statistics.median(turns.ours)}
    for name, times in zip(loops, turns.theirs, strict=True):
        ratios = [theirs / ours for ours, theirs in zip(turns.ours, times, strict=True)]
        found[f"{name}_images_per_s"] = images / statistics.median(times)
        found |= ratio(f"of_{name}", ratios)
    return found


def step_parts(overrides: Sequence[str], steps: int) -> dict[str, float]:
    """Measure milliseconds of the parts of a step and its GFLOP/s.

    The rest of a step in `framework_against_bare` is Lightning, callbacks and logs. Peak memory is measured
    for the process: call this function in a new one.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed([*overrides, "probe=[]"], Path(folder))
    data = make_data(cfg)
    task, optimizers = bare_task(cfg, data)
    loop = BareLoop(task, load_batches(data, task, PREPARED), optimizers, precision_of(cfg), clocked=True)
    with FlopCounterMode(display=False) as counter:
        loop.step()
    loop.spent.clear()

    def run_steps() -> None:
        for _ in range(steps):
            loop.step()

    spent_s = seconds(run_steps)
    spent = {part: 1000 * total / steps for part, total in loop.spent.items()}
    stream = iter(data.train_dataloader())
    raw, _ = next(stream)
    count = min(steps, data.pretrain_batches - 2)
    return {
        "loader_ms": 1000 * seconds(lambda: [next(stream) for _ in range(count)]) / count,
        "receive_ms": 1000 * median_seconds(lambda: task.receive(raw.to(task.device)), steps),
        "pretext_op_head_loss_ms": spent["forward"] - spent["backbone forward"],
        "backbone_forward_ms": spent["backbone forward"],
        "backward_ms": spent["backward"],
        "optimizer_ms": spent["optimizer"],
        "gflops": counter.get_total_flops() * steps / spent_s / 1e9,
        **{f"{where}_peak_gb": gb for where, gb in peak_memory_gb().items()},
    }


def defaults_against_fp32(overrides: Sequence[str], steps: int) -> dict[str, float]:
    """Measure images/s of bare steps with the defaults and in fp32 NCHW, in turns.

    The defaults keep freed memory (`cpu.ALLOCATOR`): fp32 is timed with and without this setting. Each turn
    runs in a new process, because memory left by one variant does not fit the other.
    """
    fp32 = [*overrides, "trainer.precision=32-true"]
    ways = ((overrides, True, False), (fp32, False, True), (fp32, False, False))
    rates = [
        [in_new_process(bare_rate, given, last, steps, plain=plain) for given, last, plain in ways]
        for _ in range(2)
    ]
    names = ("images_per_s", "fp32_images_per_s", "fp32_kept_memory_images_per_s")
    speeds = {name: statistics.mean(each) for name, each in zip(names, zip(*rates, strict=True), strict=True)}
    times = ratio("times", [ours / plain for ours, plain, _ in rates])
    return speeds | times | ratio("times_kept_memory", [ours / kept for ours, _, kept in rates])


def bare_rate(overrides: Sequence[str], channels_last: bool, steps: int) -> float:
    """Measure images/s of bare steps by their median time, after a warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed([*overrides, "probe=[]"], Path(folder))
    data = make_data(cfg)
    task, optimizers = bare_task(cfg, data, channels_last)
    loop = BareLoop(task, load_batches(data, task, PREPARED), optimizers, precision_of(cfg))
    for _ in range(BLOCK):
        loop.step()
    return data.batch_size / median_seconds(loop.step, 2 * steps)


def matmul_peak(overrides: Sequence[str], repeats: int = 10) -> float:
    """Measure GFLOP/s of a square matrix product in the precision and on the device of a run."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed(overrides, Path(folder))
    where = device(cfg.trainer.accelerator)
    size = 8192 if where.type == "cuda" else 2048
    kind = KINDS.get(precision_of(cfg), torch.float32)
    a, b = (torch.randn(size, size, device=where).to(kind) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, repeats) / 1e9
