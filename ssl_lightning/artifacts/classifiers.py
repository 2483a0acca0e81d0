"""Classifiers that probes fitted: stored in the run folder, and loaded with their backbone."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.checkpoints import MAX_BYTES
from ssl_lightning.artifacts.input_transform import InputTransform
from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.run_folder import BACKBONE, CLASSIFIERS, CONFIG, classifier_files
from ssl_lightning.artifacts.state_dicts import mismatches
from ssl_lightning.artifacts.weights import (
    MAX_CONFIG,
    attach_transform,
    build_network,
    check_run,
    read_state,
    read_transform,
    write_weights,
)
from ssl_lightning.config.paths import conf_dir
from ssl_lightning.config.trust import load_config
from ssl_lightning.core.atomic_files import write_json
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.untrusted import check_plain, check_schema, read_json

SCHEMA = 1  # of classifier_<probe>_<branch>.json
FITTING = ("linear", "attentive", "finetune")  # probes of this project that store a classifier
HEAD, NETWORK = "head.", "backbone."  # prefixes of weights


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier as a probe fitted it.

    Args:
        head: Config of the head with `_target_`, a network of this package: map `(B, C, H, W)` -> logits.
        weights: State of the head under `head.`; under `backbone.` that of a backbone that the probe trained.
        record: Result of the probe with this classifier; its stage is the one that the head takes.
    """

    head: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    record: Record


class Classifier(nn.Module):
    """A backbone with a head on one stage.

    Args:
        backbone: The backbone.
        head: Maps the stage map `(B, C, H, W)` to logits `(B, K)`.
        stage: Number of the stage, from 1.
        transform: Converts pictures to the input.
        class_names: Names of the K classes.
        facts: Data set, metric and figures of the probe: `data`, `metric`, `test`, `heldout`, `stage`, ...
    """

    transform: InputTransform

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        stage: int,
        transform: InputTransform,
        class_names: tuple[str, ...],
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.stage = backbone, head, stage
        self.class_names, self.facts = class_names, dict(facts)
        attach_transform(self, transform)

    def check(self) -> None:
        """Raise ValueError if the backbone lacks the stage, or the head has other classes than the names."""
        info: Any = self.backbone.feature_info
        stages = len(info.channels())
        if not 1 <= self.stage <= stages:
            raise ValueError(f"stage is {self.stage}; the backbone has 1 to {stages}")
        outputs = list(self.head.parameters())[-1].shape[0]  # the bias of its last layer
        if outputs != len(self.class_names):
            raise ValueError(f"the head has {outputs} outputs, and {len(self.class_names)} names are given")

    def forward(self, images: Tensor) -> Tensor:
        """Map the output of `transform`, `(B, C, H, W)`, to logits `(B, K)`."""
        return self.head(self.backbone(images)[self.stage - 1].float())


def load_classifier(run: str | Path, probe: str = "linear", *, branch: str = "backbone") -> Classifier:
    """Load the classifier that a probe fitted in a run: the backbone with the linear or fine-tuned head.

    It is the classifier of the last probing, by the run itself or by `evaluate.py run=`: for "linear" and
    "attentive" at the stage that did best on held-out images, for "finetune" with the largest fraction of
    the labels. Its accuracy on the test split is the reported one, up to rounding; `facts` has it, and names
    the data set.

    Args:
        run: The run folder.
        probe: Name of the probe in the config, "linear", "attentive" or "finetune".
        branch: Backbone of the task; adversarial tasks have "discriminator" too.

    Returns:
        The classifier in eval mode, on the CPU, with `transform` and `class_names`.

    Raises:
        ValueError: The run has no such classifier, or its files are broken or do not fit each other.

    Example:
        ::

            classifier = load_classifier("outputs/rotation/cifar10/convnet/first")
            logits = classifier(classifier.transform(picture)[None])  # (1, K)
            classifier.class_names[logits.argmax()]
    """
    folder = Path(run).expanduser()
    weights, description = classifier_files(folder, probe, branch)
    if not description.exists():
        check_run(folder)
        raise ValueError(_missing(folder, probe, branch))
    try:
        content = read_json(description, MAX_CONFIG)
        check_schema(content, SCHEMA)
        _check_digests(folder, content["sha256"], {weights.name})
        state = dict(read_state(weights))
        if BACKBONE in content["sha256"]:
            state |= {NETWORK + name: value for name, value in read_state(folder / BACKBONE).items()}
        classifier = Classifier(
            build_network(content["backbone"], description),
            build_network(content["head"], description),
            int(content["stage"].removeprefix("stage")),
            read_transform(content, description),
            tuple(map(str, content["class_names"])),
            content["facts"],
        )
        classifier.check()
        if wrong := mismatches(classifier.state_dict(), state):
            raise ValueError(f"its weights do not fit: {'; '.join(wrong)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{description} cannot be loaded: {error}; {_command(folder, probe)} makes it again"
        ) from error
    classifier.load_state_dict(state)
    return classifier.eval()


