"""Settings of each pretext task that follow from the data: optimizer, batch size, learning rate, length."""

from __future__ import annotations

from dataclasses import dataclass

CONTINUED = 0.1  # learning rate of a backbone that was already trained, over that of the new heads
SMALLEST_BATCH = 8
STEPS_AN_EPOCH = 8  # fewest, where the batch can be smaller
VALIDATIONS = 4  # in a run of several epochs

GAN = ("scheduler=cosine", "optimizer.betas=[0.5,0.999]", "task.decoder_width=16")
SMALL_VIEWS = ("task.view_scale=0.625",)  # docs/methods.md
LARGE_HEAD = ("task.momentum=0.98", "task.hidden=2048", "task.embedding=256")


@dataclass(frozen=True)
class Settings:
    """Settings of a task for enough images.

    Args:
        optimizer: Option of the group.
        lr: Learning rate at this batch size.
        batch_size: Images of a step.
        more: Other overrides.
    """

    optimizer: str
    lr: float
    batch_size: int = 64
    more: tuple[str, ...] = ()

    def overrides(self, images: int, *, continued: bool = False) -> list[str]:
        """Return the overrides for a number of pretraining images.

        The batch is halved until an epoch has 8 steps, down to 8 images. The learning rate shrinks with it
        (the linear scaling rule, Goyal et al. 2017). Where given weights are trained further, the backbone
        gets a tenth of it.
        """
        batch = self.batch_size
        while batch > SMALLEST_BATCH and images < STEPS_AN_EPOCH * batch:
            batch //= 2
        lr = self.lr * batch / self.batch_size
        first = [f"optimizer={self.optimizer}", f"data.batch_size={batch}"]
        spared = [f"task.backbone_lr_factor={CONTINUED}"] if continued else []
        return [*first, *self.more, f"optimizer.lr={lr:.4g}", *spared]


# With 45,000 images these are conf/experiment/cifar10_*.yaml (tests/config/test_task_settings.py)
SETTINGS = {
    "rotation": Settings("sgd", 0.05, 16),  # four views of each image
    "jigsaw": Settings("sgd", 0.05),
    "context_prediction": Settings("sgd", 0.05),
    "colorization": Settings("adamw", 0.002),
    "simclr": Settings("sgd", 0.1, 128, (*SMALL_VIEWS, "task.temperature=0.1")),
    "pirl": Settings("sgd", 0.1, 128, SMALL_VIEWS),
    "barlow_twins": Settings("adamw", 0.002, 128, SMALL_VIEWS),
    "vicreg": Settings("adamw", 0.002, 128, SMALL_VIEWS),
    "byol": Settings("adamw", 0.003, 64, (*SMALL_VIEWS, *LARGE_HEAD)),
    "dino": Settings("adamw", 0.002, 64, ("task.momentum=0.98", "task.teacher_temperature=[0.04,0.04]")),
    "lejepa": Settings("adamw", 0.002, 128, SMALL_VIEWS),
    "inpainting": Settings("adam", 0.002, more=(*GAN, "task.discriminator_steps=2")),
    "super_resolution": Settings(
        "adam", 0.002, more=(*GAN, "task.scale=[2,4,8]", "task.discriminator_lr_factor=0.4")
    ),
}


def length(seen: int, images: int, batch_size: int) -> list[str]:
    """Return the overrides for a training that sees about this many images.

    Args:
        seen: Images that enter the training, counted once per epoch.
        images: Pretraining images.
        batch_size: Images of a step.

    >>> length(640, 6400, 64), length(25_600, 6400, 64)
    (['trainer.max_epochs=1', 'trainer.limit_train_batches=10'], ['trainer.max_epochs=4'])
    """
    epochs, steps = _epochs_and_steps(seen, images, batch_size)
    if steps < max(1, images // batch_size):
        return ["trainer.max_epochs=1", f"trainer.limit_train_batches={steps}"]
    every = [f"trainer.check_val_every_n_epoch={epochs // VALIDATIONS}"] if epochs >= 2 * VALIDATIONS else []
    return [f"trainer.max_epochs={epochs}", *every]


def seen_images(seen: int, images: int, batch_size: int) -> int:
    """Return how many images the training of `length` sees: complete batches, and complete epochs of them.

    >>> seen_images(640, 6400, 64), seen_images(25_000, 6400, 64)
    (640, 25600)
    """
    epochs, steps = _epochs_and_steps(seen, images, batch_size)
    return epochs * steps * min(batch_size, images)


def _epochs_and_steps(seen: int, images: int, batch_size: int) -> tuple[int, int]:
    """Return the number of epochs and the steps of each."""
    steps, an_epoch = max(1, round(seen / batch_size)), max(1, images // batch_size)
    return (1, steps) if steps < an_epoch else (round(steps / an_epoch), an_epoch)
