"""How a backbone is made ready to be probed: what it is fed, and the statistics of its batch norms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssl_lightning.features.encode import evaluating

TRAINED, RECALIBRATED = "trained", "recalibrated"
INPUTS = ("image", "views")


class ProbedTask(Protocol):
    """What a pretext task tells about its backbones (`ssl_lightning.tasks.base.PretextTask`)."""

    recalibrate: bool

    @property
    def device(self) -> torch.device: ...
    def branches(self) -> dict[str, nn.Module]: ...
    def probe_input(self, images: Tensor) -> Tensor: ...
    def probe_views(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Preparation:
    """What happens to every backbone before it is encoded, trained or not: `encoding` of the config.

    Args:
        batch_norm: "trained" leaves the statistics as they are, "recalibrated" takes them from whole
            unlabelled images; None: recalibrated where the task says that its backbone never saw any.
        images: Unlabelled pretraining images that they are taken from, fewer where there are fewer.
        input: "image" feeds whole images; "views" the several inputs that a task on tiles makes of each,
            whose stage maps are averaged (Kolesnikov et al. 2019, sec. 3.2).

    Raises:
        ValueError: A value is none of these.
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
        """Return what turns plain images, floats in [0, 1], into the input of the backbones."""
        return task.probe_views if self.input == "views" else task.probe_input

    def recalibrates(self, task: ProbedTask) -> bool:
        """Whether the backbones of this task get new statistics; on tiles those of training fit."""
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
        """Return the branches of a task as they are to be encoded, by name.

        Args:
            task: On the device where it computes.
            sample: Returns at most n of the unlabelled images, `(n, C, H, W)` uint8, always the same.
            precision: Makes the context that a forward pass runs in.
        """
        if not self.recalibrates(task):
            return task.branches()
        images, feed = sample(self.images), self.feed(task)
        return {
            name: recalibrated(backbone, feed, images, precision=precision, device=task.device)
            for name, backbone in task.branches().items()
        }

    def protocol(self, task: ProbedTask, available: int) -> dict[str, str]:
        """Say it, for the protocol of every figure; `available` is the number of unlabelled images."""
        used = min(self.images, available)
        what = f"{RECALIBRATED} on {used} unlabelled images" if self.recalibrates(task) else TRAINED
        return {"input": self.input, "batch_norm": what}


def recalibrated(
    backbone: nn.Module,
    probe_input: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    batch_size: int = 256,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Copy a backbone and replace the running statistics of its batch norms; no weight changes.

    A backbone that was trained on tiles normalises whole images by the statistics of tiles, which costs its
    features much of what they know. The new ones are the mean over batches of plain images.

    Args:
        backbone: Maps what `probe_input` returns to the list of stage maps.
        probe_input: Turns floats in [0, 1], `(B, C, H, W)`, into what the backbone takes.
        images: `(N, C, H, W)` uint8, without labels.
        batch_size: Images of a forward pass at most; all passes are of the same size, give or take one.
        precision: Makes the context that the forward pass runs in.
        device: Where the backbone is.

    Returns:
        The copy, in eval mode; a backbone without running statistics is copied as it is.
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
        norm.momentum = None  # the plain mean over all batches
    with evaluating(backbone), torch.no_grad(), precision():
        for norm in norms:
            norm.train()
        for batch in images.tensor_split(-(-len(images) // batch_size)):
            fed = probe_input(batch.to(device, non_blocking=True).float().div_(255))
            backbone(fed.flatten(0, 1) if fed.ndim == 5 else fed)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return backbone