def save_classifier(
    folder: Path,
    probe: str,
    branch: str,
    fitted: FittedClassifier,
    backbone: nn.Module,
    config: Mapping[str, Any],
) -> None:
    """Write a classifier into a run folder, weights first; the description holds the digests of both files.

    The backbone is stored with it only if it is not the exported one.

    Args:
        folder: The run folder, with the exported backbone if there is one.
        probe: Name of the probe.
        branch: Name of the branch.
        fitted: The classifier.
        backbone: The backbone of the branch.
        config: `backbone` (config of this backbone), `input`, `data` and `class_names`.
    """
    weights, description = classifier_files(folder, probe, branch)
    state, needed = dict(fitted.weights), [weights]
    if not any(name.startswith(NETWORK) for name in state):
        if _is_exported(folder, backbone):
            needed.append(folder / BACKBONE)
        else:
            state |= {NETWORK + name: value for name, value in backbone.state_dict().items()}
    write_weights(weights, state)
    record = fitted.record
    facts = {
        "probe": probe,
        "branch": branch,
        "stage": record.stage,
        "data": config["data"],
        "metric": record.metric,
        "test": record.value,
        "heldout": record.heldout,
        "n": record.n,
    }
    content = {
        "schema": SCHEMA,
        "stage": record.stage,
        "head": dict(fitted.head),
        "backbone": config["backbone"],
        "input": config["input"],
        "class_names": list(config["class_names"]),
        "facts": facts,
        "sha256": {path.name: _digest(path) for path in needed},
    }
    write_json(description, content)


def remove_classifiers(folder: Path) -> None:
    """Remove the classifiers of an earlier backbone of a run."""
    for path in folder.glob(CLASSIFIERS):
        path.unlink(missing_ok=True)


def _is_exported(folder: Path, backbone: nn.Module) -> bool:
    """Whether the exported backbone of a run has the weights of a backbone."""
    if not (folder / BACKBONE).exists():
        return False
    stored, own = read_state(folder / BACKBONE), backbone.state_dict()
    return stored.keys() == own.keys() and all(
        torch.equal(stored[name], value.detach().cpu()) for name, value in own.items()
    )


def _check_digests(folder: Path, digests: Mapping[str, str], expected: set[str]) -> None:
    """Raise ValueError if a file of a classifier is absent, or is not the one that it was written with."""
    if not expected <= digests.keys() <= expected | {BACKBONE}:
        raise ValueError(f"sha256 names {', '.join(digests) or 'no file'}")
    for name, digest in digests.items():
        check_plain(folder / name, MAX_BYTES)
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} has changed since the probe")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(folder: Path, probe: str, branch: str) -> str:
    found = sorted(path.stem.removeprefix("classifier_") for path in folder.glob(f"{CLASSIFIERS}.json"))
    has = f"it has {', '.join(found)}; " if found else ""
    if probe not in FITTING and (conf_dir() / "probe" / f"{probe}.yaml").exists():
        return f"probe {probe} stores no classifier; allowed are {', '.join(FITTING)}"
    return (
        f"{folder} holds no classifier of probe {probe} on branch {branch}; {has}"
        f"{_command(folder, probe)} makes one for each branch of the task"
    )


def _command(folder: Path, probe: str) -> str:
    """Return the command that fits and stores the classifiers of a probe."""
    words = [f"run={folder}", f"probe=[{probe}]"]
    try:
        if load_config(folder / CONFIG).encoding.input != "image":  # features of tiles give no classifier
            words.append("encoding.input=image")
    except ValueError:
        pass
    return f"{command_line('evaluate')} {shlex.join(words)}"
