"""Fine-tuning probe: train a copy of the backbone on a fraction of the labels with Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ssl_lightning.artifacts.classifiers import FittedClassifier
from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.messages import fitted
from ssl_lightning.core.progress import watched
from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.probes._accuracy import judging, records_of
from ssl_lightning.probes._choice import Choice
from ssl_lightning.probes._fine_tuning import DECAY, FineTuning
from ssl_lightning.probes.base import BackboneProbe, ProbeContext

CLASSIFIERS = {"linear": "linear layer on the mean of the map", "conv": "NIN block and a linear layer"}
EVALUATIONS = 20  # at most, on held-out images, for any number of epochs


class FineTuneProbe(BackboneProbe):
    """Top-1 (mean average precision for multi-label data) after training backbone and classifier.

    SGD with Nesterov momentum 0.9. With `selection="heldout"` training stops early when the held-out score
    stops improving, and the best weights are tested once. With `selection="last"` training runs to its end,
    and the last weights are tested. All processes of the run train together, each on its part of every batch.

    Args:
        fractions: Fractions of the labelled images, a record each. They are fixed, stratified draws; a larger
            one contains the smaller ones. Fractions of fewer than 2 images, or fewer than processes, are
            skipped.
        classifier: "linear", a linear layer on the mean of the map; or "conv", a NIN block and a linear
            layer (Gidaris et al. 2018, table 3).
        stage: Stage whose map is classified, such as "stage2"; None for the deepest. Deeper stages are not
            trained.
        freeze_until: The last frozen stage, such as "stage1"; None trains all stages up to `stage`.
        augment: Whether images are augmented as for pretraining.
        selection: "heldout" or "last", see above; "auto" is "heldout" with 500 held-out images or more, else
            "last", since few images choose an epoch by luck.
        labels: "train", or "train+heldout", which trains on the held-out images too and selects nothing.
        lr: Peak learning rate of the backbone.
        head_lr: Peak learning rate of the classifier.
        weight_decay: Weight decay of both.
        batch_size: Images of a step over all processes; all images if a fraction has fewer.
        epochs: Maximum number of epochs.
        min_steps: Minimum number of steps; a small fraction gets more epochs to reach it.
        milestones: Fractions of the training after which both rates are multiplied by 0.2; None for a half
            cosine to 0.
        patience: Number of evaluations without improvement before training stops; there are at most 20.

    Raises:
        ValueError: A value is out of range.
    """

    targets = ("classes", "multilabel")

    def __init__(
        self,
        *,
        fractions: Sequence[float] = (0.01, 0.1, 1.0),
        classifier: str = "linear",
        stage: str | None = None,
        freeze_until: str | None = None,
        augment: bool = True,
        selection: str = "auto",
        labels: str = "train",
        lr: float = 0.01,
        head_lr: float = 0.1,
        weight_decay: float = 5e-4,
        batch_size: int = 64,
        epochs: int = 20,
        min_steps: int = 500,
        milestones: Sequence[float] | None = None,
        patience: int = 5,
    ) -> None:
        if classifier not in CLASSIFIERS:
            raise ValueError(
                f"probe.finetune.classifier is {classifier!r}; allowed are {', '.join(CLASSIFIERS)}"
            )
        if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
            raise ValueError(
                f"probe.finetune.fractions is {list(fractions)}; at least one is needed, all in (0, 1]"
            )
        rates = {"lr": lr, "head_lr": head_lr, "weight_decay": weight_decay}
        for key, value in rates.items():
            if value < 0 or (key == "head_lr" and value == 0):
                least = "above 0" if key == "head_lr" else "at least 0"
                raise ValueError(f"probe.finetune.{key} is {value}; it must be {least}")
        numbers = {"batch_size": batch_size, "epochs": epochs, "min_steps": min_steps, "patience": patience}
        for key, number in numbers.items():
            if number < 1:
                raise ValueError(f"probe.finetune.{key} is {number}; it must be at least 1")
        if milestones is not None and not all(0 < milestone < 1 for milestone in milestones):
            raise ValueError(
                f"probe.finetune.milestones is {list(milestones)}; each must be a fraction of the training "
                "between 0 and 1"
            )
        self.choice = Choice("finetune", selection, labels)
        self.selects = self.choice.needs_heldout
        self.fractions = sorted(set(map(float, fractions)))
        self.classifier, self.stage, self.frozen = classifier, stage, freeze_until
        self.augment, self.milestones, self.rates = augment, milestones, rates
        self.batch_size, self.epochs, self.min_steps, self.patience = batch_size, epochs, min_steps, patience

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        images = self.choice.counts(counts)["train"]
        if not self._large_enough(images):
            most = round(self.fractions[-1] * images)
            raise ValueError(
                f"probe.finetune.fractions is {self.fractions}, at most {most} of {images} labelled training "
                f"images; {fewest_images()} are needed"
            )

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        images = self.choice.counts(counts)["train"]
        used = self._large_enough(images)
        same = used == self.fractions
        return [] if same else [fitted("probe.finetune.fractions", self.fractions, used, images)]

    def _large_enough(self, images: int) -> list[float]:
        """Return the fractions of so many images that suffice to train on."""
        return [fraction for fraction in self.fractions if round(fraction * images) >= fewest_images()]

    def check_backbone(self, maps: Mapping[str, tuple[int, int, int]], counts: Mapping[str, int]) -> None:
        super().check_backbone(maps, counts)
        names = list(maps)
        top = self.stage or names[-1]
        allowed = names[: names.index(top)]
        if self.frozen is not None and self.frozen not in allowed:
            raise ValueError(
                f"probe.finetune.freeze_until is {self.frozen!r}; with the classifier on {top} allowed are "
                f"{', '.join([*allowed, 'null'])}"
            )

    def run(self, context: ProbeContext) -> list[Record]:
        images = self.choice.counts(context.data.label_counts)["train"]
        return [record for fraction in self._large_enough(images) for record in self.train(context, fraction)]

    def train(self, context: ProbeContext, fraction: float) -> list[Record]:
        """Train a copy of the backbone on a fraction of the labels, and test it."""
        loader: Any = context.data.labelled(
            fraction, self.batch_size, augment=self.augment, heldout=self.choice.with_heldout
        )
        epochs = max(self.epochs, -(-self.min_steps // len(loader)))
        every_n_epochs = -(-epochs // EVALUATIONS)
        counts = self.choice.counts(context.data.label_counts) | {"train": len(loader.indices)}
        selects = self.choice.selects(counts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(context.seed, "finetune"))
            module = FineTuning(
                context,
                classifier=self.classifier,
                stage=self.stage,
                frozen=self.frozen,
                steps=epochs * len(loader),
                milestones=self.milestones,
                every_n_epochs=every_n_epochs if selects else None,
                patience=self.patience,
                **self.rates,
            )
            trainer = context.make_trainer(
                max_epochs=epochs, logger=(), callbacks=(), enable_progress_bar=False
            )
            with watched(
                f"train on {100 * fraction:g} % of the labels", module.steps, "steps"
            ) as module.progress:
                trainer.fit(module, train_dataloaders=loader)
        module.to(context.device)
        if selects:
            module.load_state_dict(module.best_weights)
        heldout = module.scores("heldout") if counts["heldout"] else None
        protocol = {
            "classifier": CLASSIFIERS[self.classifier],
            "trained": self.trained(),
            "weights": module.trained_weights,
            "augmented": self.augment,
            "fraction": fraction,
            "batch_size": loader.batch_size,
            **self.rates,
            "optimizer": f"SGD, Nesterov momentum 0.9, {self.schedule()}",
            "epochs": epochs,
            "epoch": module.best_epoch if selects else epochs,
            "epochs_run": trainer.current_epoch,
            "patience": self.patience * every_n_epochs if selects else None,
            **self.choice.protocol(counts),
        }
        records = records_of(module.stage, protocol, module.scores("test"), heldout)
        self.fitted = FittedClassifier(module.head_config, module.state_dict(), judging(records))
        return records

    def schedule(self) -> str:
        """Describe the learning rate schedule."""
        return "half cosine" if self.milestones is None else f"x {DECAY} at {[*self.milestones]}"

    def trained(self) -> str:
        """Describe the trained weights."""
        first = [f"what follows {self.frozen}"] if self.frozen else []
        last = [f"up to {self.stage}"] if self.stage else []
        return ", ".join(first + last) or "all weights"


def fewest_images() -> int:
    """Return the fewest images to train on: 2, or one for each process."""
    return max(2, dist.get_world_size() if dist.is_initialized() else 1)
