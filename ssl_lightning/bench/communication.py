"""What the processes of a run send each other in a step: computed, counted at the loopback, and what follows.

The prediction for many GPUs is arithmetic on these volumes; what it says of networks, below, is assumed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_lightning.bench.build import composed, made_data
from ssl_lightning.config.targets import CONF
from ssl_lightning.core.seeding import generator
from ssl_lightning.engine.fsdp import blocks
from ssl_lightning.run.build import build_task

TRAIN = CONF.parent / "train.py"
TRUNKS = {  # size of the images
    "convnet": 32,
    "nin": 32,
    "resnet18_small": 32,
    "alexnet": 224,
    "resnet18": 224,
    "resnet50": 224,
}
COUNTED = ("convnet", "resnet18_small")  # trunks whose traffic is counted too
STEPS = (4, 16)  # of the two runs whose difference is counted: what comes before and after cancels out
BATCH = 32  # assumed: images of a step on each GPU
# Of bare steps on one H100 (docs/speed.md): several processes have no CUDA graphs
TFLOPS = 80.0  # nin, in bfloat16; resnet50 achieves 90, resnet18_small 169
SHORTEST = 7e-3  # seconds of a step of a small network, whose kernels take longer to launch than to run
BACKWARD = 2 / 3  # share of a step that is backward, during which gradients are sent
NETWORKS = {8: (150e9, 20e-6), 64: (20e9, 50e-6)}  # assumed: bytes/s of each GPU, s of a collective


@dataclass(frozen=True)
class Traffic:
    """What a process sends in a step.

    Args:
        weights: Bytes of the weights that are trained, in float32; as many of gradients.
        blocks: Bytes of those that sharding gathers block by block, and so twice.
        buffers: Bytes of what DDP sends from the first process before each forward pass.
        norms: Batch norms; each waits for the others once forward, once backward.
        statistics: Bytes of the statistics of all of them, one way.
    """

    weights: int
    blocks: int
    buffers: int
    norms: int
    statistics: int

    def ddp(self, processes: int) -> float:
        """Bytes of a ring all-reduce of the gradients: 2 (n-1)/n of them."""
        return 2 * (processes - 1) / processes * self.weights

    def fsdp(self, processes: int) -> float:
        """Bytes of gathering the weights, those of blocks again for backward, and of reduce-scatter."""
        return (processes - 1) / processes * (2 * self.weights + self.blocks)

    def shared_norms(self, processes: int) -> float:
        """Bytes of the statistics: each process sends its own to all others, forward and backward."""
        return 2 * (processes - 1) * self.statistics


def traffic(task: nn.Module) -> Traffic:
    """Count what a task would send; it is not changed."""
    trained = [p for p in task.parameters() if p.requires_grad]
    gathered = [p for network in task.children() for block in blocks(network) for p in block.parameters()]
    norms = [m for m in task.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return Traffic(
        weights=sum(4 * p.numel() for p in trained),
        blocks=sum(4 * p.numel() for p in gathered if p.requires_grad),
        buffers=sum(b.numel() * b.element_size() for b in task.buffers()),
        norms=len(norms),
        statistics=sum(2 * 4 * norm.num_features for norm in norms),
    )


def volumes(trunk: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Megabytes that each process sends in a step of rotation on a trunk."""
    sent = traffic(built(trunk, overrides))
    row: dict[str, Any] = {"trunk": trunk, "weights_mb": sent.weights / 1e6}
    for strategy in ("ddp", "fsdp"):
        for processes in (2, *NETWORKS):
            row[f"{strategy}_{processes}"] = getattr(sent, strategy)(processes) / 1e6
    return row | {"norms": sent.norms, "norms_2": sent.shared_norms(2) / 1e6}


