"""One run, from a resolved config to results.json: probe the untrained trunk, pretrain, probe, report."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ssl_lightning.build import check_compiler, compile_networks, map_shapes
from ssl_lightning.callbacks.divergence import DivergenceGuard
from ssl_lightning.callbacks.metrics import Metrics
from ssl_lightning.callbacks.restored import Restored
from ssl_lightning.callbacks.throughput import Throughput
from ssl_lightning.checkpoints import resume_point
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.earlier import accept_config
from ssl_lightning.first_state import FirstState
from ssl_lightning.foreign import given_overrides
from ssl_lightning.graphs import StepGraph, use_graphs
from ssl_lightning.hardware import join_processes, make_trainer, peak_memory_gb
from ssl_lightning.optim import check_optimizer
from ssl_lightning.preparation import Preparation
from ssl_lightning.probes.base import BaseProbe, run_probes
from ssl_lightning.report.model_card import write_model_card
from ssl_lightning.report.summary import print_header, print_summary
from ssl_lightning.results import (
    FILE_NAME,
    SCHEMA,
    Record,
    config_sha256,
    git_revision,
    series_sha256,
    versions,
    write_json,
)
from ssl_lightning.results_file import earlier_results
from ssl_lightning.schema import check_config, check_length
from ssl_lightning.sharding import check_sharded, is_sharded, whole_task
from ssl_lightning.tasks.base import PretextTask, to_float
from ssl_lightning.weights import save_backbone

HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision")  # keys of the trainer
OURS = ("sync_batchnorm", "launcher")  # keys of it that are not Lightning's
UNKNOWN_LABELS = "unknown: the trunk's first weights come from elsewhere"
PLACES = ("root", "dir", "pretrain_dir", "train_dir", "test_dir")  # keys of data: where it is read from
SPLITS = ("train", "heldout", "test")  # of the labelled images


def run(cfg: DictConfig, folder: Path, *, resumes: bool = False) -> None:
    """Carry out one resolved config; write checkpoints, pictures and `results.json` into `folder`.

    A folder with a checkpoint is gone on with from there.

    Args:
        cfg: Resolved.
        folder: The run folder.
        resumes: Whether the config is to take the place of that in the folder, once all of it was accepted.

    Raises:
        ValueError: The parts do not fit each other; nothing was trained nor written then.
    """
    join_processes()
    job = Run(cfg, folder)
    job.check_columns()
    if resumes and job.trainer.is_global_zero:
        accept_config(folder)
    job.print_header()
    try:
        job.execute()
    except BaseException as error:
        if job.restored.awaited:  # nothing was done; what is there is of before
            raise
        with contextlib.suppress(OSError):  # on a full disk: the first error is the one to tell
            job.write("interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed")
        raise
    results = job.write("finished")
    if job.trainer.is_global_zero:
        print_summary(results, folder)


class Run:
    """The parts of one run, built and checked against each other before any work starts."""

    def __init__(
        self, cfg: DictConfig, folder: Path, *, resume: bool = True, checkpoint: Path | None = None
    ) -> None:
        self.cfg, self.folder = cfg, folder
        self.began = time.perf_counter()
        check_config(cast(dict[str, Any], OmegaConf.to_container(cfg)))
        self.resumed_from = resume_point(folder) if resume else None
        self.before = earlier_results(folder) if self.resumed_from else None
        self.records: list[Record] = []
        self.probe_s: dict[str, float] = {}
        self.throughput = Throughput()
        self.metrics = Metrics(self.throughput)
        check_optimizer(instantiate(cfg.optimizer), instantiate(cfg.scheduler))
        # files that are going to be read are looked at before the data are fetched and unpacked
        first = FirstState(cfg, self.resumed_from, checkpoint, self.untrained_before())
        self.restored = Restored(self.resumed_from, first.content if self.resumed_from else None)
        self.data: PairedDataModule = instantiate(cfg.data)
        self.data.prepare_data()
        self.data.setup()
        self.task, self.loaded = first.build(self.data)
        # the guard before the figures, so that those of a validation that failed are not the run's
        own = [self.restored, self.throughput, DivergenceGuard(folder, cfg.get("diverged")), self.metrics]
        callbacks = [*own, *instantiate(cfg.callbacks).values()]
        loggers = instantiate(cfg.logger).values()
        options = {key: value for key, value in cfg.trainer.items() if key not in OURS}
        self.trainer = make_trainer(**self.task.trainer_options(options), callbacks=callbacks, logger=loggers)
        self.data.place(self.trainer.strategy.root_device)
        if self.task.needs_training:
            check_length(
                cfg.trainer,
                batches=self.data.pretrain_batches,
                batch_size=self.data.batch_size,
                processes=self.trainer.world_size,
            )
        if is_sharded(self.trainer):
            check_sharded(sync_batchnorm=cfg.trainer.sync_batchnorm, compiled=cfg.get("compile"))
        if self.trainer.world_size > 1 and self.task.needs_training and cfg.trainer.sync_batchnorm:
            from ssl_lightning.networks.sync_batch_norm import synchronise_batch_norm

            on_gpu = self.trainer.strategy.root_device.type == "cuda"
            self.task = cast(PretextTask, synchronise_batch_norm(self.task, on_gpu=on_gpu))
        self.preparation: Preparation = instantiate(cfg.encoding)
        self.trunks: dict[str, nn.Module] = {}  # as they were probed
        self.probes, self.skipped = self.fitting_probes()
        self.compiled = bool(cfg.get("compile")) and self.task.needs_training
        if self.compiled:
            check_compiler(self.trainer.strategy.root_device)
        if self.task.needs_training and use_graphs(
            cfg.get("cuda_graphs", False),  # of a run from before there were any: none
            device=self.trainer.strategy.root_device,
            processes=self.trainer.world_size,
            precision=self.trainer.precision,
            accumulated=cfg.trainer.accumulate_grad_batches,
            recordable=self.task.recordable,
        ):
            self.task.graph = StepGraph(self.task)

    def fitting_probes(self) -> tuple[dict[str, BaseProbe], list[str]]:
        """Make the probes, and check each against the labels and the trunks: refused now, not after training.

        Returns:
            Those to be run, and the names of those that want labels where there are none.

        Raises:
            ValueError: One does not fit.
        """
        fed = self.preparation.feed(self.task)(to_float(self.unlabelled(1)))
        probes: dict[str, BaseProbe] = dict(instantiate(self.cfg.probe))
        labels = self.data.targets if self.data.has_downstream else "none"
        chosen = {name: p for name, p in probes.items() if {labels, "none"} & set(p.targets)}
        skipped = sorted(set(probes) - set(chosen))
        if skipped and self.data.has_downstream:
            name = skipped[0]
            raise ValueError(
                f"probe {name} needs labels of the kind {' or '.join(probes[name].targets)}, and data "
                f"{self.data.name} has {labels}; choose other probes: probe=[...]"
            )
        shapes = [map_shapes(trunk, fed) for trunk in self.task.branches().values()]
        for name, probe in chosen.items():
            if fed.ndim == 5 and not probe.takes_views:
                raise ValueError(f"probe {name} needs whole images, no tiles: encoding.input=image")
            probe.check(self.data.label_counts)
            for maps in shapes:
                probe.check_trunk(maps, self.data.label_counts)
        return chosen, skipped

    def check_columns(self) -> None:
        """Refuse a benchmark whose columns would stay empty for want of labels.

        Raises:
            ValueError: Names the probes that want them.
        """
        table = self.cfg.get("benchmark")
        if table and (empty := sorted({column.probe for column in table.columns} & set(self.skipped))):
            raise ValueError(
                f"benchmark {table.name} shows {', '.join(empty)}, and data {self.data.name} has no labelled "
                "images; give data.train_dir= and data.test_dir=, or leave these probes out: "
                f"probe=[{','.join(self.probes)}]"
            )

    def execute(self) -> None:
        """Probe the trunk as initialised, pretrain it, probe it again."""
        if not self.task.needs_training:
            self.probe(trained=bool(self.loaded))
        else:
            if self.cfg.probe_untrained:
                self.probe_untrained()
            self.fit()
            self.probe(trained=True)
        if self.trainer.is_global_zero:
            save_backbone(self.folder, self.trunks["backbone"], self.export_config())

    def fit(self) -> None:
        """Pretrain; what comes after is not compiled, so that `evaluate.py` finds the same figures."""
        if self.compiled:
            compile_networks(self.task)
        with self.restored.naming():
            self.trainer.fit(self.task, datamodule=self.data, ckpt_path=self.resumed_from)
        self.task = whole_task(self.trainer, self.task)
        self.task.graph = None  # and its memory is free for the probes
        if self.compiled:
            torch.compiler.set_stance("force_eager")

    def probe_untrained(self) -> None:
        """Probe the trunk as initialised; a resumed run did so before."""
        self.records = self.untrained_before()
        if not self.records:
            self.probe(trained=False)
            self.write("interrupted")  # what a run that is killed leaves

    def untrained_before(self) -> list[Record]:
        """Figures of the trunk as initialised that this run left when it was broken off."""
        return [r for r in (self.before or {}).get("probes", []) if not r["trained"]]

    def probe(self, *, trained: bool) -> None:
        """Make every branch ready as it is now, run every probe on it, and keep the records."""
        self.task.to(self.trainer.strategy.root_device)
        precision = self.trainer.precision_plugin.forward_context
        self.trunks = self.preparation.trunks(self.task, self.unlabelled, precision=precision)
        if not self.probes:
            return
        records, self.probe_s = run_probes(
            self.trunks,
            self.preparation.feed(self.task),
            self.probes,
            {split: self.data.downstream(split) for split in SPLITS if self.data.has_downstream},
            class_names=self.data.spec.class_names or (),
            folder=self.folder,
            data=self.data,
            make_trainer=partial(make_trainer, **self.hardware()),
            seed=self.cfg.seed,
            precision=precision,
            device=self.trainer.strategy.root_device,
            protocol=self.preparation.protocol(self.task, self.data.pretrain_images),
        )
        self.records += [record | {"trained": trained} for record in records]

    def hardware(self) -> dict[str, Any]:
        """Options of the trainers of probes, which hold a whole trunk in every process."""
        options = {key: self.cfg.trainer[key] for key in HARDWARE}
        return options | ({"strategy": "auto"} if is_sharded(self.trainer) else {})

    def unlabelled(self, n: int) -> Tensor:
        """At most n pretraining images `(n, C, H, W)` uint8, the same ones in every run."""
        return self.data.train_sample(min(n, self.data.pretrain_images))

    def write(self, status: str) -> dict[str, Any]:
        """Write results.json (DESIGN.md, section 3) from the first process; return its content."""
        results = self.results(status)
        if self.trainer.is_global_zero:
            if status == "finished":  # before the results: where these are finished, everything is there
                write_model_card(self.folder, results, self.export_config())
            write_json(self.folder / FILE_NAME, results)
        return results

    def results(self, status: str) -> dict[str, Any]:
        """The content of results.json as things stand."""
        config = cast(dict[str, Any], OmegaConf.to_container(self.cfg))
        task, data, backbone = self.choices()
        earlier = self.before["run"] if self.before else {}
        table = self.cfg.get("benchmark")
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
                "wall_s": earlier.get("wall_s", 0.0) + time.perf_counter() - self.began,
                "images_per_s": self.throughput.images_per_s,
                "probe_s": self.probe_s,
                "peak_memory_gb": peak_memory_gb(),
                "resumed": earlier.get("resumed", 0) + 1 if self.resumed_from else 0,
                "git": git_revision(),
                "versions": versions(),
                "config_sha256": config_sha256(config),
                "series_sha256": series_sha256(config),
                "benchmark": {key: table[key] for key in ("name", "budget", "row")} if table else None,
                "command": command("train.py", given_overrides(self.cfg)),
                "ended": datetime.now(UTC).isoformat(timespec="seconds"),
                "labels": UNKNOWN_LABELS if self.loaded else self.task.labels_seen,
                "status": status,
            },
            "pretext": self.metrics.validation,
            "probes": self.records,
        }

    def choices(self) -> tuple[str, str, str]:
        """Names of the chosen task, data and backbone, as in the run folder."""
        return self.cfg.choices.task, self.cfg.choices.data, self.cfg.choices.backbone

    def export_config(self) -> dict[str, Any]:
        """What `backbone.json` says: how to build the trunk, and how to feed it."""
        backbone = cast(dict[str, Any], OmegaConf.to_container(self.cfg.backbone))
        return {
            "backbone": {**backbone, "in_channels": self.task.trunk_channels(self.data.spec)},
            "input": self.task.input_config(),
            "batch_norm": self.preparation.protocol(self.task, self.data.pretrain_images)["batch_norm"],
            "task": self.cfg.choices.task,
            "data": self.cfg.choices.data,
        }

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
            batch = self.data.batch_size * self.cfg.trainer.accumulate_grad_batches
            views, base = self.task.views_per_image, self.cfg.optimizer.lr
            facts["batch"] = f"{batch} images x {views} views = {batch * views} through the trunk"
            facts["lr"] = f"{base * self.task.lr_factor(batch):g} (base {base:g})"
        if places := [f"{key} {self.cfg.data[key]}" for key in PLACES if self.cfg.data.get(key)]:
            facts["data"] = ", ".join(places)
        if self.loaded:
            facts["weights"] = self.loaded
        if self.resumed_from:
            facts["resumed"] = f"from {self.resumed_from}"
        if self.skipped:
            facts["probes"] = (
                f"{', '.join(self.skipped)} skipped: the data have no labelled images "
                "(data.train_dir and data.test_dir)"
            )
        print_header(facts)


def command(entry: str, overrides: Iterable[str]) -> str:
    """The shell line that computes the same again, wherever it writes.

    >>> command("train.py", ["task=jigsaw", "probe=[linear]", "output_dir=/scratch"])
    "python train.py task=jigsaw 'probe=[linear]'"
    """
    given = [each for each in overrides if each.partition("=")[0] not in ("output_dir", "name")]
    return shlex.join(["python", entry, *given])
