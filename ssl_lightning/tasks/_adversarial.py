"""Base class of the adversarial tasks: a generator and a discriminator, trained in alternation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.engine.sync_batch_norm import check_second_derivative
from ssl_lightning.networks.discriminator import (
    JUDGES,
    NORMS,
    Discriminator,
    discriminator_stages,
    frozen,
    make_judge,
    unrecorded,
)
from ssl_lightning.networks.features import deepest_map_size
from ssl_lightning.ops.adversarial import LOSSES, discriminator_scores, generator_loss, gradient_penalty
from ssl_lightning.ops.rotation import NUM_ROTATIONS
from ssl_lightning.tasks._batches import explaining_single_images
from ssl_lightning.tasks._contract import TaskContractError, check_scores, checked
from ssl_lightning.tasks._discriminator_input import DiscriminatorInput
from ssl_lightning.tasks._rotation_of_pictures import RotationOfPictures
from ssl_lightning.tasks._two_networks import TwoNetworks
from ssl_lightning.tasks.base import Batch


@dataclass(frozen=True)
class Attempt:
    """Output of the generator for a batch.

    Args:
        scores: Scalars to log by name; `"loss"` is the pixel loss.
        real: Real pictures for the discriminator, `(N, C, h, w)` normalised.
        fake: Generated pictures with their graph; the same shape.
        extra: Weighted loss terms by name; they count after the warm-up.
    """

    scores: dict[str, Tensor]
    real: Tensor
    fake: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    def total_scores(self) -> dict[str, Tensor]:
        """Return the scores, with the extra terms added to the loss."""
        loss = torch.stack([self.scores["loss"], *self.extra.values()]).sum()
        return self.scores | self.extra | {"loss": loss}


class AdversarialTask(TwoNetworks):
    """A generator that also has to fool a discriminator (Goodfellow et al. 2014).

    A subclass implements `attempt`, and `fake_size` if the discriminator does not see full images. Both
    networks step once per batch, with gradients at the previous weights. The discriminator learns on pictures
    from before the generator's step, so accumulated batches add up to one large batch.

    Real and fake pictures pass through the discriminator in separate batches. In one batch its batch norm
    would tell one kind by the other. Its running statistics come from real pictures, which are also its
    input in the probes. Spectral norm improves its estimate once per discriminator step, on real pictures.

    The defaults are the settings with which both networks learned most on CIFAR-10 (docs/discriminators.md);
    the experiments `pathak2016_inpainting` and `ledig2017_super_resolution` follow the papers.

    Args:
        backbone: The backbone.
        adversarial_weight: Weight of the adversarial loss beside the generator's own; 0 for no discriminator
            and a single optimizer.
        adversarial_loss: "non_saturating", "hinge" or "least_squares"; see `ops.adversarial`.
        discriminator_width: Channels of the discriminator's first stage.
        discriminator_norm: "batch", "spectral" (Miyato et al. 2018) or "none".
        discriminator_head: "average" decides on the mean of the last stage map: texture. "flattened" decides
            on all its cells: places too.
        discriminator_lr_factor: Learning rate of the discriminator relative to the generator's.
        discriminator_steps: Steps of the discriminator per step of the generator, on the same pictures.
        discriminator_augment: Augmentations of both kinds of pictures, some of "colour", "translation" and
            "cutout" (Zhao et al. 2020); see `ops.diff_augment`.
        r1: Weight of half the squared gradient of the discriminator's logits at real pictures (Mescheder,
            Geiger, Nowozin 2018); 0 for none. Batch norm mixes the gradients of a batch.
        discriminator_rotation: Weight of telling rotations of real pictures apart, beside the discriminator's
            losses on both kinds (SS-GAN: Chen et al. 2019; paper: 1). Then its features are rotation's too,
            and its branch is "discriminator_rotation". 0 for none.
        generator_rotation: Weight of the same on generated pictures beside the adversarial loss (paper: 0.2).
        label_smoothing: The target for real pictures is 1 minus this (Salimans et al. 2016, one-sided).
        instance_noise: Deviation of the noise on the discriminator's input, in normalised units. It falls to
            0 over the run (Sønderby et al. 2017) and hides minor differences between real and fake.
        input_noise: Deviation of the noise on the input of the backbone, in normalised units, also in
            validation; 0 for none. It lets the generator vary its pictures, and makes the backbone a denoiser
            (Vincent, Larochelle, Bengio, Manzagol 2008).
        warmup_steps: Initial steps of the generator alone, on the pixel loss. The discriminator's schedule
            spans the steps after them.
        accumulate_grad_batches: Batches for one step of each network, instead of the Trainer's argument.
        gradient_clip_val: Largest norm of the gradient of each network; None does not clip. Likewise.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: A number or a name is out of range.
    """

    recordable = True
    default_optimizer = (torch.optim.Adam, {"lr": 0.001})

    def __init__(
        self,
        backbone: nn.Module,
        *,
        adversarial_weight: float = 0.1,
        adversarial_loss: str = "hinge",
        discriminator_width: int = 32,
        discriminator_norm: str = "spectral",
        discriminator_head: str = "flattened",
        discriminator_lr_factor: float = 0.2,
        discriminator_steps: int = 1,
        discriminator_augment: Sequence[str] = (),
        r1: float = 0.0,
        discriminator_rotation: float = 0.0,
        generator_rotation: float = 0.2,
        label_smoothing: float = 0.0,
        instance_noise: float = 0.0,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        **base: Any,
    ) -> None:
        super().__init__(
            backbone,
            alternating=adversarial_weight > 0,
            warmup_steps=warmup_steps,
            second_steps=discriminator_steps,
            second_lr_factor=discriminator_lr_factor,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            **base,
        )
        if not 0 <= adversarial_weight <= 1:
            raise ValueError(f"task.adversarial_weight is {adversarial_weight}; allowed are 0 (off) to 1")
        for key, value, allowed in (
            ("adversarial_loss", adversarial_loss, LOSSES),
            ("discriminator_norm", discriminator_norm, NORMS),
            ("discriminator_head", discriminator_head, JUDGES),
        ):
            if value not in allowed:
                raise ValueError(f"task.{key} is {value!r}; allowed are {', '.join(allowed)}")
        if discriminator_lr_factor <= 0:
            raise ValueError(f"task.discriminator_lr_factor is {discriminator_lr_factor}; it must be above 0")
        rotations = {
            "discriminator_rotation": discriminator_rotation,
            "generator_rotation": generator_rotation,
        }
        for key, number in {"r1": r1, "input_noise": input_noise, **rotations}.items():
            if number < 0:
                raise ValueError(f"task.{key} is {number}; it must be at least 0")
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"task.label_smoothing is {label_smoothing}; allowed are 0 to below 0.5")
        self.adversarial_weight, self.adversarial_loss = adversarial_weight, adversarial_loss
        self.discriminator_lr_factor = discriminator_lr_factor
        self.discriminator_steps, self.r1 = discriminator_steps, r1
        self.discriminator_rotation, self.generator_rotation = discriminator_rotation, generator_rotation
        self.rotates = discriminator_rotation > 0
        self._branch = "discriminator_rotation" if self.rotates else "discriminator"
        self.discriminator_input = DiscriminatorInput(instance_noise, discriminator_augment)
        self.label_smoothing, self.input_noise = label_smoothing, input_noise
        self.adversarial = adversarial_weight > 0
        # a further step of the discriminator needs its new weights, which one graph of a batch cannot see
        self.recordable = discriminator_steps == 1
        self.warm = False  # whether the warm-up is over
        self._discriminator = {"width": discriminator_width, "norm": discriminator_norm}
        self._head = discriminator_head

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        if not self.adversarial:
            return
        size = self.fake_size(spec)
        self.discriminator_config: dict[str, Any] = {
            "in_channels": spec.channels,
            "stages": discriminator_stages(size),
            **self._discriminator,
        }
        self.discriminator = Discriminator(**self.discriminator_config)
        grid = deepest_map_size(self.discriminator, spec.channels, size)
        kind, norm = self._head, str(self._discriminator["norm"])
        self.judge = make_judge(self.discriminator, grid, 1, kind, norm)
        if self.rotates:
            self.rotation = RotationOfPictures(
                make_judge(self.discriminator, grid, NUM_ROTATIONS, kind, norm)
            )

    def check_trainer(self, trainer: Any) -> None:
        super().check_trainer(trainer)
        if self.adversarial and self.r1:
            check_second_derivative(self.discriminator, f"task.r1 is {self.r1}")

    def second_parameters(self) -> list[nn.Parameter]:
        rotation = self.rotation.parameters() if self.rotates else ()
        return [*self.discriminator.parameters(), *self.judge.parameters(), *rotation]

    def fake_size(self, spec: ImageSpec) -> int:
        """Return height and width of the discriminator's input, which set its number of stages."""
        return spec.image_size

    def attempt(self, images: Tensor, stream: torch.Generator) -> Attempt:
        """Corrupt `(B, C, H, W)` images in [0, 1], restore them, and score the result."""
        raise TaskContractError(f"{type(self).__name__} has no attempt; write attempt(images, stream)")

    def checked_attempt(self, images: Tensor, stream: torch.Generator) -> Attempt:
        """Return the attempt at a batch, after a check of its type and scores."""
        attempt = checked(self, "attempt", self.attempt(images, stream), Attempt)
        check_scores(self, attempt.scores, "attempt")
        return attempt

    def with_input_noise(self, x: Tensor, stream: torch.Generator) -> Tensor:
        """Add the noise on the input of the backbone, normalised."""
        if not self.input_noise:
            return x
        return x + self.input_noise * torch.randn(x.shape, generator=stream, device=x.device)

    def matching_loss(self, fake: list[Tensor], real: list[Tensor]) -> dict[str, Tensor]:
        """Compute generator losses on the discriminator's stage maps; the default has none.

        Args:
            fake: Stage maps of the generated pictures.
            real: Stage maps of the real pictures.

        Returns:
            Scalars to log by name, weighted; their sum is added to the loss.
        """
        return {}

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        return self.checked_attempt(images, stream).total_scores()

    def branches(self) -> dict[str, nn.Module]:
        return super().branches() | ({self._branch: self.discriminator} if self.adversarial else {})

    def branch_configs(self) -> dict[str, dict[str, Any]]:
        target = f"{Discriminator.__module__}.{Discriminator.__qualname__}"
        return {self._branch: {"_target_": target, **self.discriminator_config}} if self.adversarial else {}

    def to_pixels(self, normalised: Tensor) -> Tensor:
        """Undo `normalise`, and clip to [0, 1]."""
        return (normalised * self.std + self.mean).clamp(0, 1)

    # --- the two steps ---

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if not self.adversarial:
            return super().training_step(batch, batch_idx)
        images, labels = batch
        self.fix_dropout(batch_idx)
        steps = (batch_idx + 1) % self.accumulated_batches == 0 or self.trainer.is_last_batch
        done = self.steps_done(batch_idx)
        self.warm = done >= self.warmup_steps
        graph = self.graph if self.warm else None
        self.discriminator_input.fade(done / self.total_steps(), images.device if graph else None)
        if graph:
            rounds = graph.rounds(images, labels, self.stream_seed(batch_idx))
        else:
            rounds = self.rounds(images, labels, self.training_stream(batch_idx, images.device))
        scores: dict[str, Tensor] = {}
        with explaining_single_images():
            for name, found in rounds:
                self.learn(name, found[name], steps)
                scores |= found
        self.log_training(scores)
        return scores["loss"].detach()

    def falling_loss(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Leave out the adversarial terms, which grow as the discriminator learns."""
        if "adversarial" not in scores:
            return scores["loss"]
        others = scores["adversarial"] + self.generator_rotation * scores.get("adversarial_rotation", 0.0)
        return scores["loss"] - self.adversarial_weight * others

    def rounds(
        self, images: Tensor, labels: Tensor, stream: torch.Generator
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the generator's loss, then the discriminator's, at the weights before the step.

        Each further step of the discriminator is at the weights after the previous one.
        """
        if not self.adversarial:
            yield from super().rounds(images, labels, stream)
            return
        attempt = self.checked_attempt(images, stream)
        if not self.warm:
            yield "loss", attempt.scores
            return
        scores = attempt.total_scores()
        shown, made = self.discriminator_input(attempt.real, attempt.fake, stream)
        shown = shown.detach().requires_grad_(self.r1 > 0)  # augmentation joins its graph with that of `made`
        real = self.discriminator(shown)
        scores |= self.generator_scores(scores["loss"], made, real)
        if self.rotates:
            weight = self.adversarial_weight * self.generator_rotation
            scores |= self.rotation.of_generator(scores["loss"], weight, self.discriminator, made, stream)
        yield "loss", scores
        for step in range(self.discriminator_steps):
            real = self.discriminator(shown) if step else real
            found = self.discriminator_scores(made.detach(), real)
            found = self.add_penalty(found, shown, real) if self.r1 else found
            if self.rotates:  # `disc_loss` is half the sum of the losses on both kinds
                loss, weight = found["disc_loss"], self.discriminator_rotation / 2
                found |= self.rotation.of_discriminator(loss, weight, self.discriminator, shown, stream)
            yield "disc_loss", found

    def add_penalty(self, scores: dict[str, Tensor], shown: Tensor, real: list[Tensor]) -> dict[str, Tensor]:
        """Add R1 to the discriminator's loss.

        Args:
            scores: Scores of the discriminator.
            shown: Real pictures that require a gradient, `(N, C, h, w)`.
            real: Their stage maps, with their graph.
        """
        with unrecorded(self.judge):  # it has judged these pictures in this step
            penalty = gradient_penalty(self.judge(real), shown)
        return scores | {"disc_loss": scores["disc_loss"] + self.r1 / 2 * penalty, "disc_r1": penalty}

    def generator_scores(self, loss: Tensor, fake: Tensor, real: list[Tensor]) -> dict[str, Tensor]:
        """Add the discriminator's terms to the generator's own loss.

        Args:
            loss: The generator's own loss.
            fake: `(N, C, h, w)` with their graph.
            real: Stage maps of the real pictures.
        """
        with frozen(self.discriminator, self.judge), unrecorded(self.discriminator, self.judge):
            stages = self.discriminator(fake)
            adversarial = generator_loss(self.judge(stages), self.adversarial_loss)
        matching = self.matching_loss(stages, [stage.detach() for stage in real])
        total = loss + self.adversarial_weight * adversarial + sum(matching.values())
        return {"loss": total, "adversarial": adversarial, **matching}

    def discriminator_scores(self, fake: Tensor, real: list[Tensor]) -> dict[str, Tensor]:
        """Score the discriminator: its loss, and its accuracy on each kind.

        Args:
            fake: `(N, C, h, w)` without their graph.
            real: Stage maps of the real pictures, with their graph.
        """
        on_real = self.judge(real)
        with unrecorded(self.discriminator, self.judge):
            on_fake = self.judge(self.discriminator(fake))
        return discriminator_scores(on_real, on_fake, self.label_smoothing, self.adversarial_loss)
