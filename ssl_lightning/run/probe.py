"""Run the probes of one run on every branch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from ssl_lightning.artifacts.classifiers import FittedClassifier
from ssl_lightning.artifacts.records import Record
from ssl_lightning.config.keys import TRAINER
from ssl_lightning.data._pairing import SPLITS
from ssl_lightning.engine.fsdp import is_sharded
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.run.parts import Parts
from ssl_lightning.tasks.base import PretextTask

HARDWARE = tuple(name for name, key in TRAINER.items() if key.probes)  # keys of the trainer


@dataclass(frozen=True)
class Probed:
    """Results of one round of probes.

    Args:
        records: Records without `trained`.
        seconds: Durations by name: `encode_s`, and for each probe `<name>_s`.
        backbones: The probed backbones, by branch.
        classifiers: The classifiers that probes fitted on full images, by names of the probe and branch.
    """

    records: list[Record]
    seconds: dict[str, float]
    backbones: dict[str, nn.Module]
    classifiers: dict[tuple[str, str], FittedClassifier] = field(default_factory=dict)


def probe_task(parts: Parts, task: PretextTask) -> Probed:
    """Prepare every branch of the task and run every probe on it."""
    device = parts.trainer.strategy.root_device
    task.to(device)
    precision = parts.trainer.precision_plugin.forward_context
    backbones = parts.preparation.backbones(task, parts.unlabelled, precision=precision)
    if not parts.probes:
        return Probed([], {}, backbones)
    data = parts.data
    classifiers: dict[tuple[str, str], FittedClassifier] = {}

    def keep(name: str, branch: str, fitted: FittedClassifier) -> None:
        classifiers[name, branch] = fitted

    records, seconds = run_probes(
        backbones,
        parts.preparation.feed(task),
        parts.probes,
        {split: data.downstream(split) for split in SPLITS if data.label_counts.get(split)},
        class_names=data.spec.class_names or (),
        folder=parts.folder,
        data=data,
        make_trainer=partial(make_trainer, **probe_hardware(parts)),
        seed=parts.cfg.seed,
        precision=precision,
        device=device,
        protocol=parts.preparation.protocol(task, data.pretrain_images),
        keep=keep if parts.preparation.input == "image" else None,
    )
    return Probed(records, seconds, backbones, classifiers)


def probe_hardware(parts: Parts) -> dict[str, Any]:
    """Return the trainer options of probes, which hold a complete backbone in every process."""
    options = {key: parts.cfg.trainer[key] for key in HARDWARE}
    return options | ({"strategy": "auto"} if is_sharded(parts.trainer) else {})
