"""Non-linear probe: RotNet's classifiers, trained on the maps of frozen stages."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.networks.rotnet_classifiers import ConvBlockClassifier, ThreeLayerClassifier
from ssl_lightning.probes._accuracy import Scored, check_loss, records_of
from ssl_lightning.probes._choice import Choice
from ssl_lightning.probes._map_sources import FreshMaps, KeptMaps, MapSource
from ssl_lightning.probes._shared_maps import MapRequest
from ssl_lightning.probes.base import BackboneProbe, ProbeContext

# the paper's CIFAR-10 runs: epochs, and milestones of the learning rate as fractions of them
SCHEDULES = {"mlp": (50, (0.4, 0.8, 0.9)), "conv": (100, (0.35, 0.7, 0.85))}
DECAY = 0.2
DESCRIPTIONS = {"mlp": "three fully-connected layers", "conv": "NIN block and a linear layer"}


class NonLinearProbe(BackboneProbe):
    """Top-1 of a small network on the map of a stage (Gidaris et al. 2018, sec. 4.1).

    SGD with Nesterov momentum 0.9 and weight decay 5e-4; the chosen weights are tested once. The paper's
    protocol is `augment=True, selection="last", labels="train+heldout"`. Every epoch then sees new crops
    and flips, through the frozen backbone in eval mode, and nothing is selected.

    Without augmentation the maps are encoded once, in a pass shared with other probes of maps. With several
    processes, each trains the same classifiers on all maps.

    Args:
        classifier: "mlp", three fully-connected layers; or "conv", a NIN block and a linear layer.
        stage: Such as "stage2", the one of the paper; or several, with a classifier and a record each.
        pool: The map is average-pooled to at most pool x pool cells.
        epochs: Training epochs; None as in the paper, 50 for mlp and 100 for conv.
        batch_size: Images of a step.
        lr: Initial learning rate, multiplied by 0.2 at the paper's milestones, as fractions of the epochs.
        augment: Augment training images as for pretraining. The classifiers of several stages then train
            side by side.
        selection: "heldout" tests the weights of the best epoch on held-out images, "last" the weights
            after the last epoch. "auto" is "heldout" with 500 held-out images or more, else "last".
        labels: "train", or "train+heldout", which trains on the held-out images too and selects nothing.
        max_memory_gb: Memory limit of the maps of all splits without augmentation. They are kept in fp32 if
            they fit, else in bfloat16.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        *,
        classifier: str = "mlp",
        stage: str | Sequence[str] = "stage2",
        pool: int = 8,
        epochs: int | None = None,
        batch_size: int = 128,
        lr: float = 0.1,
        augment: bool = False,
        selection: str = "auto",
        labels: str = "train",
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
        stages = [stage] if isinstance(stage, str) else list(stage)
        if not stages or len(set(stages)) < len(stages):
            raise ValueError(f"probe.nonlinear.stage is {stages}; at least one is needed, none of them twice")
        self.choice = Choice("nonlinear", selection, labels)
        self.selects = self.choice.needs_heldout
        self.classifier, self.augment = classifier, augment
        self.batch_size, self.lr = batch_size, lr
        self.milestones = [round(milestone * self.epochs) for milestone in milestones]
        self.maps = tuple(MapRequest(name, pool, max_memory_gb) for name in stages)
        self.wanted = () if augment else self.maps

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        train = self.choice.counts(counts)["train"]
        if train < 2:
            raise ValueError(
                f"the non-linear probe needs at least 2 labelled training images; there are {train}"
            )

    def check_backbone(self, maps: Mapping[str, tuple[int, int, int]], counts: Mapping[str, int]) -> None:
        images = sum(counts.get(split, 0) for split in ("train", "heldout", "test"))
        for wanted in self.maps:
            self.check_stage(wanted.stage, maps)
            channels, *size = maps[wanted.stage]
            rows, columns = wanted.cells(*size)
            numbers = images * channels * rows * columns
            if not self.augment and wanted.dtype(numbers) is None:
                raise ValueError(
                    f"the maps of {wanted.stage} take {2 * numbers / 1e9:,.1f} GB in bfloat16, and "
                    f"probe.nonlinear.max_memory_gb is {wanted.max_memory_gb:g}; raise it, lower "
                    f"probe.nonlinear.pool ({wanted.pool}) or data.max_labels, or choose another "
                    "probe.nonlinear.stage"
                )

    def run(self, context: ProbeContext) -> list[Record]:
        if self.augment:
            return self.evaluate(context, FreshMaps(context, self.maps, self.choice, self.batch_size))
        records = []
        for wanted in self.maps:
            source = KeptMaps(context, wanted, self.choice, self.batch_size)
            records += self.evaluate(context, source)
        return records

    def evaluate(self, context: ProbeContext, source: MapSource) -> list[Record]:
        """Train a classifier on the maps of each stage, side by side, and test them."""
        trainings = []
        for shape in source.shapes:
            network = self.build(shape, len(context.class_names), context.seed).to(context.device)
            sample = torch.zeros(source.batch_size, *shape, device=context.device)
            trainings.append(Training(with_cuda_graphs(network, sample), self.lr, self.milestones))
        self.train(trainings, source)
        networks = [training.network for training in trainings]
        heldout: Sequence[Scored | None] = [None] * len(networks)
        if source.counts["heldout"]:
            heldout = source.scores(networks, "heldout")
        test = source.scores(networks, "test")
        records: list[Record] = []
        for wanted, shape, training, of_heldout, of_test in zip(
            source.wanted, source.shapes, trainings, heldout, test, strict=True
        ):
            protocol = {
                "classifier": DESCRIPTIONS[self.classifier],
                "pool": list(shape[1:]),
                "dims": shape.numel(),
                "maps": str(source.dtype).removeprefix("torch."),
                "augmented": self.augment,
                "optimizer": "SGD, Nesterov momentum 0.9, weight decay 5e-4",
                "lr": self.lr,
                "milestones": {"epochs": self.milestones, "factor": DECAY},
                "batch_size": source.batch_size,
                "epochs": self.epochs,
                "epoch": training.epoch,
                **self.choice.protocol(source.counts),
            }
            records += records_of(wanted.stage, protocol, of_test, of_heldout)
        return records

    def build(self, shape: torch.Size, num_classes: int, seed: int) -> nn.Module:
        """Build the classifier with the initial weights of a seed; the global random stream stays."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "nonlinear", self.classifier))
            if self.classifier == "mlp":
                return ThreeLayerClassifier(shape.numel(), num_classes)
            return ConvBlockClassifier(shape[0], num_classes)

    def train(self, trainings: Sequence[Training], source: MapSource) -> None:
        """Train a classifier for each stage of the source, then restore the weights to test."""
        networks = [training.network for training in trainings]
        for epoch in tracked(range(self.epochs), "train", "epochs"):
            for network in networks:
                network.train()
            for maps, labels in source.batches(epoch):
                for training, x in zip(trainings, maps, strict=True):
                    training.step(x, labels)
            figures: Sequence[float | None] = [None] * len(networks)
            if self.choice.selects(source.counts):
                figures = source.accuracies(networks, "heldout")
            for training, figure in zip(trainings, figures, strict=True):
                training.end_epoch(figure)
        for training in trainings:
            training.restore()


class Training:
    """Training state of one classifier.

    Args:
        network: On the device of its maps.
        lr: Initial learning rate.
        milestones: Epochs after which it is multiplied by 0.2.
    """

    def __init__(self, network: nn.Module, lr: float, milestones: Sequence[int]) -> None:
        self.network = network
        self.sgd = torch.optim.SGD(
            network.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.sgd, list(milestones), DECAY)
        self.epochs, self.epoch = 0, 0  # epochs so far, and the epoch of the weights to test
        self.best = -1.0
        self._weights: dict[str, Any] | None = None  # of the epoch to test; None for the last one

    def step(self, maps: Tensor, labels: Tensor) -> None:
        """Take one step on maps `(B, C, rows, columns)` fp32 and labels `(B,)`."""
        loss = F.cross_entropy(self.network(maps), labels)
        self.sgd.zero_grad()
        loss.backward()
        self.last_loss = loss.detach()
        self.sgd.step()

    def end_epoch(self, figure: float | None) -> None:
        """Step the schedule, and keep the weights with the best held-out score, or the last ones without.

        Raises:
            ValueError: The last loss is not finite.
        """
        check_loss(self.last_loss, "nonlinear")
        self.schedule.step()
        self.epochs += 1
        if figure is None:
            self.epoch = self.epochs
        elif figure > self.best:
            self.epoch, self.best = self.epochs, figure
            self._weights = copy.deepcopy(self.network.state_dict())

    def restore(self) -> None:
        """Load the weights to test."""
        if self._weights is not None:
            self.network.load_state_dict(self._weights)


def with_cuda_graphs(network: nn.Module, sample: Tensor) -> nn.Module:
    """Record the network's passes in train mode as CUDA graphs, on a GPU: a small network waits for Python.

    Args:
        network: In train mode; recording does not change its weights and statistics.
        sample: Maps of the shape of a batch, on its device.
    """
    if sample.device.type == "cuda" and not dist.is_initialized():
        state = copy.deepcopy(network.state_dict())
        torch.cuda.make_graphed_callables(network, (sample,))
        network.load_state_dict(state)  # recording changed the batch-norm statistics
    return network
