"""Build the parts of a run and check that they fit each other, before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ssl_lightning.artifacts.checkpoints import resume_point
from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.results import Results, earlier_results
from ssl_lightning.callbacks.discriminator_watch import DiscriminatorWatch
from ssl_lightning.callbacks.health import GradientWatch, HealthGuard
from ssl_lightning.callbacks.metrics import Metrics
from ssl_lightning.callbacks.online_knn import OnlineKNN
from ssl_lightning.callbacks.restored import Restored
from ssl_lightning.callbacks.throughput import Throughput
from ssl_lightning.config.keys import TRAINER
from ssl_lightning.config.trust import given_overrides
from ssl_lightning.config.types import check_length, check_types, planned_batches
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.engine.cuda_graphs import StepGraph, use_graphs
from ssl_lightning.engine.fsdp import check_sharded, is_sharded
from ssl_lightning.engine.optim import check_optimizer
from ssl_lightning.engine.sync_batch_norm import synchronise_batch_norm
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.features.prepare import Preparation
from ssl_lightning.probes._runner import check_probes
from ssl_lightning.probes.base import BaseProbe
from ssl_lightning.run.build import StartingPoint, use_compiler
from ssl_lightning.run.checks import (
    build_all,
    check_backbone,
    check_monitors,
    check_objective,
    check_places,
    check_validation,
    try_panel,
)
from ssl_lightning.tasks._contract import check_comparable
from ssl_lightning.tasks._pixels import to_float
from ssl_lightning.tasks.base import PretextTask

FITTING = {  # probes for a kind of labels, to suggest
    "classes": "linear", "multilabel": "svm", "masks": "segmentation", "boxes": "detection",
}  # fmt: skip
OURS = tuple(name for name, key in TRAINER.items() if not key.lightning)  # keys unknown to Lightning


@dataclass(frozen=True)
class Parts:
    """Everything that one run needs.

    Args:
        cfg: Resolved config.
        folder: The run folder.
        data: Data module, set up and placed on the device of the run if it is device-resident.
        task: Task with its initial weights.
        loaded: Origin of the initial weights in words, "" for the seed.
        trainer: Trainer with the callbacks below and the callbacks of the config.
        preparation: Prepares the backbones for the probes.
        probes: Probes that fit the labels, by name.
        skipped: Names of the probes that need labels that the data set lacks.
        resumed_from: Checkpoint from which the run resumes.
        previous: Results of the run before its interruption.
        restored: Callback that checks the state that Lightning restores.
        throughput: Callback that counts images.
        metrics: Callback that sends figures to the loggers.
        health: Callback that stops a run that no longer learns.
        compiled: Whether the networks are compiled for training steps.
    """

    cfg: DictConfig
    folder: Path
    data: PairedDataModule
    task: PretextTask
    loaded: str
    trainer: pl.Trainer
    preparation: Preparation
    probes: dict[str, BaseProbe]
    skipped: list[str]
    resumed_from: Path | None
    previous: Results | None
    restored: Restored
    throughput: Throughput
    metrics: Metrics
    health: HealthGuard
    compiled: bool

    def unlabelled(self, n: int) -> Tensor:
        """Return up to n pretraining images `(n, C, H, W)` uint8, the same ones in every run."""
        return self.data.train_sample(min(n, self.data.pretrain_images))


def build_parts(
    cfg: DictConfig, folder: Path, *, resume: bool = True, checkpoint: Path | None = None
) -> Parts:
    """Build the parts of a run without writing or training anything.

    Args:
        cfg: Resolved.
        folder: The run folder.
        resume: If the folder has a checkpoint, the run resumes from it.
        checkpoint: Weights to probe; ignored for a task without training.

    Raises:
        ValueError: A value is wrong, a file is broken, or the parts do not fit each other.
    """
    check_types(cast(dict[str, Any], OmegaConf.to_container(cfg)))
    check_places(cfg)
    named: dict[str, pl.Callback] = build_all(cfg, "callbacks", "callbacks=[checkpoint,progress]")
    chosen = named.values()
    loggers = build_all(cfg, "logger", "logger=[csv]").values()
    resumed_from = resume_point(folder) if resume else None
    previous = earlier_results(folder) if resumed_from else None
    check_optimizer(instantiate(cfg.optimizer), instantiate(cfg.scheduler))
    # check files before downloading and unpacking the data set
    start = StartingPoint(cfg, resumed_from, checkpoint, untrained_records(previous))
    restored = Restored(resumed_from, start.content if resumed_from else None)
    data: PairedDataModule = instantiate(cfg.data)
    data.free = free_keys(cfg)
    data.prepare_data()
    data.setup()
    task, loaded = start.build(data)
    task.check_images(lambda n: data.train_sample(min(n, data.pretrain_images)))
    preparation: Preparation = instantiate(cfg.encoding)
    scores = check_backbone(cfg, task, preparation.feed(task))
    if resumed_from is None and checkpoint is None and task.needs_training:
        try_panel(task, named)
    throughput, health = Throughput(), HealthGuard(folder, cfg.get("diverged"))
    metrics = Metrics(throughput)
    # the guard precedes the metrics, so that a run does not report the figures of a failed validation
    callbacks = [restored, throughput, health, metrics, DiscriminatorWatch(), *chosen, GradientWatch(health)]
    options = {key: value for key, value in cfg.trainer.items() if key not in OURS}
    if not data.holds_out:
        options["limit_val_batches"] = 0  # Lightning would warn of an empty loader
    trainer = make_trainer(**task.trainer_options(options), callbacks=callbacks, logger=loggers)
    data.place(trainer.strategy.root_device)
    task, compiled = fit_to_hardware(cfg, task, trainer, data)
    if task.needs_training:
        validates = data.holds_out and cfg.trainer.limit_val_batches != 0
        check_monitors(callbacks, scores, validates=validates)
        for callback in chosen:
            if isinstance(callback, OnlineKNN):
                callback.check_data(data)
    probes, skipped = fitting_probes(cfg, task, data, preparation)
    check_objective(cfg.get("objective"), scores, probes, holds_out=data.holds_out)
    return Parts(
        cfg, folder, data, task, loaded, trainer, preparation, probes, skipped, resumed_from, previous,
        restored, throughput, metrics, health, compiled,
    )  # fmt: skip


def free_keys(cfg: DictConfig) -> frozenset[str]:
    """Return the keys of `data` that the command line does not give; none for a config without a command."""
    if "overrides" not in cfg:
        return frozenset()
    given = {each.lstrip("+").partition("=")[0] for each in given_overrides(cfg)}
    return frozenset(key for key in cfg.data if f"data.{key}" not in given)


def untrained_records(previous: Results | None) -> list[Record]:
    """Return the records of the untrained backbone from an interrupted run."""
    records = previous.probes if previous else []
    return [record for record in records if not record.trained and record.evaluation is None]


def fit_to_hardware(
    cfg: DictConfig, task: PretextTask, trainer: pl.Trainer, data: PairedDataModule
) -> tuple[PretextTask, bool]:
    """Check that the task can train on this hardware, and adapt it.

    Returns:
        The task, with synchronised batch norms on several processes, and with a CUDA graph if possible; and
        whether to compile its networks.

    Raises:
        ValueError: The length, the processes or the device do not fit.
    """
    if is_sharded(trainer):
        check_sharded(sync_batchnorm=cfg.trainer.sync_batchnorm)
    if not task.needs_training:
        return task, False
    device = trainer.strategy.root_device
    check_length(
        cfg.trainer,
        batches=data.pretrain_batches,
        batch_size=data.batch_size,
        processes=trainer.world_size,
    )
    check_comparable(task, data.batch_size * trainer.world_size)
    check_validation(data, trainer.world_size, cfg.trainer.limit_val_batches)
    if trainer.world_size > 1 and cfg.trainer.sync_batchnorm:
        task = cast(PretextTask, synchronise_batch_norm(task, on_gpu=device.type == "cuda"))
    task.check_trainer(trainer)
    compiled = use_compiler(
        cfg.get("compile", False),
        device=device,
        sharded=is_sharded(trainer),
        batches=planned_batches(cfg.trainer, data.pretrain_batches),
    )
    if use_graphs(
        cfg.get("cuda_graphs", False),  # configs of old runs lack the key
        device=device,
        processes=trainer.world_size,
        precision=str(trainer.precision),
        accumulated=cfg.trainer.accumulate_grad_batches,
        recordable=task.recordable,
    ):
        task.graph = StepGraph(task)
    return task, compiled


def fitting_probes(
    cfg: DictConfig, task: PretextTask, data: PairedDataModule, preparation: Preparation
) -> tuple[dict[str, BaseProbe], list[str]]:
    """Build the probes and check each against the labels and the backbones.

    Returns:
        The probes to run, and the names of the probes that need labels that the data set lacks.

    Raises:
        ValueError: A probe does not fit.
    """
    probes: dict[str, BaseProbe] = dict(instantiate(cfg.probe))
    labels = data.targets if data.has_downstream else "none"
    chosen = {name: p for name, p in probes.items() if {labels, "none"} & set(p.targets)}
    skipped = sorted(set(probes) - set(chosen))
    if skipped and data.has_downstream:
        name = skipped[0]
        raise ValueError(
            f"probe {name} needs labels of the kind {' or '.join(probes[name].targets)}, and data "
            f"{data.name} has {labels}; choose others: probe=[{FITTING[labels]}]"
        )
    inputs = preparation.feed(task)(to_float(data.train_sample(1)))
    check_probes(chosen, task.branches(), inputs, data.label_counts)
    for probe in chosen.values():
        probe.check_images(data)
    return chosen, skipped


def check_columns(parts: Parts) -> None:
    """Raise if columns of a benchmark would stay empty for lack of labels.

    Raises:
        ValueError: The message names the probes that need labels.
    """
    table = parts.cfg.get("benchmark")
    if table and (empty := sorted({column.probe for column in table.columns} & set(parts.skipped))):
        raise ValueError(
            f"benchmark {table.name} shows {', '.join(empty)}, and data {parts.data.name} has no labelled "
            "images; give data.train_dir=, or leave these probes out: "
            f"probe=[{','.join(parts.probes)}]"
        )
