"""Write the header, results.json and the model card of a run."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from ssl_lightning.artifacts.classifiers import save_classifier
from ssl_lightning.artifacts.provenance import git_revision, versions
from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.results import Results, write_results
from ssl_lightning.artifacts.run_facts import UNKNOWN_LABELS, BenchmarkRow, RunFacts, Status, Verdict
from ssl_lightning.artifacts.run_folder import NEAR_DUPLICATES, RESULTS
from ssl_lightning.artifacts.state_dicts import some
from ssl_lightning.callbacks.collapse import Collapse
from ssl_lightning.config.identity import config_sha256, series_sha256
from ssl_lightning.config.keys import DATA
from ssl_lightning.config.trust import given_overrides
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.cpu import processor
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.messages import tell
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.engine.trainer import peak_memory_gb
from ssl_lightning.report.model_card import write_model_card
from ssl_lightning.report.summary import print_header
from ssl_lightning.report.verdict import judge
from ssl_lightning.run.normalisation import changed_normalisation
from ssl_lightning.run.parts import Parts
from ssl_lightning.run.probe import Probed

PLACES = tuple(name for name, key in DATA.items() if key.place != "written")  # keys of data sources


class RunWriter:
    """Collect the records of a run and write its results.

    Args:
        parts: Parts of the run.
        began: Start of the run, by `time.perf_counter`.
    """

    def __init__(self, parts: Parts, began: float) -> None:
        self.parts, self.began = parts, began
        self.git = git_revision()  # of the code that runs; the checkout may change before the end
        self.records: list[Record] = []
        before = parts.previous.probes if parts.previous else []
        self.evaluations = [record for record in before if record.evaluation is not None]  # of `evaluate.py`
        self.probe_s: dict[str, float] = {}
        self.phases = {"start": time.perf_counter() - began}  # seconds by name

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase of the run."""
        began = time.perf_counter()
        yield
        self.phases[name] = time.perf_counter() - began

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each phase, and of the rest until now."""
        rest = time.perf_counter() - self.began - sum(self.phases.values())
        return self.phases | {"rest": rest}

    def add(self, probed: Probed, *, trained: bool) -> None:
        """Add the records of one round of probes."""
        self.records += [replace(record, trained=trained) for record in probed.records]
        self.probe_s = probed.seconds or self.probe_s

    def drop_evaluations(self) -> None:
        """Leave out what `evaluate.py` added, which is of earlier weights."""
        if self.evaluations:
            tell(f"{len(self.evaluations)} figures of evaluate.py are of earlier weights and are left out")
        self.evaluations = []

    def save_classifiers(self, probed: Probed) -> None:
        """Write the classifiers of one round of probes; call it after the export of the backbone."""
        task, config = self.parts.task, self.export_config()
        config["class_names"] = self.parts.data.spec.class_names or ()
        for (name, branch), fitted in probed.classifiers.items():
            own = {"backbone": task.branch_configs().get(branch, config["backbone"])}
            save_classifier(self.parts.folder, name, branch, fitted, probed.backbones[branch], config | own)

    def write(self, status: Status) -> Results:
        """Write results.json, and the model card of a finished run; return the results."""
        results = self.results(status)
        folder = self.parts.folder
        if self.parts.trainer.is_global_zero:
            if status == "finished":  # before results.json, so that finished results imply a complete folder
                write_model_card(folder, results, self.export_config())
            write_results(folder / RESULTS, results)
        return results

    def results(self, status: Status) -> Results:
        """Return the current results."""
        parts, cfg, trainer = self.parts, self.parts.cfg, self.parts.trainer
        config = cast(dict[str, Any], OmegaConf.to_container(cfg))
        before = parts.previous.run if parts.previous else None
        table = cfg.get("benchmark")
        facts = RunFacts(
            task=cfg.choices.task,
            data=cfg.choices.data,
            backbone=cfg.choices.backbone,
            seed=cfg.seed,
            devices=trainer.world_size,
            machine=hardware(trainer.strategy.root_device),
            precision=trainer.precision,
            epochs=trainer.current_epoch if parts.task.needs_training else 0,
            wall_s=(before.wall_s if before else 0.0) + time.perf_counter() - self.began,
            images_per_s=parts.throughput.images_per_s,
            pretrain_images=parts.data.pretrain_images,
            probe_s=self.probe_s,
            peak_memory_gb=peak_memory_gb(),
            resumed=(before.resumed if before else 0) + 1 if parts.resumed_from else 0,
            git=self.git,
            versions=versions(),
            config_sha256=config_sha256(config),
            series_sha256=series_sha256(config),
            benchmark=BenchmarkRow(table.name, table.row, table.budget) if table else None,
            command=command("train", given_overrides(cfg)),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            labels=UNKNOWN_LABELS if parts.loaded else parts.task.labels_seen,
            health=parts.health.health() if parts.task.needs_training else None,
            status=status,
        )
        results = Results(facts, parts.metrics.validation, [*self.records, *self.evaluations])
        return replace(results, run=replace(facts, verdict=self.verdict(results)))

    def verdict(self, results: Results) -> Verdict | None:
        """Judge a finished run that trained."""
        parts = self.parts
        if results.run.status != "finished" or not parts.task.needs_training:
            return None
        watches = [each for each in parts.trainer.callbacks if isinstance(each, Collapse)]  # type: ignore[attr-defined]
        collapsed = watches[0].collapsed if watches else []
        return judge(results, chances=parts.task.chances(), collapsed=collapsed, loaded=bool(parts.loaded))

    def export_config(self) -> dict[str, Any]:
        """Return the content of `backbone.json`: architecture and input of the backbone."""
        parts, cfg = self.parts, self.parts.cfg
        backbone = cast(dict[str, Any], OmegaConf.to_container(cfg.backbone))
        return {
            "backbone": {**backbone, "in_channels": parts.task.backbone_channels(parts.data.spec)},
            "input": {**parts.task.input_config(), **input_options(parts.data)},
            "batch_norm": parts.preparation.protocol(parts.task, parts.data.pretrain_images)["batch_norm"],
            "task": cfg.choices.task,
            "data": cfg.choices.data,
        }

    def list_near_duplicates(self) -> None:
        """Write the near-duplicates, if there are any, into a file of the run folder."""
        if self.parts.trainer.is_global_zero and (found := self.parts.data.duplicates_found):
            write_file(self.parts.folder / NEAR_DUPLICATES, "".join(f"{each}\n" for each in found))

    def print_header(self, *, trains: bool = True) -> None:
        """Print what is about to run.

        Args:
            trains: Whether the task may train, so that the effective batch size and learning rate count.
        """
        parts, cfg = self.parts, self.parts.cfg
        if not parts.trainer.is_global_zero:
            return
        size = sum(p.numel() for p in parts.task.backbone.parameters())
        threads = torch.get_num_threads()
        names = f"{cfg.choices.task} on {cfg.choices.data} with {cfg.choices.backbone}"
        facts = {
            "run": f"{names} ({size:,} parameters), seed {cfg.seed}",
            "hardware": f"{parts.trainer.world_size} x {parts.trainer.strategy.root_device.type}, "
            f"{parts.trainer.precision}, {'channels-last' if cfg.channels_last else 'NCHW'}, "
            f"{threads} thread{'s' * (threads != 1)} each",
        }
        trains = trains and parts.task.needs_training
        if trains:
            batch = parts.data.batch_size * cfg.trainer.accumulate_grad_batches
            views, base = parts.task.views_per_image, cfg.optimizer.lr
            facts["batch"] = f"{batch} images x {views} views = {batch * views} through the backbone"
            facts["lr"] = f"{base * parts.task.lr_factor(batch):g} (base {base:g})"
        if trains and not parts.data.holds_out:
            facts["held out"] = "nothing (data.heldout is 0): no validation, no best.ckpt"
        if places := [f"{key} {cfg.data[key]}" for key in PLACES if cfg.data.get(key)]:
            facts["data"] = ", ".join(places)
            unlabelled = f"{parts.data.pretrain_images:,} to pretrain on; " if trains else ""
            facts["images"] = f"{unlabelled}labelled: {labelled_images(parts.data)}"
            if parts.data.has_downstream and (classes := parts.data.spec.class_names):
                facts["classes"] = some(list(classes))
        if found := parts.data.duplicates_found:
            facts["near-duplicates"] = f"{len(found):,}, listed in {parts.folder / NEAR_DUPLICATES}"
        if not trains and (changed := changed_normalisation(parts.task, parts.folder, cfg.init_from)):
            facts["pixels"] = changed
        if parts.loaded:
            facts["weights"] = parts.loaded
        if parts.resumed_from:
            facts["resumed"] = f"from {parts.resumed_from}"
        if parts.skipped:
            facts["probes"] = (
                f"{', '.join(parts.skipped)} skipped: the data have no labelled images (data.train_dir)"
            )
        if parts.probes and parts.data.has_downstream and (folds := parts.data.test_folds):
            facts["test"] = (
                f"figures cross-validated in {len(folds)} folds of all labelled images (no data.test_dir); "
                "pretraining may see these images, without labels"
            )
        print_header(facts)


def hardware(device: torch.device) -> str:
    """Name the hardware of a process: its GPU, or the processor and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads != 1)}" if device.type == "cpu" else device.type


def labelled_images(data: PairedDataModule) -> str:
    """Name the numbers of the labelled images: of each split, or of all if they are cross-validated."""
    if not data.has_downstream:
        return "none"
    if data.test_folds:
        return f"{len(data.downstream('test').indices):,}"
    return "{train:,} train, {heldout:,} held out, {test:,} test".format(**data.label_counts)


def input_options(data: PairedDataModule) -> dict[str, Any]:
    """Return how evaluation cuts a picture, and the range of its pixels if it is set."""
    options: dict[str, Any] = {"crop_ratio": data.eval_view.crop_ratio if data.eval_view else 1.0}
    return options | ({} if data.value_range is None else {"value_range": list(data.value_range)})


def command(name: str, overrides: Iterable[str]) -> str:
    """Return the shell command that repeats the run, without its output folder and name.

    >>> command("train", ["task=jigsaw", "probe=[linear]", "output_dir=/scratch"])
    "python train.py task=jigsaw 'probe=[linear]'"
    """
    given = [each for each in overrides if each.partition("=")[0] not in ("output_dir", "name")]
    return " ".join([command_line(name), *map(shlex.quote, given)])
