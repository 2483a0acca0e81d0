"""DINO: predict the prototypes that a slower network finds in large crops (Caron et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.features import stride_and_smallest
from ssl_lightning.networks.prototype_head import PrototypeHead
from ssl_lightning.ops.distillation import distillation
from ssl_lightning.ops.views import check_scale
from ssl_lightning.tasks._momentum import MomentumTask
from ssl_lightning.tasks._views import BatchPlace, enlarged
from ssl_lightning.tasks.base import Panel

SMALLEST = 2  # pixels of a crop, so that it can be blurred


class DINO(MomentumTask):
    """Predict, from small and large crops, the prototypes that a slower network finds in the large ones.

    Both networks, student and teacher, compare an embedding with K prototypes. The teacher sees two large
    crops, and its softmax is the target of all other crops of the image. Two guards keep the features from
    collapsing: the targets are centred by a running mean over all images, so that no prototype takes all of
    them, and sharpened by a low temperature, so that they do not become equal.

    Large and small crops change colour alike. Crops of one size pass a network in one batch, as in the paper.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        local_views: Number of small crops of each image (paper: 8); 0 for none.
        local_size: Size of a small crop in pixels. None takes half of a large crop (224 px: 112, paper: 96),
            but at least what the backbone needs.
        local_scale: Smallest and largest area of a small crop, as a share of the image.
        crop_scale: Likewise for the two large crops.
        prototypes: K (paper: 65,536).
        embedding: Size of a prototype (paper: 256).
        batch_norm: Whether the hidden layers of the head have batch norm (paper: no).
        student_temperature: Divides the cosines of the student.
        teacher_temperature: Divides the teacher's cosines: in the first step, and after the warm-up. At
            `student_temperature` or above, the targets are not sharpened.
        warmup: Share of the run in which the temperature of the teacher rises, linearly.
        centre_momentum: Share of the old centre that it keeps in a step; 1 switches centring off.
        freeze_prototypes: Share of the run, from its start, in which the student's prototypes stay as they
            are (paper: the first of 100 epochs).
        **base: The keywords of `MomentumTask`, of `ViewTask` (in the paper `hidden` is 2048), and of
            `PretextTask`.

    Raises:
        ValueError: A number is out of range, or the backbone does not take the small crops.
    """

    default_optimizer = (torch.optim.AdamW, {"lr": 0.002, "weight_decay": 0.05})

    centre: Tensor
    temperature: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        local_views: int = 4,
        local_size: int | None = None,
        local_scale: Sequence[float] = (0.05, 0.4),
        crop_scale: Sequence[float] = (0.4, 1.0),
        prototypes: int = 1024,
        embedding: int = 128,
        batch_norm: bool = True,
        student_temperature: float = 0.1,
        teacher_temperature: Sequence[float] = (0.04, 0.07),
        warmup: float = 0.3,
        centre_momentum: float = 0.9,
        freeze_prototypes: float = 0.01,
        **base: Any,
    ) -> None:
        super().__init__(backbone, embedding=embedding, crop_scale=crop_scale, **base)
        if local_views < 0 or prototypes < 2:
            raise ValueError(
                f"task.local_views is {local_views} and task.prototypes {prototypes}; allowed: >= 0 and >= 2"
            )
        check_scale("local_scale", local_scale)
        if student_temperature <= 0:
            raise ValueError(f"task.student_temperature is {student_temperature}; it must be above 0")
        if len(teacher_temperature) != 2 or min(teacher_temperature) <= 0:
            raise ValueError(
                f"task.teacher_temperature is {list(teacher_temperature)}; allowed are two numbers above 0, "
                "the first and the last, such as [0.04, 0.07]"
            )
        shares = {
            "warmup": warmup,
            "centre_momentum": centre_momentum,
            "freeze_prototypes": freeze_prototypes,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"task.{name} is {value}; allowed is a share, 0 to 1")
        self.local_views, self._local_size = local_views, local_size
        self._local_scale = (local_scale[0], local_scale[1])
        self.prototypes, self._batch_norm = prototypes, batch_norm
        self.student_temperature = student_temperature
        self._temperatures = (float(teacher_temperature[0]), float(teacher_temperature[1]))
        self.warmup, self.centre_momentum, self.freeze_prototypes = shares.values()
        self.views_per_image = 2 + local_views
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        stride, smallest = stride_and_smallest(self.backbone)
        smallest = max(SMALLEST, smallest)
        half = max(smallest, -(-self.view_size // 2))
        self.local_size = half if self._local_size is None else self._local_size
        if self.local_views and self.local_size < smallest:
            raise ValueError(
                f"task.local_size is {self.local_size} px, but the backbone has stride {stride} and needs at "
                f"least {smallest} px; raise task.local_size, or set task.local_views=0"
            )
        self.local_strengths = replace(self.strengths, crop_scale=self._local_scale)
        # state of the training, in the checkpoint
        self.register_buffer("centre", torch.zeros(self.prototypes))  # mean cosines of the teacher, (K,)
        self.register_buffer("temperature", torch.tensor(self._temperatures[0]))

    def projector(self, channels: int) -> nn.Module:
        return PrototypeHead(channels, self.hidden, self.embedding, self.prototypes, self._batch_norm)

    def views(self, images: Tensor, place: BatchPlace, stream: torch.Generator) -> Tensor:
        """Make the two large crops of `(B, C, H, W)` images: `(2, B, C, H, W)`."""
        return self.crops(images, place, stream, 2, self.strengths)

    def small_views(self, images: Tensor, place: BatchPlace, stream: torch.Generator) -> Tensor:
        """Make the small crops: `(V, B, C, size, size)`."""
        return self.crops(images, place, stream, self.local_views, self.local_strengths, self.local_size)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        place = self.place(images)
        large = self.views(images, place, stream)
        student = self.embed(large)  # (2, B, K)
        if self.local_views:
            student = torch.cat([student, self.embed(self.small_views(images, place, stream))])
        teacher = self.embed_by_target(large)  # (2, B, K)
        loss, entropy = distillation(
            student, teacher - self.centre, self.student_temperature, self.temperature
        )
        if self.training:
            self.follow(teacher, place)
        return {"loss": loss, "entropy": entropy}

    @torch.no_grad()
    def follow(self, teacher: Tensor, place: BatchPlace) -> None:
        """Move the centre towards the mean of the teacher's cosines `(2, B, K)` over all processes."""
        mean = teacher.mean((0, 1))
        if len(place.counts) > 1:
            dist.all_reduce(mean)
            mean /= len(place.counts)  # batches of a training have one size
        self.centre.lerp_(mean, 1 - self.centre_momentum)

    @torch.no_grad()
    def embeddings(self, features: Tensor) -> dict[str, Tensor]:
        """Return the assignments to prototypes, as of a teacher; they are equal in a collapse."""
        cosines = super().embeddings(features)["head"]
        return {"head": ((cosines - self.centre) / self.temperature).softmax(1)}

    def temperature_after(self, done: int) -> float:
        """Return the temperature of the teacher in the step after `done` optimizer steps."""
        first, last = self._temperatures
        length = self.warmup * self._steps
        return first + (last - first) * (min(1.0, done / length) if length else 1.0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.temperature.fill_(self.temperature_after(self.steps_done(batch_idx)))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        gradient = self.head.network.get_parameter("prototypes.weight").grad
        if gradient is not None and self.trainer.global_step < self.freeze_prototypes * self._steps:
            gradient.zero_()  # a decay of the weights changes no cosine

    def panel(self, images: Tensor) -> Panel:
        """Show two large crops of each image, whether they are each other's nearest, and a small crop."""
        shown = super().panel(images)
        if not self.local_views:
            return shown
        place = BatchPlace((len(images),), 0)
        stream = generator("panel", "small", device=images.device)
        small = enlarged(self.small_views(images, place, stream)[0], images)
        return replace(
            shown,
            images=torch.cat([shown.images, small[:, None]], 1),
            columns=[*shown.columns, "small view"],
            captions=[[*row, ""] for row in shown.captions],
            right=[[*row, None] for row in shown.right],
        )
