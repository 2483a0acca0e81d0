"""Execute one run: probe the untrained backbone, pretrain, probe again, write results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from ssl_lightning.artifacts.classifiers import remove_classifiers
from ssl_lightning.artifacts.weights import save_backbone
from ssl_lightning.core.progress import watched
from ssl_lightning.engine.fsdp import unsharded_task
from ssl_lightning.engine.trainer import join_processes
from ssl_lightning.report.summary import print_brief, print_summary
from ssl_lightning.run.build import compile_networks
from ssl_lightning.run.parts import Parts, build_parts, check_columns, untrained_records
from ssl_lightning.run.probe import probe_task
from ssl_lightning.run.writer import RunWriter
from ssl_lightning.tasks.base import PretextTask


def run(cfg: DictConfig, folder: Path, accept: Callable[[], None] = lambda: None) -> None:
    """Run one resolved config; write checkpoints, pictures and `results.json` into `folder`.

    If the folder has a checkpoint, the run resumes from it.

    Args:
        cfg: Resolved.
        folder: The run folder.
        accept: Called once every check has passed, before any work.

    Raises:
        ValueError: The parts do not fit each other; nothing was trained or written.
    """
    began = time.perf_counter()
    join_processes()
    with watched("load the data and build the networks"):
        parts = build_parts(cfg, folder)
    check_columns(parts)
    writer = RunWriter(parts, began)
    accept()
    brief = cfg.get("summary", "full") == "brief"  # older configs have no such key
    writer.list_near_duplicates()
    if not brief:
        writer.print_header()
    try:
        execute(parts, writer)
    except BaseException as error:
        if parts.restored.pending:  # nothing ran yet; existing files belong to the earlier run
            raise
        with contextlib.suppress(OSError):  # on a full disk, report the first error
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            writer.write("interrupted" if stopped else "failed")
        raise
    results = writer.write("finished")
    if parts.trainer.is_global_zero:
        if brief:
            print_brief(results, folder)
        else:
            print_summary(results, folder, writer.seconds)


def execute(parts: Parts, writer: RunWriter) -> PretextTask:
    """Probe the untrained backbone, pretrain it, probe it again and export it; return the task."""
    task = parts.task
    if task.needs_training and parts.cfg.probe_untrained:
        writer.records = untrained_records(parts.previous)  # a resumed run already has them
        if not writer.records:
            with writer.phase("untrained probes"):
                writer.add(probe_task(parts, task), trained=False)
            writer.write("interrupted")  # in case the run is killed
    if task.needs_training:
        with writer.phase("pretraining"):
            task = pretrain(parts)
        if parts.trainer.global_step > parts.restored.step:
            writer.drop_evaluations()
    with writer.phase("probes"):
        probed = probe_task(parts, task)
    writer.add(probed, trained=task.needs_training or bool(parts.loaded))
    if parts.trainer.is_global_zero:
        remove_classifiers(parts.folder)  # of a run that goes on, they belong to earlier weights
        save_backbone(parts.folder, probed.backbones["backbone"], writer.export_config())
        writer.save_classifiers(probed)
    return task


def pretrain(parts: Parts) -> PretextTask:
    """Pretrain; return the task unsharded, without compiled networks or CUDA graph, as in `evaluate.py`."""
    if parts.compiled:
        compile_networks(parts.task)
    with parts.restored.naming():
        parts.trainer.fit(parts.task, datamodule=parts.data, ckpt_path=parts.resumed_from)
    with watched("gather the weights"):
        task: PretextTask = unsharded_task(parts.trainer, parts.task)
    task.graph = None
    task.zero_grad()  # frees memory for the probes
    if parts.compiled:
        torch.compiler.set_stance("force_eager")
    return task
