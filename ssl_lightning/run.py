"""One run, from a resolved config to results.json: probe the untrained trunk, pretrain, probe, report."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ssl_lightning.callbacks.throughput import Throughput
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.hardware import join_processes, make_trainer, memory_format, peak_memory_gb
from ssl_lightning.networks.features import check_input_size
from ssl_lightning.probes.base import Probe, run_probes
from ssl_lightning.report.summary import print_header, print_summary
from ssl_lightning.results import FILE_NAME, SCHEMA, Record, config_sha256, git_revision, versions, write_json
from ssl_lightning.seeding import stream_seed
from ssl_lightning.tasks.base import PretextTask


def run(cfg: DictConfig, folder: Path) -> None:
    """Carry out one resolved config; write checkpoints, pictures and `results.json` into `folder`.

    Raises:
        ValueError: The parts do not fit each other; nothing was trained nor written then.
    """
    join_processes()
    job = Run(cfg, folder)
    job.print_header()
    try:
        job.execute()
    except BaseException as error:
        job.write("interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed")
        raise
    results = job.write("finished")
    if job.trainer.is_global_zero:
        print_summary(results, folder)


SPLITS = ("train", "heldout", "test")  # of the labelled images


class Run:
    """The parts of one run, built and checked against each other before any work starts."""

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.began = time.perf_counter()
        self.records: list[Record] = []
        self.probe_s: dict[str, float] = {}
        self.throughput = Throughput()
        callbacks = [self.throughput, *instantiate(cfg.callbacks).values()]
        loggers = instantiate(cfg.logger).values()
        self.trainer = make_trainer(**instantiate(cfg.trainer), callbacks=callbacks, logger=loggers)
        self.data: PairedDataModule = instantiate(cfg.data)
        self.data.prepare_data()
        self.data.setup()
        self.task = build_task(cfg, self.data)
        self.probes: dict[str, Probe] = dict(instantiate(cfg.probe)) if self.data.has_downstream else {}
        for probe in self.probes.values():
            counts = {split: len(self.data.downstream(split).indices) for split in SPLITS}
            probe.check(counts)

    def execute(self) -> None:
        """Probe the trunk as initialised, pretrain it, probe it again."""
        if self.cfg.probe_untrained or not self.task.needs_training:
            self.probe(trained=False)
        if self.task.needs_training:
            self.trainer.fit(self.task, datamodule=self.data)
            self.probe(trained=True)

    def probe(self, *, trained: bool) -> None:
        """Run every probe on every branch as it is now, and keep the records."""
        if not self.probes:
            return
        self.task.to(self.trainer.strategy.root_device)
        records, self.probe_s = run_probes(
            self.task.branches(),
            self.task.probe_input,
            self.probes,
            {split: self.data.downstream(split) for split in SPLITS},
            num_classes=self.data.spec.num_classes or 0,
            precision=self.trainer.precision_plugin.forward_context,
            device=self.trainer.strategy.root_device,
        )
        self.records += [record | {"trained": trained} for record in records]

    def write(self, status: str) -> dict[str, Any]:
        """Write results.json (DESIGN.md, section 3) from the first process; return its content."""
        results = self.results(status)
        if self.trainer.is_global_zero:
            write_json(self.folder / FILE_NAME, results)
        return results

    def results(self, status: str) -> dict[str, Any]:
        """The content of results.json as things stand."""
        config = cast(dict[str, Any], OmegaConf.to_container(self.cfg))
        task, data, backbone = self.choices()
        metrics = self.trainer.callback_metrics
        return {
            "schema": SCHEMA,
            "run": {
                "task": task,
                "data": data,
                "backbone": backbone,
                "seed": self.cfg.seed,
                "devices": self.trainer.world_size,
                "precision": self.trainer.precision,
                "epochs": self.trainer.current_epoch if self.task.needs_training else 0,
                "wall_s": time.perf_counter() - self.began,
                "images_per_s": self.throughput.images_per_s,
                "probe_s": self.probe_s,
                "peak_memory_gb": peak_memory_gb(),
                "git": git_revision(),
                "versions": versions(),
                "config_sha256": config_sha256(config),
                "status": status,
            },
            "pretext": {name: float(value) for name, value in metrics.items() if name.startswith("val/")},
            "probes": self.records,
        }

    def choices(self) -> tuple[str, str, str]:
        """Names of the chosen task, data and backbone, as in the run folder."""
        return self.cfg.choices.task, self.cfg.choices.data, self.cfg.choices.backbone

    def print_header(self) -> None:
        """Say what is about to run, with the batch and the learning rate as they will really be."""
        if not self.trainer.is_global_zero:
            return
        task, data, backbone = self.choices()
        size = sum(p.numel() for p in self.task.backbone.parameters())
        facts = {
            "run": f"{task} on {data} with {backbone} ({size:,} parameters), seed {self.cfg.seed}",
            "hardware": f"{self.trainer.world_size} x {self.trainer.strategy.root_device.type}, "
            f"{self.trainer.precision}, {'channels-last' if self.cfg.channels_last else 'NCHW'}, "
            f"{torch.get_num_threads()} threads each",
        }
        if self.task.needs_training:
            batch, views = (
                self.data.batch_size * self.cfg.trainer.accumulate_grad_batches,
                self.task.views_per_image,
            )
            base = self.cfg.optimizer.lr
            facts["batch"] = f"{batch} images x {views} views = {batch * views} through the trunk"
            facts["lr"] = f"{base * self.task.lr_factor(batch):g} (base {base:g})"
        if not self.data.has_downstream:
            facts["probes"] = "skipped: the data have no labelled images (data.train_dir and data.test_dir)"
        print_header(facts)


def build_task(cfg: DictConfig, data: PairedDataModule) -> PretextTask:
    """Build the trunk and the task around it, with the initial weights of `cfg.seed`.

    Raises:
        ValueError: The images are smaller than the stride of the trunk, or other parts do not fit.
    """
    torch.manual_seed(stream_seed(cfg.seed, "weights"))
    backbone: nn.Module = instantiate(cfg.backbone, in_channels=data.spec.channels)
    check_input_size(backbone, data.spec.image_size)
    # partial: passed as keywords of instantiate, modules would be copied into a config
    make_task: partial[PretextTask] = instantiate(cfg.task, _partial_=True)
    task = make_task(
        backbone,
        data.spec,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        seed=cfg.seed,
        channels_last=cfg.channels_last,
    )
    return task.to(memory_format=memory_format(cfg.channels_last))
