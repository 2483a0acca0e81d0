"""Base class of the adversarial tasks: a generator and a discriminator, trained in alternation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.discriminator import Discriminator, discriminator_stages, frozen, unrecorded
from ssl_lightning.networks.heads import PooledClassifier
from ssl_lightning.ops.adversarial import discriminator_scores, generator_loss
from ssl_lightning.tasks._batches import explaining_single_images
from ssl_lightning.tasks.base import Batch, PretextTask


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


class AdversarialTask(PretextTask):
    """A generator that also has to fool a discriminator (Goodfellow et al. 2014).

    A subclass implements `attempt`, and `fake_size` if the discriminator does not see full images. Both
    networks step once per batch, with gradients at the previous weights. The discriminator learns on pictures
    from before the generator's step, so accumulated batches add up to one large batch.

    Real and fake pictures pass through the discriminator in separate batches. In one batch its batch norm
    would tell one kind by the other. Its running statistics come from real pictures, which are also its
    input in the probes.

    `Trainer(max_steps=...)` counts the steps of both optimizers, as Lightning does. DDP needs
    `strategy="ddp_find_unused_parameters_true"`.

    Args:
        backbone: The backbone.
        adversarial_weight: Weight of the adversarial loss beside the generator's own; 0 for no discriminator
            and a single optimizer.
        discriminator_width: Channels of the discriminator's first stage.
        discriminator_lr_factor: Learning rate of the discriminator relative to the generator's.
        label_smoothing: The target for real pictures is 1 minus this (Salimans et al. 2016, one-sided).
        instance_noise: Deviation of the noise on the discriminator's input, in normalised units. It falls to
            0 over the run (Sønderby et al. 2017) and hides minor differences between real and fake.
        warmup_steps: Initial steps that train the generator alone, on the pixel loss.
        accumulate_grad_batches: Number of batches whose gradients make one step of each network; the argument
            of this name of Lightning's Trainer does not work for two optimizers.
        gradient_clip_val: Largest norm of the gradient of each network; None does not clip. Likewise.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: A number is out of range.
    """

    recordable = True
    default_optimizer = (torch.optim.Adam, {"lr": 0.001})

    def __init__(
        self,
        backbone: nn.Module,
        *,
        adversarial_weight: float = 0.001,
        discriminator_width: int = 32,
        discriminator_lr_factor: float = 0.1,
        label_smoothing: float = 0.1,
        instance_noise: float = 0.5,
        warmup_steps: int = 0,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if not 0 <= adversarial_weight <= 1:
            raise ValueError(f"task.adversarial_weight is {adversarial_weight}; allowed are 0 (off) to 1")
        if discriminator_lr_factor <= 0:
            raise ValueError(f"task.discriminator_lr_factor is {discriminator_lr_factor}; it must be above 0")
        if not 0 <= label_smoothing < 0.5 or instance_noise < 0:
            raise ValueError(
                f"task.label_smoothing is {label_smoothing} and task.instance_noise {instance_noise}; "
                "allowed are 0 to below 0.5, and 0 or more"
            )
        if warmup_steps < 0:
            raise ValueError(f"task.warmup_steps is {warmup_steps}; it must be at least 0")
        if accumulate_grad_batches < 1 or (gradient_clip_val is not None and gradient_clip_val <= 0):
            raise ValueError(
                f"accumulate_grad_batches is {accumulate_grad_batches} and gradient_clip_val "
                f"{gradient_clip_val}; allowed are 1 or more, and None or above 0"
            )
        self.adversarial_weight, self.warmup_steps = adversarial_weight, warmup_steps
        self.discriminator_lr_factor = discriminator_lr_factor
        self.label_smoothing, self.instance_noise = label_smoothing, instance_noise
        self.adversarial = adversarial_weight > 0
        self.automatic_optimization = not self.adversarial
        self.warm = False  # whether the warm-up is over
        self.deviation: float | Tensor = 0.0  # instance noise of this step
        self._accumulate, self._clip = accumulate_grad_batches, gradient_clip_val
        self._discriminator_width = discriminator_width

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        if self.adversarial:
            self.discriminator_config = {
                "in_channels": spec.channels,
                "stages": discriminator_stages(self.fake_size(spec)),
                "width": self._discriminator_width,
            }
            self.discriminator = Discriminator(**self.discriminator_config)
            self.judge = PooledClassifier(self.discriminator, 1)

    def fake_size(self, spec: ImageSpec) -> int:
        """Return height and width of the discriminator's input, which set its number of stages."""
        return spec.image_size

    def attempt(self, images: Tensor, stream: torch.Generator) -> Attempt:
        """Corrupt `(B, C, H, W)` images in [0, 1], restore them, and score the result."""
        raise NotImplementedError

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
        return self.attempt(images, stream).total_scores()

    def branches(self) -> dict[str, nn.Module]:
        return super().branches() | ({"discriminator": self.discriminator} if self.adversarial else {})

    def branch_configs(self) -> dict[str, dict[str, Any]]:
        target = f"{Discriminator.__module__}.{Discriminator.__qualname__}"
        return (
            {"discriminator": {"_target_": target, **self.discriminator_config}} if self.adversarial else {}
        )

    def to_pixels(self, normalised: Tensor) -> Tensor:
        """Undo `normalise`, and clip to [0, 1]."""
        return (normalised * self.std + self.mean).clamp(0, 1)

    # --- the two steps ---

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if not self.adversarial:
            return super().training_step(batch, batch_idx)
        images, labels = batch
        self.fix_dropout(batch_idx)
        steps = (batch_idx + 1) % self._accumulate == 0 or self.trainer.is_last_batch
        done = self.steps_done(batch_idx)
        self.warm = done >= self.warmup_steps
        deviation = self.noise_after(done)
        if self.graph is not None and self.warm:
            if not isinstance(self.deviation, Tensor):  # the CUDA graph reads this tensor in every step
                self.deviation = torch.zeros((), device=images.device)
            self.deviation.fill_(deviation)
            rounds = self.graph.rounds(images, labels, self._seed("train", batch_idx))
        else:
            self.deviation = deviation
            rounds = self.rounds(images, labels, self.training_stream(batch_idx, images.device))
        scores: dict[str, Tensor] = {}
        with explaining_single_images():
            for number, (name, found) in enumerate(rounds):
                self.learn(number, found[name], steps)
                scores |= found
        self.log_training(scores)
        return scores["loss"].detach()

    def rounds(
        self, images: Tensor, labels: Tensor, stream: torch.Generator
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the generator's loss, then the discriminator's, at the weights before the step."""
        if not self.adversarial:
            yield from super().rounds(images, labels, stream)
            return
        attempt = self.attempt(images, stream)
        if not self.warm:
            yield "loss", attempt.scores
            return
        scores = attempt.total_scores()
        shown, made = self.add_noise(attempt.real, attempt.fake, stream)
        real = self.discriminator(shown)
        yield "loss", scores | self.generator_scores(scores["loss"], made, real)
        yield "disc_loss", self.discriminator_scores(made.detach(), real)

    def generator_scores(self, loss: Tensor, fake: Tensor, real: list[Tensor]) -> dict[str, Tensor]:
        """Add the discriminator's terms to the generator's own loss.

        Args:
            loss: The generator's own loss.
            fake: `(N, C, h, w)` with their graph.
            real: Stage maps of the real pictures.
        """
        with frozen(self.discriminator, self.judge), unrecorded(self.discriminator):
            stages = self.discriminator(fake)
            adversarial = generator_loss(self.judge(stages))
        matching = self.matching_loss(stages, [stage.detach() for stage in real])
        total = loss + self.adversarial_weight * adversarial + sum(matching.values())
        return {"loss": total, "adversarial": adversarial, **matching}

    def discriminator_scores(self, fake: Tensor, real: list[Tensor]) -> dict[str, Tensor]:
        """Score the discriminator: cross-entropy, and its accuracy on each kind.

        Args:
            fake: `(N, C, h, w)` without their graph.
            real: Stage maps of the real pictures, with their graph.
        """
        with unrecorded(self.discriminator):
            stages = self.discriminator(fake)
        return discriminator_scores(self.judge(real), self.judge(stages), self.label_smoothing)

    def learn(self, number: int, loss: Tensor, steps: bool) -> None:
        """Add the gradient of a loss; after the last accumulated batch, step and clear the gradients."""
        with nullcontext() if steps else self._without_sync():
            self.manual_backward(loss / self._accumulate)
        if not steps:
            return
        optimizers: Any = self.optimizers()
        optimizers[number].step()
        schedules: Any = self.lr_schedulers()
        if schedules:
            schedules[number].step()
        optimizers[number].zero_grad()

    def noise_after(self, done: int) -> float:
        """Return the deviation of the instance noise after so many steps: it falls to 0."""
        return self.instance_noise * (1 - done / self.total_steps())

    def add_noise(self, real: Tensor, fake: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Add the instance noise of this step, the same to both, so that their maps are comparable."""
        if not self.instance_noise:
            return real, fake
        noise = self.deviation * torch.randn(real.shape, generator=stream, device=real.device)
        return real + noise, fake + noise

    def steps_done(self, batch_idx: int) -> int:
        """Return the number of generator steps before this batch."""
        if math.isinf(self.trainer.num_training_batches):
            return self._generator_steps(self.trainer.global_step)
        in_epoch = math.ceil(self.trainer.num_training_batches / self._accumulate)
        return self.current_epoch * in_epoch + batch_idx // self._accumulate

    # --- manual optimization with two optimizers ---

    def trainer_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Handle accumulation and clipping, and count the steps of both optimizers, as Lightning does."""
        left = super().trainer_options(options)
        if not self.adversarial:
            return left
        self._accumulate = left.pop("accumulate_grad_batches", 1)
        self._clip = left.pop("gradient_clip_val", None)
        steps = left.get("max_steps", -1)
        if steps > 0:
            left["max_steps"] = steps + max(0, steps - self.warmup_steps)
        return left | {"find_unused_parameters": True}

    @property
    def accumulated_batches(self) -> int:
        return self._accumulate if self.adversarial else super().accumulated_batches

    @property
    def max_steps(self) -> int:
        return self._generator_steps(super().max_steps) if self.adversarial else super().max_steps

    def _generator_steps(self, both: int) -> int:
        """Return the number of generator steps among the steps of both optimizers; -1 stays."""
        return both if both <= self.warmup_steps else math.ceil((both + self.warmup_steps) / 2)

    def configure_callbacks(self) -> Any:
        """Refuse what two optimizers cannot do; this hook comes before Lightning's own check."""
        trainer: Any = self.trainer
        refused = {}
        if trainer.gradient_clip_val:
            refused["gradient_clip_val"] = trainer.gradient_clip_val
        if trainer.accumulate_grad_batches != 1:
            refused["accumulate_grad_batches"] = trainer.accumulate_grad_batches
        if self.adversarial and refused:
            kind, given = type(self).__name__, ", ".join(f"{name}={value}" for name, value in refused.items())
            raise ValueError(
                f"Trainer({given}) does not work for the two optimizers of {kind}; give it to the task: "
                f"{kind}(..., {given})"
            )
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        strategy: Any = self.trainer.strategy
        is_ddp = self.adversarial and isinstance(strategy, DDPStrategy)
        if is_ddp and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ValueError(
                f"{type(self).__name__} trains two networks in turns, so DDP must expect unused parameters: "
                "give Trainer(strategy='ddp_find_unused_parameters_true')"
            )

    def configure_optimizers(self) -> Any:
        if not self.adversarial:
            return super().configure_optimizers()
        discriminator_parameters = [*self.discriminator.parameters(), *self.judge.parameters()]
        excluded = {id(p) for p in discriminator_parameters}
        generator_parameters = [p for p in self.parameters() if id(p) not in excluded]
        steps = self.total_steps()
        return (
            self.optimizer_for(generator_parameters, steps),
            self.optimizer_for(
                discriminator_parameters, max(1, steps - self.warmup_steps), self.discriminator_lr_factor
            ),
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._clip:
            self.clip_gradients(optimizer, gradient_clip_val=self._clip)

    def _without_sync(self) -> AbstractContextManager[Any]:
        strategy: Any = self.trainer.strategy
        return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else nullcontext()
