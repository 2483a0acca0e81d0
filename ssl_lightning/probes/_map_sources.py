"""Sources of stage maps for training classifiers: kept in memory, or encoded every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.core.seeding import generator
from ssl_lightning.features.encode import gather_batches
from ssl_lightning.probes._accuracy import Scored, measure
from ssl_lightning.probes._choice import Choice
from ssl_lightning.probes._shared_maps import MapRequest, gather_maps
from ssl_lightning.probes.base import ProbeContext

EVAL_BATCH = 1024
TOGETHER = 8  # augmented batches that the frozen backbone encodes at once

Batch = tuple[Sequence[Tensor], Tensor]  # maps (B, C, rows, columns) for each classifier, labels (B,)


class KeptMaps:
    """The maps of one stage, encoded once and kept.

    Attributes:
        wanted: One map request for each classifier.
        shapes: `(C, rows, columns)` of the map of each request.
        dtype: Type of the kept maps.
        counts: Number of training images, remaining held-out images and test images.
        batch_size: Images of a step, over all processes.

    Args:
        context: Provides the maps.
        wanted: The requested maps.
        choice: Chooses the training images.
        batch_size: Images of a step; all of them if there are fewer.
    """

    def __init__(self, context: ProbeContext, wanted: MapRequest, choice: Choice, batch_size: int) -> None:
        self.wanted, self.seed = [wanted], context.seed
        self.splits = context.maps.get(wanted)
        if choice.with_heldout and "heldout" in self.splits:
            both = zip(self.splits["train"], self.splits["heldout"], strict=True)
            maps, labels = (torch.cat(parts) for parts in both)
            self.splits = {"train": (maps, labels), "test": self.splits["test"]}
        self.x, self.labels = self.splits["train"]
        self.shapes, self.dtype = [self.x.shape[1:]], self.x.dtype
        self.counts = {"heldout": 0} | {split: len(labels) for split, (_, labels) in self.splits.items()}
        self.batch_size = min(batch_size, len(self.x))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the training batches of an epoch."""
        used = len(self.x) // self.batch_size * self.batch_size
        order = torch.randperm(len(self.x), generator=generator(self.seed, "nonlinear", epoch))
        for rows in order[:used].to(self.x.device).split(self.batch_size):
            yield [self.x[rows].float()], self.labels[rows]

    @torch.no_grad()
    def scores(self, networks: Sequence[nn.Module], split: str) -> list[Scored]:
        """Return logits and labels of a split for the classifier of each stage, in eval mode."""
        x, labels = self.splits[split]
        found = []
        for network in networks:
            network.eval()
            found.append((torch.cat([network(part.float()) for part in x.split(EVAL_BATCH)]), labels))
        return found

    def accuracies(self, networks: Sequence[nn.Module], split: str) -> list[float]:
        """Return the top-1 in [0, 1] of the classifier of each stage."""
        return [measure("top1", *each) for each in self.scores(networks, split)]


class FreshMaps:
    """The maps of several stages, from images that are augmented in every epoch.

    It has the attributes of `KeptMaps`. The backbone encodes several batches at once. It is in eval mode,
    so the map of an image does not depend on the others. Test and held-out images are not augmented; each
    call of `accuracies` encodes them.

    Args:
        context: Provides the images.
        wanted: One map request for each classifier.
        choice: Chooses the training images.
        batch_size: Images of a step, over all processes.
    """

    dtype = torch.float32

    def __init__(
        self, context: ProbeContext, wanted: Sequence[MapRequest], choice: Choice, batch_size: int
    ) -> None:
        self.context, self.wanted = context, wanted
        loader: Any = context.data.labelled(1.0, batch_size, heldout=choice.with_heldout)
        self.loader = loader
        self.shapes = context.maps.shapes(wanted)
        self.batch_size: int = loader.batch_size
        self.counts = {**context.data.label_counts, **choice.counts(context.data.label_counts)}

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the training batches of an epoch; an incomplete last batch is dropped."""
        self.loader.set_epoch(epoch)
        batches, device = iter(self.loader), self.context.device
        while group := list(islice(batches, TOGETHER)):
            images = torch.cat([images.to(device, non_blocking=True) for images, _ in group])
            labels = torch.cat([labels.to(device, non_blocking=True) for _, labels in group])
            counts = [len(images) for images, _ in group]  # of this process
            maps = [gather_maps(each, counts) for each in self.context.maps.of_batch(images, self.wanted)]
            by_batch = zip(*(each.split(self.batch_size) for each in maps), strict=True)
            yield from zip(by_batch, gather_batches(labels, counts).split(self.batch_size), strict=True)

    @torch.no_grad()
    def scores(self, networks: Sequence[nn.Module], split: str) -> list[Scored]:
        """Return logits and labels of a split for the classifier of each stage, in eval mode."""
        answers: list[list[Tensor]] = [[] for _ in networks]
        truth, counts = [], []
        for network in networks:
            network.eval()
        for images, labels in self.context.loaders[split]:
            if not len(images):  # the last batch may have fewer images than there are processes
                continue
            maps = self.context.maps.of_batch(images, self.wanted)
            for logits, network, each in zip(answers, networks, maps, strict=True):
                logits.append(network(each))
            truth.append(labels.to(self.context.device))
            counts.append(len(images))
        labels = gather_batches(torch.cat(truth), counts)
        return [(gather_batches(torch.cat(each), counts), labels) for each in answers]

    def accuracies(self, networks: Sequence[nn.Module], split: str) -> list[float]:
        """Return the top-1 in [0, 1] of the classifier of each stage."""
        return [measure("top1", *each) for each in self.scores(networks, split)]


MapSource = KeptMaps | FreshMaps
