"""Prepare a backbone for the probes: choose its input and its batch-norm statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssl_lightning.core.progress import tracked, watched
from ssl_lightning.features.encode import evaluating

TRAINED, RECALIBRATED = "trained", "recalibrated"
INPUTS = ("image", "views")


class ProbedTask(Protocol):
    """Interface of a pretext task that the probes need (`ssl_lightning.tasks.base.PretextTask`)."""

    recalibrate: bool

    @property
    def device(self) -> torch.device: ...
    def branches(self) -> dict[str, nn.Module]: ...
    def probe_input(self, images: Tensor) -> Tensor: ...
    def probe_views(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Preparation:
    """Prepare every backbone for encoding, trained or not: the key `encoding` of the config.

    Args:
        batch_norm: "trained" keeps the running statistics, "recalibrated" takes them from full unlabelled
            images. None recalibrates if the backbone of the task never saw full images.
        images: Number of unlabelled pretraining images for the statistics; all if there are fewer.
        input: "image" encodes full images. "views" encodes the several inputs that a task on tiles cuts
            from each image, and averages their stage maps (Kolesnikov et al. 2019, sec. 3.2).

    Raises:
        ValueError: A value is not allowed.
    """

    batch_norm: str | None = None
    images: int = 2048
    input: str = "image"

    def __post_init__(self) -> None:
        if self.batch_norm not in (None, TRAINED, RECALIBRATED):
            raise ValueError(
                f"encoding.batch_norm is {self.batch_norm!r}; allowed are {TRAINED}, {RECALIBRATED} and null"
            )
        if self.images < 2:
            raise ValueError(f"encoding.images is {self.images}; statistics need at least 2 images")
        if self.input not in INPUTS:
            raise ValueError(f"encoding.input is {self.input!r}; allowed are {', '.join(INPUTS)}")

    def feed(self, task: ProbedTask) -> Callable[[Tensor], Tensor]:
        """Return the function that maps plain images, floats in [0, 1], to the input of the backbones."""
        return task.probe_views if self.input == "views" else task.probe_input

    def recalibrates(self, task: ProbedTask) -> bool:
        """Whether the backbones get new statistics; for tiles the trained ones fit."""
        if self.batch_norm is None:
            return task.recalibrate and self.input == "image"
        return self.batch_norm == RECALIBRATED

    def backbones(
        self,
        task: ProbedTask,
        sample: Callable[[int], Tensor],
        *,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, nn.Module]:
        """Return the branches of a task, prepared for encoding, by name.

        Args:
            task: On the device where it computes.
            sample: Returns at most n unlabelled images, `(n, C, H, W)` uint8, the same ones in every call.
            precision: Creates the context of a forward pass.
        """
        if not self.recalibrates(task):
            return task.branches()
        with watched("read images for batch norm"):
            images, feed = sample(self.images), self.feed(task)
        return {
            name: recalibrated(backbone, feed, images, precision=precision, device=task.device)
            for name, backbone in task.branches().items()
        }

    def protocol(self, task: ProbedTask, available: int) -> dict[str, str]:
        """Describe the preparation for the protocol of every result.

        Args:
            task: The task of the backbones.
            available: Number of unlabelled images.
        """
        used = min(self.images, available)
        statistics = f"{RECALIBRATED} on {used} unlabelled images" if self.recalibrates(task) else TRAINED
        return {"input": self.input, "batch_norm": statistics}


def recalibrated(
    backbone: nn.Module,
    probe_input: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    batch_size: int = 256,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Copy a backbone and replace the running statistics of its batch norms; the weights stay.

    A backbone trained on tiles normalises full images by the statistics of tiles, which costs its features
    much of their accuracy. The new statistics are the mean over batches of plain images.

    Args:
        backbone: Maps the output of `probe_input` to the list of stage maps.
        probe_input: Maps floats in [0, 1], `(B, C, H, W)`, to the backbone's input.
        images: `(N, C, H, W)` uint8, without labels.
        batch_size: Maximum number of images in a forward pass; batch sizes differ by at most one.
        precision: Creates the context of the forward pass.
        device: Device of the backbone.

    Returns:
        The copy, in eval mode. A backbone without running statistics is copied unchanged.
    """
    backbone = copy.deepcopy(backbone)
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    backbone.eval()
    if not norms:
        return backbone
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean over all batches
    with evaluating(backbone), torch.no_grad(), precision():
        for norm in norms:
            norm.train()
        batches = images.tensor_split(-(-len(images) // batch_size))
        for batch in tracked(batches, "recalibrate batch norm", "batches"):
            inputs = probe_input(batch.to(device, non_blocking=True).float().div_(255))
            backbone(inputs.flatten(0, 1) if inputs.ndim == 5 else inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return backbone
