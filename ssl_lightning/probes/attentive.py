"""Attentive probe: one learned query attends to the cells of every stage map of a frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.artifacts.classifiers import FittedClassifier
from ssl_lightning.artifacts.records import Record, best_stage
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.seeding import generator, stream_seed
from ssl_lightning.networks.attentive import AttentiveClassifier, attend_all
from ssl_lightning.ops.knn import topk_accuracy
from ssl_lightning.probes._accuracy import judging, records_of
from ssl_lightning.probes._shared_maps import MapRequest, Split
from ssl_lightning.probes.base import BackboneProbe, ProbeContext

HEAD = "ssl_lightning.networks.attentive.AttentiveClassifier"  # of the stored classifier
WARMUP = 0.1  # share of the steps, before the cosine
EVAL_BATCH = 1024


class AttentiveProbe(BackboneProbe):
    """Top-1 of one layer of cross-attention and a linear layer, on the map of every stage.

    A learned query attends to the cells of the map, so that the classifier may look where the class is; the
    linear probe averages. All pairs of a learning rate and a weight decay train side by side, from the same
    weights and on the same batches. The held-out top-1 selects the pair; the first one wins a tie. It is
    tested once, as it was trained on the training split.

    AdamW, with a linear warm-up over a tenth of the steps and half a cosine to 0. Cells are standardised by
    the mean and the deviation of each channel over the training split. With several processes, each trains
    the same classifiers on all maps.

    Args:
        stages: Stages to probe, counted from 1; None: all.
        pool: The map is average-pooled to at most pool x pool cells.
        heads: Attention heads; the greatest common divisor with the channels of a stage is used.
        lrs: Candidates of the learning rate.
        weight_decays: Candidates of the weight decay.
        epochs: Passes over the training split.
        batch_size: Images of a step; all of them if there are fewer.
        max_memory_gb: Memory limit of the maps of a stage. They are kept in fp32 if they fit, else in
            bfloat16.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        *,
        stages: Sequence[int] | None = None,
        pool: int = 8,
        heads: int = 8,
        lrs: Sequence[float] = (1e-3, 3e-3),
        weight_decays: Sequence[float] = (0.01, 1.0),
        epochs: int = 10,
        batch_size: int = 256,
        max_memory_gb: float = 4.0,
    ) -> None:
        for key, value in {"pool": pool, "heads": heads, "epochs": epochs, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"probe.attentive.{key} is {value}; it must be at least 1")
        if stages is not None and (not stages or len(set(stages)) < len(stages) or min(stages) < 1):
            raise ValueError(
                f"probe.attentive.stages is {list(stages)}; at least one is needed, from 1 on, none twice"
            )
        if not lrs or min(lrs) <= 0:
            raise ValueError(f"probe.attentive.lrs is {list(lrs)}; at least one is needed, all above 0")
        if not weight_decays or min(weight_decays) < 0:
            raise ValueError(
                f"probe.attentive.weight_decays is {list(weight_decays)}; at least one is needed, none "
                "below 0"
            )
        if max_memory_gb <= 0:
            raise ValueError(f"probe.attentive.max_memory_gb is {max_memory_gb}; it must be above 0")
        self.stages, self.pool, self.heads = stages, pool, heads
        self.candidates = list(product(sorted(lrs), sorted(weight_decays)))
        self.epochs, self.batch_size, self.max_memory_gb = epochs, batch_size, max_memory_gb

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        if counts["train"] < 1:
            raise ValueError("the attentive probe needs labelled training images to train on; there are none")

    def check_backbone(self, maps: Mapping[str, tuple[int, int, int]], counts: Mapping[str, int]) -> None:
        images = sum(counts.get(split, 0) for split in ("train", "heldout", "test"))
        for wanted in self.requests(len(maps)):
            self.check_stage(wanted.stage, maps)
            channels, *size = maps[wanted.stage]
            numbers = images * channels * math.prod(wanted.cells(*size))
            if wanted.dtype(numbers) is None:
                raise ValueError(
                    f"the maps of {wanted.stage} take {2 * numbers / 1e9:,.1f} GB in bfloat16, and "
                    f"probe.attentive.max_memory_gb is {self.max_memory_gb:g}; raise it, or lower "
                    f"probe.attentive.pool ({self.pool}) or data.max_labels"
                )

    def requests(self, stages: int) -> list[MapRequest]:
        """Return the maps that the probe reads of a backbone with so many stages."""
        numbers = self.stages or range(1, stages + 1)
        return [MapRequest(f"stage{number}", self.pool, self.max_memory_gb) for number in numbers]

    def run(self, context: ProbeContext) -> list[Record]:
        info: Any = context.backbone.feature_info
        wanted = self.requests(len(info.channels()))
        counts = context.data.label_counts
        context.maps.expect(wanted, sum(counts[split] for split in context.loaders))
        found = [
            self.evaluate(each.stage, context.maps.get(each), len(context.class_names), context.seed)
            for each in wanted
        ]
        best = best_stage([fitted.record for _, fitted in found])
        self.fitted = next((fitted for _, fitted in found if best and fitted.record is best), None)
        return [record for records, _ in found for record in records]

    def evaluate(
        self, stage: str, splits: Mapping[str, Split], num_classes: int, seed: int
    ) -> tuple[list[Record], FittedClassifier]:
        """Train all candidates on the maps of a stage, and test the selected one.

        Args:
            stage: Name of the stage.
            splits: Maps and labels of train, heldout and test.
            num_classes: K.
            seed: Seed of the initial weights and of the order of the images.

        Returns:
            The records of the stage, and the classifier.
        """
        maps, labels = splits["train"]
        channels, cells = maps.shape[1], list(maps.shape[2:])
        shift, scale = channel_standardisation(maps)
        head = {
            "channels": channels, "cells": cells, "heads": math.gcd(self.heads, channels),
            "num_classes": num_classes,
        }  # fmt: skip
        classifiers = self.build(head, stage, seed)
        for classifier in classifiers:
            classifier.to(maps.device)
            classifier.shift.copy_(shift)
            classifier.scale.copy_(scale)
        self.train(classifiers, stage, maps, labels, seed)
        of_heldout = scores(classifiers, splits["heldout"][0])  # (R, N, K)
        tops = topk_accuracy(of_heldout, splits["heldout"][1]).tolist()
        chosen = tops.index(max(tops))
        lr, weight_decay = self.candidates[chosen]
        protocol = {
            "classifier": "one query, cross-attention to the cells, linear layer",
            "pool": cells,
            "dims": channels,
            "maps": str(maps.dtype).removeprefix("torch."),
            "standardised": "train",
            "heads": head["heads"],
            "optimizer": "AdamW",
            "lr": lr,
            "weight_decay": weight_decay,
            "candidates": {
                f"lr {rate:g}, weight decay {decay:g}": top
                for (rate, decay), top in zip(self.candidates, tops, strict=True)
            },
            "schedule": f"warm-up {WARMUP:g}, cosine to 0",
            "batch_size": min(self.batch_size, len(labels)),
            "epochs": self.epochs,
            "selected_on": "heldout",
            "labels": {split: len(splits[split][1]) for split in ("train", "heldout")},
        }
        of_test = scores(classifiers[chosen : chosen + 1], splits["test"][0])[0]
        heldout = of_heldout[chosen], splits["heldout"][1]
        records = records_of(stage, protocol, (of_test, splits["test"][1]), heldout)
        state = {f"head.{name}": value for name, value in classifiers[chosen].state_dict().items()}
        return records, FittedClassifier({"_target_": HEAD, **head}, state, judging(records))

    def build(self, head: Mapping[str, object], stage: str, seed: int) -> list[AttentiveClassifier]:
        """Build a classifier for each candidate with equal weights; the global random stream stays."""
        built = []
        for _ in self.candidates:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream_seed(seed, "attentive", stage))
                built.append(AttentiveClassifier(**head))  # type: ignore[arg-type]
        return built

    def train(
        self,
        classifiers: Sequence[AttentiveClassifier],
        stage: str,
        maps: Tensor,
        labels: Tensor,
        seed: int,
    ) -> None:
        """Train the classifiers of all candidates side by side."""
        batch = min(self.batch_size, len(labels))
        per_epoch = len(labels) // batch
        groups = [
            {"params": list(each.parameters()), "lr": lr, "weight_decay": decay}
            for each, (lr, decay) in zip(classifiers, self.candidates, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups)
        total = per_epoch * self.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, total))
        for epoch in tracked(range(self.epochs), f"train on {stage}", "epochs"):
            order = torch.randperm(len(labels), generator=generator(seed, "attentive", stage, epoch))
            for rows in order[: per_epoch * batch].to(maps.device).split(batch):
                logits = attend_all(classifiers, standardised(classifiers[0], maps[rows]))  # (R, B, K)
                losses = F.cross_entropy(
                    logits.flatten(0, 1), labels[rows].repeat(len(classifiers)), reduction="sum"
                )
                optimizer.zero_grad()
                (losses / batch).backward()  # every classifier gets the gradient of its own mean
                optimizer.step()
                schedule.step()


