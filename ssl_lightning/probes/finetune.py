"""Fine-tuning: a copy of the backbone is trained further, on a share of the labels, through Lightning."""

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

from ssl_lightning.artifacts.results import Record
from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.engine.sync_batch_norm import synchronise_batch_norm
from ssl_lightning.features.encode import evaluating, gather_batches, stage_maps
from ssl_lightning.networks.rotnet_classifiers import ConvBlockClassifier, GlobalAverage
from ssl_lightning.ops.average_precision import mean_average_precision
from ssl_lightning.ops.knn import topk_accuracy
from ssl_lightning.probes._choice import Choice
from ssl_lightning.probes.base import BackboneProbe, Setting

CLASSIFIERS = {"linear": "linear layer on the mean of the map", "conv": "NIN block and a linear layer"}
DECAY = 0.2  # of the rates at each milestone
EVALUATIONS = 20  # on held-out images, at most, however many epochs a small share needs


class FineTuneProbe(BackboneProbe):
    """Top-1 (mean average precision with several classes an image) after training backbone and classifier.

    SGD with Nesterov momentum 0.9. Training ends early when held-out images have not been told better for
    some time, and the weights that told them best meet the test images once; with `selection="last"` it
    goes to its end, and the last weights meet them. All processes of the run train together, on their parts
    of each batch.

    Args:
        fractions: Shares of the labelled images that are trained on, a figure each: fixed draws, a larger
            one holds the smaller ones, each class with its share.
        classifier: "linear", a linear layer on the mean of the map; or "conv", a block of NIN and a linear
            layer (Gidaris et al. 2018, table 3).
        stage: The stage whose map is classified, such as "stage2"; None for the deepest. Deeper ones are
            left alone.
        freeze_until: The last stage that stays as it was, such as "stage1"; None trains all up to `stage`.
        augment: Whether images are augmented as for pretraining.
        selection: "heldout" or "last", see above.
        labels: "train", or "train+heldout", which trains on the held-out images too and selects nothing.
        lr: Largest learning rate of the backbone.
        head_lr: That of the classifier.
        weight_decay: Of both.
        batch_size: Images of a step over all processes; all of them where a share has fewer.
        epochs: Passes over a share at most.
        min_steps: A small share is passed over more often, until it has made so many steps.
        milestones: Shares of the training after which both rates are multiplied by 0.2; None for a half
            cosine down to 0.
        patience: Evaluations without a better figure after which training ends; there are 20 at most.

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
                raise ValueError(f"probe.finetune.{key} is {value}; it must be above 0")
        numbers = {"batch_size": batch_size, "epochs": epochs, "min_steps": min_steps, "patience": patience}
        for key, number in numbers.items():
            if number < 1:
                raise ValueError(f"probe.finetune.{key} is {number}; it must be at least 1")
        if milestones is not None and not all(0 < milestone < 1 for milestone in milestones):
            raise ValueError(
                f"probe.finetune.milestones is {list(milestones)}; each must be a share of the training, "
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
        least = round(self.fractions[0] * images)
        if least < 2:
            raise ValueError(
                f"probe.finetune.fractions begins with {self.fractions[0]:g}, {least} of {images} "
                "labelled training images; 2 are needed"
            )

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

    def run(self, setting: Setting) -> list[Record]:
        return [self.train(setting, fraction) for fraction in self.fractions]

    def train(self, setting: Setting, fraction: float) -> Record:
        """Train a copy of the backbone on a share of the labels, and test it."""
        loader: Any = setting.data.labelled(
            fraction, self.batch_size, augment=self.augment, heldout=self.choice.with_heldout
        )
        epochs = max(self.epochs, -(-self.min_steps // len(loader)))
        every_n_epochs = -(-epochs // EVALUATIONS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(setting.seed, "finetune"))
            module = FineTuning(
                setting,
                classifier=self.classifier,
                stage=self.stage,
                frozen=self.frozen,
                steps=epochs * len(loader),
                milestones=self.milestones,
                every_n_epochs=every_n_epochs if self.selects else None,
                patience=self.patience,
                **self.rates,
            )
            trainer = setting.make_trainer(
                max_epochs=epochs, logger=(), callbacks=(), enable_progress_bar=False
            )
            trainer.fit(module, train_dataloaders=loader)
        module.to(setting.device)
        counts = self.choice.counts(setting.data.label_counts) | {"train": len(loader.indices)}
        heldout: float | None = None
        if self.selects:
            module.load_state_dict(module.best_weights)
            heldout = module.best
        elif counts["heldout"]:
            heldout, _ = module.figure("heldout")
        value, n = module.figure("test")
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
            **self.choice.protocol(counts, heldout),
        }
        return Record(module.stage, module.metric, value, n, protocol)

    def schedule(self) -> str:
        """Say how the rates fall."""
        return "half cosine" if self.milestones is None else f"x {DECAY} at {[*self.milestones]}"

    def trained(self) -> str:
        """Say which weights are trained."""
        first = [f"what follows {self.frozen}"] if self.frozen else []
        last = [f"up to {self.stage}"] if self.stage else []
        return ", ".join(first + last) or "all weights"


class FineTuning(pl.LightningModule):
    """A backbone and a classifier that learn together.

    Args:
        setting: What the probe works with; its backbone is copied.
        frozen: Name of the last stage that is not trained, or None.
        steps: Of the whole schedule.
        every_n_epochs: Epochs between two evaluations on held-out images; None: there are none.
        classifier, stage, milestones, lr, head_lr, weight_decay, patience: See `FineTuneProbe`.
    """

    def __init__(
        self,
        setting: Setting,
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
        self.setting, self.steps, self.milestones = setting, steps, milestones
        self.every_n_epochs, self.patience = every_n_epochs, patience
        self.lr, self.head_lr, self.weight_decay = lr, head_lr, weight_decay
        self.backbone = copy.deepcopy(setting.backbone).requires_grad_(True)
        images, labels = next(iter(setting.loaders["test"]))
        fed = setting.feed(images[:1].to(setting.device).float().div_(255))
        self.metric = "top1" if labels.ndim == 1 else "map"
        self.stage, channels = self.fix_weights(fed, stage, frozen)
        self.head = head(classifier, channels, len(setting.class_names)).to(setting.device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            on_gpu = torch.device(setting.device).type == "cuda"
            self.backbone = synchronise_batch_norm(self.backbone, on_gpu=on_gpu)
            self.head = synchronise_batch_norm(self.head, on_gpu=on_gpu)
        self.best, self.best_epoch, self.best_weights = -1.0, 0, copy.deepcopy(self.state_dict())
        self._handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1)}

    def fix_weights(self, fed: Tensor, stage: str | None, frozen: str | None) -> tuple[str, int]:
        """Fix the weights of the stages up to `frozen`, and those on which that of `stage` does not depend.

        Returns:
            Name and channels of the map that is classified; the deepest one without a `stage`.
        """
        with evaluating(self.backbone):
            maps = stage_maps(self.backbone, fed)
            by_name = {f"stage{number}": each for number, each in enumerate(maps, 1)}
            stage = stage or next(reversed(by_name))
            trained = weights_behind(self.backbone, by_name[stage])
            fixed = weights_behind(self.backbone, by_name[frozen]) if frozen else set()
        for name, weight in self.backbone.named_parameters():
            weight.requires_grad_(name in trained - fixed)
        return stage, by_name[stage].shape[1]

    @property
    def trained_weights(self) -> int:
        """Numbers that are trained, of backbone and classifier."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(B, C, H, W)` uint8 to logits `(B, K)`."""
        maps = stage_maps(self.backbone, self.setting.feed(images.float().div_(255)))
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
        with contextlib.suppress(ValueError):  # only the main thread may set them
            for signum, handler in self._handlers.items():  # Lightning's would wait for the other processes
                signal.signal(signum, handler)

    def on_train_epoch_start(self) -> None:
        self.train()
        for part in self.backbone.modules():  # what is frozen keeps its statistics too
            own = list(part.parameters(recurse=False))
            if own and not any(weight.requires_grad for weight in own):
                part.eval()

    def on_train_epoch_end(self) -> None:
        epoch = self.current_epoch + 1
        if self.every_n_epochs is None:
            return
        if epoch % self.every_n_epochs and epoch < self.trainer.max_epochs:  # type: ignore[operator]
            return
        value, _ = self.figure("heldout")
        if value > self.best:
            self.best, self.best_epoch = value, epoch
            self.best_weights = copy.deepcopy(self.state_dict())
        elif epoch - self.best_epoch >= self.patience * self.every_n_epochs:
            self.trainer.should_stop = True  # the same in every process: so is the figure

    @torch.no_grad()
    def figure(self, split: str) -> tuple[float, int]:
        """Top-1 or mean average precision on a split, and its images; the same in every process.

        Not Lightning's validation: its processes exchange buffers with each batch, and need equally many.
        """
        answers, truth, counts = [], [], []
        with evaluating(self):
            for images, labels in self.setting.loaders[split]:
                if len(images):
                    with self.setting.precision():
                        answers.append(self(images.to(self.device, non_blocking=True)).float())
                    truth.append(labels.to(self.device))
                    counts.append(len(images))
        logits = gather_batches(torch.cat(answers), counts)
        labels = gather_batches(torch.cat(truth), counts)
        score = topk_accuracy if labels.ndim == 1 else mean_average_precision
        return float(score(logits, labels)), len(labels)


def head(classifier: str, channels: int, num_classes: int) -> nn.Module:
    """What maps `(B, channels, rows, columns)` to logits `(B, num_classes)`."""
    if classifier == "conv":
        return ConvBlockClassifier(channels, num_classes)
    return nn.Sequential(GlobalAverage(), nn.Linear(channels, num_classes))


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of `(B,)` labels; of `(B, K)` ones that of each class on its own, -1 not counted."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    counted = (labels >= 0).float()
    each = F.binary_cross_entropy_with_logits(
        logits, labels.clamp(min=0).float(), weight=counted, reduction="sum"
    )
    return each / counted.sum().clamp(min=1)


def weights_behind(module: nn.Module, output: Tensor) -> set[str]:
    """Names of the weights of a module on which an output of its depends."""
    names, weights = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(output.float().sum(), weights, retain_graph=True, allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None}
