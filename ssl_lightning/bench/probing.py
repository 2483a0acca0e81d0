"""Benchmark of the probes against one encode pass, and against a protocol that encodes in every epoch."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from ssl_lightning.bench.build import autocast, composed, device, make_data, precision_of
from ssl_lightning.data._pairing import SPLITS
from ssl_lightning.features.encode import evaluating, stage_maps
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.run.build import build_task

EPOCHS = 28  # as in Goyal et al. 2019
LRS = (0.01, 0.1, 1.0)  # trained side by side on the same features; held-out images choose one


def probes_against_encoding(overrides: list[str], pool: int = 2) -> dict[str, float]:
    """Time the linear and kNN probes, the encode pass, and SGD heads with encoding in every epoch.

    The latter protocol trains linear classifiers on all stages for 28 epochs (Goyal et al. 2019), on the same
    pooled features and without augmentation. Held-out images choose the learning rate and the stage.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed(["probe=[linear,knn]", *overrides], Path(folder))
        data = make_data(cfg)
        task, _ = build_task(cfg, data)
        task = task.to(device(cfg.trainer.accelerator))
        loaders = {split: data.downstream(split) for split in SPLITS}
        precision = precision_of(cfg)
        for _ in range(2):  # the first time warms up, like the first of 28 epochs
            records, spent = run_probes(
                {"backbone": task.backbone},
                task.probe_input,
                dict(instantiate(cfg.probe)),
                loaders,
                class_names=data.spec.class_names or (),
                folder=Path(folder),
                precision=lambda: autocast(precision, task.device.type),
                device=task.device,
            )
    linear = [r for r in records if r.probe == "linear" and r.metric == "top1"]
    ours = max(linear, key=lambda r: r.protocol["heldout"]).value
    began = time.perf_counter()
    theirs = train_heads(task, loaders, len(data.spec.class_names or ()), pool, precision)
    elsewhere = time.perf_counter() - began
    probing = spent["linear_s"] + spent["knn_s"]
    return {
        "encode_s": spent["encode_s"],
        "probes_s": probing,
        "probes_over_encode": probing / spent["encode_s"],
        "reencoding_s": elsewhere,
        "times": elsewhere / (spent["encode_s"] + spent["linear_s"]),
        "top1": ours,
        "reencoding_top1": theirs,
    }


def train_heads(task: Any, loaders: Any, classes: int, pool: int, precision: str) -> float:
    """Train heads of all stages and rates by SGD, encoding in each epoch; return test top-1 of the best."""

    def features(images: Tensor) -> list[Tensor]:
        with torch.no_grad(), autocast(precision, task.device.type):
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
