"""Benchmark of the probes against one encode pass, and against a protocol that encodes in every epoch."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.bench.build import autocast, composed, device, make_data, precision_of, ratio
from ssl_lightning.data._pairing import SPLITS
from ssl_lightning.features.encode import evaluating, stage_maps
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.run.build import build_task

EPOCHS = 28  # as in Goyal et al. 2019
LRS = (0.01, 0.1, 1.0)  # trained side by side on the same features; held-out images choose one


class Probing:
    """The linear and the kNN probe of an untrained backbone.

    Args:
        overrides: Overrides of a run.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.cfg = composed(["probe=[linear,knn]", *overrides], Path(folder))
        self.data = make_data(self.cfg)
        task, _ = build_task(self.cfg, self.data)
        self.task = task.to(device(self.cfg.trainer.accelerator))
        self.loaders = {split: self.data.downstream(split) for split in SPLITS}
        self.classes = self.data.spec.class_names or ()

    def run(self) -> tuple[list[Record], dict[str, float]]:
        """Encode and probe; return the records, and the seconds of each part."""
        with tempfile.TemporaryDirectory() as folder:
            return run_probes(
                {"backbone": self.task.backbone},
                self.task.probe_input,
                dict(instantiate(self.cfg.probe)),
                self.loaders,
                class_names=self.classes,
                folder=Path(folder),
                precision=self.autocast,
                device=self.task.device,
            )

    def autocast(self) -> Any:
        """Return the autocast context of the run."""
        return autocast(precision_of(self.cfg), self.task.device.type)


def probes_against_encoding(overrides: Sequence[str], repeats: int) -> dict[str, float]:
    """Time the linear and the kNN probe against the encode pass before them."""
    probing = Probing(overrides)
    probing.run()  # warms up
    spent = [probing.run()[1] for _ in range(repeats)]
    parts = ("encode_s", "linear_s", "knn_s")
    medians = {part: statistics.median(each[part] for each in spent) for part in parts}
    shares = [(each["linear_s"] + each["knn_s"]) / each["encode_s"] for each in spent]
    return medians | ratio("probes_over_encode", shares)


def probes_against_reencoding(overrides: Sequence[str], pool: int = 2) -> dict[str, float]:
    """Time encoding and the linear probe against SGD heads with encoding in every epoch, once.

    The latter protocol trains linear classifiers on all stages for 28 epochs (Goyal et al. 2019), on the same
    pooled features and without augmentation. Held-out images choose the learning rate and the stage.
    """
    probing = Probing(overrides)
    probing.run()  # warms up, like the first of 28 epochs
    records, spent = probing.run()
    linear = [r for r in records if r.probe == "linear" and r.metric == "top1"]
    ours = max(linear, key=lambda r: r.protocol["heldout"]).value
    began = time.perf_counter()
    theirs = train_heads(probing, pool)
    elsewhere = time.perf_counter() - began
    encoded_once = spent["encode_s"] + spent["linear_s"]
    return {
        "encoded_once_s": encoded_once,
        "reencoding_s": elsewhere,
        "top1": ours,
        "reencoding_top1": theirs,
        **ratio("times", [elsewhere / encoded_once]),
    }


def train_heads(probing: Probing, pool: int) -> float:
    """Train heads of all stages and rates by SGD, encoding in each epoch; return test top-1 of the best."""
    task, loaders, classes = probing.task, probing.loaders, len(probing.classes)

    def features(images: Tensor) -> list[Tensor]:
        with torch.no_grad(), probing.autocast():
            maps = stage_maps(task.backbone, task.probe_input(images.to(task.device).float().div_(255)))
        return [F.adaptive_avg_pool2d(each.float(), pool).flatten(1) for each in maps]

    with evaluating(task.backbone):
        sizes = [each.shape[1] for each in features(next(iter(loaders["train"]))[0])]
        heads = [
            (stage, nn.Sequential(nn.BatchNorm1d(size, affine=False), nn.Linear(size, classes)), lr)
            for stage, size in enumerate(sizes)
            for lr in LRS
        ]
        groups = [{"params": list(head.to(task.device).parameters()), "lr": lr} for _, head, lr in heads]
        optimizer = torch.optim.SGD(groups, lr=LRS[0], momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 16, 24], 0.1)
        for _ in range(EPOCHS):
            for images, labels in loaders["train"]:
                maps = features(images)
                losses = [
                    F.cross_entropy(head(maps[stage]), labels.to(task.device)) for stage, head, _ in heads
                ]
                torch.stack(losses).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            schedule.step()
        right = {split: torch.zeros(len(heads)) for split in ("heldout", "test")}
        total = dict.fromkeys(right, 0)
        for split in right:
            for images, labels in loaders[split]:
                maps = features(images)
                for number, (stage, head, _) in enumerate(heads):
                    answers = head.eval()(maps[stage]).argmax(1).cpu()
                    right[split][number] += (answers == labels).sum()
                total[split] += len(labels)
    return float(right["test"][int(right["heldout"].argmax())] / total["test"])