def prediction(trunk: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Predicted efficiencies of rotation on a trunk with `BATCH` images on each GPU."""
    task = built(trunk, overrides)
    sent = traffic(task)
    step = max(SHORTEST, BATCH * flops_of_an_image(task, TRUNKS[trunk]) / (TFLOPS * 1e12))
    row: dict[str, Any] = {"trunk": trunk, "step_ms": 1000 * step}
    for processes in NETWORKS:
        for strategy in ("ddp", "fsdp"):
            volume = getattr(sent, strategy)(processes)
            row[f"{strategy}_{processes}"] = efficiency(step, volume, sent.norms, processes)
        row[f"own_norms_{processes}"] = efficiency(step, sent.ddp(processes), 0, processes)
    return row


def built(trunk: str, overrides: Sequence[str]) -> Any:
    """Rotation on a trunk, for images of the size that the trunk is made for."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed([*_small(trunk), "probe=[]", *overrides], Path(folder))
    return build_task(cfg, made_data(cfg))[0]


def efficiency(step: float, volume: float, norms: int, processes: int) -> float:
    """Predicted share of `processes` times the speed of one.

    Gradients travel while backward computes, and what is left over is waited for; each batch norm waits for
    one collective forward and one backward: t / (t + 2 norms latency + max(0, volume / bandwidth - 2/3 t)).

    Args:
        step: Seconds of a step of one process, t.
        volume: Bytes that each process sends in a step.
        norms: Batch norms that share their statistics.
        processes: 8 or 64, for which there are assumptions.
    """
    bandwidth, latency = NETWORKS[processes]
    late = max(0.0, volume / bandwidth - BACKWARD * step)
    return step / (step + 2 * norms * latency + late)


def flops_of_an_image(task: Any, size: int) -> float:
    """Operations of forward and backward for one image, all its views."""
    images = torch.rand(2, task.spec.channels, size, size)
    with FlopCounterMode(display=False) as counter:
        task.step(images, torch.zeros(2, dtype=torch.int64), generator("flops"))["loss"].backward()
    return counter.get_total_flops() / 2


def computed_and_counted(trunk: str) -> list[dict[str, Any]]:
    """What two processes send, computed and counted, for each way to run them."""
    sent = traffic(built(trunk, []))
    norms = sent.shared_norms(2)
    ways = {
        "ddp": ("ddp", True, sent.ddp(2) + norms + sent.buffers / 2),
        "ddp, own batch norms": ("ddp", False, sent.ddp(2) + sent.buffers / 2),
        # gloo, unlike NCCL, makes a reduce-scatter of an all-reduce, which sends twice as much
        "fsdp": ("fsdp", True, sent.fsdp(2) + sent.weights / 2 + norms),
    }
    return [
        {
            "trunk": trunk,
            "way": way,
            "computed_mb": mean / 1e6,
            "counted_mb": counted(trunk, strategy, shared),
        }
        for way, (strategy, shared, mean) in ways.items()
    ]


def counted(trunk: str, strategy: str, sync_batchnorm: bool = True) -> float | None:
    """Megabytes that each of two processes sends in a step, by the loopback's own counter.

    Returns:
        None where no network namespace can be made, so that the counter would hold what others send too.
    """
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        return None
    few, many = (_loopback_bytes(trunk, strategy, sync_batchnorm, steps) for steps in STEPS)
    return (many - few) / (STEPS[1] - STEPS[0]) / 2 / 1e6


ALONE = ["unshare", "--net", *(["--map-root-user"] if os.getuid() else [])]
SCRIPT = """ip link set lo up && "$@" >&2 && sed -n 's/ *lo: *//p' /proc/net/dev"""


def _loopback_bytes(trunk: str, strategy: str, sync_batchnorm: bool, steps: int) -> int:
    """Bytes sent over the loopback by a whole run of so many steps on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(TRAIN), *_small(trunk), "data.num_train=320", "data.batch_size=8",
            "probe=[]", "callbacks=[]", "logger=[]", f"trainer={strategy}", "trainer.accelerator=cpu",
            "trainer.devices=2",
            f"trainer.max_steps={steps}", "trainer.max_epochs=-1", "trainer.limit_val_batches=0",
            "trainer.precision=32-true", f"trainer.sync_batchnorm={str(sync_batchnorm).lower()}",
            f"output_dir={folder}", "trainer.log_every_n_steps=1000",
        ]  # fmt: skip
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*ALONE, "sh", "-c", SCRIPT, "sh", *command],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    return int(done.stdout.split()[8])  # after the eight counters of what was received


def _small(trunk: str) -> list[str]:
    return ["data=fake", f"data.image_size={TRUNKS[trunk]}", f"backbone={trunk}", "task=rotation"]