@torch.no_grad()
def scores(classifiers: Sequence[AttentiveClassifier], maps: Tensor) -> Tensor:
    """Return the logits `(R, N, K)` of R classifiers on pooled maps `(N, C, rows, columns)`."""
    parts = [attend_all(classifiers, standardised(classifiers[0], part)) for part in maps.split(EVAL_BATCH)]
    return torch.cat(parts, 1)


def standardised(classifier: AttentiveClassifier, maps: Tensor) -> Tensor:
    """Convert pooled maps `(B, C, rows, columns)` to standardised tokens `(B, C, T)` fp32."""
    tokens = maps.flatten(2).float()
    return (tokens - classifier.shift[:, None]) * classifier.scale[:, None]


def channel_standardisation(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and scale `(C,)` that give each channel of maps `(N, C, H, W)` mean 0 and deviation 1.

    A constant channel gets scale 0.
    """
    parts = maps.split(EVAL_BATCH)
    cells = len(maps) * maps[0, 0].numel()
    mean = torch.stack([part.double().sum((0, 2, 3)) for part in parts]).sum(0) / cells
    squares = [(part.double() - mean[:, None, None]).square_().sum((0, 2, 3)) for part in parts]
    deviation = (torch.stack(squares).sum(0) / cells).sqrt()
    scale = torch.where(deviation > 1e-6 * mean.abs(), 1 / deviation, 0.0)
    return mean.float(), scale.float()


def _factor(step: int, total: int) -> float:
    """Return the learning rate of a step over its peak."""
    warmup = max(1, round(WARMUP * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
