"""Non-linear probe: RotNet's classifiers, trained on the cached maps of one frozen stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.artifacts.results import Record
from ssl_lightning.core.seeding import generator, stream_seed
from ssl_lightning.features.encode import evaluating, gather_batches, stage_maps
from ssl_lightning.networks.rotnet_classifiers import ConvBlockClassifier, ThreeLayerClassifier
from ssl_lightning.ops.knn import topk_accuracy
from ssl_lightning.probes.base import Setting, TrunkProbe

# of their CIFAR-10 runs: epochs, and where among them the learning rate is multiplied by DECAY
SCHEDULES = {"mlp": (50, (0.4, 0.8, 0.9)), "conv": (100, (0.35, 0.7, 0.85))}
DECAY = 0.2
DESCRIPTIONS = {"mlp": "three fully-connected layers", "conv": "NIN block and a linear layer"}
EVAL_BATCH = 1024


class NonLinearProbe(TrunkProbe):
    """Top-1 of a small network on the map of one stage (Gidaris et al. 2018, sec. 4.1).

    SGD with Nesterov momentum 0.9 and weight decay 5e-4; the weights of the epoch that does best on
    held-out images meet the test images once. The maps are made once, so that unlike theirs the training
    images are not augmented. With several processes each trains the same classifier on all maps.

    Args:
        classifier: "mlp", three fully-connected layers; or "conv", a block of NIN and a linear layer.
        stage: Such as "stage2", the one of the paper.
        pool: The map is averaged to at most pool x pool cells.
        epochs: Passes over the training maps; None as in the paper, 50 for mlp and 100 for conv.
        batch_size: Maps of a step.
        lr: Multiplied by 0.2 at the paper's milestones, as fractions of the epochs.
        max_memory_gb: Of the maps of all splits: they are kept in fp32 if they fit, else in bfloat16.

    Raises:
        ValueError: A value is out of range.
    """

    stage: str

    def __init__(
        self,
        *,
        classifier: str = "mlp",
        stage: str = "stage2",
        pool: int = 8,
        epochs: int | None = None,
        batch_size: int = 128,
        lr: float = 0.1,
        max_memory_gb: float = 4.0,
    ) -> None:
        if classifier not in SCHEDULES:
            raise ValueError(
                f"probe.nonlinear.classifier is {classifier!r}; allowed are {', '.join(SCHEDULES)}"
            )
        self.epochs, milestones = SCHEDULES[classifier]
        self.epochs = self.epochs if epochs is None else epochs
        for key, value, least in (
            ("pool", pool, 1),
            ("epochs", self.epochs, 1),
            ("batch_size", batch_size, 2),
        ):
            if value < least:
                raise ValueError(f"probe.nonlinear.{key} is {value}; it must be at least {least}")
        for key, number in {"lr": lr, "max_memory_gb": max_memory_gb}.items():
            if number <= 0:
                raise ValueError(f"probe.nonlinear.{key} is {number}; it must be above 0")
        self.classifier, self.stage, self.pool = classifier, stage, pool
        self.batch_size, self.lr, self.max_memory_gb = batch_size, lr, max_memory_gb
        self.milestones = [round(milestone * self.epochs) for milestone in milestones]

    def check(self, counts: Mapping[str, int]) -> None:
        if counts["train"] < 2 or counts["heldout"] < 1:
            raise ValueError(
                f"the non-linear probe trains on 2 labelled images or more and chooses by held-out ones; "
                f"there are {counts['train']} and {counts['heldout']}"
            )

    def check_trunk(self, maps: Mapping[str, tuple[int, int, int]], counts: Mapping[str, int]) -> None:
        super().check_trunk(maps, counts)
        channels, *size = maps[self.stage]
        rows, columns = (min(self.pool, side) for side in size)
        self.map_type(sum(counts.values()) * channels * rows * columns)

    def map_type(self, numbers: int) -> torch.dtype:
        """The type in which so many numbers are kept.

        Raises:
            ValueError: Not even in bfloat16 do they fit.
        """
        for dtype in (torch.float32, torch.bfloat16):
            if numbers * dtype.itemsize <= 1e9 * self.max_memory_gb:
                return dtype
        raise ValueError(
            f"the maps of {self.stage} take {2 * numbers / 1e9:,.1f} GB in bfloat16, and "
            f"probe.nonlinear.max_memory_gb is {self.max_memory_gb:g}; raise it, lower probe.nonlinear.pool "
            f"({self.pool}) or data.max_labels, or choose another probe.nonlinear.stage"
        )

    def run(self, setting: Setting) -> list[Record]:
        splits = {split: self.maps(setting, split) for split in ("train", "heldout", "test")}
        (x, labels), heldout, test = splits["train"], splits["heldout"], splits["test"]
        classifier = self.build(x.shape[1:], len(setting.class_names), setting.seed).to(setting.device)
        by_epoch = self.train(classifier, x, labels, heldout, setting.seed)
        protocol = {
            "classifier": DESCRIPTIONS[self.classifier],
            "pool": list(x.shape[2:]),
            "dims": x[0].numel(),
            "maps": str(x.dtype).removeprefix("torch."),
            "augmented": False,
            "optimizer": "SGD, Nesterov momentum 0.9, weight decay 5e-4",
            "lr": self.lr,
            "milestones": {"epochs": self.milestones, "factor": DECAY},
            "batch_size": min(self.batch_size, len(x)),
            "epochs": self.epochs,
            "epoch": by_epoch.index(max(by_epoch)) + 1,
            "selected_on": "heldout",
            "labels": {"train": len(x), "heldout": len(heldout[0])},
            "heldout": max(by_epoch),
        }
        return [Record(self.stage, "top1", accuracy(classifier, *test), len(test[0]), protocol)]

    def maps(self, setting: Setting, split: str) -> tuple[Tensor, Tensor]:
        """Encode a split once: maps `(N, C, rows, columns)` and labels `(N,)`, on the device."""
        parts, label_parts, counts = [], [], []
        place = int(self.stage.removeprefix("stage")) - 1
        total = sum(setting.data.label_counts[split] for split in ("train", "heldout", "test"))
        with evaluating(setting.trunk), torch.no_grad():
            for images, labels in setting.loaders[split]:
                if not len(images):
                    continue
                with setting.precision():
                    x = setting.feed(images.to(setting.device, non_blocking=True).float().div_(255))
                    full = stage_maps(setting.trunk, x)[place].float()
                cells = (min(self.pool, full.shape[2]), min(self.pool, full.shape[3]))
                pooled = F.adaptive_avg_pool2d(full, cells)
                parts.append(pooled.to(self.map_type(total * pooled[0].numel())))
                label_parts.append(labels.to(setting.device))
                counts.append(len(images))
        maps = torch.cat(parts)
        as_bytes = maps.flatten(1).view(torch.uint8)  # not every backend gathers every type
        gathered = gather_batches(as_bytes, counts).view(maps.dtype).unflatten(1, maps.shape[1:])
        return gathered, gather_batches(torch.cat(label_parts), counts)

    def build(self, shape: torch.Size, num_classes: int, seed: int) -> nn.Module:
        """The classifier with the initial weights of a seed; the global stream is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "nonlinear", self.classifier))
            if self.classifier == "mlp":
                return ThreeLayerClassifier(shape.numel(), num_classes)
            return ConvBlockClassifier(shape[0], num_classes)

    def train(
        self, classifier: nn.Module, x: Tensor, labels: Tensor, heldout: tuple[Tensor, Tensor], seed: int
    ) -> list[float]:
        """Train, and leave in the classifier the weights of the epoch that is best on held-out maps.

        Returns:
            Top-1 on held-out maps after each epoch.
        """
        sgd = torch.optim.SGD(
            classifier.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, self.milestones, DECAY)
        batch, by_epoch, best = min(self.batch_size, len(x)), [], classifier.state_dict()
        for epoch in range(self.epochs):
            classifier.train()
            order = torch.randperm(len(x), generator=generator(seed, "nonlinear", epoch)).to(x.device)
            for rows in order[: len(x) // batch * batch].split(batch):
                loss = F.cross_entropy(classifier(x[rows].float()), labels[rows])
                sgd.zero_grad()
                loss.backward()
                sgd.step()
            schedule.step()
            by_epoch.append(accuracy(classifier, *heldout))
            if by_epoch[-1] > max(by_epoch[:-1], default=-1.0):
                best = copy.deepcopy(classifier.state_dict())
        classifier.load_state_dict(best)
        return by_epoch


@torch.no_grad()
def accuracy(classifier: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Top-1 of a classifier in eval mode on maps, in [0, 1]."""
    classifier.eval()
    logits = torch.cat([classifier(part.float()) for part in x.split(EVAL_BATCH)])
    return float(topk_accuracy(logits, labels))
