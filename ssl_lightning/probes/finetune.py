"""Fine-tuning probe: train a copy of the backbone on a fraction of the labels with Lightning."""

from __future__ import annotations

import contextlib
import copy
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.artifacts.classifiers import FittedClassifier
from ssl_lightning.artifacts.results import Record
from ssl_lightning.core.messages import fitted
from ssl_lightning.core.progress import Work, tracked, watched
from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.engine.sync_batch_norm import synchronise_batch_norm
from ssl_lightning.features.encode import evaluating, gather_batches, stage_maps
from ssl_lightning.networks.rotnet_classifiers import ConvBlockClassifier, MeanClassifier
from ssl_lightning.probes._accuracy import Scored, figure_of, records_of
from ssl_lightning.probes._choice import Choice
from ssl_lightning.probes.base import BackboneProbe, ProbeContext

CLASSIFIERS = {"linear": "linear layer on the mean of the map", "conv": "NIN block and a linear layer"}
HEADS = {"linear": MeanClassifier, "conv": ConvBlockClassifier}
DECAY = 0.2  # factor of the rates at each milestone
EVALUATIONS = 20  # at most, on held-out images, for any number of epochs


class FineTuneProbe(BackboneProbe):
    """Top-1 (mean average precision for multi-label data) after training backbone and classifier.

    SGD with Nesterov momentum 0.9. Training stops early when the held-out score stops improving, and the
    best weights are tested once. With `selection="last"` training runs to its end, and the last weights are
    tested. All processes of the run train together, each on its part of every batch.

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
        selection: "heldout" or "last", see above.
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
        selection: str = "heldout",
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
        self.selects = self.choice.by_heldout
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(context.seed, "finetune"))
            module = FineTuning(
                context,
                classifier=self.classifier,
                stage=self.stage,
                frozen=self.frozen,
                steps=epochs * len(loader),
                milestones=self.milestones,
                every_n_epochs=every_n_epochs if self.selects else None,
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
        counts = self.choice.counts(context.data.label_counts) | {"train": len(loader.indices)}
        if self.selects:
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
            "epoch": module.best_epoch if self.selects else epochs,
            "epochs_run": trainer.current_epoch,
            "patience": self.patience * every_n_epochs if self.selects else None,
            **self.choice.protocol(counts),
        }
        records = records_of(module.stage, protocol, module.scores("test"), heldout)
        self.fitted = FittedClassifier(module.head_config, module.state_dict(), records[0])
        return records

    def schedule(self) -> str:
        """Describe the learning rate schedule."""
        return "half cosine" if self.milestones is None else f"x {DECAY} at {[*self.milestones]}"

    def trained(self) -> str:
        """Describe the trained weights."""
        first = [f"what follows {self.frozen}"] if self.frozen else []
        last = [f"up to {self.stage}"] if self.stage else []
        return ", ".join(first + last) or "all weights"


class FineTuning(pl.LightningModule):
    """A backbone and a classifier that are trained together.

    Args:
        context: Context of the probe; its backbone is copied.
        frozen: Name of the last frozen stage, or None.
        steps: Steps of the full schedule.
        every_n_epochs: Epochs between two evaluations on held-out images; None for no evaluation.
        classifier, stage, milestones, lr, head_lr, weight_decay, patience: See `FineTuneProbe`.
    """

    progress: Work  # of the training

    def __init__(
        self,
        context: ProbeContext,
        *,
        classifier: str,
        stage: str | None,
        frozen: str | None,
        steps: int,
        milestones: Sequence[float] | None,
        every_n_epochs: int | None,
        lr: float,
        head_lr: float,
        weight_decay: float,
        patience: int,
    ) -> None:
        super().__init__()
        self.context, self.steps, self.milestones = context, steps, milestones
        self.every_n_epochs, self.patience = every_n_epochs, patience
        self.lr, self.head_lr, self.weight_decay = lr, head_lr, weight_decay
        self.backbone = copy.deepcopy(context.backbone).requires_grad_(True)
        images, labels = next(iter(context.loaders["test"]))
        inputs = context.probe_input(images[:1].to(context.device).float().div_(255))
        self.metric = "top1" if labels.ndim == 1 else "map"  # selects the epoch
        self.stage, channels = self.fix_weights(inputs, stage, frozen)
        arguments = {"channels": channels, "num_classes": len(context.class_names)}
        self.head_config = {"_target_": target_of(HEADS[classifier]), **arguments}
        self.head: nn.Module = HEADS[classifier](**arguments).to(context.device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            on_gpu = torch.device(context.device).type == "cuda"
            self.backbone = synchronise_batch_norm(self.backbone, on_gpu=on_gpu)
            self.head = synchronise_batch_norm(self.head, on_gpu=on_gpu)
        self.best, self.best_epoch, self.best_weights = -1.0, 0, copy.deepcopy(self.state_dict())
        self._signal_handlers = {
            signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1)
        }

    def fix_weights(self, inputs: Tensor, stage: str | None, frozen: str | None) -> tuple[str, int]:
        """Freeze the stages up to `frozen`, and the weights that do not contribute to `stage`.

        Returns:
            Name and channels of the classified map; the deepest map without a `stage`.
        """
        with evaluating(self.backbone):
            maps = stage_maps(self.backbone, inputs)
            by_name = {f"stage{number}": each for number, each in enumerate(maps, 1)}
            stage = stage or next(reversed(by_name))
            trained = contributing_weights(self.backbone, by_name[stage])
            fixed = contributing_weights(self.backbone, by_name[frozen]) if frozen else set()
        for name, weight in self.backbone.named_parameters():
            weight.requires_grad_(name in trained - fixed)
        return stage, by_name[stage].shape[1]

    @property
    def trained_weights(self) -> int:
        """Number of trained weights of backbone and classifier."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(B, C, H, W)` uint8 to logits `(B, K)`."""
        maps = stage_maps(self.backbone, self.context.probe_input(images.float().div_(255)))
        return self.head(maps[int(self.stage.removeprefix("stage")) - 1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return loss(self(images).float(), labels)

    def configure_optimizers(self) -> Any:
        backbone = [weight for weight in self.backbone.parameters() if weight.requires_grad]
        groups = [{"params": self.head.parameters(), "lr": self.head_lr}, {"params": backbone, "lr": self.lr}]
        sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.milestones is None:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, self.steps)
        else:
            at = [round(milestone * self.steps) for milestone in self.milestones]
            schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, at, DECAY)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            # Lightning's handlers would wait for the other processes
            for signum, handler in self._signal_handlers.items():
                signal.signal(signum, handler)

    def on_train_epoch_start(self) -> None:
        self.train()
        for part in self.backbone.modules():  # frozen parts keep their statistics too
            own = list(part.parameters(recurse=False))
            if own and not any(weight.requires_grad for weight in own):
                part.eval()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.progress.advance()

    def on_train_epoch_end(self) -> None:
        epoch = self.current_epoch + 1
        if self.every_n_epochs is None:
            return
        if epoch % self.every_n_epochs and epoch < self.trainer.max_epochs:  # type: ignore[operator]
            return
        value = figure_of(self.metric, *self.scores("heldout"))
        if value > self.best:
            self.best, self.best_epoch = value, epoch
            self.best_weights = copy.deepcopy(self.state_dict())
        elif epoch - self.best_epoch >= self.patience * self.every_n_epochs:
            self.trainer.should_stop = True  # the score is the same in every process

    @torch.no_grad()
    def scores(self, split: str) -> Scored:
        """Return logits and labels of a split; the same in every process.

        This is not Lightning's validation, which syncs buffers with each batch and needs equally many
        batches in every process.
        """
        answers, truth, counts = [], [], []
        with evaluating(self):
            for images, labels in tracked(self.context.loaders[split], f"test on {split}", "batches"):
                if len(images):
                    with self.context.precision():
                        answers.append(self(images.to(self.device, non_blocking=True)).float())
                    truth.append(labels.to(self.device))
                    counts.append(len(images))
        logits = gather_batches(torch.cat(answers), counts)
        labels = gather_batches(torch.cat(truth), counts)
        return logits, labels


def fewest_images() -> int:
    """Return the fewest images to train on: 2, or one for each process."""
    return max(2, dist.get_world_size() if dist.is_initialized() else 1)


def target_of(made: type) -> str:
    """Return the dotted name of a class."""
    return f"{made.__module__}.{made.__qualname__}"


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of `(B,)` labels, or the binary one of `(B, K)` labels; -1 is ignored."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    counted = (labels >= 0).float()
    each = F.binary_cross_entropy_with_logits(
        logits, labels.clamp(min=0).float(), weight=counted, reduction="sum"
    )
    return each / counted.sum().clamp(min=1)


def contributing_weights(module: nn.Module, output: Tensor) -> set[str]:
    """Return the names of the weights of a module that contribute to one of its outputs."""
    names, weights = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(output.float().sum(), weights, retain_graph=True, allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None}
