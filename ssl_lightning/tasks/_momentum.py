"""Base class of the view tasks with a second network that follows the first as a moving average."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.tasks._views import ViewTask

# What drops parts of a network in training, with its rate: torch's, torchvision's and timm's
DROPS = {
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"), "p"),
    "StochasticDepth": "p",
    "DropPath": "drop_prob",
}


class MomentumTask(ViewTask):
    """Compare views by two networks: one learns, and the target follows it (BYOL: Grill et al. 2020).

    The target is a backbone with its head, and starts with the same weights. After every step of the
    optimizer, `target = m * target + (1 - m) * learner`, where m rises from `momentum` to 1 by half a cosine
    over the run. A step that float16 skips leaves the target as it is, and so does a batch that only adds
    gradients. The batch norms of the target use the statistics of the batch in training, and keep running
    statistics of their own. Its dropout and drop path are off, as in the code of DINO.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        momentum: m in the first step.
        **base: The keywords of `ViewTask` and of `PretextTask`.

    Raises:
        ValueError: A number is out of range.
    """

    target: nn.Sequential

    def __init__(self, backbone: nn.Module, *, momentum: float = 0.996, **base: Any) -> None:
        super().__init__(backbone, **base)
        if not 0 <= momentum <= 1:
            raise ValueError(f"task.momentum is {momentum}; allowed are 0 (a copy) to 1 (stays as it is)")
        self.momentum = momentum
        self._steps = 0  # of the run; known when training starts
        # weights of the target, and those that they follow
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        copies = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        self.target = nn.Sequential(*copies).requires_grad_(False)
        for module in self.target.modules():
            if rate := DROPS.get(type(module).__name__):
                setattr(module, rate, 0.0)

    @torch.no_grad()
    def embed_by_target(self, views: Tensor) -> Tensor:
        """Embed views `(V, B, C, H, W)` by the target: `(V, B, D)` float32, without their graph."""
        return self.target(self.inputs(views)).float().unflatten(0, views.shape[:2])

    def momentum_after(self, done: int) -> float:
        """Return the momentum of the step after `done` optimizer steps."""
        share = min(1.0, done / self._steps)
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * share)) / 2

    @torch.no_grad()
    def on_train_start(self) -> None:
        super().on_train_start()
        self._steps = self.total_steps()
        learner = nn.ModuleList([self.backbone, self.head])
        self._pairs = list(self.target.parameters()), list(learner.parameters())
        if self.trainer.global_step == 0:  # the backbone may have got other weights since `build`
            self.target.load_state_dict(learner.state_dict())
        for optimizer in self.trainer.optimizers:
            optimizer.register_step_post_hook(self._follow)  # not called for a step that float16 skips

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        # layers that are frozen are in evaluation mode
        for own, learner in zip(self.target[0].modules(), self.backbone.modules(), strict=True):
            own.training = learner.training

    @torch.no_grad()
    def _follow(self, *_: Any) -> None:
        momentum = self.momentum_after(self.trainer.global_step)
        get_ema_multi_avg_fn(momentum)(*self._pairs, None)
